"""Joining facts is commutative, associative and idempotent."""

from __future__ import annotations

from functools import reduce
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from octaskly.core.log.facts import (
    Assigned,
    Decided,
    Finished,
    Notified,
    Reprioritized,
    Submitted,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import (
    PRESUMED_REASONS,
    TaskRecord,
    apply_fact,
    join_records,
    record_of,
)
from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.model.task_options import TaskOptions, without_stdin
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskState
from tests.support.builders import node_id, spec

TASK = TaskId("t")

attempts = st.builds(
    AttemptId,
    st.integers(1, 2),
    st.sampled_from([StreamId(7), StreamId(8)]),
    st.integers(1, 2),
)
nodes = st.sampled_from([node_id("a"), node_id("b")])
outcomes = st.builds(
    Outcome,
    state=st.sampled_from(list(AttemptState)[2:]),
    reason=st.sampled_from([EndReason.EXIT, EndReason.SIGNAL, EndReason.LOST]),
    exit_code=st.none() | st.integers(0, 2),
)
terms = st.integers(1, 3)
verdicts = st.sampled_from([TaskState.COMPLETED, TaskState.FAILED])
WITH_STDIN = TaskOptions(stdin=b"x" * 9)
specs = st.builds(
    lambda ord_, options: replace(spec("t", ord=ord_), options=options),
    st.integers(1, 2),
    st.sampled_from([WITH_STDIN, without_stdin(WITH_STDIN)]),
)
facts: st.SearchStrategy[TaskFact] = st.one_of(
    st.builds(Submitted, specs),
    st.builds(TaskCancelled, st.just(TASK), st.sampled_from(["x", "y"]), terms),
    st.builds(Notified, st.just(TASK)),
    st.builds(Assigned, st.just(TASK), attempts, nodes),
    st.builds(Finished, st.just(TASK), attempts, nodes, outcomes, st.just(0) | terms),
    st.builds(Decided, st.just(TASK), verdicts, terms),
)
records = st.lists(facts, min_size=1, max_size=5).map(
    lambda some: reduce(join_records, map(record_of, some))
)


changes = st.builds(
    Reprioritized, st.just(TASK), terms, st.integers(1, 3), st.integers(-1, 1)
)


@given(st.lists(changes | facts, min_size=1, max_size=6), st.randoms())
def test_the_latest_change_of_a_priority_counts_in_any_order(
    some: list[TaskFact], random: Random
) -> None:
    """That of the highest term, then the latest; repeated facts change nothing."""
    mixed = [*some, *some]
    random.shuffle(mixed)

    joined = reduce(apply_fact, mixed, record_of(mixed[0]))

    known = [fact for fact in some if isinstance(fact, Reprioritized)]
    assert joined.reprioritized == max(known, default=None)
    assert joined == reduce(join_records, map(record_of, some))


@given(records, records)
def test_the_order_of_two_sides_does_not_matter(a: TaskRecord, b: TaskRecord) -> None:
    """Both halves of a split get the same task."""
    assert join_records(a, b) == join_records(b, a)


@given(records, records, records)
def test_the_grouping_of_three_sides_does_not_matter(
    a: TaskRecord, b: TaskRecord, c: TaskRecord
) -> None:
    """The order of meetings does not change the result."""
    assert join_records(join_records(a, b), c) == join_records(a, join_records(b, c))


@given(records)
def test_merging_a_fact_twice_changes_nothing(a: TaskRecord) -> None:
    """A repeated PULL is harmless."""
    assert join_records(a, a) == a


@given(st.lists(facts, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_facts_give_the_same_task_in_any_order_and_repeated(
    some: list[TaskFact], rng: object
) -> None:
    """The view of the store depends on the set of facts alone."""
    mixed = some + some[: len(some) // 2]
    rng.shuffle(mixed)  # type: ignore[attr-defined]

    assert reduce(apply_fact, some, None) == reduce(apply_fact, mixed, None)


@given(
    attempts,
    st.sampled_from([EndReason.EXIT, EndReason.SIGNAL, EndReason.DRAINING]),
    st.sampled_from(list(AttemptState)[2:]),
    st.sampled_from(PRESUMED_REASONS),
)
def test_observed_end_overrides_a_supposed_one(
    attempt: AttemptId, reason: EndReason, state: AttemptState, supposed: EndReason
) -> None:
    """A worker that comes back knows better, and its attempt's output counts."""
    seen, lost = (
        Finished(TASK, attempt, node_id("a"), Outcome(state=state, reason=each))
        for each in (reason, supposed)
    )

    assert join_records(record_of(lost), record_of(seen)) == record_of(seen)


@given(st.lists(facts, min_size=1, max_size=8), facts)
def test_only_a_later_epoch_revokes_a_success(
    some: list[TaskFact], more: TaskFact
) -> None:
    """It cancelled the task without knowing of the success, and has said so."""
    before = reduce(apply_fact, some, None)
    assert before is not None
    if before.state is not TaskState.COMPLETED:
        return

    after = apply_fact(before, more)

    if isinstance(more, TaskCancelled) and more.term > before.verdict_term:
        assert after.state is TaskState.CANCELLED
    else:
        assert after.state is TaskState.COMPLETED


@given(st.lists(facts, min_size=1, max_size=8), facts)
def test_only_a_verdict_of_a_later_epoch_revokes_a_cancel(
    some: list[TaskFact], more: TaskFact
) -> None:
    """Or of the same one, after a split; an end alone never does."""
    before = reduce(apply_fact, some, None)
    assert before is not None
    if before.state is not TaskState.CANCELLED:
        return

    after = apply_fact(before, more)

    if after.state is not TaskState.CANCELLED:
        term = more.term if isinstance(more, Decided) else 0
        term = more.decided_term if isinstance(more, Finished) else term
        assert before.cancel_term <= max(term, before.verdict_term)


@given(st.lists(facts, min_size=1, max_size=8), facts)
def test_final_task_stays_final(some: list[TaskFact], more: TaskFact) -> None:
    """No later fact puts an ended task back into the queue."""
    before = reduce(apply_fact, some, None)
    assert before is not None

    if before.state.is_final:
        assert apply_fact(before, more).state.is_final
