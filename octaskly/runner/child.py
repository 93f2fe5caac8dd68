"""One attempt as a process: how it is started, and what it wrote.

Used by the launcher alone, which is single-threaded: the working directory of the
launcher is that of the task it is starting.
"""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress

from octaskly.runner.cgroup import Group
from octaskly.runner.command import shell_words, split_plain
from octaskly.runner.transcript import Writer

SHELL = "/bin/sh"
READ_BYTES = 65536
MEMORY_BYTES = 256 << 10  #: of a stream; then a file is asked for
DRAIN_READS_MAX = 64  #: a grandchild that writes for ever must not hold the end up
NOT_STARTED = 126  #: exit code of what could not be executed

#: Errors of this moment and machine, not of the task: another attempt may go well.
SCARCE = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

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
        self,
        key: int,
        task: str,
        attempt: str,
        command: bytes,
        timeout_s: float,
        *,
        since_s: float,
    ) -> None:
        self.key = key
        self.task = task
        self.attempt = attempt
        self.command = command  #: UTF-8
        self.timeout_s = timeout_s
        self.since_s = since_s


class Sink:
    """The read end of a pipe; keeps the first bytes and counts them all."""

    __slots__ = ("fd", "is_open", "kept", "limit", "size_bytes", "stream", "transcript")

    def __init__(self, fd: int, limit: int, stream: int) -> None:
        self.fd = fd
        self.limit = limit
        self.stream = stream
        self.is_open = True
        self.kept = bytearray()
        self.size_bytes = 0
        self.transcript: Writer | None = None

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
        room = self.limit - len(self.kept)
        if room > 0:
            self.kept += data[:room]
        if self.transcript is not None:
            self._write(data)
        return True

    def record(self, transcript: Writer) -> None:
        """Write what was kept, and from now on all that comes, into a file."""
        self.transcript = transcript
        self._write(self.kept)
        transcript.skip(self.stream, self.size_bytes)

    def _write(self, data: bytes | bytearray) -> None:
        assert self.transcript is not None
        try:
            self.transcript.write(self.stream, data)
        except OSError:  # A full disk: the rest is counted.
            self.transcript = None

    def drain(self) -> bytes:
        """Take what is there, without waiting for others to close the pipe."""
        reads = 0
        while self.is_open and reads < DRAIN_READS_MAX and self.read():
            reads += 1
        self.close()
        return bytes(self.kept)

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
        "has_asked",
        "key",
        "left_s",
        "mark",
        "out",
        "pid",
        "started_ms",
        "started_s",
        "transcript",
        "verdict",
    )

    def __init__(
        self,
        order: Order,
        pid: int,
        sinks: tuple[Sink, Sink],
        begin: tuple[float, int],
    ) -> None:
        self.key = order.key
        self.pid = pid
        self.out, self.err = sinks
        self.started_s, self.started_ms = begin  #: monotonic, wall clock
        self.deadline_s = self.started_s + order.timeout_s  #: of the next measure
        self.verdict = ""  #: `timeout` or `cancelled` once it is being ended
        self.mark = (
            b"OCTASKLY_TASK_ID=" + order.task.encode(),
            b"OCTASKLY_ATTEMPT=" + order.attempt.encode(),
        )
        self.group: Group | None = None
        self.left_s: float | None = None  #: until the deadline, while frozen
        self.transcript: Writer | None = None
        self.has_asked = False  #: for a file to write its output into

    def record(self, fd: int, bytes_max: int) -> None:
        """Write its output into a file, whose descriptor is ours from now on."""
        self.transcript = Writer(fd, bytes_max)
        for sink in (self.out, self.err):
            sink.record(self.transcript)
        with suppress(OSError):
            self.transcript.begin()

    def halt_time(self, now_s: float) -> None:
        """Count no time while it is frozen; what is being ended gets no more grace."""
        if self.verdict:
            self.deadline_s = now_s
        elif self.left_s is None:
            self.left_s = self.deadline_s - now_s
            self.deadline_s = float("inf")

    def resume_time(self, now_s: float) -> None:
        """Count on."""
        if self.left_s is not None and not self.verdict:
            self.deadline_s = now_s + self.left_s
        self.left_s = None

    def end(self, status: int, *, now_s: float, now_ms: int) -> list[object]:
        """Close the pipes and return the message that ends this attempt."""
        out, err = self.out.drain(), self.err.drain()
        if self.transcript is not None:
            self.transcript.close()
        return [
            *("end", self.key, os.waitstatus_to_exitcode(status), self.verdict),
            *(self.started_ms, now_ms, int((now_s - self.started_s) * 1000)),
            *(out, err, self.out.size_bytes, self.err.size_bytes, ""),
        ]


