"""A sliding window over the requests of one client. Pure: the time is an argument.

Requests are counted by slots of one second, and a slot counts until all of it has left
the window. So no `WINDOW_S` ever hold more than the limit, and nobody is refused who
had fewer than that within the last `WINDOW_S + SLOT_S`.
"""

from __future__ import annotations

from array import array
from math import ceil, floor
from typing import Final

WINDOW_S: Final = 60
SLOT_S: Final = 1
_SLOTS: Final = WINDOW_S // SLOT_S + 1


class Window:
    """What one client has asked for lately."""

    __slots__ = ("_counts", "_slot", "total")

    def __init__(self) -> None:
        self._counts = array("L", [0] * _SLOTS)
        self._slot = 0  #: the newest, counted from the beginning of time
        self.total = 0  #: requests within the window

    def take(self, now_s: float, limit: int) -> bool:
        """Count a request, unless there were `limit` of them; return whether it was.

        Args:
            now_s: Monotonic; never less than in the call before.
            limit: Requests within any window.
        """
        self._advance(floor(now_s / SLOT_S))
        if self.total >= limit:
            return False
        self._counts[self._slot % _SLOTS] += 1
        self.total += 1
        return True

    def frees_s(self, now_s: float) -> int:
        """Return the whole seconds until the oldest request leaves the window."""
        for age in range(_SLOTS - 1, -1, -1):
            if self._counts[(self._slot - age) % _SLOTS]:
                return ceil((self._slot - age + _SLOTS) * SLOT_S - now_s)
        return 0

    def _advance(self, slot: int) -> None:
        for passed in range(self._slot + 1, min(slot, self._slot + _SLOTS) + 1):
            self.total -= self._counts[passed % _SLOTS]
            self._counts[passed % _SLOTS] = 0
        self._slot = max(slot, self._slot)
