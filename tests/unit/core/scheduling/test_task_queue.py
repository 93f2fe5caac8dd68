"""The queue's window: ordered, bounded, and never older than decisions."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.effects import LoadLive, LoadQueued, LoadTasks
from octaskly.core.events import LiveLoaded, QueuedLoaded
from octaskly.core.log.facts import Assigned, Finished, Reprioritized
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import member_id
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import (
    Requirements,
    TaskOptions,
    without_stdin,
)
from octaskly.core.model.tasks import (
    MEMBERS_LANE,
    Attempt,
    EndReason,
    LaneKey,
    Outcome,
    TaskSpec,
    TaskState,
    priority_of,
)
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.scheduling.queue_lanes import Flow
from octaskly.core.scheduling.queued_task import (
    QueuedTask,
    Stage,
)
from octaskly.core.scheduling.task_queue import BackoffQueue, TaskQueue
from tests.support.builders import (
    BAND,
    attempt,
    moment,
    node_id,
    outcome,
    released,
    spec,
)
from tests.support.dispatcher import queued_count

A = node_id("a")
B = node_id("b")
LANE = LaneKey(0, "tester")


def queue(window: int = 4, load: int = 2) -> TaskQueue:
    """Return an empty queue whose store is empty, too."""
    made = TaskQueue(Limits(window_tasks=window, load_tasks=load))
    made.start_reading(1)
    made.on_queued_answer(QueuedLoaded(1, (), has_more=False))
    made.on_live_answer(LiveLoaded(1, ()))
    return made


def record(place: int, *attempts: Attempt) -> TaskRecord:
    """Return a queued task as the store has it."""
    task = spec(f"t{place}", ord=place)
    return TaskRecord(id=task.id, spec=task, attempts=attempts)


def cancelled(task: TaskSpec) -> TaskRecord:
    """Return a task that the dispatcher cancelled."""
    return TaskRecord(id=task.id, spec=task, cancelled_by="x", cancel_term=1)


def front(tasks: TaskQueue) -> QueuedTask | None:
    """Return the next task among those without requirements."""
    groups = [g for lane in tasks.lanes.unconstrained() for g in lane.groups.values()]
    flows = [flow for group in groups for flow in tasks.flows_with_task(group)]
    flow = min(flows, key=Flow.turn, default=None)
    return None if flow is None else tasks.first_in_flow(flow)


def run_all(tasks: TaskQueue) -> list[str]:
    """Take all tasks in hand out, in order."""
    order = []
    while (task := front(tasks)) is not None:
        order.append(str(task.spec.id))
        tasks.assign(task, attempt(task.last_attempt_n + 1), B)
    return order


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.LIVE, Stage.BACKING_OFF])
def test_an_illegal_stage_stops_the_node(stage: Stage) -> None:
    """A broken invariant must not be written into the log."""
    task = QueuedTask(TaskRecord(spec().id, spec()), stage=Stage.ENDED)

    with pytest.raises(AssertionError, match="has ended"):
        queue()._move_to(stage, task)


def test_tasks_leave_in_queue_order_whatever_the_order_of_arrival() -> None:
    """Lower `ord` first."""
    tasks = queue()
    tasks.admit([spec("two", ord=2), spec("three", ord=3)])
    tasks.admit([spec("one", ord=1)])

    assert run_all(tasks) == ["one", "two", "three"]


def test_a_released_task_returns_to_its_old_position() -> None:
    """It has waited long enough."""
    tasks = queue()
    tasks.admit([spec("old", ord=1), spec("new", ord=2)])
    old = front(tasks)
    assert old is not None
    tasks.assign(old, attempt(), B)

    tasks.requeue(old)

    assert queued_count(tasks) == 2
    assert run_all(tasks) == ["old", "new"]
    assert old.last_attempt_n == 2


def test_tasks_beyond_the_window_are_read_later() -> None:
    """Memory follows running work, not the backlog."""
    tasks = queue(window=4, load=2)
    tasks.admit(spec(f"t{place}", ord=place) for place in range(1, 8))
    assert queued_count(tasks) == 4
    assert tasks.next_reads() == []

    ran = [front(tasks) for _ in range(2)]
    for _ in ran:
        task = front(tasks)
        assert task is not None
        tasks.assign(task, attempt(), B)

    assert tasks.next_reads() == [LoadQueued(1, (BAND | 4) - 1, 2, LANE)]
    assert tasks.next_reads() == []


def test_new_tasks_wait_behind_older_ones_in_the_store() -> None:
    """A full window that empties is refilled in order."""
    tasks = queue(window=2, load=2)
    tasks.admit(spec(f"t{place}", ord=place) for place in range(1, 4))
    first = front(tasks)
    assert first is not None
    tasks.end(first)

    tasks.admit([spec("t4", ord=4)])
    (load,) = tasks.next_reads()
    assert load == LoadQueued(1, (BAND | 2) - 1, 1, LANE)
    tasks.on_queued_answer(
        QueuedLoaded(1, (record(2), record(3)), has_more=True, lane=LANE)
    )

    assert run_all(tasks) == ["t2", "t3"]
    assert tasks.next_reads() == [LoadQueued(1, (BAND | 3) - 1, 2, LANE)]


def test_a_submission_during_a_read_is_not_overlooked() -> None:
    """The read did not see it, and reports the end of the queue."""
    tasks = TaskQueue(Limits())
    tasks.start_reading(1)
    tasks.admit([spec("t5", ord=5)])

    tasks.on_queued_answer(QueuedLoaded(1, (), has_more=False))

    assert queued_count(tasks) == 0
    assert tasks.next_reads() == [LoadQueued(1, -1, 1000, LANE)]


def test_a_submission_that_precedes_the_result_of_a_read_is_not_overlooked() -> None:
    """It has a higher priority; the store answered before it was durable."""
    tasks = TaskQueue(Limits(window_tasks=4, load_tasks=2))
    tasks.start_reading(1)

    urgent = spec("t5", ord=5)
    tasks.admit([urgent])
    tasks.on_queued_answer(QueuedLoaded(1, (record(9),), has_more=False))

    (asked,) = tasks.next_reads()
    assert isinstance(asked, LoadQueued)
    assert asked.after_ord < urgent.ord


def test_a_task_that_returns_to_the_store_during_a_read_is_not_overlooked() -> None:
    """Its new place is behind what was read; the store answered before it was there."""
    tasks = queue()
    tasks.admit([spec(f"t{n}", ord=n) for n in range(1, 7)])
    run_all(tasks)
    (pending,) = tasks.next_reads()
    assert isinstance(pending, LoadQueued)
    moved = spec("t8", ord=8)
    task = QueuedTask(TaskRecord(moved.id, moved))
    tasks.adopt(task, attempt(1), B)
    tasks.requeue(task)
    change = Reprioritized(moved.id, 1, 1, priority_of(moved.ord))
    tasks.join(task, TaskRecord(moved.id, reprioritized=change))
    task.commit_number = 1

    tasks.drop_durable_tasks([task], 1)
    tasks.on_queued_answer(
        QueuedLoaded(pending.term, (record(9),), has_more=False, lane=LANE)
    )

    assert moved.id not in tasks.tasks
    (asked,) = tasks.next_reads()
    assert isinstance(asked, LoadQueued)
    assert asked.after_ord < task.ord


def test_a_member_waits_where_the_store_has_it() -> None:
    """Else it would not be read again once it has returned to the store."""
    member = replace(spec("t8"), id=member_id(TaskId("task-001-0000000a"), 3))

    tasks = queue()
    task = QueuedTask(TaskRecord(member.id, member))
    tasks.adopt(task, attempt(1), B)
    tasks.requeue(task)

    assert tasks.lanes.lane_of(task).key == MEMBERS_LANE


def test_a_task_from_both_the_store_and_the_commit_is_queued_once() -> None:
    """A read can be faster than the event of the commit."""
    tasks = TaskQueue(Limits())
    tasks.start_reading(1)
    tasks.on_queued_answer(QueuedLoaded(1, (record(1),), has_more=False))

    tasks.admit([spec("t1", ord=1)])

    assert queued_count(tasks) == 1


def test_a_read_without_new_tasks_is_not_repeated_for_ever() -> None:
    """The overlap of one `ord` is dropped when it fills the page."""
    tasks = queue(window=4, load=1)
    tasks.admit(spec(f"t{place}", ord=place) for place in range(1, 6))
    for _ in range(2):
        task = front(tasks)
        assert task is not None
        tasks.assign(task, attempt(), B)
    (load,) = tasks.next_reads()
    assert isinstance(load, LoadQueued)

    tasks.on_queued_answer(
        QueuedLoaded(load.term, (record(4),), has_more=True, lane=load.lane)
    )

    assert tasks.next_reads() == [LoadQueued(1, BAND | 4, 1, LANE)]


def test_an_ended_task_is_remembered_until_no_read_can_restore_it() -> None:
    """The answer may be older than the end."""
    tasks = TaskQueue(Limits())
    tasks.start_reading(1)
    task = tasks.add_shadow(cancelled(spec("t1", ord=1)))
    task.commit_number = 1
    tasks.drop_durable_tasks([task], 1)

    tasks.on_queued_answer(QueuedLoaded(1, (record(1),), has_more=False))
    tasks.on_live_answer(LiveLoaded(1, ()))
    assert queued_count(tasks) == 0

    tasks.next_reads()
    assert tasks.tasks._tasks == {}
    assert tasks.has_ended_recently(TaskId("t1"))


def test_a_task_that_ends_again_is_remembered_as_long_as_the_first_time() -> None:
    """A read that saw the first end may lack the second, which decides the task."""
    tasks = TaskQueue(Limits())
    tasks.start_reading(1)
    task = tasks.add_shadow(record(1))
    task.commit_number = 1
    tasks.drop_durable_tasks([task], 1)
    tasks.on_queued_answer(QueuedLoaded(1, (), has_more=False))
    tasks.look_up_task(task.spec.id)
    tasks.next_reads()  # It asks by id.
    task.commit_number = 2
    tasks.drop_durable_tasks([task], 2)
    tasks.on_live_answer(LiveLoaded(1, ()))

    tasks.next_reads()

    assert task.spec.id in tasks.tasks


def test_a_task_is_kept_while_later_facts_are_not_durable() -> None:
    """An earlier commit does not cover them."""
    tasks = queue()
    task = tasks.add_shadow(cancelled(spec()))
    task.commit_number = 2

    tasks.drop_durable_tasks([task], 1)
    assert tasks.tasks._tasks == {spec().id: task}

    tasks.drop_durable_tasks([task], 2)
    assert tasks.tasks._tasks == {}


def test_a_new_read_keeps_facts_that_the_store_lacks() -> None:
    """A release that is not durable looks like a running task there."""
    tasks = queue()
    tasks.admit([spec("settled", ord=1), spec("fresh", ord=2)])
    fresh = tasks.tasks._tasks[TaskId("fresh")]
    fresh.commit_number = 9

    tasks.mark_for_reread()

    assert tasks.next_reads() == [LoadLive(1, 0, 2), LoadQueued(1, -1, 2)]
    assert run_all(tasks) == ["fresh"]


def test_an_outdated_read_is_repeated() -> None:
    """Another node's entries became durable meanwhile."""
    tasks = TaskQueue(Limits())
    tasks.start_reading(1)
    tasks.on_live_answer(LiveLoaded(1, ()))
    tasks.mark_for_reread()

    assert tasks.on_queued_answer(QueuedLoaded(1, (record(1),), has_more=False))
    assert queued_count(tasks) == 0
    assert tasks.next_reads() == [LoadLive(1, 0, 1000), LoadQueued(1, -1, 1000)]


