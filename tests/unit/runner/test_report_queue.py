"""Reports of a busy node wait for each other, unless many watch for one of them."""

from __future__ import annotations

import pytest

from octaskly.core.model.arrays import member_id
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import AttemptState
from octaskly.core.protocol.messages import Report
from octaskly.runner.pool.report_queue import ReportQueue
from tests.support.builders import attempt, outcome
from tests.support.set_clock import SetClock

ARRAY, OTHER = TaskId("task-001-0000000a"), TaskId("task-002-0000000b")


class Deliveries:
    """A queue of a node with attempts that wait, and what it delivered."""

    def __init__(self) -> None:
        self.delivered: list[TaskId] = []
        self.queue = ReportQueue(SetClock(), self._deliver)
        self.end(TaskId("first"))
        assert self.pop() == ["first"]

    def _deliver(self, reports: tuple[Report, ...]) -> None:
        self.delivered += (report.task for report in reports)

    def end(self, task: TaskId, state: AttemptState = AttemptState.OK) -> None:
        """End an attempt while others wait."""
        self.queue.add_report(Report(task, attempt(), outcome(state)))
        self.queue.flush_or_delay(is_busy=True)

    def pop(self) -> list[TaskId]:
        """Return the delivered tasks since the last call."""
        delivered, self.delivered = self.delivered, []
        return delivered


@pytest.mark.parametrize("state", [*AttemptState][:-1])
async def test_an_attempt_that_did_not_succeed_takes_along_what_waits(
    state: AttemptState,
) -> None:
    """Only successes wait, for the next delivery."""
    made = Deliveries()

    made.end(TaskId("a"))
    assert made.pop() == []
    made.end(TaskId("b"), state)
    assert made.pop() == ["a", "b"]
    made.end(TaskId("c"))
    assert made.pop() == []


async def test_the_last_member_of_an_array_does_not_wait() -> None:
    """Attempts at other tasks that wait say nothing about its array."""
    made = Deliveries()
    members = [member_id(ARRAY, number) for number in range(3)]
    for task in (*members, member_id(OTHER, 0), TaskId("single")):
        made.queue.expect_report(task)

    made.end(members[1])
    made.end(members[0])
    assert made.pop() == []
    made.end(members[2])
    assert made.pop() == [members[1], members[0], members[2]]
    made.end(TaskId("single"))
    assert made.pop() == []
