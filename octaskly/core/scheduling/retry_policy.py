"""Retry policy: which attempts are followed by another, and after which delay."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from msgspec.structs import replace

from octaskly.core.log.merge import PRESUMED_REASONS
from octaskly.core.model.ids import AttemptId, Moment, TaskId
from octaskly.core.model.task_options import Retry
from octaskly.core.model.tasks import (
    DETAIL_CHARS_MAX,
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
)
from octaskly.core.model.timer_heap import backoff

LOSSES_MAX = 3  #: after this many lost workers, the task is presumed to be the cause
LOSS_BACKOFF_S = 5.0
"""Delay before the last try after losses.

Without it, nodes that fail together could use up all tries. It exceeds the longest time
for which a dead node seems alive.
"""

RETRY_BASE_S = 1.0
RETRY_CAP_S = 300.0
DRAW_BYTES = 7
DEFAULT_RETRY = Retry()
FAILURE_REASONS = (EndReason.EXIT, EndReason.SIGNAL, EndReason.TIMEOUT, EndReason.LIMIT)
"""End reasons for which the task itself is responsible."""


@dataclass(frozen=True, slots=True)
class Tries:
    """Attempts of a task that failed or were lost and may be followed by another.

    They are sets of ids, so a repeated report or read counts once.
    """

    failed: frozenset[AttemptId] = frozenset()
    lost: frozenset[AttemptId] = frozenset()  #: with their workers

    def __or__(self, other: Tries) -> Tries:
        """Return the union; an attempt presumed lost counts as failed if it failed."""
        failed = self.failed | other.failed
        return Tries(failed, (self.lost | other.lost) - failed)


NO_TRIES = Tries()


def tries_of(attempts: tuple[Attempt, ...]) -> Tries:
    """Return the tries that the log shows: attempts that were released."""
    tries = NO_TRIES
    for attempt in attempts:
        if attempt.state is AttemptState.RELEASED and attempt.outcome is not None:
            tries = add_try(tries, attempt.id, attempt.outcome)
    return tries


def reported_attempts(attempts: tuple[Attempt, ...]) -> tuple[AttemptId, ...]:
    """Return the attempts whose ends were reported by their workers.

    Presumed ends of absent workers are left out, because a report may still come.
    """
    ended = [(a.id, a.outcome) for a in attempts if a.outcome is not None]
    return tuple(name for name, end in ended if end.reason not in PRESUMED_REASONS)


def apply_retry_policy(
    spec: TaskSpec, attempt: AttemptId, outcome: Outcome, tries: Tries
) -> Outcome:
    """Return the outcome for the log: RELEASED if another attempt follows.

    This depends on the earlier tries. An attempt already among the failed tries is a
    repeated report, so its outcome stays RELEASED.
    """
    state, reason = outcome.state, outcome.reason
    is_loss = state is AttemptState.RELEASED and reason is EndReason.LOST
    if not is_loss and (
        state is not AttemptState.FAILED or reason not in FAILURE_REASONS
    ):
        return outcome
    rule = _retry_policy(spec)
    if attempt not in tries.failed:
        if is_loss:
            return _apply_loss_policy(rule, outcome, len(tries.lost - {attempt}))
        is_retried = rule.on_failure or outcome.exit_code in rule.codes
        if len(tries.failed) >= rule.retries or not is_retried:
            return outcome
    return replace(outcome, state=AttemptState.RELEASED)


def may_rerun_if_lost(spec: TaskSpec) -> bool:
    """Return True if an attempt that may have started can be followed by another."""
    return _retry_policy(spec).on_lost


def add_try(tries: Tries, attempt: AttemptId, outcome: Outcome) -> Tries:
    """Return `tries` with one more released attempt."""
    if outcome.reason is EndReason.LOST:
        return tries | Tries(lost=frozenset((attempt,)))
    if outcome.reason in FAILURE_REASONS:
        return tries | Tries(failed=frozenset((attempt,)))
    return tries


def retry_delay_s(task: TaskId, failed: int) -> float:
    """Return the seconds to wait after a task's `failed`-th failure.

    Full jitter: the delay is a fraction of the doubled wait, so tasks that failed
    together do not retry together. The fraction is a hash of the task id, so a replay
    repeats it. Source: Marc Brooker, "Exponential backoff and jitter".
    """
    digest = blake2b(f"{task}:{failed}".encode(), digest_size=DRAW_BYTES).digest()
    draw = int.from_bytes(digest, "big") / (1 << 8 * DRAW_BYTES)
    return draw * backoff(failed, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)


def lost_outcome(now: Moment) -> Outcome:
    """Return the outcome of an attempt whose end no worker will report."""
    return Outcome(
        state=AttemptState.RELEASED, reason=EndReason.LOST, ended_ms=now.wall_ms
    )


def _apply_loss_policy(rule: Retry, outcome: Outcome, others: int) -> Outcome:
    if not rule.on_lost:
        lost = outcome.detail[:DETAIL_CHARS_MAX] or "its worker was lost"
        detail = f"{lost}, and it must not run twice"
        return replace(outcome, state=AttemptState.FAILED, detail=detail)
    if others + 1 < LOSSES_MAX:
        return outcome
    detail = f"its worker or launcher was lost {others + 1} times while it ran"
    return replace(
        outcome, state=AttemptState.FAILED, reason=EndReason.POISON, detail=detail
    )


def _retry_policy(spec: TaskSpec) -> Retry:
    options = spec.options
    return DEFAULT_RETRY if options is None or options.retry is None else options.retry
