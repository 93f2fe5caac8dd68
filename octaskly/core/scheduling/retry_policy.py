"""When to try again, as a function of how often it failed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

from octaskly.core.log.merge import SUPPOSED
from octaskly.core.model.backoff import backoff
from octaskly.core.model.ids import AttemptId, Moment, TaskId
from octaskly.core.model.task_options import Retry
from octaskly.core.model.tasks import Attempt, AttemptState, Outcome, Reason, TaskSpec

LOSSES_MAX = 3  #: a task whose worker was lost so often is taken for the cause
LOSS_REST_S = 5.0
"""Before its last try: where many nodes go down together, the next one is not used up
by that. Longer than a dead node may seem alive."""

RETRY_BASE_S = 1.0
RETRY_CAP_S = 300.0
DRAW_BYTES = 7
DEFAULT = Retry()
FAILURES = (Reason.EXIT, Reason.SIGNAL, Reason.TIMEOUT, Reason.LIMIT)
"""Reasons of attempts that failed by themselves."""


@dataclass(frozen=True, slots=True)
class Tries:
    """Attempts at a task that came to nothing, and may be followed by another.

    By name: what is told or read twice counts once.
    """

    failed: frozenset[AttemptId] = frozenset()  #: by themselves
    lost: frozenset[AttemptId] = frozenset()  #: with their workers

    def __or__(self, other: Tries) -> Tries:
        """Return what is known by both; what was taken for lost may have failed."""
        failed = self.failed | other.failed
        return Tries(failed, (self.lost | other.lost) - failed)


NO_TRIES = Tries()


def tries_of(attempts: tuple[Attempt, ...]) -> Tries:
    """Return what the log says of attempts that others followed."""
    tries = NO_TRIES
    for attempt in attempts:
        if attempt.state is AttemptState.RELEASED and attempt.outcome is not None:
            tries = counted(tries, attempt.id, attempt.outcome)
    return tries


def told_of(attempts: tuple[Attempt, ...]) -> tuple[AttemptId, ...]:
    """Return the attempts whose ends the log has from their workers.

    What was supposed of a worker that was away is not told: it may tell more.
    """
    ended = [(a.id, a.outcome) for a in attempts if a.outcome is not None]
    return tuple(name for name, end in ended if end.reason not in SUPPOSED)


def judged(
    spec: TaskSpec, attempt: AttemptId, outcome: Outcome, tries: Tries
) -> Outcome:
    """Return an end as the log shall have it: released if another attempt follows.

    That hangs on the other attempts. One that has failed already is told again, and
    stays what it was.
    """
    state, reason = outcome.state, outcome.reason
    is_loss = state is AttemptState.RELEASED and reason is Reason.LOST
    if not is_loss and (state is not AttemptState.FAILED or reason not in FAILURES):
        return outcome
    rule = _rule(spec)
    if attempt not in tries.failed:
        if is_loss:
            return _judged_loss(rule, outcome, len(tries.lost - {attempt}))
        is_meant = rule.on_failure or outcome.exit_code in rule.codes
        if len(tries.failed) >= rule.retries or not is_meant:
            return outcome
    return replace(outcome, state=AttemptState.RELEASED)


def may_run_twice(spec: TaskSpec) -> bool:
    """Whether an attempt that may have begun can be followed by another."""
    return _rule(spec).on_lost


def counted(tries: Tries, attempt: AttemptId, outcome: Outcome) -> Tries:
    """Return the tries after one more attempt that another follows."""
    if outcome.reason is Reason.LOST:
        return tries | Tries(lost=frozenset((attempt,)))
    if outcome.reason in FAILURES:
        return tries | Tries(failed=frozenset((attempt,)))
    return tries


def rest_s(task: TaskId, failed: int) -> float:
    """Return how long a task waits after its `failed`-th failure, in seconds.

    Full jitter: anywhere between nothing and the doubled wait. The draw comes from
    the name of the task, so that a replay repeats it; tasks that failed together do
    not come back together. Source: Marc Brooker, "Exponential backoff and jitter".
    """
    digest = blake2b(f"{task}:{failed}".encode(), digest_size=DRAW_BYTES).digest()
    draw = int.from_bytes(digest, "big") / (1 << 8 * DRAW_BYTES)
    return draw * backoff(failed, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)


def loss(now: Moment) -> Outcome:
    """Return the outcome of an attempt whose end nobody will report."""
    return Outcome(
        state=AttemptState.RELEASED, reason=Reason.LOST, ended_ms=now.wall_ms
    )


def _judged_loss(rule: Retry, outcome: Outcome, others: int) -> Outcome:
    if not rule.on_lost:
        lost = outcome.detail or "its worker was lost"
        detail = f"{lost}, and it asked not to be run twice"
        return replace(outcome, state=AttemptState.FAILED, detail=detail)
    if others + 1 < LOSSES_MAX:
        return outcome
    detail = f"its worker or launcher was lost {others + 1} times while it ran"
    return replace(
        outcome, state=AttemptState.FAILED, reason=Reason.POISON, detail=detail
    )


def _rule(spec: TaskSpec) -> Retry:
    options = spec.options
    return DEFAULT if options is None or options.retry is None else options.retry
