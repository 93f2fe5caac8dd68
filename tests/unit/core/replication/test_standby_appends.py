"""A standby reports only the state of its own disk."""

from __future__ import annotations

from octaskly.core.effects import Append, Effect, Send
from octaskly.core.events import SavedState
from octaskly.core.log.facts import Entry, TaskCancelled
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import Epoch, NodeId, StreamId, TaskId
from octaskly.core.protocol.messages import (
    Entries,
    Pull,
    Replicate,
    ReplicateOk,
)
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.standby_appends import APPEND_PARTS_MAX, Standby
from tests.support.builders import epoch, moment, node_id

A, C = node_id("a"), node_id("c")
OWN, OTHER = StreamId(5), StreamId(6)


class World:
    """Node b stores the stream of a, with a disk as slow as a test needs."""

    def __init__(self) -> None:
        self.journal = Journal(SavedState(), Outbox())
        self.exchange = AntiEntropy(self.journal, Outbox(), {})
        self.standby = Standby(self.journal, self.exchange)

    def repl(
        self,
        number: int,
        *entries: Entry,
        of: Epoch | None = None,
        peer: NodeId = A,
    ) -> list[Effect]:
        """Stream an append from the dispatcher."""
        stream_epoch = of or epoch()
        message = Replicate(stream_epoch, number, entries, ((OWN, stream_epoch),))
        return self.standby.on_replicate(peer, message, moment())

    def commit(self, number: int | None = None) -> list[Effect]:
        """Make all writes so far durable, or those up to a number."""
        number = self.journal.last_number if number is None else number
        self.journal.on_persisted(number)
        return self.journal.run_deferred(moment())


def entry(seq: int, stream: StreamId = OWN) -> Entry:
    """Return one entry."""
    return Entry(stream, seq, seq, TaskCancelled(TaskId("t"), "x"))


def ok(number: int, of: Epoch | None = None, peer: NodeId = A) -> Send:
    """Return the acknowledgement."""
    return Send(peer, (ReplicateOk(of or epoch(), number),))


def pulls(effects: list[Effect]) -> list[Pull]:
    """Return the PULL messages."""
    return [
        message
        for effect in effects
        if isinstance(effect, Send)
        for message in effect.messages
        if isinstance(message, Pull)
    ]


def test_streamed_entries_are_acknowledged_once_they_are_durable() -> None:
    """Not on arrival."""
    world = World()

    assert world.repl(7, entry(1)) == [Append(1, (entry(1),), ((OWN, epoch()),))]
    assert world.commit() == [ok(7)]


def test_known_entries_are_acknowledged_once_they_are_durable() -> None:
    """A PULL may have brought them, and their write may be in flight."""
    world = World()
    world.exchange.on_entries(A, Entries((entry(1),), (), has_more=False, vector=()))

    assert world.repl(7, entry(1)) == []
    assert world.commit() == [ok(7)]
    assert world.repl(8) == [ok(8)]


def test_one_commit_of_several_appends_is_acknowledged_once() -> None:
    """The last acknowledgement covers all."""
    world = World()
    world.repl(7, entry(1))
    world.repl(8, entry(2))

    assert world.commit() == [ok(8)]


def test_each_commit_is_acknowledged_while_more_is_in_flight() -> None:
    """The dispatcher does not wait for the end of a burst."""
    world = World()
    world.repl(7, entry(1))
    world.repl(8, entry(2))

    assert world.commit(1) == [ok(7)]
    assert world.commit(2) == [ok(8)]


def test_a_part_of_an_append_is_not_acknowledged() -> None:
    """Only the last part completes it."""
    world = World()
    world.repl(0, entry(1))

    assert world.commit() == []

    world.repl(7, entry(2))

    assert world.commit() == [ok(7)]


def test_an_append_is_kept_once_all_its_parts_are_here() -> None:
    """The successor of a dead dispatcher must not run half a batch."""
    world = World()

    assert world.repl(0, entry(1)) == []
    assert world.journal.vector == {}
    assert world.repl(7, entry(2)) == [
        Append(1, (entry(1), entry(2)), ((OWN, epoch()),))
    ]


