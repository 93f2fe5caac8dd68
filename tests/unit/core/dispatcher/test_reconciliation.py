"""Running attempts are adopted after a failover, and lost ones run again."""

from __future__ import annotations

import pytest

from octaskly.core.dispatcher.dependencies import UNBLOCKED_MAX
from octaskly.core.dispatcher.reconciliation import LOG_WAIT_S_MAX, LOGS_GIVEN_UP
from octaskly.core.dispatcher.task_rules import LOSSES_MAX, superseded_end
from octaskly.core.effects import (
    AnnounceTaskStates,
    Answer,
    LoadLive,
    LoadQueued,
    LoadTasks,
    LoadUnblocked,
    LogLine,
)
from octaskly.core.events import LiveLoaded, QueuedLoaded
from octaskly.core.log.facts import Assigned, Decided, Finished, Submitted
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import StreamId, TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    TaskState,
)
from octaskly.core.protocol.messages import Reattach
from octaskly.core.replies import NotDispatching
from tests.support.builders import (
    STREAM,
    attempt,
    epoch,
    moment,
    node_info,
    outcome,
    released,
    report,
    spec,
)
from tests.support.dispatcher import (
    FAILED,
    LATE,
    LOST_OUTCOME,
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
    found,
    live_attempt,
    reattach_report,
    results_message,
    send_assignment,
    send_kill,
    submission,
    task_record,
)


def test_attempts_of_a_lost_worker_run_elsewhere_at_once() -> None:
    """Each gets a new attempt number."""
    world = dispatcher_running_t(a=1, b=1)
    world.dispatch.on_time(moment(LATE))

    effects = world.dispatch.on_worker_down(A, moment(LATE))

    assert appended_facts(effects) == [
        Finished(T, attempt(), A, LOST_OUTCOME),
        Assigned(T, attempt(2, seq=3), B),
    ]
    assert effects[1:] == [send_assignment(B, (attempt(2, seq=3), spec()))]


def test_a_new_dispatcher_waits_for_the_workers_of_the_previous_epoch() -> None:
    """Their links break with the old dispatcher; their work goes on."""
    world = dispatcher_with(live=(task_record("t", live_attempt(B)),), a=1)

    down = world.dispatch.on_worker_down(B, moment(1.0))
    due = world.timers.next_at()
    effects = world.dispatch.on_time(moment(LATE))

    assert down == []
    assert due == moment(5.0).mono_s
    assert appended_facts(effects) == [
        Finished(T, attempt(), B, LOST_OUTCOME),
        Assigned(T, attempt(2), A),
    ]


def test_an_attempt_that_its_worker_still_runs_is_adopted() -> None:
    """No fact is needed: the log is right."""
    world = dispatcher_with(live=(task_record("t", live_attempt(B)),), a=1)
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment())

    assert effects == []
    assert world.dispatch.outstanding(B) == 1
    assert world.dispatch.on_time(moment(LATE)) == []


def test_an_attempt_missing_from_the_log_is_recorded() -> None:
    """Its assignment was not replicated when the dispatcher died."""
    world = dispatcher_with()
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment())

    assert appended_facts(effects) == [Submitted(spec()), Assigned(T, attempt(), B)]
    assert effects[1:] == [LoadTasks(1, (T,))]
    assert world.dispatch.outstanding(B) == 1


def test_a_queued_task_that_a_worker_already_runs_is_not_started_again() -> None:
    """The log has the task but not its assignment."""
    world = dispatcher_with(task_record())
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment())

    assert appended_facts(effects) == [Assigned(T, attempt(), B)]
    assert effects[1:] == []


def test_a_superseded_attempt_is_killed_when_its_worker_comes_back() -> None:
    """Another attempt replaced it."""
    world = dispatcher_running_t(a=1, b=1)
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_worker_down(A, moment(LATE))
    world.commit()
    world.dispatch.on_worker_up(node_info(A, 1), moment(LATE))
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)

    assert world.dispatch.on_reattach(A, back, moment(LATE)) == [send_kill(A)]


