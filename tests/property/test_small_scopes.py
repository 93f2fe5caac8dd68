"""The dispatcher and its workers in small scopes: every fault at every point.

Random walks find what is likely; here all orders within the bounds are tried.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar, cast

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher import task_rules
from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.effects import Append, Effect, Start
from octaskly.core.log.facts import Fact, Finished, MembersSucceeded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import MAX_FAILS_CANCELLER, array_of, member_id
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.model.task_options import ArraySpec, Retry
from octaskly.core.model.tasks import AttemptState, EndReason, TaskState
from octaskly.core.protocol.messages import Report
from octaskly.core.scheduling.array_queue import ArrayQueue
from octaskly.core.scheduling.task_table import TaskTable
from tests.property.test_array_walks import ArrayDispatcherModel
from tests.property.test_failover_walks import FailoverModel
from tests.simulation import mutants
from tests.support import builders
from tests.support.dispatcher_model import LIMITS, Key
from tests.support.exploration import EXPLORED, Action, RecordProperty, explore, scopes

FAILED = builders.outcome(AttemptState.FAILED, EndReason.EXIT, duration_ms=1)
DONE = builders.outcome(duration_ms=1)
TIMED = replace(DONE, started_ms=2, ended_ms=3)
"""All that a fact about several members can say."""
WAIT_S = 1.0  #: after this, a first backoff is over
WAITS = 2  #: by default; more would only repeat what was explored
LATE_S = 6.0  #: after this, the reattach window is over
RETRIES = 1
MEMBERS = 2  #: as many as a worker has slots
ORDER = ("obey", "hear", "commit", "read", "answer", "finish", "link", "wait")
"""What happens by default: the first of these that can."""

Budget = dict[str, int]
T = TypeVar("T")


class FixedChoice:
    """Stands in for random numbers: the explorer makes the choices."""

    def random(self) -> float:
        return 1.0

    def randrange(self, first: int, _: int) -> int:
        return first

    def choice(self, some: Sequence[T]) -> T:
        return some[0]


class Scope(FailoverModel):
    """One task, some workers, and a budget for each kind of fault."""

    def __init__(self, workers: str, budget: Budget) -> None:
        super().__init__(cast("random.Random", FixedChoice()))
        self.workers = {n: w for n, w in self.workers.items() if n in workers}
        self.budget = {"wait": WAITS, **budget}
        self.succeeded: set[TaskId] = set()
        self.failed_attempts: set[Key] = set()
        self.asked_to_cancel: set[TaskId] = set()
        self.may_run_twice = False
        """True once a worker was lost, or a dispatcher did not ask for other logs."""
        self.begin_epoch()
        for node in self.workers:
            self.link(node)
        self.submit_work()

    def submit_work(self) -> None:
        """Submit what is done in this scope."""
        self.submit(1, retry=Retry(retries=RETRIES))

    def choices(self) -> tuple[Action | None, list[Action]]:
        usual = sorted(self._events(), key=lambda action: ORDER.index(action[0]))
        others = [action for action in self._faults() if self.budget.get(action[0])]
        if self.budget.get("delay"):
            others += [("delay", *action) for action in usual[1:]]
        return (usual[0] if usual else None), others

    def _events(self) -> list[Action]:
        events: list[Action] = []
        for node, linked in self.workers.items():
            events += [("obey", node)] if linked.down else []
            events += [("hear", node)] if linked.up else []
            events += [("finish", node)] if linked.here else []
            events += [] if linked.is_linked else [("link", node)]
        events += [("commit",)] if self.commits else []
        for name, waiting in (("read", self.reads), ("answer", self.answers)):
            kinds = [type(each) for each in waiting]
            events += [(name, kinds.index(kind)) for kind in dict.fromkeys(kinds)]
        return events or ([("wait",)] if self.budget["wait"] else [])

    def _faults(self) -> list[Action]:
        faults: list[Action] = [("failover", False), ("failover", True), ("late",)]
        for node, linked in self.workers.items():
            faults += [("fail", node)] if linked.here else []
            faults += [("cut", node)] if linked.is_linked else []
        faults += [("recover",)] if self._gone else []
        known = [task for task, record in self.durable.items() if record.spec]
        return [*faults, *(("cancel", task) for task in known)]

    def do(self, action: Action) -> None:
        kind, *arguments = action
        if kind in self.budget:
            self.budget[kind] -= 1
        if kind == "delay":
            kind, *arguments = arguments
        self._performers[kind](*arguments)
        self.check()

    @property
    def _performers(self) -> dict[str, Callable[..., None]]:
        return {
            "obey": self.hear_dispatcher,
            "hear": self.hear_worker,
            "commit": self.commit,
            "read": self._read_at,
            "answer": self._answer_at,
            "finish": self._succeed,
            "fail": self._fail,
            "wait": lambda: self.advance(WAIT_S),
            "link": self.link,
            "cut": self.cut,
            "failover": self._fail_over,
            "recover": self.recover_log,
            "late": self._advance_beyond_window,
            "cancel": self._cancel,
        }

    def _succeed(self, node: NodeId) -> None:
        key, *_others = self.workers[node].here
        if key not in self.workers[node].stopping:  # Else it counts as killed.
            self.succeeded.add(key[0])
        self.finish(node, DONE)

    def _fail(self, node: NodeId) -> None:
        key, *_others = self.workers[node].here
        if key not in self.workers[node].stopping:
            self.failed_attempts.add(key)
        self.finish(node, FAILED)

    def _fail_over(self, is_held: bool) -> None:
        self.may_run_twice |= not is_held
        self.fail_over(is_held=is_held)

    def _cancel(self, task: TaskId) -> None:
        self.asked_to_cancel.add(task)
        self.cancel(task, force=True)

    def _advance_beyond_window(self) -> None:
        self.may_run_twice = True
        self.advance(LATE_S)

    def perform(self, effects: list[Effect], node: NodeId | None = None) -> None:
        for effect in effects:
            if isinstance(effect, Start) and not self.may_run_twice:
                again = {spec.id for _, spec in effect.items} & self.succeeded
                assert not again, f"runs again after its success: {again}"
        super().perform(effects, node)

    def _check(self, fact: Fact) -> None:
        """Reject also a loss beside a live attempt, which stands for the lost one."""
        super()._check(fact)
        if isinstance(fact, Finished) and fact.outcome.reason is EndReason.LOST:
            known = self.written[fact.task].attempts
            others = [a for a in known if a.state.is_live and a.id != fact.attempt]
            assert not others, f"{fact.attempt} counts as lost beside {others}"

    def _read_at(self, place: int) -> None:
        asked = self.reads[place]
        del self.reads[place]
        self.reads.appendleft(asked)
        self.read()

    def _answer_at(self, place: int) -> None:
        answer = self.answers[place]
        del self.answers[place]
        self.answers.appendleft(answer)
        self.answer()

    def check(self) -> None:
        """Check what holds at any time."""
        for task in self.cancelled:
            assert self.durable[task].state == "cancelled", self.durable[task]

    def check_end(self) -> None:
        self.budget.clear()
        self.calm_down()
        self.check()
        for task in self.accepted:
            self._check_final(self.durable[task])
        queue, pool = self.dispatch._queue, self.dispatch._pool
        assert not queue.tasks.count, f"kept in memory: {queue.tasks}"
        assert not queue.tasks.ranges
        for node in self.workers:
            assert pool._workers[node].outstanding == 0, f"{node} lost room"

    def _check_final(self, record: TaskRecord) -> None:
        """Check that a task ended as its attempts did."""
        failed = sum(task == record.id for task, _ in self.failed_attempts)
        match record.state:
            case TaskState.COMPLETED:
                assert record.id not in self.cancelled, record
                assert failed <= RETRIES, f"retried too often: {record}"
            case TaskState.FAILED:
                assert record.id not in self.succeeded, record
                assert failed > RETRIES, f"retried too seldom: {record}"
            case TaskState.CANCELLED:
                assert record.id in self.asked_to_cancel, record
            case _:
                raise AssertionError(f"no end: {record}")


class RangeScope(Scope, ArrayDispatcherModel):
    """An array, whose members a worker gets by one range."""

    together: ClassVar[Counter[int]] = Counter()
    """Number of facts about members that succeeded together, by their number."""
    array = ArraySpec(count=MEMBERS)
    retries = RETRIES

    def submit_work(self) -> None:
        self.submit_array(self.array, self.retries)

    def fail_over(self, *, is_held: bool) -> None:
        self.ours.clear()
        super().fail_over(is_held=is_held)

    def _faults(self) -> list[Action]:
        faults = super()._faults()
        for node, linked in self.workers.items():
            is_stopping = linked.stopping & linked.here.keys()
            if len(linked.here) > 1 and not is_stopping:
                faults.append(("together", node))
        return faults

    @property
    def _performers(self) -> dict[str, Callable[..., None]]:
        return super()._performers | {"together": self._succeed_together}

    def _succeed_together(self, node: NodeId) -> None:
        """End all attempts on a worker, which reports them in one message."""
        linked = self.workers[node]
        reports = tuple(Report(*key, TIMED) for key in linked.here)
        linked.here.clear()
        self.succeeded.update(report.task for report in reports)
        self.perform(linked.worker.on_attempts_ended(reports, self.now), node)

    def _write(self, append: Append) -> None:
        facts = (entry.fact for entry in append.entries)
        self.together.update(f.count for f in facts if isinstance(f, MembersSucceeded))
        super()._write(append)

    def _check_final(self, record: TaskRecord) -> None:
        """Check that each member ended as a single task would."""
        progress = record.progress
        assert progress is not None
        cancelled = progress.cancelled if self.asked_to_cancel else 0
        assert progress.completed + cancelled == self.array.count, progress


class FailingRangeScope(RangeScope):
    """An array that is over once one member fails."""

    array = ArraySpec(count=MEMBERS + 1, max_fails=0)
    retries = 0

    def _check_final(self, record: TaskRecord) -> None:
        """Check that nothing is left, and that one failure ended the array."""
        progress = record.progress
        assert progress is not None
        is_cut_off = record.cancelled_by == MAX_FAILS_CANCELLER
        assert is_cut_off == bool(progress.failed), record
        assert progress.failed <= len(self.failed_attempts), progress
        cancelled = progress.cancelled if is_cut_off else 0
        ended = progress.completed + progress.failed + cancelled
        assert ended == self.array.count, progress


class OtherFailureScope(RangeScope):
    """An array whose members fail, the last of them at another node."""

    array = ArraySpec(count=MEMBERS + LIMITS.prefetch + 2, max_fails=1)
    retries = 0

    def _faults(self) -> list[Action]:
        return [*super()._faults(), ("elsewhere",)]

    @property
    def _performers(self) -> dict[str, Callable[..., None]]:
        performers = super()._performers
        performers |= {"finish": self._fail, "elsewhere": self._fail_elsewhere}
        return performers

    def _fail_elsewhere(self) -> None:
        """Let a log that brings the failure arrive; more of that log is to come."""
        arrays = [task for task in self.durable if array_of(task) is None]
        for array in arrays:
            self.overtake(member_id(array, self.array.count - 1), FAILED)

    def check_end(self) -> None:
        self.absorb()
        super().check_end()

    def _check_final(self, record: TaskRecord) -> None:
        """Check that too many failures cut the array off; the model checks when."""
        is_cut_off = record.cancelled_by == MAX_FAILS_CANCELLER
        assert record.progress is not None
        assert is_cut_off == (record.progress.failed > 1), record


RANGE_SCOPES: dict[str, tuple[type[RangeScope], str, Budget]] = {
    "a failure": (RangeScope, "b", {"delay": 1, "fail": 1}),
    "a cancel": (RangeScope, "b", {"delay": 1, "cancel": 1}),
    "a failover": (RangeScope, "b", {"failover": 1, "recover": 1}),
    "reports of two": (RangeScope, "b", {"delay": 1, "together": 1}),
    "a cancel of two": (RangeScope, "b", {"together": 1, "cancel": 1}),
    "too many failures": (
        FailingRangeScope,
        "b",
        {"delay": 1, "together": 1, "fail": 1},
    ),
    "a failure elsewhere": (OtherFailureScope, "b", {"elsewhere": 1}),
}
LARGE_RANGE_SCOPES: dict[str, tuple[type[RangeScope], str, Budget]] = {
    "a cut": (RangeScope, "bc", {"cut": 1, "late": 1}),
    "a failover of two": (
        RangeScope,
        "b",
        {"together": 1, "failover": 1, "recover": 1},
    ),
    "late failures": (FailingRangeScope, "b", {"delay": 1, "together": 1, "fail": 2}),
    "a late failure elsewhere": (OtherFailureScope, "b", {"delay": 1, "elsewhere": 1}),
}
SCOPES: dict[str, tuple[str, Budget]] = {
    "a failure": ("b", {"delay": 2, "fail": 2}),
    "a cancel": ("b", {"delay": 2, "cancel": 1, "fail": 1}),
    "a failover": ("b", {"failover": 1, "recover": 1, "fail": 1}),
    "a failover and a cancel": ("b", {"failover": 1, "recover": 1, "cancel": 1}),
    "a cut": ("bc", {"cut": 1, "late": 1}),
    "a late cut": ("b", {"delay": 1, "cut": 1, "late": 1}),
}
LARGE_SCOPES: dict[str, tuple[str, Budget]] = {
    "late events": ("b", {"delay": 3, "fail": 2, "cancel": 1}),
    "a late failover": ("b", {"delay": 2, "failover": 1, "recover": 1, "fail": 2}),
    "a late failover and a cancel": (
        "b",
        {"delay": 1, "failover": 1, "recover": 1, "cancel": 1},
    ),
    "two failovers": ("b", {"failover": 2, "recover": 2, "fail": 2}),
    "a cut and a failover": ("bc", {"cut": 1, "late": 1, "failover": 1, "recover": 1}),
    "cuts and a cancel": ("bc", {"cut": 2, "cancel": 1, "late": 1}),
}
STATES_MAX = 1_000_000


@pytest.mark.parametrize(
    ("workers", "budget"),
    scopes(SCOPES, LARGE_SCOPES),
)
def test_no_order_of_events_breaks_a_rule(
    workers: str, budget: Budget, record_property: RecordProperty
) -> None:
    """Each scope is explored in full."""
    found = explore(lambda: Scope(workers, budget), states_max=STATES_MAX)

    record_property(EXPLORED, str(found))
    assert not found.failures, found.describe_failures()
    assert found.is_complete


@pytest.mark.parametrize(
    ("scope", "workers", "budget"),
    scopes(RANGE_SCOPES, LARGE_RANGE_SCOPES),
)
def test_no_order_of_events_breaks_a_rule_about_ranges(
    scope: type[RangeScope],
    workers: str,
    budget: Budget,
    record_property: RecordProperty,
) -> None:
    """Each member ends as a single task would, also if several are reported at once."""
    RangeScope.together.clear()
    found = explore(lambda: scope(workers, budget), states_max=STATES_MAX)

    record_property(EXPLORED, f"{found}, reported together {dict(RangeScope.together)}")
    assert not found.failures, found.describe_failures()
    assert found.is_complete
    assert bool(RangeScope.together) == ("together" in budget)


def superseded_attempts_count_as_lost(patch: pytest.MonkeyPatch) -> None:
    """Plant: an attempt for which another one stands speaks against its task."""
    lost = builders.released(EndReason.LOST)
    patch.setattr(task_rules, "superseded_end", lambda _: lost)


def lost_attempts_stay_live(patch: pytest.MonkeyPatch) -> None:
    """Plant: whoever is gone is awaited for ever."""
    patch.setattr(DispatchStep, "lose_attempts", lambda *_: None)


def ended_attempts_may_follow(patch: pytest.MonkeyPatch) -> None:
    """Plant: a worker that comes back goes on with an attempt that counts as lost."""
    patch.setattr(task_rules, "may_follow", lambda *_: True)


@pytest.mark.parametrize(
    ("plant", "scope"),
    [
        (mutants.failures_do_not_count, "a failure"),
        (mutants.merge_prefers_the_later, "a failure"),
        (mutants.results_forgotten_when_sent, "a failover"),
        (mutants.success_of_an_unread_task_counts, "a failover and a cancel"),
        (superseded_attempts_count_as_lost, "a failover"),
        (lost_attempts_stay_live, "a cut"),
        (ended_attempts_may_follow, "a late cut"),
    ],
)
def test_a_planted_bug_is_found(
    plant: mutants.Plant, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the search proves little."""
    workers, budget = SCOPES[scope]
    plant(monkeypatch)

    found = explore(
        lambda: Scope(workers, budget), states_max=STATES_MAX, failures_max=1
    )

    assert found.failures, found


