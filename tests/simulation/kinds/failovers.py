"""Worlds that lose their dispatcher once, at a critical moment, or lose nothing.

Each function is one kind of run; the kind's name is the function's name without `run_`.
In most kinds no task may run twice.
"""

from __future__ import annotations

from itertools import combinations

from octaskly.core.model.ids import NodeId, TaskId
from tests.simulation.checks.outcomes import nothing_runs_twice
from tests.simulation.checks.rest import is_quiet
from tests.simulation.checks.rules import FINAL, watch
from tests.simulation.fault_injection import SIZES, settle
from tests.simulation.faults import QUIET_S, forget_soon
from tests.simulation.world import World


def run_quiet(seed: int) -> World:
    """Run a mesh without faults: each task runs exactly once."""
    world = World(seed, nodes=SIZES[seed % len(SIZES)])
    watch(world)
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


def run_slept(seed: int, pause_s: float = 6.0) -> World:
    """Stop a worker just before tasks are given out, and let it go on later."""
    world = World(seed, nodes=3)
    watch(world)
    world.commands.duration_s = (0.5, 1.0)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (head,) = world.dispatchers()
    world.run(world.random.uniform(2.0, 3.0))
    sleeper = world.random.choice([node for node in world.machines if node != head])
    world.pause(sleeper, pause_s)
    world.run(world.random.uniform(0.0, 0.5))
    world.clients.submit(head, 20)
    world.run(pause_s + 2.0)
    world.run_until(lambda: is_quiet(world), QUIET_S)
    for check in (*FINAL, nothing_runs_twice):
        check(world)
    return world


def run_failover(seed: int, *, is_graceful: bool, is_bare: bool = False) -> World:
    """Remove the dispatcher of a busy mesh and let the others finish the work."""
    world = World(seed, nodes=4)
    watch(world)
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
    """Stop the dispatcher of a busy mesh, which hands over its role."""
    return run_failover(seed, is_graceful=True)


def run_crash(seed: int) -> World:
    """Kill the dispatcher of a busy mesh."""
    return run_failover(seed, is_graceful=False)


def run_bare(seed: int) -> World:
    """Kill the dispatcher; the successor has no links when its epoch begins."""
    return run_failover(seed, is_graceful=False, is_bare=True)


def run_short(seed: int) -> World:
    """Kill the dispatcher before all copies have the ends of its tasks."""
    world = World(seed, nodes=5)
    watch(world)
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
    settle(world)
    for check in (*FINAL, nothing_runs_twice):
        check(world)
    return world


def run_starved(
    seed: int, tasks: int = 10, slow_ms: tuple[float, float] = (700.0, 1000.0)
) -> World:
    """Stall the dispatcher after only one standby received the last ends.

    The other standby succeeds. The first one is slow to answer, slower than the time
    for which waiting tasks are held back. Therefore few tasks start at once.
    """
    world, dispatcher, successor, keeper = _formed(seed, nodes=5)
    world.commands.duration_s = (0.1, 1.5)
    world.clients.submit(dispatcher, tasks)
    world.run(world.random.uniform(0.1, 0.5))
    world.network.mute(dispatcher, successor)
    world.network.slow_ms[keeper] = (300.0, 600.0)
    world.run(world.random.uniform(0.3, 0.8))
    world.network.slow_ms[keeper] = slow_ms
    world.pause(dispatcher, 4.0)
    world.run(6.0)
    settle(world)
    world.died |= {dispatcher, keeper}  # The task may look lost, so it may run again.
    for check in (*FINAL, nothing_runs_twice):
        check(world)
    return world


def run_backlog(seed: int) -> World:
    """The same, with waiting tasks; the slow standby knows that some have started."""
    return run_starved(seed, tasks=30, slow_ms=(300.0, 600.0))


def run_returned(seed: int) -> World:
    """Lose a dispatcher, and for a while the worker that alone has the ends of tasks.

    The next dispatcher trusts its log, as no other node is there. Then the worker comes
    back, and lists no attempts.
    """
    world, dispatcher, successor, keeper = _formed(seed, nodes=3)
    world.commands.duration_s = (0.5, 0.8)
    world.clients.submit(dispatcher, 6)
    world.run(0.2)
    world.network.mute(dispatcher, successor)
    worker = world.machines[keeper]
    assert world.run_until(lambda: not worker.running and not worker.disk.spool, 1.0)
    world.network.reset(successor, keeper)
    world.network.cut(successor, keeper)
    world.pause(keeper, 10.0)
    world.crash(dispatcher)
    assert world.run_until(lambda: world.dispatchers() == [successor], 3.0)
    world.run(1.0)
    world.network.heal_all()
    world.resume(keeper)
    world.run(8.0)
    settle(world)
    for check in (*FINAL, nothing_runs_twice):
        check(world)
    return world