def test_an_attempt_of_an_ended_task_is_killed() -> None:
    """Also after the task has left memory."""
    world = dispatcher_running_t(a=1)
    deliver_results(world.dispatch, A, results_message(), moment())
    world.commit()
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment())

    assert effects == [send_kill(B, attempt(2))]


def test_an_attempt_unknown_to_its_worker_is_lost_at_once() -> None:
    """The assignment was lost with the link, or the worker restarted."""
    world = dispatcher_running_t(b=1)
    world.dispatch.on_worker_down(B, moment(1))
    world.dispatch.on_worker_up(node_info(B, 1), moment(9))

    effects = world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment(9))

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, LOST_OUTCOME),
        Assigned(T, attempt(2, seq=3), B),
    ]


def test_a_worker_report_precedes_the_log() -> None:
    """The worker listed its attempts before the log was read."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(1, (), has_more=False), moment())
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment())

    effects = world.dispatch.on_live_loaded(
        LiveLoaded(1, (task_record("t", live_attempt(B)),)), moment(9)
    )

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, LOST_OUTCOME),
        Assigned(T, attempt(2), B),
    ]


def test_an_attempt_for_which_another_stands_is_not_the_last_loss() -> None:
    """The other one goes on."""
    lost = [
        Attempt(attempt(n), A, LOST_OUTCOME.state, LOST_OUTCOME)
        for n in range(1, LOSSES_MAX)
    ]
    two = (live_attempt(A, attempt(8)), live_attempt(B, attempt(9)))
    world = dispatcher_with()
    world.dispatch.on_remote_entries(moment(9))

    effects = world.dispatch.on_live_loaded(
        LiveLoaded(1, (task_record("t", *lost, *two),)), moment(9)
    )

    end = Finished(T, attempt(8), A, superseded_end(moment(9)))
    assert appended_facts(effects) == [end]
    assert world.dispatch.outstanding(B) == 1


def test_a_lost_adopted_task_is_read_before_it_runs_again() -> None:
    """It may have ended on the other side of a split: success is never repeated."""
    world = dispatcher_with(a=1)
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_worker_up(node_info(B, 1), moment(LATE))
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)
    world.dispatch.on_reattach(B, back, moment(LATE))
    world.commit()
    found(world, at=LATE)

    effects = world.dispatch.on_worker_down(B, moment(LATE))

    assert appended_facts(effects) == [Finished(T, attempt(), B, LOST_OUTCOME)]
    assert effects[1:] == []
    assert world.commit() == [LoadTasks(1, (T,)), LoadQueued(1, -1, 1000)]


def test_entries_of_another_node_cause_a_new_read_of_the_queue() -> None:
    """Tasks of the other side are queued here, and ended ones are dropped."""
    world = dispatcher_with(task_record())

    effects = world.dispatch.on_remote_entries(moment())
    world.dispatch.on_worker_up(node_info(B, 2), moment())
    world.dispatch.on_reattach(B, Reattach((), 2, NodeState.READY), moment())
    placed = world.dispatch.on_queued_loaded(
        QueuedLoaded(1, (task_record("u", place=2),), has_more=False), moment()
    )

    assert effects == [LoadLive(1, 0, 1000), LoadQueued(1, -1, 1000)]
    assert appended_facts(placed) == [Assigned(TaskId("u"), attempt(), B)]


def test_the_log_may_contain_an_attempt_of_a_queued_task() -> None:
    """Another node's entries arrived between the two reads."""
    world = dispatcher_with()
    world.dispatch.on_remote_entries(moment())
    world.dispatch.on_queued_loaded(
        QueuedLoaded(1, (task_record(),), has_more=False), moment()
    )

    effects = world.dispatch.on_live_loaded(
        LiveLoaded(1, (task_record("t", live_attempt(B)),)), moment()
    )

    assert effects == []
    assert world.dispatch.outstanding(B) == 1
    assert world.timers.next_at() == moment(5).mono_s


