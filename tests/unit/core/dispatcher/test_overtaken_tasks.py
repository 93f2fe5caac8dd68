"""Tasks that ended in another node's log do not start during its merge."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.dependencies import UNBLOCKED_MAX
from octaskly.core.dispatcher.reconciliation import REPEATS_MAX
from octaskly.core.effects import (
    AnnounceTaskStates,
    Answer,
    Append,
    Effect,
    LoadQueued,
    LoadTasks,
    LoadUnblocked,
    Send,
)
from octaskly.core.events import (
    CancelRequested,
    LiveLoaded,
    QueuedLoaded,
    TasksLoaded,
    UnblockedLoaded,
    UnblockedTask,
)
from octaskly.core.log.facts import (
    Assigned,
    Decided,
    Fact,
    Finished,
    Reprioritized,
    TaskCancelled,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import (
    MAX_FAILS_CANCELLER,
    ArrayProgress,
    member_id,
    member_spec,
)
from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.task_options import After, ArraySpec, Retry, TaskOptions
from octaskly.core.model.tasks import Attempt, AttemptState, EndReason, TaskState
from octaskly.core.protocol.messages import Kill, Reattach
from octaskly.core.replies import Copied
from tests.support.builders import (
    STREAM,
    attempt,
    draft,
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
    follow_reads,
    found,
    live_attempt,
    reattach_report,
    results_message,
    submission,
    task_record,
)

ARRAY = TaskId("task-001-0000000a")


def array(*rest: tuple[int, int]) -> TaskRecord:
    """Return an array of two with its remaining members."""
    asked = TaskOptions(array=ArraySpec(count=2), retry=Retry(retries=1))
    task = replace(spec(ARRAY, ord=1), options=asked)
    return TaskRecord(
        ARRAY, task, progress=ArrayProgress(queued=2, remaining_runs=rest)
    )


def join(world: DispatcherWithJournal) -> list[Effect]:
    """Attach a worker with room for two."""
    world.dispatch.on_worker_up(node_info(B, 2), moment())
    return world.dispatch.on_reattach(*reattach_report(B, 2), moment())


def test_a_queued_task_that_ended_elsewhere_is_read_again() -> None:
    """Waiting clients get the end; the store knows whether it is the same task."""
    world = dispatcher_with(task_record())

    effects = world.dispatch.on_ended_elsewhere((T,), moment())

    assert effects == [
        LoadTasks(1, (T,)),
        LoadQueued(1, -1, 1000),
    ]
    assert join(world) == []


def later_dispatcher() -> DispatcherWithJournal:
    """Return the dispatcher of term 3, whose log has no task."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(3), STREAM, moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(3, (), has_more=False), moment())
    world.dispatch.on_live_loaded(LiveLoaded(3, ()), moment())
    return world


def test_an_end_from_another_log_is_repeated_before_it_is_announced() -> None:
    """The verdict of an epoch between the two may come later, and counts less then."""
    world = later_dispatcher()
    assert world.dispatch.on_ended_elsewhere((T,), moment()) == [LoadTasks(3, (T,))]

    end = Attempt(attempt(), A, AttemptState.FAILED, FAILED, 1)
    answer = TasksLoaded(3, (T,), (task_record("t", end),))
    effects = world.dispatch.on_tasks_loaded(answer, moment())

    assert appended_facts(effects) == [Decided(T, TaskState.FAILED, 3, attempt(), A)]
    assert effects[1:] == []
    assert world.commit() == [AnnounceTaskStates((T, T))]


def test_an_answer_waits_until_ends_from_another_log_are_repeated() -> None:
    """Otherwise it could show an end that a later verdict replaces."""
    world = later_dispatcher()
    world.dispatch.on_ended_elsewhere((T,), moment())
    assert world.dispatch.on_copies_requested(5, moment()) == []

    answer = TasksLoaded(3, (T,), (replace(task_record(), cancelled_by="ann"),))
    effects = world.dispatch.on_tasks_loaded(answer, moment())

    assert effects == [AnnounceTaskStates((T,)), Answer(5, Copied(1))]


