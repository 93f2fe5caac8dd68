"""Every end of an attempt is recorded, and acknowledged once it is durable."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.dispatcher.task_rules import LOSS_BACKOFF_S
from octaskly.core.effects import AnnounceTaskStates, LoadQueued, LoadTasks
from octaskly.core.events import LiveLoaded, QueuedLoaded
from octaskly.core.log.facts import (
    Assigned,
    Decided,
    Finished,
    Submitted,
    TaskCancelled,
)
from octaskly.core.log.merge import apply_fact
from octaskly.core.model.ids import TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.tasks import AttemptState, EndReason, TaskState
from octaskly.core.protocol.messages import Reattach, Results
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
    deliver_results,
    dispatcher_running_t,
    dispatcher_with,
    ended_attempt,
    follow_reads,
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

    effects = deliver_results(world.dispatch, B, results_message(), moment())
    later = world.commit()

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, outcome(), decided_term=1)
    ]
    assert effects[1:] == []
    assert later == [send_acknowledgement(B), AnnounceTaskStates((T,))]
    assert world.dispatch.outstanding(B) == 0


def test_an_end_on_one_disk_only_is_not_announced_after_the_epoch() -> None:
    """The dispatcher that follows may lack it, and run the task again."""
    world = dispatcher_running_t(b=1)
    deliver_results(world.dispatch, B, results_message(), moment())

    world.dispatch.stop_dispatching()

    assert world.commit() == []


def test_a_freed_slot_is_filled_in_the_same_step() -> None:
    """The end and the next assignment share a commit; the dispatch does not wait."""
    world = dispatcher_with(task_record("t"), task_record("u", place=2), b=1)

    effects = deliver_results(world.dispatch, B, results_message(credit=1), moment())

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, outcome(), decided_term=1),
        Assigned(TaskId("u"), attempt(seq=3), B),
    ]
    assert effects[1:] == [send_assignment(B, (attempt(seq=3), spec("u", ord=2)))]


def test_a_repeated_result_is_acknowledged_but_not_written_again() -> None:
    """The worker repeats it while the disk is slow."""
    world = dispatcher_running_t(b=1)
    deliver_results(world.dispatch, B, results_message(), moment())

    again = deliver_results(world.dispatch, B, results_message(), moment())

    assert again == []
    assert world.commit() == [
        send_acknowledgement(B),
        AnnounceTaskStates((T,)),
        send_acknowledgement(B),
    ]


def test_the_end_of_an_unknown_task_brings_its_envelope_into_the_log() -> None:
    """A task whose only copy was on a disk that died comes back from its worker.

    The verdict follows when the task has been read.
    """
    world = dispatcher_with(b=1)
    recorded = [Submitted(spec()), Finished(T, attempt(), B, outcome())]

    effects = deliver_results(
        world.dispatch, B, results_message(report(envelope=spec())), moment()
    )
    later = world.commit()
    world.dispatch.on_queued_loaded(QueuedLoaded(1, (), has_more=False), moment())
    decided = found(world, task_record("t", ended_attempt(B)))

    assert appended_facts(effects) == recorded
    assert later[:2] == [send_acknowledgement(B), LoadTasks(1, (T,))]
    assert appended_facts(decided) == [Decided(T, TaskState.COMPLETED, 1, attempt(), B)]
    assert world.commit() == [AnnounceTaskStates((T,))]


def test_a_success_of_a_task_cancelled_in_an_earlier_epoch_is_ignored() -> None:
    """The previous dispatcher confirmed the cancel and died before the end arrived."""
    world = dispatcher_with(b=1)
    world.dispatch._step.epoch = epoch(2)
    success = results_message(report(envelope=spec()))

    effects = deliver_results(world.dispatch, B, success, moment())
    again = deliver_results(world.dispatch, B, success, moment(0.2))
    was = replace(task_record("t", live_attempt(B), cancelled="ann"), cancel_term=1)

    assert again == []
    assert follow_reads(world, was, effects)[1:] == [
        Finished(T, attempt(), B, outcome()),
        TaskCancelled(T, "ann", term=2),
    ]


def test_a_success_that_waits_for_the_store_keeps_its_task_from_starting() -> None:
    """Its assignment was lost with the previous dispatcher, so it looks queued."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_worker_up(node_info(A, 1), moment())
    world.dispatch.on_reattach(*reattach_report("a", 1), moment())
    effects = deliver_results(
        world.dispatch, B, results_message(report(envelope=spec())), moment()
    )

    loaded = QueuedLoaded(1, (task_record(),), has_more=False)
    effects += world.dispatch.on_queued_loaded(loaded, moment())
    effects += world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())

    assert follow_reads(world, task_record(), effects)[1:] == [
        Finished(T, attempt(), B, outcome()),
        Decided(T, TaskState.COMPLETED, 1, attempt(), B),
    ]


