"""Changes of priority: the place in the queue changes, whatever has read it already."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Answer, LoadQueued, LoadTasks
from octaskly.core.events import (
    LiveLoaded,
    QueuedLoaded,
    ReprioritizeRequested,
    TasksLoaded,
)
from octaskly.core.log.facts import Reprioritized
from octaskly.core.log.merge import TaskRecord, apply_fact
from octaskly.core.model.arrays import ArrayProgress
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import After, TaskOptions
from octaskly.core.model.tasks import LaneKey, TaskState, priority_of
from octaskly.core.replies import ReprioritizeResult
from tests.support.builders import draft, moment, node_info, spec
from tests.support.dispatcher import appended_facts
from tests.support.dispatcher_with_workers import DispatcherWithWorkers, array_draft

LANE = LaneKey(0, "tester")


def mesh_of(slots: int) -> DispatcherWithWorkers:
    """Return a mesh with one worker."""
    return DispatcherWithWorkers(node_info("b", slots))


def stored(mesh: DispatcherWithWorkers, command: str) -> TaskRecord:
    """Return a task or an array in memory as the store has it."""
    task = next(
        each
        for each in mesh.dispatch._queue.tasks._tasks.values()
        if each.spec.command == command
    )
    array = task.spec.array
    progress = None if array is None else ArrayProgress(queued=array.count)
    return TaskRecord(id=task.spec.id, spec=task.spec, progress=progress)


def change(
    mesh: DispatcherWithWorkers, record: TaskRecord, priority: int
) -> list[object]:
    """Ask for a priority; return the reply and the reads that follow the commit."""
    asked = ReprioritizeRequested(7, record, priority)
    effects = mesh.dispatch.on_reprioritize_requested(asked, moment())
    mesh.note(effects)
    later = mesh.commit()
    mesh.note(later)
    kinds = (Answer, LoadTasks, LoadQueued)
    found = [each for each in (*effects, *later) if isinstance(each, kinds)]
    return [each.reply if isinstance(each, Answer) else each for each in found]


def test_a_waiting_task_overtakes_others() -> None:
    """Among equal priorities, its age counts as before."""
    mesh = mesh_of(1)
    mesh.ask(draft("t0"), draft("t1"), draft("t2"), draft("t3"))

    done = change(mesh, stored(mesh, "t3"), 5)
    change(mesh, stored(mesh, "t2"), 5)

    assert done == [ReprioritizeResult(TaskState.QUEUED, was_done=True)]
    assert mesh.end("t0") == ["t2"]
    assert mesh.end("t2") == ["t3"]
    assert mesh.end("t3") == ["t1"]


def test_a_task_that_is_put_back_waits_for_the_others() -> None:
    """Its old place in the queue counts no longer."""
    mesh = mesh_of(1)
    mesh.ask(draft("t0"), draft("t1"), draft("t2"))

    change(mesh, stored(mesh, "t1"), -5)

    assert mesh.end("t0") == ["t2"]
    assert mesh.end("t2") == ["t1"]


def test_an_array_moves_with_its_members() -> None:
    """Those that wait for another attempt, and those that were never assigned."""
    mesh = mesh_of(1)
    mesh.ask(array_draft("low", 9), by="ann")
    mesh.ask(array_draft("high", 9), by="bo")

    change(mesh, stored(mesh, "high {}"), 1)

    placed = [*mesh.end("low 0"), *mesh.end("high 0"), *mesh.end("high 1")]
    assert placed == ["high 0", "high 1", "high 2"]


def test_the_fact_names_the_epoch_and_the_time() -> None:
    """Of several, the latest counts, in whatever order they arrive."""
    mesh = mesh_of(1)
    mesh.ask(draft("t0"), draft("t1"))
    record = stored(mesh, "t1")

    asked = ReprioritizeRequested(7, record, 5)
    facts = [
        *appended_facts(mesh.dispatch.on_reprioritize_requested(asked, moment())),
        *appended_facts(
            mesh.dispatch.on_reprioritize_requested(
                ReprioritizeRequested(8, record, -3), moment()
            )
        ),
    ]

    first, last = facts
    assert isinstance(first, Reprioritized)
    assert isinstance(last, Reprioritized)
    assert (first.term, first.task) == (mesh.dispatch._step.epoch.term, record.id)
    assert first < last
    for order in ((first, last), (last, first)):
        joined = record
        for fact in order:
            joined = apply_fact(joined, fact)
        assert priority_of(joined.ord) == -3


def test_what_only_the_store_has_is_read_once_the_fact_is_durable() -> None:
    """It may come before all that is in memory."""
    mesh = mesh_of(1)
    mesh.ask(draft("t0"), draft("t1"))
    far = replace(spec("far", ord=stored(mesh, "t1").ord + 1), command="far")
    record = TaskRecord(id=far.id, spec=far)

    reply, read = change(mesh, record, 9)

    assert isinstance(reply, ReprioritizeResult)
    assert reply.was_done
    assert isinstance(read, LoadTasks)
    moved = Reprioritized(far.id, read.term, 1, 9)
    loaded = TasksLoaded(read.term, read.tasks, (apply_fact(record, moved),))
    mesh.note(mesh.dispatch.on_tasks_loaded(loaded, moment()))
    assert mesh.end("t0") == ["far"]


def test_an_old_read_does_not_bring_back_the_old_priority() -> None:
    """The store answers before the commit."""
    mesh = mesh_of(1)
    mesh.ask(draft("t0"), draft("t1"), draft("t2"))
    waiting, record = stored(mesh, "t1"), stored(mesh, "t2")
    asked = ReprioritizeRequested(7, record, 5)
    mesh.dispatch.on_reprioritize_requested(asked, moment())

    mesh.dispatch._queue.mark_for_reread()
    live = LiveLoaded(mesh.dispatch._step.epoch.term, ())
    (front,) = (
        each
        for each in mesh.dispatch.on_live_loaded(live, moment())
        if isinstance(each, LoadQueued)
    )
    others = ((LANE, None),)
    (lane_read,) = (
        each
        for each in mesh.dispatch.on_queued_loaded(
            QueuedLoaded(front.term, (), has_more=False, other_lanes=others),
            moment(),
        )
        if isinstance(each, LoadQueued)
    )
    page = QueuedLoaded(lane_read.term, (waiting, record), has_more=False, lane=LANE)
    mesh.dispatch.on_queued_loaded(page, moment())
    mesh.note(mesh.commit())

    assert mesh.end("t0") == ["t2"]


def test_what_runs_or_has_ended_keeps_its_priority() -> None:
    """A priority counts only while a task waits."""
    mesh = mesh_of(1)
    mesh.ask(draft("t0"), draft("t1"))
    running = stored(mesh, "t0")

    assert change(mesh, running, 5) == [
        ReprioritizeResult(TaskState.RUNNING, was_done=False)
    ]
    mesh.end("t0")
    assert change(mesh, running, 5) == [
        ReprioritizeResult(TaskState.COMPLETED, was_done=False)
    ]


def test_a_task_that_waits_for_others_gets_its_place_when_it_is_ready() -> None:
    """It is in no lane yet."""
    mesh = mesh_of(1)
    mesh.ask(draft("t0"), draft("t1"))
    child = replace(
        spec("child", ord=stored(mesh, "t1").ord + 1),
        command="child",
        options=TaskOptions(after=After(tasks=("x",))),
    )
    change_ = Reprioritized(child.id, 1, 1, 9)
    record = TaskRecord(id=child.id, spec=child, reprioritized=change_)

    mesh.dispatch._queue.admit_records([record])
    assert TaskId("child") not in mesh.dispatch._queue.tasks
    mesh.dispatch._queue.admit_records([replace(record, is_unblocked=True)])

    assert mesh.end("t0") == ["child"]
