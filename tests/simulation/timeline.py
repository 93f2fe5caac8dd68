"""Virtual time: a queue of actions and their times.

There are no waits and no random draws: time jumps from one action to the next.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Due = tuple[float, int]  #: a time, and the order among actions at that time


class Timeline:
    """Runs each action at its time."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def due(self, delay_s: float) -> Due:
        """Return an instant, after all that are already scheduled for that time."""
        self._order += 1
        return self.time_s + delay_s, self._order

    def at_due(self, due: Due, action: Callable[[], None]) -> None:
        """Run an action at an instant that `due` returned."""
        heapq.heappush(self._queue, (*due, action))

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run an action later."""
        self._order += 1
        heapq.heappush(self._queue, (self.time_s + delay_s, self._order, action))

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end_s, queue = self.time_s + seconds, self._queue
        while queue and queue[0][0] <= end_s:
            self.time_s, _, action = heapq.heappop(queue)
            action()
        self.time_s = end_s

    def run_until(self, condition: Callable[[], bool], most_s: float) -> bool:
        """Let time pass until a condition holds; return True if it did."""
        end_s = self.time_s + most_s
        while not condition():
            if self.time_s >= end_s:
                return False
            self.run(0.1)
        return True
