"""Task records, and the join that merges facts into them in any order.

Task records form a join-semilattice: `join_records` is commutative, associative and
idempotent. So two nodes with the same facts show the same task. The store applies the
join; this module does no I/O.

No entry is ever rolled back: each stream has one writer, so logs cannot conflict.
`Journal.append_remote` in `core.replication.journal` leaves out entries beyond a gap.

Source: docs/explanation/log.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from octaskly.core.log.facts import (
    ATTEMPT_FACTS,
    Assigned,
    Decided,
    Finished,
    Floor,
    Notified,
    Reprioritized,
    StreamFloor,
    Submitted,
    TaskCancelled,
    TaskFact,
    Unblocked,
)
from octaskly.core.log.shown_end import shown_failure
from octaskly.core.model.arrays import ArrayProgress, array_of, array_state
from octaskly.core.model.field_types import Canceller, Count, Millis, Time
from octaskly.core.model.ids import AttemptId, StreamId, TaskId, task_name
from octaskly.core.model.task_options import (
    After,
    End,
    with_stdin_from,
    without_stdin,
)
from octaskly.core.model.tasks import (
    ORD_HLC_MASK,
    Attempt,
    AttemptState,
    EndReason,
    TaskSpec,
    TaskState,
    ord_of,
)

PRESUMED_REASONS: Final = (EndReason.LOST, EndReason.RETURNED)
"""End reasons that a dispatcher presumes, without a report from the worker.

An attempt that only waited on a lost worker counts as returned.
"""
DEPENDENCY_FAILED_PREFIX = "\x1fafter "
"""Prefix of the canceller of a task whose dependency did not end as required.

The subject of a token is printable, so it never has this prefix.
"""

LOST_END_CANCELLER = "\x1flost end"
"""Canceller of a task without stdin whose end no node knows; see `TaskQueue`."""


class TaskRecord(Struct, frozen=True, gc=False, array_like=True):
    """The join of all facts about one task.

    A record without `spec` belongs to a task whose submission has not arrived yet.
    """

    id: TaskId
    spec: TaskSpec | None = None
    cancelled_by: Canceller | None = None
    """Canceller in the last epoch that cancelled it; of several, the smallest name."""
    attempts: Annotated[tuple[Attempt, ...], Meta(max_length=1 << 13)] = ()
    """Ordered by attempt id."""
    occurrence: Count = (
        1  #: number among the tasks of one name, from 1; filled in by the store
    )
    progress: ArrayProgress | None = None  #: of an array; filled in by the store
    is_notified: bool = False  #: its end needs no further notification
    is_unblocked: bool = False  #: its dependencies ended as required
    cancel_term: Count = 0  #: of the last epoch that cancelled the task
    has_succeeded: bool = False  #: a `Decided` says that it completed
    reprioritized: Reprioritized | None = None  #: its last change of priority

    @property
    def ord(self) -> int:
        """Its place in the queue, by its current priority."""
        assert self.spec is not None
        return ord_after(self.spec, self.reprioritized)

    @property
    def name(self) -> str:
        """Name of the task for clients."""
        return task_name(self.id, self.occurrence)

    @property
    def waits_for(self) -> After | None:
        """Its dependencies; None once it was unblocked, attempted or cancelled."""
        options = None if self.spec is None else self.spec.options
        if options is None:  # A shortcut for most tasks.
            return None
        is_over = self.is_unblocked or self.attempts or self.cancelled_by is not None
        return None if is_over else options.after

    @property
    def failed_dependency(self) -> str | None:
        """Name of the dependency whose end cancelled the task, if any."""
        by = self.cancelled_by
        return (
            by.removeprefix(DEPENDENCY_FAILED_PREFIX)
            if by and by.startswith(DEPENDENCY_FAILED_PREFIX)
            else None
        )

    @property
    def deciding_attempt(self) -> Attempt | None:
        """The attempt to show: the one that decided the task, else the last."""
        attempts = self.attempts
        if len(attempts) == 1 and attempts[0].state is AttemptState.OK:
            return attempts[0]  # A shortcut for most tasks.
        state = self.state
        chosen = deciding_of(attempts, state)
        if chosen is None or state is not TaskState.FAILED:
            return chosen
        return shown_failure(self.spec, chosen, attempts)

    @property
    def verdict_term(self) -> int:
        """Last epoch that decided that the task completed or failed; 0: none."""
        return max((a.decided_term for a in self.attempts), default=0)

    @property
    def state(self) -> TaskState:
        """The visible state, a pure function of the set of facts.

        The last epoch with a verdict has the last word on whether the task was
        cancelled, as it has told its clients. Otherwise a success counts, from any
        epoch. An end decides nothing before a dispatcher says so.
        """
        if self.progress is not None and self.spec is not None and self.spec.array:
            return array_state(self.spec.array, self.progress, self.cancelled_by)
        is_cancelled = self.cancelled_by is not None
        attempts = self.attempts
        if not is_cancelled and len(attempts) <= 1 and not self.has_succeeded:
            if not attempts:  # Two shortcuts for most tasks.
                return TaskState.QUEUED
            only = attempts[0]
            return (_DECIDED_STATES if only.decided_term else _OPEN_STATES)[only.state]
        states = {attempt.state for attempt in attempts}
        has_success = AttemptState.OK in states or self.has_succeeded
        term = self.verdict_term
        # Both sides of a split may have one term; then a success counts.
        is_last = self.cancel_term > term or (
            self.cancel_term == term and not (term and has_success)
        )
        if is_cancelled and is_last:
            return TaskState.CANCELLED
        if term:
            return TaskState.COMPLETED if has_success else TaskState.FAILED
        is_busy = has_success or (bool(states) and min(states).is_live)
        return TaskState.RUNNING if is_busy else TaskState.QUEUED


_OPEN_STATES: Final = {
    AttemptState.ASSIGNED: TaskState.RUNNING,
    AttemptState.RUNNING: TaskState.RUNNING,
    AttemptState.RELEASED: TaskState.QUEUED,
    AttemptState.CANCELLED: TaskState.QUEUED,
    AttemptState.FAILED: TaskState.QUEUED,
    AttemptState.OK: TaskState.RUNNING,
}
"""State of a task without a verdict, by its only attempt.

