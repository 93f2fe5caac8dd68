"""The state of a task and the rules of its life, checked in full for small scopes.

First all sets of facts, in every order and split. Then all lives of one task: its
attempts end in all ways, dispatchers die, and their unreplicated writes come back later
in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, reduce
from itertools import combinations

import msgspec
import pytest

from octaskly.core.dispatcher import task_rules
from octaskly.core.dispatcher.task_rules import LOSSES_MAX
from octaskly.core.log.facts import (
    Assigned,
    Decided,
    Finished,
    Submitted,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import TaskRecord, apply_fact, join_records
from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.model.task_options import Retry, TaskOptions
from octaskly.core.model.tasks import (
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from tests.support.builders import moment, node_id, outcome, released, spec
from tests.support.exploration import EXPLORED, RecordProperty

T = TaskId("t")
A, B = node_id("a"), node_id("b")
OK, FAILED = outcome(), outcome(AttemptState.FAILED)
KILLED = outcome(AttemptState.CANCELLED, EndReason.CANCELLED)
SPLIT_MAX = 5  #: facts in sets whose splits are all tried


def name(term: int, n: int) -> AttemptId:
    """Return the id of an attempt of an epoch."""
    return AttemptId(term, StreamId(term), n, n)


def task(retry: Retry) -> TaskSpec:
    """Return the task, with a retry policy."""
    return msgspec.structs.replace(spec(), options=TaskOptions(retry=retry))


FACTS: tuple[TaskFact, ...] = (
    Submitted(task(Retry(retries=1))),
    # Two nodes claim the first attempt. It ends twice, and was presumed lost before.
    Assigned(T, name(1, 1), A),
    Assigned(T, name(1, 1), B),
    Finished(T, name(1, 1), A, released(EndReason.LOST), 1),
    Finished(T, name(1, 1), A, OK),
    Finished(T, name(1, 1), B, OK, 2),
    Finished(T, name(2, 2), B, FAILED),
    Finished(T, name(2, 2), B, FAILED, 3),
    TaskCancelled(T, "x", 1),
    TaskCancelled(T, "x", 2),
    TaskCancelled(T, "x", 3),
    Decided(T, TaskState.COMPLETED, 1, name(1, 1), A),
    Decided(T, TaskState.FAILED, 2, name(2, 2), B),
)


def expected_state(facts: tuple[TaskFact, ...]) -> TaskState:
    """Return the state by the rule as guarantee G4 says it, from scratch."""
    cancels, others = {0}, {0}
    begun, ended = set(), set()
    successes: set[object] = set()
    for fact in facts:
        match fact:
            case Assigned(_, attempt):
                begun.add(attempt)
            case Finished(_, attempt, _, end, term):
                ended.add(attempt)
                others.add(term)
                successes |= {attempt} if end.state is AttemptState.OK else set()
            case Decided(_, state, term):
                others.add(term)
                successes |= {T} if state is TaskState.COMPLETED else set()
            case TaskCancelled(_, _, term):
                cancels.add(term)
            case _:
                pass
    if max(cancels) > max(others) or (
        max(cancels) == max(others) > 0 >= len(successes)
    ):
        return TaskState.CANCELLED
    if max(others):
        return TaskState.COMPLETED if successes else TaskState.FAILED
    return TaskState.RUNNING if begun - ended or successes else TaskState.QUEUED


def test_facts_in_every_order_and_split_give_the_state_that_is_promised(
    record_property: RecordProperty,
) -> None:
    """Each order of a set ends with some fact, after an order of the others."""
    records: dict[frozenset[TaskFact], TaskRecord] = {}
    splits = 0
    for size in range(1, len(FACTS) + 1):
        for some in combinations(FACTS, size):
            whole = frozenset(some)
            orders = {
                repr(apply_fact(records.get(whole - {last}), last)): last
                for last in some
            }
            assert len(orders) == 1, orders
            records[whole] = found = apply_fact(records.get(whole - {some[0]}), some[0])
            assert found.state is expected_state(some), found
            for part in proper_parts(some) if size <= SPLIT_MAX else ():
                splits += 1
                joined = join_records(records[part], records[whole - part])
                assert joined == found, (part, found)
    text = f"{len(records)} sets of facts in every order, {splits} splits"
    record_property(EXPLORED, text)


def proper_parts(some: tuple[TaskFact, ...]) -> Iterator[frozenset[TaskFact]]:
    """Yield the subsets that leave something."""
    for size in range(1, len(some)):
        yield from map(frozenset, combinations(some, size))


@cache
def record_of(facts: frozenset[TaskFact], retry: Retry) -> TaskRecord:
    """Return the record of the task with these facts."""
    first: TaskRecord | None = apply_fact(None, Submitted(task(retry)))
    record = reduce(apply_fact, facts, first)
    assert record is not None
    return record


Budget = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Life:
    """One task, its dispatcher, and a worker, at one moment."""

    retry: Retry
    budget: Budget
    facts: frozenset[TaskFact] = frozenset()  #: on the disk of the dispatcher
    fresh: frozenset[TaskFact] = frozenset()  #: of these, what no standby has
    gone: tuple[frozenset[TaskFact], ...] = ()
    """Facts that only the disks of dead dispatchers have, by epoch."""
    term: int = 1
    is_read: bool = False
    running: frozenset[AttemptId] = frozenset()
    away: frozenset[AttemptId] = frozenset()  #: on a worker that is lost
    kept: frozenset[tuple[AttemptId, Outcome]] = frozenset()  #: unacknowledged
    shown: TaskState | None = None  #: what a client was told last

    @property
    def record(self) -> TaskRecord:
        """The task as the facts on the dispatcher's disk define it."""
        return record_of(self.facts, self.retry)

    def has_left(self, kind: str) -> bool:
        """Return True if a fault may happen once more."""
        return dict(self.budget).get(kind, 0) > 0

    def spend(self, kind: str) -> Life:
        """Return the same life with one fault less to come."""
        budget = tuple((k, n - (k == kind)) for k, n in self.budget)
        return replace(self, budget=budget)

    @property
    def may_decide(self) -> bool:
        """Return True if the verdict on an end may be written with it."""
        return self.is_read and not self.record.state.is_final

    # --- What a dispatcher does.

    def write(self, *facts: TaskFact) -> Life:
        """Write facts, and then the verdicts that they ask for."""
        new = frozenset(facts) - self.facts
        life = replace(self, facts=self.facts | new, fresh=self.fresh | new)
        return life.decide() if self.is_read else life

    def decide(self) -> Life:
        """Write the verdict that the facts ask for, if any."""
        verdict = task_rules.next_verdict(self.record, self.term)
        return self if verdict is None else self.write(verdict)

    def record_end(self, attempt: AttemptId, end: Outcome) -> Life:
        """Write an end, with the verdict if the task has been read and is open."""
        bare = Finished(T, attempt, A, end)
        record, term = record_of(self.facts | {bare}, self.retry), 0
        if self.may_decide:
            assert record.spec is not None
            verdict = task_rules.verdict_of(record.spec, record.attempts)
            term = self.term if verdict else 0
        return self.write(Finished(T, attempt, A, end, term))

    def next_lives(self) -> Iterator[tuple[str, Life]]:
        """Yield what may happen next."""
        yield from self._dispatcher_moves()
        yield from self._worker_moves()
        yield from self._faults()

    def _dispatcher_moves(self) -> Iterator[tuple[str, Life]]:
        record, state = self.record, self.record.state
        if not self.is_read:
            yield "read", replace(self, is_read=True).decide()
        if self.fresh:
            yield "replicate", replace(self, fresh=frozenset())
        live = [a.id for a in record.attempts if a.state.is_live]
        if self.is_read and state is TaskState.QUEUED:
            yield "assign", self._assign()
        for attempt in live if self.is_read else ():
            if attempt in self.away:
                end = task_rules.presumed_end(task(self.retry), moment())
                yield "give up", self.record_end(attempt, end)
        yield from self._reports()
        is_safe = self.is_read and not self.fresh
        if is_safe and state.is_final and state is not self.shown:
            yield "show", self._show(state)
        for attempt in self.running if state.is_final and self.is_read else ():
            yield "kill", self._end(attempt, KILLED)

    def _reports(self) -> Iterator[tuple[str, Life]]:
        for attempt, end in self.kept:
            recorded = {f for f in self.facts if is_end(f, attempt, end)}
            if not recorded:
                yield "report", self.record_end(attempt, end)
            elif recorded - self.fresh:
                kept = self.kept - {(attempt, end)}
                yield "acknowledge", replace(self, kept=kept)

    def _assign(self) -> Life:
        failed = [a for a in self.record.attempts if a.state is AttemptState.FAILED]
        ends = [a.outcome for a in self.record.attempts]
        lost = [end for end in ends if end and end.reason is EndReason.LOST]
        assert len(failed) <= self.retry.retries, "retried too often"
        assert len(lost) < LOSSES_MAX, "lost too often"
        assert self.retry.on_lost or not lost, "runs twice"
        attempt = name(self.term, len(self.record.attempts) + 1)
        # An assignment is durable: the explorer of the dispatcher loses those, too.
        life = replace(self, facts=self.facts | {Assigned(T, attempt, A)})
        return replace(life, running=self.running | {attempt})

    def _show(self, state: TaskState) -> Life:
        """Tell a client; a success may replace a failure that it was told."""
        is_late_success = (self.shown, state) == (
            TaskState.FAILED,
            TaskState.COMPLETED,
        )
        is_allowed = self.shown is None or is_late_success
        assert is_allowed, f"shown {self.shown}, then {state}"
        return replace(self, shown=state)

    def _worker_moves(self) -> Iterator[tuple[str, Life]]:
        for attempt in self.running:
            yield "succeed", self._end(attempt, OK)
            if self.has_left("fail"):
                yield "fail", self.spend("fail")._end(attempt, FAILED)
            if self.has_left("lose"):
                running = self.running - {attempt}
                life = replace(self, running=running, away=self.away | {attempt})
                yield "lose", life.spend("lose")
        for attempt in self.away if self.has_left("return") else ():
            life = replace(self, away=self.away - {attempt}).spend("return")
            yield "return", replace(life, kept=self.kept | {(attempt, OK)})

    def _end(self, attempt: AttemptId, end: Outcome) -> Life:
        kept = self.kept | {(attempt, end)}
        return replace(self, running=self.running - {attempt}, kept=kept)

    def _faults(self) -> Iterator[tuple[str, Life]]:
        if self.has_left("failover"):
            life = replace(
                self.spend("failover"),
                facts=self.facts - self.fresh,
                fresh=frozenset(),
                gone=(*self.gone, self.fresh) if self.fresh else self.gone,
                term=self.term + 1,
                is_read=False,
            )
            yield "failover", life
        for part in self.gone:
            rest = tuple(other for other in self.gone if other is not part)
            life = replace(self, gone=rest, facts=self.facts | part)
            yield "regain", life.decide() if self.is_read else life
        state = self.record.state
        if self.has_left("cancel") and self.is_read and not state.is_final:
            assert task_rules.may_cancel(state, has_begun=True, force=True)
            cancel = TaskCancelled(T, "x", self.term)
            yield "cancel", self.spend("cancel").write(cancel)

    def check_end(self) -> None:
        """Check a life in which only faults could happen."""
        assert self.record.state.is_final, f"no end: {self.record}"
        assert not self.running, "an attempt was forgotten"
        assert not self.kept, "an end was never acknowledged"


