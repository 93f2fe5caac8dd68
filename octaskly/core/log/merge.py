"""Task records as a join-semilattice: the order in which facts arrive never matters.

`join_records` is commutative, associative and idempotent, so any two nodes that hold the same
facts show the same task. The store applies it; nothing here touches a disk.

Source: docs/explanation/log.md.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from octaskly.core.log.facts import (
    Assigned,
    Finished,
    Floor,
    Notified,
    StreamFloor,
    Submitted,
    TaskCancelled,
    TaskFact,
    Unblocked,
)
from octaskly.core.model.arrays import (
    ArrayProgress,
    array_state,
    has_too_many_failures,
    split_member_id,
)
from octaskly.core.model.field_types import Canceller, Count, Time
from octaskly.core.model.ids import AttemptId, StreamId, TaskId, task_name
from octaskly.core.model.task_options import After
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    TaskSpec,
    TaskState,
)

PRESUMED_REASONS: Final = (EndReason.LOST, EndReason.POISON, EndReason.RETURNED)
"""How a dispatcher says that attempts ended of which it will hear no more, it thinks.

What was only waiting on a worker that is gone counts as returned.
"""
DEPENDENCY_FAILED_PREFIX = "\x1fafter "
"""Begins who cancelled a task, where one before it ended otherwise.

