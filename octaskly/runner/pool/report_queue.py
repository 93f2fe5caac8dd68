"""Batching of reports to the core, and statistics of ended attempts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, Self

from octaskly.core.model.arrays import array_of
from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.protocol.messages import Report
from octaskly.ports.histogram import Histogram
from octaskly.ports.store import Clock

BOUNDS_S: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 14400)
BUFFERED_MAX: Final = 4096


class AttemptStats:
    """Statistics of attempts since the agent started.

    Durations are buffered and added to the histograms in batches, which costs a
    fraction of a microsecond for each attempt.
    """

    def __init__(self) -> None:
        self.ended: Counter[tuple[AttemptState, EndReason]] = Counter()
        self.queue_s = Histogram(BOUNDS_S)  #: from admission to the first start
        self.run_s = Histogram(BOUNDS_S)
        self.launcher_crashes = 0
        self._completed = 0
        self._run_ms: list[int] = []
        self._queue_ms: list[int] = []

    def count_ended(self, spec: TaskSpec, attempt: AttemptId, outcome: Outcome) -> None:
        """Count an attempt that ended."""
        if outcome.state is AttemptState.OK:
            self._completed += 1
        else:
            self.ended[outcome.state, outcome.reason] += 1
        if outcome.duration_ms is not None:
            if attempt.n == 1 and outcome.started_ms is not None:
                self._queue_ms.append(outcome.started_ms - spec.created_ms)
            self._run_ms.append(outcome.duration_ms)
            if len(self._run_ms) >= BUFFERED_MAX:
                self.flush()

    def flush(self) -> Self:
        """Add the buffered values; call it before reading the statistics."""
        self.ended[AttemptState.OK, EndReason.EXIT] += self._completed
        self._completed = 0
        self.run_s.observe_all([ms / 1000 for ms in self._run_ms])
        # The two times may come from two clocks, so the difference may be negative.
        self.queue_s.observe_all([max(0, ms) / 1000 for ms in self._queue_ms])
        self._run_ms.clear()
        self._queue_ms.clear()
        return self


COALESCE_S = 0.05  #: longest delay of reports, while more attempts wait
COALESCE_REPORTS = 512  #: this many reports are never delayed

EndedCallback = Callable[[tuple[Report, ...]], None]


class ReportQueue:
    """Reports that were not delivered yet.

    While attempts wait for a slot, a report waits for others, as a step of the core and
    a message cost nearly as much for one as for fifty. Two kinds of reports do not
    wait, because many watch for them and few of all are such: an attempt that did not
    succeed, and the last attempt here at a member of an array.

    Args:
        clock: The machine's clocks.
        on_ended: Called on the event loop with one or more reports.
    """

    def __init__(self, clock: Clock, on_ended: EndedCallback) -> None:
        self._clock = clock
        self._on_ended = on_ended
        self._reports: list[Report] = []
        self._has_urgent = False
        self._unended: Counter[TaskId] = Counter()
        """Number of attempts by array, for members of arrays."""
        self._flushed_s = float("-inf")
        self._timer: asyncio.Handle | None = None

    def expect_report(self, task: TaskId) -> None:
        """Note that this node has an attempt at a task, whose report will follow."""
        if (array := array_of(task)) is not None:
            self._unended[array] += 1

    def add_report(self, report: Report) -> None:
        """Add the report of an expected attempt to the next delivery."""
        self._reports.append(report)
        if report.outcome.state is not AttemptState.OK:
            self._has_urgent = True
        if (array := array_of(report.task)) is not None:
            self._unended[array] -= 1
            if not self._unended[array]:
                del self._unended[array]
                self._has_urgent = True

    def schedule_flush(self) -> None:
        """Deliver soon, but after the current call: the core may be inside a step."""
        if self._reports and self._timer is None:
            self._timer = asyncio.get_running_loop().call_soon(self.flush)

    def flush_or_delay(self, *, is_busy: bool) -> None:
        """Deliver now; or, if `is_busy`, within `COALESCE_S` together with others.

        `is_busy`: attempts wait for a slot.
        """
        if not self._reports:
            return
        if not is_busy or self._has_urgent or self._is_flush_due():
            self.flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(COALESCE_S, self.flush)

    def _is_flush_due(self) -> bool:
        since_s = self._clock.now().mono_s - self._flushed_s
        return since_s >= COALESCE_S or len(self._reports) >= COALESCE_REPORTS

    def flush(self) -> None:
        """Deliver all reports now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reports:
            reports, self._reports = tuple(self._reports), []
            self._has_urgent = False
            self._flushed_s = self._clock.now().mono_s
            self._on_ended(reports)
