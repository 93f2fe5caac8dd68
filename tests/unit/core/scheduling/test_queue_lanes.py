"""Lanes: a task that cannot run now blocks no other, and memory stays bounded."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import LoadLive, LoadQueued, LoadTasks
from octaskly.core.events import LiveLoaded, TasksLoaded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import Requirements, TaskOptions, shape_of
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.scheduling.task_queue import TaskQueue
from tests.support.builders import (
    STREAM,
    draft,
    epoch,
    load_reply,
    moment,
    node_info,
    spec,
)
from tests.support.dispatcher import (
    DispatcherWithJournal,
    appended_facts,
    queued_count,
    reattach_report,
    submission,
)

HUGE = Requirements(cpus=999)
PAIR = Requirements(cpus=2)


def demanding(name: str, place: int, requires: Requirements | None) -> TaskSpec:
    """Return a task with this position in the queue and these requirements."""
    options = None if requires is None else TaskOptions(requires=requires)
    return replace(spec(name, ord=place), options=options)


def stored(*specs: TaskSpec) -> list[TaskRecord]:
    """Return the tasks as stored records."""
    return [TaskRecord(id=each.id, spec=each) for each in specs]


def is_small(requires: Requirements) -> bool:
    """Return True if any node of this mesh could run such a task."""
    return requires.slots <= 8


def with_reads(queue: TaskQueue, records: list[TaskRecord]) -> list[LoadQueued]:
    """Answer the reads of a queue from a store until it has read all."""
    asked: list[LoadQueued] = []
    for _ in range(1000):
        effects = queue.next_reads()
        loads = [effect for effect in effects if isinstance(effect, LoadQueued)]
        if any(isinstance(effect, LoadLive) for effect in effects):
            queue.on_live_answer(LiveLoaded(1, ()))
        elif not loads:
            return asked
        for load in loads:
            asked.append(load)
            queue.on_queued_answer(load_reply(records, load))
    raise AssertionError("it reads for ever")


def started(limits: Limits, *specs: TaskSpec) -> TaskQueue:
    """Return a queue that has read a store with these tasks."""
    queue = TaskQueue(limits, is_small)
    (_, first) = queue.start_reading(1)
    queue.on_live_answer(LiveLoaded(1, ()))
    assert isinstance(first, LoadQueued)
    records = stored(*specs)
    queue.on_queued_answer(load_reply(records, first))
    with_reads(queue, records)
    return queue


def in_hand(queue: TaskQueue) -> set[str]:
    """Return the names of the tasks that are in hand."""
    return {str(task_id) for task_id in queue.tasks._tasks}


def test_equal_requirements_have_one_shape_and_none_have_none() -> None:
    """Their notation does not matter."""
    assert shape_of(None) == shape_of(TaskOptions(requires=Requirements(cpus=1))) == 0
    assert (
        Requirements(cpus=2).shape
        == Requirements(cpus=2).shape
        != Requirements(cpus=3).shape
    )
    assert 0 < Requirements(labels=(("disk", "ssd"),)).shape < 1 << 63


def test_ten_thousand_unrunnable_tasks_do_not_take_the_window() -> None:
    """They wait in the store, whatever their age and priority."""
    huge = [demanding(f"h{n}", n, HUGE) for n in range(10_000)]
    plain = [demanding(f"p{n}", 20_000 + n, None) for n in range(100)]

    queue = started(Limits(), *huge, *plain)

    (plain_lane,) = (lane for lane in queue.lanes.unconstrained() if lane.queued)
    (group,) = plain_lane.groups.values()
    first = queue.first_in_group(group)
    assert first is not None
    assert first.spec.id == "p0"
    assert plain_lane.queued == 100
    assert queued_count(queue) == 100 + Limits().lane_tasks


def test_each_lane_is_refilled_as_it_empties() -> None:
    """No task stays behind in the store."""
    limits = Limits(window_tasks=4, lane_tasks=4, load_tasks=2)
    specs = [demanding(f"t{n}", n, PAIR if n % 2 else None) for n in range(1, 31)]
    queue = started(limits, *specs)

    seen = set()
    while queued_count(queue):
        for task in list(queue.tasks._tasks.values()):
            seen.add(str(task.spec.id))
            queue.end(task)
            queue.tasks.remove(task)
        with_reads(queue, stored(*(each for each in specs if each.id not in seen)))

    assert seen == {str(each.id) for each in specs}


def test_shapes_beyond_the_lanes_wait_and_runnable_ones_come_first() -> None:
    """The bound on lanes keeps no task from running for ever."""
    limits = Limits(lanes=4)
    hopeless = [demanding(f"h{n}", n, Requirements(cpus=100 + n)) for n in range(9)]
    able = [demanding(f"a{n}", 50 + n, Requirements(memory_mb=1 + n)) for n in range(5)]
    queue = started(limits, *hopeless, *able)
    waiting = {str(each.id): each for each in able}

    assert sum(1 for _ in queue.lanes.constrained()) == 4
    assert in_hand(queue) <= waiting.keys()

    while waiting:
        task = next(t for t in queue.tasks._tasks.values() if str(t.spec.id) in waiting)
        del waiting[str(task.spec.id)]
        queue.end(task)
        queue.tasks.remove(task)
        with_reads(queue, stored(*hopeless, *waiting.values()))

    assert in_hand(queue) <= {str(each.id) for each in hopeless}


def test_a_new_runnable_shape_takes_the_lane_of_an_unrunnable_one() -> None:
    """A few mistakes could otherwise stop the mesh."""
    hopeless = [demanding(f"h{n}", n, Requirements(cpus=100 + n)) for n in range(9)]
    queue = started(Limits(lanes=4), *hopeless)
    new = demanding("new", 100, PAIR)

    queue.admit([new])
    with_reads(queue, stored(*hopeless, new))

    assert "new" in in_hand(queue)


def test_a_shape_without_a_lane_delays_no_read_that_is_due() -> None:
    """It waits for a read that is pending, and other tasks came from another log."""
    first, found = demanding("first", 1, PAIR), demanding("found", 2, None)
    queue = started(Limits(lanes=1), first)
    queue.look_up_task(first.id)
    (pending,) = queue.next_reads()
    queue.mark_for_reread()
    new = demanding("new", 3, Requirements(cpus=3))

    queue.admit([new])
    assert pending == LoadTasks(1, (first.id,))
    queue.on_lookup_answer(TasksLoaded(1, (first.id,), tuple(stored(first))))
    with_reads(queue, stored(first, found, new))

    assert "found" in in_hand(queue)


def test_an_empty_lane_stays_only_while_no_other_waits() -> None:
    """It is kept for the next task of the same client."""
    queue = started(Limits(lanes=1))
    first = demanding("first", 1, PAIR)
    queue.admit([first])
    queue.end(queue.tasks._tasks[TaskId("first")])
    with_reads(queue, [])
    assert sum(1 for _ in queue.lanes.constrained()) == 1
    other = demanding("other", 2, Requirements(cpus=3))

    queue.admit([other])
    with_reads(queue, stored(other))  # It closes the lane,
    with_reads(queue, stored(other))  # and then reads all again.

    assert "other" in in_hand(queue)


def test_an_unrunnable_shape_gets_a_lane_when_a_suitable_node_attaches() -> None:
    """The set of workers changes."""
    able: set[Requirements] = set()
    queue = TaskQueue(Limits(lanes=2), lambda requires: requires in able)
    (_, first) = queue.start_reading(1)
    queue.on_live_answer(LiveLoaded(1, ()))
    assert isinstance(first, LoadQueued)
    records = stored(
        *(demanding(f"h{n}", n, Requirements(cpus=9 + n)) for n in range(5))
    )
    queue.on_queued_answer(load_reply(records, first))
    with_reads(queue, records)
    able.add(Requirements(cpus=13))

    queue.lanes.on_workers_changed()
    with_reads(queue, records)

    assert "h4" in in_hand(queue)


def test_a_shape_that_arrives_during_a_listing_is_not_forgotten() -> None:
    """The list may be older than the commit."""
    queue = TaskQueue(Limits(), lambda _: False)
    (_, first) = queue.start_reading(1)
    queue.on_live_answer(LiveLoaded(1, ()))
    assert isinstance(first, LoadQueued)
    new = demanding("new", 1, HUGE)
    queue.admit([new])

    queue.on_queued_answer(load_reply([], first))
    queue.lanes.on_workers_changed()
    with_reads(queue, stored(new))

    assert "new" in in_hand(queue)


def test_the_window_is_bounded_in_bytes_too() -> None:
    """A task may have a megabyte; tasks that do not fit wait in the store."""
    limits = Limits(window_bytes=5000, lane_bytes=1000)
    queue = started(limits)
    fat = [
        replace(spec(f"t{n}", ord=n), options=TaskOptions(stdin=b"x" * 500))
        for n in range(1, 20)
    ]

    queue.admit(fat)

    assert queued_count(queue) == 3
    for task_id in ("t1", "t2"):
        task = queue.tasks._tasks[TaskId(task_id)]
        queue.end(task)
        queue.tasks.remove(task)
    with_reads(queue, stored(*fat[2:]))
    assert "t4" in in_hand(queue)


def test_memory_stays_bounded_whatever_the_priority_of_new_tasks() -> None:
    """New tasks may precede those in hand; then the last ones return to the store."""
    limits = Limits(window_tasks=4, load_tasks=4)
    specs = [spec(f"t{n}", ord=1000 - n) for n in range(40)]
    queue = started(limits)

    for each in specs:
        queue.admit([each])
        assert queued_count(queue) < 8

    order: list[str] = []
    left = {each.id: each for each in specs}
    while left:
        (lane,) = (lane for lane in queue.lanes.unconstrained() if lane.queued)
        (group,) = lane.groups.values()
        task = queue.first_in_group(group)
        assert task is not None
        order.append(str(task.spec.id))
        queue.end(task)
        queue.tasks.remove(task)
        del left[task.spec.id]
        stored_now = sorted(left.values(), key=lambda each: each.ord)
        with_reads(queue, stored(*stored_now))
    assert order == [str(each.id) for each in reversed(specs)]


def test_priority_then_age_decides_among_lanes() -> None:
    """Requirements neither delay a task nor prefer it."""
    world = DispatcherWithJournal()
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_queued_loaded(load_reply([], LoadQueued(1, -1, 1000)), moment())
    pair = TaskOptions(requires=PAIR)
    drafts = (
        draft("old"),
        replace(draft("pair"), options=pair),
        draft("young"),
        replace(draft("urgent"), options=pair, priority=1),
    )
    world.dispatch.on_submitted(submission(*drafts), moment())
    world.commit()

    world.dispatch.on_worker_up(node_info("b", 5), moment())
    effects = world.dispatch.on_reattach(*reattach_report("b", 5), moment())

    placed = [fact.task for fact in appended_facts(effects)]
    commands = [
        world.dispatch._queue.tasks._tasks[task].spec.command for task in placed
    ]
    assert commands == ["urgent", "old", "pair"]
