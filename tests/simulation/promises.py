"""Promises: facts that clients and workers were told and may rely on.

The module reads disks and changes nothing. `checks` uses it to find the facts that must
be left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from octaskly.core.log.facts import Finished, Submitted, TaskCancelled
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import AttemptId, Epoch, NodeId, TaskId
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Message
from tests.simulation.store.disk import Disk
from tests.simulation.store.folding import Kept
from tests.support.attempts_in_messages import RESULT_ACKS, acknowledged_keys

if TYPE_CHECKING:
    from tests.simulation.world import World


Outcome = tuple[TaskState, AttemptId | None, int | None]
"""The state of a task, the shown attempt and its exit code."""


class Told(NamedTuple):
    """The end of a task as a node announced it."""

    outcome: Outcome
    node: NodeId
    holders: tuple[tuple[NodeId, int], ...]
    """The nodes that ran and had this end of the task then, with their lives."""
    unread_ends: frozenset[AttemptId]
    """Attempts whose ends were only in logs that had not arrived at the node yet."""
    is_lost: bool
    """The shown attempt counted as lost, and no node with its end was there then."""
    ord: int  #: of the submission; a forgotten task may be submitted again


class Promises:
    """Facts confirmed to clients and workers, and the disks that held them then."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.holders: dict[Kept, set[NodeId]] = {}
        #: tasks that were accepted, among them
        self.tasks: dict[TaskId, set[NodeId]] = {}
        self.outcomes: dict[TaskId, Told] = {}  #: announced last
        self.epochs: dict[Epoch, set[Epoch]] = {}
        """In the order of time; with each, those of all dispatchers at its start."""
        self.lacking_logs: set[Epoch] = set()
        """Dispatchers that could not read all logs within `LOG_WAIT_S_MAX`."""
        self.repeated: set[AttemptId] = set()
        """Attempts that these assigned, as they lacked an outcome that was told."""
        self.losses_of_present: set[tuple[TaskId, AttemptId]] = set()
        """Attempts taken for lost though a node that followed had their ends."""
        self._foreign: dict[Kept, float] = {}
        """Results of tasks that no disk with the result has known, and their times."""

    def make(self, *keys: Kept) -> None:
        """Note the disks that hold a fact on which a client or worker relies."""
        for key in keys:
            self._make_one(key)

    def _make_one(self, key: Kept) -> None:
        world = self._world
        # A late result of a purged task is void as soon as it arrives.
        is_late = key[0] is Finished and world.storage.is_gone(key[1])
        if key not in self.holders and not is_late:
            holders = {m.id for m in world.machines.values() if key in m.disk.kept}
            if not holders and world.storage.is_gone(key[1]):
                return  # In these worlds' time, the task ended long before the answer.
            assert holders, f"{key} was confirmed, and is on no disk"
            self.holders[key] = holders
            if key[0] is Submitted:
                self.tasks[key[1]] = holders
            disks = [world.machines[holder].disk for holder in holders]
            if key[0] is Finished and not any(_knows(disk, key[1]) for disk in disks):
                self._foreign[key] = world.time_s

    def on_commit(self, disk: Disk) -> None:
        """Note whether a disk brings results and their tasks together."""
        for key in list(self._foreign) if self._foreign else ():
            if key in disk.kept and _knows(disk, key[1]):
                del self._foreign[key]

    def has_expired(self, key: Kept) -> bool:
        """Return True if a result was too old before its task came from another disk.

        Until then, the dispatcher carries it past floors: see docs/explanation/log.md.
        """
        world, since_s = self._world, self._foreign.get(key)
        if since_s is None:
            return False
        return world.time_s - since_s >= world.least_age_s(world.timing.retention_s)

    def lose(self, node_id: NodeId, backup: Disk) -> None:
        """Note that a node has an older disk, which may lack facts of the other one."""
        for key, holders in self.holders.items():
            if key not in backup.kept:
                holders.discard(node_id)

    def on_arrival(self, messages: tuple[Message, ...]) -> None:
        """Note the results that workers were allowed to delete."""
        for message in messages:
            if not isinstance(message, RESULT_ACKS):
                continue
            for task, attempt in acknowledged_keys(message):
                self.make((Finished, task, attempt))

    def cancelled_as(self, task: TaskId) -> tuple[Kept, ...]:
        """Return the fact by which some disk shows a task as cancelled, if any.

        An array's fact may cancel a member, and facts of all members may cancel an
        array.
        """
        place = split_member_id(task)
        disks = [machine.disk for machine in self._world.machines.values()]
        is_array = any(task in disk.members for disk in disks)
        if place is None and not is_array:
            return ((TaskCancelled, task, None),)
        for one in (task,) if place is None else (task, place[0]):
            key: Kept = (TaskCancelled, one, None)
            if any(key in disk.kept for disk in disks):
                return (key,)
        return ()


def _knows(disk: Disk, task: TaskId) -> bool:
    """Return True if a disk has the submission of a task, or of its array."""
    place = split_member_id(task)
    return (Submitted, task if place is None else place[0], None) in disk.kept
