"""Resource limits and usage of one attempt: enforcement, and which limit ended it.

A cgroup limits memory and the number of processes, if the agent may create one with
these controllers. All other limits apply to each process. The shell that starts the
command sets them: `setrlimit` on another process would come too late, and in the
launcher it would limit the launcher.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from octaskly.runner.processes import cgroup
from octaskly.runner.processes.cgroup import Group

_USED: Final = struct.Struct("@5l")  #: two times, each in s and µs; KiB
USAGE_BYTES: Final = _USED.size  #: bytes of a `struct rusage` that are used
SLACK_KB = 1024  #: the kernel batches its counts, so two readings may differ
UNKNOWN_KB = 1 << 62

ResourceUsage = tuple[int, int | None]
"""Milliseconds of processor time; peak resident KiB of one process, if known."""


class UsageReader:
    """Parses the kernel's resource usage of an ended process.

    Each process starts as a copy of the launcher, and the kernel counts the launcher's
    peak as its own. So a peak that is not above the launcher's is unknown.
    """

    def __init__(self) -> None:
        self._floor_kb = 0

    def parse_usage(self, usage: bytes) -> ResourceUsage:
        """Return the usage from the start of a `struct rusage`, as `wait4` fills it."""
        user_s, user_us, system_s, system_us, peak_kb = _USED.unpack(usage)
        cpu_ms = round((user_s + system_s) * 1000 + (user_us + system_us) / 1000)
        if peak_kb > self._floor_kb:  # This is rare, so reading /proc is too.
            self._floor_kb = own_peak_kb() + SLACK_KB
        return cpu_ms, peak_kb if peak_kb > self._floor_kb else None


def own_peak_kb() -> int:
    """Return the peak resident KiB of this process."""
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123 - cheaper than a Path
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1])
    return UNKNOWN_KB


CPU_GRACE_S = 2  #: from SIGXCPU, which a process may handle, to SIGKILL
BLOCK_BYTES = 512  #: unit of `ulimit -f`
#: Exit codes of a shell or loader without enough memory to load a program.
LOAD_FAILED_CODES = (126, 127)
MIB = 1 << 20
#: Below this share of the limit, the signal is not from the kernel.
CPU_SPENT_RATIO = 0.5
READY_FD = 9  #: the launcher writes to it once the shell is in the group
SHELL_SIGNAL_OFFSET = 128  #: a shell exits with this plus the signal of its command

#: Limits that a group can enforce: the file, and the factor for its unit.
_GROUP_FILES = {"memory_mb": ("memory.max", MIB), "processes": ("pids.max", 1)}


class LimitGroup(NamedTuple):
    """A group that the agent created for one attempt."""

    folder: Path
    enforced: list[str]  #: limits that the group enforces
    fds: list[int]  #: from `cgroup.open_group`, for the launcher


def create_limit_group(folder: Path, limits: Mapping[str, int]) -> LimitGroup | None:
    """Create a group for an attempt; return None if it could not enforce any limit.

    The agent creates it, not a launcher. So a task can raise its limits only if it runs
    as the agent's own user.

    Args:
        folder: Folder of the new group.
        limits: By the field names of `TaskLimits`.
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
    options: Mapping[str, Any], fds: Sequence[int]
) -> LimitEnforcer | None:
    """Return the enforcer of an attempt's limits; None without limits.

    Args:
        options: See `launch_messages.build_launch_options`.
        fds: Received descriptors of the attempt's group, which takes ownership.

    Raises:
        OSError: the group cannot be opened.
    """
    limits = options.get("limits")
    if not limits:
        return None
    folder, held = options.get("group", (b"", ()))
    if not folder:
        return LimitEnforcer(limits, (), None)
    return LimitEnforcer(limits, held, Group(Path(os.fsdecode(folder)), fds))


class LimitEnforcer:
    """Enforces the limits of an attempt, in its launcher.

    Args:
        limits: By the field names of `TaskLimits`.
        enforced: The limits that the group enforces.
        group: The group that the agent created; None if it would enforce nothing.
    """

    def __init__(
        self, limits: Mapping[str, int], enforced: Sequence[str], group: Group | None
    ) -> None:
        self._limits = limits
        self._enforced = frozenset(enforced)
        self.group = group

    def shell_preamble(self) -> str:
        """Return a shell script that sets the limits and then executes `sh "$@"`."""
        limits, lines = self._limits, ["-S -c 0"]
        if cpu_s := limits.get("cpu_s"):
            lines += [f"-S -t {cpu_s}", f"-H -t {cpu_s + CPU_GRACE_S}"]
        if file_mb := limits.get("file_mb"):
            lines.append(f"-f {file_mb * MIB // BLOCK_BYTES}")
        if "memory_mb" in limits.keys() - self._enforced:
            lines.append(f"-v {limits['memory_mb'] * 1024}")
        if "processes" in limits.keys() - self._enforced:
            most = limits["processes"] + count_threads(os.getuid())
            # In dash the option is -p, which is another limit in bash.
            lines.append(f"-u {most} 2>/dev/null || ulimit -p {most}")
        # Setting a limit fails only if the agent's own limit is lower.
        steps = [f"ulimit {line} 2>/dev/null" for line in lines]
        if self.group is not None:
            steps.append(f"read -r _ <&{READY_FD} || exit 126\nexec {READY_FD}<&-")
        return "\n".join([*steps, 'exec /bin/sh "$@"'])

    def measured_usage(self, used: ResourceUsage) -> ResourceUsage:
        """Return the usage of the whole group if it is counted, otherwise `used`."""
        cpu_ms, peak_kb = used
        if self.group is not None:
            spent_us = _counter(self.group.folder / "cpu.stat", "usage_usec")
            cpu_ms = max(cpu_ms, spent_us // 1000)
            with suppress(OSError, ValueError):
                peak_kb = int((self.group.folder / "memory.peak").read_text()) // 1024
        return cpu_ms, peak_kb

    def exceeded_limit(self, status: int, used: ResourceUsage) -> str:
        """Return the limit that ended the attempt, as text; empty if none is known.

        Args:
            status: Exit code of the first process; negative: minus the signal.
            used: Resource usage of the attempt.
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
        """Return a limit that may have ended the attempt, as text; empty if none."""
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
    """Return True if the limit of processor time may have been reached.

    The kernel enforces the limit in whole ticks, but reports the exact time at the end.
    On a busy machine the exact time is noticeably less.
    """
    return bool(cpu_s) and used[0] >= cpu_s * 1000 * CPU_SPENT_RATIO


def count_threads(uid: int) -> int:
    """Return the number of threads of a user, which RLIMIT_NPROC counts too."""
    count = 0
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are enough
        if name.isdigit():
            with suppress(OSError):
                folder = f"/proc/{name}/task"
                if os.stat(folder).st_uid == uid:  # noqa: PTH116 - cheaper than a Path
                    count += len(os.listdir(folder))  # noqa: PTH208
    return count


def _counter(file: Path, name: str) -> int:
    """Return the number in a line of a group's file, as in `oom_kill 1`; else 0."""
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0
