"""Answers 404: when a node may call a task unknown (I4).

`TakeoverChecks` checks each dispatcher that followed another one before.
`never_not_found` asks every dispatcher for the tasks of all other nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from octaskly.core.effects import Effect
from octaskly.core.events import Event
from octaskly.core.model.ids import Epoch, NodeId, TaskId, task_name
from octaskly.core.node.node import Node
from octaskly.core.replication.not_found_rule import REMEMBERED_PEER_S
from tests.simulation.checks.rest import promised
from tests.simulation.machine import Machine
from tests.simulation.world import World


class TakeoverChecks:
    """Checks that a new dispatcher awaits its predecessor for a while."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._followed: dict[Node, NodeId] = {}
        """The last dispatcher of each process, which forgets it in a crash."""
        self._takeovers: dict[NodeId, _Takeover] = {}  #: of each dispatcher
        world.watchers.on_step(self)

    def __call__(self, machine: Machine, _event: Event, _effects: list[Effect]) -> None:
        """Check after one step."""
        node = machine.node
        assert node is not None
        if node.is_dispatcher:
            self._awaits_its_predecessor(machine, node)
            return
        self._takeovers.pop(machine.id, None)
        if (dispatcher := node.dispatcher) is not None:
            self._followed[node] = dispatcher

    def _awaits_its_predecessor(self, machine: Machine, node: Node) -> None:
        """I4: it does not answer 404 for what only its dead predecessor has."""
        world = self._world
        takeover = self._takeovers.get(machine.id)
        if takeover is None or takeover.epoch != node.epoch:
            before = self._followed.get(node, machine.id)
            lacked = set(world.machines[before].disk.records) & set(
                world.promises.tasks
            )
            takeover = _Takeover(node.epoch, before, world.time_s, lacked)
            self._takeovers[machine.id] = takeover
        if not takeover.tasks:
            return
        lacked = takeover.tasks.difference(machine.disk.records)
        is_over = world.time_s >= takeover.began_s + REMEMBERED_PEER_S
        if not lacked or is_over or not knows_all(world, node):
            return
        had = world.machines[takeover.before]
        if had.restored_s > takeover.began_s:
            return  # It may have followed without them, before a backup brought them.
        for task in sorted(lacked):
            # A name whose first task is lost for good may be on its way again.
            is_named = task_name(task) == task
            is_sole = task in had.disk.records and not had.node
            others = (m for m in world.machines.values() if m is not had)
            is_sole = is_sole and not any(task in m.disk.records for m in others)
            is_gone = task in world.storage.forgotten
            assert is_gone or not (is_named and is_sole), (
                f"{machine.id}: 404 for {task}, on {had.id}"
            )


@dataclass(frozen=True)
class _Takeover:
    """The start of an epoch, and what the dispatcher before it had accepted."""

    epoch: Epoch
    before: NodeId
    began_s: float
    tasks: set[TaskId]


def knows_all(world: World, node: Node) -> bool:
    """Return True if every node that may know more has answered or is given up."""
    return node._not_found_rule.is_complete(world.time_s)


def never_not_found(world: World) -> None:
    """I4: in a split and during a merge, no promised task is called unknown.

    A dispatcher may call a task unknown if only nodes hold it that have been given up.
    """
    for machine in world.alive():
        node = machine.node
        if machine.is_paused or not (node and node.is_dispatcher):
            continue
        views = node.peers
        knowing = [
            m
            for m in world.alive()
            if world.network.is_up(machine.id, m.id)
            # A node that restarted behind a cut claims before others notice its
            # silence.
            or (m.id in views and views[m.id].info.boot == m.boot)
        ]
        records = machine.disk.records
        lacked = [task for task in promised(world) if task not in records]
        lacked = [t for t in lacked if any(t in m.disk.records for m in knowing)]
        if lacked:
            world.clients.on_unknown(machine, partial(_are_known_by_now, world, lacked))


def _are_known_by_now(world: World, tasks: list[TaskId], machine: Machine) -> None:
    """A node answers 404 if it lacks a task that other nodes held when it was asked."""
    for task in set(tasks) & set(promised(world)) - machine.disk.records.keys():
        holders = [m.id for m in world.alive() if task in m.disk.records]
        assert not holders, f"{machine.id} calls {task} unknown, not {holders}"
