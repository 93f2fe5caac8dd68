"""Acknowledged copies: the disks that must hold what a node confirms (I10, G3).

The checks run after every step. A dispatcher waits for its standbys. An answer counts
only disks that exist. Rows reach other nodes in time. No node receives entries that its
program cannot read.
"""

from __future__ import annotations

from octaskly.core.effects import Append, Effect, LogWrite, MergeRows, Save
from octaskly.core.events import Event
from octaskly.core.log.facts import Finished, Submitted
from octaskly.core.model.ids import AttemptId, NodeId, StreamId, TaskId
from octaskly.core.node.gathering import ACK_WAIT_S
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import (
    RangeResults,
    RangeResultsOk,
    Results,
    ResultsOk,
)
from octaskly.core.replies import CancelResult, Reply, TasksAccepted
from tests.simulation.machine import Machine
from tests.simulation.store.disk import Disk
from tests.simulation.store.folding import Kept
from tests.simulation.world import World
from tests.support.attempts_in_messages import (
    RESULT_ACKS,
    RESULT_REPORTS,
    acknowledged_keys,
    reported_keys,
)

LOGGED = (Append, MergeRows, Save)  #: effects that write a stream or begin one
NOTICED_S = 5.0  #: time within which other nodes notice the end of a process


class Copies:
    """Checks at every step and answer that confirmed data is on enough disks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._with_standby_in_sync: dict[NodeId, Node] = {}
        self._in_sync_since_s: dict[NodeId, float] = {}
        self._reported_s: dict[tuple[Node, TaskId, AttemptId], float] = {}
        """Time since when each process has results that it has not acknowledged."""
        self._versions: dict[StreamId, int] = {}  #: the writer of each stream
        world.watchers.on_received(RESULT_REPORTS, self._note_results)
        world.watchers.on_sent(RESULT_ACKS, self._results_are_safe)
        world.watchers.on_effect(LOGGED, self._is_readable)
        world.watchers.on_step(self._note_standbys)
        world.clients.answer_watchers.append(self.on_answer)

    def _note_standbys(
        self, machine: Machine, _event: Event, _effects: list[Effect]
    ) -> None:
        """Note since when each dispatcher has had a standby in sync."""
        node = machine.node
        assert node is not None
        if not node.has_in_sync_standby:
            self._with_standby_in_sync.pop(machine.id, None)
        elif self._with_standby_in_sync.get(machine.id) is not node:
            self._with_standby_in_sync[machine.id] = node
            self._in_sync_since_s[machine.id] = self._world.time_s

    def on_answer(self, machine: Machine, reply: Reply, waited_s: float) -> None:
        """Check one answer to a client at the instant at which it leaves."""
        if isinstance(reply, CancelResult) and reply.was_done and self._world.is_strict:
            # The task may have been cancelled long ago and forgotten since.
            is_gone = self._world.storage.is_gone(reply.task)
            for fact in self._world.promises.cancelled_as(reply.task):
                holders = self._holders(fact)
                assert is_gone or len(holders) > 1, (
                    f"{reply.task} cancelled on {holders}, though strict"
                )
        if isinstance(reply, TasksAccepted):
            self._replicas_are_real(reply)
            self._standbys_are_waited_for(machine, reply, waited_s)

    def _replicas_are_real(self, reply: TasksAccepted) -> None:
        """I10: at least as many disks hold the tasks as the answer says."""
        for spec in reply.specs:
            machines = self._world.machines.values()
            # A row of an incomplete snapshot is on disk as well.
            holders = [m.id for m in machines if self._has_task(m, spec.id)]
            is_gone = spec.id in self._world.storage.forgotten
            assert is_gone or reply.replicas <= len(holders), (
                f"{spec.id}: {reply.replicas} replicas said, on {holders}"
            )

    def _has_task(self, machine: Machine, task: TaskId) -> bool:
        key = (Submitted, task, None)
        disks = self._disks(machine)
        return any(task in disk.records or key in disk.kept for disk in disks)

    def _disks(self, machine: Machine) -> list[Disk]:
        """Return a machine's disk, and its state a moment ago if the process has ended.

        Until other nodes notice the end of a process, they count on what its disk held.
        """
        is_late = self._world.time_s >= machine.restored_s + NOTICED_S
        return [machine.disk] if is_late else [machine.disk, *machine.lost]

    def _holders(self, key: Kept) -> list[NodeId]:
        machines = self._world.machines.values()
        return [machine.id for machine in machines if key in machine.disk.kept]

    def _standbys_are_waited_for(
        self, machine: Machine, reply: TasksAccepted, waited_s: float
    ) -> None:
        """I10: one copy is enough only while no standby is in sync."""
        if reply.replicas > 1:
            return
        assert not self._world.is_strict, f"{machine.id}: one copy, though strict"
        if self._world.clients.repeated:
            return  # Standbys do not yet hold facts that are known from rows alone.
        had_standby_in_sync = self._with_standby_in_sync.get(machine.id) is machine.node
        assert (
            not had_standby_in_sync
            or not _has_standby_in_sync(machine)
            or (waited_s >= self._world.timing.replication_wait_s - 0.01)
        ), f"{machine.id} waited {waited_s:.3f} s for no standby"

    def _note_results(self, machine: Machine, message: Results | RangeResults) -> None:
        node = machine.node
        assert node is not None
        for task, attempt in reported_keys(message):
            key = (node, task, attempt)
            self._reported_s.setdefault(key, self._world.time_s)

    def _results_are_safe(
        self, machine: Machine, message: ResultsOk | RangeResultsOk
    ) -> None:
        """G3: a result that a worker may delete is on two disks."""
        world, node = self._world, machine.node
        assert node is not None
        for task, attempt in acknowledged_keys(message):
            reported_s = self._reported_s.pop((node, task, attempt), None)
            holders = [
                m.id
                for m in world.machines.values()
                if any(_has_end(disk, task, attempt) for disk in self._disks(m))
            ]
            if len(holders) > 1 or world.storage.is_gone(task):
                continue
            assert not world.is_strict, f"{task} has ended on {holders}, though strict"
            # An acknowledgement may wait for a message, so it may be older.
            decided_s = world.time_s - ACK_WAIT_S
            was_in_sync = (
                self._with_standby_in_sync.get(machine.id) is node
                and self._in_sync_since_s[machine.id] <= decided_s
            )
            if was_in_sync and _has_standby_in_sync(machine):
                assert reported_s is not None
                waited_s = world.time_s - reported_s
                assert waited_s >= world.timing.replication_wait_s - 0.01, (
                    f"{machine.id} acknowledged {task} on {holders} after {waited_s} s"
                )

    def _is_readable(self, machine: Machine, effect: LogWrite | Save) -> None:
        """3.10: no node receives entries that its program cannot read."""
        streams: set[StreamId] = set()
        match effect:
            case Save(stream=(stream, _)):
                self._versions[stream] = machine.log_version
            case Append():
                streams = {entry.stream for entry in effect.entries}
            case MergeRows():
                streams = {stream for stream, _ in effect.head.vector}
            case Save():
                return
        for stream in streams:
            version = self._versions[stream]
            assert version <= machine.log_version, f"{machine.id} cannot read {stream}"


def _has_standby_in_sync(machine: Machine) -> bool:
    node = machine.node
    return node is not None and node.has_in_sync_standby


def _has_end(disk: Disk, task: TaskId, attempt: AttemptId) -> bool:
    """Return True if a disk holds the end of an attempt, even as part of a snapshot."""
    if (Finished, task, attempt) in disk.kept:
        return True
    record = disk.shown(task)
    ended = () if record is None else (a.id for a in record.attempts if a.outcome)
    return attempt in ended
