"""Anti-entropy: pulls from peers the entries that this node lacks.

Each peer gets one PULL at a time. Another PULL follows each non-empty answer, so the
last PULL of a series shows the peer everything that this node holds. A peer may answer
with a snapshot in parts. An interrupted snapshot starts again. A complete one is merged
even if the peer is lost; see `journal` for what waits for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace

from octaskly.core.effects import Effect, Send
from octaskly.core.log.retired_streams import (
    EMPTY_DIGEST,
    NONE_RETIRED,
    RetiredSummary,
)
from octaskly.core.membership.peer import PeerView
from octaskly.core.model.component_signals import Outbox, SyncProgressed
from octaskly.core.model.ids import Moment, NodeId, VectorItems
from octaskly.core.protocol.messages import (
    Entries,
    Pull,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.core.replication.journal import Journal, WhenDurable


@dataclass
class _ReceivedSnapshot:
    """A snapshot that is arriving, or that waits for its merge."""

    number: int  #: greater than that of any earlier snapshot
    peer: NodeId
    head: SnapshotHead
    cursor: SnapshotCursor | None = None  #: end of the last part that arrived
    retired: VectorItems = ()
    merge_callbacks: deque[WhenDurable] = field(default_factory=deque)
    """For each part that is not merged yet: what to do once it is."""
    is_pull_due: bool = True  #: pull from the peer again after the merge


class AntiEntropy:
    """The pending pulls and snapshots of each peer."""

    def __init__(
        self, journal: Journal, outbox: Outbox, peers: Mapping[NodeId, PeerView]
    ) -> None:
        self._outbox = outbox
        self._journal = journal
        self._peers = peers
        self._pending_pulls: set[NodeId] = set()
        self._snapshots: dict[NodeId, _ReceivedSnapshot] = {}
        """Incomplete snapshots."""
        self._merges: deque[_ReceivedSnapshot] = deque()
        """Complete snapshots; the first one is being merged."""
        self._last_snapshot = 0  #: number of the latest snapshot
        self._last_appends: dict[
            NodeId, int
        ] = {}  #: number of the append with the latest entries
        self._has_new_entries = False
        self.progress = 0
        """Number of times since the start that a part of another log was asked for,
        arrived, or was merged.
        """

    @property
    def is_pulling(self) -> bool:
        """Return True if an answer of any peer is pending, or not merged yet."""
        return bool(self._pending_pulls or self._snapshots or self._merges)

    def awaits_answer_from(self, peer: NodeId) -> bool:
        """Return True if an answer of this peer is pending."""
        return peer in self._pending_pulls or peer in self._snapshots

    def pull_missing(
        self, peer: NodeId, vector: VectorItems, retired: RetiredSummary = NONE_RETIRED
    ) -> list[Effect]:
        """Pull from the peer if its log has entries that this node lacks."""
        if self._journal.holds_log(vector, retired):
            return []
        return self.pull_from(peer)

    def pull_from(self, peer: NodeId) -> list[Effect]:
        """Send a PULL, which also shows the peer this node's vector.

        Until the peer's snapshot is merged, that vector would ask for it again.
        """
        merges = [merge for merge in self._merges if merge.peer == peer]
        for merge in merges:
            merge.is_pull_due = True
        return [] if merges or peer in self._pending_pulls else self._send_pull(peer)

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
            return []
        append = self._journal.append_remote(message.entries, message.epochs)
        if append is None:
            return self._send_pull(peer)
        self._has_new_entries = True
        self.progress += 1
        return [append, *self._pull_when_durable(peer, append.number)]

    def on_snapshot(
        self, peer: NodeId, part: Snapshot, when_merged: WhenDurable
    ) -> list[Effect]:
        """Stage a part; pull the next one once it is durable, to bound memory.

        After the last one, merge all of them, and call `when_merged` of each.
        """
        self._outbox.put(SyncProgressed())
        if part.head is not None:
            self._last_snapshot += 1
            self._snapshots[peer] = _ReceivedSnapshot(
                self._last_snapshot, peer, part.head
            )
        snapshot = self._snapshots.get(peer)
        if snapshot is None or part.after != snapshot.cursor:
            return []  # Part of a snapshot that has been restarted since.
        self.progress += 1
        snapshot.cursor = part.cursor
        snapshot.retired += part.retired
        snapshot.merge_callbacks.append(when_merged)
        stage = self._journal.stage_rows(peer, snapshot.number, snapshot.head, part)
        if part.has_more:
            pull = partial(self._pull_next_part, snapshot, part.cursor)
            self._journal.defer_until_durable(pull)
            return [stage]
        del self._snapshots[peer]
        self._merges.append(snapshot)
        if len(self._merges) == 1:
            self._journal.defer_until_durable(self._merge_next)
        return [stage]

    def _pull_next_part(
        self, snapshot: _ReceivedSnapshot, cursor: SnapshotCursor, _: Moment
    ) -> list[Effect]:
        is_current = self._snapshots.get(snapshot.peer) is snapshot
        return [self._pull(snapshot.peer, cursor)] if is_current else []

    def _merge_next(self, _: Moment) -> list[Effect]:
        """Merge one part, and the next one once it is durable: other writes fit in."""
        snapshot, journal = self._merges[0], self._journal
        self.progress += 1
        when_merged = snapshot.merge_callbacks.popleft()
        is_last = not snapshot.merge_callbacks
        merge = journal.merge_rows(
            snapshot.number, snapshot.head, snapshot.retired, is_last=is_last
        )
        journal.defer_until_durable(when_merged)
        pulls: list[Effect] = []
        if is_last:
            self._merges.popleft()
            self._has_new_entries = True
            self._outbox.put(SyncProgressed())
            self._note_digest(snapshot.peer, snapshot.head.retired)
            if snapshot.is_pull_due:
                pulls = self._send_pull(snapshot.peer)
        if self._merges:
            journal.defer_until_durable(self._merge_next)
        return [merge, *pulls]

    def _note_digest(self, peer: NodeId, digest: int) -> None:
        """Note the digest that a peer states of its retired streams, if it does."""
        view = self._peers.get(peer)
        if view is not None and digest:
            view.retired = replace(view.retired, digest=digest)

    def pop_has_new_entries(self, connected: Container[NodeId]) -> bool:
        """Return True if new entries came since the last True and no answer is pending.

        Earlier, a task may seem to be waiting only because its end has not arrived yet.
        """
        if self._pending_pulls or self._snapshots:
            for peer in {*self._pending_pulls, *self._snapshots}:
                if peer not in connected:
                    self.drop_peer(peer)
        if not self._has_new_entries or self.is_pulling:
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
        for merge in self._merges:
            if merge.peer == peer:
                merge.is_pull_due = False

    def _pull_when_durable(self, peer: NodeId, number: int) -> list[Effect]:
        """Pull more once the part before the latest is durable, to bound memory.

        Thus the disk writes one part while the next one is in transit.
        """
        before = self._last_appends.get(peer, 0)
        self._last_appends[peer] = number
        if before <= self._journal.persisted:
            return self._send_pull(peer)
        self._pending_pulls.add(peer)  # The rest is still pending.
        self._journal.defer_until_durable(
            partial(self._pull_next_entries, peer, number), before
        )
        return []

    def _pull_next_entries(self, peer: NodeId, number: int, _: Moment) -> list[Effect]:
        is_current = self._last_appends.get(peer) == number
        return self._send_pull(peer) if is_current else []

    def _send_pull(self, peer: NodeId) -> list[Effect]:
        self._pending_pulls.add(peer)
        return [self._pull(peer, None)]

    def _pull(self, peer: NodeId, cursor: SnapshotCursor | None) -> Send:
        """Return a PULL with what this node holds, as the peer can understand it."""
        self.progress += 1
        journal, view = self._journal, self._peers.get(peer)
        vector, included = journal.vector_items(), EMPTY_DIGEST
        if view is not None:
            vector = journal.vector_for(view.vector)
            if journal.retired.includes(view.retired.digest):
                included = view.retired.digest
        entries = journal.count_retired(stream for stream, _ in vector)
        retired = RetiredSummary(journal.retired.digest, entries)
        return Send(peer, (Pull(vector, cursor, retired, included),))
