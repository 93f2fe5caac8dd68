"""A task that must not run twice, in small scopes: every fault at every point."""

from __future__ import annotations

from collections import Counter

import pytest

from octaskly.core.dispatcher import task_rules
from octaskly.core.effects import Effect, Start
from octaskly.core.log.facts import Assigned
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import Moment, NodeId, TaskId
from octaskly.core.model.task_options import Retry
from octaskly.core.model.tasks import Outcome, TaskSpec, TaskState
from tests.property.test_small_scopes import STATES_MAX, Budget, Scope
from tests.support.builders import moment
from tests.support.exploration import EXPLORED, RecordProperty, explore, scopes


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