A table, because member look-ups in an enumeration are slow in Python 3.11. A success
waits for its verdict, so the task does not run again.
"""
_DECIDED_STATES: Final = {
    **dict.fromkeys(AttemptState, TaskState.FAILED),
    AttemptState.OK: TaskState.COMPLETED,
}
"""The same for a task that its only attempt decided."""


def record_of(fact: TaskFact) -> TaskRecord:
    """Return the record that follows from `fact` alone."""
    if isinstance(fact, Submitted):  # Every task has one, so test it first.
        return TaskRecord(fact.spec.id, fact.spec)
    match fact:
        case TaskCancelled(task, by, term):
            return TaskRecord(id=task, cancelled_by=by, cancel_term=term)
        case Assigned(task) | Finished(task):
            return TaskRecord(id=task, attempts=(attempt_of(fact),))
        case Decided(task, state, term, attempt, node):
            named = Attempt(attempt, node, decided_term=term)
            has_succeeded = state is TaskState.COMPLETED
            return TaskRecord(task, attempts=(named,), has_succeeded=has_succeeded)
        case Notified(task):
            return TaskRecord(id=task, is_notified=True)
        case Unblocked(task):
            return TaskRecord(id=task, is_unblocked=True)
        case Reprioritized(task=task):
            return TaskRecord(id=task, reprioritized=fact)


def join_records(a: TaskRecord, b: TaskRecord) -> TaskRecord:
    """Return the join of two records of one task."""
    assert a.id == b.id
    cancel_term, cancelled_by = _join_cancels(a, b)
    return TaskRecord(
        id=a.id,
        spec=_join_spec(a.spec, b.spec),
        cancelled_by=cancelled_by,
        attempts=join_attempts(a.attempts, b.attempts),
        occurrence=max(a.occurrence, b.occurrence),
        progress=a.progress or b.progress,
        is_notified=a.is_notified or b.is_notified,
        is_unblocked=a.is_unblocked or b.is_unblocked,
        cancel_term=cancel_term,
        has_succeeded=a.has_succeeded or b.has_succeeded,
        reprioritized=later_priority(a.reprioritized, b.reprioritized),
    )


def deciding_of(attempts: Sequence[Attempt], state: TaskState) -> Attempt | None:
    """Return the attempt that put a task in `state`, else the last one, if any.

    The verdict of the highest term names it: the dispatcher of that epoch has shown it
    to clients. Two halves of a split may have one term; then the smaller id counts.
    """
    candidates: Sequence[Attempt] = ()
    if state is TaskState.COMPLETED:
        candidates = [a for a in attempts if a.state is AttemptState.OK]
    elif state is TaskState.FAILED:
        candidates = [a for a in attempts if a.decided_term]
        failed = [a for a in attempts if a.state is AttemptState.FAILED]
        released = [a for a in attempts if a.state is AttemptState.RELEASED]
        candidates = candidates or failed[-1:] or released[-1:]
    candidates = candidates or attempts[-1:]
    return min(candidates, key=lambda a: (-a.decided_term, a.id), default=None)


def later_priority(
    a: Reprioritized | None, b: Reprioritized | None
) -> Reprioritized | None:
    """Return the later of two changes of a task's priority."""
    return a or b if a is None or b is None else max(a, b)


