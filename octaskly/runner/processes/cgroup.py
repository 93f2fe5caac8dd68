"""Cgroups (v2): exact membership of tasks' processes, and killing all of them at once.

If the agent may create groups, each launcher has a group below the agent's:
`octaskly-<pid of the agent>-<number>`. It contains these groups:

- `home` holds the launcher.
- With several slots, each has a group `slot-<n>` that serves one task after the other:
  the launcher moves in, starts the task, and moves out.
- With one slot, tasks start in `home`, which costs no move. While the launcher kills or
  freezes a task, it moves to `out`.
- A task with limits has its own group `limits-<key>`, if controllers are available. The
  agent creates it and sends the open files to the launcher.

The agent owns all groups. If tasks run as another user, neither they nor the launchers
may move a process or create a group. A launcher opens the files of its groups before it
switches to that user: the kernel checks who opened a file, not who writes to it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

PREFIX = "octaskly-"
AGENT = "agent"  #: the `DelegateSubgroup` in systemd/octaskly.service
CONTROLLERS = ("memory", "pids")  #: that enforce the limits of a task
CPU_CONTROLLER = "cpu"  #: the controller that divides processors between groups
TASKS_WEIGHT = 10  #: of each launcher with its tasks; the agent's group has 100
REMOVE_TRIES = 50  #: each with `SETTLE_TRIES` checks
SETTLE_TRIES = 200  #: killed processes leave their group within microseconds
SETTLE_RETRY_S = 0.0002
#: Files of a group; older kernels lack the last ones.
CONTROL_FILES = ("procs", "freeze", "kill")
_READ = os.O_RDONLY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CLOEXEC


def parse_mounts(mountinfo: str) -> str | None:
    """Return the mount point of the whole v2 hierarchy; None if there is none.

    Args:
        mountinfo: Content of `/proc/self/mountinfo`.
    """
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        parts = fields.split()
        if rest.startswith("cgroup2 ") and len(parts) > 4 and parts[3] == "/":  # noqa: PLR2004
            return parts[4].replace("\\040", " ")
    return None


def own_group_folder() -> Path | None:
    """Return the folder of this process's own group; None without cgroup v2."""
    try:
        mount = parse_mounts(Path("/proc/self/mountinfo").read_text())
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
        if mount is None:
            return None
        folder = Path(mount, own.lstrip("/"))
        # In a namespace or a partial mount, the path may name another group.
        pids = (folder / "cgroup.procs").read_text().split()
    except (OSError, StopIteration):
        return None
    return folder if str(os.getpid()) in pids else None


def prepare_parent_group(own: Path) -> Path:
    """Return the parent of the launchers' groups, if possible with controllers.

    The kernel enables controllers only below a group without processes. So systemd
    starts the agent in a group below its service (`DelegateSubgroup`). Versions without
    that setting start it in the group of the service: then the agent moves itself.
    """
    parent = own.parent if own.name == AGENT else own
    try:
        if not _available_controllers(parent):
            return own
        if parent == own:
            if Group(own).pids() != {os.getpid()}:
                return own  # Processes that are not ours must not be moved.
            (own / AGENT).mkdir(exist_ok=True)
            (own / AGENT / "cgroup.procs").write_text(str(os.getpid()))
        _enable_controllers(parent)
    except OSError:
        return own
    with suppress(OSError):  # A kernel may refuse it with real-time processes.
        _enable_controllers(parent, (CPU_CONTROLLER,))
    return parent


def _available_controllers(
    folder: Path, wanted: Iterable[str] = CONTROLLERS
) -> list[str]:
    """Return the wanted controllers that subgroups may have."""
    names = (folder / "cgroup.controllers").read_text().split()
    return [name for name in wanted if name in names]


def _enable_controllers(folder: Path, wanted: Iterable[str] = CONTROLLERS) -> None:
    for name in _available_controllers(folder, wanted):
        (folder / "cgroup.subtree_control").write_text(f"+{name}")


