"""Rules of a task's life: what a dispatcher decides about a task, from its facts.

These are pure functions. `core.log.merge` turns facts into the state of a task, and
these functions turn them into the next verdict or try. Other modules of the dispatcher
find the facts and carry out the decisions.

Source: docs/explanation/retries.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b
from operator import attrgetter

from msgspec.structs import replace

from octaskly.core.log.facts import Decided, TaskCancelled, Unblocked
from octaskly.core.log.merge import (
    DEPENDENCY_FAILED_PREFIX,
    LOST_END_CANCELLER,
    TaskRecord,
    cancel_of,
    deciding_of,
    join_attempts,
)
from octaskly.core.model.arrays import (
    FORCED_PREFIX,
    MAX_FAILS_CANCELLER,
    has_too_many_failures,
)
from octaskly.core.model.ids import (
    AttemptId,
    Moment,
    NodeId,
    TaskId,
    is_visitor,
    task_name,
)
from octaskly.core.model.task_options import Retry
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.model.timer_heap import backoff

LOSSES_MAX = 3  #: after this many lost workers, the task is presumed to be the cause
LOSS_BACKOFF_S = 5.0
"""Delay before the last try after losses.

Without it, nodes that fail together could use up all tries. It exceeds the longest time
for which a dead node seems alive.
"""

ROOM_WAIT_S = 10.0
"""Delay for each refusal so far, before a node without room for a task is asked again.

