"""A mesh whose nodes are linked only to a few others, for ever."""

from __future__ import annotations

import pytest

from octaskly.core.model.ids import NodeId
from tests.simulation.kinds.partly_linked import REST_S, SETTLED_S, run_partly_linked
from tests.simulation.world import World


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_partly_linked_mesh_settles_and_ends_each_task(seed: int) -> None:
    """No node is linked to two dispatchers, and no accepted task waits for the heal."""
    run_partly_linked(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_line_of_four_keeps_two_dispatchers_until_it_is_healed(seed: int) -> None:
    """A limit that docs/explanation/guarantees.md states, and what holds within it.

    Neither dispatcher knows the tasks of the other, each task runs once, and both logs
    are merged as soon as all nodes are linked.
    """
    world, line = World(seed, nodes=4), [NodeId(f"node{n:012d}") for n in range(4)]
    for a, b in ((0, 2), (0, 3), (1, 3)):
        world.network.cut(line[a], line[b])
    ends = {line[0], line[3]}
    for node in ends:  # They claim before a node in between does.
        world.start(node)
    assert world.run_until(lambda: set(world.dispatchers()) == ends, SETTLED_S)
    world.start_all()
    world.run(SETTLED_S)
    assert set(world.dispatchers()) == ends

    for node in ends:
        world.clients.submit(node, 5)
    world.run(REST_S)

    assert set(world.dispatchers()) == ends
    accepted = world.clients.accepted.keys()
    known = [world.machines[node].disk.records.keys() & accepted for node in ends]
    assert [len(tasks) for tasks in known] == [5, 5]
    assert known[0].isdisjoint(known[1])
    assert sorted(start.task for start in world.commands.started) == sorted(accepted)

    world.network.heal_all()

    assert world.run_until(world.is_settled, SETTLED_S)
    world.run(REST_S)
    (head,) = world.dispatchers()
    assert world.machines[head].disk.records.keys() == accepted
    assert len(world.commands.started) == len(accepted)