def create_launcher_group(parent: Path, place: int) -> Path | None:
    """Create the group of a launcher; return None if that is not allowed."""
    folder = parent / f"{PREFIX}{os.getpid()}-{place}"
    try:
        make_group(folder)
        make_group(folder / "home")
    except OSError:
        return None
    with suppress(OSError):
        _enable_controllers(folder)
    with suppress(OSError):  # The cpu controller may be missing.
        (folder / "cpu.weight").write_text(str(TASKS_WEIGHT))
    return folder


def make_group(folder: Path) -> None:
    """Create a group that other users may read, with any umask."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)


def move_process(folder: Path, pid: int) -> bool:
    """Move a process into a group; return True if that was allowed."""
    try:
        (folder / "cgroup.procs").write_text(str(pid))
    except OSError:
        return False
    return True


def kill_and_remove_group(folder: Path) -> set[int]:
    """Kill all processes in a launcher's group, and remove it once it is empty.

    Returns:
        The pids of the killed processes.
    """
    killed: set[int] = set()
    with suppress(OSError):
        for inner in _subgroups(folder):
            killed |= Group(inner).pids()
        group = Group(folder)
        for _ in range(REMOVE_TRIES):  # On a busy machine, dying takes longer.
            if group.kill_all():
                break
    for inner in (*_subgroups(folder), folder):
        with suppress(OSError):
            inner.rmdir()
    return killed


def remove_stale_groups(parent: Path) -> None:
    """Remove the groups of agents that were killed together with their launchers."""
    for folder in _subgroups(parent):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if (
            folder.name.startswith(PREFIX)
            and pid.isdigit()
            and not Path(f"/proc/{pid}").exists()
            and not _is_foreign(folder)
        ):
            kill_and_remove_group(folder)


def _is_foreign(folder: Path) -> bool:
    """Return True if it has processes of another pid namespace, which appear as 0."""
    return any(0 in Group(inner).pids() for inner in _subgroups(folder))


def _subgroups(folder: Path) -> Iterable[Path]:
    try:
        return [inner for inner in folder.iterdir() if inner.is_dir()]
    except OSError:
        return []


def open_group(folder: Path) -> list[int]:
    """Open the `CONTROL_FILES` of a group, up to the first that is not writable."""
    fds = []
    with suppress(OSError):  # Linux before 5.14 lacks `kill`; or no permission.
        for name in CONTROL_FILES:
            fds.append(os.open(folder / f"cgroup.{name}", _WRITE))  # noqa: PERF401
    return fds


class Group:
    """One group, by its folder.

    Args:
        folder: Folder of the group.
        fds: From `open_group`, if this process may not open the files itself.
    """

    def __init__(self, folder: Path, fds: Sequence[int] = ()) -> None:
        self.folder = folder
        self.is_frozen = False
        self._fds = dict(zip(CONTROL_FILES, fds or open_group(folder), strict=False))
        self._fds["events"] = os.open(folder / "cgroup.events", _READ)

    def __del__(self) -> None:
        for fd in self.__dict__.get("_fds", {}).values():
            os.close(fd)

    def _write(self, name: str, text: bytes) -> bool:
        try:
            os.write(self._fds[name], text)
        except (KeyError, OSError):
            return False
        return True

    def move_self_in(self) -> bool:
        """Move this process in; return True if that was allowed."""
        return self.move_process_in(0)

    def move_process_in(self, pid: int) -> bool:
        """Move a process in, 0: this one; return True if that was allowed."""
        return self._write("procs", b"%d" % pid)

    def is_populated(self) -> bool:
        """Return True if a process is in the group or below."""
        try:
            return b"populated 1" in os.pread(self._fds["events"], 256, 0)
        except OSError:
            return False  # The group was removed, so it was empty.

    def pids(self) -> set[int]:
        """Return the processes in it."""
        try:
            return {int(p) for p in (self.folder / "cgroup.procs").read_text().split()}
        except OSError:
            return set()

    def set_frozen(self, *, is_frozen: bool) -> bool:
        """Freeze or thaw all processes in it; return True if that was allowed.

        Frozen processes can be killed.
        """
        if not self._write("freeze", b"1" if is_frozen else b"0"):
            return False
        self.is_frozen = is_frozen
        return True

    def kill_all(self) -> bool:
        """Kill all processes in it; return True if it is empty now."""
        if not self._write("kill", b"1"):
            for pid in self.pids():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        for _ in range(SETTLE_TRIES):
            if not self.is_populated():
                return True
            time.sleep(SETTLE_RETRY_S)
        return False


class LauncherTaskGroup(Group):
    """The group that a launcher with one slot shares with its task."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "home")
        make_group(folder / "out")
        self._launcher_group = Group(folder / "out")
        self.is_launcher_inside = False  #: otherwise no task may be started

    def move_launcher_in(self) -> bool:
        """Move the launcher in; return True if it is in.

        A frozen or unkillable task in the group prevents the move.
        """
        if (
            not self.is_launcher_inside
            and not self.is_frozen
            and not self.is_populated()
        ):
            self.is_launcher_inside = self.move_self_in()
        return self.is_launcher_inside

    def _move_launcher_out(self) -> bool:
        self.is_launcher_inside = (
            self.is_launcher_inside and not self._launcher_group.move_self_in()
        )
        return not self.is_launcher_inside

    def is_populated(self) -> bool:
        """Return True if a process other than the launcher is in it."""
        return bool(self.pids())

    def pids(self) -> set[int]:
        """Return the processes in it, without the launcher."""
        return super().pids() - {os.getpid()}

    def set_frozen(self, *, is_frozen: bool) -> bool:
        """Freeze or thaw the task; return True if that was allowed.

        The launcher then stays outside until the task ends.
        """
        if is_frozen and not self._move_launcher_out():
            return False
        return super().set_frozen(is_frozen=is_frozen)

    def kill_all(self) -> bool:
        """Kill the task while the launcher is outside; return True if it is gone."""
        if not self._move_launcher_out():
            return False
        is_empty = super().kill_all()
        self.move_launcher_in()
        return is_empty


