"""Disk writes and reads of machines, and their durations.

A write may be late, fail for a while, or be lost in a crash. The module also records
the ended and forgotten tasks on disks, for the checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from octaskly.core.effects import (
    Append,
    LoadLive,
    LoadQueued,
    LoadTasks,
    LoadUnblocked,
    MergeRows,
    NumberedWrite,
    PlanFloor,
    Save,
    ServePull,
    StageRows,
)
from octaskly.core.events import DiskChanged, Event, Persisted
from octaskly.core.log.facts import Submitted
from octaskly.core.log.merge import TaskRow
from octaskly.core.log.range_facts import member_entries
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Entries
from tests.simulation.machine import Machine
from tests.simulation.store.disk import Disk
from tests.simulation.store.plan import plan_floor
from tests.simulation.store.queue import by_id, live, load, ripe
from tests.simulation.store.snapshot import entries_after, must_wait, next_part

if TYPE_CHECKING:
    from tests.simulation.world import World

RETRY_S = 0.25  #: between two attempts of a failing write
MERGE_S = 0.02  #: between two looks if a merge has ended
EXPIRED = 0.002  #: share of snapshots that end before a part is asked for
CHUNK = 20  #: entries in one answer to PULL, few so that several are needed


class Storage:
    """Operates the disks of all machines."""

    is_unordered = False  #: a node that serves entries mixes the streams

    def __init__(self, world: World) -> None:
        self._world = world
        self._expiry = random.Random("expiry")  # Else all seeds would draw otherwise.
        self.disk_ms = (1.0, 15.0)
        self.snapshots = 0  #: whose last part arrived
        self.written_s: dict[int, float] = {}
        """When entries were first written, by the clock of the world, by timestamp."""
        self.accepted_s: dict[TaskId, float] = {}  #: when tasks were accepted, alike
        self.ended_s: dict[TaskId, float] = {}  #: when the first end was written, alike
        self.ends: dict[TaskId, set[TaskState]] = {}  #: outcomes, also from lost disks
        self.forgotten: dict[TaskId, TaskRow] = {}  #: records as a disk held them last
        self.gone_watchers: list[Callable[[Machine, TaskRow], None]] = []

    def is_gone(self, task: TaskId) -> bool:
        """Return True if any disk forgot a task; a member goes with its array."""
        place = split_member_id(task)
        return (task if place is None else place[0]) in self.forgotten

    def write(self, machine: Machine, effect: NumberedWrite) -> None:
        """Hand an effect to a disk, which the next commit makes durable."""
        disk = machine.disk
        match effect:
            case Append():
                disk.append(effect)
                self._note_written(effect)
            case StageRows():
                disk.stage(effect)
            case MergeRows():
                disk.join(effect)
                self.snapshots += effect.is_last
            case Save():
                disk.save(effect)
        self.commit_soon(machine)

    def commit_soon(self, machine: Machine) -> None:
        """Make waiting writes durable, if the machine lives so long."""
        life = machine.life
        if machine.dies_after_s is not None:
            dies_after_s, machine.dies_after_s = machine.dies_after_s, None

            def die() -> None:
                if machine.life == life and not self._world.is_calm:
                    self._world.crash(machine.id)

            self._world.at(dies_after_s, die)
        if machine.is_committing:
            return
        machine.is_committing = True
        delay_s = self._world.random.uniform(*self.disk_ms) / 1000
        delay_s = max(delay_s, machine.stall_s - self._world.time_s)
        count = len(machine.disk.waiting)
        self._world.at(delay_s, lambda: self._commit(machine, life, count))

    def _commit(self, machine: Machine, life: int, count: int) -> None:
        """End one write; the writer is a thread, so a paused loop does not stop it."""
        if machine.life != life:
            return
        if machine.is_asleep:
            machine.frozen.append(lambda: self._commit(machine, life, count))
            return
        is_failing = self._world.time_s < machine.full_s
        if is_failing is not machine.is_failing:
            machine.is_failing = is_failing
            self._world.feed(machine, DiskChanged(is_failing))
        if is_failing:
            self._world.at(RETRY_S, lambda: self._commit(machine, life, count))
            return
        machine.is_committing = False
        number = machine.disk.commit(max(count, 1), self._world.now(machine))
        self._note_ends(machine)
        self._world.promises.on_commit(machine.disk)
        if number is not None:
            self._world.feed(machine, Persisted(number))
        if machine.life == life and machine.disk.waiting:
            self.commit_soon(machine)

    def _note_written(self, effect: Append) -> None:
        """Note the true time of entries; who only copies them comes later."""
        now_s = self._world.time_s
        for entry in member_entries(effect.entries):
            self.written_s.setdefault(entry.hlc, now_s)
            if isinstance(entry.fact, Submitted):
                self.accepted_s.setdefault(entry.fact.task, now_s)

    def _note_ends(self, machine: Machine) -> None:
        """Take out the ended and forgotten tasks of a disk."""
        disk = machine.disk
        for task, hlc, state in disk.ended:
            ended_s = self.written_s.get(hlc, self._world.time_s)
            self.ended_s[task] = min(ended_s, self.ended_s.get(task, ended_s))
            self.ends.setdefault(task, set()).add(state)
        for row in disk.gone:
            for watch in self.gone_watchers:
                watch(machine, row)
            self.forgotten[row.record.id] = row
        disk.ended, disk.gone = [], []

    def serve(
        self,
        machine: Machine,
        pull: ServePull,
    ) -> None:
        """Answer a peer's PULL."""
        disk, peer = machine.disk, pull.peer
        disk.now = self._world.now(machine)
        if pull.cursor is not None and self._expiry.random() < EXPIRED:
            disk.sent.pop(peer, None)
        if must_wait(disk, pull):
            self._world.later(machine, MERGE_S, lambda: self.serve(machine, pull))
            return
        snapshot = next_part(disk, pull)
        if snapshot is not None:
            self._world.network.send(machine.id, peer, (snapshot,))
            return
        draw = self._world.random if self.is_unordered else None
        vector = dict(pull.vector)
        entries, epochs, more = entries_after(disk, vector, CHUNK, draw)
        message = Entries(entries, epochs, more, disk.vector(), disk.retired.digest)
        self._world.network.send(machine.id, peer, (message,))


def read(
    disk: Disk,
    asked: LoadQueued | LoadLive | LoadTasks | LoadUnblocked | PlanFloor,
) -> Event:
    """Return the store's answer."""
    match asked:
        case LoadQueued():
            return load(disk, asked)
        case LoadLive():
            return live(disk, asked)
        case LoadTasks():
            return by_id(disk, asked)
        case LoadUnblocked():
            return ripe(disk, asked)
        case PlanFloor():
            return plan_floor(disk, asked)
