"""A dispatcher accepts durably, places tasks at once, and answers cancels."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.dependencies import UNBLOCKED_MAX
from octaskly.core.effects import (
    AnnounceTaskStates,
    Answer,
    Append,
    Effect,
    LoadLive,
    LoadQueued,
    LoadTasks,
    LoadUnblocked,
    Send,
)
from octaskly.core.events import (
    CancelRequested,
    LiveLoaded,
    QueuedLoaded,
    TasksNotified,
    TasksSubmitted,
)
from octaskly.core.log.facts import (
    NO_FLOOR,
    Assigned,
    Finished,
    Notified,
    Submitted,
    TaskCancelled,
)
from octaskly.core.log.merge import TaskRecord, join_records
from octaskly.core.model.arrays import FORCED_PREFIX, MAX_FAILS_CANCELLER, ArrayProgress
from octaskly.core.model.ids import StreamId, TaskId
from octaskly.core.model.nodes import LoadSample, NodeState
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import ArraySpec, Requirements, TaskOptions
from octaskly.core.model.tasks import Attempt, AttemptState, EndReason, TaskState
from octaskly.core.protocol.messages import Assign as DispatchMessage
from octaskly.core.protocol.messages import (
    HeartbeatOk,
    Kill,
    Reattach,
    Report,
    Results,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.core.replies import (
    CancelResult,
    NotDispatching,
    NotReplicated,
    TasksAccepted,
    Unplaceable,
)
from tests.support.builders import (
    STREAM,
    attempt,
    draft,
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
    send_acknowledgement,
    send_assignment,
    send_kill,
    submission,
    task_record,
)
from tests.support.dispatcher_with_workers import DispatcherWithWorkers


def test_an_epoch_starts_by_reading_queue_and_live_tasks() -> None:
    """Tasks accepted earlier come first."""
    world = DispatcherWithJournal()

    effects = world.dispatch.start_dispatching(epoch(), STREAM, moment())

    assert effects == [
        LoadLive(1, 0, 1000),
        LoadQueued(1, -1, 1000),
        LoadUnblocked(2, UNBLOCKED_MAX),
    ]
    assert world.dispatch.is_active
    assert world.dispatch.is_accepting


def test_answers_to_reads_of_an_earlier_epoch_are_ignored() -> None:
    """They may be older than later decisions."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.stop_dispatching()
    world.dispatch.start_dispatching(epoch(2), STREAM, moment())
    stale = (task_record("t", live_attempt(A)),)

    effects = world.dispatch.on_queued_loaded(
        QueuedLoaded(1, stale, has_more=False), moment()
    )
    effects += world.dispatch.on_live_loaded(LiveLoaded(1, stale), moment())

    assert effects == []
    assert world.dispatch.outstanding(A) == 0


def test_a_node_without_the_role_sends_clients_to_the_dispatcher() -> None:
    """The API then forwards their requests."""
    world = DispatcherWithJournal()
    dispatch = world.dispatch

    assert dispatch.on_submitted(submission(), moment()) == [
        Answer(1, NotDispatching())
    ]
    assert dispatch.on_cancel_requested(cancel_request(), moment()) == [
        Answer(5, NotDispatching())
    ]
    assert deliver_results(dispatch, A, results_message(), moment()) == []
    assert dispatch.on_worker_down(A, moment()) == []
    assert dispatch.on_remote_entries(moment()) == []
    assert dispatch.on_time(moment()) == []
    assert world.timers.next_at() == math.inf
    assert dispatch.on_reattach(A, Reattach((), 1, NodeState.READY), moment()) == []


def test_notified_clients_are_recorded() -> None:
    """The dispatcher alone records them, so that the next one does not repeat it."""
    event = TasksNotified((T, TaskId("u")))

    assert DispatcherWithJournal().dispatch.on_tasks_notified(event, moment()) == []
    effects = dispatcher_with().dispatch.on_tasks_notified(event, moment())
    assert appended_facts(effects) == [Notified(T), Notified(TaskId("u"))]


