"""What goes wrong in a world: each seed draws its own kinds and rates of faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octaskly.core.model import NodeId, Timing
from tests.simulation.checkers import FINAL, Watch, is_quiet
from tests.simulation.world import World

QUIET_S = 240.0  #: virtual time within which all must be well after the last fault


@dataclass(frozen=True)
class Profile:
    """How one seed torments its world."""

    nodes: int
    seconds: float
    pause_s: tuple[float, float]  #: between faults
    restart_s: tuple[float, float]
    heal_s: tuple[float, float]
    batches: tuple[int, ...]  #: sizes of submissions
    weights: tuple[int, ...]  #: in the order of `KINDS`


def crash_one(world: World, profile: Profile) -> None:
    """Kill a process; start it again after a while."""
    node = _alive(world)
    if node is not None:
        world.crash(node)
        world.at(world.random.uniform(*profile.restart_s), lambda: world.start(node))


def crash_dispatcher(world: World, profile: Profile) -> None:
    """Kill the process that matters most."""
    for node in world.dispatchers():
        world.crash(node)
        wait_s = world.random.uniform(*profile.restart_s)
        world.at(wait_s, lambda n=node: world.start(n))  # type: ignore[misc]


def crash_all(world: World, profile: Profile) -> None:
    """A power cut; machines come back in any order."""
    for node in world.machines:
        world.crash(node)
        wait_s = world.random.uniform(*profile.restart_s)
        world.at(wait_s, lambda n=node: world.start(n))  # type: ignore[misc]


def split(world: World, profile: Profile) -> None:
    """Cut the network in two."""
    nodes = list(world.machines)
    world.random.shuffle(nodes)
    size = world.random.randint(1, len(nodes) - 1) if len(nodes) > 1 else 1
    world.network.split([nodes[:size], nodes[size:]])
    world.at(world.random.uniform(*profile.heal_s), world.network.heal_all)


def cut_one(world: World, profile: Profile) -> None:
    """Cut a single pair: both sides are still seen by others."""
    if len(world.machines) < 2:
        return
    a, b = world.random.sample(list(world.machines), 2)
    world.network.cut(a, b)
    wait_s = world.random.uniform(*profile.heal_s)
    world.at(wait_s, lambda: world.network.heal(a, b))


def pause_one(world: World, _profile: Profile) -> None:
    """Stop a process for a moment, or for longer than the rules bear."""
    node = _alive(world)
    if node is not None:
        world.pause(node, world.random.choice((0.4, 1.0, 1.8, 3.0, 8.0)))


def stall_disk(world: World, _profile: Profile) -> None:
    """Let a disk answer nothing for a while."""
    node = world.random.choice(list(world.machines))
    world.machines[node].stall_s = world.time_s + world.random.uniform(0.2, 2.0)


def stop_one(world: World, profile: Profile) -> None:
    """Stop an agent as systemd does, and start it again."""
    reigning = world.dispatchers()
    node = reigning[0] if reigning else _alive(world)
    if node is not None:
        world.stop(node, drain_s=3.0)
        world.at(10.0, lambda: world.crash(node))
        wait_s = 10.0 + world.random.uniform(*profile.restart_s)
        world.at(wait_s, lambda: world.start(node))


def move_clock(world: World, _profile: Profile) -> None:
    """Let a wall clock jump by up to a day."""
    node = world.random.choice(list(world.machines))
    skew_ms = world.random.choice((-86_400_000, -5000, 5000, 86_400_000))
    world.machines[node].wall_skew_ms = skew_ms


def crash_in_write(world: World, profile: Profile) -> None:
    """Kill a process a moment after it next hands something to its disk."""
    node = world.random.choice(list(world.machines))
    world.machines[node].dies_after_s = world.random.uniform(0.0, 0.03)
    wait_s = 1.0 + world.random.uniform(*profile.restart_s)
    world.at(wait_s, lambda: world.start(node))


def crash_stalled(world: World, profile: Profile) -> None:
    """Let the dispatcher's disk hang, and kill the process before it moves on."""
    for node in world.dispatchers():
        machine = world.machines[node]
        machine.stall_s = world.time_s + 1.5
        world.at(world.random.uniform(0.1, 1.4), lambda n=node: world.crash(n))  # type: ignore[misc]
        wait_s = 1.5 + world.random.uniform(*profile.restart_s)
        world.at(wait_s, lambda n=node: world.start(n))  # type: ignore[misc]


KINDS: tuple[Callable[[World, Profile], None], ...] = (
    crash_one,
    crash_dispatcher,
    crash_all,
    crash_in_write,
    crash_stalled,
    split,
    cut_one,
    pause_one,
    stall_disk,
    stop_one,
    move_clock,
)


