"""What goes wrong in a world: each seed draws its own kinds and rates of faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

from octaskly.core.arrays import member_id, member_of
from octaskly.core.model import NO_HOLD, Limits, NodeId, Steering, TaskId, TaskState
from octaskly.core.node import Node
from octaskly.core.replies import CancelDone, Reply
from octaskly.core.retention import STEP_S
from tests.simulation.checkers import (
    FINAL,
    Watch,
    is_quiet,
    knows_all,
    never_not_found,
    nothing_runs_twice,
    unfinished,
)
from tests.simulation.disk import STEP_TASKS, Disk
from tests.simulation.machine import Machine
from tests.simulation.tries import TRIED, TryWatch
from tests.simulation.world import World

LATE = 0.15  #: share of tasks that come after another one
NEEDY = 0.2  #: of the tasks ask for much of a machine,
NEEDY_EVERY = 4  #: in one world of so many
QUIET_S = 240.0  #: virtual time within which all must be well after the last fault
SIZES = (3, 4, 5, 3, 6, 5, 7, 3, 4, 5, 1, 2)  #: of worlds, by seed
ENCODED = 0.15  #: share of worlds in which the codec carries each message
STRICT = 0.1  #: share of worlds that rather refuse than keep one copy
NARROW = Limits(
    window_tasks=20, load_tasks=10, entries_bytes=2000, tail_entries=30, prefetch=4
)
"""So that what bounds memory is reached by the few tasks of a world."""
FORGETFUL = 0.3  #: share of worlds that forget tasks after a few seconds
AWAY_S = 4.0  #: without a node, where nothing is forgotten
TOLD_S = 2.0  #: after which rows of a dispatcher are on its standbys, if it has few
ENDED_S = 20.0  #: after which nothing runs of what was cancelled before a failover
MET_S = 5.0  #: after a heal, within which there is one dispatcher again
KEYED = 0.05  #: share of requests that repeat an earlier one
NOTED = 0.2  #: beside so many requests something is recorded


@dataclass(frozen=True)
class Profile:
    """How one seed torments its world."""

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
        _restart(world, profile, node)


def crash_dispatcher(world: World, profile: Profile) -> None:
    """Kill the process that matters most."""
    for node in world.dispatchers():
        world.crash(node)
        _restart(world, profile, node)


def crash_all(world: World, profile: Profile) -> None:
    """A power cut; machines come back in any order."""
    for node in world.machines:
        world.crash(node)
        _restart(world, profile, node)


def crash_in_write(world: World, profile: Profile) -> None:
    """Kill a process a moment after it next hands something to its disk."""
    node = _any(world)
    world.machines[node].dies_after_s = world.random.uniform(0.0, 0.03)
    _restart(world, profile, node, after_s=1.0)


def crash_stalled(world: World, profile: Profile) -> None:
    """Let the dispatcher's disk hang, and kill the process before it moves on."""
    for node in world.dispatchers():
        machine = world.machines[node]
        machine.stall_s = world.time_s + 1.5
        _later(world, world.random.uniform(0.1, 1.4), partial(world.crash, node))
        _restart(world, profile, node, after_s=1.5)


def take_away(world: World, profile: Profile) -> None:
    """Keep a node away until its tasks are forgotten elsewhere."""
    node = _any(world)
    world.crash(node)
    away_s = world.timing.retention_s if is_forgetful(world) else AWAY_S
    _restart(world, profile, node, after_s=away_s + world.random.uniform(0.0, 3.0))


def split(world: World, profile: Profile) -> None:
    """Cut the network in two or three."""
    nodes = list(world.machines)
    world.random.shuffle(nodes)
    parts = min(len(nodes), world.random.choice((2, 2, 3)))
    ends = sorted(world.random.sample(range(1, len(nodes)), parts - 1))
    firsts = [0, *ends]
    groups = [nodes[a:b] for a, b in zip(firsts, [*ends, len(nodes)], strict=True)]
    world.network.split(groups)
    _later(world, world.random.uniform(*profile.heal_s), world.network.heal_all)


