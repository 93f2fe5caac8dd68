"""How the attempts of a node ended, and how long they waited and ran, as numbers."""

from __future__ import annotations

from collections import Counter
from typing import Final, Self

from octaskly.core.model import AttemptId, AttemptState, Outcome, Reason, TaskSpec
from octaskly.ports.tally import Tally

BOUNDS_S: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 14400)
HELD_MAX: Final = 4096


class Counts:
    """Since the agent started.

    How long attempts took is put aside, and counted for many at once: that costs each
    a fraction of a microsecond.
    """

    def __init__(self) -> None:
        self.ended: Counter[tuple[AttemptState, Reason]] = Counter()
        self.queue_s = Tally(BOUNDS_S)  #: from acceptance to the first start
        self.run_s = Tally(BOUNDS_S)
        self.launcher_deaths = 0
        self._completed = 0
        self._run_ms: list[int] = []
        self._queue_ms: list[int] = []

    def end(self, spec: TaskSpec, attempt: AttemptId, outcome: Outcome) -> None:
        """Count an attempt that ended."""
        if outcome.state is AttemptState.OK:
            self._completed += 1
        else:
            self.ended[outcome.state, outcome.reason] += 1
        if outcome.duration_ms is not None:
            if attempt.n == 1 and outcome.started_ms is not None:
                self._queue_ms.append(outcome.started_ms - spec.created_ms)
            self._run_ms.append(outcome.duration_ms)
            if len(self._run_ms) >= HELD_MAX:
                self.complete()

    def complete(self) -> Self:
        """Count what was put aside; to be called before the numbers are read."""
        self.ended[AttemptState.OK, Reason.EXIT] += self._completed
        self._completed = 0
        self.run_s.add_all([ms / 1000 for ms in self._run_ms])
        # Two machines may have said when; a start before the acceptance is none.
        self.queue_s.add_all([max(0, ms) / 1000 for ms in self._queue_ms])
        self._run_ms.clear()
        self._queue_ms.clear()
        return self
