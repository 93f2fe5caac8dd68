"""The retry policy: backoff, its cap, and the number of attempts."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import Retry, TaskOptions
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
)
from octaskly.core.model.timer_heap import backoff
from octaskly.core.scheduling.retry_policy import (
    LOSSES_MAX,
    NO_TRIES,
    RETRY_CAP_S,
    Tries,
    add_try,
    apply_retry_policy,
    lost_outcome,
    retry_delay_s,
    tries_of,
)
from octaskly.mesh import wire
from tests.support.builders import attempt, moment, node_id, outcome


def test_the_wait_doubles_until_the_cap() -> None:
    """The first wait is the base, and no wait is above the cap."""
    waits = [backoff(n, base_s=0.2, cap_s=5.0) for n in range(1, 8)]

    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_million_failures_do_not_overflow() -> None:
    """A node that fails for weeks still gets a number."""
    assert backoff(1_000_000, base_s=0.2, cap_s=5.0) == 5.0


@pytest.mark.parametrize("failures", [0, -1])
def test_failures_count_from_one(failures: int) -> None:
    """Backoff before the first failure is a mistake of the caller."""
    with pytest.raises(ValueError, match="counts from 1"):
        backoff(failures, base_s=1.0, cap_s=2.0)


def task(**rule: object) -> TaskSpec:
    """Return a task with this retry policy."""
    options = TaskOptions(retry=Retry(**rule))  # type: ignore[arg-type]
    return TaskSpec(id=TaskId("t"), command="true", options=options)


def failed(exit_code: int = 1, reason: EndReason = EndReason.EXIT) -> Outcome:
    """Return the end of a failed attempt."""
    return Outcome(state=AttemptState.FAILED, reason=reason, exit_code=exit_code)


def is_last(spec: TaskSpec, end: Outcome, tries: Tries = NO_TRIES) -> bool:
    """Return True if no attempt follows."""
    return (
        apply_retry_policy(spec, attempt(9), end, tries).state
        is not AttemptState.RELEASED
    )


def tries(*, failed: int = 0, lost: int = 0) -> Tries:
    """Return the record of a task with this many failed attempts, one by one."""
    names = [attempt(n) for n in range(1, failed + lost + 1)]
    return Tries(frozenset(names[:failed]), frozenset(names[failed:]))


def test_a_task_without_a_retry_policy_fails_at_once() -> None:
    """A failure alone is no reason to repeat a command."""
    assert is_last(TaskSpec(id=TaskId("t"), command="false"), failed())


@pytest.mark.parametrize(
    "reason", [EndReason.EXIT, EndReason.SIGNAL, EndReason.TIMEOUT, EndReason.LIMIT]
)
def test_a_failure_is_retried_as_often_as_requested(reason: EndReason) -> None:
    """Its code, reason and output stay on record."""
    end = failed(7, reason)
    again = apply_retry_policy(task(retries=2), attempt(2), end, tries(failed=1))

    assert (again.state, again.exit_code, again.reason) == (
        *(AttemptState.RELEASED, 7, reason),
    )
    assert is_last(task(retries=2), end, tries(failed=2))


@pytest.mark.parametrize("reason", [EndReason.INPUTS, EndReason.POISON, EndReason.LOST])
def test_a_failure_that_no_retry_can_fix_is_final(reason: EndReason) -> None:
    """These reasons follow from earlier attempts."""
    assert is_last(task(retries=9), failed(reason=reason))


def test_success_and_cancel_are_final() -> None:
    """Whatever the policy."""
    for state in (AttemptState.OK, AttemptState.CANCELLED):
        assert is_last(task(retries=9), outcome(state))


def test_only_the_listed_exit_codes_are_retried() -> None:
    """Other codes report that a retry is useless."""
    rule = task(retries=3, on_failure=False, codes=(11, 75))

    assert [code for code in (1, 11, 75, 124) if not is_last(rule, failed(code))] == [
        *(11, 75),
    ]


def test_a_task_with_lost_workers_is_retried_a_bounded_number_of_times() -> None:
    """Three workers lost while it ran are no accident."""
    spec = TaskSpec(id=TaskId("t"), command="halt -f")
    before = NO_TRIES
    for n in range(1, LOSSES_MAX):
        assert not is_last(spec, lost_outcome(moment()), before)
        before = add_try(before, attempt(n), lost_outcome(moment()))

    end = apply_retry_policy(spec, attempt(LOSSES_MAX), lost_outcome(moment()), before)

    assert (end.state, end.reason) == (AttemptState.FAILED, EndReason.POISON)
    assert "3 times" in end.detail


def test_an_at_most_once_task_reports_its_loss() -> None:
    """Its worker may live on, if the task killed only the launcher there."""
    rule = TaskOptions(retry=Retry(on_lost=False))
    spec = TaskSpec(id=TaskId("t"), command="kill -9 $PPID", options=rule)
    lost = lost_outcome(moment())

    worker = apply_retry_policy(spec, attempt(), lost, NO_TRIES)
    lost = replace(lost, detail="its launcher died")
    launcher = apply_retry_policy(spec, attempt(), lost, NO_TRIES)

    assert worker.detail == "its worker was lost, and it must not run twice"
    assert launcher.detail == "its launcher died, and it must not run twice"


def test_a_long_detail_is_cut_to_a_readable_entry() -> None:
    """A broken worker may report as much as a message holds."""
    lost = replace(lost_outcome(moment()), detail="x" * (1 << 20))

    end = apply_retry_policy(task(on_lost=False), attempt(), lost, NO_TRIES)

    packer = wire.WirePacker()
    assert packer.unpack(packer.pack(end), Outcome) == end


def test_an_at_most_once_task_is_lost_with_its_worker() -> None:
    """It may have done its work."""
    end = apply_retry_policy(
        task(on_lost=False), attempt(), lost_outcome(moment()), NO_TRIES
    )

    assert (end.state, end.reason) == (AttemptState.FAILED, EndReason.LOST)


def test_the_log_contains_the_number_of_failures() -> None:
    """So the next dispatcher continues the count."""
    ends = [
        failed(),
        lost_outcome(moment()),
        outcome(AttemptState.RELEASED, EndReason.DRAINING),
        failed(reason=EndReason.TIMEOUT),
    ]
    attempts = tuple(
        Attempt(
            id=attempt(n),
            node=node_id("b"),
            state=AttemptState.RELEASED,
            outcome=apply_retry_policy(task(retries=9), attempt(n), end, NO_TRIES),
        )
        for n, end in enumerate(ends, 1)
    )

    failures = frozenset((attempt(1), attempt(4)))
    assert tries_of(attempts) == Tries(failures, lost=frozenset((attempt(2),)))


def test_a_repeated_failure_counts_once() -> None:
    """The other attempts decide, as before."""
    known = tries(failed=2)

    again = apply_retry_policy(task(retries=2), attempt(2), failed(), known)

    assert again.state is AttemptState.RELEASED
    assert add_try(known, attempt(2), failed()) == known


def test_a_lost_attempt_that_failed_after_all_is_no_loss() -> None:
    """The order of the two facts does not matter."""
    failure = add_try(NO_TRIES, attempt(), failed())
    lost = add_try(NO_TRIES, attempt(), lost_outcome(moment()))

    assert failure | lost == lost | failure == failure


def test_tasks_that_failed_together_are_retried_at_different_times() -> None:
    """Each waits its own time, below the doubled wait; a replay repeats it."""
    waits = [retry_delay_s(TaskId(f"t{n}"), 4) for n in range(200)]

    assert all(0 <= wait_s < 8 for wait_s in waits)
    assert len(set(waits)) == len(waits)
    assert min(waits) < 2
    assert max(waits) > 6
    assert waits == [retry_delay_s(TaskId(f"t{n}"), 4) for n in range(200)]
    assert retry_delay_s(TaskId("t"), 10_000) < RETRY_CAP_S
