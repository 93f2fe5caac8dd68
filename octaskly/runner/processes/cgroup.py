"""Groups of processes that the kernel keeps (cgroup v2): exact, and killed at once.

A pool makes a folder for each launcher below its own group, where it may:
`octaskly-<pid of the agent>-<place>`, with a `home` for the launcher. With several
slots it has one `slot-<n>` for each, used by one task after the other: the launcher
moves in, starts the task, and moves out. With one slot tasks start in `home`, which
costs nothing, and the launcher moves `out` while it ends or freezes one. A task with
limits gets a group of its own, `limits-<key>`, where controllers are passed on; the
agent makes it, and the launcher gets its open files.

Groups are the agent's, also where tasks run as another user: then neither tasks nor
launchers may move a process, or make a group. A launcher opens the files of its groups
before it becomes that user; the kernel asks who opened a file, not who writes to it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

PREFIX = "octaskly-"
AGENT = "agent"  #: as `DelegateSubgroup` in systemd/octaskly.service
CONTROLLERS = ("memory", "pids")  #: that hold a task to its limits
CPU_CONTROLLER = "cpu"  #: the controller that divides processors between groups
TASKS_WEIGHT = 10  #: of each launcher with its tasks; the agent's group has 100
REMOVE_TRIES = 50  #: each with all its looks
SETTLE_TRIES = 200  #: killed processes leave their group within microseconds
SETTLE_RETRY_S = 0.0002
CONTROL_FILES = ("procs", "freeze", "kill")  #: files of a group, the oldest first
_READ = os.O_RDONLY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CLOEXEC


def parse_mounts(mountinfo: str) -> str | None:
    """Return where the whole v2 hierarchy is mounted, from `/proc/self/mountinfo`."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        parts = fields.split()
        if rest.startswith("cgroup2 ") and len(parts) > 4 and parts[3] == "/":  # noqa: PLR2004
            return parts[4].replace("\\040", " ")
    return None


def own_group_folder() -> Path | None:
    """Return the folder of this process's own group, None when there is no v2."""
    try:
        mount = parse_mounts(Path("/proc/self/mountinfo").read_text())
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
        if mount is None:
            return None
        folder = Path(mount, own.lstrip("/"))
        # Seen through a namespace or a partial mount it may be another's.
        pids = (folder / "cgroup.procs").read_text().split()
    except (OSError, StopIteration):
        return None
    return folder if str(os.getpid()) in pids else None


def prepare_parent_group(own: Path) -> Path:
    """Return the group below which groups are made, if possible with controllers.

    The kernel passes controllers on from a group without processes only. So systemd
    starts the agent in a group below its service (`DelegateSubgroup`). Versions that do
    not know that put it into the group of the service itself: then it moves.
    """
    parent = own.parent if own.name == AGENT else own
    try:
        if not _available_controllers(parent):
            return own
        if parent == own:
            if Group(own).pids() != {os.getpid()}:
                return own  # Others are not ours to move.
            (own / AGENT).mkdir(exist_ok=True)
            (own / AGENT / "cgroup.procs").write_text(str(os.getpid()))
        _enable_controllers(parent)
    except OSError:
        return own
    with suppress(OSError):  # A kernel may refuse it where real-time processes are.
        _enable_controllers(parent, (CPU_CONTROLLER,))
    return parent


def _available_controllers(
    folder: Path, wanted: Iterable[str] = CONTROLLERS
) -> list[str]:
    """Return which of the wanted controllers groups below may have."""
    names = (folder / "cgroup.controllers").read_text().split()
    return [name for name in wanted if name in names]


def _enable_controllers(folder: Path, wanted: Iterable[str] = CONTROLLERS) -> None:
    for name in _available_controllers(folder, wanted):
        (folder / "cgroup.subtree_control").write_text(f"+{name}")


def create_launcher_group(parent: Path, place: int) -> Path | None:
    """Make the folder of a launcher, or return None where that is not allowed."""
    folder = parent / f"{PREFIX}{os.getpid()}-{place}"
    try:
        make_group(folder)
        make_group(folder / "home")
    except OSError:
        return None
    with suppress(OSError):
        _enable_controllers(folder)
    with suppress(
        OSError
    ):  # It is there where `prepare_parent_group` passed the controller on.
        (folder / "cpu.weight").write_text(str(TASKS_WEIGHT))
    return folder


