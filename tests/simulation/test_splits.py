"""A LAN that splits into two halves and heals: dispatchers and knowledge."""

from __future__ import annotations

import pytest

from octaskly.core.model.ids import NodeId
from tests.simulation.checks.unknown import never_not_found
from tests.simulation.world import World

STEP_S = 0.05
SPLIT_S = 8.0
HEALED_S = 5.0  #: seconds until one dispatcher is left, if nodes remember each other
FOUND_S = 25.0  #: the same, if they have never met


def formed(seed: int, nodes: int) -> World:
    """Return a mesh at rest."""
    world = World(seed, nodes=nodes)
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    world.run(3.0)
    return world


def split(world: World) -> NodeId:
    """Cut the dispatcher off with one other node at most; return it."""
    (head,) = world.dispatchers()
    others = [node for node in world.machines if node != head]
    most = len(others) // 2
    world.network.split([[head, *others[:most]], others[most:]])
    return head


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_split_half_calls_no_task_of_the_other_half_unknown(
    nodes: int, seed: int
) -> None:
    """I4, G7: from the first moment at which the other half may accept tasks."""
    world = formed(seed, nodes)
    split(world)
    ends_s = world.time_s + SPLIT_S
    while world.time_s < ends_s:
        world.run(STEP_S)
        for node in world.dispatchers():
            world.clients.submit(node)
        never_not_found(world)

    assert len(world.dispatchers()) == 2
    world.network.heal_all()
    ends_s = world.time_s + HEALED_S
    while world.time_s < ends_s:
        world.run(STEP_S)
        never_not_found(world)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(4))
def test_healed_split_has_one_dispatcher_within_five_seconds(
    nodes: int, seed: int
) -> None:
    """G6: also after a minute, in which no node has forgotten the others."""
    world = formed(seed, nodes)
    for split_s in (SPLIT_S, 60.0):
        split(world)
        world.run(split_s)
        assert len(world.dispatchers()) == 2

        world.network.heal_all()

        assert world.run_until(world.is_settled, HEALED_S)
        world.run(3.0)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(4))
def test_halves_that_never_met_have_one_dispatcher_within_25_seconds(
    nodes: int, seed: int
) -> None:
    """G6, F10: no node dials an unknown one, so one of them has to query mDNS again."""
    world = World(seed, nodes=nodes)
    names = list(world.machines)
    halves = [names[: nodes // 2], names[nodes // 2 :]]
    world.network.split(halves)
    world.start_all()
    for _ in range(3):
        world.run(20.0 + seed * 7.0)
        heads = world.dispatchers()
        assert [sum(head in half for head in heads) for half in halves] == [1, 1]

    world.network.heal_all()

    assert world.run_until(world.is_settled, FOUND_S)
    world.run(3.0)
    assert world.is_settled()
