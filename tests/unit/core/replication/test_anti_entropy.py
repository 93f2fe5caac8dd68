"""Anti-entropy: a node pulls missing entries from its peers."""

from __future__ import annotations

from octaskly.core.effects import Append, Effect, MergeRows, Send, StageRows
from octaskly.core.events import SavedState
from octaskly.core.log.facts import NO_FLOOR, Entry, TaskCancelled
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import Moment, StreamId, TaskId
from octaskly.core.protocol.messages import (
    Entries,
    Pull,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from tests.support.builders import epoch, moment, node_id

A, B = node_id("a"), node_id("b")
STREAM = StreamId(5)


def part(seq: int) -> Entries:
    """Return an answer with one entry."""
    entry = Entry(STREAM, seq, seq, TaskCancelled(TaskId("t"), "x"))
    return Entries((entry,), ((STREAM, epoch()),), has_more=True, vector=())


def pull(seq: int) -> Send:
    """Return the PULL of a node with this vector."""
    return Send(A, (Pull(((STREAM, seq),)),))


def kinds(effects: list[Effect]) -> list[type]:
    """Return the kinds of the effects."""
    return [type(effect) for effect in effects]


def test_the_next_part_is_pulled_while_one_is_being_written() -> None:
    """More would fill the memory if the peer is faster than this disk."""
    log = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(log, Outbox(), {})
    exchange.pull_from(A)

    assert exchange.on_entries(A, part(1))[1:] == [pull(1)]
    assert kinds(exchange.on_entries(A, part(2))) == [Append]
    assert exchange.is_pulling
    assert log.run_deferred(moment()) == []

    log.on_persisted(1)
    assert log.run_deferred(moment()) == [pull(2)]
    assert kinds(exchange.on_entries(A, part(3))) == [Append]


def test_a_lost_peer_is_not_pulled_from() -> None:
    """After its return it is asked from the start."""
    log = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(log, Outbox(), {})
    exchange.pull_from(A)
    exchange.on_entries(A, part(1))
    exchange.on_entries(A, part(2))

    exchange.drop_peer(A)
    log.on_persisted(2)

    assert log.run_deferred(moment()) == []
    assert not exchange.is_pulling


def rows(
    head: SnapshotHead | None = None,
    *,
    cursor: SnapshotCursor,
    more: bool,
    after: SnapshotCursor | None = None,
) -> Snapshot:
    """Return a part of a snapshot; its rows do not matter here."""
    return Snapshot(rows=(), cursor=cursor, has_more=more, head=head, after=after)


def nothing(_: Moment) -> list[Effect]:
    """Do nothing once a part is merged."""
    return []


def head(seq: int) -> SnapshotHead:
    """Return the head of a sender whose clock stands still while its log grows."""
    return SnapshotHead(
        vector=((STREAM, seq),),
        epochs=((STREAM, epoch()),),
        floor=NO_FLOOR,
        hlc=7,
    )


def asked(journal: Journal) -> SnapshotCursor:
    """Return the next PULL for a snapshot that has just started."""
    journal.on_persisted(journal.last_number)
    (send,) = journal.run_deferred(moment())
    assert isinstance(send, Send)
    (message,) = send.messages
    assert isinstance(message, Pull)
    assert message.cursor is not None
    return message.cursor


def test_a_repeated_start_does_not_complete_a_snapshot_without_its_middle() -> None:
    """A frame may arrive twice, after all others."""
    journal = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(journal, Outbox(), {})
    start = rows(head(3), cursor=SnapshotCursor(7, 1), more=True)
    exchange.on_snapshot(A, start, nothing)
    middle = rows(cursor=SnapshotCursor(7, 2), more=True, after=asked(journal))
    exchange.on_snapshot(A, middle, nothing)
    end = rows(cursor=SnapshotCursor(7, 3), more=False, after=asked(journal))

    exchange.on_snapshot(A, start, nothing)

    assert exchange.on_snapshot(A, end, nothing) == []
    exchange.on_snapshot(A, middle, nothing)
    assert kinds(exchange.on_snapshot(A, end, nothing)) == [StageRows]


def test_a_snapshot_that_the_sender_has_ended_is_replaced_by_another() -> None:
    """Its parts belong to one state of the sender's log."""
    journal = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(journal, Outbox(), {})
    exchange.on_snapshot(
        A, rows(head(3), cursor=SnapshotCursor(7, 1), more=True), nothing
    )
    after = asked(journal)

    other = rows(head(2), cursor=SnapshotCursor(8, 1), more=False)
    exchange.on_snapshot(A, other, nothing)

    late = rows(cursor=SnapshotCursor(7, 2), more=False, after=after)
    assert exchange.on_snapshot(A, late, nothing) == []
    for _ in range(2):
        journal.on_persisted(journal.last_number)
        journal.run_deferred(moment())
    assert journal.vector == {STREAM: 2}


def test_no_second_snapshot_is_pulled_while_one_is_merged() -> None:
    """The vector would ask for it. The rest is pulled afterwards."""
    journal = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(journal, Outbox(), {})
    exchange.pull_from(A)
    exchange.on_snapshot(
        A, rows(head(3), cursor=SnapshotCursor(7, 1), more=False), nothing
    )
    exchange.drop_peer(A)

    assert exchange.pull_from(A) == []
    journal.on_persisted(journal.last_number)
    (_, again) = journal.run_deferred(moment())
    assert again == pull(3)


def test_two_snapshots_are_merged_one_after_the_other() -> None:
    """Each step leaves time for other writes."""
    journal = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(journal, Outbox(), {})
    for peer, seq in ((A, 3), (B, 9)):
        part = rows(head(seq), cursor=SnapshotCursor(7, 1), more=False)
        exchange.on_snapshot(peer, part, nothing)
        exchange.drop_peer(peer)

    steps = []
    for _ in range(4):
        journal.on_persisted(journal.last_number)
        steps.append(kinds(journal.run_deferred(moment())))

    assert steps == [[MergeRows], [MergeRows], [], []]
    assert journal.vector == {STREAM: 9}