def test_unrequested_answers_are_ignored() -> None:
    """They belong to an earlier epoch."""
    tasks = queue()

    assert not tasks.on_queued_answer(QueuedLoaded(7, (record(1),), has_more=False))
    assert not tasks.on_live_answer(LiveLoaded(1, ()))
    assert queued_count(tasks) == 0


def test_a_record_brings_attempt_numbers_but_only_new_missing_inputs() -> None:
    """A worker may have got an input since an earlier epoch."""
    tasks = queue()
    lack = released(EndReason.INPUTS, "input data.csv")
    old = Attempt(
        id=attempt(1, term=0), node=NodeId("a"), state=lack.state, outcome=lack
    )
    new = Attempt(id=attempt(2), node=B, state=lack.state, outcome=lack)

    task = tasks.task_from_record(record(1, old, new))

    assert task.last_attempt_n == 2
    assert task.missing_inputs.keys() == {B}
    assert task.describe_missing_inputs() == "input data.csv"


def test_an_array_that_was_cancelled_leaves_its_running_members() -> None:
    """They end with their attempts, unless one succeeds."""
    id_ = member_id(TaskId("task-001-0000000a"), 1)
    task = QueuedTask(TaskRecord(id_, spec(id_)))
    task.add_fact(Assigned(id_, attempt(), B))

    task.join(TaskRecord(id_, cancelled_by="ann"))
    while_running = task.final_state
    task.add_fact(Finished(id_, attempt(), B, released(EndReason.LOST)))
    after_loss = task.final_state
    task.add_fact(Finished(id_, attempt(), B, outcome(), 1))

    assert while_running is None
    assert after_loss is TaskState.CANCELLED
    assert task.final_state is TaskState.COMPLETED


