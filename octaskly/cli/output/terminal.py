"""The only writer to stdout and stderr: text of others is harmless on a terminal.

Other modules of `octaskly.cli` must not print; a test forbids it. Whatever they pass
here loses its control characters, also their own text, so none can be forgotten. The
output of a task is the exception: `write_output` passes it on byte for byte.

Colours appear on a terminal only, and never if NO_COLOR is set.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import (
        Console,
        ConsoleOptions,
        RenderableType,
        RenderResult,
    )

_UNSAFE: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, escape sequences
    r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"  # what changes the order of text
)


_MARKS: Final = ("Mn", "Me", "Cf")


def width(text: str) -> int:
    """Return the display width of a text on one line, in columns."""
    return len(text) if text.isascii() else sum(map(_width, text))


def pad(text: str, columns: int) -> str:
    """Return the text padded with blanks to a width in columns."""
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """Return the text cut to a width in columns, with a mark if it was cut."""
    if width(text) <= columns:
        return text
    left = columns - 1  # The mark takes one column.
    for index, char in enumerate(text):
        left -= _width(char)
        if left < 0:
            return text[:index] + "…"
    return text


def _width(char: str) -> int:
    if unicodedata.category(char) in _MARKS:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class Styled(NamedTuple):
    """Text with a colour, for terminals."""

    text: str
    fg: str | None = None
    is_bold: bool = False


def printable(text: str) -> str:
    """Return untrusted text without control characters and bidi overrides."""
    return _UNSAFE.sub("�", text)


def on_one_line(text: str) -> str:
    """Return untrusted text on one line, also without control characters."""
    return _join_lines(printable(text))


def _join_lines(text: str) -> str:
    return text.replace("\n", " ⏎ ")


def is_terminal(*, is_error: bool = False) -> bool:
    """Return True if stdout is a terminal, or stderr."""
    return _stream(is_error=is_error).isatty()


def has_colour(*, is_error: bool = False) -> bool:
    """Return True if stdout may get colours, or stderr."""
    return is_terminal(is_error=is_error) and not os.environ.get("NO_COLOR")


def columns() -> int | None:
    """Return the width of the terminal at stdout; None if it is no terminal."""
    if not is_terminal():
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns


def format_text(*parts: str | Styled, has_colour: bool) -> str:
    """Return harmless text, with colours or without."""
    return "".join(_format_part(part, has_colour=has_colour) for part in parts)


def _format_part(part: str | Styled, *, has_colour: bool) -> str:
    if isinstance(part, str):
        return printable(part)
    text = printable(part.text)
    if not has_colour or not (part.fg or part.is_bold):
        return text
    return click.style(text, fg=part.fg, bold=part.is_bold or None)


def print_line(*parts: str | Styled, is_error: bool = False, end: str = "\n") -> None:
    """Print harmless text on one line, on stdout or stderr."""
    colour = has_colour(is_error=is_error)
    # Styles contain no newline, so this replaces those of the text alone.
    text = _join_lines(format_text(*parts, has_colour=colour))
    _print(text + end, is_error=is_error)


def print_text(*parts: str | Styled, is_error: bool = False) -> None:
    """Print harmless text that may have several lines, on stdout or stderr.

    Only for text whose lines no other user chose, or that is indented.
    """
    colour = has_colour(is_error=is_error)
    _print(format_text(*parts, has_colour=colour) + "\n", is_error=is_error)


def print_exact(text: str) -> None:
    """Print text for a program: exact, but harmless on a terminal."""
    _print((printable(text) if is_terminal() else text) + "\n", is_error=False)


def print_json_body(body: bytes) -> None:
    """Print JSON: exact for programs, and indented and harmless on a terminal."""
    if is_terminal():
        text = msgspec.json.format(body, indent=2).decode()
        body = _UNSAFE.sub(lambda char: f"\\u{ord(char[0]):04x}", text).encode()
    _write_all(sys.stdout, body.rstrip(b"\n") + b"\n")


def write_output(stream: str, data: bytes) -> None:
    """Write output of a task, byte for byte, on `stdout` or `stderr`."""
    with _no_progress():
        _write_all(_stream(is_error=stream == "stderr"), data)


def _print(text: str, *, is_error: bool) -> None:
    stream = _stream(is_error=is_error)
    with _no_progress():
        _write_all(stream, text.encode(stream.encoding, stream.errors or "strict"))


def _write_all(text: TextIO, data: bytes) -> None:
    """Write bytes to a stream; raise OSError if it does not take all of them."""
    text.flush()
    # A buffer would not say how much it wrote when a pipe does not block.
    file = getattr(text.buffer, "raw", text.buffer)
    rest = memoryview(data)
    while rest:
        written = file.write(rest)
        if not written:
            select.select((), (text,), ())
        rest = rest[written or 0 :]


class ProgressLine:
    """A part of the line on stderr that is drawn again and again, on a terminal only.

    Several may share the line, and any thread may draw. Other output clears it.
    """

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_shown = is_terminal(is_error=True) and not is_quiet

    def show(self, text: str) -> None:
        """Draw the line with this part, unless other output is being written.

        That may wait for its reader for long; whoever makes progress must not.
        """
        if self._is_shown and _progress.lock.acquire(blocking=False):
            try:
                _progress.parts[self] = on_one_line(text)
                _progress.draw()
            finally:
                _progress.lock.release()

    def clear(self) -> None:
        """Clear the line, and leave this part out of the next one."""
        with _progress.lock:
            _progress.parts.pop(self, None)
            _progress.clear()

    def end(self) -> None:
        """End the line, so that other output follows it."""
        with _progress.lock:
            _progress.parts.pop(self, None)
            _progress.drawn_columns = 0
            if self._is_shown:
                _write_error("\n")


class _Progress:
    """The line of progress; the caller holds the lock, as for any output."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.parts: dict[ProgressLine, str] = {}
        self.drawn_columns = 0

    def draw(self) -> None:
        text = " · ".join(self.parts.values())
        # A longer line would be drawn below itself, again and again.
        with contextlib.suppress(OSError):
            if columns := os.get_terminal_size(sys.stderr.fileno()).columns:
                text = cut(text, columns - 1)
        _write_error(f"\r{pad(text, self.drawn_columns)}")
        self.drawn_columns = width(text)

    def clear(self) -> None:
        if self.drawn_columns:
            _write_error(f"\r{'':{self.drawn_columns}}\r")
            self.drawn_columns = 0


