"""Every end of an attempt is recorded, and acknowledged once it is durable."""

from __future__ import annotations

from octaskly.core.effects import AnnounceTaskStates, LoadQueued, LoadTasks
from octaskly.core.events import QueuedLoaded
from octaskly.core.log.facts import Assigned, Finished, Submitted
from octaskly.core.model.ids import TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.tasks import AttemptState, EndReason, TaskState
from octaskly.core.protocol.messages import Reattach, Results
from octaskly.core.scheduling.retry_policy import LOSS_BACKOFF_S
from tests.support.builders import (
    STREAM,
    attempt,
    epoch,
    moment,
    node_id,
    node_info,
    outcome,
    released,
    report,
    spec,
)
from tests.support.dispatcher import (
    LATE,
    A,
    B,
    DispatcherWithJournal,
    T,
    appended_facts,
    cancel_reply,
    cancel_request,
    dispatcher_running_t,
    dispatcher_with,
    found,
    live_attempt,
    reattach_report,
    results_message,
    send_acknowledgement,
    send_assignment,
    send_kill,
    task_record,
)


def test_a_result_is_acknowledged_and_announced_when_it_is_durable() -> None:
    """Only then may the worker forget it."""
    world = dispatcher_running_t(b=1)

    effects = world.dispatch.on_results(B, results_message(), moment())
    later = world.commit()

    assert appended_facts(effects) == [Finished(T, attempt(), B, outcome(), term=1)]
    assert effects[1:] == []
    assert later == [send_acknowledgement(B), AnnounceTaskStates((T,))]
    assert world.dispatch.outstanding(B) == 0


def test_a_freed_slot_is_filled_in_the_same_step() -> None:
    """The end and the next assignment share a commit; the dispatch does not wait."""
    world = dispatcher_with(task_record("t"), task_record("u", place=2), b=1)

    effects = world.dispatch.on_results(B, results_message(credit=1), moment())

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, outcome(), term=1),
        Assigned(TaskId("u"), attempt(), B),
    ]
    assert effects[1:] == [send_assignment(B, (attempt(), spec("u", ord=2)))]


def test_a_repeated_result_is_acknowledged_but_not_written_again() -> None:
    """The worker repeats it while the disk is slow."""
    world = dispatcher_running_t(b=1)
    world.dispatch.on_results(B, results_message(), moment())

    again = world.dispatch.on_results(B, results_message(), moment())

    assert again == []
    assert world.commit() == [
        send_acknowledgement(B),
        AnnounceTaskStates((T,)),
        send_acknowledgement(B),
    ]


def test_the_end_of_an_unknown_task_brings_its_envelope_into_the_log() -> None:
    """A task whose only copy was on a disk that died comes back from its worker."""
    world = dispatcher_with(b=1)

    asked = world.dispatch.on_results(
        B, results_message(report(envelope=spec())), moment()
    )
    effects = found(world)

    assert asked == [LoadTasks(1, (T,))]
    assert appended_facts(effects) == [
        Submitted(spec()),
        Finished(T, attempt(), B, outcome(), term=1),
    ]
    assert world.commit() == [send_acknowledgement(B), AnnounceTaskStates((T,))]


def test_a_success_of_a_task_cancelled_in_an_earlier_epoch_is_ignored() -> None:
    """The previous dispatcher confirmed the cancel and died before the end arrived."""
    world = dispatcher_with(b=1)
    success = results_message(report(envelope=spec()))

    asked = world.dispatch.on_results(B, success, moment())
    again = world.dispatch.on_results(B, success, moment(0.2))
    was = task_record("t", live_attempt(B), cancelled="ann")
    effects = found(world, was, at=0.3)

    assert asked == [LoadTasks(1, (T,))]
    assert again == []
    end = outcome(AttemptState.CANCELLED, EndReason.CANCELLED)
    assert appended_facts(effects) == [Finished(T, attempt(), B, end, term=1)]
    assert effects[1:] == []
    assert world.commit() == [send_acknowledgement(B), AnnounceTaskStates((T,))]


