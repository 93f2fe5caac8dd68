"""How the attempts of a node ended, and how long they waited and ran, as numbers."""

from __future__ import annotations

from collections import Counter
from typing import Final

from octaskly.core.model import AttemptId, AttemptState, Outcome, Reason, TaskSpec
from octaskly.ports.tally import Tally

BOUNDS_S: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 14400)


class Counts:
    """Since the agent started."""

    def __init__(self) -> None:
        self.ended: Counter[tuple[AttemptState, Reason]] = Counter()
        self.queue_s = Tally(BOUNDS_S)  #: from acceptance to the first start
        self.run_s = Tally(BOUNDS_S)
        self.launcher_deaths = 0

    def end(self, spec: TaskSpec, attempt: AttemptId, outcome: Outcome) -> None:
        """Count an attempt that ended; called for each, so it does little."""
        self.ended[outcome.state, outcome.reason] += 1
        if outcome.duration_ms is not None:
            self.run_s.add(outcome.duration_ms / 1000)
        if attempt.n == 1 and outcome.started_ms is not None:
            # Two machines may have said when; a start before the acceptance is none.
            self.queue_s.add(max(0, outcome.started_ms - spec.created_ms) / 1000)
