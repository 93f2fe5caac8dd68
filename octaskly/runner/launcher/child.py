"""One attempt as a process: what was asked for, and what it wrote."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from octaskly.runner.launcher.fast_spawn import fits
from octaskly.runner.launcher.slots import Slot
from octaskly.runner.output.output_file import Writer
from octaskly.runner.processes.limits import Fence, Gauge
from octaskly.runner.processes.proc_tree import MARK

_FIRST = r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*"
_WORD = r"[A-Za-z0-9_@%+=:,./-]+"
_PLAIN = re.compile(rf"[ \t]*{_FIRST}(?:[ \t]+{_WORD})*[ \t]*")

#: Names that dash, bash, busybox ash, ksh or mksh run or read themselves. A name too
#: many costs half a millisecond; a name too few changes what a command means.
SHELL_NAMES = frozenset(
    (  # noqa: SIM905 - a list of ninety lines would hide what is missing
        ". : alias autoload bg bind break builtin caller case cd chdir command compgen "
        "complete compopt continue coproc declare dirs disown do done echo elif else "
        "enable end esac eval exec exit export false fc fg fi float for foreach "
        "function functions getopts global hash help history if in integer jobs kill "
        "let local logout mapfile nameref namespace popd print printf pushd pwd read "
        "readarray readonly repeat return select set shift shopt source stop suspend "
        "switch test then time times trap true type typeset ulimit umask unalias "
        "unset until wait whence while"
    ).split()
)

LONGEST_DIRECT_CHARS = 100_000  #: below the 128 KiB that one argument may have


def split_plain(command: str) -> list[str] | None:
    """Return the words of a command that needs no shell, or None if it needs one."""
    if len(command) > LONGEST_DIRECT_CHARS or _PLAIN.fullmatch(command) is None:
        return None
    words = command.split()
    return None if words[0] in SHELL_NAMES else words


def shell_words(command: bytes) -> list[bytes]:
    """Return the words that run a command through the shell."""
    if command.startswith((b"-", b"+")):
        return [b"sh", b"-c", b"--", command]  # Else the shell takes it for an option.
    return [b"sh", b"-c", command]


READ_BYTES = 65536
MEMORY_BYTES = 256 << 10  #: of a stream; then a file is asked for
DRAIN_READS_MAX = 64  #: a grandchild that writes for ever must not hold the end up
NOTHING: Final[Mapping[str, Any]] = {}  #: is asked for by most tasks


class Order:
    """What the pool asks for, made ready for its start.

    Orders come many at a time, and code that has just run is three times as fast as
    after a pause. So what can be done here is not left for when a slot is free.
    """

    __slots__ = (
        "asked",
        "attempt",
        "command",
        "fence",
        "key",
        "mark",
        "settings",
        "since_s",
        "task",
        "timeout_s",
        "words",
    )

    def __init__(
        self,
        key: int,
        task: str,
        attempt: str,
        mark: str,
        command: bytes,
        timeout_s: float,
        asked: Mapping[str, Any] = NOTHING,
        *,
        since_s: float,
    ) -> None:
        self.key = key
        self.task = task.encode()
        self.attempt = attempt.encode()
        self.mark = mark.encode()  #: unlike task and attempt, no other run has it
        self.command = command  #: UTF-8
        text = command.decode("utf-8", "surrogatepass")
        self.words = split_plain(text)  #: None where it needs a shell
        self.timeout_s = timeout_s
        self.asked = asked  #: as `orders.run_order` made it
        self.fence: Fence | None = None  #: its limits, where it has any
        self.since_s = since_s
        self.settings: tuple[bytes, bytes, bytes] | None = None
        """Task, attempt and mark for its environment, where it asks for nothing."""
        if not asked:
            own = (
                b"OCTASKLY_TASK_ID=" + self.task,
                b"OCTASKLY_ATTEMPT=" + self.attempt,
                MARK + self.mark,
            )
            self.settings = own if fits(command, self.words, own) else None


class Sink:
    """The read end of a pipe; keeps the first bytes and counts them all."""

    __slots__ = (
        *("epoll", "fd", "is_open", "kept", "limit", "size_bytes", "stream"),
        "transcript",
    )

    def __init__(self, fd: int, limit: int, stream: int) -> None:
        self.fd = fd
        self.limit = limit
        self.stream = stream
        self.is_open = True
        self.epoll: select.epoll | None = None  #: that watches it
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

    def drain(self) -> None:
        """Take what is there, without waiting for others to close the pipe."""
        if not self.is_open:
            return
        if self.epoll is None:
            self._let_read()
        reads = 0
        while self.read() and reads < DRAIN_READS_MAX:
            reads += 1
        if self.is_open:
            self.close()

    def watch(self, epoll: select.epoll) -> None:
        """Have an epoll tell when there is something to read."""
        self._let_read()
        epoll.register(self.fd, select.EPOLLIN)
        self.epoll = epoll

    def _let_read(self) -> None:
        # Only our end: O_NONBLOCK on the task's stdout would surprise it.
        os.set_blocking(self.fd, False)

    def unwatch(self) -> None:
        """Have it tell no more.

        Closing alone does not do that: a process that is being started has a copy of
        the descriptor, until it has executed its program.
        """
        if self.epoll is not None:
            self.epoll.unregister(self.fd)
            self.epoll = None

    def close(self) -> None:
        """Close the pipe; a writer that is left gets SIGPIPE."""
        if self.is_open:
            if self.epoll is not None:
                self.unwatch()
            self.is_open = False
            os.close(self.fd)


class Child:
    """A running attempt."""

    __slots__ = (
        "deadline_s",
        "detail",
        "ended_ms",
        "ended_s",
        "err",
        "grace_s",
        "has_asked",
        "key",
        "left_s",
        "mark",
        "out",
        "pid",
        "slot",
        "started_ms",
        "started_s",
        "status",
        "transcript",
        "usage",
        "verdict",
    )

    status: int
    usage: bytes
    ended_s: float
    ended_ms: int

    def __init__(
        self,
        order: Order,
        slot: Slot,
        pid: int,
        sinks: tuple[Sink, Sink],
        begin: tuple[float, int],
    ) -> None:
        self.key = order.key
        self.slot = slot
        self.pid = pid
        self.out, self.err = sinks
        self.started_s, self.started_ms = begin  #: monotonic, wall clock
        self.deadline_s = self.started_s + order.timeout_s  #: of the next measure
        self.grace_s: float | None = order.asked.get("grace_s")
        self.verdict = ""  #: `timeout` or `cancelled` once it is being ended
        self.mark = MARK + order.mark
        self.left_s: float | None = None  #: until the deadline, while frozen
        self.transcript: Writer | None = None
        self.has_asked = False  #: for a file to write its output into
        self.detail = ""  #: of its end

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

    def exit(self, status: int, usage: bytes, *, now_s: float, now_ms: int) -> None:
        """Note that its first process has ended, as `wait4` says."""
        self.status, self.usage = status, usage
        self.ended_s, self.ended_ms = now_s, now_ms

    def drain(self) -> None:
        """Take what is left of its output, and close the pipes."""
        self.out.drain()
        self.err.drain()
        if self.transcript is not None:
            self.transcript.close()

    def end(self, gauge: Gauge) -> list[object]:
        """Return the message that ends this attempt, which has been drained."""
        code, used = os.waitstatus_to_exitcode(self.status), gauge.read(self.usage)
        out, err = self.out, self.err
        if (fence := self.slot.fence) is not None:
            used = fence.used(used)
            self.detail = self.detail or fence.remark(code, used)
            if not self.verdict and (broken := fence.broken(code, used)):
                self.verdict, self.detail = "limit", broken
        times = (self.started_ms, self.ended_ms)
        ran_ms = int((self.ended_s - self.started_s) * 1000)
        written = (bytes(out.kept), bytes(err.kept), out.size_bytes, err.size_bytes)
        head = ("end", self.key, code, self.verdict)
        return [*head, *times, ran_ms, *used, *written, self.detail]
