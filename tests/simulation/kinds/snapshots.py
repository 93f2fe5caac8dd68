"""Worlds in which a node has part of a snapshot, or all of it, and its sender is gone.

Each function is one kind of run; the kind's name is the function's name without `run_`.
"""

from __future__ import annotations

import random
from functools import partial

from octaskly.core.model.ids import TaskId
from octaskly.core.node.node import Node
from tests.simulation.checks.rest import unfinished
from tests.simulation.checks.rules import FINAL, watch
from tests.simulation.checks.unknown import knows_all
from tests.simulation.fault_injection import NARROW, draw_profile, inject_faults, settle
from tests.simulation.faults import Profile, later, restart, restorer
from tests.simulation.store.disk import Disk
from tests.simulation.store.snapshot import PART_ROWS
from tests.simulation.world import World

REPLICATED_S = 2.0  #: seconds until standbys pull what a dispatcher has merged
PART_S = 0.05  #: seconds until a standby has pulled, staged and merged a part, at most


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
    """Start a node without a log, and remove the sender of its snapshot.

    Some parts have arrived by then, or all of them, and not all are merged.
    """
    dispatchers = world.dispatchers()
    others = [node for node in world.machines if node not in dispatchers]
    if not dispatchers or not others:
        return
    newcomer, giver = draw.choice(others), dispatchers[0]
    disk = Disk()
    restorer(world, newcomer, disk)()
    world.start(newcomer)
    is_lost, is_whole = draw.random() < 0.5, draw.random() < 0.5

    def look(tries: int) -> None:
        if world.is_calm or tries == 0 or world.machines[newcomer].disk is not disk:
            return
        if not (disk.is_merging if is_whole else disk.staged):
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
        # The newcomer is dispatcher for a while, or has time to send all on.
        wait_s = draw.choice((0.1, 0.5, 2.0, 8.0)) * draw.uniform(0.5, 2.0)
        later(world, wait_s, partial(world.crash, newcomer))
        restart(world, profile, newcomer, after_s=wait_s)

    world.at(0.02, lambda: look(100))


def _half_joined(
    seed: int, tasks: int = 60, *, is_whole: bool = True
) -> tuple[World, set[TaskId]]:
    """Return a world whose only log was lost while another node got its snapshot.

    Return also the tasks of the snapshot, none if not all parts have arrived.
    """
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
    rows = set(world.machines[first].disk.records)
    world.start(second)
    disk = world.machines[second].disk
    world.run_until(lambda: disk.is_merging if is_whole else bool(disk.staged), 10.0)
    if is_whole:
        parts = world.random.randrange(tasks // PART_ROWS // 2)
        world.run_until(lambda: len(disk.records) >= parts * PART_ROWS, 10.0)
    restorer(world, first, Disk())()
    is_complete = disk.is_merging or rows == set(disk.records)
    assert is_complete is is_whole, "it is not half-way"
    return world, rows if is_whole else set()


def run_half_joined(seed: int) -> World:
    """Lose the only log while another node merges its snapshot, or has half of it."""
    world, rows = _half_joined(seed, is_whole=bool(seed % 3))
    _, second, third = world.machines
    if seed % 2:
        world.crash(second)
        world.start(second)
    world.run_until(lambda: world.dispatchers() == [second], 10.0)
    disk = world.machines[second].disk
    assert rows or not disk.records, "half of a snapshot counts"
    world.start(third)
    settle(world)
    for check in FINAL:
        check(world)
    assert world.run_until(partial(_are_everywhere, world, rows), 60.0)
    return world


def run_half_followed(seed: int) -> World:
    """The same, but the node with the snapshot follows a node without any."""
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
    """The same, but the node with the snapshot becomes dispatcher and is lost as well.

    It has much to send, so a standby relies on it before it has received all.
    """
    world, rows = _half_joined(seed, tasks=200)
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
        world.run(REPLICATED_S + len(rows) / PART_ROWS * PART_S)
        held = [m.id for m in world.machines.values() if rows <= m.disk.records.keys()]
        assert len(held) == 3, f"rows of a snapshot are only on {held}"
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
    assert world.run_until(partial(_are_everywhere, world, rows), 60.0)
    return world


def _is_in_sync(node: Node) -> bool:
    return any(view.is_in_sync for view in node.standbys)


def _are_everywhere(world: World, rows: set[TaskId]) -> bool:
    return all(rows <= m.disk.records.keys() for m in world.machines.values())