class SingleGroupPool:
    """The group of a launcher with one slot; the launcher itself uses this class."""

    def __init__(self, folder: Path) -> None:
        self._group = LauncherTaskGroup(folder)
        if not self._group.move_launcher_in():
            raise OSError(f"cannot enter {self._group.folder}")

    def enter_group(self) -> Group | None:
        """Return the group; None while processes of an earlier task are in it."""
        return self._group if self._group.move_launcher_in() else None

    def leave_group(self) -> None:
        """Do nothing: the launcher stays in the group."""

    def release_group(self, group: Group) -> None:
        """Thaw the group of a task that has ended."""
        if group.is_frozen:
            group.set_frozen(is_frozen=False)


class GroupPool:
    """The groups of a launcher's slots; the launcher itself uses this class.

    Moving a process takes 20 microseconds on some kernels, and milliseconds on others,
    which wait for all cores. There it would cost more than starting a task, so tasks
    run without a group. The median of the first moves decides: on a busy machine, some
    moves take long on any kernel.
    """

    MOVES_MEASURED = 9
    MOVE_MAX_S = 0.0005

    def __init__(self, folder: Path, count: int) -> None:
        self._moves_s: list[float] = []  #: durations of the first moves
        self._launcher_group = Group(folder / "home")
        if not self._launcher_group.move_self_in():
            raise OSError(f"cannot enter {self._launcher_group.folder}")
        self._free: list[Group] = []
        for place in reversed(range(count)):
            make_group(folder / f"slot-{place}")
            self._free.append(Group(folder / f"slot-{place}"))

    def enter_group(self) -> Group | None:
        """Move the launcher into an empty group, where its new children start.

        Returns:
            The group; None without one, or if moving is slow or not allowed.
        """
        moves_s, count = sorted(self._moves_s), self.MOVES_MEASURED
        is_slow = len(moves_s) == count and moves_s[count // 2] > self.MOVE_MAX_S
        if is_slow or not self._free:
            return None
        group = self._free.pop()
        begin_s = time.perf_counter()
        is_in = group.move_self_in()
        if len(moves_s) < count:
            self._moves_s.append(time.perf_counter() - begin_s)
        return group if is_in else None

    def leave_group(self) -> None:
        """Move the launcher back to its own group."""
        self._launcher_group.move_self_in()

    def release_group(self, group: Group) -> None:
        """Thaw the empty group of a task that has ended, and make it free."""
        if group.is_frozen:
            group.set_frozen(is_frozen=False)
        self._free.append(group)
