"""An agent whose tasks need no processes: what is left is the control plane.

It is started as `python -m tests.support.no_op_agent agent ...` and is the shipped
agent but for the runner; the package itself has no switch for that.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Final
from unittest import mock

from octaskly.agent import runner_setup
from octaskly.cli import main
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.model.tree_sizes import NO_HOLDERS
from octaskly.core.protocol.messages import Report
from octaskly.runner.pool.pool import Pool

NO_OP_PROGRAM: Final = __spec__.name
EVERY_THIRD_FAILS: Final = "test $(({} % 3)) -ne 0"
"""Command of an array: every third member fails, here as with a real shell."""
ENDLESS: Final = "sleep infinity"
_REMAINDER: Final = re.compile(r"test \$\(\((\d+) % (\d+)\)\) -ne 0")


class NoOpPool(Pool):
    """Ends each attempt at once, and starts nothing.

    Attempts of `ENDLESS` wait until they are stopped, and members of
    `EVERY_THIRD_FAILS` end as a shell would end them; all others succeed.
    """

    def start_attempts(
        self,
        items: Sequence[tuple[AttemptId, TaskSpec]],
        holders: Mapping[int, Sequence[NodeId]] = NO_HOLDERS,
    ) -> None:
        """Report the ends."""
        now_ms = self._clock.now().wall_ms
        success = _outcome(0, now_ms)
        for attempt, spec in items:
            command = spec.command
            if command != ENDLESS:
                is_bad = command.startswith("test ") and _fails(command)
                outcome = _outcome(1, now_ms) if is_bad else success
                self._reports.expect_report(spec.id)
                self._reports.add_report(Report(spec.id, attempt, outcome))
        self._reports.schedule_flush()

    def stop_attempts(
        self,
        items: Sequence[tuple[TaskId, AttemptId]],
        reason: EndReason = EndReason.CANCELLED,
    ) -> None:
        """Report endless attempts as cancelled."""
        now_ms = self._clock.now().wall_ms
        state, reason = AttemptState.CANCELLED, EndReason.CANCELLED
        outcome = Outcome(state, reason, started_ms=now_ms, ended_ms=now_ms)
        for task, attempt in items:
            self._reports.add_report(Report(task, attempt, outcome))
        self._reports.schedule_flush()


def _fails(command: str) -> bool:
    remainder = _REMAINDER.fullmatch(command)
    return remainder is not None and int(remainder[1]) % int(remainder[2]) == 0


def _outcome(exit_code: int, now_ms: int) -> Outcome:
    return Outcome(
        AttemptState.FAILED if exit_code else AttemptState.OK,
        EndReason.EXIT,
        exit_code,
        started_ms=now_ms,
        ended_ms=now_ms,
        duration_ms=0,
    )


if __name__ == "__main__":
    with mock.patch.object(runner_setup, "Pool", NoOpPool):
        sys.exit(main())
