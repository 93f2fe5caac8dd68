"""Arrays in the queue: members leave in order, each one once."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.events import QueuedLoaded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import ArrayProgress, member_id
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.scheduling.live_ranges import LiveRange, PlannedRange
from octaskly.core.scheduling.queued_task import QueuedTask
from octaskly.core.scheduling.task_queue import TaskQueue
from tests.support.builders import attempt, spec
from tests.support.dispatcher import queued_count
from tests.unit.core.scheduling.test_task_queue import B, cancelled, front, queue

ARRAY = TaskId("task-001-0000000a")


def array_spec(count: int, ord_: int = 5) -> TaskSpec:
    options = TaskOptions(array=ArraySpec(count=count, first=1))
    return replace(spec(ARRAY, ord=ord_), options=options)


def assigned(tasks: TaskQueue, most: int = 99) -> list[str]:
    """Assign tasks to a worker; return their ids without the array's prefix."""
    order: list[str] = []
    while len(order) < most and (task := front(tasks)) is not None:
        order.append(give(tasks, task).removeprefix(ARRAY))
    return order


def give(tasks: TaskQueue, task: QueuedTask) -> TaskId:
    """Assign a task, or the next member of an array; return its id."""
    if task.remaining is not None:
        position = task.remaining.pop()
        shares = tasks.turns.charge(task.flow, 1)
        planned = PlannedRange(task, B, position, 1, shares)
        of_first = replace(attempt(), seq=position + 1)
        live = LiveRange(planned, of_first, term=1)
        tasks.tasks.add_range(live)
        return live.ids[0]
    if task.spec.id in tasks.tasks:
        tasks.assign(task, attempt(task.last_attempt_n + 1), B)
    else:
        tasks.adopt(task, attempt(task.last_attempt_n + 1), B)
    return task.spec.id


def member(tasks: TaskQueue, number: int) -> QueuedTask:
    found = tasks.tasks.get(member_id(ARRAY, number))
    assert found is not None
    return found


def test_an_array_is_one_entry_until_a_worker_gets_a_member() -> None:
    """It takes turns with single tasks."""
    tasks = queue(window=4)
    tasks.admit([spec("before", ord=4), array_spec(1_000_000), spec("behind", ord=9)])

    assert tasks.tasks.count == 3
    assert assigned(tasks, 4) == ["before", ".1", ".2", "behind"]
    assert front(tasks) is front(tasks)
    assert tasks.tasks.count == 5
    assert queued_count(tasks) == 1


def test_a_returned_member_precedes_the_rest() -> None:
    """It could otherwise wait for a million others."""
    tasks = queue()
    tasks.admit([array_spec(4)])
    assert assigned(tasks, 2) == [".1", ".2"]

    tasks.requeue(member(tasks, 1))

    assert assigned(tasks) == [".1", ".3", ".4"]
    assert queued_count(tasks) == 0


def test_a_cancelled_member_is_never_assigned() -> None:
    """Neither the next member, nor one further behind."""
    tasks = queue()
    tasks.admit([array_spec(5)])
    assert assigned(tasks, 1) == [".1"]
    ahead = front(tasks)
    assert ahead is not None

    for number in (2, 4):
        shadow = tasks.add_shadow(cancelled(spec(member_id(ARRAY, number))))
        shadow.commit_number = 7
        tasks.drop_durable_tasks([shadow], 7)

    assert assigned(tasks) == [".3", ".5"]


def test_an_older_read_brings_no_member_twice() -> None:
    """Tasks in hand are newer than the store's answer."""
    tasks = queue()
    tasks.admit([array_spec(3)])
    assert assigned(tasks) == [".1", ".2", ".3"]
    record = TaskRecord(
        id=ARRAY,
        spec=array_spec(3),
        progress=ArrayProgress(queued=3, remaining_runs=((0, 2),)),
    )

    tasks.mark_for_reread()
    tasks.next_reads()
    assert tasks.on_queued_answer(QueuedLoaded(1, (record,), has_more=False))

    assert front(tasks) is None
    tasks.requeue(member(tasks, 2))
    assert assigned(tasks) == [".2"]


def test_an_array_continues_where_the_previous_epoch_stopped() -> None:
    """Members with a fact of their own come from the store as tasks."""
    tasks = queue()
    progress = ArrayProgress(queued=4, completed=2, remaining_runs=((1, 1), (4, 5)))
    record = TaskRecord(id=ARRAY, spec=array_spec(6), progress=progress)

    tasks.add_arrays([record])

    assert assigned(tasks) == [".2", ".5", ".6"]
