"""The rules of a task's life: retries, losses, verdicts and their repetition."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.task_rules import (
    LOSS_BACKOFF_S,
    LOSSES_MAX,
    RETRY_CAP_S,
    ROOM_WAIT_S,
    after_refusals,
    may_cancel,
    may_follow,
    must_cut_off,
    next_verdict,
    presumed_end,
    retry_delay_s,
    superseded_end,
    unblock,
    verdict_of,
    wait_s,
)
from octaskly.core.log.facts import Decided, TaskCancelled, Unblocked
from octaskly.core.log.merge import (
    DEPENDENCY_FAILED_PREFIX,
    LOST_END_CANCELLER,
    TaskRecord,
)
from octaskly.core.model.arrays import ArrayProgress
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec, Retry, TaskOptions
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.model.timer_heap import backoff
from tests.support.builders import attempt, moment, node_id, outcome, released

T = TaskId("t")
LOST = released(EndReason.LOST)


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


def ended(*ends: Outcome) -> tuple[Attempt, ...]:
    """Return attempts with these ends."""
    return tuple(
        Attempt(attempt(n), node_id("b"), end.state, end)
        for n, end in enumerate(ends, 1)
    )


def test_a_task_without_a_retry_policy_fails_at_once() -> None:
    """A failure alone is no reason to repeat a command."""
    plain = TaskSpec(id=T, command="false")

    assert verdict_of(plain, ended(failed())) is TaskState.FAILED


@pytest.mark.parametrize(
    "reason", [EndReason.EXIT, EndReason.SIGNAL, EndReason.TIMEOUT, EndReason.LIMIT]
)
def test_a_failure_is_retried_as_often_as_requested(reason: EndReason) -> None:
    """Whatever the reason of the failures."""
    end = failed(7, reason)

    assert verdict_of(task(retries=2), ended(end, end)) is None
    assert verdict_of(task(retries=2), ended(end, end, end)) is TaskState.FAILED


@pytest.mark.parametrize("end", [outcome(), failed(), LOST])
def test_a_success_counts_whatever_else_is_known(end: Outcome) -> None:
    """It may be the end of any attempt."""
    assert verdict_of(task(), ended(end, outcome(), end)) is TaskState.COMPLETED


@pytest.mark.parametrize(
    "reason",
    [EndReason.RETURNED, EndReason.DRAINING, EndReason.STALE, EndReason.INPUTS],
)
def test_an_attempt_that_did_not_run_is_always_followed(reason: EndReason) -> None:
    """The task had no part in that."""
    ends = [released(reason)] * 9

    assert verdict_of(task(on_lost=False), ended(*ends)) is None


@pytest.mark.parametrize(
    ("on_b", "on_c", "follows"),
    [
        ((EndReason.INPUTS,), EndReason.INPUTS, TaskState.FAILED),
        ((EndReason.ROOM,), EndReason.INPUTS, ROOM_WAIT_S),
        ((EndReason.ROOM, EndReason.ROOM), EndReason.ROOM, 3 * ROOM_WAIT_S),
        ((EndReason.INPUTS,), EndReason.ROOM, ROOM_WAIT_S),
        ((EndReason.ROOM, EndReason.INPUTS), EndReason.INPUTS, TaskState.FAILED),
    ],
)
def test_a_task_that_every_worker_refuses_fails_only_if_each_lacks_an_input(
    on_b: Sequence[EndReason], on_c: EndReason, follows: object
) -> None:
    """There is room again once other tasks have ended."""
    b = ended(*map(released, on_b))
    end = released(on_c)
    c = Attempt(attempt(9), node_id("c"), end.state, end)
    known = TaskRecord(T, task(), attempts=(*b, c))

    found = after_refusals(known, [node_id("b"), node_id("c")], 3)

    fails = Decided(T, TaskState.FAILED, 3, attempt(9), node_id("c"))
    assert found == (fails if follows is TaskState.FAILED else follows)


def test_only_the_listed_exit_codes_are_retried() -> None:
    """Other codes report that a retry is useless."""
    rule = task(retries=3, on_failure=False, codes=(11, 75))
    codes = (1, 11, 75, 124)

    assert [code for code in codes if not verdict_of(rule, ended(failed(code)))] == [
        *(11, 75),
    ]


def test_a_task_with_lost_workers_is_retried_a_bounded_number_of_times() -> None:
    """Three workers lost while it ran are no accident."""
    lost = ended(*[LOST] * LOSSES_MAX)

    assert verdict_of(task(), lost[:-1]) is None
    assert verdict_of(task(), lost) is TaskState.FAILED


def test_an_at_most_once_task_is_lost_with_its_worker() -> None:
    """It may have done its work."""
    assert verdict_of(task(on_lost=False), ended(LOST)) is TaskState.FAILED


@pytest.mark.parametrize(
    ("on_lost", "has_begun", "reason"),
    [
        (True, True, EndReason.LOST),
        (True, False, EndReason.RETURNED),
        (False, True, EndReason.LOST),
        (False, False, EndReason.LOST),
    ],
)
def test_an_attempt_that_only_waited_on_a_lost_worker_is_returned(
    on_lost: bool, has_begun: bool, reason: EndReason
) -> None:
    """Unless it must not run twice: it may have begun since."""
    end = presumed_end(task(on_lost=on_lost), moment(), has_begun=has_begun)

    assert (end.state, end.reason) == (AttemptState.RELEASED, reason)


def test_an_attempt_for_which_another_stands_ends_no_task() -> None:
    """Both sides of a split may run a task that must not run twice."""
    ends = ended(superseded_end(moment()))

    assert verdict_of(task(on_lost=False), ends) is None


def test_a_task_waits_before_its_next_try() -> None:
    """After a failure, and before the last try after losses."""
    returned = released(EndReason.RETURNED)

    assert wait_s(T, ended(failed(), failed()), failed()) == retry_delay_s(T, 2)
    assert wait_s(T, ended(LOST), LOST) is None
    assert wait_s(T, ended(LOST, LOST), LOST) == LOSS_BACKOFF_S
    assert wait_s(T, ended(LOST, LOST, returned), returned) is None


@pytest.mark.parametrize(
    ("ends", "may"),
    [
        ((failed(),), True),
        ((), True),
        ((failed(), LOST, failed()), False),
    ],
)
def test_an_attempt_that_is_later_than_all_others_may_be_the_next_try(
    ends: tuple[Outcome, ...], may: bool
) -> None:
    """Until the log is read, nothing else is known of the task."""
    assert may_follow(attempt(3), ended(*ends)) is may


def record(*ends: Outcome, term: int = 0) -> TaskRecord:
    """Return a task with these ends, the last of which decided it in an epoch."""
    *before, last = ended(*ends)
    spec = task(retries=1)
    return TaskRecord(T, spec, attempts=(*before, replace(last, decided_term=term)))


def test_ends_that_were_recorded_before_the_log_was_read_are_decided_later() -> None:
    """By the rules for all others."""
    assert next_verdict(record(failed()), 3) is None
    for ends, state in (
        ((failed(), failed()), TaskState.FAILED),
        ((failed(), outcome()), TaskState.COMPLETED),
    ):
        assert next_verdict(record(*ends), 3) == Decided(
            T, state, 3, attempt(2), node_id("b")
        )


def test_a_verdict_of_an_earlier_epoch_is_repeated() -> None:
    """Otherwise one of an epoch between the two could replace it later."""
    known = record(outcome(), term=2)

    assert next_verdict(known, 2) is None
    assert next_verdict(known, 3) == Decided(
        T, TaskState.COMPLETED, 3, attempt(1), node_id("b")
    )


def test_a_cancel_of_an_earlier_epoch_is_repeated_with_its_author() -> None:
    """A success that was recorded since does not count."""
    known = replace(record(outcome()), cancelled_by="ann", cancel_term=2)

    assert known.state is TaskState.CANCELLED
    assert next_verdict(known, 3) == TaskCancelled(T, "ann", 3)
    assert next_verdict(known, 2) is None


def test_a_cancel_in_no_epoch_is_not_repeated() -> None:
    """Any verdict counts more than an end that was given up."""
    known = TaskRecord(T, task(), cancelled_by=LOST_END_CANCELLER)

    assert next_verdict(known, 3) is None


@pytest.mark.parametrize(
    ("state", "has_begun", "force", "may"),
    [
        (TaskState.QUEUED, False, False, True),
        (TaskState.RUNNING, False, False, True),  # It only waits on its worker.
        (TaskState.RUNNING, True, False, False),
        (TaskState.RUNNING, True, True, True),
        (TaskState.COMPLETED, False, True, False),
        (TaskState.CANCELLED, False, True, False),
    ],
)
def test_what_runs_is_cancelled_by_force_only(
    state: TaskState, has_begun: bool, force: bool, may: bool
) -> None:
    """What is over is never cancelled."""
    assert may_cancel(state, has_begun=has_begun, force=force) is may


@pytest.mark.parametrize(
    ("failed", "queued", "by", "must"),
    [
        (1, 5, None, False),
        (2, 5, None, True),
        (2, 0, None, False),  # All have ended.
        (2, 5, "ann", False),
    ],
)
def test_an_array_is_cut_off_once_too_many_members_failed(
    failed: int, queued: int, by: str | None, must: bool
) -> None:
    """Unless that was done, or nothing is left."""
    options = TaskOptions(array=ArraySpec(count=9, max_fails=1))
    whole = TaskSpec(id=T, command="x", options=options)
    progress = ArrayProgress(failed=failed, queued=queued)

    known = TaskRecord(T, whole, progress=progress, cancelled_by=by)

    assert must_cut_off(known) is must


def test_a_task_whose_dependency_did_not_end_as_required_is_cancelled() -> None:
    """The cancel names it; else the task may run."""
    assert unblock(T, None, 3) == Unblocked(T)
    by = f"{DEPENDENCY_FAILED_PREFIX}nightly"
    assert unblock(T, TaskId("nightly~a"), 3) == TaskCancelled(T, by, 3)


def test_tasks_that_failed_together_are_retried_at_different_times() -> None:
    """Each waits its own time, below the doubled wait; a replay repeats it."""
    waits = [retry_delay_s(TaskId(f"t{n}"), 4) for n in range(200)]

    assert all(0 <= wait_s < 8 for wait_s in waits)
    assert len(set(waits)) == len(waits)
    assert min(waits) < 2
    assert max(waits) > 6
    assert waits == [retry_delay_s(TaskId(f"t{n}"), 4) for n in range(200)]
    assert retry_delay_s(TaskId("t"), 10_000) < RETRY_CAP_S
