"""Dispatcher epochs and terms: I6, I7, I8, and a log line for each change.

`EpochWatch` checks the messages and writes of each step. The functions check a world at
its end.
"""

from __future__ import annotations

from itertools import pairwise

from octaskly.core.effects import Effect, LogLine, Send
from octaskly.core.election.phases import (
    Campaigning,
    Claiming,
    Discovering,
    Dispatching,
    Following,
    Phase,
    SteppingDown,
)
from octaskly.core.events import Event, Received
from octaskly.core.model.ids import NO_EPOCH, Epoch, NodeId, StreamId
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import Claim, ClaimOk, Replicate, ReplicateOk
from tests.simulation.machine import Machine
from tests.simulation.store.disk import Disk
from tests.simulation.store.freeing import freed_entry
from tests.simulation.world import World

#: messages that name the dispatcher that a node is or follows
CLAIMS = (Claim, ClaimOk)
LOGGED: dict[type[Phase], set[str]] = {
    Discovering: {"discovering", "stopped"},
    Following: {"dispatcher followed", "stepped down"},
    Campaigning: {"dispatcher lost"},
    Claiming: {"claiming"},
    Dispatching: {"dispatcher elected"},
    SteppingDown: {"stepping down", "dispatcher followed"},
}
"""The log events of each phase."""
LINES = set().union(*LOGGED.values())


class EpochWatch:
    """Checks terms, epochs and phases after every step of a node."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._terms: dict[NodeId, tuple[Disk, int]] = {}
        self._epochs: dict[NodeId, tuple[Node, Epoch]] = {}
        self._is_stale: dict[tuple[NodeId, int, Epoch, int], bool] = {}
        self._phases: dict[NodeId, tuple[Node, type[Phase]]] = {}
        self._checked = 0
        world.watchers.append(self)

    def __call__(self, machine: Machine, event: Event, effects: list[Effect]) -> None:
        """Check one step and its effects."""
        node = machine.node
        assert node is not None
        if isinstance(event, Received):
            self._note_stale(machine, event)
        for effect in effects:
            if isinstance(effect, Send):
                self._on_sent(machine, effect)
        self._transitions_are_logged(machine, effects)
        self._terms_never_decrease(machine)
        self._epochs_never_decrease(machine, node)
        self._no_stale_start()

    def _on_sent(self, machine: Machine, sent: Send) -> None:
        for message in sent.messages:
            if isinstance(message, CLAIMS):
                self._is_on_disk(machine, message)
            elif isinstance(message, ReplicateOk):
                self._is_not_stale(machine, message)

    def _transitions_are_logged(self, machine: Machine, effects: list[Effect]) -> None:
        """Each transition writes one log line, with its reason."""
        assert machine.node is not None
        phase = type(machine.node.phase)
        node, before = self._phases.get(machine.id, (None, Discovering))
        lines = [e for e in effects if isinstance(e, LogLine) and e.event in LINES]
        if not lines and node is machine.node and phase is before:
            return
        self._phases[machine.id] = machine.node, phase
        assert all(dict(note.fields).get("reason") for note in lines), lines
        events = [note.event for note in lines]
        assert all(a != b for a, b in pairwise(events)), f"{machine.id}: {events}"
        if node is machine.node and phase is before:
            return
        assert events, f"{machine.id}: {phase} after {before} without a line"
        assert events[-1] in LOGGED[phase], f"{machine.id}: {events} tells of {phase}"

    def _terms_never_decrease(self, machine: Machine) -> None:
        """§ 3.4: a term on a disk only grows."""
        disk, last = self._terms.get(machine.id, (None, 0))
        term = machine.disk.term
        if disk is machine.disk and term == last:
            return
        assert disk is not machine.disk or term >= last, (
            f"{machine.id}: term {term} after {last}"
        )
        self._terms[machine.id] = machine.disk, term

    def _is_on_disk(self, machine: Machine, message: Claim | ClaimOk) -> None:
        """§ 3.4: a claim or followed dispatcher is on disk before others hear of it."""
        saved = machine.disk.epoch
        assert saved >= message.epoch, f"{machine.id}: {saved}, {message}"

    def _note_stale(self, machine: Machine, event: Received) -> None:
        node, epoch = self._epochs.get(machine.id, (None, NO_EPOCH))
        for message in event.messages:
            if isinstance(message, Replicate) and node is machine.node:
                key = (machine.id, machine.life, message.epoch, message.number)
                # A batch that came in time may come again, and is acknowledged once.
                self._is_stale.setdefault(key, message.epoch < epoch)

    def _is_not_stale(self, machine: Machine, message: ReplicateOk) -> None:
        """I7: a standby does not serve a dispatcher that it knows to be deposed."""
        key = (machine.id, machine.life, message.epoch, message.number)
        assert not self._is_stale.get(key), f"{machine.id} served {message.epoch}"

    def _epochs_never_decrease(self, machine: Machine, node: Node) -> None:
        """I6: the epochs that one process follows only grow."""
        known, last = self._epochs.get(machine.id, (None, NO_EPOCH))
        epoch = node.epoch
        if known is node and epoch is last:
            return
        assert known is not node or epoch >= last, f"{machine.id}: {epoch} after {last}"
        self._epochs[machine.id] = node, epoch

    def _no_stale_start(self) -> None:
        """I7: no task starts for an epoch lower than one already seen."""
        if self._checked == len(self._world.commands.started):
            return
        for started in self._world.commands.started[self._checked :]:
            assert started.attempt.term >= started.seen_term, f"stale: {started}"
        self._checked = len(self._world.commands.started)


def one_dispatcher(world: World) -> None:
    """I8: after settling, all nodes name the same dispatcher."""
    views = {m.id: m.node.dispatcher for m in world.alive() if m.node}
    assert world.is_settled(), f"dispatchers {world.dispatchers()}, views {views}"


def one_writer_per_stream(world: World) -> None:
    """I6: all disks agree on each stream's writer and on the entry at each position."""
    writers: dict[StreamId, Epoch] = {}
    entries: dict[tuple[StreamId, int], object] = {}
    epochs: dict[Epoch, StreamId] = {}
    for machine in world.machines.values():
        for stream, epoch in machine.disk.writers.items():
            known = writers.setdefault(stream, epoch)
            assert known == epoch, f"stream {stream}: {known} and {epoch}"
            first = epochs.setdefault(epoch, stream)
            # A node that lost its terms with its disk may use a term once more.
            assert first == stream or epoch.node in world.restored, (
                f"epoch {epoch} wrote {first} and {stream}"
            )
        for log in machine.disk.streams.values():
            for entry in map(freed_entry, log):
                fact = entries.setdefault((entry.stream, entry.seq), entry)
                assert fact == entry, f"two facts at {entry.stream}/{entry.seq}"