def test_a_stopping_dispatcher_accepts_no_tasks_but_acknowledges_results() -> None:
    """Its log is handed over; results of workers belong in it."""
    world = dispatcher_running_t(a=1)
    world.dispatch.pause_accepting()

    assert world.dispatch.on_submitted(submission(), moment()) == [
        Answer(1, NotDispatching())
    ]
    effects = deliver_results(world.dispatch, A, results_message(), moment())

    assert appended_facts(effects) == [
        Finished(T, attempt(), A, outcome(), decided_term=1)
    ]
    assert world.commit() == [send_acknowledgement(A), AnnounceTaskStates((T,))]


def test_an_accepted_submission_is_answered_after_the_epoch() -> None:
    """It is durable, and the successor pulls it."""
    world = dispatcher_with()
    world.dispatch.on_submitted(submission(), moment())
    world.dispatch.stop_dispatching()

    (answer,) = world.commit()

    assert isinstance(answer, Answer)
    assert isinstance(answer.reply, TasksAccepted)


HEAD = SnapshotHead(vector=((StreamId(5), 3),), epochs=(), floor=NO_FLOOR, hlc=1)


def stage_rows(world: DispatcherWithJournal) -> None:
    """Stage a snapshot of one part, so that its rows are merged from now on."""
    part = Snapshot(rows=(), cursor=SnapshotCursor(1, 1), has_more=False, head=HEAD)
    world.journal.stage_rows(A, 1, HEAD, part)


def merge_rows(world: DispatcherWithJournal) -> None:
    """End that merge."""
    world.journal.merge_rows(1, HEAD, (), is_last=True)


def test_a_repeated_request_waits_for_the_end_of_a_merge() -> None:
    """It may find a row of the snapshot, which no standby has."""
    world = dispatcher_with()
    stage_rows(world)

    known = world.dispatch.on_submitted(TasksSubmitted(9, (), "me", (), ()), moment())
    world.dispatch.on_submitted(submission(), moment())
    new = world.commit()

    assert known == []
    (answer,) = [effect for effect in new if isinstance(effect, Answer)]
    assert answer.ticket == submission().ticket
    merge_rows(world)
    assert Answer(9, TasksAccepted((), 1)) in world.commit()


def test_an_idle_mesh_starts_a_task_during_its_commit() -> None:
    """The answer waits for the commit; the command need not."""
    world = dispatcher_with(b=2)

    effects = world.dispatch.on_submitted(submission(draft("echo hi")), moment())
    later = world.commit()

    submitted, assigned = appended_facts(effects)
    assert isinstance(submitted, Submitted)
    task = submitted.spec
    assert assigned == Assigned(task.id, attempt(seq=2), B)
    assert effects[1:] == [send_assignment(B, (attempt(seq=2), task))]
    assert task.id == "task-008-00000000"
    assert task.command == "echo hi"
    assert task.created_ms == moment().wall_ms
    assert task.ord >> 56 == 50
    assert later == [Answer(1, TasksAccepted((task,)))]


def test_a_busy_mesh_places_a_task_once_it_is_durable() -> None:
    """A batch gains nothing by an early start, and the store must not miss it."""
    world = dispatcher_with(b=2)

    effects = world.dispatch.on_submitted(submission(draft(), draft()), moment())
    later = world.commit()

    one, two = (
        fact.spec for fact in appended_facts(effects) if isinstance(fact, Submitted)
    )
    assert effects[1:] == []
    assert later[0] == Answer(1, TasksAccepted((one, two)))
    assert later[2:] == [
        send_assignment(B, (attempt(seq=3), one), (attempt(seq=4), two))
    ]


def test_tasks_keep_the_order_of_their_batch() -> None:
    """`ord` grows, even within one millisecond."""
    world = dispatcher_with()

    effects = world.dispatch.on_submitted(submission(draft(), draft()), moment())

    one, two = (
        fact.spec for fact in appended_facts(effects) if isinstance(fact, Submitted)
    )
    assert one.ord < two.ord
    assert [one.id, two.id] == ["task-008-00000000", "task-009-00000001"]