def test_parts_of_one_epoch_are_dropped_in_the_next() -> None:
    """The rest will never be sent: PULL brings missing entries, if a node has them."""
    world = World()
    world.repl(0, entry(1))

    assert world.repl(1, entry(1, OTHER), of=epoch(2, "c"), peer=C) == [
        Append(1, (entry(1, OTHER),), ((OWN, epoch(2, "c")),))
    ]


def test_an_append_with_a_missing_middle_is_dropped() -> None:
    """The node left its dispatcher for a moment, and pulls all of it."""
    world = World()
    world.repl(0, entry(1))
    world.standby.note_missed(Replicate(epoch(), 0, (entry(2),), ((OWN, epoch()),)))

    effects = world.repl(7, entry(3))

    assert pulls(effects) == [Pull(())]
    assert world.journal.vector == {}


def test_parts_start_again_after_a_broken_link() -> None:
    """The dispatcher sends everything again that this node does not hold."""
    world = World()
    world.repl(0, entry(1))
    world.repl(0, entry(1))
    world.repl(7, entry(2))

    assert world.journal.vector == {OWN: 2}
    assert world.commit() == [ok(7)]


def test_a_node_keeps_parts_that_never_end() -> None:
    """The alternative would be to hold all of them in memory."""
    world = World()
    for seq in range(1, APPEND_PARTS_MAX + 1):
        world.repl(0, entry(seq))

    world.repl(0, entry(APPEND_PARTS_MAX + 1))

    assert world.journal.vector == {OWN: APPEND_PARTS_MAX + 1}
    assert world.commit() == []


def test_nothing_after_a_gap_is_acknowledged_and_the_rest_is_pulled() -> None:
    """The dispatcher believed it in sync, and it is not."""
    world = World()

    assert pulls(world.repl(7, entry(2))) == [Pull(())]
    assert world.commit() == []


def test_nothing_is_acknowledged_before_a_gap_is_filled() -> None:
    """An acknowledgement covers all earlier appends, including failed ones."""
    world = World()
    world.repl(7, entry(2))
    world.repl(8, entry(1, OTHER))

    assert world.commit() == []
    assert world.repl(9) == []  # Nor is it pulled twice.

    got = Entries((entry(1), entry(2)), (), has_more=False, vector=())
    world.exchange.on_entries(A, got)
    world.repl(10)

    assert world.commit() == [ok(10)]


def test_a_part_after_a_gap_does_not_complete_the_append() -> None:
    """The gap may be in another stream than the last part."""
    world = World()
    world.repl(0, entry(2))
    world.repl(7, entry(1, OTHER))

    assert world.commit() == []


def test_a_missed_append_is_a_gap_even_if_the_next_part_shows_none() -> None:
    """The node did not follow for a while; it may know the next append already."""
    world = World()
    world.repl(6, entry(1, OTHER))
    world.commit()
    world.standby.note_missed(Replicate(epoch(), 7, (entry(1),), ((OWN, epoch()),)))

    assert pulls(world.repl(8, entry(1, OTHER)))
    assert world.commit() == []


def test_a_gap_in_a_deposed_dispatcher_s_stream_is_ignored() -> None:
    """Its messages may never be repeated."""
    world = World()
    world.repl(6, entry(1, OTHER), of=epoch(2))
    world.standby.note_missed(Replicate(epoch(1), 7, (entry(1),), ((OWN, epoch(1)),)))
    world.commit()

    assert not pulls(world.repl(7, entry(2, OTHER), of=epoch(2)))


def test_a_gap_of_one_epoch_is_ignored_in_the_next() -> None:
    """Its dispatcher may be gone, with entries that no other node has."""
    world = World()
    world.repl(7, entry(2))
    world.repl(1, entry(1, OTHER), of=epoch(2, "c"), peer=C)

    assert world.commit() == [ok(1, epoch(2, "c"), C)]


def test_a_streamed_node_waits_for_no_pull() -> None:
    """It would otherwise hold back answers that wait for the end of its PULLs."""
    world = World()
    world.exchange.pull_from(A)
    world.repl(7, entry(1))

    assert not world.exchange.is_pulling
