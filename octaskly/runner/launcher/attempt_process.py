"""Start orders, and running attempts with their output pipes and deadline."""

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

#: Builtins and keywords of dash, bash, busybox ash, ksh and mksh. A superfluous name
#: costs half a millisecond; a missing name changes the meaning of a command.
SHELL_KEYWORDS = frozenset(
    (  # noqa: SIM905 - a list of ninety lines would hide a missing name
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

DIRECT_COMMAND_CHARS_MAX = 100_000  #: below the kernel's 128 KiB for one argument


def split_simple_command(command: str) -> list[str] | None:
    """Return the words of a command that needs no shell, or None if it needs one."""
    if len(command) > DIRECT_COMMAND_CHARS_MAX or _PLAIN.fullmatch(command) is None:
        return None
    words = command.split()
    return None if words[0] in SHELL_KEYWORDS else words


def shell_argv(command: bytes) -> list[bytes]:
    """Return the arguments that run a command through the shell."""
    if command.startswith((b"-", b"+")):
        # Without `--` the shell would parse the command as an option.
        return [b"sh", b"-c", b"--", command]
    return [b"sh", b"-c", command]


READ_BYTES = 65536
NEVER = float("inf")  #: a deadline
BUFFER_BYTES_MAX = 256 << 10  #: of a stream in memory; more output needs a file
DRAIN_READS_MAX = 64  #: bounds the delay by a grandchild that keeps writing
NO_OPTIONS: Final[Mapping[str, Any]] = {}  #: the options of most tasks


class StartOrder:
    """The pool's order to run an attempt, prepared for a fast start.

    The command is parsed here, not when a slot is free. Orders arrive in batches, and
    the parser is three times as fast if it has just run as after a pause.
    """

    __slots__ = (
        "argv",
        "attempt",
        "command",
        "is_repeated",
        "key",
        "limit_enforcer",
        "marker",
        "options",
        "queued_s",
        "stdin_fd",
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
        timeout_s: float | None,
        options: Mapping[str, Any] = NO_OPTIONS,
        *,
        queued_s: float,
    ) -> None:
        self.key = key
        self.task = task.encode()
        self.attempt = attempt.encode()
        self.is_repeated = attempt != "1"  #: an attempt at this task came before
        self.marker = marker.encode()  #: globally unique to this attempt
        self.command = command  #: UTF-8
        text = command.decode("utf-8", "surrogatepass")
        self.argv = split_simple_command(text)  #: None if the command needs a shell
        self.timeout_s = NEVER if timeout_s is None else timeout_s
        self.options = options  #: see `launch_messages.build_launch_options`
        self.limit_enforcer: LimitEnforcer | None = None  #: None without limits
        self.stdin_fd: int | None = None  #: a file of any size; None without one
        self.queued_s = queued_s

    def close_stdin(self) -> None:
        """Close the file that the command would read, if there is one."""
        if self.stdin_fd is not None:
            os.close(self.stdin_fd)
            self.stdin_fd = None


class PipeReader:
    """The read end of an output pipe; keeps the first bytes and counts all bytes."""

    __slots__ = (
        *("epoll", "fd", "is_open", "head", "head_bytes_max", "size_bytes", "stream"),
        "output_file",
    )

    def __init__(self, fd: int, limit: int, stream: int) -> None:
        self.fd = fd
        self.head_bytes_max = limit
        self.stream = stream
        self.is_open = True
        self.epoll: select.epoll | None = None  #: that `fd` is registered with
        self.head = bytearray()
        self.size_bytes = 0
        self.output_file: OutputFileWriter | None = None

    def read_chunk(self) -> bool:
        """Read one chunk; return True if more may be readable now."""
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

    def attach_file(self, output_file: OutputFileWriter) -> None:
        """Write the bytes kept so far, and all later output, to a file."""
        self.output_file = output_file
        self._write(self.head)
        output_file.skip_to(self.stream, self.size_bytes)

    def _write(self, data: bytes | bytearray) -> None:
        assert self.output_file is not None
        try:
            self.output_file.write(self.stream, data)
        except OSError:  # The disk is full: later output is only counted.
            self.output_file = None

    def read_remaining(self) -> None:
        """Read the buffered output without waiting for other writers, then close."""
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
        """Register the pipe with an epoll."""
        self._set_nonblocking()
        epoll.register(self.fd, select.EPOLLIN)
        self.epoll = epoll

    def _set_nonblocking(self) -> None:
        # Only our end: tasks do not expect O_NONBLOCK on their stdout.
        os.set_blocking(self.fd, False)

    def unregister(self) -> None:
        """Unregister the pipe from its epoll.

        Closing is not enough: a process that is being started has a copy of the
        descriptor until it has executed its program.
        """
        if self.epoll is not None:
            self.epoll.unregister(self.fd)
            self.epoll = None

    def close(self) -> None:
        """Close the pipe; remaining writers get SIGPIPE."""
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
        "is_repeated",
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
        readers: tuple[PipeReader, PipeReader],
        started_at: tuple[float, int],
    ) -> None:
        self.key = order.key
        self.is_repeated = order.is_repeated
        self.slot = slot
        self.pid = pid
        self.stdout, self.stderr = readers
        self.started_s, self.started_ms = started_at  #: monotonic, wall clock
        self.deadline_s = self.started_s + order.timeout_s  #: of the next signal
        self.grace_s: float | None = order.options.get("grace_s")
        self.end_reason = ""  #: why it is being ended: `timeout`, `cancelled`, ...
        self.marker = MARKER_PREFIX + order.marker
        self.remaining_s: float | None = None  #: to the deadline; set while frozen
        self.output_file: OutputFileWriter | None = None
        self.has_requested_file = False  #: asked the agent for an output file
        self.detail = ""  #: explains the end to people

    def attach_file(self, fd: int, bytes_max: int) -> None:
        """Write the output to a file; takes ownership of `fd`."""
        self.output_file = OutputFileWriter(fd, bytes_max)
        for reader in (self.stdout, self.stderr):
            reader.attach_file(self.output_file)
        with suppress(OSError):
            self.output_file.publish()

    def pause_deadline(self, now_s: float) -> None:
        """Pause the deadline of a frozen attempt; one being ended is killed at once."""
        if self.end_reason:
            self.deadline_s = now_s
        elif self.remaining_s is None:
            self.remaining_s = self.deadline_s - now_s
            self.deadline_s = NEVER

    def resume_deadline(self, now_s: float) -> None:
        """Resume the deadline after a freeze."""
        if self.remaining_s is not None and not self.end_reason:
            self.deadline_s = now_s + self.remaining_s
        self.remaining_s = None

    def mark_exited(
        self, status: int, usage: bytes, *, now_s: float, now_ms: int
    ) -> None:
        """Record the exit status and usage of the first process, from `wait4`."""
        self.status, self.usage = status, usage
        self.ended_s, self.ended_ms = now_s, now_ms

    def drain_output(self) -> None:
        """Read the remaining output, then close the pipes and the file."""
        self.stdout.read_remaining()
        self.stderr.read_remaining()
        if self.output_file is not None:
            self.output_file.close()

    def build_end_message(self, usage_reader: UsageReader) -> list[object]:
        """Return the `end` message of this attempt; its output must be drained."""
        code, used = (
            os.waitstatus_to_exitcode(self.status),
            usage_reader.parse_usage(self.usage),
        )
        out, err = self.stdout, self.stderr
        if (enforcer := self.slot.limit_enforcer) is not None:
            used = enforcer.measured_usage(used)
            self.detail = self.detail or enforcer.possible_cause(code, used)
            if not self.end_reason and (
                exceeded := enforcer.exceeded_limit(code, used)
            ):
                self.end_reason, self.detail = "limit", exceeded
        times = (self.started_ms, self.ended_ms)
        ran_ms = int((self.ended_s - self.started_s) * 1000)
        written = (bytes(out.head), bytes(err.head), out.size_bytes, err.size_bytes)
        head = ("end", self.key, code, self.end_reason)
        return [*head, *times, ran_ms, *used, *written, self.detail]
