"""Log configuration, and a throttle for repeated lines; the only importer of structlog.

Events are constant names with fields. On a terminal, lines are aligned and coloured. In
the systemd journal, lines have a priority and the form `key=value`. JSON is optional,
and has a priority in the journal, too. Values are escaped, so an event is one line.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import select
import stat
import sys
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from types import ModuleType
from typing import Any, Final, Protocol, cast

from msgspec.structs import replace

from octaskly.core.effects import LogLine

# structlog imports rich, if it is installed, for tracebacks that the agent never
# prints. With rich, an agent takes 81 MB instead of 77, and 6 % more CPU time until it
# is ready: `python -m benchmarks.compare start`.
_IS_RICH_THERE = "rich" in sys.modules
if not _IS_RICH_THERE:
    sys.modules["rich"] = cast("ModuleType", None)
import structlog  # noqa: E402

if not _IS_RICH_THERE:
    del sys.modules["rich"]

WINDOW_S: Final = 1.0
ALIKE_MAX: Final = 10  #: lines of one kind per second that are written at once

_Kind = tuple[str, object]  #: the event, and the peer if it is about one

_LITERAL_TYPES = (str, int, float, list, tuple, dict, type(None))
"""Types that every renderer shows on one line; others, such as paths, become text."""

_JOURNAL_PRIORITY = {"error": 3, "warning": 4, "info": 6, "debug": 7}


class Logger(Protocol):
    """The logger interface of the agent's components."""

    def debug(self, event: str, **fields: Any) -> Any:
        """Log a detail, such as a message of the protocol."""

    def info(self, event: str, **fields: Any) -> Any:
        """Log a change of state."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Log a problem that the agent has recovered from."""

    def error(self, event: str, **fields: Any) -> Any:
        """Log a problem that requires a person to act."""

    def bind(self, **fields: Any) -> Logger:
        """Return a logger that adds these fields to each event."""


class _LossyFile(io.FileIO):
    """A file on which a write neither waits nor fails: what has no room now is lost.

    A text that was written in part is completed before the next one.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w")
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._unwritten = b""

    def write(self, data: Any, /) -> int:
        """Write as much as there is room for; return the whole length."""
        self._write_rest()
        if not self._unwritten:
            self._unwritten = bytes(data)
            self._write_rest()
        return len(data)

    def _write_rest(self) -> None:
        with suppress(OSError):
            while self._unwritten and self._poll.poll(0):
                # A pipe that is ready has room for so much.
                written = super().write(self._unwritten[: select.PIPE_BUF])
                if not written:
                    return
                self._unwritten = self._unwritten[written:]


def use_lossy_stderr() -> None:
    """Replace `sys.stderr` by one on which a write neither waits nor fails.

    A node must go on if the disk of its log is full, if the reader of its log has
    ended or no longer reads, or if its terminal is stopped or gone.
    """
    file = _LossyFile(_reopen(sys.stderr.fileno()))
    sys.stderr = io.TextIOWrapper(
        cast("Any", file), sys.stderr.encoding, "backslashreplace", write_through=True
    )


def _reopen(descriptor: int) -> int:
    """Return another descriptor of a file; if possible, a write to it never waits.

    Other programs write to the same terminal or pipe, too, and must go on waiting. So
    the flag O_NONBLOCK needs an open file of our own.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        with suppress(OSError):  # It is a socket, or another user's.
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            return os.open(f"/proc/self/fd/{descriptor}", flags)
    return os.dup(descriptor)