def test_sequence_numbers_of_other_nodes_are_not_reused() -> None:
    """Short ids stay unique where possible."""
    world = dispatcher_with()
    world.dispatch.raise_sequence(41)

    effects = world.dispatch.on_submitted(submission(), moment())

    assert [fact.task for fact in appended_facts(effects)] == ["task-042-00000000"]


def test_an_id_in_hand_is_not_accepted_twice() -> None:
    """Two requests with one key may pass the gateway's check together."""
    world = dispatcher_with()
    first = world.dispatch.on_submitted(submission(draft(id="t")), moment())
    second = world.dispatch.on_submitted(submission(draft(id="t"), ticket=2), moment())
    answers = world.commit()
    third = world.dispatch.on_submitted(submission(draft(id="t"), ticket=3), moment())

    (submitted,) = appended_facts(first)
    assert isinstance(submitted, Submitted)
    reply = TasksAccepted((submitted.spec,))
    assert second == []
    assert answers == [Answer(1, reply), Answer(2, reply)]
    assert third == [Answer(3, reply)]


def test_a_worker_gets_one_message_in_each_step() -> None:
    """Its tasks share frames and commits."""
    world = dispatcher_with(b=2)
    world.dispatch.on_submitted(submission(draft(), draft()), moment())

    later = world.commit()

    assert isinstance(later[1], Append)
    assert len(later[1].entries) == 2
    assert len(later) == 3


def test_a_worker_gets_no_tasks_before_its_report() -> None:
    """It may already run the same task."""
    world = dispatcher_with(task_record())

    up = world.dispatch.on_worker_up(node_info(B, 1), moment())
    effects = world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment())

    assert up == []
    assert appended_facts(effects) == [Assigned(T, attempt(), B)]
    assert effects[1:] == [send_assignment(B, (attempt(), spec()))]
    assert world.dispatch.outstanding(B) == 1


def test_a_heartbeat_with_more_credit_brings_work_at_once() -> None:
    """Short tasks are sent ahead."""
    world = dispatcher_with(task_record("t"), task_record("u", place=2), b=1)
    load = LoadSample(5.0, 0.0, 0, 0)

    effects = world.dispatch.on_heartbeat_ok(
        B, HeartbeatOk(epoch(), 0.0, NodeState.READY, 2, load), moment()
    )

    assert appended_facts(effects) == [Assigned(TaskId("u"), attempt(seq=2), B)]
    assert effects[1:] == [send_assignment(B, (attempt(seq=2), spec("u", ord=2)))]


def test_a_long_batch_is_split_into_several_messages() -> None:
    """A frame above the limit would end the link."""
    world = dispatcher_with(b=2, limits=Limits(entries_bytes=1000))
    big = draft("x" * 200)
    world.dispatch.on_submitted(submission(big, big), moment())

    later = world.commit()

    assert isinstance(later[-1], Send)
    assert [
        len(part.items)
        for part in later[-1].messages
        if isinstance(part, DispatchMessage)
    ] == [1, 1]


def test_a_queued_task_is_cancelled() -> None:
    """The answer waits for the commit."""
    world = dispatcher_with(task_record())

    effects = world.dispatch.on_cancel_requested(cancel_request(), moment())

    assert appended_facts(effects) == [TaskCancelled(T, "ann", term=1)]
    assert effects[1:] == []
    assert world.commit() == [cancel_reply(), AnnounceTaskStates((T,))]


