"""Forgetting: only old ended tasks are forgotten, and they stay forgotten (F19, I2).

No node that knows of the purge writes the task again.
"""

from __future__ import annotations

from octaskly.core.effects import Append
from octaskly.core.log.facts import Entry, Submitted
from octaskly.core.log.merge import TaskRow
from octaskly.core.model.ids import StreamId, TaskId
from octaskly.core.node.gathering import GATHER_S
from tests.simulation.machine import Machine
from tests.simulation.store.disk import Disk
from tests.simulation.store.purge import is_void
from tests.simulation.world import World


class Forgetting:
    """Checks each task that a disk forgets, and each task that is written again."""

    def __init__(self, world: World) -> None:
        self._world = world
        world.watchers.on_effect((Append,), self.on_append)
        world.storage.gone_watchers.append(self.on_gone)

    def on_append(self, machine: Machine, append: Append) -> None:
        """Check one write."""
        for entry in append.entries:
            if isinstance(entry.fact, Submitted):
                self._is_not_brought_back(machine, entry, entry.fact)

    def on_gone(self, machine: Machine, row: TaskRow) -> None:
        """F19: only tasks that ended long ago are forgotten."""
        world, task = self._world, row.record.id
        assert task in world.storage.ended_s, (
            f"{machine.id} forgot {row}, which has not ended"
        )
        # An end counts from when it was recorded; it may be written a moment later.
        age_s = world.time_s - world.storage.ended_s[task] + GATHER_S
        assert age_s >= world.least_age_s(world.timing.retention_s), (
            f"{machine.id} forgot {row} too early, after {age_s:.3f} s"
        )

    def _is_not_brought_back(
        self, machine: Machine, entry: Entry, fact: Submitted
    ) -> None:
        """I2: a node that knows of the purge does not write the task again."""
        row = self._world.storage.forgotten.get(fact.task)
        if row is None:
            return
        spec, disk = row.record.spec, machine.disk
        if spec is None or spec.ord != fact.spec.ord or entry.stream != _own(machine):
            return
        # The task may still be shown because of facts that nodes wrote before they
        # learned of the purge.
        is_shown = fact.task in disk.records or any(
            not _is_below_floor(disk, _row(other.disk, fact.task))
            for other in self._world.machines.values()
            if fact.task in other.disk.records
        )
        assert (
            is_shown or not _is_below_floor(disk, row) or self._is_news(machine, row)
        ), f"{machine.id} wrote {fact.task} again, which is gone: {row}"

    def _is_news(self, machine: Machine, row: TaskRow) -> bool:
        """Return True if a worker reports a task that an unknown epoch placed.

        This node cannot know what else that dispatcher wrote, so it keeps the task.
        """
        return any(
            task == row.record.id and not machine.disk.have(attempt.stream)
            for worker in self._world.machines.values()
            for task, attempt in (*worker.running, *worker.disk.spool)
        )


def forgotten_tasks_stay_away(world: World) -> None:
    """I2: a purged task never shows again; F19, also after long absences."""
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    for task in world.storage.forgotten.keys() & disk.records.keys():
        row = _row(disk, task)
        assert not _is_below_floor(disk, row), f"{row} is back"


def _own(machine: Machine) -> StreamId | None:
    node = machine.node
    epoch = node.epoch if node else None
    for stream, writer in machine.disk.writers.items():
        if writer == epoch and writer.node == machine.id:
            return stream
    return None


def _row(disk: Disk, task: TaskId) -> TaskRow:
    return TaskRow(disk.records[task], disk.births[task], disk.changed[task])


def _is_below_floor(disk: Disk, row: TaskRow) -> bool:
    return is_void(disk, row.submission_times, row.last_change_hlc)
