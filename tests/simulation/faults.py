"""Single faults that can happen in a world.

A fault changes a world at once, and most faults are repaired after a while. The module
`fault_injection` draws their times and rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import NO_HOLD, AvailabilityCommand
from tests.simulation.store.disk import Disk
from tests.simulation.world import World

#: virtual seconds within which all must be well after the last fault
QUIET_S = 240.0
AWAY_S = 4.0  #: seconds without a node if nothing is forgotten


@dataclass(frozen=True)
class Profile:
    """The fault rates of one seed."""

    seconds: float
    pause_s: tuple[float, float]  #: seconds between faults
    restart_s: tuple[float, float]
    heal_s: tuple[float, float]
    batches: tuple[int, ...]  #: sizes of submissions
    weights: tuple[int, ...]  #: weights, in the order of `FAULTS`


def crash_one(world: World, profile: Profile) -> None:
    """Kill a process and start it again after a while."""
    node = one_alive(world)
    if node is not None:
        world.crash(node)
        restart(world, profile, node)


def crash_dispatcher(world: World, profile: Profile) -> None:
    """Kill the dispatcher's process."""
    for node in world.dispatchers():
        world.crash(node)
        restart(world, profile, node)


def crash_all(world: World, profile: Profile) -> None:
    """Cut the power; machines return in any order."""
    for node in world.machines:
        world.crash(node)
        restart(world, profile, node)


def crash_in_write(world: World, profile: Profile) -> None:
    """Kill a process a moment after its next write to disk."""
    node = _any(world)
    world.machines[node].dies_after_s = world.random.uniform(0.0, 0.03)
    restart(world, profile, node, after_s=1.0)


def crash_stalled(world: World, profile: Profile) -> None:
    """Stall the dispatcher's disk, and kill the process before the disk recovers."""
    for node in world.dispatchers():
        machine = world.machines[node]
        machine.stall_s = world.time_s + 1.5
        later(world, world.random.uniform(0.1, 1.4), partial(world.crash, node))
        restart(world, profile, node, after_s=1.5)


def take_away(world: World, profile: Profile) -> None:
    """Keep a node away until other nodes have forgotten its tasks."""
    node = _any(world)
    world.crash(node)
    away_s = world.timing.retention_s if is_forgetful(world) else AWAY_S
    restart(world, profile, node, after_s=away_s + world.random.uniform(0.0, 3.0))


def split(world: World, profile: Profile) -> None:
    """Cut the network into two or three parts."""
    nodes = list(world.machines)
    world.random.shuffle(nodes)
    parts = min(len(nodes), world.random.choice((2, 2, 3)))
    ends = sorted(world.random.sample(range(1, len(nodes)), parts - 1))
    firsts = [0, *ends]
    groups = [nodes[a:b] for a, b in zip(firsts, [*ends, len(nodes)], strict=True)]
    world.network.split(groups)
    later(world, world.random.uniform(*profile.heal_s), world.network.heal_all)


def cut_one(world: World, profile: Profile) -> None:
    """Cut a single pair; other nodes still reach both."""
    a, b = _pair(world)
    world.network.cut(a, b)
    wait_s = world.random.uniform(*profile.heal_s)
    later(world, wait_s, lambda: world.network.heal(a, b))


def mute_one(world: World, profile: Profile) -> None:
    """Cut one direction of a single pair."""
    a, b = _pair(world)
    world.network.mute(a, b)
    wait_s = world.random.uniform(*profile.heal_s)
    later(world, wait_s, lambda: world.network.heal(a, b))


def reset_links(world: World, _profile: Profile) -> None:
    """Break some links, and lose the messages on them."""
    for _ in range(world.random.randint(1, 3)):
        world.network.reset(*_pair(world))


def slow_one(world: World, profile: Profile) -> None:
    """Delay all messages from and to one machine."""
    node = _any(world)
    most_ms = world.random.choice((100.0, 400.0, 1500.0))
    world.network.slow_ms[node] = (most_ms / 2, most_ms)
    wait_s = world.random.uniform(*profile.heal_s)
    later(world, wait_s, lambda: world.network.slow_ms.pop(node, None))


def pause_one(world: World, _profile: Profile) -> None:
    """Stop a process for a moment, or for longer than the timeouts allow."""
    node = one_alive(world)
    if node is not None:
        world.pause(node, world.random.choice((0.4, 1.0, 1.8, 3.0, 8.0)))


