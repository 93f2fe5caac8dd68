"""Process trees from `/proc`: finding and killing all processes of a task.

The launcher is a *subreaper*: a process that loses its parent becomes a child of the
launcher. So every process of a task is a descendant of the launcher, even after
`setsid`, a double fork or `env -i`. A process belongs to a task if, in this order:

1. it is a descendant of the task's first process;
2. it is in the session of the task's first process;
3. its environment names the attempt.

The owner of any other process is *unknown*. This process is killed once all tasks that
ran when it was first seen have ended.

So without cgroups, a process that left its parents, its session *and* its environment
may outlive its task until the other tasks of the same launcher have ended. With one
slot for each launcher (the default: a launcher for each core), no owner is unknown. If
the launcher itself is killed, its adopted processes are found by session and
environment only. With a cgroup, none of this applies: see `cgroup`.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37
KILL_ROUNDS = 100  #: scans for processes that were started during the killing
POLL_S = 0.001
MARKER_PREFIX = b"OCTASKLY_MARK="  #: environment variable that names an attempt
STOPPED_STATES = "TtZX"  #: process states: stopped, traced, zombie, dead
ENVIRONMENT_BYTES_MAX = 1 << 20  #: the rest of an environment is not read


def become_subreaper() -> None:
    """Make orphaned descendants children of this process, not of init."""
    import ctypes  # noqa: PLC0415 - only this function needs it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become subreaper")


def adopts_orphans() -> bool:
    """Return True if orphaned descendants become children of this process."""
    import ctypes  # noqa: PLC0415 - only this function needs it

    libc = ctypes.CDLL(None, use_errno=True)
    is_subreaper = ctypes.c_int()
    libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(is_subreaper), 0, 0, 0)
    return bool(is_subreaper.value) or os.getpid() == 1


class Process:
    """One line of the process table."""

    __slots__ = ("parent", "pid", "session", "start_ticks", "state")

    def __init__(
        self, pid: int, parent: int, session: int, start_ticks: int, state: str
    ) -> None:
        self.pid = pid
        self.parent = parent
        self.session = session
        self.start_ticks = start_ticks  #: with the pid, identifies the process
        self.state = state  #: one letter, `Z` for a zombie


def parse_stat(line: bytes) -> Process:
    """Parse `/proc/<pid>/stat`; the name in it may have spaces and parentheses.

    Raises:
        ValueError: the line has another format.
    """
    head, separator, tail = line.rpartition(b")")
    if not separator:
        raise ValueError("no process name")
    fields = tail.split()
    if len(fields) < 20:  # noqa: PLR2004 - up to `starttime`, proc_pid_stat(5)
        raise ValueError("too few fields")
    return Process(
        pid=int(head.partition(b" ")[0]),
        parent=int(fields[1]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        state=fields[0].decode(),
    )


def read_process(pid: int) -> Process | None:
    """Return one process, or None if it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return parse_stat(os.read(fd, 4096))
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def process_table() -> dict[int, Process]:
    """Return all processes by pid."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are enough
        if name.isdigit() and (process := read_process(int(name))) is not None:
            found[process.pid] = process
    return found


def children_of(pid: int) -> set[int]:
    """Return the children of a process, from a scan of the whole process table."""
    return {
        process.pid for process in process_table().values() if process.parent == pid
    }


def uid_of(pid: int) -> int | None:
    """Return the real user id of a process, or None if it is gone.

    The owner of its folder in `/proc` would be root for a non-dumpable process.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as status:  # noqa: PTH123 - of many
            line = next(line for line in status if line.startswith(b"Uid:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1])


def descendants(processes: dict[int, Process], roots: Iterable[int]) -> list[int]:
    """Return the roots that exist and all their descendants, parents first.

    A parent that gets a signal before its children can still clean up.
    """
    offspring: dict[int, list[int]] = {}
    for process in processes.values():
        offspring.setdefault(process.parent, []).append(process.pid)
    found: dict[int, None] = {}
    ahead = deque(pid for pid in roots if pid in processes)
    while ahead:
        pid = ahead.popleft()
        if pid not in found:
            found[pid] = None
            ahead.extend(offspring.get(pid, ()))
    return list(found)


def session_processes(processes: dict[int, Process], session: int) -> set[int]:
    """Return the processes of a session."""
    return {pid for pid, process in processes.items() if process.session == session}


def environment_of(pid: int) -> list[bytes]:
    """Return the initial environment of a process, as `NAME=value` each."""
    return read_environment(pid).split(b"\0")


def read_environment(pid: int) -> bytes:
    """Return the initial environment of a process; empty if unreadable."""
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts = []
    try:
        size = 0
        while size < ENVIRONMENT_BYTES_MAX and (part := os.read(fd, 65536)):
            parts.append(part)
            size += len(part)
    except OSError:
        return b""
    finally:
        os.close(fd)
    return b"".join(parts)


def signal_process(process: Process, number: int) -> None:
    """Send a signal to this process, never to a later process with its pid."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        again = read_process(process.pid)
        if again is not None and again.start_ticks == process.start_ticks:
            signal.pidfd_send_signal(fd, number)
            if number == signal.SIGTERM:
                # A stopped process handles SIGTERM only once it continues.
                signal.pidfd_send_signal(fd, signal.SIGCONT)
    except OSError:
        return
    finally:
        os.close(fd)


def continue_processes(pids: Iterable[int]) -> None:
    """Continue stopped processes."""
    for pid in pids:
        if (process := read_process(pid)) is not None:
            signal_process(process, signal.SIGCONT)


def kill_marked(markers: set[bytes], pids: set[int]) -> set[int]:
    """Kill the processes of tasks whose launcher is gone.

    Args:
        markers: Environment entries that name the attempts.
        pids: Known processes of the tasks; their sessions are killed too.

    Returns:
        `pids` and the pids of all killed processes.
    """
    killed: set[int] = set(pids)
    for _ in range(KILL_ROUNDS):
        processes = {p.pid: p for p in process_table().values() if p.state != "Z"}
        roots = {p.pid for p in processes.values() if pids & {p.pid, p.session}}
        for pid in processes.keys() - roots:
            if not markers.isdisjoint(environment_of(pid)):
                roots.add(pid)
        if not roots:
            break
        for pid in descendants(processes, roots):
            signal_process(processes[pid], signal.SIGKILL)
            killed.add(pid)
    return killed


def own_children() -> set[int]:
    """Return the children of this process's main thread, which adopts orphans."""
    pid = os.getpid()
    try:
        with open(f"/proc/self/task/{pid}/children", "rb") as children:  # noqa: PTH123
            return set(map(int, children.read().split()))
    except OSError:  # A kernel may be built without this file.
        return children_of(pid)


def reap_children_except(pids: set[int]) -> None:
    """Reap the children of this process that have ended, except some."""
    for pid in own_children() - pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def reap_adopted(pids: set[int]) -> None:
    """Reap killed processes that became children of this process."""
    for _ in range(KILL_ROUNDS):
        left = [process for pid in pids if (process := read_process(pid)) is not None]
        if not left:
            return
        for process in left:
            if process.parent == os.getpid():
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        time.sleep(POLL_S)  # Their parents are dying too, so they are adopted soon.
