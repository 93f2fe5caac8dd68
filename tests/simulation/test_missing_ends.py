"""Submissions whose stdin was freed elsewhere, at a node that lacks the ends."""

from __future__ import annotations

import pytest

from octaskly.core.dispatcher import task_rules
from octaskly.core.effects import Append
from octaskly.core.log.facts import Entry, Submitted, TaskCancelled
from octaskly.core.log.merge import LOST_END_CANCELLER
from octaskly.core.model.ids import NodeId
from octaskly.core.model.tasks import TaskState
from tests.simulation.store.disk import Disk
from tests.simulation.world import World

TASKS = 3


def half_told(seed: int) -> tuple[World, NodeId, NodeId]:
    """Return a world, a node that ran tasks, and one that has their submissions only.

    The first one was lost while the second one pulled its log.
    """
    world = World(seed, nodes=2)
    world.clients.has_stdin = True
    one, other = world.machines
    world.start(one)
    assert world.run_until(lambda: world.dispatchers() == [one], 30.0)
    world.clients.submit(one, TASKS)
    world.run(20.0)
    disk = world.machines[one].disk
    world.crash(one)
    (stream,) = (s for s, log in disk.streams.items() if _submissions(log))
    log = disk.streams[stream]
    told = log[: 1 + max(log.index(entry) for entry in _submissions(log))]
    half = Disk()
    half.append(Append(1, tuple(told), disk.epochs()))
    half.commit(1, world.now(world.machines[other]))
    world.machines[other].disk = half
    assert states(half) == [TaskState.QUEUED] * TASKS
    return world, one, other


def _submissions(log: list[Entry]) -> list[Entry]:
    return [entry for entry in log if isinstance(entry.fact, Submitted)]


def states(disk: Disk) -> list[TaskState]:
    """Return the states of all tasks."""
    return [record.state for record in disk.records.values()]


@pytest.mark.parametrize("seed", range(3))
def test_tasks_whose_ends_are_lost_are_cancelled(seed: int) -> None:
    """They cannot run again, and clients wait for them."""
    world, _, heir = half_told(seed)
    started = len(world.commands.started)

    world.start(heir)
    world.run(60.0)

    disk = world.machines[heir].disk
    assert {r.cancelled_by for r in disk.records.values()} == {LOST_END_CANCELLER}
    assert len(world.commands.started) == started


@pytest.mark.parametrize("seed", range(3))
def test_ends_that_return_with_their_node_count(seed: int) -> None:
    """A success takes precedence over the cancel."""
    world, back, heir = half_told(seed)
    started = len(world.commands.started)
    world.start(heir)
    world.run(60.0)

    world.start(back)
    assert world.run_until(world.is_settled, 30.0)
    world.run(10.0)

    for node in (back, heir):
        assert states(world.machines[node].disk) == [TaskState.COMPLETED] * TASKS
    assert len(world.commands.started) == started


def test_an_end_that_an_epoch_gave_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test before proves little."""
    monkeypatch.setattr(
        task_rules,
        "give_up_end",
        lambda task: TaskCancelled(task, LOST_END_CANCELLER, term=99),
    )

    with pytest.raises(AssertionError):
        test_ends_that_return_with_their_node_count(0)