def draw_profile(world: World) -> Profile:
    """Return the profile of a seed; some kinds do not happen at all in it."""
    draw = world.random
    weights = tuple(draw.choice((0, 0, 1, 3)) for _ in KINDS)
    if not any(weights):
        weights = (1,) * len(KINDS)
    world.network.delay_ms = draw.choice(((0.2, 4.0), (2.0, 50.0), (20.0, 200.0)))
    world.duration_s = draw.choice(((0.01, 0.1), (0.05, 1.0), (0.5, 2.0)))
    is_brief = world.duration_s[1] < 1.0
    gap_s = draw.choice((0.5, 1.5, 4.0))
    return Profile(
        nodes=len(world.machines),
        seconds=draw.choice((8.0, 15.0, 25.0)),
        pause_s=(gap_s / 2, gap_s * 2),
        restart_s=draw.choice(((0.0, 0.3), (0.1, 2.0), (1.0, 8.0))),
        heal_s=draw.choice(((0.5, 2.0), (2.0, 6.0), (5.0, 12.0))),
        batches=draw.choice(((1, 1, 2), (1, 8), (20,) if is_brief else (4,))),
        weights=weights,
    )


def torment(world: World, profile: Profile) -> None:
    """Run the world with faults and clients, then without, to the end."""
    draw = world.random
    end_s = world.time_s + profile.seconds

    def strike() -> None:
        if world.time_s < end_s:
            (kind,) = draw.choices(KINDS, profile.weights)
            kind(world, profile)
            world.at(draw.uniform(*profile.pause_s), strike)

    def ask() -> None:
        if world.time_s < end_s:
            node = draw.choice(world.dispatchers() or list(world.machines))
            world.submit(node, draw.choice(profile.batches))
            if world.accepted and draw.random() < 0.1:
                task = draw.choice(list(world.accepted))
                world.cancel(node, task, force=draw.random() < 0.5)
            world.at(draw.uniform(0.05, 0.6), ask)

    for node in world.machines:
        world.at(draw.choice((0.0, draw.uniform(0.0, 2.0))), _starter(world, node))
    world.at(draw.uniform(*profile.pause_s), strike)
    world.at(0.8, ask)
    world.run(profile.seconds + 25.0)


def calm(world: World) -> None:
    """Mend everything, start everybody, and wait until all is quiet."""
    world.network.heal_all()
    for machine in world.machines.values():
        machine.stall_s = 0.0
        machine.dies_after_s = None
        world.start(machine.id)
    world.run(5.0)
    for node in world.machines:
        world.start(node)
    world.run_until(lambda: is_quiet(world), QUIET_S)
    world.run(2.0)


def run_seed(seed: int) -> World:
    """Torment one world, check everything, and return it.

    Raises:
        AssertionError: a rule is broken; `seed` repeats it.
    """
    sizes = (1, 2, 3, 3, 4, 5, 5, 7)
    world = World(seed, nodes=sizes[seed % len(sizes)])
    Watch(world)
    torment(world, draw_profile(world))
    calm(world)
    for check in FINAL:
        check(world)
    return world


def run_failover(
    seed: int, *, is_graceful: bool, timing: Timing | None = None
) -> World:
    """Take the dispatcher from a busy mesh and let the others finish the work."""
    world = World(seed, nodes=4, timing=timing)
    world.duration_s = (1.0, 3.0)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (dispatcher,) = world.dispatchers()
    world.submit(dispatcher, 20)
    world.run(world.random.uniform(1.0, 3.0))
    if is_graceful:
        world.stop(dispatcher, drain_s=10.0)
        world.run_until(lambda: world.machines[dispatcher].node is None, 12.0)
    else:
        world.crash(dispatcher)
    world.run_until(world.is_settled, 5.0)
    world.run(2.0)
    world.start(dispatcher)
    world.run_until(lambda: is_quiet(world), QUIET_S)
    for check in FINAL:
        check(world)
    return world


def run_flapping(seed: int) -> World:
    """Split a busy mesh of five again and again, over slow links (F9)."""
    world = World(seed, nodes=5)
    Watch(world)
    world.network.delay_ms = (10.0, 150.0)
    world.duration_s = (0.01, 0.2)
    world.start_all()
    for _ in range(5):
        world.run_until(lambda: bool(world.dispatchers()), 10.0)
        nodes = list(world.machines)
        world.random.shuffle(nodes)
        world.network.split([nodes[:2], nodes[2:]])
        for _ in range(12):
            for node in world.dispatchers():
                world.submit(node, 10)
            world.run(world.random.uniform(0.2, 0.6))
        world.network.heal_all()
        for _ in range(12):
            for node in world.dispatchers():
                world.submit(node, 10)
            world.run(world.random.uniform(0.2, 0.6))
    calm(world)
    for check in FINAL:
        check(world)
    return world


def _alive(world: World) -> NodeId | None:
    nodes = [machine.id for machine in world.alive()]
    return world.random.choice(nodes) if nodes else None


def _starter(world: World, node: NodeId) -> Callable[[], None]:
    return lambda: world.start(node)