def test_a_queued_task_that_ended_elsewhere_does_not_run() -> None:
    """Its success is in another node's log; an older attempt is still open."""
    old = live_attempt(A, attempt(1))
    done = Attempt(id=attempt(2), node=B, state=AttemptState.OK, outcome=outcome())
    released_later = Attempt(
        id=attempt(3),
        node=B,
        state=AttemptState.RELEASED,
        outcome=released(EndReason.LOST),
    )
    world = dispatcher_with()
    world.dispatch.on_remote_entries(moment())
    queued = (task_record("t", released_later),)
    world.dispatch.on_queued_loaded(QueuedLoaded(1, queued, has_more=False), moment())
    world.dispatch.on_worker_up(node_info(B, 1), moment())

    effects = world.dispatch.on_live_loaded(
        LiveLoaded(1, (task_record("t", old, done, released_later),)), moment()
    )

    assert appended_facts(effects) == [
        Decided(T, TaskState.COMPLETED, 1, attempt(2), B),
        Finished(T, attempt(1), A, superseded_end(moment())),
    ]
    assert effects[1:] == []
    attached = world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment())
    assert attached == []


def test_a_record_without_its_submission_is_ignored() -> None:
    """The submission comes with a later PULL."""
    world = dispatcher_with()
    world.dispatch.on_remote_entries(moment())
    partial = TaskRecord(id=T, attempts=(live_attempt(B),))

    effects = world.dispatch.on_live_loaded(LiveLoaded(1, (partial,)), moment())

    assert effects == []
    assert world.dispatch.outstanding(B) == 0


def test_a_worker_that_leaves_in_the_adopt_window_has_its_own_time() -> None:
    """Entries of another node may name absent workers long after the start."""
    world = dispatcher_with()
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_remote_entries(moment(LATE))

    world.dispatch.on_live_loaded(
        LiveLoaded(1, (task_record("t", live_attempt(B)),)), moment(LATE)
    )

    assert world.timers.next_at() == moment(LATE + 5).mono_s
    assert world.dispatch.on_time(moment(LATE + 4)) == []


EARLIER = attempt(stream=StreamId(STREAM - 1))
"""An attempt of an earlier epoch: its end may be in the log of another node."""


def behind(*live: TaskRecord, **workers: int) -> DispatcherWithJournal:
    """Return a dispatcher that has read its log, while peers hold more entries."""
    world = DispatcherWithJournal()
    world.dispatch.reconciler.await_logs(moment())
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    for name, slots in workers.items():
        world.dispatch.on_worker_up(node_info(name, slots), moment())
    asked = world.dispatch.on_time(moment(0.5))
    assert asked == [
        LoadLive(1, 0, 1000),
        LoadQueued(1, -1, 1000),
        LoadUnblocked(2, UNBLOCKED_MAX),
    ]
    world.dispatch.on_queued_loaded(QueuedLoaded(1, (), has_more=False), moment(0.5))
    assert world.dispatch.on_live_loaded(LiveLoaded(1, live), moment(0.5)) == []
    return world


def test_a_worker_that_reported_delays_tasks_for_a_bounded_time() -> None:
    """It may know that a queued task has started; three seconds are enough."""
    world = DispatcherWithJournal()
    world.dispatch.reconciler.await_logs(moment())
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    for tenths in range(30):
        assert world.dispatch.on_time(moment(tenths / 10)) == []
        world.dispatch.reconciler.extend_waits(0, moment(tenths / 10))

    assert world.timers.next_at() == moment(3).mono_s
    assert world.dispatch.on_time(moment(3)) == [
        LoadLive(1, 0, 1000),
        LoadQueued(1, -1, 1000),
        LoadUnblocked(2, UNBLOCKED_MAX),
    ]


