"""A task that waits for another one, in small scopes: every fault at every point."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from octaskly.core.dispatcher import task_rules
from octaskly.core.effects import Effect, Start
from octaskly.core.log.facts import Unblocked
from octaskly.core.log.merge import TaskRecord, meets_dependency
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.model.task_options import After, End, Retry
from octaskly.core.model.tasks import TaskState
from tests.property.test_small_scopes import STATES_MAX, Budget, Scope
from tests.support.exploration import EXPLORED, RecordProperty, explore, scopes


class DependencyScope(Scope):
    """Two tasks, of which the second one waits for an end of the first."""

    def __init__(self, workers: str, budget: Budget, end: End) -> None:
        self.end = end
        super().__init__(workers, budget)

    def submit_work(self) -> None:
        super().submit_work()
        (self.parent,) = self.written
        after = After(tasks=(self.parent,), end=self.end)
        self.submit(1, retry=Retry(retries=0), after=after)

    def perform(self, effects: list[Effect], node: NodeId | None = None) -> None:
        for effect in effects:
            if isinstance(effect, Start):
                self._check_start({spec.id for _, spec in effect.items})
        super().perform(effects, node)

    def _check_start(self, started: set[TaskId]) -> None:
        parent = self.durable[self.parent].state
        if started - {self.parent}:
            assert parent.is_final, f"begins while the other is {parent}"
            assert meets_dependency(self.end, parent), f"begins though it is {parent}"

    def _check_final(self, record: TaskRecord) -> None:
        """Check that the second task ran if, and only if, the first ended so."""
        if record.id == self.parent:
            super()._check_final(record)
            return
        parent = self.durable[self.parent].state
        if meets_dependency(self.end, parent):
            assert record.attempts or record.id in self.asked_to_cancel, record
            assert record.failed_dependency is None, record
        else:
            assert not record.attempts, record
            assert record.state is TaskState.CANCELLED, record
            assert record.failed_dependency or record.id in self.asked_to_cancel, record


SCOPES: dict[str, tuple[Budget, End]] = {
    "a failure": ({"delay": 1, "fail": 2}, "success"),
    "a failure that is awaited": ({"delay": 1, "fail": 2}, "failure"),
    "a cancel": ({"delay": 1, "cancel": 1}, "success"),
    "a cancel of either": ({"delay": 1, "cancel": 1}, "any"),
    "a failover": ({"failover": 1, "recover": 1}, "success"),
}
LARGE_SCOPES: dict[str, tuple[Budget, End]] = {
    "a failover and a failure": ({"failover": 1, "recover": 1, "fail": 2}, "success"),
    "late events": ({"delay": 2, "fail": 2, "cancel": 1}, "success"),
}


@pytest.mark.parametrize(
    ("budget", "end"),
    scopes(SCOPES, LARGE_SCOPES),
)
def test_no_order_of_events_breaks_a_dependency(
    budget: Budget, end: End, record_property: RecordProperty
) -> None:
    """Each scope is explored in full."""
    found = explore(lambda: DependencyScope("b", budget, end), states_max=STATES_MAX)

    record_property(EXPLORED, str(found))
    assert not found.failures, found.describe_failures()
    assert found.is_complete


def failed_parents_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """Plant: a task runs whatever became of its parents."""
    patch.setattr(task_rules, "unblock", lambda task, *_: Unblocked(task))


def met_dependencies_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """Plant: a task is cancelled whatever became of its parents."""
    real = task_rules.unblock
    patch.setattr(task_rules, "unblock", lambda task, _, term: real(task, task, term))


def nobody_waits(patch: pytest.MonkeyPatch) -> None:
    """Plant: a task with parents counts as one that may run."""
    patch.setattr(TaskRecord, "waits_for", None)


@pytest.mark.parametrize(
    "plant", [failed_parents_do_not_count, met_dependencies_do_not_count, nobody_waits]
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the search proves little."""
    budget, end = SCOPES["a failure"]
    plant(monkeypatch)

    found = explore(
        lambda: DependencyScope("b", budget, end), states_max=STATES_MAX, failures_max=1
    )

    assert found.failures, found
