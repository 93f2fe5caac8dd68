"""Worlds with arrays whose members are so short that workers get them by ranges.

Each function is one kind of run, by its name without `run_`.
"""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.model.nodes import AvailabilityCommand
from tests.simulation.checks.rules import FINAL, watch
from tests.simulation.checks.tries import TRIED, TryWatch
from tests.simulation.checks.turns import TurnWatch, latest_priorities_count
from tests.simulation.fault_injection import (
    SIZES,
    draw_profile,
    inject_faults,
    settle,
)
from tests.simulation.faults import end_steering
from tests.simulation.kinds.failing import cancel_some, reprioritize_some
from tests.simulation.world import World

SILENT_SHARES = (0.9, 0.0, 1.0)  #: of commands that write nothing


def run_ranges(seed: int) -> World:
    """Inject faults, cancel members, pause and drain nodes while ranges run."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    watch(world)
    TryWatch(world)
    TurnWatch(world)
    draw = world.tries
    world.clients.submitters = ("ann", "bo")
    world.clients.array_share = draw.choice((0.3, 0.8))
    world.clients.members_most = draw.choice((12, 60))
    # Commands without a share of failures get no arrays.
    world.commands.failing_share = draw.choice((0.0001, 0.02, 0.33))
    profile = replace(draw_profile(world), batches=(1, 1, 2))
    world.commands.duration_s = draw.choice(((0.001, 0.004), (0.004, 0.03)))
    world.commands.batch_s = 0.05
    # All sizes of worlds meet all shares.
    share = SILENT_SHARES[seed // len(SIZES) % len(SILENT_SHARES)]
    world.commands.silent_share = share
    end_s = world.time_s + profile.seconds

    def ask() -> None:
        if world.time_s < end_s:
            draw.choice((cancel_some, reprioritize_some, steer_some))(world)
            world.at(draw.uniform(0.1, 2.0), ask)

    world.at(1.0, ask)
    inject_faults(world, profile)
    end_steering(world)
    settle(world)
    for check in (*FINAL, *TRIED, latest_priorities_count):
        check(world)
    return world


def steer_some(world: World) -> None:
    """Drain, pause or resume a node."""
    alive = [machine.id for machine in world.alive()]
    if alive:
        commands = tuple(AvailabilityCommand)
        world.steer(world.tries.choice(alive), world.tries.choice(commands))
