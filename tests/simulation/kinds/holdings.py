"""Worlds in which nodes get and lose blobs, and report them to each dispatcher.

What a dispatcher knows of holders is soft state: no log has it. After each fault it
must become what the nodes really have, or tasks are placed far from their bytes.
"""

from __future__ import annotations

from functools import partial

from octaskly.core.events import HeldBlobsChanged
from octaskly.core.model.ids import NodeId
from tests.simulation.checks.rest import is_quiet
from tests.simulation.checks.rules import FINAL, watch
from tests.simulation.faults import QUIET_S
from tests.simulation.world import World

KEYS = 40  #: different blobs
REPORT_S_MAX = 2.0  #: until an agent has read its store, and a report has arrived

Blobs = dict[NodeId, set[int]]


def run_holdings(seed: int) -> World:
    """Change the blobs of nodes while processes and links break."""
    world = World(seed, nodes=4)
    watch(world)
    blobs: Blobs = {node: set() for node in world.machines}
    for node in world.machines:
        start(world, blobs, node)
    world.run_until(world.is_settled, 5.0)
    for _ in range(60):
        for _ in range(world.random.randrange(4)):
            change(world, blobs)
        break_something(world, blobs)
        world.run(world.random.uniform(0.0, 1.5))
    world.network.heal_all()
    world.run_until(lambda: is_quiet(world), QUIET_S)
    world.run(REPORT_S_MAX)
    for check in FINAL:
        check(world)
    dispatcher_knows_holders(world, blobs)
    return world


def start(world: World, blobs: Blobs, node: NodeId) -> None:
    """Start a process, which finds its blobs on its disk a moment later."""
    machine = world.machines[node]
    if machine.node is None:
        world.start(node)
        world.later(
            machine,
            world.random.uniform(0.0, 1.0),
            lambda: world.feed(machine, HeldBlobsChanged(tuple(blobs[node]), ())),
        )


def change(world: World, blobs: Blobs) -> None:
    """Add blobs to a node's disk, and delete some."""
    machine = world.machines[world.random.choice(list(blobs))]
    held = blobs[machine.id]
    went = {key for key in sorted(held) if world.random.random() < 0.2}
    came = {world.random.randrange(KEYS) for _ in range(3)} - held
    held -= went
    held |= came
    if machine.node is not None:
        world.feed(machine, HeldBlobsChanged(tuple(came), tuple(went)))


def break_something(world: World, blobs: Blobs) -> None:
    """Kill a process for a while, or break links; most often nothing."""
    draw = world.random.random()
    one, other = world.random.sample(list(world.machines), 2)
    if draw < 0.15:
        one = world.random.choice([one, *world.dispatchers()])
        world.crash(one)
        world.at(world.random.uniform(0.5, 4.0), partial(start, world, blobs, one))
    elif draw < 0.3:
        world.network.reset(one, other)
    elif draw < 0.35:
        world.network.split([[one], [n for n in world.machines if n != one]])
        world.at(world.random.uniform(0.5, 4.0), world.network.heal_all)
    elif draw < 0.4:
        world.pause(one, world.random.uniform(0.1, 2.0))


def dispatcher_knows_holders(world: World, blobs: Blobs) -> None:
    """The dispatcher knows exactly which blobs each node has."""
    (dispatcher,) = world.dispatchers()
    node = world.machines[dispatcher].node
    assert node is not None
    holdings = node._dispatcher._step.locality.holdings
    for key in range(KEYS):
        known = set(holdings.nodes_with(key))
        having = {node_id for node_id, held in blobs.items() if key in held}
        assert known == having, f"blob {key}: {known} are known, {having} have it"
