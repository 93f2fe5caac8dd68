"""What the core notes, written so that nobody can fill the log with it.

A member may change whom this node follows as often as it likes. People read the first
of such lines, and from then on each second the last, with how many were left out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from octaskly.core.effects import Note

WINDOW_S: Final = 1.0
ALIKE_MAX: Final = 10  #: that come at once and are written as they are

_Kind = tuple[str, object]  #: its event, and the peer if it is about one


class Notes:
    """Lines of one node, on their way to the log.

    Args:
        write: Writes a line.
    """

    def __init__(self, write: Callable[[Note], None]) -> None:
        self._write = write
        self._windows: dict[_Kind, asyncio.TimerHandle] = {}
        self._written: Counter[_Kind] = Counter()  #: since there was a quiet second
        self._held: dict[_Kind, tuple[Note, int]] = {}  #: the last, how many before

    def take(self, note: Note) -> None:
        """Write a line, or hold it if many like it were within the last second."""
        kind = (note.event, dict(note.fields).get("peer"))
        if kind not in self._windows:
            self._open(kind)
        if self._written[kind] < ALIKE_MAX:
            self._written[kind] += 1
            self._write(note)
            return
        _, before = self._held.get(kind, (note, -1))
        self._held[kind] = (note, before + 1)

    def close(self) -> None:
        """Write what is held; nothing is noted any more."""
        for window in self._windows.values():
            window.cancel()
        for kind in tuple(self._held):
            self._write_held(kind)

    def _open(self, kind: _Kind) -> None:
        loop = asyncio.get_running_loop()
        self._windows[kind] = loop.call_later(WINDOW_S, self._end, kind)

    def _end(self, kind: _Kind) -> None:
        del self._windows[kind]
        if kind in self._held:
            self._write_held(kind)
            self._open(kind)
        else:
            del self._written[kind]

    def _write_held(self, kind: _Kind) -> None:
        note, before = self._held.pop(kind)
        more = (("left_out", before),) if before else ()
        self._write(replace(note, fields=note.fields + more))
