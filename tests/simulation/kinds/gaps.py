"""Worlds in which no node accepts a task for a while: the time until one does again.

Each function is one kind of run; the kind's name is the function's name without `run_`.
"""

from __future__ import annotations

from functools import partial

from octaskly.core.model.ids import NodeId
from tests.simulation.checks.rules import FINAL, watch
from tests.simulation.fault_injection import settle
from tests.simulation.front_doors import FrontDoors
from tests.simulation.world import World

ACCEPT_S = 5.0  #: seconds until each node accepts tasks again
KILLS = 3


def formed(seed: int) -> tuple[World, FrontDoors]:
    """Return a mesh at work, with clients at each node."""
    world = World(seed, nodes=3 + seed % 5)
    watch(world)
    world.network.is_encoding = False  # Other worlds test that the codec loses nothing.
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    world.run(world.random.uniform(1.0, 3.0))
    return world, FrontDoors(world)


def accept_again(world: World, doors: FrontDoors, since_s: float) -> None:
    """Check that each running node accepts a task soon after a time."""
    world.run(since_s + ACCEPT_S + 1.0 - world.time_s)
    waits_s = {m.id: doors.wait_s(m.id, since_s) for m in world.alive()}
    assert max(waits_s.values()) <= ACCEPT_S, waits_s


def finish(world: World, doors: FrontDoors) -> World:
    """Run all checks of a world at rest."""
    doors.stop()
    settle(world)
    for check in FINAL:
        check(world)
    return world


def run_asleep(seed: int) -> World:
    """Suspend all machines; they wake within a second of each other."""
    world, doors = formed(seed)
    sleep_s = world.random.choice((3.0, 9.5, 12.0, 60.0))
    spread_s = world.random.choice((0.05, 1.0))
    for node in world.machines:
        world.sleep(node, sleep_s + world.random.uniform(0.0, spread_s))
    accept_again(world, doors, world.time_s + sleep_s + spread_s)
    return finish(world, doors)


def run_frozen(seed: int) -> World:
    """Stop all processes, so that frames wait in their sockets."""
    world, doors = formed(seed)
    pause_s = world.random.choice((3.0, 9.5, 12.0, 60.0))
    spread_s = world.random.choice((0.05, 1.0))
    for node in world.machines:
        world.pause(node, pause_s + world.random.uniform(0.0, spread_s))
    accept_again(world, doors, world.time_s + pause_s + spread_s)
    return finish(world, doors)


def run_waking(seed: int) -> World:
    """Suspend all machines, and wake one long before the others.

    It does not know that no other node is awake.
    """
    world, doors = formed(seed)
    sleep_s = world.random.choice((12.0, 60.0))
    stop = world.random.choice((world.sleep, world.pause))
    first, *rest = world.random.sample(list(world.machines), len(world.machines))
    stop(first, sleep_s)
    for node in rest:
        stop(node, sleep_s + world.random.uniform(2.0, 20.0))
    since_s = world.time_s + sleep_s
    world.run(since_s + ACCEPT_S - world.time_s)
    assert doors.wait_s(first, since_s) <= ACCEPT_S
    world.run(20.0)
    return finish(world, doors)


def run_killed(seed: int) -> World:
    """Kill all processes again and again while they start."""
    world, doors = formed(seed)
    slowest_s = 0.0
    for _ in range(KILLS):
        world.run(world.random.uniform(0.0, 2.0))
        slowest_s = 0.0
        for node in world.machines:
            world.crash(node)
            start_s = world.random.uniform(0.3, 1.5)
            slowest_s = max(slowest_s, start_s)
            world.at(start_s, partial(world.start, node))
        world.run(slowest_s)
    accept_again(world, doors, world.time_s)
    return finish(world, doors)


def cut_to_ring(world: World) -> list[NodeId]:
    """Link each node only to the two beside it, in random order; return the ring."""
    ring = list(world.machines)
    world.random.shuffle(ring)
    for index, node in enumerate(ring):
        for other in ring[index + 2 :]:
            if (ring[0], ring[-1]) != (node, other):
                world.network.cut(node, other)
    return ring


def run_ring(seed: int) -> World:
    """Start a mesh that is a ring; kill a dispatcher, and start it again."""
    world = World(seed, nodes=4 + seed % 4)
    watch(world)
    world.network.is_encoding = False
    cut_to_ring(world)
    world.start_all()
    doors = FrontDoors(world)
    world.run(world.random.uniform(0.0, 5.0))
    accept_again(world, doors, world.time_s)
    dispatcher = world.random.choice(world.dispatchers())
    world.crash(dispatcher)
    accept_again(world, doors, world.time_s)
    world.start(dispatcher)
    accept_again(world, doors, world.time_s)
    return finish(world, doors)


def run_ringed(seed: int) -> World:
    """Turn a mesh into a ring, and back."""
    world, doors = formed(seed)
    cut_to_ring(world)
    accept_again(world, doors, world.time_s + 5.0)
    world.network.heal_all()
    accept_again(world, doors, world.time_s)
    return finish(world, doors)
