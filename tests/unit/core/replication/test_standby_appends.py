"""A standby says only what is true of its own disk."""

from __future__ import annotations

from octaskly.core.effects import Append, Effect, Send
from octaskly.core.events import SavedState
from octaskly.core.log.facts import Entry, TaskCancelled
from octaskly.core.model.consequences import Outbox
from octaskly.core.model.ids import NO_EPOCH, Epoch, NodeId, StreamId, TaskId
from octaskly.core.model.settings import Timing
from octaskly.core.protocol.messages import (
    Entries,
    Heartbeat,
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
    """Node b keeps what a streams; its disk is as slow as a test wants."""

    def __init__(self) -> None:
        self.journal = Journal(SavedState(), Outbox())
        self.exchange = AntiEntropy(self.journal, Outbox())
        self.standby = Standby(self.journal, self.exchange, Timing().replication_wait_s)

    def repl(
        self,
        number: int,
        *entries: Entry,
        of: Epoch | None = None,
        peer: NodeId = A,
        is_ahead: bool = False,
    ) -> list[Effect]:
        """The dispatcher streams."""
        reign = of or epoch()
        message = Replicate(reign, number, entries, ((OWN, reign),), is_ahead)
        return self.standby.on_replicate(peer, message, moment())

    def commit(self, number: int | None = None) -> list[Effect]:
        """What was written so far, or up to a number, is durable."""
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
    """Return the questions."""
    return [
        message
        for effect in effects
        if isinstance(effect, Send)
        for message in effect.messages
        if isinstance(message, Pull)
    ]


def test_what_is_streamed_is_acknowledged_when_it_is_durable() -> None:
    """Not when it has arrived."""
    world = World()

    assert world.repl(7, entry(1)) == [Append(1, (entry(1),), ((OWN, epoch()),))]
    assert world.commit() == [ok(7)]


def test_a_standby_that_heartbeats_count_on_is_level_until_they_are_old() -> None:
    """Where the link is slow it may have been given up, and not have heard of it."""
    world = World()
    world.repl(7, entry(1))
    world.commit()
    for number in range(4):
        heard_s = max(0.0, number * 0.3)
        world.standby.on_heartbeat(
            Heartbeat(epoch(), number * 0.3 + 0.3, heard_s), moment(number * 0.3)
        )

    world.standby.check_ack_guarantee(moment(1.2))
    assert world.standby.in_sync_epoch == epoch()

    world.standby.check_ack_guarantee(moment(3.0))
    assert world.standby.in_sync_epoch == NO_EPOCH


def test_a_standby_that_heartbeats_count_on_no_more_is_not_level() -> None:
    """The dispatcher answers without it from now on."""
    world = World()
    world.repl(7, entry(1))
    assert world.standby.in_sync_epoch == epoch()

    world.standby.on_heartbeat(Heartbeat(epoch(), 0.3), moment())

    assert world.standby.in_sync_epoch == NO_EPOCH


def test_what_is_held_already_is_acknowledged_once_it_is_durable() -> None:
    """It may have come by PULL, and be on its way to the disk."""
    world = World()
    world.exchange.on_entries(A, Entries((entry(1),), (), has_more=False, vector=()))

    assert world.repl(7, entry(1)) == []
    assert world.commit() == [ok(7)]
    assert world.repl(8) == [ok(8)]


def test_one_commit_of_several_appends_is_acknowledged_once() -> None:
    """The last says it for all."""
    world = World()
    world.repl(7, entry(1))
    world.repl(8, entry(2))

    assert world.commit() == [ok(8)]


def test_each_commit_is_acknowledged_while_more_is_on_its_way() -> None:
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
    """Half a batch must not be run by who succeeds a dispatcher that has died."""
    world = World()

    assert world.repl(0, entry(1)) == []
    assert world.journal.vector == {}
    assert world.repl(7, entry(2)) == [
        Append(1, (entry(1), entry(2)), ((OWN, epoch()),))
    ]


def test_parts_of_one_reign_are_no_matter_of_the_next() -> None:
    """Nobody will send the rest: what is missing comes by PULL, if anybody has it."""
    world = World()
    world.repl(0, entry(1))

    assert world.repl(1, entry(1, OTHER), of=epoch(2, "c"), peer=C) == [
        Append(1, (entry(1, OTHER),), ((OWN, epoch(2, "c")),))
    ]


def test_of_an_append_whose_middle_was_missed_nothing_is_kept() -> None:
    """The node left its dispatcher for a moment, and asks for all of it."""
    world = World()
    world.repl(0, entry(1))
    world.standby.note_missed(Replicate(epoch(), 0, (entry(2),), ((OWN, epoch()),)))

    effects = world.repl(7, entry(3))

    assert pulls(effects) == [Pull(())]
    assert world.journal.vector == {}


def test_parts_come_anew_after_a_link_has_broken() -> None:
    """The dispatcher begins again with what this node does not hold."""
    world = World()
    world.repl(0, entry(1))
    world.repl(0, entry(1))
    world.repl(7, entry(2))

    assert world.journal.vector == {OWN: 2}
    assert world.commit() == [ok(7)]


def test_a_node_that_is_sent_parts_without_end_keeps_them() -> None:
    """Rather than hold all of them in memory."""
    world = World()
    for seq in range(1, APPEND_PARTS_MAX + 1):
        world.repl(0, entry(seq))

    world.repl(0, entry(APPEND_PARTS_MAX + 1))

    assert world.journal.vector == {OWN: APPEND_PARTS_MAX + 1}
    assert world.commit() == []


def test_beyond_a_gap_nothing_is_acknowledged_and_the_rest_is_asked_for() -> None:
    """It was taken for level, and is not."""
    world = World()

    assert pulls(world.repl(7, entry(2))) == [Pull(())]
    assert world.commit() == []


def test_what_comes_after_a_gap_is_not_acknowledged_before_the_gap_is_filled() -> None:
    """An acknowledgement stands for all appends before it, also those that failed."""
    world = World()
    world.repl(7, entry(2))
    world.repl(8, entry(1, OTHER))

    assert world.commit() == []
    assert world.repl(9) == []  # Nor is it asked for twice.

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


def test_what_was_missed_is_a_gap_though_the_next_part_shows_none() -> None:
    """Once this node did not follow; what it hears next may all be known to it."""
    world = World()
    world.repl(6, entry(1, OTHER))
    world.commit()
    world.standby.note_missed(Replicate(epoch(), 7, (entry(1),), ((OWN, epoch()),)))

    assert pulls(world.repl(8, entry(1, OTHER)))
    assert world.commit() == []


def test_what_a_deposed_dispatcher_said_is_no_gap_of_the_present_reign() -> None:
    """It may never be said by anybody again."""
    world = World()
    world.repl(6, entry(1, OTHER), of=epoch(2))
    world.standby.note_missed(Replicate(epoch(1), 7, (entry(1),), ((OWN, epoch(1)),)))
    world.commit()

    assert not pulls(world.repl(7, entry(2, OTHER), of=epoch(2)))


def test_a_gap_of_one_reign_is_no_matter_of_the_next() -> None:
    """Its dispatcher may be gone with what nobody else has."""
    world = World()
    world.repl(7, entry(2))
    world.repl(1, entry(1, OTHER), of=epoch(2, "c"), peer=C)

    assert world.commit() == [ok(1, epoch(2, "c"), C)]


def test_the_reign_that_a_node_is_level_with_is_that_of_the_last_whole_message() -> (
    None
):
    """Beyond a gap it is level with nobody new."""
    world = World()
    world.repl(7, entry(1))
    world.repl(8, entry(9), of=epoch(2))

    assert world.standby.in_sync_epoch == epoch(1)


def test_beyond_a_gap_a_node_is_level_no_more() -> None:
    """Its dispatcher may answer without it until it has asked for the rest."""
    world = World()
    world.repl(7, entry(1))
    world.repl(8, entry(3))

    assert world.standby.in_sync_epoch == NO_EPOCH


def test_while_rows_of_its_dispatcher_say_more_a_node_is_not_level() -> None:
    """It keeps what is streamed, and says so; the rest is not here yet."""
    world = World()

    world.repl(7, entry(1), is_ahead=True)
    assert world.commit() == [ok(7)]
    assert world.standby.in_sync_epoch == NO_EPOCH

    world.repl(8, entry(2))
    assert world.standby.in_sync_epoch == epoch()

    world.repl(9, entry(3), is_ahead=True)
    assert world.standby.in_sync_epoch == NO_EPOCH


def test_a_node_that_is_streamed_to_waits_for_no_answer() -> None:
    """Else it would hold back what waits for the end of its questions."""
    world = World()
    world.exchange.pull_from(A)
    world.repl(7, entry(1))

    assert not world.exchange.is_pulling