_progress: Final = _Progress()


@contextlib.contextmanager
def _no_progress() -> Iterator[None]:
    """Clear the line of progress, and keep it away while the block writes."""
    with _progress.lock:
        _progress.clear()
        yield


def confirm(question: str, *, abort: bool = False) -> bool:
    """Ask on stderr; return the answer. With `abort`, raise click.Abort for a no."""
    return click.confirm(printable(question), abort=abort, err=True)


def prompt_hidden(question: str) -> str:
    """Ask on stderr for a text that the terminal does not show."""
    return str(click.prompt(printable(question), hide_input=True, err=True))


# --- Screens -----------------------------------------------------------------------


class _Harmless:
    """Renders something of `rich` without control characters of others."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        """Yield the segments, with harmless text."""
        for segment in console.render(self._renderable, options):
            if segment.control:
                yield segment
            else:
                yield segment._replace(text=printable(segment.text))


def render_text(renderable: RenderableType, width: int) -> str:
    """Return something of `rich` as harmless text without colours."""
    from rich.console import Console  # noqa: PLC0415 - 30 ms, for few commands

    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(_Harmless(renderable))
    return captured.get()


class LiveScreen(NamedTuple):
    """A full screen that is drawn again and again."""

    draw: Callable[[RenderableType], None]
    rows: Callable[[], int]


@contextlib.contextmanager
def live_screen() -> Iterator[LiveScreen]:
    """Take over the terminal until the end of the block."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    console = Console(no_color=not has_colour(), highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield LiveScreen(
            draw=lambda frame: live.update(_Harmless(frame), refresh=True),
            rows=lambda: console.size.height,
        )


@contextlib.contextmanager
def progress_bar(title: str, count: int) -> Iterator[Callable[[int], None]]:
    """Draw a bar on a terminal; yield the function that advances it."""
    from rich.progress import Progress  # noqa: PLC0415

    with Progress() as progress:
        bar = progress.add_task(printable(title), total=count)
        yield lambda done: progress.update(bar, completed=done)


# --- The streams -------------------------------------------------------------------


def reopen_closed_streams() -> None:
    """Replace streams that were closed, as by `<&-`, with `/dev/null`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123


def flush() -> None:
    """Write what stdout has buffered."""
    sys.stdout.flush()


def discard_output() -> None:
    """Prevent the interpreter from flushing the remaining output again at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stream(*, is_error: bool) -> TextIO:
    return sys.stderr if is_error else sys.stdout


def _write_error(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
