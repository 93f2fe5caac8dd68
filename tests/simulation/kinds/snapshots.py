"""Worlds in which a node has part of a log as rows, and their sender is gone.

Each function is one kind of run; the kind's name is the function's name without `run_`.
"""

from __future__ import annotations

import random
from functools import partial

from octaskly.core.dispatcher.compaction import FLOOR_STEP_S
from octaskly.core.model.ids import TaskId
from octaskly.core.node.node import Node
from tests.simulation.checks.rest import unfinished
from tests.simulation.checks.rules import FINAL, watch
from tests.simulation.checks.unknown import knows_all
from tests.simulation.fault_injection import NARROW, draw_profile, inject_faults, settle
from tests.simulation.faults import Profile, later, restart, restorer
from tests.simulation.store.disk import Disk
from tests.simulation.store.plan import STEP_TASKS
from tests.simulation.world import World

REPLICATED_S = 2.0  #: seconds after which few rows of a dispatcher are on its standbys


def run_newcomers(seed: int) -> World:
    """Inject faults into a world whose new nodes often lose their snapshot's sender."""
    world = World(seed, nodes=3 + seed % 3)
    watch(world)
    profile = draw_profile(world)
    world.limits = NARROW  # Otherwise the log tail in memory serves a newcomer.
    # TLS lets no frame arrive again from a sender that has lost its disk.
    world.network.repeats = 0.0
    draw = random.Random(f"newcomers {seed}")
    end_s = world.time_s + profile.seconds

    def cause_fault() -> None:
        if world.time_s < end_s:
            break_snapshot(world, profile, draw)
            world.at(draw.uniform(0.5, 4.0), cause_fault)

    world.at(draw.uniform(1.0, 3.0), cause_fault)
    inject_faults(world, profile)
    settle(world)
    for check in FINAL:
        check(world)
    return world


def break_snapshot(world: World, profile: Profile, draw: random.Random) -> None:
    """Start a node without a log, and remove the sender in the middle of a part."""
    dispatchers = world.dispatchers()
    others = [node for node in world.machines if node not in dispatchers]
    if not dispatchers or not others:
        return
    newcomer, giver = draw.choice(others), dispatchers[0]
    disk = Disk()
    restorer(world, newcomer, disk)()
    world.start(newcomer)
    is_lost = draw.random() < 0.5

    def look(tries: int) -> None:
        if world.is_calm or tries == 0 or world.machines[newcomer].disk is not disk:
            return
        if not disk.ahead():
            world.at(0.02, lambda: look(tries - 1))
            return
        world.crash(giver)
        if is_lost:
            restorer(world, giver, Disk())()
        restart(world, profile, giver)
        if draw.random() < 0.5:  # No other node may have it.
            for other in world.machines:
                if other not in (newcomer, giver):
                    restorer(world, other, Disk())()
                    restart(world, profile, other)
        # The node with the part is dispatcher for a while, or has time to send it on.
        wait_s = draw.choice((0.1, 0.5, 2.0, 8.0)) * draw.uniform(0.5, 2.0)
        later(world, wait_s, partial(world.crash, newcomer))
        restart(world, profile, newcomer, after_s=wait_s)

    world.at(0.02, lambda: look(100))


def _half_joined(
    seed: int, tasks: int = 60, least: int = 1
) -> tuple[World, set[TaskId]]:
    """Return a world whose only whole log was lost, and the rows of the second node."""
    world = World(seed, nodes=3)
    watch(world)
    world.limits = NARROW  # Otherwise the log tail in memory serves a newcomer.
    world.commands.duration_s = (0.01, 0.05)
    first, second, _ = world.machines
    world.start(first)
    world.run_until(lambda: world.dispatchers() == [first], 10.0)
    world.clients.submit(first, tasks)
    world.run_until(
        lambda: bool(world.clients.accepted) and not unfinished(world), 60.0
    )
    world.start(second)
    disk = world.machines[second].disk
    world.run_until(lambda: len(disk.records) >= least, 10.0)
    restorer(world, first, Disk())()
    rows = set(disk.records)
    assert least <= len(rows) < tasks, "it is not half-way"
    return world, rows


def run_half_joined(seed: int) -> World:
    """Lose the only whole log while another node has part of its snapshot."""
    world, rows = _half_joined(seed)
    _, second, third = world.machines
    world.run_until(lambda: world.dispatchers() == [second], 10.0)
    world.start(third)
    settle(world)
    for check in FINAL:
        check(world)
    assert all(rows <= set(m.disk.records) for m in world.machines.values())
    return world


def run_half_followed(seed: int) -> World:
    """The same, but the node with the part follows a node without any."""
    world, rows = _half_joined(seed)
    _, second, third = world.machines
    world.crash(second)
    world.start(third)
    world.run_until(lambda: world.dispatchers() == [third], 10.0)
    world.start(second)
    follower, dispatcher = world.machines[second], world.machines[third]

    def knows() -> bool:
        node, other = dispatcher.node, follower.node
        assert node is not None
        assert other is not None
        # Each end learns of the link on its own.
        is_met = world.network.is_up(second, third)
        return is_met and other.dispatcher == third and knows_all(world, node)

    assert world.run_until(knows, 60.0)
    assert rows <= set(dispatcher.disk.records), "404 for what was accepted"
    settle(world)
    for check in FINAL:
        check(world)
    return world


def run_half_left(seed: int) -> World:
    """The same, but the node with the part becomes dispatcher and is lost as well.

    It has much to send, so a standby relies on it before it has received all.
    """
    world, rows = _half_joined(seed, tasks=200, least=100)
    first, second, third = world.machines
    draw = world.random
    world.run_until(lambda: world.dispatchers() == [second], 10.0)
    dispatcher = world.machines[second].node
    assert dispatcher is not None
    for node in (first, third):
        world.at(draw.uniform(0.0, 2.0), partial(world.start, node))
    in_sync = partial(_is_in_sync, dispatcher)
    assert world.run_until(in_sync, 10.0)
    if draw.random() < 0.5:
        world.run(draw.uniform(0.0, 1.5))
    else:
        world.run_until(lambda: len(dispatcher.standbys) == 2, 10.0)
        world.run(REPLICATED_S + len(rows) / STEP_TASKS * FLOOR_STEP_S)
        held = [m.id for m in world.machines.values() if rows <= m.disk.records.keys()]
        assert len(held) == 3, f"rows of half a snapshot are only on {held}"
    world.crash(second)
    end_s = world.time_s + draw.uniform(2.0, 20.0)
    while world.time_s < end_s:
        world.run(0.1)
        for successor in world.alive():
            if (
                successor.node
                and successor.node.is_dispatcher
                and knows_all(world, successor.node)
            ):
                assert rows <= successor.disk.records.keys(), (
                    f"{successor.id}: 404 for a row"
                )
    settle(world)
    for check in FINAL:
        check(world)
    assert all(rows <= set(m.disk.records) for m in world.machines.values())
    return world


def _is_in_sync(node: Node) -> bool:
    return any(view.is_in_sync for view in node.standbys)