def test_a_read_in_flight_does_not_restore_a_cancelled_task() -> None:
    """The store may have answered before the write of the cancel."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment())
    world.dispatch.on_cancel_requested(cancel_request(), moment())
    world.commit()

    effects = world.dispatch.on_queued_loaded(
        QueuedLoaded(1, (task_record(),), has_more=False), moment()
    )

    assert effects == []


def test_a_running_task_is_not_cancelled_without_force() -> None:
    """Its side effects may matter."""
    world = dispatcher_running_t(b=1)

    effects = world.dispatch.on_cancel_requested(cancel_request(), moment())

    assert effects == [cancel_reply(False, TaskState.RUNNING)]


def test_a_task_that_waits_on_a_worker_is_cancelled_without_force() -> None:
    """It was sent ahead of a free slot, so it has not started."""
    world = dispatcher_with(task_record("s", place=0), task_record(), b=1)
    deliver_results(world.dispatch, B, Results((), credit=2), moment())
    world.commit()
    assert world.dispatch.outstanding(B) == 2

    effects = world.dispatch.on_cancel_requested(cancel_request(), moment())

    assert appended_facts(effects) == [TaskCancelled(T, "ann", term=1)]
    assert effects[1:] == [send_kill(B, attempt(seq=2))]


def test_a_running_task_is_killed_by_force() -> None:
    """The kill leaves at once; the answer waits for the commit."""
    world = dispatcher_running_t(b=1)

    effects = world.dispatch.on_cancel_requested(cancel_request(force=True), moment())
    answer = world.commit()
    again = world.dispatch.on_cancel_requested(
        cancel_request(TaskState.CANCELLED), moment()
    )

    assert appended_facts(effects) == [TaskCancelled(T, "ann", term=1)]
    assert effects[1:] == [send_kill(B)]
    assert answer == [cancel_reply(), AnnounceTaskStates((T,))]
    assert again == [cancel_reply()]


def test_a_task_that_ended_since_its_lookup_is_not_cancelled() -> None:
    """The store said that it runs; meanwhile its end was written, and memory freed."""
    world = dispatcher_running_t(b=1)
    deliver_results(world.dispatch, B, results_message(report()), moment())
    world.commit()

    effects = world.dispatch.on_cancel_requested(
        cancel_request(TaskState.RUNNING, force=True), moment()
    )

    assert effects == [cancel_reply(False, TaskState.COMPLETED)]


@pytest.mark.parametrize(
    ("progress", "state"),
    [
        (ArrayProgress(completed=3), TaskState.COMPLETED),
        (ArrayProgress(completed=1, cancelled=2), TaskState.CANCELLED),
    ],
)
def test_an_array_that_ended_since_its_lookup_is_not_cancelled(
    progress: ArrayProgress, state: TaskState
) -> None:
    """It is read after its cancel: other members may have ended before that."""
    world = dispatcher_with(b=1)
    asked = by_force(TaskId("task-007-abcdef12"))
    assert asked.array_record is not None
    ended = replace(asked.array_record, cancelled_by="ann", progress=progress)

    before = world.dispatch.on_cancel_requested(asked, moment()) + world.commit()
    effects = found(world, ended)

    is_done = state is TaskState.CANCELLED
    assert not [effect for effect in before if isinstance(effect, Answer)]
    assert LoadTasks(1, (ended.id,)) in before
    assert effects[0] == Answer(5, CancelResult(ended.id, state, is_done))


def test_the_cancel_of_an_array_is_repeated_at_the_next_dispatcher() -> None:
    """This one stopped before it could read how the array ended."""
    world = dispatcher_with(b=1)
    asked = by_force(TaskId("task-007-abcdef12"))
    world.dispatch.on_cancel_requested(asked, moment())
    world.commit()

    assert world.dispatch.stop_dispatching() == [Answer(5, NotDispatching())]


def test_a_result_that_is_repeated_for_want_of_a_standby_is_written_once() -> None:
    """Its worker repeats it until a standby has it."""
    world = DispatcherWithJournal(is_strict=True)
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    report = Report(task=T, attempt=attempt(), outcome=outcome(), spec=spec())
    message = Results((report,), 1)

    first = deliver_results(world.dispatch, B, message, moment())
    released = world.commit()
    again = deliver_results(world.dispatch, B, message, moment(1))

    assert appended_facts(first) == [
        Submitted(spec()),
        Finished(T, attempt(), B, outcome()),
    ]
    assert not [effect for effect in released if isinstance(effect, Send)]
    assert again == []


def test_a_strict_mesh_reports_a_cancel_on_one_disk_only() -> None:
    """The cancel takes effect; the client repeats it until a standby has it."""
    world = DispatcherWithJournal(is_strict=True)
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_queued_loaded(
        QueuedLoaded(1, (task_record(),), has_more=False), moment()
    )
    world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())

    effects = world.dispatch.on_cancel_requested(cancel_request(), moment())
    answer = world.commit()
    again = world.dispatch.on_cancel_requested(
        cancel_request(TaskState.CANCELLED), moment()
    )

    assert appended_facts(effects) == [TaskCancelled(T, "ann", term=1)]
    assert answer == [Answer(5, NotReplicated()), AnnounceTaskStates((T,))]
    assert again == [Answer(5, NotReplicated())]


@pytest.mark.parametrize("is_dispatching", [True, False])
def test_a_cancel_of_what_has_ended_waits_for_the_end_of_a_merge(
    *, is_dispatching: bool
) -> None:
    """The end may be in a row of the snapshot, which no standby has."""
    world = dispatcher_with()
    stage_rows(world)

    again = world.dispatch.on_cancel_requested(
        cancel_request(TaskState.CANCELLED), moment()
    )

    assert again == []
    assert world.commit() == []
    merge_rows(world)
    if not is_dispatching:
        world.dispatch.stop_dispatching()
    reply = cancel_reply() if is_dispatching else Answer(5, NotDispatching())
    assert reply in world.commit()


def test_a_known_result_is_written_before_it_is_acknowledged() -> None:
    """It may be known from a row of a snapshot that no standby has."""
    released_once = Attempt(attempt(), B, AttemptState.RELEASED, LOST_OUTCOME)
    world = dispatcher_with(task_record("t", released_once), b=1)
    stage_rows(world)

    told = results_message(report(end=LOST_OUTCOME))
    effects = deliver_results(world.dispatch, B, told, moment())

    assert Finished(T, attempt(), B, LOST_OUTCOME) in appended_facts(effects)
    assert send_acknowledgement(B, attempt()) not in effects
    assert send_acknowledgement(B, attempt()) in world.commit()


def test_a_killed_task_is_not_rerun_when_its_worker_is_lost() -> None:
    """It is cancelled, whatever the end of the attempt."""
    world = dispatcher_running_t(a=1, b=1)
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_cancel_requested(cancel_request(force=True), moment(LATE))
    world.commit()

    effects = world.dispatch.on_worker_down(A, moment(LATE))

    assert appended_facts(effects) == [Finished(T, attempt(), A, LOST_OUTCOME)]
    assert effects[1:] == []


def test_a_kill_is_repeated_when_the_worker_comes_back() -> None:
    """The first kill may have been lost with the link."""
    world = dispatcher_running_t(b=1)
    world.dispatch.on_cancel_requested(cancel_request(force=True), moment())
    world.commit()
    world.dispatch.on_worker_down(B, moment())
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    back = Reattach(((attempt(), spec()),), 1, NodeState.READY)

    assert world.dispatch.on_reattach(B, back, moment()) == [send_kill(B)]


def test_an_ended_task_cannot_be_cancelled() -> None:
    """The store knows the end; nothing is written."""
    world = dispatcher_with()

    done = world.dispatch.on_cancel_requested(
        cancel_request(TaskState.COMPLETED), moment()
    )
    again = world.dispatch.on_cancel_requested(
        cancel_request(TaskState.CANCELLED), moment()
    )

    assert done == [cancel_reply(False, TaskState.COMPLETED)]
    assert again == [cancel_reply()]


@pytest.mark.parametrize(("by", "is_done"), [(None, False), ("ann", True)])
def test_a_repeated_cancel_of_an_array_is_answered_as_done(
    by: str | None, is_done: bool
) -> None:
    """The first answer may be lost; running members are another matter."""
    world = dispatcher_with()
    options = TaskOptions(array=ArraySpec(count=3))
    array = TaskRecord(
        id=T,
        spec=replace(spec(), options=options),
        cancelled_by=by,
        progress=ArrayProgress(running=1, cancelled=2),
    )
    asked = CancelRequested(5, T, TaskState.RUNNING, False, "ann", array)

    effects = world.dispatch.on_cancel_requested(asked, moment())

    state = TaskState.CANCELLED if is_done else TaskState.RUNNING
    assert effects == [cancel_reply(is_done, state)]


def by_force(name: TaskId) -> CancelRequested:
    """Return the forced cancel of an array of three with one running member."""
    spec_ = replace(spec(name), options=TaskOptions(array=ArraySpec(count=3)))
    array = TaskRecord(name, spec_, progress=ArrayProgress(running=1, queued=2))
    return CancelRequested(5, name, TaskState.RUNNING, True, "ann", array)


@pytest.mark.parametrize("is_read", [True, False])
def test_running_members_end_with_their_cancelled_array_in_a_new_epoch(
    is_read: bool,
) -> None:
    """The log is still to be read, or a worker comes back later."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    name = TaskId("task-007-abcdef12")
    asked = by_force(name)
    assert appended_facts(world.dispatch.on_cancel_requested(asked, moment())) == [
        TaskCancelled(name, f"{FORCED_PREFIX}ann", term=1)
    ]

    member = task_record(f"{name}.1", live_attempt(B))
    if is_read:
        live = LiveLoaded(1, (member,))
        effects = world.dispatch.on_live_loaded(live, moment(1))
    else:
        assert member.spec is not None
        world.dispatch.on_worker_up(node_info(B, 1), moment(1))
        back = Reattach(((attempt(), member.spec),), 1, NodeState.READY)
        world.dispatch.on_reattach(B, back, moment(1))
        effects = found(world, member)

    assert TaskCancelled(member.id, "ann", term=1) in appended_facts(effects)
    ordered = Kill(epoch(), ((member.id, attempt()),))
    assert Send(B, (ordered,)) in effects


