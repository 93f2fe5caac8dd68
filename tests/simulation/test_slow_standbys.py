"""Standbys that are slow, stalled or full: the dispatcher replaces them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from octaskly.core.model.ids import NodeId
from octaskly.core.replies import Reply, TasksAccepted
from tests.simulation.machine import Machine
from tests.simulation.world import World

STEP_S = 0.05
TROUBLED_S = 5.0
ACCEPT_S_MAX = 0.05  #: two disks of 15 ms in parallel, and 4 ms each way
REPLACED_S = 1.5  #: a second without an acknowledgement, or the next heartbeat

Trouble = Callable[[World, NodeId], None]


def slow_link(world: World, node: NodeId) -> None:
    """Delay each direction so much that no acknowledgement arrives in time.

    A longer delay would be silence, and the node would take its dispatcher for dead.
    """
    world.network.slow_ms[node] = (600.0, 700.0)


def still_disk(world: World, node: NodeId) -> None:
    """Stall its disk."""
    world.machines[node].stall_s = world.time_s + TROUBLED_S


def full_disk(world: World, node: NodeId) -> None:
    """Fail all its writes."""
    world.machines[node].full_s = world.time_s + TROUBLED_S


def still_process(world: World, node: NodeId) -> None:
    """Stall its process with its links open."""
    world.pause(node, TROUBLED_S)


TROUBLES = (slow_link, still_disk, full_disk, still_process)


class AcceptTimes:
    """The wait of clients for each task, and the confirmed number of copies."""

    def __init__(self, world: World) -> None:
        self.waited_s: list[float] = []
        self.replicas: set[int] = set()
        world.clients.answer_watchers.append(self._note)

    def _note(self, _machine: Machine, reply: Reply, waited_s: float) -> None:
        assert isinstance(reply, TasksAccepted)
        self.waited_s.append(waited_s)
        self.replicas.add(reply.replicas)


def standbys(world: World) -> tuple[NodeId, ...]:
    """Return the standbys that the dispatcher names."""
    (head,) = world.dispatchers()
    node = world.machines[head].node
    assert node is not None
    return tuple(view.node for view in node.standbys)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("seed", range(2))
def test_slow_standby_is_replaced_and_delays_no_client(
    seed: int, trouble: Trouble
) -> None:
    """One of two is enough, and a third replaces the other."""
    world = World(seed, nodes=4)
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    world.run(3.0)
    (head,) = world.dispatchers()
    first, _ = standbys(world)
    accepts = AcceptTimes(world)

    trouble(world, first)
    until_s = world.time_s + TROUBLED_S
    while world.time_s < until_s:
        world.clients.submit(head)
        world.run(STEP_S)
        if world.time_s > until_s - TROUBLED_S + REPLACED_S:
            assert first not in standbys(world)
            assert len(standbys(world)) == 2

    assert world.dispatchers() == [head]
    assert max(accepts.waited_s) <= ACCEPT_S_MAX
    assert min(accepts.replicas) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("seed", range(2))
def test_slow_only_standby_delays_clients_for_two_seconds_at_most(
    seed: int, trouble: Trouble
) -> None:
    """Then one copy is enough, and the answer says so."""
    world = World(seed, nodes=2)
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    world.run(3.0)
    (head,) = world.dispatchers()
    (only,) = standbys(world)
    accepts = AcceptTimes(world)

    trouble(world, only)
    until_s = world.time_s + TROUBLED_S
    while world.time_s < until_s:
        world.clients.submit(head)
        world.run(STEP_S)
    world.run(3.0)

    assert max(accepts.waited_s) <= world.timing.replication_wait_s + ACCEPT_S_MAX
    assert 1 in accepts.replicas