No subject of a token begins so: they are printable.
"""


class TaskRecord(Struct, frozen=True, array_like=True):
    """Everything the log says of one task, joined.

    A record without `spec` belongs to a task whose submission has not arrived yet.
    """

    id: TaskId
    spec: TaskSpec | None = None
    cancelled_by: Canceller | None = None  #: smallest subject that cancelled, if any
    attempts: Annotated[tuple[Attempt, ...], Meta(max_length=1 << 13)] = ()
    """Ordered by attempt id."""
    occurrence: Count = (
        1  #: place among the tasks of one name, where the store was asked
    )
    progress: ArrayProgress | None = None  #: of an array, where the store was asked
    is_notified: bool = False  #: nobody needs to be told of its end any more
    is_unblocked: bool = False  #: what it came after has ended

    @property
    def name(self) -> str:
        """What clients call it."""
        return task_name(self.id, self.occurrence)

    @property
    def waits_for(self) -> After | None:
        """The tasks that it waits for; an attempt shows that it need not any more."""
        options = None if self.spec is None else self.spec.options
        if options is None:  # As most have none.
            return None
        is_over = self.is_unblocked or self.attempts or self.cancelled_by is not None
        return None if is_over else options.after

    @property
    def has_too_many_failures(self) -> bool:
        """Whether it is an array whose rest is to be cancelled, as too many failed."""
        array = None if self.spec is None else self.spec.array
        if array is None or self.progress is None:
            return False
        return has_too_many_failures(array, self.progress, self.cancelled_by)

    @property
    def failed_dependency(self) -> str | None:
        """The task before it whose end cancelled it, as clients call that one."""
        by = self.cancelled_by
        return (
            by.removeprefix(DEPENDENCY_FAILED_PREFIX)
            if by and by.startswith(DEPENDENCY_FAILED_PREFIX)
            else None
        )

    @property
    def deciding_attempt(self) -> Attempt | None:
        """The attempt that decides: the first success, or failure, or else the last."""
        if len(self.attempts) == 1:  # As mostly.
            return self.attempts[0]
        for attempt in self.attempts:
            if attempt.state is AttemptState.OK:
                return attempt
        ended = [a for a in self.attempts if a.state is AttemptState.FAILED]
        if ended and not self.cancelled_by:
            return ended[0]
        return self.attempts[-1] if self.attempts else None

    @property
    def state(self) -> TaskState:
        """The visible state, a pure function of the facts."""
        if self.progress is not None and self.spec is not None and self.spec.array:
            return array_state(self.spec.array, self.progress, self.cancelled_by)
        if not self.attempts:
            is_cancelled = self.cancelled_by is not None
            return TaskState.CANCELLED if is_cancelled else TaskState.QUEUED
        if len(self.attempts) == 1:  # As mostly; then by identity, which is faster.
            return _single_attempt_state(self.attempts[0].state, self.cancelled_by)
        states = [attempt.state for attempt in self.attempts]
        if AttemptState.OK in states:
            return TaskState.COMPLETED
        if self.cancelled_by is not None:
            return TaskState.CANCELLED
        if AttemptState.FAILED in states:
            return TaskState.FAILED
        if min(states).is_live:
            return TaskState.RUNNING
        return TaskState.QUEUED


def _single_attempt_state(attempt: AttemptState, cancelled_by: str | None) -> TaskState:
    """Return what `TaskRecord.state` says of a task with one attempt."""
    state = _STATE_BY_ATTEMPT[attempt]
    is_cancelled = cancelled_by is not None and state is not _COMPLETED
    return TaskState.CANCELLED if is_cancelled else state


_COMPLETED: Final = TaskState.COMPLETED
_STATE_BY_ATTEMPT: Final = {
    AttemptState.ASSIGNED: TaskState.RUNNING,
    AttemptState.RUNNING: TaskState.RUNNING,
    AttemptState.RELEASED: TaskState.QUEUED,
    AttemptState.CANCELLED: TaskState.QUEUED,
    AttemptState.FAILED: TaskState.FAILED,
    AttemptState.OK: TaskState.COMPLETED,
}
"""A table, since Python 3.11 is slow to find the members of an enumeration."""


def record_of(fact: TaskFact) -> TaskRecord:
    """Return the record of a task about which only `fact` is known."""
    if isinstance(fact, Submitted):  # Of each task, so it comes first.
        return TaskRecord(fact.spec.id, fact.spec)
    match fact:
        case TaskCancelled(task, by):
            return TaskRecord(id=task, cancelled_by=by)
        case Assigned(task, attempt, node):
            return TaskRecord(id=task, attempts=(Attempt(id=attempt, node=node),))
        case Finished(task, attempt, node, outcome):
            ended = Attempt(id=attempt, node=node, state=outcome.state, outcome=outcome)
            return TaskRecord(id=task, attempts=(ended,))
        case Notified(task):
            return TaskRecord(id=task, is_notified=True)
        case Unblocked(task):
            return TaskRecord(id=task, is_unblocked=True)


def join_records(a: TaskRecord, b: TaskRecord) -> TaskRecord:
    """Return what is known when both `a` and `b` are; both have one task id."""
    assert a.id == b.id
    return TaskRecord(
        id=a.id,
        spec=_join_spec(a.spec, b.spec),
        cancelled_by=_min_if_any(a.cancelled_by, b.cancelled_by),
        attempts=_join_attempts(a.attempts, b.attempts),
        occurrence=max(a.occurrence, b.occurrence),
        progress=a.progress or b.progress,
        is_notified=a.is_notified or b.is_notified,
        is_unblocked=a.is_unblocked or b.is_unblocked,
    )


def apply_fact(record: TaskRecord | None, fact: TaskFact) -> TaskRecord:
    """Return `record` with one more fact."""
    if record is None:
        return record_of(fact)
    # For these two as `join` does, without a record in between: most are of this kind.
    if isinstance(fact, Finished):
        outcome = fact.outcome
        attempt = Attempt(fact.attempt, fact.node, outcome.state, outcome)
    elif isinstance(fact, Assigned):
        attempt = Attempt(fact.attempt, fact.node)
    else:
        return join_records(record, record_of(fact))
    assert record.id == fact.task
    return TaskRecord(
        record.id,
        record.spec,
        record.cancelled_by,
        _join_attempts(record.attempts, (attempt,)),
        record.occurrence,
        record.progress,
        record.is_notified,
        record.is_unblocked,
    )


def facts_of(record: TaskRecord) -> list[TaskFact]:
    """Return facts that say everything of a task again, its envelope first.

    That of a member of an array is never said: it follows from the array.
    """
    facts: list[TaskFact] = []
    if record.spec is not None and split_member_id(record.id) is None:
        facts.append(Submitted(record.spec))
    if record.cancelled_by is not None:
        facts.append(TaskCancelled(record.id, record.cancelled_by))
    if record.is_unblocked:
        facts.append(Unblocked(record.id))
    for attempt in record.attempts:
        if attempt.outcome is None:
            facts.append(Assigned(record.id, attempt.id, attempt.node))
        else:
            facts.append(Finished(record.id, attempt.id, attempt.node, attempt.outcome))
    if record.is_notified:
        facts.append(Notified(record.id))
    return facts


def with_array_cancelled(record: TaskRecord, by: str | None) -> TaskRecord:
    """Return a member as it is shown where its array was cancelled, if it waits."""
    if by is None or record.state is not TaskState.QUEUED:
        return record
    return replace(record, cancelled_by=by)


class SubmissionTimes(Struct, frozen=True, array_like=True, order=True):
    """When a task was submitted, and where last: what a floor is compared with."""

    first_hlc: Time  #: hybrid timestamp of the first submission that counts
    last_hlc: Time  #: of the latest one, which is entry `seq` of `stream`
    stream: StreamId
    seq: Time


class TaskRow(Struct, frozen=True, array_like=True):
    """A task as one node gives it to another instead of the entries about it."""

    record: TaskRecord
    submission_times: SubmissionTimes
    last_change_hlc: Time  #: hybrid timestamp of the latest fact


def join_submission_times(
    a: SubmissionTimes | None, b: SubmissionTimes | None
) -> SubmissionTimes | None:
    """Return the first and the latest of all submissions."""
    if a is None or b is None:
        return a or b
    latest = max(
        a,
        b,
        key=lambda submission_times: (
            submission_times.last_hlc,
            submission_times.stream,
            submission_times.seq,
        ),
    )
    return replace(latest, first_hlc=min(a.first_hlc, b.first_hlc))


def join_floors(a: Floor, b: Floor) -> Floor:
    """Return what is void by either floor; a mark only ever rises."""
    marks: dict[StreamId, StreamFloor] = {mark.stream: mark for mark in a.stream_floors}
    for mark in b.stream_floors:
        mine = marks.get(mark.stream)
        if mine is None or mine.seq < mark.seq:
            marks[mark.stream] = mark
    return Floor(
        max(a.horizon, b.horizon), tuple(marks[stream] for stream in sorted(marks))
    )


def _join_spec(a: TaskSpec | None, b: TaskSpec | None) -> TaskSpec | None:
    """Keep one envelope; two differ only in when each side of a split accepted it."""
    if a is None or b is None:
        return a or b
    if a is b:  # What is told again, of which a text would be made to compare it.
        return a
    return min(a, b, key=lambda spec: (spec.ord, spec.created_ms, repr(spec)))


def _min_if_any(a: str | None, b: str | None) -> str | None:
    if a is None or b is None:
        return a if b is None else b
    return min(a, b)


def _join_attempts(
    a: tuple[Attempt, ...], b: tuple[Attempt, ...]
) -> tuple[Attempt, ...]:
    if not a or not b:
        return a or b
    if len(a) == len(b) == 1 and a[0].id == b[0].id:  # The only attempt ended.
        return (_more_advanced(a[0], b[0]),)
    joined: dict[AttemptId, Attempt] = {attempt.id: attempt for attempt in a}
    for attempt in b:
        mine = joined.get(attempt.id)
        joined[attempt.id] = attempt if mine is None else _more_advanced(mine, attempt)
    return tuple(joined[key] for key in sorted(joined))


def _more_advanced(a: Attempt, b: Attempt) -> Attempt:
    """Return the attempt that has come further; ties fall to the smaller outcome.

    An end that was seen counts more than one that was supposed, as nobody heard of the
    attempt. The node is joined apart: it must not decide, as what is joined later may
    change it.
    """
    if a.state != b.state:
        winner = a if a.state > b.state else b
    else:
        winner = min(a, b, key=_tie_break_key)
    node = min(a.node, b.node)
    return winner if winner.node == node else replace(winner, node=node)


def _tie_break_key(attempt: Attempt) -> tuple[bool, str]:
    """Return what the smallest of counts, of attempts that have come equally far."""
    outcome = attempt.outcome
    is_presumed = outcome is not None and outcome.reason in PRESUMED_REASONS
    return is_presumed, repr(outcome)