Refusals are in the record for good. With 100 full nodes it has 7200 after a month; the
most that a node reads are 8192.
"""
RETRY_BASE_S = 1.0
RETRY_CAP_S = 300.0
DRAW_BYTES = 7
DEFAULT_RETRY = Retry()

# --- Ends of attempts.


def verdict_of(spec: TaskSpec, attempts: Sequence[Attempt]) -> TaskState | None:
    """Return how the attempts at a task end it; None if another one may follow.

    While one runs, no failure ends the task: a late log may bring more failures than
    the task may have, and the attempt that runs may still succeed.

    Args:
        spec: The task.
        attempts: All known attempts, with how they ended.
    """
    if any(attempt.state is AttemptState.OK for attempt in attempts):
        return TaskState.COMPLETED
    if any(attempt.state.is_live for attempt in attempts):
        return None
    rule = retry_policy(spec)
    failed = [a.outcome for a in attempts if a.state is AttemptState.FAILED]
    lost = sum(_counts_as_loss(rule, attempt) for attempt in attempts)
    is_over = (
        len(failed) > rule.retries
        or not all(_is_retried(rule, outcome) for outcome in failed)
        or lost >= (LOSSES_MAX if rule.on_lost else 1)
    )
    return TaskState.FAILED if is_over else None


def decides(end: Attempt, record: TaskRecord, final: TaskState | None) -> bool:
    """Return True if the end of an attempt decides its task.

    Args:
        end: The attempt with its end.
        record: The task before that end.
        final: The final state of the task so far. A success also counts after a
            failure, and after a cancel in no epoch.
    """
    if record.spec is None:
        return False
    is_success = end.state is AttemptState.OK
    if final is None and not is_success:
        attempts = join_attempts(record.attempts, (end,))
        return verdict_of(record.spec, attempts) is not None
    if final is TaskState.CANCELLED and record.cancel_term:
        return False
    return is_success and final is not TaskState.COMPLETED


def next_verdict(record: TaskRecord, term: int) -> Decided | TaskCancelled | None:
    """Return the verdict that the dispatcher of epoch `term` has to write, if any.

    Ends that were recorded before the log was read are decided now. A verdict of an
    earlier epoch is repeated: another one, of an epoch between the two, could come
    later and change what clients have seen.
    """
    if record.spec is None or record.progress is not None:
        return None  # The state of an array follows from its members.
    state = record.state
    if not state.is_final:
        verdict = verdict_of(record.spec, record.attempts)
        return None if verdict is None else verdict_fact(record, verdict, term)
    if state is TaskState.CANCELLED:
        has_success = any(a.state is AttemptState.OK for a in record.attempts)
        if has_success and not record.cancel_term:
            return verdict_fact(record, TaskState.COMPLETED, term)
        return repeated_cancel(cancel_of(record), term)
    is_own = record.verdict_term >= term
    return None if is_own else verdict_fact(record, state, term)


def verdict_fact(record: TaskRecord, state: TaskState, term: int) -> Decided:
    """Return the verdict of epoch `term`, with the attempt that is to be shown."""
    deciding = deciding_of(record.attempts, state)
    assert deciding is not None, "a task without attempts has no end to decide"
    return Decided(record.id, state, term, deciding.id, deciding.node)


def repeated_cancel(cancel: TaskCancelled | None, term: int) -> TaskCancelled | None:
    """Return a cancel of an earlier epoch as one of epoch `term`.

    A cancel in no epoch is not repeated, as any success counts more: the task's end was
    given up, or the cancel is that of its array.
    """
    is_earlier = cancel is not None and 0 < cancel.term < term
    return replace(cancel, term=term) if cancel and is_earlier else None


def _counts_as_loss(rule: Retry, attempt: Attempt) -> bool:
    """Return True if an attempt was lost, and that speaks against the task.

    A visitor may leave at any time, so its loss only counts if the attempt must not be
    repeated. After `VISITOR_RETURNS_MAX` of these, the task goes to no visitor.
    """
    outcome = attempt.outcome
    if outcome is None or attempt.state is not AttemptState.RELEASED:
        return False
    is_excused = rule.on_lost and is_visitor(attempt.node)
    return outcome.reason is EndReason.LOST and not is_excused


def presumed_end(spec: TaskSpec, now: Moment, *, has_begun: bool = True) -> Outcome:
    """Return the end of an attempt whose worker is gone.

    One that only waited there counts as returned. A task that must not run twice is an
    exception, because the worker may have begun it since.
    """
    is_returned = not has_begun and spec.may_run_twice
    return _released(EndReason.RETURNED if is_returned else EndReason.LOST, now)


def superseded_end(now: Moment) -> Outcome:
    """Return the end of a live attempt for which another one stands.

    A loss would end a task that must not run twice, so it counts as returned.
    """
    return _released(EndReason.RETURNED, now)


def may_follow(attempt: AttemptId, known: Sequence[Attempt]) -> bool:
    """Return True if `attempt`, which a worker lists, is the try after the known ones.

    An earlier one, or one that has ended, does not count: no end is undone, so the task
    would be shown as waiting while it runs.
    """
    return all(each.id < attempt for each in known)


# --- The next try.


def retry_policy(spec: TaskSpec) -> Retry:
    """Return the retry policy that a task has or gets by default."""
    options = spec.options
    return DEFAULT_RETRY if options is None or options.retry is None else options.retry


def wait_s(task: TaskId, attempts: Sequence[Attempt], ended: Outcome) -> float | None:
    """Return the seconds to wait before the next try; None if it may follow at once."""
    if ended.state is AttemptState.FAILED:
        failed = sum(each.state is AttemptState.FAILED for each in attempts)
        return retry_delay_s(task, failed)
    losses = sum(_counts_as_loss(DEFAULT_RETRY, attempt) for attempt in attempts)
    is_last = losses == LOSSES_MAX - 1
    backs_off = ended.reason is EndReason.LOST and is_last
    return LOSS_BACKOFF_S if backs_off else None


def retry_delay_s(task: TaskId, failed: int) -> float:
    """Return the seconds to wait after a task's `failed`-th failure.

    Full jitter: the delay is a fraction of the doubled wait, so tasks that failed
    together do not retry together. The fraction is a hash of the task id, so a replay
    repeats it. Source: Marc Brooker, "Exponential backoff and jitter".
    """
    digest = blake2b(f"{task}:{failed}".encode(), digest_size=DRAW_BYTES).digest()
    draw = int.from_bytes(digest, "big") / (1 << 8 * DRAW_BYTES)
    return draw * backoff(failed, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)


def after_refusals(
    record: TaskRecord, workers: Collection[NodeId], term: int
) -> Decided | float:
    """Return the verdict on a task that all `workers` refused, or the seconds to wait.

    It fails if each lacks an input, because that would be so for ever. Else it waits
    until other tasks have ended and left room, and all workers are asked again.
    """
    refusals = {a.node: a for a in record.attempts if a.node in workers and a.outcome}
    reasons = {a.outcome.reason for a in refusals.values() if a.outcome}
    if reasons != {EndReason.INPUTS}:
        all_reasons = [a.outcome.reason for a in record.attempts if a.outcome]
        return ROOM_WAIT_S * max(1, all_reasons.count(EndReason.ROOM))
    last = max(refusals.values(), key=attrgetter("id"))
    return Decided(record.id, TaskState.FAILED, term, last.id, last.node)


def _released(reason: EndReason, now: Moment) -> Outcome:
    return Outcome(state=AttemptState.RELEASED, reason=reason, ended_ms=now.wall_ms)


def _is_retried(rule: Retry, outcome: Outcome | None) -> bool:
    return rule.on_failure or (outcome is not None and outcome.exit_code in rule.codes)


# --- Cancels.


def may_cancel(state: TaskState, *, has_begun: bool, force: bool) -> bool:
    """Return True if a request may cancel a task: what runs only with `force`."""
    if state is TaskState.RUNNING:
        return force or not has_begun
    return not state.is_final


def cancel_array(
    array: TaskRecord, by: str, term: int, *, force: bool
) -> TaskCancelled | None:
    """Return the cancel of an array that a request asks for; None if it may not.

    It is about the members that have not begun; with `force`, about those that run,
    too.
    """
    progress = array.progress
    if progress is None or array.state.is_final or not (progress.queued or force):
        return None
    return TaskCancelled(array.id, f"{FORCED_PREFIX}{by}" if force else by, term)


def cancel_member(
    member: TaskId, array_cancelled_by: str, term: int
) -> TaskCancelled | None:
    """Return the cancel of a member on a worker, whose array was cancelled.

    None if it may go on, unless its worker has not begun it. Members on no worker have
    no cancel of their own.
    """
    by = array_cancelled_by.removeprefix(FORCED_PREFIX)
    return None if by == array_cancelled_by else TaskCancelled(member, by, term)


def cut_off(array: TaskId, term: int) -> TaskCancelled:
    """Return the cancel of an array with too many failed members."""
    return TaskCancelled(array, MAX_FAILS_CANCELLER, term)


def give_up_end(task: TaskId) -> TaskCancelled:
    """Return the cancel of a task that ended elsewhere, and no node knows how.

    In no epoch: a success counts more, whichever epoch decides by it.
    """
    return TaskCancelled(task, LOST_END_CANCELLER)


def must_cut_off(array: TaskRecord) -> bool:
    """Return True if the rest of an array is to be cancelled: too many failed."""
    spec, progress = array.spec, array.progress
    if spec is None or spec.array is None or progress is None:
        return False
    is_open = bool(progress.queued or progress.running) and array.cancelled_by is None
    return is_open and has_too_many_failures(spec.array, progress.failed)


# --- Dependencies.


def unblock(
    task: TaskId, failed_dependency: TaskId | None, term: int
) -> Unblocked | TaskCancelled:
    """Return what becomes of a task once its dependencies have ended.

    Args:
        task: The task, which waits for others.
        failed_dependency: One that did not end as required; None if all did.
        term: Of the epoch that decides it.
    """
    if failed_dependency is None:
        return Unblocked(task)
    by = f"{DEPENDENCY_FAILED_PREFIX}{task_name(failed_dependency)}"
    return TaskCancelled(task, by, term)
