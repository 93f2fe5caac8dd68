"""Asks peers for the entries that they hold and this node lacks.

One PULL at a time goes to a peer; each non-empty answer is followed by another, so the
last PULL of a series shows the peer what this node holds by then. A peer may answer
with a snapshot, part by part; one that stops half-way is begun again.
"""

from __future__ import annotations

from collections.abc import Container

from msgspec.structs import replace

from octaskly.core.effects import Effect, Send
from octaskly.core.model.consequences import Outbox, SyncProgressed
from octaskly.core.model.ids import Moment, NodeId, VectorItems, covers
from octaskly.core.protocol.messages import (
    FULL_SNAPSHOT,
    Entries,
    Pull,
    Snapshot,
    SnapshotHead,
)
from octaskly.core.replication.journal import Journal


class AntiEntropy:
    """Which peers were asked for entries and have not answered."""

    def __init__(self, journal: Journal, outbox: Outbox) -> None:
        self._outbox = outbox
        self._journal = journal
        self._pending_pulls: set[NodeId] = set()
        self._snapshots: dict[NodeId, tuple[int, SnapshotHead]] = {}
        """Of snapshots under way, each with the name that it was given here."""
        self._last_snapshot_id = 0  #: the name of the last that was begun
        self._last_appends: dict[
            NodeId, int
        ] = {}  #: append of the last entries that came
        self._has_new_entries = False
        self._rows_wanted: dict[NodeId, VectorItems] = {}
        """Whose rows are to be asked for, and how far they go beyond its log."""
        self._rows_pulling: dict[
            NodeId, VectorItems
        ] = {}  #: the same, of those asked for
        self._rows_held: dict[NodeId, VectorItems] = {}  #: and of those that came

    @property
    def is_pulling(self) -> bool:
        """Whether a peer owes an answer."""
        return bool(self._pending_pulls or self._snapshots)

    def awaits_answer_from(self, peer: NodeId) -> bool:
        """Whether this peer does."""
        return peer in self._pending_pulls or peer in self._snapshots

    def lacks_rows(self, peer: NodeId, rows_ahead: VectorItems) -> bool:
        """Whether a peer has rows of which neither log nor rows here know."""
        is_known = self._rows_held.get(peer) == rows_ahead
        return not is_known and not covers(self._journal.vector, rows_ahead)

    def pull_missing(self, peer: NodeId, vector: VectorItems) -> list[Effect]:
        """Ask the peer for what `vector` counts beyond this node's own."""
        if covers(self._journal.vector, vector):
            return []
        return self.pull_from(peer)

    def pull_from(self, peer: NodeId, rows_ahead: VectorItems = ()) -> list[Effect]:
        """Ask the peer for more, which also shows it what this node holds.

        What only its rows say, beyond its log, comes as a snapshot, if it is not known.
        """
        if (
            self.lacks_rows(peer, rows_ahead)
            and self._rows_pulling.get(peer) != rows_ahead
        ):
            self._rows_wanted[peer] = rows_ahead
        return [] if peer in self._pending_pulls else self._send_pull(peer)

    def on_entries(self, peer: NodeId, message: Entries) -> list[Effect]:
        """Take entries in, and ask for more.

        Only an empty answer ends the series. One that brings nothing new does not:
        another peer may have brought the same meanwhile, and more may follow.
        """
        self._pending_pulls.discard(peer)
        self._outbox.put(SyncProgressed())
        if not message.entries:
            self._last_appends.pop(peer, None)
            return self._send_pull(peer) if peer in self._rows_wanted else []
        append = self._journal.append_remote(message.entries, message.epochs)
        if append is None:
            return self._send_pull(peer)
        self._has_new_entries = True
        return [append, *self._pull_when_durable(peer, append.number)]

    def on_snapshot(self, peer: NodeId, message: Snapshot) -> list[Effect]:
        """Take rows in; ask for more once they are on disk, so that none pile up."""
        self._outbox.put(SyncProgressed())
        snapshot_id = message.cursor.snapshot_id
        if message.head is not None:
            # Its giver names it by a clock that may stand still between two of them,
            # and says again what it is asked for.
            self._last_snapshot_id = snapshot_id = max(
                self._last_snapshot_id + 1, snapshot_id
            )
            self._snapshots[peer] = snapshot_id, message.head
        name, head = self._snapshots.get(peer, (None, None))
        if head is None or name != snapshot_id:
            return []  # Of a snapshot that was begun again since.
        if not covers(dict(message.vector), head.vector):
            return self._restart_snapshot(peer)
        join = self._journal.merge_rows(message, head)
        self._has_new_entries = True
        if not message.has_more:
            self._snapshots.pop(peer, None)
            if peer in self._rows_pulling:
                self._rows_held[peer] = self._rows_pulling.pop(peer)
            return [join, *self._send_pull(peer)]
        cursor = replace(message.cursor, snapshot_id=snapshot_id)

        def go_on(_: Moment) -> list[Effect]:
            if self._snapshots.get(peer) != (snapshot_id, head):
                return []
            return [Send(peer, (Pull(self._journal.vector_items(), cursor),))]

        self._journal.defer_until_durable(go_on)
        return [join]

    def _restart_snapshot(self, peer: NodeId) -> list[Effect]:
        """Ask anew: the giver lost the disk that it began with, and has other rows."""
        self._snapshots.pop(peer, None)
        if peer in self._rows_pulling:
            self._rows_wanted[peer] = self._rows_pulling.pop(peer)
        return self._send_pull(peer)

    def pop_has_new_entries(self, connected: Container[NodeId]) -> bool:
        """Return once whether entries came in, as soon as nobody owes an answer.

        Before that a task may seem to wait only because its end is still to come.
        """
        if self._pending_pulls or self._snapshots:
            for peer in {*self._pending_pulls, *self._snapshots}:
                if peer not in connected:
                    self.drop_peer(peer)
        if not self._has_new_entries or self._pending_pulls or self._snapshots:
            return False
        self._has_new_entries = False
        return True

    def drop_peer(self, peer: NodeId) -> None:
        """The link is gone, and the question with it."""
        if self.awaits_answer_from(peer):
            self._outbox.put(SyncProgressed())
        self._pending_pulls.discard(peer)
        self._snapshots.pop(peer, None)
        self._last_appends.pop(peer, None)
        self._rows_wanted.pop(peer, None)
        self._rows_pulling.pop(peer, None)

    def _pull_when_durable(self, peer: NodeId, number: int) -> list[Effect]:
        """Ask for more once the part before the last is on disk, so that none pile up.

        The disk is busy with one part while the next one is on its way.
        """
        before = self._last_appends.get(peer, 0)
        self._last_appends[peer] = number
        if before <= self._journal.persisted:
            return self._send_pull(peer)

        def go_on(_: Moment) -> list[Effect]:
            return (
                self._send_pull(peer) if self._last_appends.get(peer) == number else []
            )

        self._pending_pulls.add(peer)  # It owes the rest.
        self._journal.defer_until_durable(go_on, before)
        return []

    def _send_pull(self, peer: NodeId) -> list[Effect]:
        self._pending_pulls.add(peer)
        cursor = None
        if peer in self._rows_wanted:
            self._rows_pulling[peer] = self._rows_wanted.pop(peer)
            cursor = FULL_SNAPSHOT
        return [Send(peer, (Pull(self._journal.vector_items(), cursor),))]
