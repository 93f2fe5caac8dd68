"""Progress of hashing, sending and fetching files, on a terminal only."""

from __future__ import annotations

import threading
import time
from typing import Final

from octaskly.cli.output.render import count_of, data_size, is_quiet, note, time_left
from octaskly.cli.output.terminal import ProgressLine
from octaskly.errors import OctasklyError

DRAW_S: Final = 0.1  #: between two drawings
FIRST_DRAW_S: Final = 0.4  #: what takes less is not shown
RATE_S: Final = 3.0  #: the rate is that of the last seconds


class NoRoomNote:
    """Says once that a node has no room, until something was sent again."""

    def __init__(self) -> None:
        self._is_said = False

    def say(self, refusal: OctasklyError) -> None:
        """Say that the refusal is waited for, unless that was said."""
        if not self._is_said:
            self._is_said = True
            note(f"waiting for free space on the node: {refusal.hint}")

    def on_sent(self) -> None:
        """Say it again the next time."""
        self._is_said = False


class TransferProgress:
    """Files, bytes, rate and remaining time; any thread may report.

    Args:
        verb: What is done, as `sending`.
    """

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._line = ProgressLine(is_quiet=is_quiet())
        self._lock = threading.Lock()
        self._files = self._files_total = 0
        self._bytes = self._bytes_total = 0
        #: Times, and bytes until then; the first is the start of the rate.
        self._points: list[tuple[float, int]] = []
        self._drawn_s = 0.0
        self.clear = self._line.clear

    def expect(self, files: int, size_bytes: int) -> None:
        """Add files that are to be done."""
        with self._lock:
            self._files_total += files
            self._bytes_total += size_bytes

    def add(self, files: int, size_bytes: int) -> None:
        """Add what was done, and draw it unless it was drawn a moment ago."""
        now_s = time.monotonic()
        with self._lock:
            self._files += files
            self._bytes += size_bytes
            if not self._points or size_bytes < 0:  # The rate begins anew.
                self._points = [(now_s, self._bytes)]
                self._drawn_s = now_s + FIRST_DRAW_S - DRAW_S
            if now_s - self._drawn_s < DRAW_S:
                return
            self._drawn_s = now_s
            self._points.append((now_s, self._bytes))
            while len(self._points) > 2 and now_s - self._points[1][0] > RATE_S:  # noqa: PLR2004
                del self._points[0]
            text = self._text()
        self._line.show(text)

    def set_bytes(self, size_bytes: int, total_bytes: int) -> None:
        """Set what was done in all, and draw it."""
        self._bytes_total = total_bytes
        if not self._points:
            self._bytes = size_bytes  # An earlier run has done it.
        self.add(0, size_bytes - self._bytes)

    def _text(self) -> str:
        (began_s, before), (now_s, _) = self._points[0], self._points[-1]
        rate = max(0, self._bytes - before) / (now_s - began_s)
        left = max(0, self._bytes_total - self._bytes)
        parts = [f"{data_size(self._bytes)} of {data_size(self._bytes_total)}"]
        if self._files_total:
            parts.insert(0, f"{self._files} of {count_of(self._files_total, 'file')}")
        parts.append(f"{data_size(round(rate))}/s")
        parts.append(f"{time_left(left / rate * 1000) if rate else '? left'}")
        return f"{self._verb} {', '.join(parts)}"
