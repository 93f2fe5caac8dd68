"""Worlds in which dispatchers change often, for so long that streams are retired.

Each function is one kind of run, by its name without `run_`.
"""

from __future__ import annotations

from functools import partial

from octaskly.core.model.ids import NodeId
from tests.simulation.checks.rules import FINAL, watch
from tests.simulation.fault_injection import settle
from tests.simulation.faults import QUIET_S, forget_soon
from tests.simulation.store.disk import Disk
from tests.simulation.world import World

CLAIMS = 6  #: of dispatchers that crash, one after another
NAMED_MAX = 8  #: streams that a HELLO may name once all is forgotten


def run_aging(seed: int, quiet_s: float = QUIET_S) -> World:
    """Retire streams while one of their writers goes on, far from the others.

    Another node is away meanwhile, and reigns when it comes back. All must be quiet
    within `quiet_s` after the last fault.

    Raises:
        AssertionError: vectors grow for ever, or something accepted is lost.
    """
    world = World(seed, nodes=6)
    watch(world)
    forget_soon(world)
    draw = world.random
    world.commands.duration_s = (0.1, 0.5)
    world.start_all()
    world.run_until(world.is_settled, 10.0)
    (far,) = world.dispatchers()
    writer = world.machines[far].node
    assert writer is not None
    assert world.run_until(lambda: len(writer.standbys) == 2, 10.0)
    away = writer.standbys[0].node
    near = [node for node in world.machines if node not in (far, away)]
    world.clients.submit(far, 3)
    world.run(draw.uniform(0.1, 0.3))
    world.crash(away)  # It has the tasks, and not all of their ends.
    backup = world.machines[far].disk.copy()
    world.network.split([[far, near.pop()], near])
    for _ in range(CLAIMS):
        world.run_until(lambda: len(world.dispatchers()) > 1, 10.0)
        for node in world.dispatchers():
            world.clients.submit(node, draw.randint(1, 3))
        world.run(draw.uniform(1.0, 4.0))
        for head in [node for node in world.dispatchers() if node != far]:
            world.crash(head)
            world.at(draw.uniform(0.1, 1.0), partial(world.start, head))
    if draw.random() < 0.3:
        world.crash(far)
        world.restore(far, draw.choice((backup, Disk())))
    world.network.heal_all()
    _reign(world, away)
    settle(world, quiet_s)
    world.run(5 * world.timing.retention_s)  # The rest is forgotten, and retired.
    for check in FINAL:
        check(world)
    (head,) = world.dispatchers()
    machine = world.machines[head]
    assert machine.node is not None
    named = machine.node.hello(world.now(machine)).vector
    assert len(named) <= NAMED_MAX, f"{head} names {len(named)} streams"
    return world


def _reign(world: World, node: NodeId) -> None:
    """Let a node that was away join, and then take over from all others."""
    world.start(node)
    world.run(world.random.uniform(0.5, 4.0))
    for other in world.machines:
        if other != node:
            world.crash(other)
    world.run(world.random.uniform(3.0, 6.0))
