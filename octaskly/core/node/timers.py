"""When a node has to look again without an event.

Most steps come before anything is due. So the machines are asked when they have
something to do, and to do it only then: none does anything before the time it tells.
A few tell none, as what they wait for moves with each frame: they have their turn when
another one has, and at least each tick.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from octaskly.core.model.ids import Moment

POLL_INTERVAL_S = 0.02  #: between two looks that only time causes
COALESCE_S = 0.1  #: after a look the next event is taken for another, to save a wake


class TimedComponent(Protocol):
    """A state machine that time changes."""

    def deadline(self) -> float:
        """Return when it has something to do, in monotonic seconds."""


class Timers:
    """The times of all machines of one node."""

    def __init__(
        self, tick_s: float, timed_components: Iterable[TimedComponent]
    ) -> None:
        self._tick_s = tick_s
        self._timed_components = tuple(timed_components)
        self._last_poll_s = -math.inf
        self._next_deadline_s: float | None = None  #: None: to be found

    def deadline(self) -> float:
        """Return when something is due, or a tick is over, in monotonic seconds."""
        if self._next_deadline_s is None:
            self._next_deadline_s = self._earliest_deadline_s()
        return self._next_deadline_s

    def _earliest_deadline_s(self) -> float:
        last_poll_s = self._last_poll_s
        next_s = last_poll_s + self._tick_s
        for machine in self._timed_components:
            due_s = machine.deadline()
            if due_s >= next_s:
                continue
            if due_s <= last_poll_s:
                # What was due at the last look waits for something else than time.
                due_s = min(next_s, last_poll_s + POLL_INTERVAL_S)
            next_s = due_s
        return next_s

    def pop_due(self, now: Moment) -> bool:
        """Return True if something is due; asked at the beginning of each step."""
        is_due = now.mono_s >= self._last_poll_s + COALESCE_S
        is_due = is_due or now.mono_s >= self.deadline()
        self._next_deadline_s = None  # The event may change it.
        if is_due:
            self._last_poll_s = now.mono_s
        return is_due
