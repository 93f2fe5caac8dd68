"""Tasks whose stdin was freed elsewhere, and whose ends have not arrived."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.dispatcher.explain import MISSING_END_TEXT
from octaskly.core.effects import AnnounceTaskStates, Append, Send
from octaskly.core.log.facts import TaskCancelled
from octaskly.core.log.merge import LOST_END_CANCELLER, TaskRecord
from octaskly.core.model.arrays import ArrayProgress
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec, TaskOptions, without_stdin
from tests.support.builders import moment, spec
from tests.support.dispatcher import (
    B,
    DispatcherWithJournal,
    T,
    appended_facts,
    dispatcher_with,
    live_attempt,
)

STDIN = TaskOptions(stdin=b"in")
ARRAY = TaskId("task-001-0000000a")


def freed_record(name: str = "t", options: TaskOptions = STDIN) -> TaskRecord:
    """Return a task without its stdin, as the store has it."""
    task = replace(spec(name), options=without_stdin(options))
    return TaskRecord(id=task.id, spec=task)


def freed_array() -> TaskRecord:
    """Return an array of two members, none of them started."""
    record = freed_record(ARRAY, TaskOptions(stdin=b"in", array=ArraySpec(count=2)))
    return replace(record, progress=ArrayProgress(queued=2, remaining_runs=((0, 1),)))


def decided(world: DispatcherWithJournal) -> list[object]:
    """Return what is written once no node can know the ends."""
    assert world.dispatch.has_missing_ends
    return list(appended_facts(world.dispatch.give_up_missing_ends(moment(9))))


def test_a_task_without_its_stdin_is_never_assigned() -> None:
    """Its end is on its way."""
    world = dispatcher_with(freed_record(), b=2)

    effects = world.dispatch.on_own_heartbeat(moment(1))

    assert not any(isinstance(effect, Send | Append) for effect in effects)
    assert world.dispatch.has_missing_ends


def test_a_task_whose_end_no_node_knows_is_cancelled() -> None:
    """Clients that wait for it get an answer."""
    world = dispatcher_with(freed_record(), b=2)

    assert decided(world) == [TaskCancelled(T, LOST_END_CANCELLER)]
    assert AnnounceTaskStates((T,)) in world.commit(9)
    assert not world.dispatch.has_missing_ends


def test_an_array_whose_end_no_node_knows_is_cancelled() -> None:
    """One fact ends all its members."""
    world = dispatcher_with(freed_array(), b=2)

    assert decided(world) == [TaskCancelled(ARRAY, LOST_END_CANCELLER)]
    assert not world.dispatch.has_missing_ends


def test_a_lost_attempt_of_such_a_task_is_not_repeated() -> None:
    """Its worker has left, and knew the end."""
    record = replace(freed_record(), attempts=(live_attempt(B),))
    world = dispatcher_with(live=(record,), b=2)

    world.dispatch.on_worker_down(B, moment(9))
    world.dispatch.on_time(moment(99))
    effects = world.dispatch.on_own_heartbeat(moment(99))

    assert not any(isinstance(effect, Send) for effect in effects)


def test_a_deposed_dispatcher_gives_nothing_up() -> None:
    """The next one may know more."""
    world = dispatcher_with(freed_record(), b=2)

    world.dispatch.stop_dispatching()

    assert not world.dispatch.has_missing_ends


def test_such_a_task_is_explained() -> None:
    """Whoever asks why it waits sees what for."""
    world = dispatcher_with(freed_record(), b=2)

    explained = world.dispatch.explainer.explain_task(freed_record(), (), moment(1), {})

    assert explained.summary == MISSING_END_TEXT