def cut_one(world: World, profile: Profile) -> None:
    """Cut a single pair: both sides are still seen by others."""
    a, b = _pair(world)
    world.network.cut(a, b)
    wait_s = world.random.uniform(*profile.heal_s)
    _later(world, wait_s, lambda: world.network.heal(a, b))


def mute_one(world: World, profile: Profile) -> None:
    """Cut one direction of a single pair."""
    a, b = _pair(world)
    world.network.mute(a, b)
    wait_s = world.random.uniform(*profile.heal_s)
    _later(world, wait_s, lambda: world.network.heal(a, b))


def reset_links(world: World, _profile: Profile) -> None:
    """Break some links, with all that is under way on them."""
    for _ in range(world.random.randint(1, 3)):
        world.network.reset(*_pair(world))


def slow_one(world: World, profile: Profile) -> None:
    """Let all that a machine says and hears take its time."""
    node = _any(world)
    most_ms = world.random.choice((100.0, 400.0, 1500.0))
    world.network.slow_ms[node] = (most_ms / 2, most_ms)
    wait_s = world.random.uniform(*profile.heal_s)
    _later(world, wait_s, lambda: world.network.slow_ms.pop(node, None))


def pause_one(world: World, _profile: Profile) -> None:
    """Stop a process for a moment, or for longer than the rules bear."""
    node = _alive(world)
    if node is not None:
        world.pause(node, world.random.choice((0.4, 1.0, 1.8, 3.0, 8.0)))


def sleep_one(world: World, _profile: Profile) -> None:
    """Close the lid of a laptop for a while."""
    node = _alive(world)
    if node is not None:
        world.sleep(node, world.random.choice((1.5, 3.0, 8.0)))


def move_clock(world: World, _profile: Profile) -> None:
    """Let a wall clock jump by up to a day."""
    skew_ms = world.random.choice((-86_400_000, -5000, 5000, 86_400_000))
    world.machines[_any(world)].wall_skew_ms = skew_ms
    world.is_skewed = True


def stall_disk(world: World, _profile: Profile) -> None:
    """Let a disk answer nothing for a while."""
    stall_s = world.time_s + world.random.uniform(0.2, 2.0)
    world.machines[_any(world)].stall_s = stall_s


def fill_disk(world: World, _profile: Profile) -> None:
    """Let all writes to a disk fail for a while."""
    full_s = world.time_s + world.random.uniform(0.5, 5.0)
    world.machines[_any(world)].full_s = full_s


def stop_one(world: World, profile: Profile) -> None:
    """Stop an agent as systemd does, and start it again."""
    reigning = world.dispatchers()
    node = reigning[0] if reigning else _alive(world)
    if node is not None:
        world.stop(node, drain_s=3.0)
        _later(world, 10.0, partial(world.crash, node))
        _restart(world, profile, node, after_s=10.0)


def restore_backup(world: World, profile: Profile) -> None:
    """Put the state of an earlier moment under a node."""
    reigning = world.dispatchers()
    node = reigning[0] if reigning and world.random.random() < 0.5 else _any(world)
    backup = world.machines[node].disk.copy()
    _later(world, world.random.uniform(0.5, 6.0), _restorer(world, node, backup))
    _restart(world, profile, node, after_s=6.0)


def lose_disk(world: World, profile: Profile) -> None:
    """Lose all that a node had on its disk, but not its key."""
    reigning = world.dispatchers()
    node = reigning[0] if reigning else _any(world)
    _restorer(world, node, Disk())()
    _restart(world, profile, node)


