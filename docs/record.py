"""Records a command in a terminal, and draws it as an SVG that moves: `make recording`.

The picture is made of a real run, needs no player, no script and no other file, and
where nothing moves it shows the end. Of a terminal it knows what our commands use:
colours, carriage returns, and moving up to draw a line anew.
"""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

COLUMNS, ROWS = 84, 26
FRAME_S = 0.2  #: what changes faster is not seen anyway
IDLE_S = 1.0  #: nobody wants to watch how nothing happens for longer
HOLD_S = 8.0  #: the end stands still, to be read
CHAR_PX, LINE_PX, MARGIN_PX = 8.4, 18, 16
COLOURS = {
    "1": "#ffffff",
    "31": "#ff7b72",
    "32": "#7ee787",
    "33": "#e3b341",
    "34": "#79c0ff",
    "35": "#d2a8ff",
    "36": "#76e3ea",
}
PLAIN = "#c9d1d9"
_PART = re.compile(
    r"\x1b\[(?P<args>[\d;?]*)(?P<order>[A-Za-z])|(?P<move>[\r\n])|(?P<text>[^\x1b\r\n]+)"
)

Line = tuple[tuple[str, str], ...]
"""Each character of a line, and its colour."""

Chunk = tuple[float, str]
"""What a command wrote, and how many seconds after its start."""


@dataclass
class Screen:
    """The lines that a terminal shows."""

    lines: list[list[tuple[str, str]]] = field(default_factory=lambda: [[]])
    row: int = 0
    column: int = 0
    colour: str = PLAIN

    def write(self, text: str) -> None:
        """Do what a command wrote."""
        for part in _PART.finditer(text):
            if part["text"]:
                self._put(part["text"])
            elif part["move"] == "\r":
                self.column = 0
            elif part["move"]:
                self.row += 1
            else:
                self._obey(part["order"], part["args"])
            while self.row >= len(self.lines):
                self.lines.append([])

    def shown(self) -> list[Line]:
        """Return the lines that fit, without what is blank at their ends."""
        return [_stripped(line) for line in self.lines[-ROWS:]]

    def _put(self, text: str) -> None:
        line = self.lines[self.row]
        line.extend((" ", PLAIN) for _ in range(self.column - len(line)))
        line[self.column : self.column + len(text)] = [(c, self.colour) for c in text]
        self.column += len(text)

    def _obey(self, order: str, args: str) -> None:
        match order:
            case "A":
                self.row = max(0, self.row - int(args or 1))
            case "K":
                kept = 0 if args == "2" else self.column
                del self.lines[self.row][kept:]
            case "m":
                known = [COLOURS[arg] for arg in args.split(";") if arg in COLOURS]
                self.colour = known[-1] if known else PLAIN
            case _:
                pass  # Whether the cursor is shown.


def _stripped(line: Iterable[tuple[str, str]]) -> Line:
    kept = list(line)
    while kept and kept[-1][0] == " ":
        kept.pop()
    return tuple(kept)


def record(words: list[str]) -> Iterator[Chunk]:
    """Run a command in a terminal of its own; yield what it writes, and when."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    environ |= {"TERM": "xterm-256color"}
    began = time.monotonic()
    with subprocess.Popen(words, stdout=theirs, stderr=theirs, env=environ) as process:
        os.close(theirs)
        while True:
            select.select([ours], [], [])
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # So a terminal says that nobody writes any more.
                break
            yield time.monotonic() - began, data.decode(errors="replace")
    os.close(ours)
    if process.returncode != 0:
        raise SystemExit(process.returncode)


def frames(prompt: str, chunks: Iterable[Chunk]) -> Iterator[tuple[float, list[Line]]]:
    """Yield what the screen shows, and from when on."""
    screen = Screen()
    screen.write(f"\x1b[32m$\x1b[0m {prompt}\r\n")
    yield 0.0, screen.shown()
    due, at, last = 0.0, 0.0, 0.0
    for real, text in chunks:
        at += min(real - last, IDLE_S)
        last = real
        if at >= due:
            yield at, screen.shown()
            due = at + FRAME_S
        screen.write(text)
    yield at + FRAME_S, screen.shown()


def drawn(shown: Iterable[tuple[float, list[Line]]]) -> str:
    """Return the SVG in which each line is there for as long as it was."""
    told = list(shown)
    whole_s = told[-1][0] + HOLD_S
    spans: dict[tuple[int, Line], list[list[float]]] = {}
    ends = [at for at, _ in told[1:]] + [whole_s]
    for (begin, lines), end in zip(told, ends, strict=True):
        for key in enumerate(lines):
            times = spans.setdefault(key, [])
            if times and times[-1][1] == begin:
                times[-1][1] = end
            elif key[1]:
                times.append([begin, end])
    rows = max(row for row, _ in spans) + 1
    width = round(COLUMNS * CHAR_PX + 2 * MARGIN_PX)
    height = rows * LINE_PX + 2 * MARGIN_PX
    texts = "".join(
        _text(row, line, begin / whole_s, end / whole_s, whole_s)
        for (row, line), times in sorted(spans.items(), key=lambda item: item[0][0])
        for begin, end in times
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" font-family="ui-monospace,Menlo,Consolas,monospace" '
        'font-size="14" role="img" aria-label="a recording of make demo">\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>\n'
        f"{texts}</svg>\n"
    )


def _text(row: int, line: Line, begin: float, end: float, whole_s: float) -> str:
    y = MARGIN_PX + (row + 0.75) * LINE_PX
    times = f"0;{begin:.4f};{end:.4f}" if end < 1 else f"0;{begin:.4f}"
    values = "hidden;visible;hidden" if end < 1 else "hidden;visible"
    seen = "" if end >= 1 else ' visibility="hidden"'
    moves = (
        f'<animate attributeName="visibility" values="{values}" keyTimes="{times}" '
        f'calcMode="discrete" dur="{whole_s:.2f}s" repeatCount="indefinite"/>'
    )
    whole = begin == 0 and end >= 1
    return (
        f'<text y="{y:g}"{seen} xml:space="preserve">'
        f"{''.join(_runs(line))}{'' if whole else moves}</text>\n"
    )


def _runs(line: Line) -> Iterator[str]:
    """Yield what has one colour, each at its own place, whatever the font."""
    start = 0
    while start < len(line):
        end = start
        while end < len(line) and line[end][1] == line[start][1]:
            end += 1
        text = "".join(char for char, _ in line[start:end])
        if text.strip():
            x, length = MARGIN_PX + start * CHAR_PX, len(text) * CHAR_PX
            yield (
                f'<tspan x="{x:g}" textLength="{length:g}" fill="{line[start][1]}">'
                f"{escape(text)}</tspan>"
            )
        start = end


if __name__ == "__main__":
    target, prompt, *words = sys.argv[1:]
    Path(target).write_text(drawn(frames(prompt, record(words))))
