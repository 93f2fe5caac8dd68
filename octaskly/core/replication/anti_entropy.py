"""Anti-entropy: pulls from peers the entries that this node lacks.

Each peer gets one PULL at a time. Another PULL follows each non-empty answer, so the
last PULL of a series shows the peer everything that this node holds. A peer may answer
with a snapshot in parts. An interrupted snapshot starts again.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from octaskly.core.effects import Effect, Send
from octaskly.core.log.retired_streams import (
    EMPTY_DIGEST,
    NONE_RETIRED,
    RetiredSummary,
)
from octaskly.core.membership.peer import PeerView
from octaskly.core.model.component_signals import Outbox, SyncProgressed
from octaskly.core.model.ids import Moment, NodeId, VectorItems, covers, uncovered
from octaskly.core.protocol.messages import (
    FULL_SNAPSHOT,
    Entries,
    Pull,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.core.replication.journal import Journal


@dataclass
class _SnapshotInProgress:
    """A snapshot from one peer whose last part has not arrived."""

    id: int  #: assigned by this node
    head: SnapshotHead
    retired: VectorItems = ()
    """Streams that were retired when the head was read: part of its state."""
    retired_later: VectorItems = ()
    """Streams retired since. The rows of earlier parts do not know what their tasks
    became, so the streams are not retired here, but no loss of the sender's disk is
    seen in their absence."""

    def add_retired(self, part: Snapshot) -> None:
        """Add the retired streams of a part, whose numbers have no gaps."""
        first = part.cursor.retired_key - len(part.retired)
        count = max(0, self.head.retired_count - first)
        self.retired += part.retired[:count]
        self.retired_later += part.retired[count:]


class AntiEntropy:
    """The pending pulls and snapshots of each peer."""

    def __init__(
        self, journal: Journal, outbox: Outbox, peers: Mapping[NodeId, PeerView]
    ) -> None:
        self._outbox = outbox
        self._journal = journal
        self._peers = peers
        self._pending_pulls: set[NodeId] = set()
        self._snapshots: dict[NodeId, _SnapshotInProgress] = {}
        self._last_snapshot_id = 0  #: id of the latest snapshot
        self._last_appends: dict[
            NodeId, int
        ] = {}  #: number of the append with the latest entries
        self._has_new_entries = False
        self._rows_wanted: dict[NodeId, VectorItems] = {}
        """Rows to pull: the extent of each peer's rows beyond its log."""
        self._rows_pulling: dict[
            NodeId, VectorItems
        ] = {}  #: the same, for pulls in progress
        self._rows_held: dict[NodeId, VectorItems] = {}  #: the same, for rows received

    @property
    def is_pulling(self) -> bool:
        """Return True if an answer of any peer is pending."""
        return bool(self._pending_pulls or self._snapshots)

    def awaits_answer_from(self, peer: NodeId) -> bool:
        """Return True if an answer of this peer is pending."""
        return peer in self._pending_pulls or peer in self._snapshots

    def lacks_rows(self, peer: NodeId, rows_ahead: VectorItems) -> bool:
        """Return True if the peer has rows ahead that this node's log and rows lack."""
        is_known = self._rows_held.get(peer) == rows_ahead
        return not is_known and not self._journal.holds(rows_ahead)

    def pull_missing(
        self, peer: NodeId, vector: VectorItems, retired: RetiredSummary = NONE_RETIRED
    ) -> list[Effect]:
        """Pull from the peer if its log has entries that this node lacks."""
        if self._journal.holds_log(vector, retired):
            return []
        return self.pull_from(peer)

    def pull_from(self, peer: NodeId, rows_ahead: VectorItems = ()) -> list[Effect]:
        """Send a PULL, which also shows the peer this node's vector.

        If the peer has unknown rows ahead of its log, the PULL asks for a snapshot.
        """
        if (
            self.lacks_rows(peer, rows_ahead)
            and self._rows_pulling.get(peer) != rows_ahead
        ):
            self._rows_wanted[peer] = rows_ahead
        return [] if peer in self._pending_pulls else self._send_pull(peer)

    def on_entries(self, peer: NodeId, message: Entries) -> list[Effect]:
        """Append a peer's entries, and pull more.

        Only an empty answer ends the series. An answer without new entries does not:
        another peer may have sent the same entries first, and more may follow.
        """
        self._pending_pulls.discard(peer)
        self._outbox.put(SyncProgressed())
        self._note_digest(peer, message.retired)
        if not message.entries:
            self._last_appends.pop(peer, None)
            self._journal.retired.note_included(message.retired)
            return self._send_pull(peer) if peer in self._rows_wanted else []
        append = self._journal.append_remote(message.entries, message.epochs)
        if append is None:
            return self._send_pull(peer)
        self._has_new_entries = True
        return [append, *self._pull_when_durable(peer, append.number)]

    def on_snapshot(self, peer: NodeId, message: Snapshot) -> list[Effect]:
        """Merge rows; pull the next part once they are durable, to bound memory."""
        self._outbox.put(SyncProgressed())
        snapshot_id = message.cursor.snapshot_id
        if message.head is not None:
            # The sender takes ids from a clock that may not advance between two
            # snapshots, and it echoes the id in the cursor. So this node assigns a
            # larger id.
            self._last_snapshot_id = snapshot_id = max(
                self._last_snapshot_id + 1, snapshot_id
            )
            self._snapshots[peer] = _SnapshotInProgress(snapshot_id, message.head)
        snapshot = self._snapshots.get(peer)
        if snapshot is None or snapshot.id != snapshot_id:
            return []  # Part of a snapshot that has been restarted since.
        head = snapshot.head
        snapshot.add_retired(message)
        lacking = uncovered(dict(message.vector), head.vector)
        retired = dict(snapshot.retired) | dict(snapshot.retired_later)
        if lacking and not covers(retired, lacking):
            return self._restart_snapshot(peer)
        join = self._journal.merge_rows(message, head, snapshot.retired)
        self._has_new_entries = True
        if not message.has_more:
            self._note_digest(peer, head.retired)
            self._snapshots.pop(peer, None)
            if peer in self._rows_pulling:
                self._rows_held[peer] = self._rows_pulling.pop(peer)
            return [join, *self._send_pull(peer)]
        cursor = replace(message.cursor, snapshot_id=snapshot_id)

        def go_on(_: Moment) -> list[Effect]:
            if self._snapshots.get(peer) is not snapshot:
                return []
            return [self._pull(peer, cursor)]

        self._journal.defer_until_durable(go_on)
        return [join]

    def _note_digest(self, peer: NodeId, digest: int) -> None:
        """Note the digest that a peer states of its retired streams, if it does."""
        view = self._peers.get(peer)
        if view is not None and digest:
            view.retired = replace(view.retired, digest=digest)

    def _restart_snapshot(self, peer: NodeId) -> list[Effect]:
        """Restart a snapshot whose sender lost its disk and has other rows now."""
        self._snapshots.pop(peer, None)
        if peer in self._rows_pulling:
            self._rows_wanted[peer] = self._rows_pulling.pop(peer)
        return self._send_pull(peer)

    def pop_has_new_entries(self, connected: Container[NodeId]) -> bool:
        """Return True if new entries came since the last True and no answer is pending.

        Earlier, a task may seem to be waiting only because its end has not arrived yet.
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
        """Forget the pulls of a peer whose link ended."""
        if self.awaits_answer_from(peer):
            self._outbox.put(SyncProgressed())
        self._pending_pulls.discard(peer)
        self._snapshots.pop(peer, None)
        self._last_appends.pop(peer, None)
        self._rows_wanted.pop(peer, None)
        self._rows_pulling.pop(peer, None)

    def _pull_when_durable(self, peer: NodeId, number: int) -> list[Effect]:
        """Pull more once the part before the latest is durable, to bound memory.

        Thus the disk writes one part while the next one is in transit.
        """
        before = self._last_appends.get(peer, 0)
        self._last_appends[peer] = number
        if before <= self._journal.persisted:
            return self._send_pull(peer)

        def go_on(_: Moment) -> list[Effect]:
            return (
                self._send_pull(peer) if self._last_appends.get(peer) == number else []
            )

        self._pending_pulls.add(peer)  # The rest is still pending.
        self._journal.defer_until_durable(go_on, before)
        return []

    def _send_pull(self, peer: NodeId) -> list[Effect]:
        self._pending_pulls.add(peer)
        cursor = None
        if peer in self._rows_wanted:
            self._rows_pulling[peer] = self._rows_wanted.pop(peer)
            cursor = FULL_SNAPSHOT
        return [self._pull(peer, cursor)]

    def _pull(self, peer: NodeId, cursor: SnapshotCursor | None) -> Send:
        """Return a PULL with what this node holds, as the peer can understand it."""
        journal, view = self._journal, self._peers.get(peer)
        vector, included = journal.vector_items(), EMPTY_DIGEST
        if view is not None:
            vector = journal.vector_for(view.vector)
            if journal.retired.includes(view.retired.digest):
                included = view.retired.digest
        entries = journal.count_retired(stream for stream, _ in vector)
        retired = RetiredSummary(journal.retired.digest, entries)
        return Send(peer, (Pull(vector, cursor, retired, included),))