def test_a_late_member_of_a_cancelled_array_ends_too() -> None:
    """Its worker was away longer than the adopt window, and starts no other member."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    name = TaskId("task-007-abcdef12")
    asked = by_force(name)
    world.dispatch.on_cancel_requested(asked, moment())
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_worker_up(node_info(B, 1), moment(LATE))

    back = Reattach(((attempt(), spec(f"{name}.1")),), 1, NodeState.READY)
    world.dispatch.on_reattach(B, back, moment(LATE))
    effects = found(world, task_record(f"{name}.1", live_attempt(B)))

    ordered = Kill(epoch(), ((TaskId(f"{name}.1"), attempt()),))
    assert Send(B, (ordered,)) in effects


def with_cancelled_array() -> tuple[DispatcherWithJournal, TaskRecord]:
    """Return a dispatcher with a worker, and an array cancelled in another epoch."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    asked = by_force(TaskId("task-007-abcdef12")).array_record
    assert asked is not None
    return world, replace(asked, cancelled_by=f"{FORCED_PREFIX}ann")


def test_a_member_that_had_completed_is_not_cancelled_with_its_array() -> None:
    """A worker may list an attempt that has ended, with too many reports to send."""
    world, array = with_cancelled_array()
    ended = Attempt(attempt(), B, AttemptState.OK, outcome(), decided_term=1)
    member = task_record(f"{array.id}.1", ended)
    assert member.spec is not None
    back = Reattach(((attempt(), member.spec),), 1, NodeState.READY)
    world.dispatch.on_reattach(B, back, moment())

    effects = found(world, array, member)

    assert effects == [Send(B, (Kill(epoch(), ((member.id, attempt()),)),))]


