"""Dispatcher epochs and terms: I6, I7, I8, and a log line for each change.

`EpochWatch` checks the messages and writes of each step. The functions check a world at
its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from octaskly.core.effects import Effect, LogLine
from octaskly.core.election.phases import (
    Campaigning,
    Claiming,
    Discovering,
    Dispatching,
    Following,
    Phase,
    SteppingDown,
)
from octaskly.core.events import Event
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


@dataclass(slots=True)
class _Seen:
    """One machine after its last step."""

    node: Node | None = None
    phase: type[Phase] = Discovering
    epoch: Epoch = NO_EPOCH
    disk: Disk | None = None
    term: int = 0  #: on that disk


class EpochWatch:
    """Checks terms, epochs and phases after every step of a node."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen = {node: _Seen() for node in world.machines}
        self._is_stale: dict[tuple[NodeId, int, Epoch, int], bool] = {}
        self._checked = 0
        self._lines: list[LogLine] = []  #: of this step, about transitions
        world.watchers.on_received((Replicate,), self._note_stale)
        world.watchers.on_sent(CLAIMS, self._is_on_disk)
        world.watchers.on_sent((ReplicateOk,), self._is_not_stale)
        world.watchers.on_effect((LogLine,), self._note_line)
        world.watchers.on_step(self._check_state)

    def _check_state(
        self, machine: Machine, _event: Event, _effects: list[Effect]
    ) -> None:
        """Compare a node after a step with what it was before."""
        node, seen = machine.node, self._seen[machine.id]
        assert node is not None
        phase, epoch, lines = type(node.phase), node.epoch, self._lines
        if lines or seen.node is not node or seen.phase is not phase:
            _transition_is_logged(machine, seen, phase, lines)
            self._lines = []
        if seen.disk is not machine.disk or seen.term != machine.disk.term:
            _term_never_decreases(machine, seen)
        if seen.node is not node or seen.epoch is not epoch:
            _epoch_never_decreases(machine, seen, epoch)
        seen.node, seen.phase, seen.epoch = node, phase, epoch
        seen.disk, seen.term = machine.disk, machine.disk.term
        self._no_stale_start()

    def _note_line(self, _machine: Machine, line: LogLine) -> None:
        if line.event in LINES:
            self._lines.append(line)

    def _is_on_disk(self, machine: Machine, message: Claim | ClaimOk) -> None:
        """§ 3.4: a claim or followed dispatcher is on disk before others hear of it."""
        saved = machine.disk.epoch
        assert saved >= message.epoch, f"{machine.id}: {saved}, {message}"

    def _note_stale(self, machine: Machine, message: Replicate) -> None:
        seen = self._seen[machine.id]
        if seen.node is machine.node:
            key = (machine.id, machine.life, message.epoch, message.number)
            # A batch that came in time may come again, and is acknowledged once.
            self._is_stale.setdefault(key, message.epoch < seen.epoch)

    def _is_not_stale(self, machine: Machine, message: ReplicateOk) -> None:
        """I7: a standby does not serve a dispatcher that it knows to be deposed."""
        key = (machine.id, machine.life, message.epoch, message.number)
        assert not self._is_stale.get(key), f"{machine.id} served {message.epoch}"

    def _no_stale_start(self) -> None:
        """I7: no task starts for an epoch lower than one already seen."""
        if self._checked == len(self._world.commands.started):
            return
        for started in self._world.commands.started[self._checked :]:
            assert started.attempt.term >= started.seen_term, f"stale: {started}"
        self._checked = len(self._world.commands.started)


def _transition_is_logged(
    machine: Machine, seen: _Seen, phase: type[Phase], lines: list[LogLine]
) -> None:
    """Each transition writes one log line, with its reason."""
    assert all(dict(note.fields).get("reason") for note in lines), lines
    events = [note.event for note in lines]
    assert all(a != b for a, b in pairwise(events)), f"{machine.id}: {events}"
    if seen.node is machine.node and seen.phase is phase:
        return
    assert events, f"{machine.id}: {phase} after {seen.phase} without a line"
    assert events[-1] in LOGGED[phase], f"{machine.id}: {events} tells of {phase}"


def _term_never_decreases(machine: Machine, seen: _Seen) -> None:
    """§ 3.4: a term on a disk only grows."""
    term = machine.disk.term
    assert seen.disk is not machine.disk or term >= seen.term, (
        f"{machine.id}: term {term} after {seen.term}"
    )


def _epoch_never_decreases(machine: Machine, seen: _Seen, epoch: Epoch) -> None:
    """I6: the epochs that one process follows only grow."""
    assert seen.node is not machine.node or epoch >= seen.epoch, (
        f"{machine.id}: {epoch} after {seen.epoch}"
    )


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