def test_a_success_that_waits_for_the_store_keeps_its_task_from_starting() -> None:
    """Its assignment was lost with the previous dispatcher, so it looks queued."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_worker_up(node_info(A, 1), moment())
    world.dispatch.on_reattach(*reattach_report("a", 1), moment())
    waits = world.dispatch.on_results(
        B, results_message(report(envelope=spec())), moment()
    )

    loaded = QueuedLoaded(-1, (task_record(),), has_more=False)
    assert world.dispatch.on_queued_loaded(loaded, moment()) == []
    effects = found(world, task_record())

    assert waits == [LoadTasks(1, (T,))]
    assert Finished(T, attempt(), B, outcome(), term=1) in appended_facts(effects)
    assert effects[1:] == []


def test_a_cancel_prevails_over_a_success_that_waits_for_the_store() -> None:
    """The read may be older than the cancel."""
    world = dispatcher_with(b=1)
    world.dispatch.on_results(B, results_message(report(envelope=spec())), moment())
    asked = cancel_request(TaskState.RUNNING, force=True)
    world.dispatch.on_cancel_requested(asked, moment())
    assert cancel_reply() in world.commit()

    was = task_record("t", live_attempt(B))
    effects = found(world, was)

    (fact,) = appended_facts(effects)
    assert isinstance(fact, Finished)
    assert fact.outcome.state is AttemptState.CANCELLED


def test_an_unknown_returned_task_is_read_from_the_store() -> None:
    """It may have ended long ago; only the store knows whether it must run."""
    world = dispatcher_with(b=1)
    back = report(end=released(EndReason.RETURNED), envelope=spec())

    effects = world.dispatch.on_results(B, results_message(back), moment())
    later = world.commit()

    assert appended_facts(effects) == [
        Submitted(spec()),
        Finished(T, attempt(), B, released(EndReason.RETURNED), term=1),
    ]
    assert later == [
        send_acknowledgement(B),
        LoadTasks(1, (T,)),
        LoadQueued(-2, 1000),
    ]


def test_a_returned_attempt_runs_elsewhere_with_its_old_position() -> None:
    """It waited on the worker while others had room."""
    world = dispatcher_with(task_record("t"), task_record("u", place=2), b=1)
    world.dispatch.on_worker_up(node_info(A, 1), moment())

    effects = world.dispatch.on_results(
        B, results_message(report(end=released(EndReason.RETURNED)), credit=1), moment()
    )

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, released(EndReason.RETURNED), term=1),
        Assigned(T, attempt(2), B),
    ]
    assert effects[1:] == [send_assignment(B, (attempt(2), spec()))]
    assert world.commit() == [send_acknowledgement(B)]


def test_a_worker_that_refuses_is_not_retried_at_once() -> None:
    """The attempt would otherwise go back and forth."""
    world = dispatcher_running_t(b=1)

    effects = world.dispatch.on_results(
        B, results_message(report(end=released(EndReason.STALE)), credit=1), moment()
    )

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, released(EndReason.STALE), term=1)
    ]
    assert effects[1:] == []


def test_a_worker_without_an_input_is_not_retried() -> None:
    """Another worker may have it."""
    world = dispatcher_running_t(b=1)
    lack = released(EndReason.INPUTS, "input data.csv")

    first = world.dispatch.on_results(B, results_message(report(end=lack)), moment())
    second = world.dispatch.on_worker_up(node_info(A, 1), moment())
    second += world.dispatch.on_reattach(A, Reattach((), 1, NodeState.READY), moment())

    assert appended_facts(first) == [Finished(T, attempt(), B, lack, term=1)]
    assert first[1:] == []
    assert appended_facts(second) == [Assigned(T, attempt(2), A)]


def test_a_task_with_an_input_on_no_worker_fails_and_names_it() -> None:
    """The task would wait for ever."""
    world = dispatcher_running_t(b=1)
    lack = released(EndReason.INPUTS, "input data.csv")
    world.dispatch.on_time(moment(LATE))

    effects = world.dispatch.on_results(
        B, results_message(report(end=lack)), moment(LATE)
    )

    detail = "input data.csv is on no node"
    failed = outcome(AttemptState.FAILED, EndReason.INPUTS, detail=detail)
    assert appended_facts(effects) == [Finished(T, attempt(), B, failed, term=1)]
    assert world.commit() == [send_acknowledgement(B), AnnounceTaskStates((T,))]


def test_inputs_are_judged_after_the_adopt_window() -> None:
    """The node with the file may be the last to attach."""
    world = dispatcher_running_t(b=1)
    lack = released(EndReason.INPUTS, "input data.csv")
    world.dispatch.on_results(B, results_message(report(end=lack)), moment())
    world.commit()

    due = world.timers.next_at()
    effects = world.dispatch.on_time(moment(LATE))

    detail = "input data.csv is on no node"
    failed = outcome(AttemptState.FAILED, EndReason.INPUTS, detail=detail)
    assert due == moment(5.0).mono_s
    assert appended_facts(effects) == [Finished(T, attempt(), B, failed, term=1)]
    assert world.commit() == [AnnounceTaskStates((T,))]


def test_a_late_success_of_a_lost_attempt_ends_its_successor() -> None:
    """The work is done; the second run is useless."""
    world = dispatcher_with(task_record(), b=1, a=1)
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_worker_down(B, moment(LATE))
    world.commit()

    effects = world.dispatch.on_results(B, results_message(), moment(LATE))

    assert appended_facts(effects) == [Finished(T, attempt(), B, outcome(), term=1)]
    assert effects[1:] == [send_kill(A, attempt(2))]
    assert world.commit() == [send_acknowledgement(B), AnnounceTaskStates((T,))]


def test_credit_alone_needs_no_acknowledgement() -> None:
    """A worker reports it when it accepts tasks again."""
    world = dispatcher_with(b=1)

    assert world.dispatch.on_results(B, Results((), 0), moment()) == []


def test_a_task_waits_for_a_busy_worker_with_its_inputs() -> None:
    """Worker b lacks the input, worker a is merely busy."""
    world = dispatcher_with(task_record("t"), task_record("u", place=2), a=1, b=1)
    world.dispatch.on_time(moment(LATE))
    lack = released(EndReason.INPUTS, "input data.csv")
    world.dispatch.on_results(
        B, results_message(report("u", end=lack), credit=1), moment(LATE)
    )

    world.dispatch.on_worker_up(node_info("c", 1), moment(LATE))
    effects = world.dispatch.on_worker_down(node_id("c"), moment(LATE))

    assert effects == []


def test_a_task_backs_off_before_its_last_try() -> None:
    """If many nodes fail at once, each next worker may fail soon, too."""
    world = dispatcher_running_t(a=1, b=1, c=1)
    world.dispatch.on_time(moment(LATE))
    world.commit()

    again = world.dispatch.on_worker_down(A, moment(LATE))
    world.commit()
    (second,) = [
        fact.node for fact in appended_facts(again) if isinstance(fact, Assigned)
    ]
    rested = world.dispatch.on_worker_down(second, moment(LATE))
    world.commit()
    early = world.dispatch.on_time(moment(LATE + LOSS_BACKOFF_S - 0.1))
    last = world.dispatch.on_time(moment(LATE + LOSS_BACKOFF_S))

    assert [type(fact) for fact in appended_facts(rested)] == [Finished]
    assert early == []
    assert [type(fact) for fact in appended_facts(last)] == [Assigned]