def test_logs_are_awaited_while_parts_arrive_for_a_bounded_time() -> None:
    """A slow log is read to its end, but one of gigabytes must not stop the queue."""
    world = DispatcherWithJournal()
    reconciler = world.dispatch.reconciler
    reconciler.await_logs(moment())
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    for tenths in range(10 * int(LOG_WAIT_S_MAX)):
        assert world.dispatch.on_time(moment(tenths / 10)) == []
        reconciler.extend_waits(tenths, moment(tenths / 10))

    assert world.timers.next_at() == moment(LOG_WAIT_S_MAX).mono_s
    warning, asked, *_ = world.dispatch.on_time(moment(LOG_WAIT_S_MAX))
    assert isinstance(warning, LogLine)
    assert warning.event == LOGS_GIVEN_UP
    assert dict(warning.fields)["waited_s"] == LOG_WAIT_S_MAX
    assert asked == LoadLive(1, 0, 1000)
    assert not reconciler.is_log_behind


def test_a_log_that_stops_is_awaited_no_longer() -> None:
    """Its last part starts the times for the last time."""
    world = behind(task_record("t", live_attempt(B)), b=1)
    for at in (1, 4, 4.9):
        world.dispatch.reconciler.extend_waits(1, moment(at))

    assert world.dispatch.on_time(moment(5)) == []
    world.dispatch.on_time(moment(6))
    assert not world.dispatch.reconciler.is_log_behind


def test_an_absent_worker_is_awaited_while_a_log_may_have_its_ends() -> None:
    """Its attempt would be given up, though it ended before its worker did."""
    world = behind(task_record("t", live_attempt(B)), a=1)
    world.dispatch.reconciler.extend_waits(1, moment(4))

    assert world.dispatch.on_time(moment(8)) == []
    _, *effects = world.dispatch.on_time(moment(9))

    assert appended_facts(effects)[0] == Finished(T, attempt(), B, LOST_OUTCOME)


def test_a_worker_that_goes_down_is_awaited_while_a_log_may_have_its_ends() -> None:
    """It reported that it does not run the attempt, which may have ended elsewhere."""
    world = behind(task_record("t", live_attempt(B, EARLIER)), a=1, b=1)
    world.dispatch.on_reattach(*reattach_report("b", 1), moment(1))
    for second in range(2, 9):
        world.dispatch.reconciler.extend_waits(second, moment(second))
        world.dispatch.on_time(moment(second))

    assert world.dispatch.on_worker_down(B, moment(8)) == []
    world.dispatch.on_log_read(moment(9))
    effects = world.dispatch.on_time(moment(9))

    assert appended_facts(effects)[0] == Finished(T, EARLIER, B, LOST_OUTCOME)


@pytest.mark.parametrize("down_s", [1.0, LATE])
def test_what_waited_on_a_worker_that_went_down_is_not_blamed(down_s: float) -> None:
    """In the reattach window as after it: two of three waited for the only slot."""
    names = {name: attempt(1, seq=n) for n, name in enumerate("tuv", start=1)}
    live = tuple(task_record(name, live_attempt(B, of)) for name, of in names.items())
    world = dispatcher_with(live=live)
    world.dispatch.on_worker_up(node_info("b", 1), moment())
    listed = tuple((of, spec(name)) for name, of in names.items())
    world.dispatch.on_reattach(B, Reattach(listed, 3, NodeState.READY), moment())
    world.commit()

    effects = world.dispatch.on_worker_down(B, moment(down_s))
    effects += world.dispatch.on_time(moment(LATE))

    ends = [fact for fact in appended_facts(effects) if isinstance(fact, Finished)]
    assert [(end.task, end.outcome.reason) for end in ends] == [
        ("t", EndReason.LOST),
        ("u", EndReason.RETURNED),
        ("v", EndReason.RETURNED),
    ]


def test_tasks_of_another_log_are_read_once_all_logs_are() -> None:
    """A part of a log may bring a task whose end is in a later part."""
    world = dispatcher_with()
    world.dispatch.reconciler.await_logs(moment(LATE))

    assert world.dispatch.on_remote_entries(moment(LATE)) == []
    assert world.dispatch.on_log_read(moment(LATE)) == [
        LoadLive(1, 0, 1000),
        LoadQueued(1, -1, 1000),
    ]