def test_an_answer_waits_for_ends_from_another_log_for_a_bounded_time() -> None:
    """More may arrive for long."""
    world = later_dispatcher()
    world.dispatch.reconciler.await_logs(moment())
    world.dispatch.on_ended_elsewhere((T,), moment())
    world.dispatch.on_copies_requested(5, moment())
    world.dispatch.reconciler.extend_waits(1, moment(4.75))

    assert world.timers.next_at() == moment(5).mono_s
    assert world.dispatch.on_time(moment(5)) == [Answer(5, Copied(1))]


def test_a_bounded_number_of_ends_from_other_logs_is_repeated() -> None:
    """Those of a large half of a split would fill memory and log."""
    world = later_dispatcher()
    ended = tuple(TaskId(f"t{number}") for number in range(REPEATS_MAX + 1))

    effects = world.dispatch.on_ended_elsewhere(ended, moment())

    assert effects == [AnnounceTaskStates(ended[-1:]), LoadTasks(3, ended[:1000])]
    world.dispatch.reconciler.await_logs(moment())
    assert world.dispatch.on_ended_elsewhere(ended[-1:], moment()) == []


def test_a_node_without_the_role_ignores_ends_elsewhere() -> None:
    """A later epoch reads them."""
    world = DispatcherWithJournal()

    assert world.dispatch.on_ended_elsewhere((T,), moment()) == []


def test_an_older_read_starts_no_task_that_ended_elsewhere() -> None:
    """The store was asked before the end was on this disk."""
    world = dispatcher_with()
    world.dispatch.on_remote_entries(moment())
    join(world)
    assert world.dispatch.on_ended_elsewhere((T,), moment()) == [LoadTasks(1, (T,))]

    older = QueuedLoaded(1, (task_record(), task_record("u")), has_more=False)
    effects = world.dispatch.on_queued_loaded(older, moment())

    assert appended_facts(effects) == [Assigned(TaskId("u"), attempt(), B)]
    world.commit()
    world.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())
    assert found(world)[-1:] == [LoadQueued(1, -1, 1000)]


def test_a_later_read_is_believed() -> None:
    """Another task may have the id of a forgotten one."""
    world = dispatcher_with(task_record())
    world.dispatch.on_ended_elsewhere((T,), moment())
    join(world)

    effects = world.dispatch.on_queued_loaded(
        QueuedLoaded(1, (task_record(),), has_more=False), moment()
    )

    assert appended_facts(effects) == [Assigned(T, attempt(), B)]


def test_a_running_task_that_ended_elsewhere_is_read_before_its_end_counts() -> None:
    """A confirmed cancel may have ended it there."""
    world = dispatcher_running_t(a=1)
    asked = world.dispatch.on_ended_elsewhere((T,), moment())

    effects = deliver_results(world.dispatch, A, results_message(), moment())

    assert asked == [LoadTasks(1, (T,))]
    assert appended_facts(effects) == [Finished(T, attempt(), A, outcome())]
    assert world.dispatch.outstanding(A) == 0


def test_a_read_after_an_end_elsewhere_counts_while_older_reads_are_pending() -> None:
    """The others may take long, as more entries keep coming."""
    world = dispatcher_running_t(a=1)
    world.dispatch.on_remote_entries(moment())
    asked = world.dispatch.on_ended_elsewhere((T,), moment())
    assert asked == [LoadTasks(1, (T,))]
    found(world, task_record("t", live_attempt(A)))

    effects = deliver_results(world.dispatch, A, results_message(), moment())

    assert appended_facts(effects) == [Finished(T, attempt(), A, outcome(), 1)]


def test_a_lost_task_that_ended_elsewhere_is_read_before_it_reruns() -> None:
    """Its worker was lost before its report."""
    world = dispatcher_running_t(a=1, b=1)
    world.dispatch.on_time(moment(LATE))
    world.dispatch.on_ended_elsewhere((T,), moment(LATE))

    effects = world.dispatch.on_worker_down(A, moment(LATE))

    assert effects[1:] == []
    assert world.commit() == []  # A read is pending that may be too old.
    again = found(world, task_record("t", live_attempt(A)))
    assert again == [LoadTasks(1, (T,)), LoadQueued(1, -1, 1000)]


