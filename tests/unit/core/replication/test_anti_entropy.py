"""Anti-entropy: a node pulls missing entries from its peers."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Append, Effect, MergeRows, Send
from octaskly.core.events import SavedState
from octaskly.core.log.facts import NO_FLOOR, Entry, TaskCancelled
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import StreamId, TaskId
from octaskly.core.protocol.messages import (
    FULL_SNAPSHOT,
    Entries,
    Pull,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from tests.support.builders import epoch, moment, node_id

A = node_id("a")
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


def test_rows_beyond_a_peer_s_log_are_pulled_once_as_a_snapshot() -> None:
    """No entries of that peer contain their facts."""
    log = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(log, Outbox(), {})
    ahead = ((STREAM, 9),)
    head = SnapshotHead(vector=(), epochs=(), floor=NO_FLOOR, hlc=4)

    asked = exchange.pull_from(A, ahead)
    last = Snapshot(rows=(), cursor=SnapshotCursor(4, 0), has_more=False, head=head)
    exchange.on_snapshot(A, last)
    exchange.on_entries(A, Entries((), (), has_more=False, vector=()))

    assert asked == [Send(A, (Pull((), FULL_SNAPSHOT),))]
    assert not exchange.lacks_rows(A, ahead)
    assert exchange.pull_from(A, ahead) == [Send(A, (Pull(()),))]


def test_rows_are_pulled_after_the_answer_in_flight() -> None:
    """A peer gets one PULL at a time."""
    exchange = AntiEntropy(Journal(SavedState(), Outbox()), Outbox(), {})
    exchange.pull_from(A)

    assert exchange.pull_from(A, ((STREAM, 9),)) == []

    empty = Entries((), (), has_more=False, vector=())
    assert exchange.on_entries(A, empty) == [Send(A, (Pull((), FULL_SNAPSHOT),))]


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
    held: int = 9,
) -> Snapshot:
    """Return a part of a snapshot; its rows do not matter here."""
    vector = ((STREAM, held),)
    return Snapshot(rows=(), cursor=cursor, has_more=more, head=head, vector=vector)


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


def test_the_end_of_a_snapshot_does_not_complete_another_with_its_name() -> None:
    """Entries that reached the sender between the two are in rows before that end."""
    journal = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(journal, Outbox(), {})
    exchange.on_snapshot(A, rows(head(3), cursor=SnapshotCursor(7, 1), more=True))
    first = asked(journal)
    exchange.on_snapshot(A, rows(head(9), cursor=SnapshotCursor(7, 1), more=True))
    second = asked(journal)

    late = exchange.on_snapshot(A, rows(cursor=replace(first, row_key=2), more=False))

    assert late == []
    assert journal.vector == {}
    exchange.on_snapshot(A, rows(cursor=replace(second, row_key=2), more=False))
    assert journal.vector == {STREAM: 9}


def test_a_late_duplicate_end_does_not_complete_a_snapshot() -> None:
    """The first snapshot was sent twice, and the rest of that arrives late."""
    journal = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(journal, Outbox(), {})
    exchange.on_snapshot(A, rows(head(3), cursor=SnapshotCursor(7, 1), more=True))
    first = asked(journal)
    exchange.on_snapshot(A, rows(cursor=replace(first, row_key=2), more=False))
    exchange.on_snapshot(A, rows(head(9), cursor=SnapshotCursor(7, 1), more=True))

    assert (
        exchange.on_snapshot(A, rows(cursor=replace(first, row_key=2), more=False))
        == []
    )
    assert journal.vector == {STREAM: 3}


def test_a_snapshot_starts_again_when_its_sender_has_lost_its_disk() -> None:
    """The rest would belong to another log, without entries of the first."""
    journal = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(journal, Outbox(), {})
    exchange.on_snapshot(A, rows(head(3), cursor=SnapshotCursor(7, 1), more=True))
    rest = replace(asked(journal), row_key=2)

    again = exchange.on_snapshot(A, rows(cursor=rest, more=False, held=2))

    assert again == [Send(A, (Pull(()),))]
    assert journal.vector == {}


def test_streams_retired_during_a_snapshot_are_retired_by_the_next_one() -> None:
    """Rows that were sent before lack what the sender wrote again since."""
    journal = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(journal, Outbox(), {})
    early, late = StreamId(3), StreamId(4)
    first = replace(head(3), retired_count=1)
    cursor = SnapshotCursor(7, 1, retired_key=1)
    part = replace(rows(first, cursor=cursor, more=True), retired=((early, 9),))
    exchange.on_snapshot(A, part)
    rest = replace(asked(journal), row_key=2, retired_key=2)

    last = replace(rows(cursor=rest, more=False), retired=((late, 9),))
    merge, _ = exchange.on_snapshot(A, last)

    assert isinstance(merge, MergeRows)
    assert merge.retired == ((early, 9),)
    assert early in journal.retired
    assert late not in journal.retired