def ord_after(spec: TaskSpec, change: Reprioritized | None) -> int:
    """Return the place of a task in the queue after a change of its priority."""
    if change is None:
        return spec.ord
    return ord_of(change.priority, spec.ord & ORD_HLC_MASK)


def join_attempts(
    a: tuple[Attempt, ...], b: tuple[Attempt, ...]
) -> tuple[Attempt, ...]:
    """Return the join of what two sets of facts say of the attempts of one task."""
    if not a or not b:
        return a or b
    joined: dict[AttemptId, Attempt] = {attempt.id: attempt for attempt in a}
    for attempt in b:
        mine = joined.get(attempt.id)
        joined[attempt.id] = attempt if mine is None else _more_advanced(mine, attempt)
    return tuple(joined[key] for key in sorted(joined))


def meets_dependency(end: End, state: TaskState) -> bool:
    """Return True if a task with this final state ended as another one waits for."""
    return end == "any" or (end == "success") == (state is TaskState.COMPLETED)


def apply_fact(record: TaskRecord | None, fact: TaskFact) -> TaskRecord:
    """Return `record` with one more fact."""
    if record is None:
        return record_of(fact)
    if not isinstance(fact, ATTEMPT_FACTS):
        return join_records(record, record_of(fact))
    # The two most frequent facts are joined without an intermediate record.
    assert record.id == fact.task
    return with_attempt(record, attempt_of(fact))


def attempt_of(fact: Assigned | Finished) -> Attempt:
    """Return what a fact says of its attempt."""
    if isinstance(fact, Assigned):
        return Attempt(fact.attempt, fact.node)
    outcome = fact.outcome
    return Attempt(fact.attempt, fact.node, outcome.state, outcome, fact.decided_term)


def with_attempt(record: TaskRecord, attempt: Attempt) -> TaskRecord:
    """Return `record` with what is known of one attempt."""
    known = record.attempts
    if not known:
        joined: tuple[Attempt, ...] = (attempt,)
    elif len(known) == 1 and known[0].id == attempt.id:  # The only attempt ended.
        joined = (_more_advanced(known[0], attempt),)
    else:
        joined = join_attempts(known, (attempt,))
    return replace(record, attempts=joined)


def facts_of(record: TaskRecord) -> list[TaskFact]:
    """Return facts from which `record` can be rebuilt, the submission first.

    A member of an array has no submission, because its spec follows from the array.
    """
    facts: list[TaskFact] = []
    if record.spec is not None and array_of(record.id) is None:
        facts.append(Submitted(record.spec))
    if (cancelled := cancel_of(record)) is not None:
        facts.append(cancelled)
    if record.is_unblocked:
        facts.append(Unblocked(record.id))
    if record.reprioritized is not None:
        facts.append(record.reprioritized)
    is_success = record.has_succeeded
    state = TaskState.COMPLETED if is_success else TaskState.FAILED
    for each in record.attempts:
        term = each.decided_term
        if each.outcome is None:
            facts.append(Assigned(record.id, each.id, each.node))
        else:
            facts.append(Finished(record.id, each.id, each.node, each.outcome, term))
        if term and (is_success or each.outcome is None):
            facts.append(Decided(record.id, state, term, each.id, each.node))
    if record.is_notified:
        facts.append(Notified(record.id))
    return facts


