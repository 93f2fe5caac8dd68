"""Meshes of many machines: they form at once, and fail over as small ones do."""

from __future__ import annotations

import pytest

from tests.simulation.world import World


def _claims(world: World) -> int:
    notes = [note for m in world.machines.values() for _, note in m.notes]
    return sum(note.event == "claiming" for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [2, 3, 10, 50])
def test_machines_that_start_together_form_one_mesh(nodes: int) -> None:
    """F13: within five seconds, with at most three claims."""
    world = World(5, nodes=nodes)
    world.start_all()

    assert world.run_until(world.is_settled, 5.0)
    assert _claims(world) <= 3


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "cores", "most_s"), [(50, 2, 5.0), (50, 1, 30.0)])
def test_agents_that_start_together_on_few_cores_form_one_mesh(
    nodes: int, cores: int, most_s: float
) -> None:
    """F13 on one machine: all are late, and none is to take another for dead.

    A start takes each 0.6 to 0.9 s of a core, so all are ready at about the same time.
    """
    world = World(5, nodes=nodes, cores=cores)
    world.boot_all(0.6, 0.9)
    assert world.run_until(lambda: len(world.alive()) == nodes, nodes * 0.9)

    assert world.run_until(world.is_settled, most_s)
    world.run(10.0)
    assert world.is_settled()
    if cores > 1:
        assert _claims(world) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [3, 20, 50])
def test_a_killed_dispatcher_is_replaced_within_a_second(nodes: int) -> None:
    """F1, also where followers hold links to the standbys alone."""
    world = World(6, nodes=nodes)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    world.run(3.0)
    (first,) = world.dispatchers()

    world.crash(first)

    assert world.run_until(world.is_settled, 1.0)
    world.start(first)
    assert world.run_until(world.is_settled, 2.5)
    (second,) = world.dispatchers()
    node = world.machines[second].node
    assert node is not None
    world.run(2.0)
    assert node.roster is not None
    assert len(node.roster.members) == nodes


@pytest.mark.slow
def test_the_dispatcher_of_a_large_mesh_is_replaced_after_silence() -> None:
    """F4: its host is gone, so links stay up and dials hang."""
    world = World(7, nodes=20)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    world.run(3.0)
    (lost,) = world.dispatchers()
    others = [node for node in world.machines if node != lost]

    world.network.split([[lost], others])

    def is_replaced() -> bool:
        views = {world.machines[node].node for node in others}
        return len({node.dispatcher for node in views if node} - {lost, None}) == 1

    assert world.run_until(is_replaced, 3.0)
    world.network.heal_all()
    assert world.run_until(world.is_settled, 25.0)


@pytest.mark.slow
def test_a_large_mesh_keeps_few_links() -> None:
    """Followers drop the links that neither heartbeat nor takeover needs."""
    world = World(5, nodes=30)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    world.run(5.0)

    assert world.network.link_count() <= 3 * 30
