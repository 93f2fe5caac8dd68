"""Worlds that split and merge.

Each function is one kind of run; the kind's name is the function's name without `run_`.
"""

from __future__ import annotations

from octaskly.core.model.ids import TaskId
from tests.simulation.checks.rules import FINAL, watch
from tests.simulation.fault_injection import settle
from tests.simulation.faults import QUIET_S
from tests.simulation.world import World

MET_S = 5.0  #: seconds after a heal within which there is one dispatcher again


def run_unseen(seed: int) -> World:
    """Heal a split without multicast: nodes dial the lost peers.

    Raises:
        AssertionError: the halves do not meet within the time for known peers.
    """
    world = World(seed, nodes=3 + seed % 3)
    watch(world)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    world.run(3.0)
    world.network.has_multicast = False
    (head,) = world.dispatchers()
    world.network.split([[head], [node for node in world.machines if node != head]])
    world.run(8.0)
    world.network.heal_all()
    assert world.run_until(world.is_settled, MET_S), "no node dials the lost ones"
    settle(world)
    for check in FINAL:
        check(world)
    return world


def run_flapping(seed: int) -> World:
    """Split a busy mesh of five repeatedly, over slow links (F9)."""
    world = World(seed, nodes=5)
    watch(world)
    world.network.delay_ms = (10.0, 150.0)
    world.network.is_encoding = False  # Other worlds test that the codec loses nothing.
    world.commands.duration_s = (0.01, 0.2)
    world.start_all()
    for _ in range(5):
        world.run_until(lambda: bool(world.dispatchers()), 10.0)
        nodes = list(world.machines)
        world.random.shuffle(nodes)
        world.network.split([nodes[:2], nodes[2:]])
        for _ in range(12):
            for node in world.dispatchers():
                world.clients.submit(node, 10)
            world.run(world.random.uniform(0.2, 0.6))
        world.network.heal_all()
        for _ in range(12):
            for node in world.dispatchers():
                world.clients.submit(node, 10)
            world.run(world.random.uniform(0.2, 0.6))
    settle(world, 4 * QUIET_S)  # This many tasks need several parts of three rows each.
    for check in FINAL:
        check(world)
    return world


def run_same_names(seed: int) -> World:
    """Submit tasks with the same names to both halves of a split; some differ."""
    world = World(seed, nodes=4)
    watch(world)
    world.start_all()
    nodes = list(world.machines)
    for part in range(3):
        world.run_until(lambda: bool(world.dispatchers()), 10.0)
        world.random.shuffle(nodes)
        world.network.split([nodes[:2], nodes[2:]])
        world.run_until(lambda: len(world.dispatchers()) > 1, 10.0)
        for number in range(8):
            for node in world.dispatchers():
                name = TaskId(f"named-{part}-{number}")
                world.clients.submit(node, task_id=name)
                held = list(world.machines[node].disk.records)
                if held and world.random.random() < 0.2:
                    world.clients.cancel(node, world.random.choice(held), force=True)
            world.run(world.random.uniform(0.1, 0.6))
        world.network.heal_all()
        world.run(world.random.uniform(0.5, 3.0))
    settle(world)
    for check in FINAL:
        check(world)
    return world
