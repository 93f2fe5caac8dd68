"""One attempt as a process: what was asked for, and what it wrote."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from octaskly.runner.launcher.slots import Slot
from octaskly.runner.output.output_file import OutputFileWriter
from octaskly.runner.processes.limits import LimitEnforcer, UsageReader
from octaskly.runner.processes.proc_tree import MARKER_PREFIX

_FIRST = r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*"
_WORD = r"[A-Za-z0-9_@%+=:,./-]+"
_PLAIN = re.compile(rf"[ \t]*{_FIRST}(?:[ \t]+{_WORD})*[ \t]*")

#: Names that dash, bash, busybox ash, ksh or mksh run or read themselves. A name too
#: many costs half a millisecond; a name too few changes what a command means.
SHELL_KEYWORDS = frozenset(
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

DIRECT_COMMAND_CHARS_MAX = 100_000  #: below the 128 KiB that one argument may have


def split_simple_command(command: str) -> list[str] | None:
    """Return the words of a command that needs no shell, or None if it needs one."""
    if len(command) > DIRECT_COMMAND_CHARS_MAX or _PLAIN.fullmatch(command) is None:
        return None
    words = command.split()
    return None if words[0] in SHELL_KEYWORDS else words


def shell_argv(command: bytes) -> list[bytes]:
    """Return the words that run a command through the shell."""
    if command.startswith((b"-", b"+")):
        return [b"sh", b"-c", b"--", command]  # Else the shell takes it for an option.
    return [b"sh", b"-c", command]


READ_BYTES = 65536
BUFFER_BYTES_MAX = 256 << 10  #: of a stream; then a file is asked for
DRAIN_READS_MAX = 64  #: a grandchild that writes for ever must not hold the end up
NO_OPTIONS: Final[Mapping[str, Any]] = {}  #: is asked for by most tasks


class StartOrder:
    """What the pool asks for, made ready for its start.

    Orders come many at a time, and code that has just run is three times as fast as
    after a pause. So what can be done here is not left for when a slot is free.
    """

    __slots__ = (
        "argv",
        "attempt",
        "command",
        "key",
        "limit_enforcer",
        "marker",
        "options",
        "queued_s",
        "task",
        "timeout_s",
    )

    def __init__(
        self,
        key: int,
        task: str,
        attempt: str,
        marker: str,
        command: bytes,
        timeout_s: float,
        options: Mapping[str, Any] = NO_OPTIONS,
        *,
        queued_s: float,
    ) -> None:
        self.key = key
        self.task = task.encode()
        self.attempt = attempt.encode()
        self.marker = marker.encode()  #: unlike task and attempt, no other run has it
        self.command = command  #: UTF-8
        text = command.decode("utf-8", "surrogatepass")
        self.argv = split_simple_command(text)  #: None where it needs a shell
        self.timeout_s = timeout_s
        self.options = options  #: as `orders.run_order` made it
        self.limit_enforcer: LimitEnforcer | None = (
            None  #: its limits, where it has any
        )
        self.queued_s = queued_s


class PipeReader:
    """The read end of a pipe; keeps the first bytes and counts them all."""

    __slots__ = (
        *("epoll", "fd", "is_open", "head", "head_bytes_max", "size_bytes", "stream"),
        "output_file",
    )

    def __init__(self, fd: int, limit: int, stream: int) -> None:
        self.fd = fd
        self.head_bytes_max = limit
        self.stream = stream
        self.is_open = True
        self.epoll: select.epoll | None = None  #: that watches it
        self.head = bytearray()
        self.size_bytes = 0
        self.output_file: OutputFileWriter | None = None

    def read_chunk(self) -> bool:
        """Take one piece; return whether there may be more at this moment."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        self.size_bytes += len(data)
        room = self.head_bytes_max - len(self.head)
        if room > 0:
            self.head += data[:room]
        if self.output_file is not None:
            self._write(data)
        return True

    def attach_file(self, transcript: OutputFileWriter) -> None:
        """Write what was kept, and from now on all that comes, into a file."""
        self.output_file = transcript
        self._write(self.head)
        transcript.skip_to(self.stream, self.size_bytes)

    def _write(self, data: bytes | bytearray) -> None:
        assert self.output_file is not None
        try:
            self.output_file.write(self.stream, data)
        except OSError:  # A full disk: the rest is counted.
            self.output_file = None

    def read_remaining(self) -> None:
        """Take what is there, without waiting for others to close the pipe."""
        if not self.is_open:
            return
        if self.epoll is None:
            self._set_nonblocking()
        reads = 0
        while self.read_chunk() and reads < DRAIN_READS_MAX:
            reads += 1
        if self.is_open:
            self.close()

    def register(self, epoll: select.epoll) -> None:
        """Have an epoll tell when there is something to read."""
        self._set_nonblocking()
        epoll.register(self.fd, select.EPOLLIN)
        self.epoll = epoll

    def _set_nonblocking(self) -> None:
        # Only our end: O_NONBLOCK on the task's stdout would surprise it.
        os.set_blocking(self.fd, False)

    def unregister(self) -> None:
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
                self.unregister()
            self.is_open = False
            os.close(self.fd)