def test_a_prefetched_task_that_ended_elsewhere_is_recalled() -> None:
    """Another task precedes it; if it has started all the same, it goes on."""
    world = dispatcher_with(task_record("u"), task_record(place=2))
    world.dispatch.on_worker_up(node_info(A, 1), moment())
    world.dispatch.on_reattach(*reattach_report("a", 2), moment())
    world.commit()

    effects = world.dispatch.on_ended_elsewhere((T, TaskId("u")), moment())

    recall = Kill(epoch(), ((T, attempt(seq=2)),), spares_begun=True)
    assert effects == [Send(A, (recall,)), LoadTasks(1, (T, TaskId("u")))]
    ended = report(of=attempt(seq=2), end=released(EndReason.RETURNED))
    back = deliver_results(
        world.dispatch, A, results_message(ended, credit=0), moment()
    )
    assert [type(fact) for fact in appended_facts(back)] == [Finished]
    world.commit()
    assert LoadTasks(1, (T,)) in found(world, task_record("u", live_attempt(A)))


def test_no_member_of_an_array_cancelled_elsewhere_starts() -> None:
    """Neither a member that was never assigned, nor one with a retry."""
    world = dispatcher_with(array((0, 1)), a=1)
    first = member_id(ARRAY, 0)
    world.dispatch.on_ended_elsewhere((ARRAY,), moment())

    failed = results_message(report(first, end=FAILED))
    effects = deliver_results(world.dispatch, A, failed, moment()) + world.commit()
    effects += world.dispatch.on_time(moment(LATE)) + world.commit()

    appended = [each for each in effects if isinstance(each, Append)]
    facts_ = [entry.fact for each in appended for entry in each.entries]
    assert not [fact for fact in facts_ if isinstance(fact, Assigned)]


def test_a_member_that_ended_elsewhere_does_not_start() -> None:
    """The others do."""
    world = dispatcher_with(array((0, 1)))
    world.dispatch.on_ended_elsewhere((member_id(ARRAY, 0),), moment())

    assert appended_facts(join(world)) == [Assigned(member_id(ARRAY, 1), attempt(), B)]


def test_an_array_cancelled_while_it_is_read_again_starts_no_member() -> None:
    """The read is older than the cancel."""
    world = dispatcher_with(array((0, 1)))
    world.dispatch.on_submitted(submission(), moment())
    number = world.journal.last_number
    world.dispatch.on_ended_elsewhere((ARRAY,), moment())
    asked = CancelRequested(2, ARRAY, TaskState.QUEUED, False, "ann", array((0, 1)))
    world.dispatch.on_cancel_requested(asked, moment())
    world.journal.on_persisted(number)  # The cancel is not durable yet.
    world.journal.run_deferred(moment())

    found(world, array((0, 1)))

    assert not [fact for fact in appended_facts(join(world)) if is_of_member(fact)]


def array_over_at_once(
    failed: int = 0, queued: int = 1, *rest: tuple[int, int]
) -> TaskRecord:
    """Return an array of three members with `max_fails` 0."""
    options = TaskOptions(array=ArraySpec(count=3, max_fails=0))
    task = replace(spec(ARRAY, ord=1), options=options)
    progress = ArrayProgress(queued, failed=failed, remaining_runs=rest)
    return TaskRecord(ARRAY, task, progress=progress)


CUT_OFF = TaskCancelled(ARRAY, MAX_FAILS_CANCELLER, term=1)


def test_failures_count_while_their_array_is_read_again() -> None:
    """The read is older than the failure."""
    world = dispatcher_with(array_over_at_once(0, 3, (0, 2)), a=1)
    world.dispatch.on_ended_elsewhere((ARRAY,), moment())
    member = report(member_id(ARRAY, 0), end=FAILED)
    failed = deliver_results(world.dispatch, A, results_message(member), moment())

    effects = found(world, array_over_at_once(0, 2, (1, 2)))

    assert CUT_OFF in appended_facts(failed)
    assert not [effect for effect in effects if isinstance(effect, Append)]


