"""The state of a task, merged from its facts."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.log.facts import (
    Assigned,
    Decided,
    Finished,
    Submitted,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import TaskRecord, apply_fact
from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.task_options import Retry, TaskOptions, without_stdin
from octaskly.core.model.tasks import Attempt, AttemptState, EndReason, TaskState
from tests.support.builders import attempt, node_id, outcome, released, spec

TASK = TaskId("t")
A, B = node_id("a"), node_id("b")
SUBMITTED = Submitted(spec())
FAILED = outcome(AttemptState.FAILED)


def known(*facts: TaskFact) -> TaskRecord:
    """Return the record of a task with these facts."""
    record = None
    for fact in facts:
        record = apply_fact(record, fact)
    assert record is not None
    return record


def test_a_submitted_task_is_queued() -> None:
    """No worker holds it yet."""
    record = known(SUBMITTED)

    assert record.state is TaskState.QUEUED
    assert record.spec == spec()
    assert record.deciding_attempt is None


def test_an_assigned_task_is_running() -> None:
    """A worker holds an attempt."""
    assert known(SUBMITTED, Assigned(TASK, attempt(), A)).state is TaskState.RUNNING


def test_a_released_task_is_queued_again() -> None:
    """A lost or returned attempt decides nothing."""
    record = known(SUBMITTED, Finished(TASK, attempt(), A, released(EndReason.LOST)))

    assert record.state is TaskState.QUEUED


def test_a_cancel_wins_over_a_failure() -> None:
    """The client wanted it to end, and it has no output worth keeping."""
    record = known(TaskCancelled(TASK, "x", 1), Finished(TASK, attempt(), A, FAILED, 1))

    assert record.state is TaskState.CANCELLED


def test_a_success_wins_over_a_cancel() -> None:
    """Only a split can bring both, and then the work is done."""
    record = known(
        TaskCancelled(TASK, "x", 1), Finished(TASK, attempt(), A, outcome(), 1)
    )

    assert record.state is TaskState.COMPLETED


def test_an_end_alone_decides_nothing() -> None:
    """The dispatcher may have recorded it before it had read the log."""
    for end, state in ((outcome(), TaskState.RUNNING), (FAILED, TaskState.QUEUED)):
        ended = Finished(TASK, attempt(), A, end)

        assert known(SUBMITTED, ended).state is state
        cancelled = known(ended, TaskCancelled(TASK, "x", 1))
        assert cancelled.state is TaskState.CANCELLED


def test_a_verdict_may_arrive_before_the_end_that_caused_it() -> None:
    """They may be in streams of two epochs."""
    record = known(Decided(TASK, TaskState.COMPLETED, 2, attempt(), A))

    assert record.state is TaskState.COMPLETED
    assert record.deciding_attempt == Attempt(attempt(), A, decided_term=2)


def test_the_later_epoch_has_the_last_word_on_a_cancel() -> None:
    """It has told its clients."""
    ended = Finished(TASK, attempt(), A, FAILED, 2)

    for term, state in ((1, TaskState.FAILED), (3, TaskState.CANCELLED)):
        assert known(ended, TaskCancelled(TASK, "x", term)).state is state


def test_losses_are_shown_as_the_reason_of_a_failure() -> None:
    """The log has no more than that the worker was lost."""
    lost = [
        Finished(TASK, attempt(n), A, released(EndReason.LOST), int(n == 3))
        for n in (1, 2, 3)
    ]
    shown = known(SUBMITTED, *lost).deciding_attempt

    assert shown is not None
    assert shown.outcome is not None
    assert (shown.id, shown.state) == (attempt(3), AttemptState.FAILED)
    assert shown.outcome.reason is EndReason.POISON
    assert "3 times" in shown.outcome.detail


def test_a_missing_input_is_shown_though_another_attempt_was_running() -> None:
    """The worker had been taken for lost, and reported the end late."""
    lack = Finished(TASK, attempt(1), A, released(EndReason.INPUTS, "input data.csv"))
    other = Assigned(TASK, attempt(2), A)
    shown = known(
        SUBMITTED, lack, other, Decided(TASK, TaskState.FAILED, 1, attempt(1), A)
    ).deciding_attempt

    assert shown is not None
    assert shown.outcome is not None
    assert (shown.id, shown.outcome.reason) == (attempt(1), EndReason.INPUTS)


@pytest.mark.parametrize(
    ("detail", "text"),
    [
        ("", "its worker was lost, and it must not run twice"),
        ("its launcher died", "its launcher died, and it must not run twice"),
    ],
)
def test_a_lost_task_that_must_not_run_twice_says_so(detail: str, text: str) -> None:
    """Its worker may live on, if the task killed only the launcher there."""
    end = released(EndReason.LOST, detail)
    asked = submitted_with(TaskOptions(retry=Retry(on_lost=False)))
    shown = known(asked, Finished(TASK, attempt(), A, end, 1)).deciding_attempt

    assert shown is not None
    assert shown.outcome is not None
    assert (shown.outcome.reason, shown.outcome.detail) == (EndReason.LOST, text)


def test_missing_inputs_are_shown_once_each() -> None:
    """Those that a node lacked in an earlier epoch may be there now."""
    lacks = [
        (attempt(1), A, "input old"),
        (attempt(2, term=2), A, "input x"),
        (attempt(3, term=2), B, "input y"),
    ]
    ends = [
        Finished(TASK, name, node, released(EndReason.INPUTS, text))
        for name, node, text in lacks
    ]
    record = known(
        SUBMITTED, *ends, Decided(TASK, TaskState.FAILED, 2, attempt(3, term=2), B)
    )
    shown = record.deciding_attempt

    assert shown is not None
    assert shown.outcome is not None
    assert shown.outcome.detail == "no node has all its inputs: input x; input y"


def test_many_nodes_that_lack_one_input_are_counted() -> None:
    """The reason stays short, however many nodes there are."""
    ends = [
        Finished(
            TASK, attempt(n), node_id(f"n{n}"), released(EndReason.INPUTS, "input x")
        )
        for n in range(1, 12)
    ]
    record = known(
        SUBMITTED,
        *ends,
        Decided(TASK, TaskState.FAILED, 1, attempt(11), node_id("n11")),
    )
    shown = record.deciding_attempt

    assert shown is not None
    assert shown.outcome is not None
    detail = "no node has all its inputs: input x; and 3 more nodes lack something"
    assert shown.outcome.detail == detail


def test_a_success_wins_over_an_earlier_failure() -> None:
    """Both sides of a split ran it; the successful attempt counts."""
    record = known(
        Finished(TASK, attempt(1), A, FAILED, 1),
        Finished(TASK, attempt(2), B, outcome(), 1),
    )

    assert record.state is TaskState.COMPLETED
    assert record.deciding_attempt == record.attempts[1]


def shown_success(*facts: TaskFact) -> AttemptId:
    """Return the id of the shown attempt of a completed task."""
    record = known(*facts)
    assert record.state is TaskState.COMPLETED
    assert record.deciding_attempt is not None
    return record.deciding_attempt.id


def test_a_success_that_comes_later_is_not_shown() -> None:
    """Its worker was taken for lost, and clients have the output of the next one."""
    late = Finished(TASK, attempt(1), A, outcome(stdout=b"one"))
    shown = Finished(TASK, attempt(2), B, outcome(stdout=b"two"), 1)

    assert shown_success(shown, late) == attempt(2)


def test_the_success_that_the_last_epoch_decided_on_is_shown() -> None:
    """The log of the earlier dispatcher may return after clients were told."""
    earlier = Finished(TASK, attempt(1), A, outcome(stdout=b"one"), 1)
    later = Finished(TASK, attempt(2), B, outcome(stdout=b"two"), 2)

    assert shown_success(earlier, later) == attempt(2)
    repeated = Decided(TASK, TaskState.COMPLETED, 3, attempt(1), A)
    assert shown_success(earlier, later, repeated) == attempt(1)


def test_of_two_successes_of_one_term_the_smaller_is_shown() -> None:
    """Only the halves of a split have one term, and all nodes show the same output."""
    record = [
        Finished(TASK, attempt(2), B, outcome(stdout=b"two"), 1),
        Finished(TASK, attempt(1), A, outcome(stdout=b"one"), 1),
    ]

    assert shown_success(*record) == attempt(1)


def test_the_first_failure_counts_without_a_success() -> None:
    """A failure is chosen before a later release."""
    record = known(
        Finished(TASK, attempt(1), A, FAILED, 1),
        Finished(TASK, attempt(2), B, released(EndReason.LOST)),
    )

    assert record.deciding_attempt == record.attempts[0]


def test_a_late_assignment_does_not_reopen_an_attempt() -> None:
    """Facts of one attempt may arrive in any order."""
    record = known(
        Finished(TASK, attempt(), A, outcome(), 1), Assigned(TASK, attempt(), A)
    )

    assert record.attempts[0].state is AttemptState.OK


def test_a_success_of_a_lost_attempt_counts() -> None:
    """A worker that was given up still delivers its result."""
    record = known(
        Finished(TASK, attempt(), A, released(EndReason.LOST)),
        Finished(TASK, attempt(), A, outcome(), 1),
    )

    assert record.state is TaskState.COMPLETED


def test_of_two_cancels_all_nodes_show_the_same_one() -> None:
    """The smaller name counts."""
    record = known(TaskCancelled(TASK, "zoe"), TaskCancelled(TASK, "ann"))

    assert record.cancelled_by == "ann"


def test_an_attempt_with_two_nodes_shows_one_node() -> None:
    """It cannot happen without a fault, and even then all nodes agree."""
    record = known(
        Finished(TASK, attempt(), B, outcome(), 1), Assigned(TASK, attempt(), A)
    )

    assert [found.node for found in record.attempts] == [A]


def submitted_with(options: TaskOptions, *, ord_: int = 1) -> Submitted:
    """Return the submission of a task with options."""
    return Submitted(replace(spec(ord=ord_), options=options))


def test_a_submission_with_the_bytes_of_stdin_completes_a_freed_one() -> None:
    """A node that frees the stdin of an ended task takes it from no other node."""
    full = TaskOptions(name="n", stdin=b"in")
    freed = submitted_with(without_stdin(full))

    for facts in ([freed, submitted_with(full)], [submitted_with(full), freed]):
        assert known(*facts).spec == submitted_with(full).spec


def test_the_earlier_submission_wins_and_has_the_stdin_of_the_later_one() -> None:
    """Both sides of a split accepted the same task, and one side has freed it."""
    full = TaskOptions(stdin=b"in")
    earlier = submitted_with(without_stdin(full), ord_=1)
    later = submitted_with(full, ord_=2)

    assert known(earlier, later).spec == submitted_with(full, ord_=1).spec


def test_a_freed_stdin_is_never_replaced_by_another_one() -> None:
    """The digest decides, not the size."""
    freed = submitted_with(without_stdin(TaskOptions(stdin=b"in")), ord_=1)
    other = submitted_with(TaskOptions(stdin=b"no"), ord_=2)

    assert known(freed, other).spec == freed.spec
