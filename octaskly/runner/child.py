"""One attempt as a process: how it is started, and what it wrote.

Used by the launcher alone, which is single-threaded: the working directory of the
launcher is that of the task it is starting.
"""

from __future__ import annotations

import os
import signal
import stat
import time

from octaskly.runner.command import shell_words, split_plain

SHELL = "/bin/sh"
READ_BYTES = 65536
DRAIN_READS_MAX = 64  #: a grandchild that writes for ever must not hold the end up
NOT_STARTED = 126  #: exit code of what could not be executed

#: What an agent under nohup, in the background of a script or in Python ignores would
#: be ignored by every task, and a `yes | head` would never end.
RESET_SIGNALS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGALRM,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGXFSZ,
)


class Order:
    """What the pool asks for."""

    __slots__ = ("attempt", "command", "key", "since_s", "task", "timeout_s")

    def __init__(
        self, key: int, task: str, attempt: str, command: bytes, timeout_s: float
    ) -> None:
        self.key = key
        self.task = task
        self.attempt = attempt
        self.command = command  #: UTF-8
        self.timeout_s = timeout_s
        self.since_s = time.monotonic()


class Sink:
    """The read end of a pipe; keeps the first bytes and counts them all."""

    __slots__ = ("fd", "is_open", "kept", "kept_bytes", "limit", "size_bytes")

    def __init__(self, fd: int, limit: int) -> None:
        self.fd = fd
        self.limit = limit
        self.is_open = True
        self.kept: list[bytes] = []
        self.kept_bytes = 0
        self.size_bytes = 0

    def read(self) -> bool:
        """Take one piece; return whether there may be more at this moment."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        self.size_bytes += len(data)
        room = self.limit - self.kept_bytes
        if room > 0:
            data = data[:room]
            self.kept.append(data)
            self.kept_bytes += len(data)
        return True

    def drain(self) -> bytes:
        """Take what is there, without waiting for others to close the pipe."""
        reads = 0
        while self.is_open and reads < DRAIN_READS_MAX and self.read():
            reads += 1
        self.close()
        return b"".join(self.kept)

    def close(self) -> None:
        """Close the pipe; a writer that is left gets SIGPIPE."""
        if self.is_open:
            self.is_open = False
            os.close(self.fd)


class Child:
    """A running attempt."""

    __slots__ = (
        "deadline_s",
        "err",
        "group",
        "is_killed",
        "is_watched",
        "key",
        "mark",
        "out",
        "pid",
        "started_ms",
        "started_s",
        "verdict",
    )

    def __init__(self, order: Order, pid: int, out: Sink, err: Sink) -> None:
        self.key = order.key
        self.pid = pid
        self.out = out
        self.err = err
        self.started_s = time.monotonic()
        self.started_ms = int(time.time() * 1000)
        self.deadline_s = self.started_s + order.timeout_s  #: of the next measure
        self.verdict = ""  #: `timeout` or `cancelled` once it is being ended
        self.is_killed = False
        self.is_watched = False  #: the pipes are in the launcher's epoll
        self.mark = (
            b"OCTASKLY_TASK_ID=" + order.task.encode(),
            b"OCTASKLY_ATTEMPT=" + order.attempt.encode(),
        )
        self.group: str | None = None


def find_program(word: str, path: str | None) -> str | None:
    """Return the file that a shell would execute, or None when it must decide.

    It decides whatever is not simple: relative folders in PATH, a first match that
    cannot be executed, and of course a program that is not there.
    """
    if "/" in word:
        return word
    if not path or "%" in path:  # dash gives `%` in PATH a meaning.
        return None
    for folder in path.split(":"):
        if not folder.startswith("/"):
            return None
        file = f"{folder}/{word}"
        try:
            is_file = stat.S_ISREG(os.stat(file).st_mode)
        except OSError:
            continue
        if is_file:
            return file if os.access(file, os.X_OK) else None
    return None


def _execute(command: str, env: dict[bytes, bytes], out_fd: int, err_fd: int) -> int:
    """Start a command in a session of its own and return its pid; raise OSError."""
    actions = ((os.POSIX_SPAWN_DUP2, out_fd, 1), (os.POSIX_SPAWN_DUP2, err_fd, 2))
    words = split_plain(command)
    if words is not None:
        path = env.get(b"PATH")
        program = find_program(words[0], path and os.fsdecode(path))
        if program is not None:
            try:
                return os.posix_spawn(
                    program,
                    words,
                    env,
                    file_actions=actions,
                    setsid=True,
                    setsigdef=RESET_SIGNALS,
                    setsigmask=(),
                )
            except OSError:
                pass  # The shell says it as people expect it.
    encoded = [word.encode("utf-8", "surrogatepass") for word in shell_words(command)]
    return os.posix_spawn(
        SHELL,
        encoded,
        env,
        file_actions=actions,
        setsid=True,
        setsigdef=RESET_SIGNALS,
        setsigmask=(),
    )


def spawn(order: Order, env: dict[bytes, bytes], limit: int) -> Child:
    """Start an attempt in the current working directory.

    Args:
        order: What to run.
        env: Its environment.
        limit: Bytes to keep of each stream.

    Raises:
        OSError: it cannot be executed.
        ValueError: the command holds a NUL.
    """
    out_r, out_w = os.pipe2(os.O_CLOEXEC)
    err_r, err_w = os.pipe2(os.O_CLOEXEC)
    try:
        pid = _execute(
            order.command.decode("utf-8", "surrogatepass"), env, out_w, err_w
        )
    except (OSError, ValueError):
        os.close(out_r)
        os.close(err_r)
        raise
    finally:
        os.close(out_w)
        os.close(err_w)
    # Only our ends: O_NONBLOCK on the task's stdout would surprise it.
    os.set_blocking(out_r, False)
    os.set_blocking(err_r, False)
    return Child(order, pid, Sink(out_r, limit), Sink(err_r, limit))