@pytest.mark.parametrize("back_s", [0.0, 1.0, 2.0])
def test_a_member_ends_after_its_array_was_cancelled_in_another_epoch(
    back_s: float,
) -> None:
    """That dispatcher died before the worker came back: with the log, or before it."""
    world, array = with_cancelled_array()
    member = task_record(f"{array.id}.1", live_attempt(B))
    assert member.spec is not None
    back = Reattach(((attempt(), member.spec),), 1, NodeState.READY)
    ordered = Send(B, (Kill(epoch(), ((member.id, attempt()),)),))
    effects: list[Effect] = []

    for step_s in (0.0, 1.0, 2.0):
        if step_s == back_s:
            effects += world.dispatch.on_reattach(B, back, moment(step_s))
        if step_s == 1.0:  # The log lacks the assignment, as that was not awaited.
            live = LiveLoaded(1, (array,))
            effects += world.dispatch.on_live_loaded(live, moment(step_s))
    if any(isinstance(effect, LoadTasks) for effect in effects):
        effects += found(world, member, array)

    assert ordered in effects
    entries = [f for e in effects if isinstance(e, Append) for f in e.entries]
    assert TaskCancelled(member.id, "ann", term=1) in [entry.fact for entry in entries]


def test_running_members_continue_after_a_cancel_without_force() -> None:
    """Every dispatcher lets them run on."""
    world = dispatcher_with(b=1)
    asked = by_force(TaskId("task-007-abcdef12")).array_record
    assert asked is not None
    member = task_record(f"{asked.id}.1", live_attempt(B))
    assert member.spec is not None
    back = Reattach(((attempt(), member.spec),), 1, NodeState.READY)
    world.dispatch.on_reattach(B, back, moment())
    array = replace(asked, cancelled_by="ann")

    effects = world.dispatch.on_live_loaded(LiveLoaded(1, (array, member)), moment())

    assert not any(isinstance(effect, Send) for effect in effects)