def only_the_first_member_ends(patch: pytest.MonkeyPatch) -> None:
    """Plant: of members that are reported together, one gives its slot back."""
    real = TaskTable.end_members
    patch.setattr(
        TaskTable, "end_members", lambda self, live, at: real(self, live, at[:1])
    )


def members_that_end_keep_their_place(patch: pytest.MonkeyPatch) -> None:
    """Plant: a worker seems to hold a member of a range after its end."""
    patch.setattr(TaskTable, "_drop_live", lambda *_: None)


def members_apart_keep_their_place(patch: pytest.MonkeyPatch) -> None:
    """Plant: the same of members that were asked about one by one."""
    patch.setattr(TaskTable, "release", lambda *_: None)


def failures_of_other_logs_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """Plant: an array's failures are not read again when another log brings some."""
    patch.setattr(ArrayQueue, "has_bounded_failures", lambda *_: False)


def failures_never_end_an_array(patch: pytest.MonkeyPatch) -> None:
    """Plant: `max_fails` is not looked at."""
    patch.setattr(DispatchStep, "_count_member_failure", lambda *_: None)
    patch.setattr(task_rules, "must_cut_off", lambda _: False)


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (members_that_end_keep_their_place, "a failure"),
        (members_apart_keep_their_place, "a cancel"),
        (mutants.results_forgotten_when_sent, "a failover"),
        (only_the_first_member_ends, "reports of two"),
        (only_the_first_member_ends, "a cancel of two"),
        (failures_never_end_an_array, "too many failures"),
        (failures_of_other_logs_do_not_count, "a failure elsewhere"),
    ],
)
def test_a_planted_bug_of_ranges_is_found(
    plant: mutants.Plant, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each scope finds one."""
    scope, workers, budget = RANGE_SCOPES[name]
    plant(monkeypatch)

    found = explore(
        lambda: scope(workers, budget), states_max=STATES_MAX, failures_max=1
    )

    assert found.failures, found
