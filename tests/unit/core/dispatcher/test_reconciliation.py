"""Workers come and go; what they run is kept, and what they lost is run again."""

from __future__ import annotations

from octaskly.core.dispatcher.dependencies import UNBLOCKED_MAX
from octaskly.core.effects import (
    AnnounceTaskStates,
    LoadLive,
    LoadQueued,
    LoadUnblocked,
)
from octaskly.core.events import LiveLoaded, QueuedLoaded
from octaskly.core.log.facts import Assigned, Finished, Submitted
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.tasks import Attempt, AttemptState, EndReason, Outcome
from octaskly.core.protocol.messages import Reattach
from tests.support.builders import (
    STREAM,
    attempt,
    epoch,
    moment,
    node_info,
    outcome,
    released,
    spec,
)
from tests.support.dispatcher import (
    LATE,
    LOST_OUTCOME,
    A,
    B,
    DispatcherWithJournal,
    T,
    appended_facts,
    dispatcher_running_t,
    dispatcher_with,
    live_attempt,
    results_message,
    send_assignment,
    send_kill,
    submission,
    task_record,
)


def test_a_lost_worker_s_attempts_run_elsewhere_at_once() -> None:
    """A new attempt with a new number."""
    world = dispatcher_running_t(a=1, b=1)
    world.dispatch.on_time(moment(LATE))

    effects = world.dispatch.on_worker_down(A, moment(LATE))

    assert appended_facts(effects) == [
        Finished(T, attempt(), A, LOST_OUTCOME),
        Assigned(T, attempt(2), B),
    ]
    assert effects[1:] == [send_assignment(B, (attempt(2), spec()))]


def test_a_new_dispatcher_waits_for_the_workers_of_the_reign_before() -> None:
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


def test_an_attempt_that_its_worker_still_runs_is_adopted_as_it_is() -> None:
    """No fact is needed: the log is right."""
    world = dispatcher_with(live=(task_record("t", live_attempt(B)),), a=1)
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment())

    assert effects == []
    assert world.dispatch.outstanding(B) == 1
    assert world.dispatch.on_time(moment(LATE)) == []


def test_an_attempt_that_the_log_does_not_know_becomes_a_fact() -> None:
    """Its assignment was not yet replicated when the dispatcher died."""
    world = dispatcher_with()
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment())

    assert appended_facts(effects) == [Submitted(spec()), Assigned(T, attempt(), B)]
    assert effects[1:] == [LoadLive((T,))]
    assert world.dispatch.outstanding(B) == 1


def test_a_queued_task_that_a_worker_already_runs_is_not_started_again() -> None:
    """The task reached the log, its assignment did not."""
    world = dispatcher_with(task_record())
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment())

    assert appended_facts(effects) == [Assigned(T, attempt(), B)]
    assert effects[1:] == []


def test_a_superseded_attempt_is_killed_when_its_worker_comes_back() -> None:
    """Another one has its place."""
    world = dispatcher_running_t(a=1, b=1)
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_worker_down(A, moment(LATE))
    world.commit()
    world.dispatch.on_worker_up(node_info(A, 1), moment(LATE))
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)

    assert world.dispatch.on_reattach(A, back, moment(LATE)) == [send_kill(A)]


def test_an_attempt_of_a_task_that_ended_is_killed() -> None:
    """Also when the task was let go of since."""
    world = dispatcher_running_t(a=1)
    world.dispatch.on_results(A, results_message(), moment())
    world.commit()
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment())

    assert effects == [send_kill(B, attempt(2))]


def test_an_attempt_that_a_worker_does_not_know_any_more_is_lost_at_once() -> None:
    """The order was lost with the link, or the worker restarted."""
    world = dispatcher_running_t(b=1)
    world.dispatch.on_worker_down(B, moment(1))
    world.dispatch.on_worker_up(node_info(B, 1), moment(9))

    effects = world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment(9))

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, LOST_OUTCOME),
        Assigned(T, attempt(2), B),
    ]