def test_a_cancel_prevails_over_a_success_that_waits_for_the_store() -> None:
    """No client has heard of the success."""
    world = dispatcher_with(b=1)
    success = results_message(report(envelope=spec()))
    effects = deliver_results(world.dispatch, B, success, moment())

    asked = cancel_request(TaskState.RUNNING, force=True)
    effects += world.dispatch.on_cancel_requested(asked, moment())
    effects += (later := world.commit())

    was = task_record("t", live_attempt(B))
    facts = follow_reads(world, was, effects)
    assert cancel_reply() in later
    assert facts[-1] == TaskCancelled(T, "ann", term=1)


def test_an_unknown_returned_task_is_read_from_the_store() -> None:
    """It may have ended long ago; only the store knows whether it must run."""
    world = dispatcher_with(b=1)
    back = report(end=released(EndReason.RETURNED), envelope=spec())

    effects = deliver_results(world.dispatch, B, results_message(back), moment())
    later = world.commit()

    assert appended_facts(effects) == [
        Submitted(spec()),
        Finished(T, attempt(), B, released(EndReason.RETURNED)),
    ]
    assert later == [
        send_acknowledgement(B),
        LoadTasks(1, (T,)),
        LoadQueued(1, -1, 1000),
    ]


def test_a_returned_attempt_runs_elsewhere_with_its_old_position() -> None:
    """It waited on the worker while others had room."""
    world = dispatcher_with(task_record("t"), task_record("u", place=2), b=1)
    world.dispatch.on_worker_up(node_info(A, 1), moment())

    effects = deliver_results(
        world.dispatch,
        B,
        results_message(report(end=released(EndReason.RETURNED)), credit=1),
        moment(),
    )

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, released(EndReason.RETURNED)),
        Assigned(T, attempt(2, seq=3), B),
    ]
    assert effects[1:] == [send_assignment(B, (attempt(2, seq=3), spec()))]
    assert world.commit() == [send_acknowledgement(B)]


def test_a_worker_that_refuses_is_not_retried_at_once() -> None:
    """The attempt would otherwise go back and forth."""
    world = dispatcher_running_t(b=1)

    effects = deliver_results(
        world.dispatch,
        B,
        results_message(report(end=released(EndReason.STALE)), credit=1),
        moment(),
    )

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, released(EndReason.STALE))
    ]
    assert effects[1:] == []


def test_a_worker_without_an_input_is_not_retried() -> None:
    """Another worker may have it."""
    world = dispatcher_running_t(b=1)
    lack = released(EndReason.INPUTS, "input data.csv")

    first = deliver_results(
        world.dispatch, B, results_message(report(end=lack)), moment()
    )
    second = world.dispatch.on_worker_up(node_info(A, 1), moment())
    second += world.dispatch.on_reattach(A, Reattach((), 1, NodeState.READY), moment())

    assert appended_facts(first) == [Finished(T, attempt(), B, lack)]
    assert first[1:] == []
    assert appended_facts(second) == [Assigned(T, attempt(2, seq=3), A)]