def cancel_of(record: TaskRecord) -> TaskCancelled | None:
    """Return the last verdict that a task is cancelled."""
    by = record.cancelled_by
    return None if by is None else TaskCancelled(record.id, by, record.cancel_term)


def with_array_cancelled(record: TaskRecord, by: str | None) -> TaskRecord:
    """Return a member's record after its array was cancelled: cancelled if queued."""
    if by is None or record.state is not TaskState.QUEUED:
        return record
    return replace(record, cancelled_by=by)


class SubmissionTimes(Struct, frozen=True, gc=False, array_like=True, order=True):
    """First and latest submission of a task, to be compared with a floor."""

    first_hlc: Time  #: hybrid timestamp of the first submission above the floor
    last_hlc: Time  #: the same for the latest one, which is entry `seq` of `stream`
    stream: StreamId
    seq: Time


class TaskRow(Struct, frozen=True, gc=False, array_like=True):
    """A row of a snapshot: a task's joined record instead of its entries."""

    record: TaskRecord
    submission_times: SubmissionTimes
    last_change_hlc: Time  #: hybrid timestamp of the latest fact
    age_ms: Millis = 0  #: since the sender stored that fact, by the sender's clock


def join_submission_times(
    a: SubmissionTimes | None, b: SubmissionTimes | None
) -> SubmissionTimes | None:
    """Return the first and the latest submission of both."""
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
    """Return the floor that voids everything that `a` or `b` voids."""
    marks: dict[StreamId, StreamFloor] = {mark.stream: mark for mark in a.stream_floors}
    for mark in b.stream_floors:
        mine = marks.get(mark.stream)
        if mine is None or mine.seq < mark.seq:
            marks[mark.stream] = mark
    return Floor(
        max(a.horizon, b.horizon), tuple(marks[stream] for stream in sorted(marks))
    )


def _join_spec(a: TaskSpec | None, b: TaskSpec | None) -> TaskSpec | None:
    """Keep one spec; two differ only in when each side of a split accepted it.

    One of them may also lack the bytes of stdin, which its node freed after the end.
    The join has the bytes if one spec has them: it knows what either knows. A store
    frees the bytes again if the task has ended.
    """
    if a is None or b is None:
        return a or b
    if a == b:  # To order them by `repr` would take 0.2 s for a large array.
        return a
    first, second = sorted((a, b), key=_spec_order)
    if first.options is None or second.options is None:
        return first
    options = with_stdin_from(first.options, second.options)
    return first if options is first.options else replace(first, options=options)


def _spec_order(spec: TaskSpec) -> tuple[int, int, str]:
    """Return the key by which the smaller of two specs wins, freed or not."""
    options = spec.options
    if options is not None and options.stdin:
        spec = replace(spec, options=without_stdin(options))
    return spec.ord, spec.created_ms, repr(spec)


def _join_cancels(a: TaskRecord, b: TaskRecord) -> tuple[int, str | None]:
    """Return the term and the canceller of the later cancel."""
    if a.cancelled_by is None or b.cancelled_by is None:
        one = b if a.cancelled_by is None else a
        return one.cancel_term, one.cancelled_by
    if a.cancel_term != b.cancel_term:
        return max(
            (a.cancel_term, a.cancelled_by),
            (b.cancel_term, b.cancelled_by),
        )
    return a.cancel_term, min(a.cancelled_by, b.cancelled_by)


def _more_advanced(a: Attempt, b: Attempt) -> Attempt:
    """Return the attempt with the higher state; ties go to the smaller outcome.

    A reported end takes precedence over a presumed one. The node and the term are
    joined separately. They must not decide the tie, as a later join may change them.
    """
    if a.state != b.state:
        winner, other = (a, b) if a.state > b.state else (b, a)
    else:
        winner, other = sorted((a, b), key=_tie_break_key)
    if winner.node <= other.node and winner.decided_term >= other.decided_term:
        return winner
    node, term = min(a.node, b.node), max(a.decided_term, b.decided_term)
    return replace(winner, node=node, decided_term=term)


def _tie_break_key(attempt: Attempt) -> tuple[bool, str]:
    """Return the key by which the smallest of equally advanced attempts wins."""
    outcome = attempt.outcome
    is_presumed = outcome is not None and outcome.reason in PRESUMED_REASONS
    return is_presumed, repr(outcome)