def test_the_log_is_not_believed_about_a_worker_that_has_already_spoken() -> None:
    """It said what it runs before the log was read."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(-1, (), has_more=False), moment())
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment())

    effects = world.dispatch.on_live_loaded(
        LiveLoaded((task_record("t", live_attempt(B)),)), moment(9)
    )

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, LOST_OUTCOME),
        Assigned(T, attempt(2), B),
    ]


def test_of_two_live_attempts_in_the_log_the_older_is_given_up() -> None:
    """Two sides of a split each ran the task."""
    two = (live_attempt(A, attempt(1)), live_attempt(B, attempt(2)))
    world = dispatcher_with()
    world.dispatch.on_remote_entries(moment(9))

    effects = world.dispatch.on_live_loaded(
        LiveLoaded((task_record("t", *two),)), moment(9)
    )

    assert appended_facts(effects) == [Finished(T, attempt(1), A, LOST_OUTCOME)]
    assert world.dispatch.outstanding(B) == 1


def test_an_adopted_task_that_is_lost_is_looked_up_before_it_runs_again() -> None:
    """It may have ended on the other side of a split: success is never repeated."""
    world = dispatcher_with(a=1)
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_worker_up(node_info(B, 1), moment(LATE))
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)
    world.dispatch.on_reattach(B, back, moment(LATE))
    world.commit()
    world.dispatch.on_live_loaded(LiveLoaded(()), moment(LATE))

    effects = world.dispatch.on_worker_down(B, moment(LATE))

    assert appended_facts(effects) == [Finished(T, attempt(), B, LOST_OUTCOME)]
    assert effects[1:] == []
    assert world.commit() == [LoadLive(), LoadQueued(-2, 1000)]


def test_entries_of_another_node_make_the_queue_be_read_again() -> None:
    """Tasks of the other side are queued here, and ended ones are dropped."""
    world = dispatcher_with(task_record())

    effects = world.dispatch.on_remote_entries(moment())
    world.dispatch.on_worker_up(node_info(B, 2), moment())
    world.dispatch.on_reattach(B, Reattach((), 2, NodeState.READY), moment())
    placed = world.dispatch.on_queued_loaded(
        QueuedLoaded(-2, (task_record("u", place=2),), has_more=False), moment()
    )

    assert effects == [LoadLive(), LoadQueued(-2, 1000)]
    assert appended_facts(placed) == [Assigned(TaskId("u"), attempt(), B)]


def test_the_log_may_know_of_an_attempt_of_a_task_that_was_read_as_queued() -> None:
    """Another node's entries arrived between the two reads."""
    world = dispatcher_with()
    world.dispatch.on_remote_entries(moment())
    world.dispatch.on_queued_loaded(
        QueuedLoaded(-2, (task_record(),), has_more=False), moment()
    )

    effects = world.dispatch.on_live_loaded(
        LiveLoaded((task_record("t", live_attempt(B)),)), moment()
    )

    assert effects == []
    assert world.dispatch.outstanding(B) == 1
    assert world.timers.next_at() == moment(5).mono_s


def test_a_queued_task_that_ended_elsewhere_is_not_run() -> None:
    """Its success came with another node's log; an older attempt is still open."""
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
    world.dispatch.on_queued_loaded(QueuedLoaded(-2, queued, has_more=False), moment())
    world.dispatch.on_worker_up(node_info(B, 1), moment())

    effects = world.dispatch.on_live_loaded(
        LiveLoaded((task_record("t", old, done, released_later),)), moment()
    )

    lost = Outcome(
        state=AttemptState.RELEASED, reason=EndReason.LOST, ended_ms=moment().wall_ms
    )
    assert appended_facts(effects) == [Finished(T, attempt(1), A, lost)]
    assert effects[1:] == []
    attached = world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment())
    assert attached == []


def test_a_record_without_its_submission_is_left_alone() -> None:
    """It comes with a later PULL."""
    world = dispatcher_with()
    world.dispatch.on_remote_entries(moment())
    partial = TaskRecord(id=T, attempts=(live_attempt(B),))

    effects = world.dispatch.on_live_loaded(LiveLoaded((partial,)), moment())

    assert effects == []
    assert world.dispatch.outstanding(B) == 0


def test_a_worker_that_went_while_others_are_awaited_has_its_own_time() -> None:
    """Entries of another node may name absent workers long after the start."""
    world = dispatcher_with()
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_remote_entries(moment(LATE))

    world.dispatch.on_live_loaded(
        LiveLoaded((task_record("t", live_attempt(B)),)), moment(LATE)
    )

    assert world.timers.next_at() == moment(LATE + 5).mono_s
    assert world.dispatch.on_time(moment(LATE + 4)) == []


