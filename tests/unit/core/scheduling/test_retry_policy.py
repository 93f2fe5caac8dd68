"""Backoff doubles and is capped; what is tried again, and how often."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.model.backoff import backoff
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import Retry, TaskOptions
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
)
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


def test_a_million_failures_are_no_overflow() -> None:
    """A node that fails for weeks still gets a number."""
    assert backoff(1_000_000, base_s=0.2, cap_s=5.0) == 5.0


@pytest.mark.parametrize("failures", [0, -1])
def test_failures_count_from_one(failures: int) -> None:
    """Backoff before the first failure is a mistake of the caller."""
    with pytest.raises(ValueError, match="counts from 1"):
        backoff(failures, base_s=1.0, cap_s=2.0)


def task(**rule: object) -> TaskSpec:
    """Return a task with this rule."""
    options = TaskOptions(retry=Retry(**rule))  # type: ignore[arg-type]
    return TaskSpec(id=TaskId("t"), command="true", options=options)


def failed(exit_code: int = 1, reason: EndReason = EndReason.EXIT) -> Outcome:
    """Return the end of an attempt that failed."""
    return Outcome(state=AttemptState.FAILED, reason=reason, exit_code=exit_code)


def is_last(spec: TaskSpec, end: Outcome, tries: Tries = NO_TRIES) -> bool:
    """Whether no attempt follows."""
    return (
        apply_retry_policy(spec, attempt(9), end, tries).state
        is not AttemptState.RELEASED
    )


def tries(*, failed: int = 0, lost: int = 0) -> Tries:
    """Return what is known where so many attempts came to nothing, one by one."""
    names = [attempt(n) for n in range(1, failed + lost + 1)]
    return Tries(frozenset(names[:failed]), frozenset(names[failed:]))


def test_a_task_that_asks_for_nothing_fails_at_once() -> None:
    """A command is not repeated because it failed."""
    assert is_last(TaskSpec(id=TaskId("t"), command="false"), failed())


@pytest.mark.parametrize(
    "reason", [EndReason.EXIT, EndReason.SIGNAL, EndReason.TIMEOUT, EndReason.LIMIT]
)
def test_a_failure_is_tried_again_as_often_as_asked(reason: EndReason) -> None:
    """Its code, reason and output stay on record."""
    end = failed(7, reason)
    again = apply_retry_policy(task(retries=2), attempt(2), end, tries(failed=1))

    assert (again.state, again.exit_code, again.reason) == (
        *(AttemptState.RELEASED, 7, reason),
    )
    assert is_last(task(retries=2), end, tries(failed=2))


@pytest.mark.parametrize("reason", [EndReason.INPUTS, EndReason.POISON, EndReason.LOST])
def test_what_another_attempt_cannot_mend_is_final(reason: EndReason) -> None:
    """It was decided by what became of earlier ones."""
    assert is_last(task(retries=9), failed(reason=reason))


def test_success_and_cancel_are_final() -> None:
    """Whatever the rule."""
    for state in (AttemptState.OK, AttemptState.CANCELLED):
        assert is_last(task(retries=9), outcome(state))


def test_only_the_named_codes_are_tried_again() -> None:
    """The others say that it makes no sense."""
    rule = task(retries=3, on_failure=False, codes=(11, 75))

    assert [code for code in (1, 11, 75, 124) if not is_last(rule, failed(code))] == [
        *(11, 75),
    ]


def test_a_task_whose_worker_was_lost_runs_again_but_not_for_ever() -> None:
    """Three workers lost while it ran are no accident."""
    spec = TaskSpec(id=TaskId("t"), command="halt -f")
    before = NO_TRIES
    for n in range(1, LOSSES_MAX):
        assert not is_last(spec, lost_outcome(moment()), before)
        before = add_try(before, attempt(n), lost_outcome(moment()))

    end = apply_retry_policy(spec, attempt(LOSSES_MAX), lost_outcome(moment()), before)

    assert (end.state, end.reason) == (AttemptState.FAILED, EndReason.POISON)
    assert "3 times" in end.detail


def test_a_task_that_wants_no_second_run_tells_what_it_lost() -> None:
    """Its worker may be well, where the task took down the launcher there alone."""
    rule = TaskOptions(retry=Retry(on_lost=False))
    spec = TaskSpec(id=TaskId("t"), command="kill -9 $PPID", options=rule)
    lost = lost_outcome(moment())

    worker = apply_retry_policy(spec, attempt(), lost, NO_TRIES)
    lost = replace(lost, detail="its launcher died")
    launcher = apply_retry_policy(spec, attempt(), lost, NO_TRIES)

    assert worker.detail == "its worker was lost, and it asked not to be run twice"
    assert launcher.detail == "its launcher died, and it asked not to be run twice"


def test_a_detail_without_end_becomes_no_entry_that_nobody_can_read() -> None:
    """A broken worker reports as much as a message may have."""
    lost = replace(lost_outcome(moment()), detail="x" * (1 << 20))

    end = apply_retry_policy(task(on_lost=False), attempt(), lost, NO_TRIES)

    packer = wire.WirePacker()
    assert packer.unpack(packer.pack(end), Outcome) == end


def test_a_task_that_must_not_run_twice_is_lost_with_its_worker() -> None:
    """It may have done its work."""
    end = apply_retry_policy(
        task(on_lost=False), attempt(), lost_outcome(moment()), NO_TRIES
    )

    assert (end.state, end.reason) == (AttemptState.FAILED, EndReason.LOST)


def test_the_log_tells_how_often_it_was_tried() -> None:
    """So the next dispatcher counts on."""
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


def test_an_attempt_that_is_told_twice_counts_once() -> None:
    """It is judged as it was, by the others."""
    known = tries(failed=2)

    again = apply_retry_policy(task(retries=2), attempt(2), failed(), known)

    assert again.state is AttemptState.RELEASED
    assert add_try(known, attempt(2), failed()) == known


def test_what_was_taken_for_lost_and_failed_after_all_is_no_loss() -> None:
    """In whatever order the two are known."""
    failure = add_try(NO_TRIES, attempt(), failed())
    lost = add_try(NO_TRIES, attempt(), lost_outcome(moment()))

    assert failure | lost == lost | failure == failure


def test_tasks_that_failed_together_do_not_come_back_together() -> None:
    """Each waits its own time, below the doubled wait; a replay repeats it."""
    waits = [retry_delay_s(TaskId(f"t{n}"), 4) for n in range(200)]

    assert all(0 <= wait_s < 8 for wait_s in waits)
    assert len(set(waits)) == len(waits)
    assert min(waits) < 2
    assert max(waits) > 6
    assert waits == [retry_delay_s(TaskId(f"t{n}"), 4) for n in range(200)]
    assert retry_delay_s(TaskId("t"), 10_000) < RETRY_CAP_S
