"""Waits, refusals and cancels without force, in small scopes: all faults, at any point.

Each rule has planted bugs, and the search finds each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher import task_rules
from octaskly.core.dispatcher.task_rules import LOSS_BACKOFF_S, LOSSES_MAX
from octaskly.core.effects import Effect, Start, Stop
from octaskly.core.log.facts import Assigned, Fact, Finished, TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import FORCED_PREFIX
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.model.task_options import ArraySpec
from octaskly.core.model.tasks import EndReason, TaskState
from octaskly.core.replies import CancelResult
from tests.property.test_small_scopes import (
    LATE_S,
    MEMBERS,
    STATES_MAX,
    Budget,
    RangeScope,
    Scope,
)
from tests.support import builders
from tests.support.exploration import (
    EXPLORED,
    Action,
    RecordProperty,
    explore,
)


class WaitScope(Scope):
    """A task that waits after a failure, and before its last try after losses."""

    def __init__(self, workers: str, budget: Budget) -> None:
        self.failed_s: float | None = None
        self.lost_s: list[float] = []
        super().__init__(workers, budget)
        self.advance(LATE_S)  # The reattach window is over.

    def perform(self, effects: list[Effect], node: NodeId | None = None) -> None:
        is_start = any(isinstance(effect, Start) for effect in effects)
        assert not is_start or self.seconds != self.failed_s, "retried at once"
        super().perform(effects, node)

    def _fail(self, node: NodeId) -> None:
        self.failed_s = self.seconds
        super()._fail(node)

    def _check(self, fact: Fact) -> None:
        super()._check(fact)
        if isinstance(fact, Finished) and fact.outcome.reason is EndReason.LOST:
            self.lost_s.append(self.seconds)
        if isinstance(fact, Assigned) and len(self.lost_s) == LOSSES_MAX - 1:
            waited_s = self.seconds - self.lost_s[-1]
            assert waited_s >= LOSS_BACKOFF_S, f"tried again after {waited_s} s"


class RefusalScope(Scope):
    """A task that workers refuse, as they lack an input or room."""

    def __init__(self, workers: str, budget: Budget) -> None:
        self.refusals: dict[NodeId, EndReason] = {}
        """Those after which the worker is not asked again for now."""
        super().__init__(workers, budget)

    def _faults(self) -> list[Action]:
        busy = [node for node, linked in self.workers.items() if linked.here]
        refusals = [(kind, node) for kind in ("lack", "fill") for node in busy]
        return [*super()._faults(), *refusals]

    @property
    def _performers(self) -> dict[str, Callable[..., None]]:
        return super()._performers | {
            "lack": partial(self._refuse, EndReason.INPUTS),
            "fill": partial(self._refuse, EndReason.ROOM),
        }

    def _refuse(self, reason: EndReason, node: NodeId) -> None:
        self.finish(node, builders.released(reason, "data.csv"))
        self.refusals[node] = reason
        is_refused = self.refusals.keys() == self.workers.keys()
        if is_refused and EndReason.ROOM in self.refusals.values():
            self.refusals.clear()  # All are asked again.

    def _check_final(self, record: TaskRecord) -> None:
        """Check that it failed if, and only if, each worker lacks an input."""
        is_refused = self.refusals.keys() == self.workers.keys()
        expected = TaskState.FAILED if is_refused else TaskState.COMPLETED
        assert record.state is expected, record


class ReturnScope(Scope):
    """A task that a worker gives back, after which another attempt follows at once."""

    def _faults(self) -> list[Action]:
        busy = [node for node, linked in self.workers.items() if linked.here]
        return [*super()._faults(), *(("return", node) for node in busy)]

    @property
    def _performers(self) -> dict[str, Callable[..., None]]:
        return super()._performers | {"return": self._give_back}

    def _give_back(self, node: NodeId) -> None:
        self.finish(node, builders.released(EndReason.RETURNED))

    def perform(self, effects: list[Effect], node: NodeId | None = None) -> None:
        for effect in effects:
            for task, _ in effect.items if isinstance(effect, Stop) else ():
                assert self.written[task].state.is_final, "killed without a reason"
        super().perform(effects, node)


class GentleScope(Scope):
    """A task that is cancelled without force: it goes on if it runs."""

    def __init__(self, workers: str, budget: Budget) -> None:
        self.may_cancel: bool | None = None
        """The requested cancel is allowed; None: none was requested."""
        super().__init__(workers, budget)

    def _cancel(self, task: TaskId) -> None:
        self.may_cancel = self._is_waiting(task)
        self.asked_to_cancel.add(task)
        self.cancel(task, force=False)

    def _is_waiting(self, task: TaskId) -> bool:
        return self.written[task].state is TaskState.QUEUED

    def _answered(self, ticket: int, reply: object) -> None:
        super()._answered(ticket, reply)
        if isinstance(reply, CancelResult):
            assert reply.was_done is self.may_cancel, reply


class GentleRangeScope(GentleScope, RangeScope):
    """An array that is cancelled without force: what runs goes on."""

    array = ArraySpec(count=MEMBERS + 1)

    def _is_waiting(self, task: TaskId) -> bool:
        progress = self.durable[task].progress
        return progress is not None and progress.queued > 0

    def check(self) -> None:
        """Check nothing: a cancelled array runs until its members have ended."""

    def _check_final(self, record: TaskRecord) -> None:
        """Check that the members that had begun have succeeded."""
        super()._check_final(record)
        members = [r for task, r in self.durable.items() if task != record.id]
        assert all(member.state is TaskState.COMPLETED for member in members), members


Made = tuple[type[Scope], str, Budget]
SCOPES: dict[str, Made] = {
    "a failure": (WaitScope, "b", {"delay": 1, "fail": 1}),
    "losses": (WaitScope, "b", {"cut": 2}),
    "refusals": (RefusalScope, "bc", {"lack": 2, "fill": 1}),
    "a return": (ReturnScope, "b", {"return": 1, "failover": 1}),
    "a cancel": (GentleScope, "b", {"cancel": 1, "fail": 1}),
    "a cancel of an array": (GentleRangeScope, "b", {"cancel": 1}),
}


@pytest.mark.parametrize(
    ("scope", "workers", "budget"), SCOPES.values(), ids=SCOPES.keys()
)
def test_no_order_of_events_breaks_a_rule(
    scope: type[Scope], workers: str, budget: Budget, record_property: RecordProperty
) -> None:
    """Each scope is explored in full."""
    found = explore(lambda: scope(workers, budget), states_max=STATES_MAX)

    record_property(EXPLORED, str(found))
    assert not found.failures, found.describe_failures()
    assert found.is_complete


def nothing_waits(patch: pytest.MonkeyPatch) -> None:
    """Plant: another attempt always follows at once."""
    patch.setattr(task_rules, "wait_s", lambda *_: None)


def refusals_for_want_of_room_count(patch: pytest.MonkeyPatch) -> None:
    """Plant: a task fails once each worker has refused it, whatever the reason."""
    real = task_rules.after_refusals

    def hasty(record: TaskRecord, *rest: object) -> object:
        lack = builders.released(EndReason.INPUTS)
        attempts = tuple(replace(each, outcome=lack) for each in record.attempts)
        return real(replace(record, attempts=attempts), *rest)  # type: ignore[arg-type]

    patch.setattr(task_rules, "after_refusals", hasty)


def refused_tasks_wait_for_ever(patch: pytest.MonkeyPatch) -> None:
    """Plant: workers that lack an input are asked again and again."""
    patch.setattr(task_rules, "after_refusals", lambda *_: task_rules.ROOM_WAIT_S)


def listed_attempts_never_follow(patch: pytest.MonkeyPatch) -> None:
    """Plant: an attempt that a worker lists is killed if an earlier one is known."""
    patch.setattr(task_rules, "may_follow", lambda _, known: not known)


def all_may_be_cancelled(patch: pytest.MonkeyPatch) -> None:
    """Plant: a cancel without force ends what runs."""
    patch.setattr(task_rules, "may_cancel", lambda state, **_: not state.is_final)


def cancels_need_force(patch: pytest.MonkeyPatch) -> None:
    """Plant: a cancel without force ends nothing."""
    patch.setattr(task_rules, "may_cancel", lambda *_, force, **__: force)


def whole_arrays_may_be_cancelled(patch: pytest.MonkeyPatch) -> None:
    """Plant: an array is cancelled though all its members run."""

    def cancel(array: TaskRecord, by: str, term: int, **_: bool) -> TaskCancelled:
        return TaskCancelled(array.id, by, term)

    patch.setattr(task_rules, "cancel_array", cancel)


def cancels_of_arrays_need_force(patch: pytest.MonkeyPatch) -> None:
    """Plant: a cancel of an array without force ends nothing."""
    real = task_rules.cancel_array

    def cancel(*array: object, force: bool) -> object:
        return real(*array, force=True) if force else None  # type: ignore[arg-type]

    patch.setattr(task_rules, "cancel_array", cancel)


def cancels_of_arrays_are_forced(patch: pytest.MonkeyPatch) -> None:
    """Plant: the cancel of an array always ends its members that run."""
    real = task_rules.cancel_member

    def cancel(member: TaskId, by: str, term: int) -> object:
        return real(member, f"{FORCED_PREFIX}{by}", term)

    patch.setattr(task_rules, "cancel_member", cancel)


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (nothing_waits, "a failure"),
        (nothing_waits, "losses"),
        (refusals_for_want_of_room_count, "refusals"),
        (refused_tasks_wait_for_ever, "refusals"),
        (listed_attempts_never_follow, "a return"),
        (all_may_be_cancelled, "a cancel"),
        (cancels_need_force, "a cancel"),
        (whole_arrays_may_be_cancelled, "a cancel of an array"),
        (cancels_of_arrays_need_force, "a cancel of an array"),
        (cancels_of_arrays_are_forced, "a cancel of an array"),
    ],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the search proves little."""
    scope, workers, budget = SCOPES[name]
    plant(monkeypatch)

    found = explore(
        lambda: scope(workers, budget), states_max=STATES_MAX, failures_max=1
    )

    assert found.failures, found