def test_a_log_that_goes_on_after_a_silence_is_awaited_again() -> None:
    """Each part may bring a task whose end is in a later one."""
    world = behind()
    world.dispatch.reconciler.extend_waits(1, moment(1))

    assert world.dispatch.on_remote_entries(moment(1)) == []
    assert LoadLive(1, 0, 1000) in world.dispatch.on_time(moment(1.5))


def test_an_end_from_another_log_is_read_once_all_logs_are() -> None:
    """A later log may have the verdict of a later epoch."""
    world = behind()
    assert world.dispatch.on_ended_elsewhere((T,), moment(1)) == []

    assert LoadTasks(1, (T,)) in world.dispatch.on_log_read(moment(1))


def test_a_cancel_waits_until_all_logs_are_read() -> None:
    """The task may have ended, as its client was told."""
    world = behind(task_record("t", live_attempt(B)), b=1)
    asked = cancel_request(TaskState.RUNNING, force=True)
    assert world.dispatch.on_cancel_requested(asked, moment(1)) == []
    assert LoadTasks(1, (T,)) in world.dispatch.on_log_read(moment(1))

    end = Attempt(attempt(), B, AttemptState.OK, outcome(), 1)
    effects = found(world, task_record("t", end)) + world.commit()

    answer = cancel_reply(was_done=False, state=TaskState.COMPLETED)
    assert [e for e in effects if isinstance(e, Answer)] == [answer]


def test_a_cancel_that_waits_for_logs_asks_the_next_dispatcher() -> None:
    """The client repeats it."""
    world = behind()
    world.dispatch.on_cancel_requested(cancel_request(), moment(1))

    assert world.dispatch.stop_dispatching() == [Answer(5, NotDispatching())]


def test_an_unlisted_attempt_may_have_ended_until_all_logs_are_read() -> None:
    """The previous dispatcher got its end; this node then reads that log."""
    world = behind(task_record("t", live_attempt(B, EARLIER)), b=1)
    effects = world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment(1))
    assert effects == []

    world.dispatch.reconciler.trust_log()
    assert world.dispatch.on_ended_elsewhere((T,), moment(2)) == [
        LoadTasks(1, (T,)),
        LoadLive(1, 0, 1000),
        LoadQueued(1, -1, 1000),
    ]
    world.dispatch.on_queued_loaded(QueuedLoaded(1, (), has_more=False), moment(2))
    ended = Attempt(EARLIER, B, AttemptState.OK, outcome())
    found(world, task_record("t", ended), at=2)

    assert world.dispatch.outstanding(B) == 0
    again = world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment(2))
    assert again == [LoadTasks(1, (T,)), LoadQueued(1, -1, 1000)]
    effects = world.dispatch.on_queued_loaded(
        QueuedLoaded(1, (task_record("u", place=2),), has_more=False), moment(2)
    )
    assert appended_facts(effects) == [Assigned(TaskId("u"), attempt(), B)]


def test_an_attempt_of_this_epoch_that_its_worker_has_lost_is_in_no_other_log() -> None:
    """Nothing would look at it again: the disk may not have its start by then."""
    world = behind(b=1)
    world.dispatch.on_reattach(*reattach_report("b", 1), moment(1))
    effects = world.dispatch.on_submitted(submission(), moment(1))
    (start,) = [f for f in appended_facts(effects) if isinstance(f, Assigned)]

    back = Reattach((), 1, NodeState.READY)
    world.dispatch.on_worker_down(B, moment(2))
    world.dispatch.on_worker_up(node_info(B, 1), moment(2))
    effects = world.dispatch.on_reattach(B, back, moment(2))

    end, again = appended_facts(effects)
    assert isinstance(end, Finished)
    assert (end.attempt, end.outcome.reason) == (start.attempt, EndReason.LOST)
    assert isinstance(again, Assigned)
    assert again.task == start.task