def test_a_task_with_an_input_on_no_worker_fails_and_names_it() -> None:
    """The task would wait for ever."""
    world = dispatcher_running_t(b=1)
    lack = released(EndReason.INPUTS, "input data.csv")
    world.dispatch.on_time(moment(LATE))

    effects = deliver_results(
        world.dispatch, B, results_message(report(end=lack)), moment(LATE)
    )

    ended = Finished(T, attempt(), B, lack)
    verdict = Decided(T, TaskState.FAILED, 1, attempt(), B)
    assert appended_facts(effects) == [ended, verdict]
    shown = apply_fact(apply_fact(task_record(), ended), verdict).deciding_attempt
    assert shown is not None
    detail = "input data.csv is on no node"
    assert shown.outcome == replace(lack, state=AttemptState.FAILED, detail=detail)
    assert world.commit() == [send_acknowledgement(B), AnnounceTaskStates((T,))]


def test_inputs_are_judged_after_the_adopt_window() -> None:
    """The node with the file may be the last to attach."""
    world = dispatcher_running_t(b=1)
    lack = released(EndReason.INPUTS, "input data.csv")
    deliver_results(world.dispatch, B, results_message(report(end=lack)), moment())
    world.commit()

    due = world.timers.next_at()
    effects = world.dispatch.on_time(moment(LATE))

    assert due == moment(5.0).mono_s
    assert appended_facts(effects) == [Decided(T, TaskState.FAILED, 1, attempt(), B)]
    assert world.commit() == [AnnounceTaskStates((T,))]


def test_a_late_success_of_a_lost_attempt_ends_its_successor() -> None:
    """The work is done; the second run is useless."""
    world = dispatcher_with(task_record(), b=1, a=1)
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_worker_down(B, moment(LATE))
    world.commit()

    effects = deliver_results(world.dispatch, B, results_message(), moment(LATE))

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, outcome(), decided_term=1)
    ]
    assert effects[1:] == [send_kill(A, attempt(2, seq=3))]
    assert world.commit() == [send_acknowledgement(B), AnnounceTaskStates((T,))]


def test_credit_alone_needs_no_acknowledgement() -> None:
    """A worker reports it when it accepts tasks again."""
    world = dispatcher_with(b=1)

    assert deliver_results(world.dispatch, B, Results((), 0), moment()) == []


def test_a_task_waits_for_a_busy_worker_with_its_inputs() -> None:
    """Worker b lacks the input, worker a is merely busy."""
    world = dispatcher_with(task_record("t"), task_record("u", place=2), a=1, b=1)
    world.dispatch.on_time(moment(LATE))
    lack = released(EndReason.INPUTS, "input data.csv")
    deliver_results(
        world.dispatch,
        B,
        results_message(report("u", end=lack), credit=1),
        moment(LATE),
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


def test_a_task_stays_queued_if_the_lanes_are_read_again_in_its_step() -> None:
    """A report that was held is handled before a commit in the same step.

    The store does not have that report yet, so it would not return the task.
    """
    world = dispatcher_running_t(b=1)
    unread = report("u", end=released(EndReason.RETURNED))
    deliver_results(world.dispatch, A, results_message(unread), moment())

    returned = report(end=released(EndReason.RETURNED))
    world.dispatch.record_results(B, results_message(returned, credit=1), moment())
    assert LoadTasks(1, (TaskId("u"),)) in world.commit()

    facts = appended_facts(world.dispatch.commit_results(moment()))
    assert [type(fact) for fact in facts] == [Finished, Assigned]


def test_a_task_that_ends_during_its_commit_stays_in_memory() -> None:
    """Else a read that misses its end would run it again."""
    world = dispatcher_running_t(b=1)
    returned = report(end=released(EndReason.RETURNED))
    deliver_results(world.dispatch, B, results_message(returned, credit=1), moment())

    again = report(of=attempt(2, seq=3))
    world.dispatch.record_results(B, results_message(again, credit=1), moment())
    world.commit()

    assert T in world.dispatch._queue.tasks