def run_two_lost_logs(seed: int) -> World:
    """Lose two dispatchers with different ends of a task; their logs return in turn.

    The third dispatcher knows nothing of the task, and tells clients of the first end
    before it learns of the second.
    """
    world, first, second, third = _formed(seed, nodes=3, slots=1)
    world.commands.duration_s = (0.5, 0.5)
    world.network.slow_ms[third] = (700.0, 700.0)
    world.clients.submit(first, 3)
    assert world.run_until(lambda: len(world.commands.started) > 1, 1.0)
    task = next(each.task for each in world.commands.started if each.node == first)
    world.run(0.2)
    world.network.slow_ms[first] = (400.0, 400.0)
    assert world.run_until(lambda: _has_ended(world, first, task), 1.0)
    world.crash(first)
    world.network.slow_ms = {third: (150.0, 150.0)}
    assert world.run_until(world.is_settled, 5.0)
    assert world.dispatchers() == [second]
    world.run(0.05)
    world.crash(third)
    assert world.machines[third].disk.shown(task) is None
    assert world.run_until(lambda: _has_ended(world, second, task), 15.0)
    world.crash(second)
    world.network.slow_ms.clear()
    for node_id in (third, first, second):
        world.start(node_id)
        world.run_until(lambda: world.dispatchers() == [third], 5.0)
        world.run(2.0)
    settle(world)
    for check in FINAL:
        check(world)
    return world


def _formed(
    seed: int, *, nodes: int, slots: int = 2
) -> tuple[World, NodeId, NodeId, NodeId]:
    """Return an idle mesh, its dispatcher, and its standbys in their order."""
    world = World(seed, nodes=nodes, slots=slots)
    watch(world)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (dispatcher,) = world.dispatchers()
    node = world.machines[dispatcher].node
    assert node is not None
    assert world.run_until(lambda: len(node.standbys) == 2, 5.0)
    world.run(2.0)
    first, second = (view.node for view in node.standbys)
    return world, dispatcher, first, second


def _has_ended(world: World, node: NodeId, task: TaskId) -> bool:
    """Return True if the disk of a node has the end of a task."""
    record = world.machines[node].disk.shown(task)
    return record is not None and record.state.is_final


def run_belated(seed: int) -> World:
    """Stall a worker until its tasks are forgotten, and then let it report them.

    By then another node is dispatcher, which never had these tasks.
    """
    world = World(seed, nodes=3)
    watch(world)
    forget_soon(world)
    world.commands.duration_s = (0.3, 1.0)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (dispatcher,) = world.dispatchers()
    world.run(1.0)
    world.clients.submit(dispatcher, 6)
    world.run(0.2)
    late = next(m.id for m in world.alive() if m.running and m.id != dispatcher)
    world.pause(late, 12.0)
    assert world.run_until(lambda: len(world.storage.forgotten) == 6, 12.0)
    world.crash(dispatcher)
    world.run(12.0)
    settle(world)
    for check in FINAL:
        check(world)
    return world


def run_given_up(seed: int) -> World:
    """Lose a dispatcher that dropped its standby, which has not yet learned of it.

    Messages between them take longer and longer, so there is no silence. An answer that
    counted one copy is on the dead dispatcher's disk alone.
    """
    world = World(seed, nodes=2)
    watch(world)
    world.start_all()
    world.run_until(world.is_settled, 5.0)
    (first,) = world.dispatchers()
    (second,) = world.machines.keys() - {first}
    dispatcher = world.machines[first].node
    assert dispatcher is not None
    assert world.run_until(lambda: dispatcher.has_in_sync_standby, 10.0)
    for way_ms in (300.0, 600.0, 900.0, 1200.0):
        world.run(1.0)
        world.network.slow_ms[second] = (way_ms, way_ms + 50.0)
    world.run(world.random.uniform(0.0, 0.5))
    asked = len(world.clients.accepted) + 2
    world.clients.submit(first, 1)  # The standby's acknowledgement of this one is late,
    world.run(world.random.uniform(1.2, 1.8))
    world.clients.submit(first, 1)  # so this one is answered before it can arrive.
    world.run_until(lambda: len(world.clients.accepted) == asked, 5.0)
    world.run(world.random.uniform(0.0, 0.2))
    world.crash(first)
    world.run_until(lambda: world.dispatchers() == [second], 10.0)
    world.run(world.random.uniform(1.0, 10.0))
    settle(world)
    for check in FINAL:
        check(world)
    return world
