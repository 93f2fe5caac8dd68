"""Configures the agent's log: the only module that knows structlog.

Events are constant names with fields. On a terminal they are aligned and coloured, in
the journal they carry a priority and read as `key=value`; JSON can be asked for, and
carries it there, too. Values are escaped, so that one event is always one line.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from types import ModuleType
from typing import Any, Protocol, cast

from octaskly.core.effects import Note

# For tracebacks that it never draws here, structlog imports rich where that is
# installed, and pygments with it: 4 MB, and a twelfth of what an agent imports.
_IS_RICH_THERE = "rich" in sys.modules
if not _IS_RICH_THERE:
    sys.modules["rich"] = cast("ModuleType", None)
import structlog  # noqa: E402

if not _IS_RICH_THERE:
    del sys.modules["rich"]

_SHOWN_AS_THEY_ARE = (str, int, float, list, tuple, dict, type(None))
"""Kinds of values that every form of the log shows on one line; paths are none."""

_JOURNAL_PRIORITY = {"error": 3, "warning": 4, "info": 6, "debug": 7}


class Logger(Protocol):
    """What the agent's parts need of a log."""

    def debug(self, event: str, **fields: Any) -> Any:
        """Messages."""

    def info(self, event: str, **fields: Any) -> Any:
        """State changed."""

    def warning(self, event: str, **fields: Any) -> Any:
        """We recovered."""

    def error(self, event: str, **fields: Any) -> Any:
        """A human must act."""

    def bind(self, **fields: Any) -> Logger:
        """Return a logger that adds these fields to each event."""


def configure(style: str, level: str, environ: Mapping[str, str]) -> Logger:
    """Set up the process's log on stderr and return its root logger.

    Args:
        style: `auto`, `console`, `json` or `journal`.
        level: Lowest level shown: `debug`, `info`, `warning` or `error`.
        environ: Environment that tells a journal (JOURNAL_STREAM) and NO_COLOR.
    """
    is_journal = _leads_to_journal(environ)
    if style == "auto":
        style = "journal" if is_journal else "console"
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True)
            if style != "journal"
            else _keep,
            structlog.processors.format_exc_info,
            _one_line,
            *_renderers(style, environ, is_journal=is_journal),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log per hostile packet or request; a flood of those is no news.
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr)
    logger: Logger = structlog.get_logger()
    return logger


def write_note(logger: Logger, note: Note) -> None:
    """Log what a part of the agent has noted."""
    getattr(logger, note.level)(note.event, **dict(note.fields))


def _leads_to_journal(environ: Mapping[str, str]) -> bool:
    """Return whether the journal reads stderr.

    Whatever a service or a desktop starts inherits the variable, terminals too: it
    names the stream that is meant by device and inode.
    """
    try:
        here = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{here.st_dev}:{here.st_ino}"


def _renderers(
    style: str, environ: Mapping[str, str], *, is_journal: bool
) -> list[Any]:
    if style == "json":
        renderer = structlog.processors.JSONRenderer()
        return [renderer, _with_priority] if is_journal else [renderer]
    if style == "journal":
        return [
            structlog.processors.LogfmtRenderer(
                key_order=["event"], bool_as_flag=False
            ),
            _with_priority,
        ]
    colors = sys.stderr.isatty() and not environ.get("NO_COLOR")
    return [structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=28)]


def _keep(_logger: Any, _name: str, event: Any) -> Any:
    return event


def _one_line(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape control characters: a hostile name must not forge a line or a colour."""
    for key, value in event.items():
        if not isinstance(value, _SHOWN_AS_THEY_ARE):
            value = event[key] = str(value)
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event


def _with_priority(_logger: Any, name: str, line: str) -> str:
    return f"<{_JOURNAL_PRIORITY.get(name, 6)}>{line}"
