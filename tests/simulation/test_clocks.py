"""Wrong wall clocks: the age of a result is the time since it was written, on any node.

Floors are planned every minute, and a result is final on all nodes once it is gone.
"""

from __future__ import annotations

import pytest

from octaskly.core.model.ids import NodeId
from octaskly.core.model.settings import Timing
from tests.simulation.checks.rules import watch
from tests.simulation.fault_injection import NARROW
from tests.simulation.store.disk import Disk
from tests.simulation.world import World

MONTH_MS = 30 * 86_400_000
TASKS = 40
PLANNING_S = 130.0  #: two plans of a dispatcher


def world_with_wrong_clock(
    skew_ms: int, retention_s: float = 7 * 86_400.0
) -> tuple[World, NodeId, list[NodeId]]:
    """Return a world in which a node with a wrong clock has completed tasks."""
    world = World(7, nodes=3, timing=Timing(retention_s=retention_s))
    world.limits = NARROW  # So a node that lacks the log gets a snapshot.
    watch(world)
    world.is_skewed = True
    first, *others = world.machines
    world.machines[first].wall_skew_ms = skew_ms
    world.start(first)
    world.run(3.0)
    for node in others:
        world.start(node)
    world.run_until(world.is_settled, 10.0)
    world.clients.submit(first, TASKS)
    world.run(20.0)
    assert world.dispatchers() == [first]
    assert shown(world) == dict.fromkeys(world.machines, TASKS)
    return world, first, others


def shown(world: World) -> dict[NodeId, int]:
    """Return how many ended tasks each running node shows."""
    return {
        machine.id: sum(r.state.is_final for r in machine.disk.records.values())
        for machine in world.alive()
    }


@pytest.mark.parametrize("skew_ms", [-MONTH_MS, MONTH_MS])
def test_results_outlive_the_dispatcher_with_the_wrong_clock(skew_ms: int) -> None:
    """Its followers have correct clocks, and one of them plans the next floor."""
    world, first, others = world_with_wrong_clock(skew_ms)

    world.stop(first)
    world.run(PLANNING_S)

    assert shown(world) == dict.fromkeys(others, TASKS)


def test_results_of_a_wrong_clock_are_forgotten_in_time() -> None:
    """The error of the clock adds nothing to the retention, either."""
    world, first, others = world_with_wrong_clock(-MONTH_MS, retention_s=300.0)
    world.stop(first)

    world.run(250.0)
    kept = shown(world)
    world.run(150.0)

    assert kept == dict.fromkeys(others, TASKS)
    assert shown(world) == dict.fromkeys(others, 0)


def test_results_outlive_the_correction_of_the_clock_of_a_lone_node() -> None:
    """It boots without a clock, and NTP sets the time; then its agent restarts."""
    world, first, others = world_with_wrong_clock(-MONTH_MS)
    for node in others:
        world.stop(node)
    world.run(10.0)

    world.step_clock(first, 0)
    world.crash(first)
    world.start(first)
    world.run(PLANNING_S)

    assert shown(world) == {first: TASKS}


def test_results_outlive_a_clock_that_goes_wrong_on_a_lone_node() -> None:
    """The node cannot know better, but nothing grows older by the step."""
    world, first, others = world_with_wrong_clock(0)
    for node in others:
        world.stop(node)
    world.run(10.0)

    world.step_clock(first, MONTH_MS)
    world.crash(first)
    world.start(first)
    world.run(PLANNING_S)

    assert shown(world) == {first: TASKS}


def test_results_outlive_a_snapshot_from_the_wrong_clock() -> None:
    """The joiner has a correct clock, and nothing but the rows of the other node."""
    world, first, (second, third) = world_with_wrong_clock(-MONTH_MS)
    world.stop(third)
    world.stop(second)
    world.run(10.0)
    world.restore(second, Disk())
    snapshots = world.storage.snapshots
    world.start(second)
    world.run_until(lambda: world.storage.snapshots > snapshots, 20.0)
    world.run(5.0)

    world.stop(first)
    world.run(PLANNING_S)

    assert world.storage.snapshots > snapshots
    assert shown(world) == {second: TASKS}