def behind(*live: TaskRecord, **workers: int) -> DispatcherWithJournal:
    """Return a reign that has read its log though others hold more than it says."""
    world = DispatcherWithJournal()
    world.dispatch.reconciler.delay_read(moment())
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    for name, slots in workers.items():
        world.dispatch.on_worker_up(node_info(name, slots), moment())
    asked = world.dispatch.on_time(moment(0.5))
    assert asked == [LoadLive(), LoadQueued(-1, 1000), LoadUnblocked(2, UNBLOCKED_MAX)]
    world.dispatch.on_queued_loaded(QueuedLoaded(-1, (), has_more=False), moment(0.5))
    assert world.dispatch.on_live_loaded(LiveLoaded(live), moment(0.5)) == []
    return world


def test_who_speaks_is_waited_for_but_not_for_ever() -> None:
    """Of what waits, it may know that it has begun; three seconds are enough."""
    world = DispatcherWithJournal()
    world.dispatch.reconciler.delay_read(moment())
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    for tenths in range(30):
        assert world.dispatch.on_time(moment(tenths / 10)) == []
        world.dispatch.reconciler.extend_read_delay(moment(tenths / 10))

    assert world.timers.next_at() == moment(3).mono_s
    assert world.dispatch.on_time(moment(3)) == [
        LoadLive(),
        LoadQueued(-1, 1000),
        LoadUnblocked(2, UNBLOCKED_MAX),
    ]


def test_what_a_worker_does_not_list_may_have_ended_until_all_is_read() -> None:
    """Its end came to the dispatcher before; then this node reads what that held."""
    world = behind(task_record("t", live_attempt(B)), b=1)
    effects = world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment(1))
    assert effects == []

    world.dispatch.reconciler.trust_log()
    assert world.dispatch.on_remote_entries(moment(2)) == [
        LoadLive(),
        LoadQueued(-2, 1000),
    ]
    world.dispatch.on_queued_loaded(QueuedLoaded(-2, (), has_more=False), moment(2))
    effects = world.dispatch.on_live_loaded(LiveLoaded(()), moment(2))

    assert effects == [LoadLive(), LoadQueued(-3, 1000)]
    assert world.dispatch.outstanding(B) == 0
    effects = world.dispatch.on_queued_loaded(
        QueuedLoaded(-3, (task_record("u", place=2),), has_more=False), moment(2)
    )
    assert appended_facts(effects) == [Assigned(TaskId("u"), attempt(), B)]


def test_what_is_still_live_when_all_is_read_is_lost() -> None:
    """Its worker lists nothing, and nobody knows of an end."""
    world = behind(task_record("t", live_attempt(B)), b=1)
    world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment(1))
    world.dispatch.reconciler.trust_log()
    world.dispatch.on_remote_entries(moment(9))

    live = LiveLoaded((task_record("t", live_attempt(B)),))
    effects = world.dispatch.on_live_loaded(live, moment(9))

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, LOST_OUTCOME),
        Assigned(T, attempt(2), B),
    ]


def test_what_is_not_read_in_the_adopt_window_is_not_waited_for() -> None:
    """A node that tells nothing may hold the task up for no longer."""
    world = behind(task_record("t", live_attempt(B)), b=1)
    world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment(1))
    assert world.timers.next_at() == moment(5).mono_s

    assert world.dispatch.on_time(moment(LATE)) == [LoadLive(), LoadQueued(-2, 1000)]
    live = LiveLoaded((task_record("t", live_attempt(B)),))
    effects = world.dispatch.on_live_loaded(live, moment(LATE))

    assert appended_facts(effects) == [
        Finished(T, attempt(), B, LOST_OUTCOME),
        Assigned(T, attempt(2), B),
    ]


def test_until_all_is_read_a_later_attempt_that_a_worker_lists_counts() -> None:
    """The dispatcher before had given up the one that the log shows."""
    world = behind(task_record("t", live_attempt(A)), a=1, b=1)
    world.dispatch.on_reattach(A, Reattach((), 1, NodeState.READY), moment(1))
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment(1))

    assert appended_facts(effects) == [Assigned(T, attempt(2), B)]
    assert effects[1:] == []
    assert world.dispatch.outstanding(B) == 1