def is_end(fact: TaskFact, attempt: AttemptId, end: Outcome) -> bool:
    """Return True if the fact records this end."""
    return isinstance(fact, Finished) and (fact.attempt, fact.outcome) == (attempt, end)


FAULTS = ("fail", "lose", "return", "failover", "regain", "cancel")


def explore_lives(first: Life) -> tuple[int, int]:
    """Visit all lives; return how many moments and how many ends there are."""
    record_of.cache_clear()
    seen, pending, ends = {first}, [first], 0
    while pending:
        life = pending.pop()
        nexts = list(life.next_lives())
        if all(kind in FAULTS for kind, _ in nexts):
            ends += 1
            life.check_end()
        for _, following in nexts:
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return len(seen), ends


RETRIED, ONCE = Retry(retries=1), Retry(on_lost=False)
SCOPES: dict[str, Life] = {
    "failures": Life(RETRIED, (("cancel", 1), ("fail", 2), ("failover", 2))),
    "failovers": Life(Retry(), (("cancel", 1), ("failover", 3))),
    "losses": Life(Retry(), (("lose", LOSSES_MAX), ("return", 1))),
    "a loss and a failover": Life(
        RETRIED, (("failover", 1), ("fail", 1), ("lose", 1), ("return", 1))
    ),
    "at most once": Life(
        ONCE, (("cancel", 1), ("failover", 1), ("lose", 1), ("return", 1))
    ),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_no_life_of_a_task_breaks_a_rule(
    scope: str, record_property: RecordProperty
) -> None:
    """All orders of events and faults."""
    moments, ends = explore_lives(SCOPES[scope])

    record_property(EXPLORED, f"{moments} moments, {ends} ends")


def failures_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """Plant: a failed task is retried without limit."""
    real = task_rules.verdict_of
    patch.setattr(
        task_rules, "verdict_of", lambda spec, attempts: real(spec, attempts[-1:])
    )


def losses_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """Plant: a lost attempt is always followed by another."""
    patch.setattr(task_rules, "_counts_as_loss", lambda *_: False)


def early_ends_stay_undecided(patch: pytest.MonkeyPatch) -> None:
    """Plant: what was recorded before the log was read is never decided."""
    real = task_rules.next_verdict

    def forgetful(record: TaskRecord, term: int) -> object:
        return real(record, term) if record.state.is_final else None

    patch.setattr(task_rules, "next_verdict", forgetful)


def early_successes_count(patch: pytest.MonkeyPatch) -> None:
    """Plant: a success counts before the log was read."""
    patch.setattr(Life, "may_decide", True)


def verdicts_are_not_repeated(patch: pytest.MonkeyPatch) -> None:
    """Plant: a dispatcher shows the verdict of an earlier epoch."""
    real = task_rules.next_verdict

    def trusting(record: TaskRecord, term: int) -> object:
        return None if record.state.is_final else real(record, term)

    patch.setattr(task_rules, "next_verdict", trusting)


def cancels_are_not_repeated(patch: pytest.MonkeyPatch) -> None:
    """Plant: the same for cancels alone."""
    patch.setattr(task_rules, "repeated_cancel", lambda *_: None)


def any_success_counts(patch: pytest.MonkeyPatch) -> None:
    """Plant: the fold prefers a success to a later cancel."""
    real = TaskRecord.__dict__["state"].fget

    def state(record: TaskRecord) -> TaskState:
        has_success = any(a.state is AttemptState.OK for a in record.attempts)
        found: TaskState = TaskState.COMPLETED if has_success else real(record)
        return found

    patch.setattr(TaskRecord, "state", property(state))


def any_cancel_counts(patch: pytest.MonkeyPatch) -> None:
    """Plant: the fold prefers a cancel to a later verdict."""
    real = TaskRecord.__dict__["state"].fget

    def state(record: TaskRecord) -> TaskState:
        found: TaskState = TaskState.CANCELLED if record.cancelled_by else real(record)
        return found

    patch.setattr(TaskRecord, "state", property(state))


@pytest.mark.parametrize(
    ("plant", "scope"),
    [
        (failures_do_not_count, "failures"),
        (losses_do_not_count, "losses"),
        (losses_do_not_count, "at most once"),
        (early_ends_stay_undecided, "failures"),
        (early_successes_count, "failovers"),
        (verdicts_are_not_repeated, "failovers"),
        (cancels_are_not_repeated, "failovers"),
        (any_success_counts, "failures"),
        (any_cancel_counts, "failovers"),
    ],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    scope: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the search proves little."""
    plant(monkeypatch)

    with pytest.raises(AssertionError):
        explore_lives(SCOPES[scope])
