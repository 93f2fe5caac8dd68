"""Attacks of a task on its agent: one named attempt, whose exit status is the result.

Usage: intruder.py NAME PID TARGET. It exits with 0 on success; otherwise it prints the
name of the error that stopped it. It imports none of our modules, so tasks can run it
alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

PTRACE_SEIZE = 0x4206
SYS_PIDFD_GETFD = 438

libc = ctypes.CDLL(None, use_errno=True)


def called(result: int) -> None:
    """Raise the error of a C library call, if it is one."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def connect(path: str) -> None:
    """Open a UNIX socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)


def take_descriptors(pid: int) -> None:
    """Take open files of another process, such as its connection to the agent."""
    handle = os.pidfd_open(pid)
    for number in range(64):
        called(libc.syscall(SYS_PIDFD_GETFD, handle, number, 0))


def enter_group(folder: str) -> None:
    """Move into another cgroup."""
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))


def kill_group(folder: str) -> None:
    """Kill all processes in a cgroup."""
    Path(folder, "cgroup.kill").write_text("1")


def tries(pid: int, target: str) -> dict[str, Callable[[], object]]:
    """Return all attacks, on a process and on a path or number."""
    return {
        "read": lambda: Path(target).read_bytes(),
        "list": lambda: os.listdir(target),  # noqa: PTH208
        "make": lambda: Path(target).write_text("planted"),
        "remove": lambda: Path(target).unlink(),
        "rename": lambda: Path(target).rename(f"{target}-moved"),
        "link": lambda: os.link(target, "hard-link"),
        "connect": lambda: connect(target),
        "signal": lambda: os.kill(pid, int(target)),
        "stop": lambda: os.kill(pid, signal.SIGSTOP),
        "trace": lambda: called(libc.ptrace(PTRACE_SEIZE, pid, 0, 0)),
        "descriptors": lambda: take_descriptors(pid),
        "limit": lambda: called(libc.prlimit(pid, 7, (ctypes.c_ulong * 2)(9, 9), 0)),
        "setuid": lambda: os.setuid(int(target)),
        "setgid": lambda: os.setgid(int(target)),
        "setgroups": lambda: os.setgroups([int(target)]),
        "enter group": lambda: enter_group(target),
        "kill group": lambda: kill_group(target),
        "make group": lambda: Path(target, "own").mkdir(),
    }


def main() -> None:
    """Try one attack."""
    name, pid, target = sys.argv[1:]
    try:
        tries(int(pid), target)[name]()
    except OSError as error:
        print(errno.errorcode[error.errno or 0])
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