def test_outputs_are_not_kept_in_memory() -> None:
    """There may be many tasks with large ones."""
    task = QueuedTask(TaskRecord(spec().id, spec()))
    end = replace(outcome(), stdout=b"much", detail="more")

    task.add_fact(Finished(spec().id, attempt(), B, end, 1))

    assert task.record.attempts[0].outcome == Outcome(
        end.state, end.reason, end.exit_code
    )


def test_tasks_that_different_workers_refused_do_not_wait_for_each_other() -> None:
    """Each group of tasks has an order of its own, in which no task is twice."""
    tasks = queue()
    tasks.admit([spec(f"t{n}", ord=n) for n in range(1, 5)])
    refused_by = {"t1": {B: ""}, "t2": {B: "", A: ""}, "t3": {B: ""}}
    for name, nodes in refused_by.items():
        task = tasks.tasks._tasks[TaskId(name)]
        tasks.assign(task, attempt(), B)
        task.missing_inputs = dict(nodes)
        tasks.requeue(task)

    firsts = {
        group.excluded: first.spec.id
        for group in tasks.lanes.groups()
        if (first := tasks.first_in_group(group)) is not None
    }

    assert firsts == {
        frozenset(): "t4",
        frozenset({B}): "t1",
        frozenset({A, B}): "t2",
    }
    assert {task.spec.id for task in tasks.refused_tasks()} == {"t1", "t2", "t3"}
    assert run_all(tasks) == ["t1", "t2", "t3", "t4"]