def test_an_attempt_without_an_end_in_all_logs_is_lost() -> None:
    """Its worker does not list it, and no log has its end."""
    world = behind(task_record("t", live_attempt(B, EARLIER)), b=1)
    world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment(1))
    world.dispatch.reconciler.trust_log()
    world.dispatch.on_remote_entries(moment(9))

    live = LiveLoaded(1, (task_record("t", live_attempt(B, EARLIER)),))
    effects = world.dispatch.on_live_loaded(live, moment(9))

    assert appended_facts(effects) == [
        Finished(T, EARLIER, B, LOST_OUTCOME),
        Assigned(T, attempt(2), B),
    ]


def test_logs_unread_in_the_adopt_window_delay_no_task() -> None:
    """A node that sends nothing may delay the task no longer."""
    world = behind(task_record("t", live_attempt(B, EARLIER)), b=1)
    world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment(1))
    assert world.timers.next_at() == moment(5).mono_s

    warning, *asked = world.dispatch.on_time(moment(LATE))
    assert isinstance(warning, LogLine)
    assert warning.event == LOGS_GIVEN_UP
    assert asked == [LoadLive(1, 0, 1000), LoadQueued(1, -1, 1000)]
    live = LiveLoaded(1, (task_record("t", live_attempt(B, EARLIER)),))
    effects = world.dispatch.on_live_loaded(live, moment(LATE))

    assert appended_facts(effects) == [
        Finished(T, EARLIER, B, LOST_OUTCOME),
        Assigned(T, attempt(2), B),
    ]


def test_the_log_of_a_worker_that_came_back_is_awaited_for_a_bounded_time() -> None:
    """It may never arrive, as its disk may fail."""
    world = dispatcher_with(live=(task_record("t", live_attempt(B, EARLIER)),))
    world.dispatch.on_worker_up(node_info(B, 1), moment(4))
    world.dispatch.reconciler.await_logs(moment(4))

    back = Reattach((), 1, NodeState.READY)
    assert world.dispatch.on_reattach(B, back, moment(4)) == []
    assert world.dispatch.on_time(moment(8)) == []
    world.dispatch.on_time(moment(9))
    live = LiveLoaded(1, (task_record("t", live_attempt(B, EARLIER)),))
    effects = world.dispatch.on_live_loaded(live, moment(9))

    assert appended_facts(effects) == [
        Finished(T, EARLIER, B, LOST_OUTCOME),
        Assigned(T, attempt(2), B),
    ]


def test_a_listed_later_attempt_counts_until_all_logs_are_read() -> None:
    """The previous dispatcher had replaced the attempt in the log."""
    world = behind(task_record("t", live_attempt(A, EARLIER)), a=1, b=1)
    world.dispatch.on_reattach(A, Reattach((), 1, NodeState.READY), moment(1))
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment(1))

    assert appended_facts(effects) == [
        Assigned(T, attempt(2), B),
        Finished(T, EARLIER, A, superseded_end(moment(1))),
    ]
    assert effects[1:] == []
    assert world.dispatch.outstanding(B) == 1


def test_waits_for_an_array_end_when_a_member_is_lost() -> None:
    """A cancelled array is over then, and only the store knows that."""
    array = TaskId("task-007-abcdef12")
    world = dispatcher_with(live=(task_record(f"{array}.1", live_attempt(B)),), a=1)

    world.dispatch.on_time(moment(LATE))

    assert AnnounceTaskStates((array,)) in world.commit()


