"""What a node may call unknown: I4.

`Heirs` looks at each dispatcher that was a standby before; `never_not_found` asks all
that reign for what others hold, whenever it is called.
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


class Heirs:
    """Checks that a standby that reigns says 404 of nothing that its dispatcher had."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reigned: dict[Epoch, Disk] = {}  #: the disk of each reign, at its begin
        self._heirs: dict[NodeId, tuple[Epoch, NodeId, set[TaskId]]] = {}
        """Of whom each dispatcher was standby, and which of its tasks it lacks."""
        world.watchers.append(self)

    def __call__(self, machine: Machine, _event: Event, _effects: list[Effect]) -> None:
        """Check after one step."""
        node = machine.node
        assert node is not None
        if node.is_dispatcher:
            self._heirs_know_what_they_lack(machine, node)
        else:
            self._heirs.pop(machine.id, None)

    def _heirs_know_what_they_lack(self, machine: Machine, node: Node) -> None:
        """I4: a standby that reigns says 404 of nothing that its dispatcher had."""
        epoch, before, lacked = self._heirs.get(machine.id, (None, machine.id, set()))
        if epoch != node.epoch:
            level = node.in_sync_epoch
            before = level.node or machine.id
            disk = self._world.machines[before].disk
            if level.node and disk is not self._reigned.get(level):
                disk = machine.disk  # A backup, or another one: as if it had nothing.
            self._reigned[node.epoch] = machine.disk
            lacked = disk.records.keys() & self._world.promises.tasks.keys()
            lacked -= machine.disk.records.keys() | self._world.storage.forgotten.keys()
            # A chosen name may be on its way anew, whose first task is lost for good.
            lacked = {task for task in lacked if task_name(task) == task}
            self._heirs[machine.id] = node.epoch, before, lacked
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
    """Whether a node counts on nobody who may hold what it does not know."""
    return node._not_found_rule.is_complete(world.time_s)


def never_not_found(world: World) -> None:
    """I4: in a split, and while a merge runs, no promised task is called unknown.

    A dispatcher may say so of what only nodes hold that it counts on no more.
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
            # One that started anew behind a cut claims before its silence is noticed.
            or (m.id in views and views[m.id].info.boot == m.boot)
        ]
        records = machine.disk.records
        lacked = [task for task in promised(world) if task not in records]
        lacked = [t for t in lacked if any(t in m.disk.records for m in knowing)]
        if lacked:
            world.clients.on_unknown(machine, partial(_are_known_by_now, world, lacked))


def _are_known_by_now(world: World, tasks: list[TaskId], machine: Machine) -> None:
    """A node says 404 where it does not find what others held when it was asked."""
    for task in set(tasks) & set(promised(world)) - machine.disk.records.keys():
        holders = [m.id for m in world.alive() if task in m.disk.records]
        assert not holders, f"{machine.id} calls {task} unknown, not {holders}"