def test_a_forced_cancel_prevails_over_other_cancels_of_an_array() -> None:
    """Of several cancels each node keeps the same one."""
    task = TaskId("task-007-abcdef12")
    forced = TaskRecord(task, cancelled_by=f"{FORCED_PREFIX}zoe")

    for by in ("ann", MAX_FAILS_CANCELLER):
        assert join_records(forced, TaskRecord(task, cancelled_by=by)) == forced


def test_a_new_dispatcher_starts_no_members_after_too_many_failures() -> None:
    """Each half of a split had allowed for as many failures."""
    name = TaskId("task-007-abcdef12")
    options = TaskOptions(array=ArraySpec(count=3, max_fails=0))
    progress = ArrayProgress(queued=2, failed=1, remaining_runs=((1, 2),))
    array = TaskRecord(name, replace(spec(name), options=options), progress=progress)
    world = dispatcher_with(b=2)
    world.dispatch.on_remote_entries(moment())

    effects = world.dispatch.on_live_loaded(LiveLoaded(1, (array,)), moment())

    assert appended_facts(effects) == [TaskCancelled(name, MAX_FAILS_CANCELLER, term=1)]
    assert not [effect for effect in effects if isinstance(effect, Send)]


def test_an_array_with_the_name_of_a_cancelled_array_runs() -> None:
    """The cancelled array was forgotten meanwhile."""
    world = dispatcher_with(b=1)
    name = TaskId("mine")
    options = TaskOptions(array=ArraySpec(count=3))
    world.dispatch.on_cancel_requested(by_force(name), moment())
    world.commit()
    world.dispatch.on_submitted(
        submission(replace(draft(), id=name, options=options)), moment()
    )
    world.commit()

    back = Reattach(((attempt(9), spec(f"{name}.1")),), 1, NodeState.READY)
    effects = world.dispatch.on_reattach(B, back, moment(LATE))

    ordered = Kill(epoch(), ((TaskId(f"{name}.1"), attempt(9)),))
    assert Send(B, (ordered,)) not in effects


def test_a_task_that_just_ended_is_over_before_the_store_knows() -> None:
    """Tasks in hand are newer than the gateway's read."""
    world = dispatcher_running_t(b=1)
    deliver_results(world.dispatch, B, results_message(), moment())

    assert (
        world.dispatch.on_cancel_requested(cancel_request(TaskState.RUNNING), moment())
        == []
    )
    assert world.commit()[-1] == cancel_reply(False, TaskState.COMPLETED)


def test_a_task_of_an_earlier_epoch_is_read_from_the_store() -> None:
    """The read of the new epoch may have passed its position already."""
    world = dispatcher_with()
    world.dispatch.on_submitted(submission(), moment())
    world.dispatch.stop_dispatching()
    world.dispatch.start_dispatching(epoch(2), STREAM, moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(2, (), has_more=False), moment())
    world.dispatch.on_live_loaded(LiveLoaded(2, ()), moment())

    (answer, *rest) = world.commit()

    assert isinstance(answer, Answer)
    assert isinstance(answer.reply, TasksAccepted)
    assert LoadQueued(2, -1, 1000) in rest