class AttemptProcess:
    """A running attempt."""

    __slots__ = (
        "deadline_s",
        "detail",
        "end_reason",
        "ended_ms",
        "ended_s",
        "grace_s",
        "has_requested_file",
        "key",
        "marker",
        "output_file",
        "pid",
        "remaining_s",
        "slot",
        "started_ms",
        "started_s",
        "status",
        "stderr",
        "stdout",
        "usage",
    )

    status: int
    usage: bytes
    ended_s: float
    ended_ms: int

    def __init__(
        self,
        order: StartOrder,
        slot: Slot,
        pid: int,
        sinks: tuple[PipeReader, PipeReader],
        begin: tuple[float, int],
    ) -> None:
        self.key = order.key
        self.slot = slot
        self.pid = pid
        self.stdout, self.stderr = sinks
        self.started_s, self.started_ms = begin  #: monotonic, wall clock
        self.deadline_s = self.started_s + order.timeout_s  #: of the next measure
        self.grace_s: float | None = order.options.get("grace_s")
        self.end_reason = ""  #: `timeout` or `cancelled` once it is being ended
        self.marker = MARKER_PREFIX + order.marker
        self.remaining_s: float | None = None  #: until the deadline, while frozen
        self.output_file: OutputFileWriter | None = None
        self.has_requested_file = False  #: for a file to write its output into
        self.detail = ""  #: of its end

    def attach_file(self, fd: int, bytes_max: int) -> None:
        """Write its output into a file, whose descriptor is ours from now on."""
        self.output_file = OutputFileWriter(fd, bytes_max)
        for sink in (self.stdout, self.stderr):
            sink.attach_file(self.output_file)
        with suppress(OSError):
            self.output_file.publish()

    def pause_deadline(self, now_s: float) -> None:
        """Count no time while it is frozen; what is being ended gets no more grace."""
        if self.end_reason:
            self.deadline_s = now_s
        elif self.remaining_s is None:
            self.remaining_s = self.deadline_s - now_s
            self.deadline_s = float("inf")

    def resume_deadline(self, now_s: float) -> None:
        """Count on."""
        if self.remaining_s is not None and not self.end_reason:
            self.deadline_s = now_s + self.remaining_s
        self.remaining_s = None

    def mark_exited(
        self, status: int, usage: bytes, *, now_s: float, now_ms: int
    ) -> None:
        """Note that its first process has ended, as `wait4` says."""
        self.status, self.usage = status, usage
        self.ended_s, self.ended_ms = now_s, now_ms

    def drain_output(self) -> None:
        """Take what is left of its output, and close the pipes."""
        self.stdout.read_remaining()
        self.stderr.read_remaining()
        if self.output_file is not None:
            self.output_file.close()

    def build_end_message(self, gauge: UsageReader) -> list[object]:
        """Return the message that ends this attempt, which has been drained."""
        code, used = (
            os.waitstatus_to_exitcode(self.status),
            gauge.parse_usage(self.usage),
        )
        out, err = self.stdout, self.stderr
        if (fence := self.slot.limit_enforcer) is not None:
            used = fence.measured_usage(used)
            self.detail = self.detail or fence.possible_cause(code, used)
            if not self.end_reason and (broken := fence.exceeded_limit(code, used)):
                self.end_reason, self.detail = "head_bytes_max", broken
        times = (self.started_ms, self.ended_ms)
        ran_ms = int((self.ended_s - self.started_s) * 1000)
        written = (bytes(out.head), bytes(err.head), out.size_bytes, err.size_bytes)
        head = ("end", self.key, code, self.end_reason)
        return [*head, *times, ran_ms, *used, *written, self.detail]
