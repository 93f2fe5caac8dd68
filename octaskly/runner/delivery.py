"""Reports on their way to the core: together where that costs nobody time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from octaskly.core.messages import Report
from octaskly.ports import Clock

COALESCE_S = 0.05  #: reports are held so long while more attempts wait
COALESCE_REPORTS = 512

EndedCallback = Callable[[tuple[Report, ...]], None]


class Delivery:
    """What has ended and was not reported yet.

    Args:
        clock: The machine's clocks.
        on_ended: Called on the event loop with one or more reports.
    """

    def __init__(self, clock: Clock, on_ended: EndedCallback) -> None:
        self._clock = clock
        self._on_ended = on_ended
        self._reports: list[Report] = []
        self._delivered_s = float("-inf")
        self._timer: asyncio.Handle | None = None

    def add(self, report: Report) -> None:
        """Take a report; it goes with the next delivery."""
        self._reports.append(report)

    def soon(self) -> None:
        """Report, but not from within a call of the core, which is in mid-step."""
        if self._reports and self._timer is None:
            self._timer = asyncio.get_running_loop().call_soon(self.now)

    def may_wait(self, *, is_busy: bool) -> None:
        """Report now, or a moment later together with others while much is to do."""
        if not self._reports:
            return
        since_s = self._clock.now().mono_s - self._delivered_s
        is_held = is_busy and since_s < COALESCE_S
        if not is_held or len(self._reports) >= COALESCE_REPORTS:
            self.now()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(COALESCE_S, self.now)

    def now(self) -> None:
        """Report what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reports:
            reports, self._reports = tuple(self._reports), []
            self._delivered_s = self._clock.now().mono_s
            self._on_ended(reports)