def test_a_fail_fast_task_does_not_wait_for_a_worker_of_an_earlier_epoch() -> None:
    """It left while another node was dispatcher."""
    world = dispatcher_with(b=8)
    world.dispatch.stop_dispatching()
    world.dispatch.start_dispatching(epoch(2), STREAM, moment())
    options = TaskOptions(requires=Requirements(cpus=8))
    hasty = replace(draft(), options=options, is_fail_fast=True)

    (answer,) = world.dispatch.on_submitted(submission(hasty), moment())

    assert isinstance(answer, Answer)
    assert answer.reply == Unplaceable(0, "no node is here")


def test_workers_that_left_take_no_memory() -> None:
    """Visitors may come and go for months."""
    world = dispatcher_running_t(b=1)
    deliver_results(world.dispatch, B, results_message(), moment())

    for number in range(9):
        visitor = node_id(f"visitor-{number}")
        world.dispatch.on_worker_up(node_info(visitor, 1), moment(LATE))
        world.dispatch.on_reattach(*reattach_report(visitor, 1), moment(LATE))
        world.dispatch.on_worker_down(visitor, moment(LATE))

    assert not world.dispatch._queue.tasks._held


def test_a_task_can_be_cancelled_during_its_lookup() -> None:
    """Its attempt was returned; whether it is queued is not known yet."""
    world = dispatcher_with(b=1)
    back = report(end=released(EndReason.RETURNED), envelope=spec())
    deliver_results(world.dispatch, B, Results((back,), 1), moment())

    effects = world.dispatch.on_cancel_requested(cancel_request(), moment())

    assert appended_facts(effects) == [TaskCancelled(T, "ann", term=1)]
    assert effects[1:] == []
    assert world.commit()[1:] == [cancel_reply(), AnnounceTaskStates((T,))]


def test_a_task_that_the_store_reports_ended_is_not_queued() -> None:
    """The store is asked for queued tasks only, but the rule does not rely on it."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    over = (task_record("t", cancelled="ann"),)

    world.dispatch.on_queued_loaded(QueuedLoaded(1, over, has_more=False), moment())
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    effects = world.dispatch.on_reattach(B, Reattach((), 1, NodeState.READY), moment())

    assert effects == []


@pytest.mark.parametrize("is_prepared", [True, False])
def test_a_task_behind_one_that_is_prepared_may_run_already(is_prepared: bool) -> None:
    """An attempt takes no slot while its files are fetched."""
    first = replace(spec("u", ord=1), outputs=("out",) if is_prepared else ())
    world = dispatcher_with(TaskRecord(first.id, first), task_record(place=2))
    world.dispatch.on_worker_up(node_info(B, 1), moment())
    world.dispatch.on_reattach(*reattach_report(B, 2), moment())
    assert world.dispatch.outstanding(B) == 2
    world.commit()

    asked = cancel_request(TaskState.RUNNING)
    effects = world.dispatch.on_cancel_requested(asked, moment()) + world.commit()

    state = TaskState.RUNNING if is_prepared else TaskState.CANCELLED
    assert cancel_reply(not is_prepared, state) in effects


@pytest.mark.parametrize("are_in_memory", [True, False])
def test_cancelled_tasks_are_counted_in_memory_or_not(are_in_memory: bool) -> None:
    """Most of a long queue is in the store only."""
    waiting = [task_record(name) for name in "abc"]
    world = dispatcher_with(*waiting if are_in_memory else ())

    for record in waiting:
        world.dispatch.on_cancel_requested(cancel_request(task=record.id), moment())
        world.commit()

    assert world.dispatch.ended_counts[TaskState.CANCELLED] == 3


def test_a_task_that_starts_while_it_is_committed_overtakes_none() -> None:
    """A batch that was accepted before it is still being committed."""
    mesh = DispatcherWithWorkers(node_info("b", 1))
    batch = submission(draft("first"), draft("second"))
    started = mesh.note(mesh.dispatch.on_submitted(batch, moment()))

    started += mesh.ask(draft("third"))

    assert started == ["first"]
    assert mesh.end("first") == ["second"]
