"""Answers 404: when a node may call a task unknown (I4).

`TakeoverChecks` checks each dispatcher that was a standby before. `never_not_found`
asks every dispatcher for the tasks of all other nodes.
"""

from __future__ import annotations

from functools import partial

from octaskly.core.effects import Effect
from octaskly.core.events import Event
from octaskly.core.model.ids import Epoch, NodeId, TaskId, task_name
from octaskly.core.node.node import Node
from tests.simulation.checks.rest import promised
from tests.simulation.machine import Machine
from tests.simulation.store.disk import Disk
from tests.simulation.world import World


class TakeoverChecks:
    """Checks that a new dispatcher never answers 404 for its predecessor's tasks."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: the disk of each dispatcher when its epoch began
        self._disks_at_start: dict[Epoch, Disk] = {}
        self._lacking: dict[NodeId, tuple[Epoch, NodeId, set[TaskId]]] = {}
        """For each dispatcher: its epoch, its predecessor, and the tasks it lacks."""
        world.watchers.append(self)

    def __call__(self, machine: Machine, _event: Event, _effects: list[Effect]) -> None:
        """Check after one step."""
        node = machine.node
        assert node is not None
        if node.is_dispatcher:
            self._new_dispatcher_knows_what_it_lacks(machine, node)
        else:
            self._lacking.pop(machine.id, None)

    def _new_dispatcher_knows_what_it_lacks(self, machine: Machine, node: Node) -> None:
        """I4: a former standby never answers 404 for its predecessor's tasks."""
        epoch, before, lacked = self._lacking.get(machine.id, (None, machine.id, set()))
        if epoch != node.epoch:
            in_sync = node.in_sync_epoch
            before = in_sync.node or machine.id
            disk = self._world.machines[before].disk
            if in_sync.node and disk is not self._disks_at_start.get(in_sync):
                # A restored backup, or another disk, counts as an empty one.
                disk = machine.disk
            self._disks_at_start[node.epoch] = machine.disk
            lacked = disk.records.keys() & self._world.promises.tasks.keys()
            lacked -= machine.disk.records.keys() | self._world.storage.forgotten.keys()
            # A name whose first task is lost for good may be on its way again.
            lacked = {task for task in lacked if task_name(task) == task}
            self._lacking[machine.id] = node.epoch, before, lacked
        if not lacked or not knows_all(self._world, node):
            return
        disks = [each.disk for each in self._world.machines.values()]
        for task in sorted(lacked - machine.disk.records.keys()):
            had = self._world.machines[before]
            holders = sum(task in disk.records for disk in disks)
            is_sole = holders == 1 and task in had.disk.records and not had.node
            is_gone = task in self._world.storage.forgotten
            assert is_gone or not is_sole, f"{machine.id}: 404 for {task}, on {before}"


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