KINDS: tuple[Callable[[World, Profile], None], ...] = (
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
PAIRWISE = (split, cut_one, mute_one, reset_links)  #: these need two machines


def forget_soon(world: World) -> None:
    """Let tasks that ended be kept for some seconds only."""
    world.timing = replace(
        world.timing, retention_s=world.random.choice((1.0, 2.0, 4.0)), floor_s=0.5
    )


def is_forgetful(world: World) -> bool:
    """Whether tasks are forgotten while the world runs."""
    return world.timing.retention_s < QUIET_S


def draw_profile(world: World, *, is_forgetting: bool = False) -> Profile:
    """Return the profile of a seed; some kinds do not happen at all in it."""
    draw = world.random
    weights = tuple(
        0 if kind in PAIRWISE and len(world.machines) < 2 else rate
        for kind in KINDS
        for rate in [draw.choice((0, 0, 1, 3))]
    )
    if not any(weights):
        weights = tuple(int(kind not in PAIRWISE) for kind in KINDS)
    world.network.delay_ms = draw.choice(((0.2, 4.0), (2.0, 50.0), (20.0, 200.0)))
    world.network.is_encoding = draw.random() < ENCODED
    world.limits = draw.choice((Limits(), NARROW))
    world.is_strict = draw.random() < STRICT
    world.network.repeats = draw.choice((0.0, 0.0, 0.3))
    world.commands.duration_s = draw.choice(((0.01, 0.1), (0.05, 1.0), (0.5, 2.0)))
    if is_forgetting or draw.random() < FORGETFUL:
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


def torment(world: World, profile: Profile) -> None:
    """Run the world with faults and clients."""
    draw = world.random
    end_s = world.time_s + profile.seconds

    def strike() -> None:
        if world.time_s < end_s:
            (kind,) = draw.choices(KINDS, profile.weights)
            kind(world, profile)
            world.at(draw.uniform(*profile.pause_s), strike)

    def ask() -> None:
        if world.time_s < end_s:
            _ask(world, profile)
            world.at(draw.uniform(0.05, 0.6), ask)

    for node in world.machines:
        world.at(draw.choice((0.0, draw.uniform(0.0, 2.0))), _starter(world, node))
    world.at(draw.uniform(*profile.pause_s), strike)
    world.at(0.8, ask)
    world.run(profile.seconds)


def _ask(world: World, profile: Profile) -> None:
    """Let a client submit through some node, and perhaps cancel something."""
    never_not_found(world)
    draw = world.random
    node = draw.choice(world.dispatchers() or list(world.machines))
    if draw.random() < KEYED:
        # The same request again and again, wherever a client gets through.
        world.clients.submit(node, task_id=TaskId(f"keyed-{draw.randrange(5)}"))
    else:
        world.clients.submit(node, draw.choice(profile.batches))
    if world.notes.random() < NOTED:
        world.clients.record(node)
    if world.clients.accepted and draw.random() < 0.1:
        task = draw.choice(list(world.clients.accepted))
        world.clients.cancel(node, task, force=draw.random() < 0.5)


def calm(world: World, quiet_s: float = QUIET_S) -> None:
    """Mend everything, start everybody, and wait until all is quiet."""
    world.is_calm = True
    world.network.heal_all()
    for machine in world.machines.values():
        machine.stall_s = machine.full_s = 0.0
        machine.dies_after_s = None
        world.resume(machine.id)
        world.start(machine.id)
    end_s = world.time_s + quiet_s
    while world.time_s < end_s:
        world.run_until(lambda: is_quiet(world), end_s - world.time_s)
        world.run(1.0)
        if is_quiet(world):
            break  # What is quiet for a moment only is not at rest.


def run_seed(
    seed: int, *, is_forgetting: bool = False, is_unordered: bool = False
) -> World:
    """Torment one world, check everything, and return it.

    Raises:
        AssertionError: a rule is broken; `seed` repeats it.
    """
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    Watch(world)
    world.storage.is_unordered = is_unordered
    world.clients.late_share = LATE
    world.clients.needy_share = NEEDY if seed % NEEDY_EVERY == 0 else 0.0
    torment(world, draw_profile(world, is_forgetting=is_forgetting))
    calm(world)
    for check in FINAL:
        check(world)
    return world


def run_of(kind: str) -> Callable[[int], World]:
    """Return what runs a world of that kind, which is the end of its name here."""
    run: Callable[[int], World] = globals()[f"run_{kind}"]
    return run


def run_forgetful(seed: int) -> World:
    """Torment a world that forgets what ended some seconds ago."""
    return run_seed(seed, is_forgetting=True)


def run_unordered(seed: int) -> World:
    """The same, and who is asked for entries gives the streams in any order."""
    return run_seed(seed, is_forgetting=True, is_unordered=True)


def run_updated(seed: int) -> World:
    """Torment a world whose programs are updated meanwhile, one after another."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    Watch(world)
    world.updated_share = world.random.choice((0.1, 0.3, 0.5))
    torment(world, draw_profile(world))
    world.updated_share = 0.0  # Some are left behind for good.
    calm(world)
    for check in FINAL:
        check(world)
    return world


def run_failing(seed: int) -> World:
    """Torment a world whose commands fail, alone and as members of arrays."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    Watch(world)
    TryWatch(world)
    world.clients.late_share = LATE
    world.commands.failing_share = world.tries.choice((0.1, 0.3, 0.6))
    world.clients.array_share = world.tries.choice((0.0, 0.05, 0.15))
    profile = draw_profile(world)
    end_s = world.time_s + profile.seconds

    def cancel() -> None:
        if world.time_s < end_s:
            cancel_some(world)
            world.at(world.tries.uniform(0.2, 2.0), cancel)

    world.at(1.0, cancel)
    torment(world, profile)
    calm(world)
    for check in (*FINAL, *TRIED):
        check(world)
    return world


def cancel_some(world: World) -> None:
    """Cancel an array or a member of it, with what runs or not."""
    draw = world.tries
    arrays = [
        spec for spec in world.clients.accepted.values() if spec.array is not None
    ]
    if not arrays:
        return
    node = draw.choice(world.dispatchers() or list(world.machines))
    array = draw.choice(arrays[-3:])
    assert array.array is not None
    position = draw.randrange(2 * array.array.count)
    task = array.id
    if position < array.array.count:
        task = member_id(task, array.array.number(position))
    world.clients.cancel(node, task, force=draw.random() < 0.5)


def run_cut_off(seed: int) -> World:
    """Kill the dispatcher that has just cancelled arrays with what runs of them.

    Raises:
        AssertionError: a member runs on though somebody was told that all have ended.
    """
    world = World(seed, nodes=4)
    Watch(world)
    TryWatch(world)
    told = _told_of_cancels(world)
    draw = world.random
    world.network.delay_ms = draw.choice(((1.0, 40.0), (0.2, 4.0)))
    world.commands.duration_s = (200.0, 400.0)
    world.commands.failing_share, world.clients.array_share = 0.3, 1.0
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (dispatcher,) = world.dispatchers()
    world.run(2.0)
    term = world.machines[dispatcher].disk.term
    world.clients.submit(dispatcher, 3)
    world.run(draw.uniform(0.05, 0.5))
    away = draw.choice([node for node in world.machines if node != dispatcher])
    if draw.random() < 0.5:
        draw.choice((world.pause, world.sleep))(away, draw.uniform(0.5, 8.0))
        world.run(draw.uniform(0.0, 4.0))
    for task in tuple(world.clients.accepted):
        world.clients.cancel(dispatcher, task, force=True)
    world.run_until(lambda: bool(told), draw.uniform(0.0, 1.0))
    world.run(draw.uniform(0.0, 0.1))
    world.crash(dispatcher)
    world.run(draw.uniform(1.0, 12.0))
    world.is_calm = True
    world.start(dispatcher)
    world.run(ENDED_S)
    left = [
        (machine.id, task)
        for machine in world.alive()
        for task, attempt in machine.running
        # A node that was cut off may reign before it hears that it was cancelled.
        if attempt.term == term and (member_of(task) or (task,))[0] in told
    ]
    assert not left, f"cancelled with what runs, and it runs on: {left}"
    for task in tuple(world.clients.accepted):
        for reigning in world.dispatchers():
            world.clients.cancel(reigning, task, force=True)
    calm(world)
    for check in (*FINAL, *TRIED):
        check(world)
    return world


def run_newcomers(seed: int) -> World:
    """Torment a world in which new nodes often lose who gives them a snapshot."""
    world = World(seed, nodes=3 + seed % 3)
    Watch(world)
    profile = draw_profile(world)
    world.limits = NARROW  # Else the tail in memory serves a newcomer.
    # TLS lets no frame of a giver that has lost its disk come again.
    world.network.repeats = 0.0
    draw = random.Random(f"newcomers {seed}")
    end_s = world.time_s + profile.seconds

    def strike() -> None:
        if world.time_s < end_s:
            break_snapshot(world, profile, draw)
            world.at(draw.uniform(0.5, 4.0), strike)

    world.at(draw.uniform(1.0, 3.0), strike)
    torment(world, profile)
    calm(world)
    for check in FINAL:
        check(world)
    return world


def break_snapshot(world: World, profile: Profile, draw: random.Random) -> None:
    """Let a node begin without a log; take from it who gives it rows, in mid-part."""
    reigning = world.dispatchers()
    others = [node for node in world.machines if node not in reigning]
    if not reigning or not others:
        return
    newcomer, giver = draw.choice(others), reigning[0]
    disk = Disk()
    _restorer(world, newcomer, disk)()
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
            _restorer(world, giver, Disk())()
        _restart(world, profile, giver)
        if draw.random() < 0.5:  # Nobody else shall have it.
            for other in world.machines:
                if other not in (newcomer, giver):
                    _restorer(world, other, Disk())()
                    _restart(world, profile, other)
        # Who has the part reigns for a while, or has time to tell it to others.
        wait_s = draw.choice((0.1, 0.5, 2.0, 8.0)) * draw.uniform(0.5, 2.0)
        _later(world, wait_s, partial(world.crash, newcomer))
        _restart(world, profile, newcomer, after_s=wait_s)

    world.at(0.02, lambda: look(100))


def run_quiet(seed: int) -> World:
    """Let a mesh work without any fault: each task runs exactly once."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    Watch(world)
    world.network.delay_ms = world.random.choice(((0.2, 4.0), (2.0, 50.0)))
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    for _ in range(10):
        world.clients.submit(world.random.choice(world.dispatchers()), 8)
        world.run(world.random.uniform(0.1, 0.6))
    world.run_until(lambda: is_quiet(world), QUIET_S)
    for check in (*FINAL, nothing_runs_twice):
        check(world)
    return world


def run_failover(seed: int, *, is_graceful: bool, is_bare: bool = False) -> World:
    """Take the dispatcher from a busy mesh and let the others finish the work."""
    world = World(seed, nodes=4)
    Watch(world)
    world.commands.duration_s = (1.0, 3.0)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (dispatcher,) = world.dispatchers()
    world.clients.submit(dispatcher, 20)
    world.run(world.random.uniform(1.0, 3.0))
    if is_graceful:
        world.stop(dispatcher, drain_s=10.0)
        world.run_until(lambda: world.machines[dispatcher].node is None, 12.0)
    else:
        world.crash(dispatcher)
    if is_bare:
        for a, b in combinations(world.machines, 2):
            world.network.reset(a, b)
    world.run_until(world.is_settled, 5.0)
    world.run(2.0)
    world.start(dispatcher)
    world.run_until(lambda: is_quiet(world), QUIET_S)
    for check in (*FINAL, nothing_runs_twice):
        check(world)
    return world


def run_hand_over(seed: int) -> World:
    """Stop the dispatcher of a busy mesh, which hands over."""
    return run_failover(seed, is_graceful=True)


def run_crash(seed: int) -> World:
    """Kill the dispatcher of a busy mesh."""
    return run_failover(seed, is_graceful=False)


def run_bare(seed: int) -> World:
    """The same, and who succeeds has no link to the others when it begins."""
    return run_failover(seed, is_graceful=False, is_bare=True)


def run_short(seed: int) -> World:
    """Kill the dispatcher of a mesh whose tasks end before all copies know of it."""
    world = World(seed, nodes=5)
    Watch(world)
    world.network.delay_ms = (1.0, 40.0)
    world.commands.duration_s = (0.001, 0.02)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (dispatcher,) = world.dispatchers()
    world.run(2.0)
    end_s = world.time_s + world.random.uniform(0.5, 1.0)

    def load() -> None:
        for node in world.dispatchers():
            world.clients.submit(node, 4)
        if world.time_s < end_s + 0.2:
            world.at(0.02, load)

    load()
    world.run(end_s - world.time_s)
    world.crash(dispatcher)
    world.run(1.0)
    calm(world)
    for check in (*FINAL, nothing_runs_twice):
        check(world)
    return world


def run_starved(
    seed: int, tasks: int = 10, slow_ms: tuple[float, float] = (700.0, 1000.0)
) -> World:
    """Let the dispatcher stand still, who alone has given the last ends to a standby.

    The one who succeeds has not got them, and the standby that has is slow to tell: it
    takes longer than what waits is held back. So few tasks begin at once, though.
    """
    world = World(seed, nodes=5)
    Watch(world)
    world.commands.duration_s = (0.1, 1.5)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (head,) = world.dispatchers()
    node = world.machines[head].node
    assert node is not None
    assert world.run_until(lambda: len(node.standbys) == 2, 5.0)
    world.run(2.0)
    heir, keeper = (view.node for view in node.standbys)
    world.clients.submit(head, tasks)
    world.run(world.random.uniform(0.1, 0.5))
    world.network.mute(head, heir)
    world.network.slow_ms[keeper] = (300.0, 600.0)
    world.run(world.random.uniform(0.3, 0.8))
    world.network.slow_ms[keeper] = slow_ms
    world.pause(head, 4.0)
    world.run(6.0)
    calm(world)
    world.died |= {head, keeper}  # It may seem so: what ran there may run again.
    for check in (*FINAL, nothing_runs_twice):
        check(world)
    return world


def run_backlog(seed: int) -> World:
    """The same, and others wait, of which that standby knows that some have begun."""
    return run_starved(seed, tasks=30, slow_ms=(300.0, 600.0))


def run_cancelled(seed: int) -> World:
    """Kill the dispatcher of a mesh while what it has cancelled is about to end."""
    world = World(seed, nodes=4)
    Watch(world)
    told = _told_of_cancels(world)
    world.network.delay_ms = (1.0, 40.0)
    world.commands.duration_s = (0.01, 0.3)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (dispatcher,) = world.dispatchers()
    world.run(2.0)
    world.clients.submit(dispatcher, 16)
    world.run(world.random.uniform(0.05, 0.2))
    for task in tuple(world.clients.accepted):
        world.clients.cancel(dispatcher, task, force=True)
    world.run_until(lambda: bool(told), 1.0)
    world.run(world.random.uniform(0.0, 0.03))
    world.crash(dispatcher)
    world.run(1.0)
    calm(world)
    for check in FINAL:
        check(world)
    (dispatcher,) = world.dispatchers()
    records = world.machines[dispatcher].disk.records
    ends = {task: records[task].state for task in sorted(told)}
    assert set(ends.values()) <= {TaskState.CANCELLED}, f"told of a cancel: {ends}"
    return world


def _told_of_cancels(world: World) -> set[TaskId]:
    """Return the tasks of which clients are told, as that happens, that they are."""
    told = set()

    def on_answer(_machine: Machine, reply: Reply, _waited_s: float) -> None:
        if isinstance(reply, CancelDone) and reply.was_done:
            told.add(reply.task)

    world.clients.answer_watchers.append(on_answer)
    return told


def run_belated(seed: int) -> World:
    """Let a worker stand still until all is forgotten, and then tell of its tasks.

    By then another node reigns, which has never had them in hand.
    """
    world = World(seed, nodes=3)
    Watch(world)
    forget_soon(world)
    world.commands.duration_s = (0.3, 1.0)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (head,) = world.dispatchers()
    world.run(1.0)
    world.clients.submit(head, 6)
    world.run(0.2)
    late = next(m.id for m in world.alive() if m.running and m.id != head)
    world.pause(late, 12.0)
    assert world.run_until(lambda: len(world.storage.forgotten) == 6, 12.0)
    world.crash(head)
    world.run(12.0)
    calm(world)
    for check in FINAL:
        check(world)
    return world


def run_unseen(seed: int) -> World:
    """Heal a split where no multicast gets through any more: who was lost is dialled.

    Raises:
        AssertionError: the halves do not meet within the time for peers of old.
    """
    world = World(seed, nodes=3 + seed % 3)
    Watch(world)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    world.run(3.0)
    world.network.has_multicast = False
    (head,) = world.dispatchers()
    world.network.split([[head], [node for node in world.machines if node != head]])
    world.run(8.0)
    world.network.heal_all()
    assert world.run_until(world.is_settled, MET_S), "nobody dials who was lost"
    calm(world)
    for check in FINAL:
        check(world)
    return world


def run_flapping(seed: int) -> World:
    """Split a busy mesh of five again and again, over slow links (F9)."""
    world = World(seed, nodes=5)
    Watch(world)
    world.network.delay_ms = (10.0, 150.0)
    world.network.is_encoding = False  # Others show that the codec loses nothing.
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
    calm(world, 4 * QUIET_S)  # So many tasks go in parts of three rows each.
    for check in FINAL:
        check(world)
    return world


def run_steered(seed: int) -> World:
    """Drain, pause and take back the nodes of a world that is tormented, too."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    Watch(world)
    world.clients.late_share = LATE
    world.clients.needy_share = NEEDY if seed % NEEDY_EVERY == 0 else 0.0
    profile = draw_profile(world)
    end_s = world.time_s + profile.seconds

    def steer() -> None:
        if world.time_s < end_s:
            if (node := _alive(world)) is not None:
                world.steer(node, world.random.choice(tuple(Steering)))
            world.at(world.random.uniform(0.1, 2.0), steer)

    world.at(1.0, steer)
    torment(world, profile)
    for machine in world.machines.values():
        world.resume(machine.id)
        machine.disk.hold = NO_HOLD  # Of those that are down.
        for steering in (Steering.RESUME, Steering.UNPAUSE):
            world.steer(machine.id, steering)
    calm(world)
    for check in FINAL:
        check(world)
    return world


def _half_joined(
    seed: int, tasks: int = 60, least: int = 1
) -> tuple[World, set[TaskId]]:
    """Return a world whose only whole log was lost, and the rows of the second node."""
    world = World(seed, nodes=3)
    Watch(world)
    world.limits = NARROW  # Else the tail in memory serves a newcomer.
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
    _restorer(world, first, Disk())()
    rows = set(disk.records)
    assert least <= len(rows) < tasks, "it is not half-way"
    return world, rows


def run_half_joined(seed: int) -> World:
    """Lose the only whole log while another node has part of its snapshot."""
    world, rows = _half_joined(seed)
    _, second, third = world.machines
    world.run_until(lambda: world.dispatchers() == [second], 10.0)
    world.start(third)
    calm(world)
    for check in FINAL:
        check(world)
    assert all(rows <= set(m.disk.records) for m in world.machines.values())
    return world


def run_half_followed(seed: int) -> World:
    """The same, but the node with the part follows one that holds nothing."""
    world, rows = _half_joined(seed)
    _, second, third = world.machines
    world.crash(second)
    world.start(third)
    world.run_until(lambda: world.dispatchers() == [third], 10.0)
    world.start(second)
    follower, reigning = world.machines[second], world.machines[third]

    def knows() -> bool:
        node, other = reigning.node, follower.node
        assert node is not None
        assert other is not None
        is_met = world.network.is_up(second, third)  # Each end hears by itself.
        return is_met and other.dispatcher == third and knows_all(world, node)

    assert world.run_until(knows, 60.0)
    assert rows <= set(reigning.disk.records), "404 for what was accepted"
    calm(world)
    for check in FINAL:
        check(world)
    return world


def run_half_left(seed: int) -> World:
    """The same, but the node with the part reigns and is lost, too, after a while.

    It has much to tell, so that some of it is untold when a standby relies on it.
    """
    world, rows = _half_joined(seed, tasks=200, least=100)
    first, second, third = world.machines
    draw = world.random
    world.run_until(lambda: world.dispatchers() == [second], 10.0)
    reigning = world.machines[second].node
    assert reigning is not None
    for node in (first, third):
        world.at(draw.uniform(0.0, 2.0), _starter(world, node))
    is_level = partial(_has_level, reigning)
    assert world.run_until(is_level, 10.0)
    if draw.random() < 0.5:
        world.run(draw.uniform(0.0, 1.5))
    else:
        world.run_until(lambda: len(reigning.standbys) == 2, 10.0)
        world.run(TOLD_S + len(rows) / STEP_TASKS * STEP_S)
        held = [m.id for m in world.machines.values() if rows <= m.disk.records.keys()]
        assert len(held) == 3, f"rows of half a snapshot are only on {held}"
    world.crash(second)
    end_s = world.time_s + draw.uniform(2.0, 20.0)
    while world.time_s < end_s:
        world.run(0.1)
        for heir in world.alive():
            if heir.node and heir.node.is_dispatcher and knows_all(world, heir.node):
                assert rows <= heir.disk.records.keys(), f"{heir.id}: 404 for a row"
    calm(world)
    for check in FINAL:
        check(world)
    assert all(rows <= set(m.disk.records) for m in world.machines.values())
    return world


def _has_level(node: Node) -> bool:
    return any(view.is_level for view in node.standbys)


def run_same_names(seed: int) -> World:
    """Let halves of a split give the same names, some of them to different tasks."""
    world = World(seed, nodes=4)
    Watch(world)
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
    calm(world)
    for check in FINAL:
        check(world)
    return world


def _alive(world: World) -> NodeId | None:
    nodes = [machine.id for machine in world.alive()]
    return world.random.choice(nodes) if nodes else None


def _any(world: World) -> NodeId:
    return world.random.choice(list(world.machines))


def _pair(world: World) -> tuple[NodeId, NodeId]:
    a, b = world.random.sample(list(world.machines), 2)
    return a, b


def _later(world: World, delay_s: float, action: Callable[[], object]) -> None:
    """Do a later part of a fault, unless all faults are over by then."""

    def act() -> None:
        if not world.is_calm:
            action()

    world.at(delay_s, act)


def _restart(
    world: World, profile: Profile, node: NodeId, *, after_s: float = 0.0
) -> None:
    wait_s = after_s + world.random.uniform(*profile.restart_s)
    _later(world, wait_s, partial(world.start, node))


def _restorer(world: World, node: NodeId, backup: Disk) -> Callable[[], None]:
    def restore() -> None:
        world.crash(node)
        world.restore(node, backup)

    return restore


def _starter(world: World, node: NodeId) -> Callable[[], None]:
    return lambda: world.start(node)
