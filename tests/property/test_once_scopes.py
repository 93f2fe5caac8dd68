"""A task that must not run twice, in small scopes: every fault at every point."""

from __future__ import annotations

from collections import Counter

import pytest

from octaskly.core.dispatcher import task_rules
from octaskly.core.dispatcher.reconciliation import Reconciler
from octaskly.core.effects import Effect, Start
from octaskly.core.log.facts import Assigned
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import array_of, member_id
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.task_options import ArraySpec, Retry
from octaskly.core.model.tasks import Outcome, TaskSpec, TaskState
from octaskly.core.scheduling.queued_task import QueuedTask
from tests.property.test_small_scopes import STATES_MAX, Budget, RangeScope, Scope
from tests.support.builders import moment
from tests.support.exploration import EXPLORED, Action, RecordProperty, explore, scopes


class OnceScope(Scope):
    """One task that is not run again when its worker is lost."""

    def __init__(self, workers: str, budget: Budget) -> None:
        self.starts = Counter[TaskId]()
        self.is_start_unknown = False  #: the log of it was lost with a dispatcher
        super().__init__(workers, budget)

    def submit_work(self) -> None:
        self.submit(1, retry=Retry(on_lost=False))

    def fail_over(self, *, is_held: bool) -> None:
        super().fail_over(is_held=is_held)
        self.is_start_unknown |= any(isinstance(each, Assigned) for each in self._gone)

    def perform(self, effects: list[Effect], node: NodeId | None = None) -> None:
        for effect in effects:
            if isinstance(effect, Start):
                self.starts.update(spec.id for _, spec in effect.items)
        super().perform(effects, node)
        assert self.is_start_unknown or max(self.starts.values(), default=0) <= 1

    def _check_final(self, record: TaskRecord) -> None:
        """Check that a task that has succeeded is completed, even if it was lost."""
        assert record.state.is_final, record
        if record.id in self.succeeded and not self.asked_to_cancel:
            assert record.state is TaskState.COMPLETED, record


class LateOnceScope(OnceScope):
    """The same after the reattach window: a cut is a loss at once."""

    def __init__(self, workers: str, budget: Budget) -> None:
        super().__init__(workers, budget)
        self._advance_beyond_window()


class CancelledOnceScope(RangeScope):
    """An array of one such task, cancelled after a failover that lost its assignment.

    Then the log with the assignment comes back.
    """

    array = ArraySpec(count=1)

    def __init__(self, workers: str, budget: Budget) -> None:
        self.has_been_cancelled = False
        super().__init__(workers, budget)

    def submit_work(self) -> None:
        self.submit_array(self.array, on_lost=False)

    def _faults(self) -> list[Action]:
        if self.budget["failover"]:
            return [("failover", False)]
        kind = "cancel" if self.budget["cancel"] else "recover"
        return [fault for fault in super()._faults() if fault[0] == kind]

    def check(self) -> None:
        """Check that no member fails that was shown as cancelled."""
        for task in self.durable:
            member = self.durable[member_id(array_of(task) or task, 0)]
            is_cancelled = member.state is TaskState.CANCELLED
            self.has_been_cancelled |= is_cancelled
            has_failed = member.state is TaskState.FAILED
            assert not (self.has_been_cancelled and has_failed), member

    def _check_final(self, record: TaskRecord) -> None:
        assert record.state.is_final, record


SCOPES: dict[str, tuple[str, Budget]] = {
    "a cut": ("bc", {"cut": 1, "late": 1}),
    "a failover": ("b", {"failover": 1, "recover": 1}),
}
LARGE_SCOPES: dict[str, tuple[str, Budget]] = {
    "a late cut": ("bc", {"delay": 1, "cut": 1, "late": 1}),
}


@pytest.mark.parametrize(
    ("workers", "budget"),
    scopes(SCOPES, LARGE_SCOPES),
)
def test_no_order_of_events_runs_the_task_twice(
    workers: str, budget: Budget, record_property: RecordProperty
) -> None:
    """Each scope is explored in full."""
    found = explore(lambda: OnceScope(workers, budget), states_max=STATES_MAX)

    record_property(EXPLORED, str(found))
    assert not found.failures, found.describe_failures()
    assert found.is_complete


@pytest.mark.soak
def test_no_order_of_a_cut_and_a_failover_runs_the_task_twice(
    record_property: RecordProperty,
) -> None:
    """In the reattach window, this is too much to explore in full."""
    budget = {"cut": 1, "failover": 1, "recover": 1}
    found = explore(lambda: LateOnceScope("bc", budget), states_max=STATES_MAX)

    record_property(EXPLORED, str(found))
    assert not found.failures, found.describe_failures()
    assert found.is_complete


def test_losses_that_do_not_count_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the search proves little."""

    def returned(spec: TaskSpec, now: Moment, *, has_begun: bool = True) -> Outcome:
        return task_rules.superseded_end(moment())

    monkeypatch.setattr(task_rules, "presumed_end", returned)
    workers, budget = SCOPES["a cut"]

    found = explore(
        lambda: OnceScope(workers, budget), states_max=STATES_MAX, failures_max=1
    )

    assert found.failures, found


CANCELLED_ONCE: Budget = {"failover": 1, "cancel": 1, "recover": 1}


def test_no_late_log_fails_a_member_that_was_cancelled_with_its_array(
    record_property: RecordProperty,
) -> None:
    """The attempt in that log is lost, which decides nothing."""
    found = explore(
        lambda: CancelledOnceScope("b", CANCELLED_ONCE), states_max=STATES_MAX
    )

    record_property(EXPLORED, str(found))
    assert not found.failures, found.describe_failures()
    assert found.is_complete


def test_losses_that_fail_cancelled_members_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the search proves little."""
    real = Reconciler._adopt_task

    def careless(
        self: Reconciler, task: QueuedTask, attempt: AttemptId, node: NodeId
    ) -> None:
        real(self, task, attempt, node)
        task.may_be_array_cancelled = False

    monkeypatch.setattr(Reconciler, "_adopt_task", careless)

    found = explore(
        lambda: CancelledOnceScope("b", CANCELLED_ONCE),
        states_max=STATES_MAX,
        failures_max=1,
    )

    assert found.failures, found