def test_a_later_attempt_precedes_one_of_a_silent_worker() -> None:
    """Its dispatcher had given up the other one, but that fact is lost."""
    world = dispatcher_with(live=(task_record("t", live_attempt(A)),))
    world.dispatch.on_worker_up(node_info(B, 1), moment(1))
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment(1))

    assert appended_facts(effects) == [
        Assigned(T, attempt(2), B),
        Finished(T, attempt(), A, superseded_end(moment(1))),
    ]
    assert effects[1:] == []
    world.dispatch.on_worker_up(node_info(A, 1), moment(2))
    late = Reattach(((attempt(), spec()),), 1, NodeState.READY)
    assert world.dispatch.on_reattach(A, late, moment(2)) == [send_kill(A)]


def test_a_failure_decides_though_the_log_shows_an_earlier_attempt_as_running() -> None:
    """The later attempt stands for it, and the task asks for no retries."""
    world = dispatcher_with(live=(task_record("t", live_attempt(A)),))
    world.dispatch.on_worker_up(node_info(B, 1), moment(1))
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)
    world.dispatch.on_reattach(B, back, moment(1))

    failure = results_message(report(of=attempt(2), end=FAILED))
    effects = deliver_results(world.dispatch, B, failure, moment(2))

    end = Finished(T, attempt(2), B, FAILED, decided_term=1)
    assert appended_facts(effects) == [end]


def test_the_later_of_two_attempts_in_the_log_is_awaited() -> None:
    """The other one is given up, though it was read first."""
    world = dispatcher_with(live=(task_record("t", live_attempt(A)),))
    world.dispatch.on_remote_entries(moment(1))

    both = task_record("t", live_attempt(A), live_attempt(B, attempt(2)))
    effects = world.dispatch.on_live_loaded(LiveLoaded(1, (both,)), moment(LATE))

    end = Finished(T, attempt(), A, superseded_end(moment(LATE)))
    assert appended_facts(effects) == [end]
    assert (world.dispatch.outstanding(A), world.dispatch.outstanding(B)) == (0, 1)


def test_an_attempt_that_its_worker_stopped_listing_is_not_awaited() -> None:
    """Both attempts would otherwise be given up while the other one runs."""
    world = dispatcher_with(live=(), b=1)
    world.dispatch.on_remote_entries(moment(1))

    both = task_record("t", live_attempt(A), live_attempt(B, attempt(2)))
    effects = world.dispatch.on_live_loaded(LiveLoaded(1, (both,)), moment(LATE))

    end = Finished(T, attempt(2), B, superseded_end(moment(LATE)))
    assert appended_facts(effects) == [end]
    assert world.dispatch.outstanding(A) == 1


def test_an_attempt_of_an_absent_worker_that_ended_in_the_log_is_dropped() -> None:
    """It would otherwise count as lost after the window, and run again."""
    world = dispatcher_with(live=(task_record("t", live_attempt(B)),), a=1)
    world.dispatch.on_ended_elsewhere((T,), moment(1))

    ended = Attempt(attempt(), B, AttemptState.OK, outcome())
    found(world, task_record("t", ended), at=1)

    assert world.dispatch.outstanding(B) == 0
    assert world.dispatch.on_time(moment(LATE)) == []


def test_a_worker_has_room_again_when_its_attempt_runs_elsewhere() -> None:
    """It runs nothing, so no report of an end frees the slot."""
    world = behind(task_record("t", live_attempt(A, EARLIER)), a=1, b=1)
    world.dispatch.on_reattach(A, Reattach((), 1, NodeState.READY), moment(1))
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)
    world.dispatch.on_reattach(B, back, moment(1))

    effects = world.dispatch.on_submitted(submission(), moment(1)) + world.commit(1)

    assert Assigned(TaskId("task-008-00000000"), attempt(seq=4), A) in appended_facts(
        effects
    )


def test_an_assignment_before_a_reattach_on_the_same_link_is_not_lost() -> None:
    """The claim was sent twice, and the report is older than the assignment."""
    world = dispatcher_running_t(a=1)
    world.dispatch.on_worker_up(node_info("a", 1), moment())

    effects = world.dispatch.on_reattach(A, Reattach((), 1, NodeState.READY), moment())

    assert effects == []
    assert world.dispatch.outstanding(A) == 1
