"""The limits of one attempt: what holds them, and whether they were its end.

A cgroup of its own holds memory and processes where the kernel lets the agent have
one with those controllers. Everything else is a limit of each process, set by the
shell that starts the command: `setrlimit` of another process would come too late, and
in the launcher it would hit the launcher.
"""

from __future__ import annotations

import os
import signal
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from octaskly.runner.processes import cgroup
from octaskly.runner.processes.cgroup import Group

_USED: Final = struct.Struct("@5l")  #: two times in seconds and microseconds, and KiB
USAGE_BYTES: Final = _USED.size  #: of a `struct rusage` that are read
SLACK_KB = 1024  #: the kernel counts memory in pieces, so two readings may differ
UNKNOWN_KB = 1 << 62

ResourceUsage = tuple[int, int | None]
"""Milliseconds of processor time; KiB that one process had resident, if known."""


class UsageReader:
    """Reads what the kernel says of a process at its end.

    Every process begins as a copy of the launcher, whose peak the kernel takes for
    its own. So a peak that is not above the launcher's is not known.
    """

    def __init__(self) -> None:
        self._floor_kb = 0

    def parse_usage(self, usage: bytes) -> ResourceUsage:
        """Return what was used, as `wait4` said."""
        user_s, user_us, system_s, system_us, peak_kb = _USED.unpack(usage)
        cpu_ms = round((user_s + system_s) * 1000 + (user_us + system_us) / 1000)
        if peak_kb > self._floor_kb:  # Rarely: the floor is found with few tasks.
            self._floor_kb = own_peak_kb() + SLACK_KB
        return cpu_ms, peak_kb if peak_kb > self._floor_kb else None


def own_peak_kb() -> int:
    """Return the most that this process had resident, since it was executed."""
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123 - cheaper than a Path
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1])
    return UNKNOWN_KB


CPU_GRACE_S = 2  #: from SIGXCPU, which a process may act on, to SIGKILL
BLOCK_BYTES = 512  #: of `ulimit -f`
LOAD_FAILED_CODES = (
    126,
    127,
)  #: what a shell or loader says that lacks memory for a program
MIB = 1 << 20
CPU_SPENT_RATIO = 0.5  #: of a limit; much less and the signal came from somebody else
READY_FD = 9  #: on which the shell is told that it is in the group
SHELL_SIGNAL_OFFSET = 128  #: what a shell adds to the signal that ended its command

#: Of limits that a group can hold: its file, and what one unit is there.
_GROUP_FILES = {"memory_mb": ("memory.max", MIB), "processes": ("pids.max", 1)}


class LimitGroup(NamedTuple):
    """A group for one attempt, as the agent made it."""

    folder: Path
    enforced: list[str]  #: limits that it holds
    fds: list[int]  #: of `cgroup.open_group`, for the launcher


def create_limit_group(folder: Path, limits: Mapping[str, int]) -> LimitGroup | None:
    """Make a group for an attempt, unless there is no limit that it can hold.

    The agent does this, not a launcher: so a task can lift its limits only where it is
    the agent's user itself.

    Args:
        folder: Of the new group.
        limits: As `orders.wishes` made them.
    """
    held: list[str] = []
    asked = _GROUP_FILES.keys() & limits.keys()
    with suppress(OSError):
        if asked:
            cgroup.make_group(folder)
        for name in asked:
            file = folder / _GROUP_FILES[name][0]
            if file.exists():
                file.write_text(str(limits[name] * _GROUP_FILES[name][1]))
                held.append(name)
        if "memory_mb" in held:
            (folder / "memory.oom.group").write_text("1")
            with suppress(OSError):  # A kernel may be built without swap.
                (folder / "memory.swap.max").write_text("0")
        if held:
            return LimitGroup(folder, held, cgroup.open_group(folder))
    with suppress(OSError):
        folder.rmdir()
    return None


def build_limit_enforcer(
    options: Mapping[str, Any], fds: deque[int]
) -> LimitEnforcer | None:
    """Return what holds an attempt, in its launcher; None where it has no limits.

    Args:
        options: As `orders.run_order` made it.
        fds: Descriptors that have come, of which it takes those of its group.
    """
    limits = options.get("limits")
    if not limits:
        return None
    folder, held, count = options.get("group", (b"", (), 0))
    own = [fds.popleft() for _ in range(count)]
    if not folder:
        return LimitEnforcer(limits, (), None)
    return LimitEnforcer(limits, held, Group(Path(os.fsdecode(folder)), own))


