"""Faults and requests of one world, at rates drawn from its seed.

Afterwards `settle` repairs everything and waits for rest, which the final checks need.
"""

from __future__ import annotations

from functools import partial

from octaskly.core.model.ids import TaskId
from octaskly.core.model.settings import Limits
from tests.simulation.checks.rest import is_quiet
from tests.simulation.checks.unknown import never_not_found
from tests.simulation.faults import FAULTS, PAIRWISE, QUIET_S, Profile, forget_soon
from tests.simulation.world import World

CHILD_SHARE = 0.15  #: share of tasks with a parent
DEMANDING_SHARE = 0.2  #: share of tasks that need much of a machine,
DEMANDING_EVERY = 4  #: in one of this many worlds
SIZES = (3, 4, 5, 3, 6, 5, 7, 3, 4, 5, 1, 2)  #: of worlds, by seed
ENCODED = 0.15  #: share of worlds in which the codec carries each message
STRICT = 0.1  #: share of worlds that refuse tasks rather than keep one copy
NARROW = Limits(
    window_tasks=20,
    load_tasks=10,
    entries_bytes=2000,
    tail_entries=30,
    prefetch=4,
    many_reports=1,
)
"""So small that the few tasks of a world reach the bounds, and all ends are gathered.
"""
FORGETTING_SHARE = 0.3  #: share of worlds that forget tasks after a few seconds
KEYED = 0.05  #: share of requests that repeat an earlier one
BUSY_S = 60.0  #: seconds to wait for one more attempt to start,
BUSY = 4  #: and how often to wait the time in which all must be well
NOTED = 0.2  #: requests for each record


def draw_profile(world: World, *, is_forgetting: bool = False) -> Profile:
    """Return the profile of a seed; some kinds of faults do not happen at all in it."""
    draw = world.random
    weights = tuple(
        0 if kind in PAIRWISE and len(world.machines) < 2 else rate
        for kind in FAULTS
        for rate in [draw.choice((0, 0, 1, 3))]
    )
    if not any(weights):
        weights = tuple(int(kind not in PAIRWISE) for kind in FAULTS)
    world.network.delay_ms = draw.choice(((0.2, 4.0), (2.0, 50.0), (20.0, 200.0)))
    world.network.is_encoding = draw.random() < ENCODED
    world.limits = draw.choice((Limits(), NARROW))
    world.is_strict = draw.random() < STRICT
    world.network.repeats = draw.choice((0.0, 0.0, 0.3))
    world.commands.duration_s = draw.choice(((0.01, 0.1), (0.05, 1.0), (0.5, 2.0)))
    if is_forgetting or draw.random() < FORGETTING_SHARE:
        forget_soon(world)
    is_brief = world.commands.duration_s[1] < 1.0
    gap_s = draw.choice((0.5, 1.5, 4.0))
    return Profile(
        seconds=draw.choice((6.0, 9.0, 15.0)),
        pause_s=(gap_s / 2, gap_s * 2),
        restart_s=draw.choice(((0.0, 0.3), (0.1, 2.0), (1.0, 8.0))),
        heal_s=draw.choice(((0.5, 2.0), (2.0, 6.0), (5.0, 12.0))),
        batches=draw.choice(((1, 1, 2), (1, 8), (20,) if is_brief else (4,))),
        weights=weights,
    )


def inject_faults(world: World, profile: Profile) -> None:
    """Run the world with faults and clients."""
    draw = world.random
    end_s = world.time_s + profile.seconds

    def cause_fault() -> None:
        if world.time_s < end_s:
            (fault,) = draw.choices(FAULTS, profile.weights)
            fault(world, profile)
            world.at(draw.uniform(*profile.pause_s), cause_fault)

    def ask() -> None:
        if world.time_s < end_s:
            _ask(world, profile)
            world.at(draw.uniform(0.05, 0.6), ask)

    for node in world.machines:
        world.at(draw.choice((0.0, draw.uniform(0.0, 2.0))), partial(world.start, node))
    world.at(draw.uniform(*profile.pause_s), cause_fault)
    world.at(0.8, ask)
    world.run(profile.seconds)


def _ask(world: World, profile: Profile) -> None:
    """Let a client submit through some node, and perhaps cancel a task."""
    never_not_found(world)
    draw = world.random
    node = draw.choice(world.dispatchers() or list(world.machines))
    if draw.random() < KEYED:
        # The same request again and again, through any reachable node.
        world.clients.submit(node, task_id=TaskId(f"keyed-{draw.randrange(5)}"))
    else:
        world.clients.submit(node, draw.choice(profile.batches))
    if world.notes.random() < NOTED:
        world.clients.record(node)
    if world.clients.accepted and draw.random() < 0.1:
        task = draw.choice(list(world.clients.accepted))
        world.clients.cancel(node, task, force=draw.random() < 0.5)


def settle(world: World, quiet_s: float = QUIET_S) -> None:
    """Repair everything, start all nodes, and wait until all is quiet.

    The wait is longer while attempts start: a single machine may have much to do.
    """
    world.is_calm = True
    world.network.heal_all()
    for machine in world.machines.values():
        machine.stall_s = machine.full_s = 0.0
        machine.dies_after_s = None
        world.resume(machine.id)
        world.start(machine.id)
    end_s, most_s = world.time_s + quiet_s, world.time_s + BUSY * quiet_s
    while world.time_s < end_s:
        begun = len(world.commands.started)
        world.run_until(lambda: is_quiet(world), end_s - world.time_s)
        world.run(1.0)
        if is_quiet(world):
            break  # A world that is quiet for a moment only is not at rest.
        if len(world.commands.started) > begun:
            end_s = min(world.time_s + BUSY_S, most_s)
