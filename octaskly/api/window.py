"""A sliding window over the requests of one client. Pure: the time is an argument.

Requests are counted by slots of one second, and a slot counts until all of it has left
the window. So no `WINDOW_S` ever hold more than the limit, and nobody is refused who
had fewer than that within the last `WINDOW_S + SLOT_S`.
"""

from __future__ import annotations

from collections import deque
from math import ceil, floor
from typing import Final

WINDOW_S: Final = 60
SLOT_S: Final = 1
_SLOTS: Final = WINDOW_S // SLOT_S + 1


class Window:
    """What one client has asked for lately."""

    __slots__ = ("_slots", "total")

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()
        """Number and requests of each slot that had some, the oldest first."""
        self.total = 0  #: requests within the window

    def take(self, now_s: float, limit: int) -> bool:
        """Count a request, unless there were `limit` of them; return whether it was.

        Args:
            now_s: Monotonic; never less than in the call before.
            limit: Requests within any window.
        """
        slot = floor(now_s / SLOT_S)
        slots = self._slots
        while slots and slots[0][0] <= slot - _SLOTS:
            self.total -= slots.popleft()[1]
        if self.total >= limit:
            return False
        if not slots or slots[-1][0] != slot:
            slots.append([slot, 0])
        slots[-1][1] += 1
        self.total += 1
        return True

    def frees_s(self, now_s: float) -> int:
        """Return the whole seconds until the oldest request leaves the window."""
        return ceil((self._slots[0][0] + _SLOTS) * SLOT_S - now_s)