class StartupFilter:
    """Hides lines of level `info` until the banner of a member is printed.

    It is for terminals: there, the banner says what the log of a start says.
    """

    def __init__(self) -> None:
        self._is_open = False

    def show_all(self) -> None:
        """Hide no more lines."""
        self._is_open = True

    def __call__(
        self, _logger: Any, name: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Return the event, or drop it."""
        if name == "info" and not self._is_open:
            raise structlog.DropEvent
        return event


def startup_filter(style: str, level: str) -> StartupFilter | None:
    """Return a filter if stderr is a terminal, and nobody asked for a certain log."""
    is_default = style == "auto" and level == "info"
    return StartupFilter() if is_default and sys.stderr.isatty() else None


def configure(
    style: str,
    level: str,
    environ: Mapping[str, str],
    only: StartupFilter | None = None,
) -> Logger:
    """Set up the process's log on stderr and return its root logger.

    Args:
        style: `auto`, `console`, `json` or `journal`.
        level: Lowest level shown: `debug`, `info`, `warning` or `error`.
        environ: Environment; only JOURNAL_STREAM and NO_COLOR are used.
        only: Hides some of the lines.
    """
    is_journal = _is_stderr_journal(environ)
    if style == "auto":
        style = "journal" if is_journal else "console"
    structlog.configure(
        processors=[
            *([only] if only is not None else []),
            structlog.processors.add_log_level,
            _timestamper(style),
            structlog.processors.format_exc_info,
            _escape_control_chars,
            *_renderers(style, environ, is_journal=is_journal),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log every malformed packet or request, which could flood the log.
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr)
    logger: Logger = structlog.get_logger()
    return logger


def log_line(logger: Logger, note: LogLine) -> None:
    """Log a line that a component has returned."""
    getattr(logger, note.level)(note.event, **dict(note.fields))


class LogThrottle:
    """Rate limit for log lines with the same event and peer.

    A peer can cause the same event very often, for example a new dispatcher, and must
    not fill the log. In each second, the first `ALIKE_MAX` lines of a kind are written.
    After that, only the last line of each second is written, with the number of lines
    left out.

    Args:
        write: Writes a line.
    """

    def __init__(self, write: Callable[[LogLine], None]) -> None:
        self._write = write
        self._written: Counter[_Kind] = Counter()  #: in this second
        #: The last line of a kind, and the number of lines left out before it.
        self._held: dict[_Kind, tuple[LogLine, int]] = {}
        self._timer: asyncio.TimerHandle | None = None  #: to the end of this second

    def take(self, note: LogLine) -> None:
        """Write a line, or hold it until the end of the second."""
        kind = (note.event, dict(note.fields).get("peer"))
        if self._timer is None:
            self._begin_second()
        if self._written[kind] < ALIKE_MAX:
            self._written[kind] += 1
            self._write(note)
        else:
            _, before = self._held.get(kind, (note, -1))
            self._held[kind] = (note, before + 1)

    def close(self) -> None:
        """Write the held lines; do not call `take` afterwards."""
        if self._timer is not None:
            self._timer.cancel()
        self._write_held()

    def _begin_second(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(WINDOW_S, self._end_second)

    def _end_second(self) -> None:
        self._timer = None
        # Kinds that reached the limit stay limited in the next second.
        self._written = Counter(dict.fromkeys(self._held, ALIKE_MAX))
        if self._held:
            self._begin_second()
        self._write_held()

    def _write_held(self) -> None:
        held, self._held = self._held, {}
        for note, before in held.values():
            more = (("left_out", before),) if before else ()
            self._write(replace(note, fields=note.fields + more))


def _is_stderr_journal(environ: Mapping[str, str]) -> bool:
    """Return True if stderr is connected to the systemd journal.

    Child processes inherit JOURNAL_STREAM even if their stderr is a terminal. Its
    device and inode are therefore compared with those of stderr.
    """
    try:
        here = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{here.st_dev}:{here.st_ino}"


def _timestamper(style: str) -> Any:
    """Return the processor that adds the time, which the journal adds itself.

    A person at a terminal needs the local time of day, and the columns of the rest.
    """
    if style == "journal":
        return _drop_nothing
    if style == "console" and sys.stderr.isatty():
        return structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    return structlog.processors.TimeStamper(fmt="iso", utc=True)


def _renderers(
    style: str, environ: Mapping[str, str], *, is_journal: bool
) -> list[Any]:
    if style == "json":
        renderer = structlog.processors.JSONRenderer()
        return [renderer, _prefix_journal_priority] if is_journal else [renderer]
    if style == "journal":
        return [
            structlog.processors.LogfmtRenderer(
                key_order=["event"], bool_as_flag=False
            ),
            _prefix_journal_priority,
        ]
    colors = sys.stderr.isatty() and not environ.get("NO_COLOR")
    return [structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=28)]


def _drop_nothing(_logger: Any, _name: str, event: Any) -> Any:
    return event


def _escape_control_chars(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape control characters: a hostile name must not forge a line or a colour."""
    for key, value in event.items():
        if not isinstance(value, _LITERAL_TYPES):
            value = event[key] = str(value)
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event


def _prefix_journal_priority(_logger: Any, name: str, line: str) -> str:
    return f"<{_JOURNAL_PRIORITY.get(name, 6)}>{line}"