def test_who_waits_for_an_array_is_told_when_a_member_of_it_is_lost() -> None:
    """If it was cancelled, it is over by that, and only the store can tell."""
    array = TaskId("task-007-abcdef12")
    world = dispatcher_with(live=(task_record(f"{array}.1", live_attempt(B)),), a=1)

    world.dispatch.on_time(moment(LATE))

    assert AnnounceTaskStates((array,)) in world.commit()


def test_a_later_attempt_counts_over_one_whose_worker_is_not_heard() -> None:
    """Who began it had given that up, which is on no disk that is left."""
    world = dispatcher_with(live=(task_record("t", live_attempt(A)),))
    world.dispatch.on_worker_up(node_info(B, 1), moment(1))
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)

    effects = world.dispatch.on_reattach(B, back, moment(1))

    assert appended_facts(effects) == [Assigned(T, attempt(2), B)]
    assert effects[1:] == []
    world.dispatch.on_worker_up(node_info(A, 1), moment(2))
    late = Reattach(((attempt(), spec()),), 1, NodeState.READY)
    assert world.dispatch.on_reattach(A, late, moment(2)) == [send_kill(A)]


def test_of_two_attempts_that_the_log_shows_the_later_is_awaited() -> None:
    """The other one is given up, though it was read first."""
    world = dispatcher_with(live=(task_record("t", live_attempt(A)),))
    world.dispatch.on_remote_entries(moment(1))

    both = task_record("t", live_attempt(A), live_attempt(B, attempt(2)))
    effects = world.dispatch.on_live_loaded(LiveLoaded((both,)), moment(LATE))

    assert appended_facts(effects) == [Finished(T, attempt(), A, LOST_OUTCOME)]
    assert (world.dispatch.outstanding(A), world.dispatch.outstanding(B)) == (0, 1)


def test_an_attempt_that_its_worker_lists_no_more_is_not_the_one_to_await() -> None:
    """Else both were given up, and the other one runs on."""
    world = dispatcher_with(live=(), b=1)
    world.dispatch.on_remote_entries(moment(1))

    both = task_record("t", live_attempt(A), live_attempt(B, attempt(2)))
    effects = world.dispatch.on_live_loaded(LiveLoaded((both,)), moment(LATE))

    assert appended_facts(effects) == [Finished(T, attempt(2), B, LOST_OUTCOME)]
    assert world.dispatch.outstanding(A) == 1


def test_an_absent_worker_s_attempt_that_the_log_shows_ended_is_let_go() -> None:
    """Else it would count as lost when the time is over, and run again."""
    world = dispatcher_with(live=(task_record("t", live_attempt(B)),), a=1)
    world.dispatch.on_remote_entries(moment(1))

    world.dispatch.on_live_loaded(LiveLoaded(()), moment(1))

    assert world.dispatch.outstanding(B) == 0
    assert world.dispatch.on_time(moment(LATE)) == []


def test_who_was_taken_to_run_what_runs_elsewhere_has_room_again() -> None:
    """It runs nothing, so it never tells of an end by which it would be counted."""
    world = behind(task_record("t", live_attempt(A)), a=1, b=1)
    world.dispatch.on_reattach(A, Reattach((), 1, NodeState.READY), moment(1))
    back = Reattach(((attempt(2), spec()),), 1, NodeState.READY)
    world.dispatch.on_reattach(B, back, moment(1))

    effects = world.dispatch.on_submitted(submission(), moment(1)) + world.commit(1)

    assert Assigned(TaskId("task-008-00000000"), attempt(), A) in appended_facts(
        effects
    )


def test_what_was_given_to_a_worker_that_reattaches_by_the_same_link_is_not_lost() -> (
    None
):
    """It was claimed twice, as its answer took long; it did not know of this yet."""
    world = dispatcher_running_t(a=1)
    world.dispatch.on_worker_up(node_info("a", 1), moment())

    effects = world.dispatch.on_reattach(A, Reattach((), 1, NodeState.READY), moment())

    assert effects == []
    assert world.dispatch.outstanding(A) == 1
