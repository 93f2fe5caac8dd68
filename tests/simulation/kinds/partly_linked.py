"""Worlds in which each node is linked only to a few others, and stays so.

Nodes may be more than two links apart, so one dispatcher cannot serve all of them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from octaskly.core.model.ids import NodeId
from tests.simulation.checks.rest import promised
from tests.simulation.checks.rules import watch
from tests.simulation.front_doors import FrontDoors
from tests.simulation.kinds.gaps import finish
from tests.simulation.world import World

SETTLED_S = 8.0  #: time until each node accepts tasks and the dispatchers are final
REST_S = 12.0  #: time after it in which each accepted task ends
LINKS_MORE = 2  #: at most so many links beyond those that connect all nodes


def run_partly_linked(seed: int) -> World:
    """Cut most links of a mesh, before it starts or at work."""
    world = World(seed, nodes=4 + seed % 5)
    watch(world)
    if seed % 3 == 0:  # As in a large mesh, most nodes keep few links.
        world.limits = replace(world.limits, full_mesh_peers=3)
    world.network.is_encoding = False  # Other worlds test that the codec loses nothing.
    world.commands.duration_s = (0.01, 0.1)
    was_whole = world.random.random() < 0.5
    if was_whole:
        world.start_all()
        assert world.run_until(world.is_settled, 5.0)
        world.run(2.0)
    links = keep_few_links(world)
    if not was_whole:
        world.start_all()
    cut_s = world.time_s
    doors = FrontDoors(world)
    world.run(SETTLED_S)
    waits_s = {node: doors.wait_s(node, cut_s) for node in world.machines}
    assert max(waits_s.values()) <= SETTLED_S, waits_s
    dispatchers = world.dispatchers()
    doors.stop()
    world.run(REST_S)
    assert world.dispatchers() == dispatchers, "the dispatchers still change"
    each_node_serves_one_dispatcher(world, links)
    each_task_has_ended(world)
    return finish(world, doors)


def keep_few_links(world: World) -> set[frozenset[NodeId]]:
    """Cut all links but a few that connect all nodes, often in a long chain."""
    draw, nodes = world.random, list(world.machines)
    draw.shuffle(nodes)
    links = {
        frozenset((nodes[draw.randrange(max(0, index - 2), index)], nodes[index]))
        for index in range(1, len(nodes))
    }
    for _ in range(draw.randint(0, LINKS_MORE)):
        links.add(frozenset(draw.sample(nodes, 2)))
    for pair in combinations(nodes, 2):
        if frozenset(pair) not in links:
            world.network.cut(*pair)
    return links


def each_node_serves_one_dispatcher(
    world: World, links: set[frozenset[NodeId]]
) -> None:
    """G6: a node is a dispatcher, or hears exactly one, or has a relay to one."""
    dispatchers = set(world.dispatchers())
    for machine in world.alive():
        node = machine.node
        assert node is not None
        near = {other for link in links if machine.id in link for other in link}
        heard = dispatchers & near
        assert len(heard) <= 1, f"{machine.id} is between {heard}"
        assert heard or node.relay is not None, f"{machine.id} reaches no dispatcher"


def each_task_has_ended(world: World) -> None:
    """Each accepted task has run, at the latest for another dispatcher."""
    heads = [world.machines[node].disk.records for node in world.dispatchers()]
    for task in promised(world):
        known = [records[task] for records in heads if task in records]
        assert any(r.state.is_final for r in known), f"{task} waits for the heal"