def find_program(word: str, path: str) -> str | None:
    """Return the file that a shell would execute, or None when it must decide.

    It decides whatever is not simple: relative folders in PATH, a first match that
    cannot be executed, and of course a program that is not there.
    """
    if "/" in word:
        return word
    if "%" in path:  # dash gives `%` in PATH a meaning.
        return None
    for folder in path.split(":"):
        if not folder.startswith("/"):
            return None
        file = f"{folder}/{word}"
        if os.path.isfile(file):  # noqa: PTH113 - a Path costs more than the look-up
            return file if os.access(file, os.X_OK) else None
    return None


def _execute(command: str, env: dict[bytes, bytes], out_fd: int, err_fd: int) -> int:
    """Start a command in a session of its own and return its pid; raise OSError."""
    actions = ((os.POSIX_SPAWN_DUP2, out_fd, 1), (os.POSIX_SPAWN_DUP2, err_fd, 2))
    words = split_plain(command)
    if words is not None:
        program = find_program(words[0], os.fsdecode(env.get(b"PATH", b"")))
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
            except OSError as error:
                if error.errno in SCARCE:
                    raise
                # The shell says it as people expect it.
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


def refused_end(order: Order, now_ms: int, detail: str) -> list[object]:
    """Return the message that ends an attempt that could not be executed."""
    head = ["end", order.key, NOT_STARTED, "", now_ms, now_ms, 0]
    return [*head, b"", b"", 0, 0, detail]


class Refused(Exception):
    """An attempt could not be started."""

    def __init__(self, detail: str, *, is_final: bool) -> None:
        # It travels and is kept as UTF-8, which the name of a file need not be.
        super().__init__(detail.encode("utf-8", "backslashreplace").decode())
        self.is_final = is_final  #: it would fail again, so it has failed


class Pad:
    """What all attempts of a launcher have in common when they start.

    Args:
        workdir: Where they run; it may come and go.
        node: Name of this node, for their environment.
        output_bytes_max: Bytes to keep of each stream.
        has_ctype: Whether the agent gave `LC_CTYPE`. Python adds it by itself where
            no locale is set, and a task must not see that.
    """

    def __init__(
        self, *, workdir: str, node: str, output_bytes_max: int, has_ctype: bool
    ) -> None:
        self._workdir = workdir
        self._node = node
        self._limit = output_bytes_max
        self._env = dict(os.environb)
        if not has_ctype:
            self._env.pop(b"LC_CTYPE", None)
        self._env[b"OCTASKLY_NODE"] = node.encode()
        # What a shell would export; a program started directly must see the same.
        self._env[b"PWD"] = os.fsencode(os.path.realpath(workdir))

    def spawn(self, order: Order, *, begin_s: float, begin_ms: int) -> Child:
        """Start an attempt.

        Args:
            order: What to run.
            begin_s: Now, on the monotonic clock.
            begin_ms: Now, on the wall clock.

        Raises:
            Refused: it cannot be executed, or not at this moment.
        """
        try:
            os.chdir(self._workdir)
        except OSError as error:
            why = error.strerror or "cannot be entered"
            if isinstance(error, FileNotFoundError):
                why = "does not exist"
            detail = f"working directory {self._workdir} {why} on {self._node}"
            raise Refused(detail, is_final=True) from error
        env = self._env.copy()
        env[b"OCTASKLY_TASK_ID"] = order.task.encode()
        env[b"OCTASKLY_ATTEMPT"] = order.attempt.encode()
        try:
            pid, out_fd, err_fd = _spawn_captured(order.command, env)
        except (OSError, ValueError) as error:
            is_final = getattr(error, "errno", None) not in SCARCE
            raise Refused(f"cannot execute: {error}", is_final=is_final) from error
        sinks = Sink(out_fd, self._limit, 0), Sink(err_fd, self._limit, 1)
        return Child(order, pid, sinks, (begin_s, begin_ms))


def _spawn_captured(command: bytes, env: dict[bytes, bytes]) -> tuple[int, int, int]:
    """Return the pid and the read ends of both pipes."""
    out_r, out_w = os.pipe2(os.O_CLOEXEC)
    try:
        err_r, err_w = os.pipe2(os.O_CLOEXEC)
    except OSError:
        os.close(out_r)
        os.close(out_w)
        raise
    try:
        pid = _execute(command.decode("utf-8", "surrogatepass"), env, out_w, err_w)
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
    return pid, out_r, err_r