def test_the_memory_of_ended_tasks_is_bounded() -> None:
    """Late reports about them are recognised for a while."""
    tasks = queue(window=2)
    for name in ("one", "two", "three"):
        task = tasks.add_shadow(cancelled(spec(name)))
        task.commit_number = 1
        tasks.drop_durable_tasks([task], 1)

    assert [
        tasks.has_ended_recently(TaskId(name)) for name in ("one", "two", "three")
    ] == [
        False,
        True,
        True,
    ]


def test_an_answer_of_an_earlier_epoch_is_not_taken_for_one_of_this() -> None:
    """Both epochs read the same lane."""
    tasks = queue()
    tasks.admit(spec(f"t{place}", ord=place) for place in range(1, 7))
    run_all(tasks)
    assert tasks.next_reads() == [LoadQueued(1, (BAND | 4) - 1, 2, LANE)]
    tasks.clear_queue()
    tasks.start_reading(2)
    tasks.on_queued_answer(
        QueuedLoaded(2, (), has_more=False, other_lanes=((LANE, None),))
    )
    assert tasks.next_reads() == [LoadQueued(2, -1, 2, LANE)]
    stale, page = (
        QueuedLoaded(term, (record(place),), has_more=False, lane=LANE)
        for term, place in ((1, 9), (2, 3))
    )

    assert not tasks.on_queued_answer(stale)
    assert tasks.on_queued_answer(page)

    assert run_all(tasks) == ["t3"]