class LimitEnforcer:
    """What an attempt may take.

    Args:
        limits: As `orders.wishes` made them.
        held: Those that its group holds.
        group: As the agent made it; None where that would hold nothing.
    """

    def __init__(
        self, limits: Mapping[str, int], enforced: Sequence[str], group: Group | None
    ) -> None:
        self._limits = limits
        self._enforced = frozenset(enforced)
        self.group = group

    def shell_preamble(self) -> str:
        """Return what a shell does before it has `sh` take its arguments."""
        limits, lines = self._limits, ["-S -c 0"]
        if cpu_s := limits.get("cpu_s"):
            lines += [f"-S -t {cpu_s}", f"-H -t {cpu_s + CPU_GRACE_S}"]
        if file_mb := limits.get("file_mb"):
            lines.append(f"-f {file_mb * MIB // BLOCK_BYTES}")
        if "memory_mb" in limits.keys() - self._enforced:
            lines.append(f"-v {limits['memory_mb'] * 1024}")
        if "processes" in limits.keys() - self._enforced:
            most = limits["processes"] + count_threads(os.getuid())
            # dash calls it -p, which is another limit for bash.
            lines.append(f"-u {most} 2>/dev/null || ulimit -p {most}")
        # One that cannot be set is above what the agent itself is held to.
        steps = [f"ulimit {line} 2>/dev/null" for line in lines]
        if self.group is not None:
            steps.append(f"read -r _ <&{READY_FD} || exit 126\nexec {READY_FD}<&-")
        return "\n".join([*steps, 'exec /bin/sh "$@"'])

    def measured_usage(self, used: ResourceUsage) -> ResourceUsage:
        """Return what was used: by all of its group, where one counts it."""
        cpu_ms, peak_kb = used
        if self.group is not None:
            spent_us = _counter(self.group.folder / "cpu.stat", "usage_usec")
            cpu_ms = max(cpu_ms, spent_us // 1000)
            with suppress(OSError, ValueError):
                peak_kb = int((self.group.folder / "memory.peak").read_text()) // 1024
        return cpu_ms, peak_kb

    def exceeded_limit(self, status: int, used: ResourceUsage) -> str:
        """Return which limit ended it, as far as that is known; else nothing.

        Args:
            status: Of its first process; negative: minus the signal.
            used: What the kernel counted for it.
        """
        limits = self._limits
        number = _signal_of(status)
        if self._count_refused("memory_mb", "memory.events", "oom_kill"):
            return f"limit memory_mb: more than {limits['memory_mb']} MiB were needed"
        if number == signal.SIGXCPU and _is_cpu_limit_spent(
            used, limits.get("cpu_s", 0)
        ):
            return f"limit cpu_seconds: a process used more than {limits['cpu_s']} s"
        if number == signal.SIGXFSZ and "file_mb" in limits:
            return f"limit file_mb: a file got larger than {limits['file_mb']} MiB"
        return ""

    def possible_cause(self, status: int, used: ResourceUsage) -> str:
        """Return what may explain an end, but is not known to be its reason."""
        if count := self._count_refused("processes", "pids.events", "max"):
            most = self._limits["processes"]
            return f"limit processes: {count} were refused beyond {most}"
        cpu_s = self._limits.get("cpu_s", 0)
        if _signal_of(status) == signal.SIGKILL and _is_cpu_limit_spent(used, cpu_s):
            return f"limit cpu_seconds: SIGKILL comes {CPU_GRACE_S} s after {cpu_s} s"
        if "memory_mb" in self._limits.keys() - self._enforced and (
            status < 0 or status in LOAD_FAILED_CODES or status > SHELL_SIGNAL_OFFSET
        ):
            most = self._limits["memory_mb"]
            return f"limit memory_mb: {most} MiB for each process may be too little"
        if "processes" in self._limits.keys() - self._enforced and os.getuid() == 0:
            return "limit processes: not held, as the agent is root without a cgroup"
        return ""

    def _count_refused(self, limit: str, file: str, event: str) -> int:
        if self.group is None or limit not in self._enforced:
            return 0
        return _counter(self.group.folder / file, event)


def _signal_of(status: int) -> int:
    return -status if status < 0 else status - SHELL_SIGNAL_OFFSET


def _is_cpu_limit_spent(used: ResourceUsage, cpu_s: int) -> bool:
    """Whether a limit of processor time may have been reached.

    The kernel counts whole ticks for it, but exact times for what it tells at the end,
    which on a busy machine is visibly less.
    """
    return bool(cpu_s) and used[0] >= cpu_s * 1000 * CPU_SPENT_RATIO


def count_threads(uid: int) -> int:
    """Return how many threads a user has, which RLIMIT_NPROC counts too."""
    count = 0
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are enough
        if name.isdigit():
            with suppress(OSError):
                folder = f"/proc/{name}/task"
                if os.stat(folder).st_uid == uid:  # noqa: PTH116 - cheaper than a Path
                    count += len(os.listdir(folder))  # noqa: PTH208
    return count


def _counter(file: Path, name: str) -> int:
    """Return a line of a file of a group, as `oom_kill 1`; 0 where there is none."""
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0
