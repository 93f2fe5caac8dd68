"""A bound on the bytes a second that somebody with few rights may send."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

AHEAD_S_MAX: Final = 0.125  #: how far a sender may be ahead of its bytes per second


class ByteRate:
    """Counts the bytes of a sender; any thread may call the methods.

    Its reader waits for `wait_s` between two reads, and TCP slows the sender down.

    Args:
        bytes_per_s: That it may send for long.
        clock: Returns a monotonic time.
    """

    def __init__(self, bytes_per_s: float, *, clock: Callable[[], float]) -> None:
        self._bytes_per_s, self._clock = bytes_per_s, clock
        self._lock = threading.Lock()
        self._used_until_s = 0.0  #: when it may have sent what it has, at this rate

    def add_bytes(self, size_bytes: int) -> None:
        """Count bytes that have arrived."""
        with self._lock:
            begin_s = max(self._clock(), self._used_until_s)
            self._used_until_s = begin_s + size_bytes / self._bytes_per_s

    def wait_s(self) -> float:
        """Return how long to read nothing; 0: read on."""
        return max(0.0, self._used_until_s - self._clock() - AHEAD_S_MAX)