FREED = without_stdin(TaskOptions(stdin=b"in"))


def freed(place: int, *attempts: Attempt) -> TaskRecord:
    """Return a queued task without its stdin, as the store has it."""
    task = replace(spec(f"t{place}", ord=place), options=FREED)
    return TaskRecord(id=task.id, spec=task, attempts=attempts)


def test_a_task_whose_stdin_was_freed_is_set_aside() -> None:
    """It ended elsewhere, so it must not run with an empty stdin."""
    tasks = TaskQueue(Limits())
    tasks.start_reading(1)

    tasks.on_queued_answer(QueuedLoaded(1, (freed(1), record(2)), has_more=False))

    assert run_all(tasks) == ["t2"]
    tasks.on_live_answer(LiveLoaded(1, ()))
    assert tasks.has_missing_ends
    assert [each.id for each in tasks.pop_missing_ends()] == ["t1"]
    assert tasks.pop_missing_ends() == []


def test_tasks_set_aside_are_read_again_with_the_queue() -> None:
    """Their ends may have arrived."""
    tasks = queue()
    tasks.admit([replace(spec("t1", ord=1), options=FREED)])
    assert front(tasks) is None

    tasks.mark_for_reread()
    assert not tasks.has_missing_ends
    tasks.next_reads()
    tasks.on_queued_answer(QueuedLoaded(1, (), has_more=False))
    tasks.on_live_answer(LiveLoaded(1, ()))

    assert not tasks.has_missing_ends
    assert tasks.pop_missing_ends() == []


def test_a_task_with_facts_that_are_not_durable_is_read_before_it_is_set_aside() -> (
    None
):
    """The read may show its end."""
    tasks = queue()
    tasks.admit([replace(spec("t1", ord=1), options=FREED)])
    task = tasks.tasks._tasks[TaskId("t1")]
    task.commit_number = 7

    assert front(tasks) is None
    assert task.stage is Stage.ENDED
    assert not tasks.has_missing_ends

    tasks.drop_durable_tasks([task], 7)
    assert tasks.next_reads() == [LoadTasks(1, (TaskId("t1"),)), LoadQueued(1, -1, 2)]


def test_a_task_that_some_workers_refused_is_set_aside_too() -> None:
    """It ended, whoever may run it."""
    tasks = queue()
    asked = replace(FREED, requires=Requirements(cpus=2))
    asked_spec = replace(spec("t1", ord=1), options=asked)
    task = QueuedTask(TaskRecord(asked_spec.id, asked_spec), missing_inputs={B: ""})
    tasks._enqueue(task)

    assert [tasks.first_in_group(group) for group in tasks.lanes.groups()] == [None]
    assert [each.id for each in tasks.pop_missing_ends()] == ["t1"]


def test_a_task_that_ended_here_meanwhile_is_not_given_up() -> None:
    """A client cancelled it."""
    tasks = queue()
    tasks.admit([replace(spec("t1", ord=1), options=FREED)])
    assert front(tasks) is None

    tasks.add_shadow(cancelled(spec("t1", ord=1)))

    assert tasks.pop_missing_ends() == []


def test_a_task_that_backs_off_again_waits_for_the_later_time() -> None:
    """A worker was found to run it meanwhile, where it failed, too."""
    tasks = queue()
    resting = BackoffQueue(tasks, TimerHeap())
    tasks.admit([spec("t1", ord=1)])
    task = tasks.tasks._tasks[TaskId("t1")]
    tasks.assign(task, attempt(1), B)
    resting.add_task(task, moment(), 5.0)
    tasks.assign(task, attempt(2), B)
    resting.add_task(task, moment(1.0), 60.0)

    assert list(resting.pop_due(moment(6.0))) == []
    assert task.retry_s == moment(61.0).mono_s
    assert list(resting.pop_due(moment(61.0))) == [task]
