"""Worlds whose commands fail, and whose tasks are cancelled or change their priority.

Each function is one kind of run, by its name without `run_`.
"""

from __future__ import annotations

from octaskly.core.model.arrays import member_id, split_member_id
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import TaskState
from octaskly.core.replies import CancelResult, Reply
from tests.simulation.checks.rules import FINAL, watch
from tests.simulation.checks.tries import TRIED, TryWatch
from tests.simulation.checks.turns import TurnWatch, latest_priorities_count
from tests.simulation.fault_injection import (
    CHILD_SHARE,
    SIZES,
    draw_profile,
    inject_faults,
    settle,
)
from tests.simulation.machine import Machine
from tests.simulation.world import World

#: seconds after which no task runs that was cancelled before a failover
ENDED_S = 20.0


def run_failing(seed: int, *, has_stdin: bool = False) -> World:
    """Inject faults into a world whose commands and array members fail."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    world.clients.has_stdin = has_stdin
    watch(world)
    TryWatch(world)
    world.clients.child_share = CHILD_SHARE
    world.commands.failing_share = world.tries.choice((0.1, 0.3, 0.6))
    world.clients.array_share = world.tries.choice((0.0, 0.05, 0.15))
    profile = draw_profile(world)
    end_s = world.time_s + profile.seconds

    def cancel() -> None:
        if world.time_s < end_s:
            cancel_some(world)
            world.at(world.tries.uniform(0.2, 2.0), cancel)

    world.at(1.0, cancel)
    inject_faults(world, profile)
    settle(world)
    for check in (*FINAL, *TRIED):
        check(world)
    return world


def run_freed(seed: int) -> World:
    """The same, and tasks have stdin, which each disk frees after the end."""
    return run_failing(seed, has_stdin=True)


def run_reprioritized(seed: int) -> World:
    """Change priorities all the time, of the tasks of several submitters."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    watch(world)
    TryWatch(world)
    TurnWatch(world)
    world.clients.submitters = ("ann", "bo", "cy")
    world.clients.child_share = CHILD_SHARE
    world.commands.failing_share = world.tries.choice((0.0, 0.3))
    world.clients.array_share = world.tries.choice((0.05, 0.15, 0.3))
    profile = draw_profile(world)
    end_s = world.time_s + profile.seconds

    def change() -> None:
        if world.time_s < end_s:
            reprioritize_some(world)
            world.at(world.tries.uniform(0.1, 1.0), change)

    world.at(0.5, change)
    inject_faults(world, profile)
    settle(world)
    for check in (*FINAL, *TRIED, latest_priorities_count):
        check(world)
    return world


def reprioritize_some(world: World) -> None:
    """Change the priority of some of the latest tasks and arrays."""
    draw = world.tries
    specs = list(world.clients.accepted.values())[-40:]
    for spec in draw.sample(specs, min(len(specs), 3)):
        node = draw.choice(world.dispatchers() or list(world.machines))
        world.clients.reprioritize(node, spec.id, draw.randint(-2, 2))


def cancel_some(world: World) -> None:
    """Cancel an array or one of its members, with or without running attempts."""
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
    """Kill the dispatcher right after it cancelled arrays and their running members.

    Raises:
        AssertionError: a member runs though a client was told that all have ended.
    """
    world = World(seed, nodes=4)
    watch(world)
    TryWatch(world)
    cancelled = _cancelled_in_answers(world)
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
    world.run_until(lambda: bool(cancelled), draw.uniform(0.0, 1.0))
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
        # A node that was cut off may be dispatcher before it learns of the cancel.
        if attempt.term == term and (split_member_id(task) or (task,))[0] in cancelled
    ]
    assert not left, f"cancelled by force, but still running: {left}"
    for task in tuple(world.clients.accepted):
        for dispatcher in world.dispatchers():
            world.clients.cancel(dispatcher, task, force=True)
    settle(world)
    for check in (*FINAL, *TRIED):
        check(world)
    return world


def run_cancelled(seed: int) -> World:
    """Kill the dispatcher while the tasks that it cancelled are about to end."""
    world = World(seed, nodes=4)
    watch(world)
    cancelled = _cancelled_in_answers(world)
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
    world.run_until(lambda: bool(cancelled), 1.0)
    world.run(world.random.uniform(0.0, 0.03))
    world.crash(dispatcher)
    world.run(1.0)
    settle(world)
    for check in FINAL:
        check(world)
    (dispatcher,) = world.dispatchers()
    records = world.machines[dispatcher].disk.records
    ends = {task: records[task].state for task in sorted(cancelled)}
    assert set(ends.values()) <= {TaskState.CANCELLED}, (
        f"not cancelled as confirmed: {ends}"
    )
    return world


def _cancelled_in_answers(world: World) -> set[TaskId]:
    """Return a set that grows with each task reported to a client as cancelled."""
    cancelled = set()

    def on_answer(_machine: Machine, reply: Reply, _waited_s: float) -> None:
        if isinstance(reply, CancelResult) and reply.was_done:
            cancelled.add(reply.task)

    world.clients.answer_watchers.append(on_answer)
    return cancelled