def make_group(folder: Path) -> None:
    """Make a group that others may look at, whatever the umask is."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)


def move_process(folder: Path, pid: int) -> bool:
    """Move a process into a group; return whether it was allowed."""
    try:
        (folder / "cgroup.procs").write_text(str(pid))
    except OSError:
        return False
    return True


def kill_and_remove_group(folder: Path) -> set[int]:
    """Kill all that is in a launcher's folder, and remove it if it gets empty.

    Returns:
        Whom it killed.
    """
    killed: set[int] = set()
    with suppress(OSError):
        for inner in _subgroups(folder):
            killed |= Group(inner).pids()
        group = Group(folder)
        for _ in range(REMOVE_TRIES):  # On a busy machine they take their time.
            if group.kill_all():
                break
    for inner in (*_subgroups(folder), folder):
        with suppress(OSError):
            inner.rmdir()
    return killed


def remove_stale_groups(parent: Path) -> None:
    """Remove what agents left here that were killed together with their launchers."""
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
    """Whether it holds processes of another pid namespace, which are shown as 0."""
    return any(0 in Group(inner).pids() for inner in _subgroups(folder))


def _subgroups(folder: Path) -> Iterable[Path]:
    try:
        return [inner for inner in folder.iterdir() if inner.is_dir()]
    except OSError:
        return []


def open_group(folder: Path) -> list[int]:
    """Open what is written to a group, as far as this process may, by `CONTROL_FILES`."""
    fds = []
    with suppress(OSError):  # Before Linux 5.14, or not ours to change.
        for name in CONTROL_FILES:
            fds.append(os.open(folder / f"cgroup.{name}", _WRITE))  # noqa: PERF401
    return fds


class Group:
    """One group, by its folder.

    Args:
        folder: Of the group.
        fds: What `open_group` opened, where this process may not.
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
        """Move this process in; return whether it was allowed."""
        return self.move_process_in(0)

    def move_process_in(self, pid: int) -> bool:
        """Move a process in, 0 for this one; return whether it was allowed."""
        return self._write("procs", b"%d" % pid)

    def is_populated(self) -> bool:
        """Whether any process is left in it or below."""
        try:
            return b"populated 1" in os.pread(self._fds["events"], 256, 0)
        except OSError:
            return False  # It was removed, so nothing was left.

    def pids(self) -> set[int]:
        """Return the processes in it."""
        try:
            return {int(p) for p in (self.folder / "cgroup.procs").read_text().split()}
        except OSError:
            return set()

    def set_frozen(self, *, is_frozen: bool) -> bool:
        """Stop all that is in it, or let it go on; return whether that is possible.

        What is frozen can be killed.
        """
        if not self._write("freeze", b"1" if is_frozen else b"0"):
            return False
        self.is_frozen = is_frozen
        return True

    def kill_all(self) -> bool:
        """Kill what is in it, at once; return whether it is empty now."""
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
    """The group in which a launcher with one slot lives together with its task."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "home")
        make_group(folder / "out")
        self._launcher_group = Group(folder / "out")
        self.is_launcher_inside = False  #: the launcher is; else no task may be started

    def move_launcher_in(self) -> bool:
        """Move the launcher in, unless a task is frozen there or does not die."""
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
        """Whether any process but the launcher is in it."""
        return bool(self.pids())

    def pids(self) -> set[int]:
        """Return the processes in it, but for the launcher."""
        return super().pids() - {os.getpid()}

    def set_frozen(self, *, is_frozen: bool) -> bool:
        """Stop all that is in it; the launcher stays outside until its task ends."""
        if is_frozen and not self._move_launcher_out():
            return False
        return super().set_frozen(is_frozen=is_frozen)

    def kill_all(self) -> bool:
        """Kill what is in it, from outside."""
        if not self._move_launcher_out():
            return False
        is_empty = super().kill_all()
        self.move_launcher_in()
        return is_empty


class SingleGroupPool:
    """The groups of a launcher that has one slot; used by the launcher itself."""

    def __init__(self, folder: Path) -> None:
        self._group = LauncherTaskGroup(folder)
        if not self._group.move_launcher_in():
            raise OSError(f"cannot enter {self._group.folder}")

    def acquire_group(self) -> Group | None:
        """Return the group, None if an earlier task does not leave it."""
        return self._group if self._group.move_launcher_in() else None

    def move_launcher_in(self, group: Group) -> bool:
        """Return whether the launcher is in it, as always."""
        return group is self._group

    def move_launcher_out(self) -> None:
        """Do nothing: the launcher stays in it."""

    def release_group(self, group: Group) -> None:
        """Take back the group of a task that has ended."""
        if group.is_frozen:
            group.set_frozen(is_frozen=False)


class GroupPool:
    """The groups of a launcher's slots; used by the launcher itself.

    Moving is 20 microseconds on some kernels and milliseconds on others, where it
    waits for all cores. There it is given up, since it would cost more than starting.
    """

    MOVES_MIN = 8  #: before the mean is judged
    MOVE_MAX_S = 0.0005

    def __init__(self, folder: Path, count: int) -> None:
        self._moves = 0
        self._moving_s = 0.0
        self._launcher_group = Group(folder / "home")
        if not self._launcher_group.move_self_in():
            raise OSError(f"cannot enter {self._launcher_group.folder}")
        self._free: list[Group] = []
        for place in reversed(range(count)):
            make_group(folder / f"slot-{place}")
            self._free.append(Group(folder / f"slot-{place}"))

    def acquire_group(self) -> Group | None:
        """Return an empty group for a task, None when there is none to be had."""
        if self._moves > self.MOVES_MIN and (
            self._moving_s / self._moves > self.MOVE_MAX_S
        ):
            return None
        return self._free.pop() if self._free else None

    def move_launcher_in(self, group: Group) -> bool:
        """Move the launcher in; whom it starts from now on begins there."""
        begin_s = time.perf_counter()
        is_in = group.move_self_in()
        self._moves += 1
        self._moving_s += time.perf_counter() - begin_s
        return is_in

    def move_launcher_out(self) -> None:
        """Move the launcher home."""
        self._launcher_group.move_self_in()

    def release_group(self, group: Group) -> None:
        """Take back the empty group of a task that has ended."""
        if group.is_frozen:
            group.set_frozen(is_frozen=False)
        self._free.append(group)