def test_no_member_begins_before_a_failure_elsewhere_counts() -> None:
    """The array is read once more, as that failure may be one too many."""
    world = dispatcher_with(array_over_at_once(0, 3, (0, 2)))

    ended = member_id(ARRAY, 2)
    effects = world.dispatch.on_ended_elsewhere((ended,), moment())

    assert LoadTasks(1, (ended, ARRAY)) in effects
    assert join(world) == []
    assert appended_facts(found(world, array_over_at_once(1, 2, (0, 1)))) == [CUT_OFF]


def test_a_failure_during_the_first_read_of_its_array_counts() -> None:
    """The read is older than the failure, so it is made again."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(2), STREAM, moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(2, (), has_more=False), moment())
    first = replace(task_record(member_id(ARRAY, 0)), attempts=(live_attempt(B),))
    world.dispatch.on_live_loaded(LiveLoaded(2, (first,)), moment())
    world.dispatch.on_worker_up(node_info(B, 2), moment())
    assert first.spec is not None
    listed = Reattach(((attempt(), first.spec),), 1, NodeState.READY)
    world.dispatch.on_reattach(B, listed, moment())
    failed = results_message(report(first.id, end=FAILED))
    deliver_results(world.dispatch, B, failed, moment())

    older = TasksLoaded(2, (ARRAY,), (array_over_at_once(0, 2, (1, 2)),))
    effects = world.dispatch.on_tasks_loaded(older, moment())

    assert effects == []
    assert LoadTasks(2, (ARRAY,)) in world.commit()


def test_a_member_that_waits_does_not_begin_before_its_array_is_read() -> None:
    """Too many others may have failed."""
    tried = Attempt(attempt(), A, AttemptState.RELEASED, released(EndReason.RETURNED))
    member = task_record(member_id(ARRAY, 0), tried)
    world = dispatcher_with(member)

    assert join(world) == []
    effects = found(world, array_over_at_once(0, 1))
    assert LoadQueued(1, -1, 1000) in effects
    loaded = QueuedLoaded(1, (member,), has_more=False)
    begun = world.dispatch.on_queued_loaded(loaded, moment())
    assert appended_facts(begun) == [Assigned(member.id, attempt(2, seq=1), B)]


@pytest.mark.parametrize("cancelled_by", [None, "ann"])
def test_a_late_loss_fails_no_member_that_was_cancelled_with_its_array(
    cancelled_by: str | None,
) -> None:
    """Clients were told so before another log brought an attempt that must not recur.

    Only the store knows whether the array was cancelled.
    """
    world = dispatcher_with(b=1)
    world.dispatch.on_remote_entries(moment())
    world.dispatch.on_queued_loaded(QueuedLoaded(1, (), has_more=False), moment())
    once = TaskOptions(retry=Retry(on_lost=False))
    member = task_record(member_id(ARRAY, 0), live_attempt(B))
    assert member.spec is not None
    member = replace(member, spec=replace(member.spec, options=once))

    read = LiveLoaded(1, (member,))
    effects = world.dispatch.on_live_loaded(read, moment(LATE))
    stored = replace(member, cancelled_by=cancelled_by)
    loss, *verdicts = follow_reads(world, stored, effects)

    assert loss == Finished(member.id, attempt(), B, LOST_OUTCOME)
    failed = Decided(member.id, TaskState.FAILED, 1, attempt(), B)
    assert verdicts == ([failed] if cancelled_by is None else [])


def is_of_member(fact: Fact) -> bool:
    """Return True if a member was assigned."""
    return isinstance(fact, Assigned) and fact.task.startswith(ARRAY)


def test_a_dependent_task_that_ended_elsewhere_during_a_read_does_not_run() -> None:
    """The read is older than the end."""
    late = TaskOptions(after=After(tasks=("p",)))
    world = dispatcher_with(b=1)
    world.dispatch.on_store_answer(UnblockedLoaded(2, (), has_more=False), moment())
    world.dispatch.on_submitted(submission(replace(draft(), options=late)), moment())
    assert LoadUnblocked(3, UNBLOCKED_MAX) in world.commit()

    world.dispatch.on_ended_elsewhere((T,), moment())
    waits = TaskRecord(T, replace(spec(), options=late))
    answer = UnblockedLoaded(3, (UnblockedTask(waits, None),), has_more=False)
    effects = world.dispatch.on_store_answer(answer, moment()) + world.commit()

    assert not [effect for effect in effects if isinstance(effect, Append)]


def test_an_end_that_waits_for_the_store_is_not_judged_by_an_older_read() -> None:
    """Entries of another node may have used up all attempts meanwhile."""
    retried = TaskOptions(retry=Retry(retries=1))
    log = replace(task_record(), spec=replace(spec(), options=retried))
    world = dispatcher_with(a=1)
    late = report(of=attempt(2), end=FAILED, envelope=log.spec)
    deliver_results(world.dispatch, A, results_message(late), moment())
    assert LoadTasks(1, (T,)) in world.commit()

    world.dispatch.on_ended_elsewhere((T,), moment())
    effects = found(world, log)

    assert LoadTasks(1, (T,)) in effects
    ends = [Attempt(attempt(n), A, AttemptState.FAILED, FAILED) for n in (1, 2)]
    effects = found(world, replace(log, attempts=tuple(ends)))
    assert appended_facts(effects) == [Decided(T, TaskState.FAILED, 1, attempt(2), A)]


def test_a_read_member_of_a_moved_array_does_not_start_after_its_cancel() -> None:
    """The array's priority was changed, so members that are read are queued anew."""
    moved = Reprioritized(ARRAY, 1, 1, 5)
    whole = replace(spec(ARRAY), options=TaskOptions(array=ArraySpec(count=2)))
    task = member_spec(whole, 0)
    assert task is not None
    running = TaskRecord(
        task.id, task, attempts=(live_attempt(B),), reprioritized=moved
    )
    end = Attempt(attempt(), B, AttemptState.RELEASED, LOST_OUTCOME)
    lost = replace(running, attempts=(end,))
    one_runs = ArrayProgress(running=1, completed=1)
    both = TaskRecord(ARRAY, whole, progress=one_runs, reprioritized=moved)
    world = dispatcher_with(live=(running, both))
    dispatch, now = world.dispatch, moment(LATE)
    dispatch.on_worker_up(node_info("b", 1), moment())
    listed = Reattach(((attempt(), task),), 1, NodeState.READY)
    dispatch.on_reattach(B, listed, moment())
    dispatch.on_time(now)
    dispatch.on_tasks_loaded(TasksLoaded(1, (ARRAY,), (both,)), now)
    dispatch.on_worker_down(B, now)
    assert any(isinstance(effect, LoadTasks) for effect in world.commit(LATE))

    one_waits = replace(both, progress=ArrayProgress(queued=1, completed=1))
    cancel = CancelRequested(5, ARRAY, TaskState.RUNNING, False, "ann", one_waits)
    dispatch.on_cancel_requested(cancel, now)
    effects = dispatch.on_queued_loaded(QueuedLoaded(1, (lost,), has_more=False), now)
    effects += dispatch.on_tasks_loaded(TasksLoaded(1, (task.id,), (lost,)), now)
    dispatch.on_worker_up(node_info("a", 1), now)
    effects += dispatch.on_reattach(*reattach_report("a", 1), now)

    appends = [effect for effect in effects if isinstance(effect, Append)]
    facts = [entry.fact for append in appends for entry in append.entries]
    assert not any(isinstance(fact, Assigned) for fact in facts)


def test_an_end_that_another_log_corrects_is_what_a_cancel_answers() -> None:
    """The task failed here and left memory; an attempt of a split had succeeded."""
    world = dispatcher_running_t(b=1)
    failed = results_message(report(end=FAILED))
    deliver_results(world.dispatch, B, failed, moment())
    world.commit()
    split = AttemptId(1, StreamId(99), 5, 1)
    record = task_record(
        "t",
        Attempt(split, A, AttemptState.OK, outcome(), 1),
        Attempt(attempt(), B, AttemptState.FAILED, FAILED, 1),
    )
    world.dispatch.on_ended_elsewhere((T,), moment(1))
    world.commit(1)
    found(world, record, at=1)
    world.commit(1)

    asked = cancel_request(TaskState.COMPLETED)
    effects = world.dispatch.on_cancel_requested(asked, moment(2)) + world.commit(2)

    assert cancel_reply(was_done=False, state=TaskState.COMPLETED) in effects
