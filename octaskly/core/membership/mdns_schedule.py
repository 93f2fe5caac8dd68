"""Schedule of mDNS queries: rare in a mesh, frequent without one."""

from __future__ import annotations

import math

from octaskly.core.effects import Browse, Effect
from octaskly.core.model.ids import Moment
from octaskly.core.model.timer_heap import Timer, TimerHeap

BROWSE_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  #: after losing the mesh; then every 20 s
BROWSE_INTERVAL_S = 20.0
BROWSE_JITTER = 0.25  #: jitter of a dispatcher's interval, as a share of it


class MdnsSchedule:
    """The times of this node's mDNS queries."""

    def __init__(self, timers: TimerHeap) -> None:
        self._timers = timers
        self._since_s: float | None = None
        self._query_count = 0
        self._next_query_s = math.inf

    @property
    def is_browsing(self) -> bool:
        """Return True if this node browses."""
        return self._next_query_s < math.inf

    def start(self, now: Moment, *, is_delayed: bool = False) -> list[Effect]:
        """Start browsing now; if `is_delayed`, the first query follows a second later.

        In a large mesh each query costs every node time, and all nodes would query at
        once.
        """
        self._since_s, self._query_count = now.mono_s, 0
        self._set_next_query(now.mono_s + BROWSE_DELAYS_S[0])
        return [] if is_delayed else [Browse(is_wanted=True)]

    def stop(self) -> list[Effect]:
        """Stop browsing."""
        if not self.is_browsing:
            return []
        self._set_next_query(math.inf)
        return [Browse(is_wanted=False)]

    def on_time(
        self, now: Moment, *, draw: float, is_dispatching: bool
    ) -> list[Effect]:
        """Send the next query if it is due."""
        if now.mono_s < self._next_query_s:
            return []
        self._query_count += 1
        if is_dispatching:
            spread = 1.0 + BROWSE_JITTER * (2.0 * draw - 1.0)
            next_s = now.mono_s + BROWSE_INTERVAL_S * spread
        elif self._query_count < len(BROWSE_DELAYS_S) and self._since_s is not None:
            next_s = self._since_s + BROWSE_DELAYS_S[self._query_count]
        else:
            next_s = now.mono_s + BROWSE_INTERVAL_S
        self._set_next_query(next_s)
        return [Browse(is_wanted=True)]

    def _set_next_query(self, at_s: float) -> None:
        self._next_query_s = at_s
        self._timers.set(Timer.BROWSE, at_s)