def sleep_one(world: World, _profile: Profile) -> None:
    """Suspend a laptop for a while."""
    node = one_alive(world)
    if node is not None:
        world.sleep(node, world.random.choice((1.5, 3.0, 8.0)))


def move_clock(world: World, _profile: Profile) -> None:
    """Move a wall clock by up to a day."""
    skew_ms = world.random.choice((-86_400_000, -5000, 5000, 86_400_000))
    world.step_clock(_any(world), skew_ms)


def stall_disk(world: World, _profile: Profile) -> None:
    """Stall a disk for a while."""
    stall_s = world.time_s + world.random.uniform(0.2, 2.0)
    world.machines[_any(world)].stall_s = stall_s


def fill_disk(world: World, _profile: Profile) -> None:
    """Fail all writes to a disk for a while."""
    full_s = world.time_s + world.random.uniform(0.5, 5.0)
    world.machines[_any(world)].full_s = full_s


def stop_one(world: World, profile: Profile) -> None:
    """Stop an agent as systemd does, and start it again."""
    reigning = world.dispatchers()
    node = reigning[0] if reigning else one_alive(world)
    if node is not None:
        world.stop(node, drain_s=3.0)
        later(world, 10.0, partial(world.crash, node))
        restart(world, profile, node, after_s=10.0)


def restore_backup(world: World, profile: Profile) -> None:
    """Restore a backup of a node."""
    reigning = world.dispatchers()
    node = reigning[0] if reigning and world.random.random() < 0.5 else _any(world)
    backup = world.machines[node].disk.copy()
    later(world, world.random.uniform(0.5, 6.0), restorer(world, node, backup))
    restart(world, profile, node, after_s=6.0)


def lose_disk(world: World, profile: Profile) -> None:
    """Lose a node's disk except its key."""
    reigning = world.dispatchers()
    node = reigning[0] if reigning else _any(world)
    restorer(world, node, Disk())()
    restart(world, profile, node)


FAULTS: tuple[Callable[[World, Profile], None], ...] = (
    crash_one,
    crash_dispatcher,
    crash_all,
    crash_in_write,
    crash_stalled,
    split,
    cut_one,
    mute_one,
    reset_links,
    slow_one,
    pause_one,
    sleep_one,
    move_clock,
    stall_disk,
    fill_disk,
    stop_one,
    restore_backup,
    lose_disk,
    take_away,
)
PAIRWISE = (split, cut_one, mute_one, reset_links)  #: faults that need two machines


def forget_soon(world: World) -> None:
    """Keep ended tasks for a few seconds only."""
    world.timing = replace(
        world.timing,
        retention_s=world.random.choice((1.0, 2.0, 4.0)),
        floor_interval_s=0.5,
    )


def is_forgetful(world: World) -> bool:
    """Return True if the world forgets tasks while it runs."""
    return world.timing.retention_s < QUIET_S


def later(world: World, delay_s: float, action: Callable[[], object]) -> None:
    """Run a later part of a fault, unless all faults are over by then."""

    def act() -> None:
        if not world.is_calm:
            action()

    world.at(delay_s, act)


def restart(
    world: World, profile: Profile, node: NodeId, *, after_s: float = 0.0
) -> None:
    """Start a process again after the time that the profile says."""
    wait_s = after_s + world.random.uniform(*profile.restart_s)
    later(world, wait_s, partial(world.start, node))


def restorer(world: World, node: NodeId, backup: Disk) -> Callable[[], None]:
    """Return a function that restores an older disk, which ends the node's process."""

    def restore() -> None:
        world.crash(node)
        world.restore(node, backup)

    return restore


def end_steering(world: World) -> None:
    """Let all nodes take tasks and run them, also those that are down."""
    for machine in world.machines.values():
        world.resume(machine.id)
        machine.disk.hold = NO_HOLD
        for steering in (AvailabilityCommand.RESUME, AvailabilityCommand.UNPAUSE):
            world.steer(machine.id, steering)


def one_alive(world: World) -> NodeId | None:
    """Draw a node whose process runs, if there is one."""
    nodes = [machine.id for machine in world.alive()]
    return world.random.choice(nodes) if nodes else None


def _any(world: World) -> NodeId:
    return world.random.choice(list(world.machines))


def _pair(world: World) -> tuple[NodeId, NodeId]:
    a, b = world.random.sample(list(world.machines), 2)
    return a, b
