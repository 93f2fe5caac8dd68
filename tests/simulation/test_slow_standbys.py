"""Standbys that are slow, stand still or are full: replaced, and not waited for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from octaskly.core.model.ids import NodeId
from octaskly.core.replies import Reply, TasksAccepted
from tests.simulation.machine import Machine
from tests.simulation.world import World

STEP_S = 0.05
TROUBLED_S = 5.0
ACCEPT_S_MAX = 0.05  #: two disks of 15 ms side by side, and a way of 4 ms each way
REPLACED_S = 1.5  #: a second without an acknowledgement, or the next heartbeat

Trouble = Callable[[World, NodeId], None]


def slow_link(world: World, node: NodeId) -> None:
    """Let each way from and to it take so long that no word of it comes in time.

    Much more would be silence, and its dispatcher dead for it.
    """
    world.network.slow_ms[node] = (600.0, 700.0)


def still_disk(world: World, node: NodeId) -> None:
    """Let its disk answer nothing."""
    world.machines[node].stall_s = world.time_s + TROUBLED_S


def full_disk(world: World, node: NodeId) -> None:
    """Let all writes of it fail."""
    world.machines[node].full_s = world.time_s + TROUBLED_S


def still_process(world: World, node: NodeId) -> None:
    """Let it do nothing, with its links open."""
    world.pause(node, TROUBLED_S)


TROUBLES = (slow_link, still_disk, full_disk, still_process)


class Accepts:
    """How long clients waited for each task, and how many copies they were told of."""

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
def test_a_standby_in_trouble_is_replaced_and_no_client_waits_for_it(
    seed: int, trouble: Trouble
) -> None:
    """Of two one is enough, and a third takes the place of the other."""
    world = World(seed, nodes=4)
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    world.run(3.0)
    (head,) = world.dispatchers()
    first, _ = standbys(world)
    accepts = Accepts(world)

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
def test_the_only_standby_in_trouble_holds_clients_for_two_seconds_at_most(
    seed: int, trouble: Trouble
) -> None:
    """Then one copy has to do, and they are told so."""
    world = World(seed, nodes=2)
    world.start_all()
    assert world.run_until(world.is_settled, 5.0)
    world.run(3.0)
    (head,) = world.dispatchers()
    (only,) = standbys(world)
    accepts = Accepts(world)

    trouble(world, only)
    until_s = world.time_s + TROUBLED_S
    while world.time_s < until_s:
        world.clients.submit(head)
        world.run(STEP_S)
    world.run(3.0)

    assert max(accepts.waited_s) <= world.timing.replication_wait_s + ACCEPT_S_MAX
    assert 1 in accepts.replicas
