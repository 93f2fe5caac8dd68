"""Worlds in which anything may happen, as their seeds draw it.

Each function is one kind of run; the kind's name is the function's name without `run_`.
It makes a world, injects faults, and checks it.
"""

from __future__ import annotations

import random

from octaskly.core.model.nodes import AvailabilityCommand
from tests.simulation.checks.rules import FINAL, watch
from tests.simulation.fault_injection import (
    CHILD_SHARE,
    DEMANDING_EVERY,
    DEMANDING_SHARE,
    SIZES,
    draw_profile,
    inject_faults,
    settle,
)
from tests.simulation.faults import end_steering, one_alive
from tests.simulation.world import World

SKEWS_MS = (0, 0, -30 * 86_400_000, -5000, 5000, 30 * 86_400_000)
"""Errors of wall clocks."""


def run_seed(
    seed: int, *, is_forgetting: bool = False, is_unordered: bool = False
) -> World:
    """Inject faults into one world, check it, and return it.

    Raises:
        AssertionError: a rule is broken; `seed` repeats it.
    """
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    watch(world)
    world.storage.is_unordered = is_unordered
    world.clients.child_share = CHILD_SHARE
    world.clients.demanding_share = (
        DEMANDING_SHARE if seed % DEMANDING_EVERY == 0 else 0.0
    )
    inject_faults(world, draw_profile(world, is_forgetting=is_forgetting))
    settle(world)
    for check in FINAL:
        check(world)
    return world


def run_forgetful(seed: int) -> World:
    """Inject faults into a world that forgets tasks some seconds after their end."""
    return run_seed(seed, is_forgetting=True)


def run_unordered(seed: int) -> World:
    """The same, and a node sends the requested streams in any order."""
    return run_seed(seed, is_forgetting=True, is_unordered=True)


def run_skewed(seed: int) -> World:
    """Run random faults while clocks are wrong, and tasks are soon forgotten."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    watch(world)
    draw = random.Random(f"clocks {seed}")
    for machine in world.machines.values():
        machine.wall_skew_ms = draw.choice(SKEWS_MS)
    world.is_skewed = True
    profile = draw_profile(world, is_forgetting=True)
    end_s = world.time_s + profile.seconds

    def step_clock() -> None:
        if world.time_s < end_s:
            world.step_clock(draw.choice(list(world.machines)), draw.choice(SKEWS_MS))
            world.at(draw.uniform(0.5, 4.0), step_clock)

    world.at(draw.uniform(1.0, 4.0), step_clock)
    inject_faults(world, profile)
    settle(world)
    for check in FINAL:
        check(world)
    return world


def run_updated(seed: int) -> World:
    """Inject faults into a world whose programs are upgraded one after another."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    watch(world)
    world.updated_share = world.random.choice((0.1, 0.3, 0.5))
    inject_faults(world, draw_profile(world))
    world.updated_share = 0.0  # Some machines are never upgraded.
    settle(world)
    for check in FINAL:
        check(world)
    return world


def run_steered(seed: int) -> World:
    """Inject faults into a world whose nodes are drained, paused and resumed."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    watch(world)
    world.clients.child_share = CHILD_SHARE
    world.clients.demanding_share = (
        DEMANDING_SHARE if seed % DEMANDING_EVERY == 0 else 0.0
    )
    profile = draw_profile(world)
    end_s = world.time_s + profile.seconds

    def steer() -> None:
        if world.time_s < end_s:
            if (node := one_alive(world)) is not None:
                world.steer(node, world.random.choice(tuple(AvailabilityCommand)))
            world.at(world.random.uniform(0.1, 2.0), steer)

    world.at(1.0, steer)
    inject_faults(world, profile)
    end_steering(world)
    settle(world)
    for check in FINAL:
        check(world)
    return world
