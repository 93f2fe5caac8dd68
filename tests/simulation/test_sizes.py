"""Large meshes: they form at once, and fail over as small ones do."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest

from octaskly.core.model.ids import NodeId
from tests.simulation.world import World


def _claims(world: World, of: Iterable[NodeId] | None = None) -> int:
    machines = [world.machines[node] for node in of or world.machines]
    notes = [note for machine in machines for _, note in machine.notes]
    return sum(note.event == "claiming" for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [2, 3, 10, 50])
def test_nodes_that_start_together_form_one_mesh(nodes: int) -> None:
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
    """F13 on one machine: all nodes are slow, and none may take another for dead.

    A start takes each agent 0.6 to 0.9 s of a core, so all are ready at about the same
    time.
    """
    world = World(5, nodes=nodes, cores=cores)
    world.boot_all(0.6, 0.9)
    assert world.run_until(lambda: len(world.alive()) == nodes, nodes * 0.9)

    assert world.run_until(world.is_settled, most_s)
    world.run(10.0)
    assert world.is_settled()
    if cores > 1:
        assert _claims(world) <= 6


def _kill_half(world: World, seed: int, *, is_front: bool) -> None:
    """Kill the dispatcher, both standbys, and others up to half of all.

    The killed nodes include those to which a follower has links. The others are the
    next successors, or any.
    """
    (first,) = world.dispatchers()
    node = world.machines[first].node
    assert node is not None
    assert node.roster is not None
    assert len(node.standbys) == 2
    line = [member.id for member in node.roster.members]
    if not is_front:
        line[3:] = Random(seed).sample(line[3:], len(line) - 3)
    for killed in line[: len(line) // 2]:
        world.crash(killed)


@pytest.mark.slow
@pytest.mark.parametrize("is_front", [True, False])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_large_mesh_survives_the_kill_of_half_its_nodes(
    seed: int, *, is_front: bool
) -> None:
    """F37: a dial is refused at once, so no node waits for a dead one."""
    world = World(seed, nodes=50)
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    world.run(10.0)
    before = _claims(world)

    _kill_half(world, seed, is_front=is_front)

    assert world.run_until(world.is_settled, 1.0)
    world.run(5.0)
    assert world.is_settled()
    assert _claims(world) == before + 1


@pytest.mark.slow
def test_agents_on_one_core_survive_the_kill_of_half_of_them() -> None:
    """F37 on one machine: all nodes are slow to notice, to dial, and to meet.

    Each survivor meets the next dispatcher and two others, at 8 ms of the core for
    each. With their messages, this takes one to two seconds.
    """
    world = World(1, nodes=40, cores=1)
    world.boot_all(0.6, 0.9)
    assert world.run_until(lambda: len(world.alive()) == 40, 36.0)
    assert world.run_until(world.is_settled, 30.0)
    world.run(10.0)
    before = _claims(world)

    _kill_half(world, 1, is_front=True)

    assert world.run_until(world.is_settled, 5.0)
    world.run(5.0)
    assert world.is_settled()
    assert _claims(world) <= before + 2


@pytest.mark.slow
def test_large_mesh_survives_a_power_cut_of_half_its_hosts() -> None:
    """As in F4, only slow dials show that the nodes are gone."""
    world = World(1, nodes=50)
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    world.run(10.0)
    (first,) = world.dispatchers()
    node = world.machines[first].node
    assert node is not None
    assert node.roster is not None
    line = [member.id for member in node.roster.members]
    lost = [*line[:3], *Random(1).sample(line[3:], 22)]
    left = [member for member in line if member not in lost]
    before = _claims(world, left)

    world.network.split([lost, left])

    def is_replaced() -> bool:
        views = {world.machines[node].node for node in left}
        return len({node.dispatcher for node in views if node} - {first, None}) == 1

    # Silence of a plain worker's dispatcher, probe, and up to twelve turns.
    assert world.run_until(is_replaced, 3.6 + 0.3 + 3.0)
    assert _claims(world, left) <= before + 2


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [3, 20, 50])
def test_killed_dispatcher_is_replaced_within_a_second(nodes: int) -> None:
    """F1, also for followers that hold links to the standbys alone."""
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
def test_new_dispatcher_and_many_followers_do_not_dial_each_other() -> None:
    """Each handshake costs both ends milliseconds, just when all have much to do."""
    world = World(3, nodes=60)
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    world.run(10.0)
    (first,) = world.dispatchers()
    before = world.network.in_vain

    world.crash(first)

    assert world.run_until(world.is_settled, 1.0)
    world.run(5.0)
    assert world.network.in_vain - before <= 3


@pytest.mark.slow
def test_the_dispatcher_of_a_large_mesh_is_replaced_after_silence() -> None:
    """F4: the host is gone, so links stay up and dials hang."""
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
def test_large_mesh_keeps_few_links() -> None:
    """Followers drop the links that neither heartbeats nor takeovers need."""
    world = World(5, nodes=30)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    world.run(5.0)

    assert world.network.link_count() <= 3 * 30


@pytest.mark.slow
@pytest.mark.parametrize("is_cut_from_standbys", [False, True])
@pytest.mark.parametrize("index", [3, 14, 39])
def test_broken_path_of_one_worker_changes_no_dispatcher(
    index: int, *, is_cut_from_standbys: bool
) -> None:
    """Most nodes of a large mesh have no other link, so they ask nodes that they dial.

    All of them hear the dispatcher, so one of them is the worker's relay.
    """
    world = World(3, nodes=40)
    world.network.is_encoding = False
    world.start_all()
    assert world.run_until(world.is_settled, 8.0)
    world.run(5.0)
    (head,) = world.dispatchers()
    dispatcher = world.machines[head].node
    assert dispatcher is not None
    standbys = [standby.node for standby in dispatcher.standbys]
    workers = [n for n in world.machines if n not in (head, *standbys)]
    cut = workers[index % len(workers)]
    before = _claims(world)

    for other in (head, *standbys) if is_cut_from_standbys else (head,):
        world.network.cut(other, cut)
    world.run(15.0)

    assert _claims(world) == before
    node = world.machines[cut].node
    assert node is not None
    assert node.relay is not None
