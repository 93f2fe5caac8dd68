"""Asks peers for the entries that they hold and this node lacks.

One PULL at a time goes to a peer; each non-empty answer is followed by another, so the
last PULL of a series shows the peer what this node holds by then. A peer may answer
with a snapshot, part by part; one that stops half-way is begun again.
"""

from __future__ import annotations

from collections.abc import Container

from octaskly.core.effects import Effect, Send
from octaskly.core.model.ids import Holdings, Moment, NodeId, covers
from octaskly.core.protocol.messages import WHOLE, Entries, Pull, Snapshot, SnapshotHead
from octaskly.core.replication.journal import Journal


class Exchange:
    """Which peers were asked for entries and have not answered."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._asked: set[NodeId] = set()
        self._heads: dict[NodeId, tuple[int, SnapshotHead]] = {}
        """Of snapshots under way, each with the name that it was given here."""
        self._series = 0  #: the name of the last that was begun
        self._parts: dict[NodeId, int] = {}  #: append of the last entries that came
        self._has_news = False
        self._wanted: dict[NodeId, Holdings] = {}
        """Whose rows are to be asked for, and how far they go beyond its log."""
        self._coming: dict[NodeId, Holdings] = {}  #: the same, of those asked for
        self._rows: dict[NodeId, Holdings] = {}  #: and of those that came

    @property
    def is_busy(self) -> bool:
        """Whether a peer owes an answer."""
        return bool(self._asked or self._heads)

    def is_owed(self, peer: NodeId) -> bool:
        """Whether this peer does."""
        return peer in self._asked or peer in self._heads

    def lacks_rows(self, peer: NodeId, ahead: Holdings) -> bool:
        """Whether a peer has rows of which neither log nor rows here know."""
        is_known = self._rows.get(peer) == ahead
        return not is_known and not covers(self._journal.vector, ahead)

    def want(self, peer: NodeId, vector: Holdings) -> list[Effect]:
        """Ask the peer for what `vector` counts beyond this node's own."""
        if covers(self._journal.vector, vector):
            return []
        return self.ask(peer)

    def ask(self, peer: NodeId, ahead: Holdings = ()) -> list[Effect]:
        """Ask the peer for more, which also shows it what this node holds.

        What only its rows say, beyond its log, comes as a snapshot, if it is not known.
        """
        if self.lacks_rows(peer, ahead) and self._coming.get(peer) != ahead:
            self._wanted[peer] = ahead
        return [] if peer in self._asked else self._pull(peer)

    def on_entries(self, peer: NodeId, message: Entries) -> list[Effect]:
        """Take entries in, and ask for more.

        Only an empty answer ends the series. One that brings nothing new does not:
        another peer may have brought the same meanwhile, and more may follow.
        """
        self._asked.discard(peer)
        if not message.entries:
            self._parts.pop(peer, None)
            return self._pull(peer) if peer in self._wanted else []
        append = self._journal.absorb(message.entries, message.epochs)
        if append is None:
            return self._pull(peer)
        self._has_news = True
        return [append, *self._pull_on(peer, append.number)]

    def on_snapshot(self, peer: NodeId, message: Snapshot) -> list[Effect]:
        """Take rows in; ask for more once they are on disk, so that none pile up."""
        series = message.cursor.series
        if message.head is not None:
            # Its giver names it by a clock that may stand still between two of them,
            # and says again what it is asked for.
            self._series = series = max(self._series + 1, series)
            self._heads[peer] = series, message.head
        name, head = self._heads.get(peer, (None, None))
        if head is None or name != series:
            return []  # Of a snapshot that was begun again since.
        if not covers(dict(message.vector), head.vector):
            return self._begin_again(peer)
        join = self._journal.join(message, head)
        self._has_news = True
        if not message.more:
            self._heads.pop(peer, None)
            if peer in self._coming:
                self._rows[peer] = self._coming.pop(peer)
            return [join, *self._pull(peer)]
        cursor = message.cursor._replace(series=series)

        def go_on(_: Moment) -> list[Effect]:
            if self._heads.get(peer) != (series, head):
                return []
            return [Send(peer, (Pull(self._journal.vector_items(), cursor),))]

        self._journal.after(go_on)
        return [join]

    def _begin_again(self, peer: NodeId) -> list[Effect]:
        """Ask anew: the giver lost the disk that it began with, and has other rows."""
        self._heads.pop(peer, None)
        if peer in self._coming:
            self._wanted[peer] = self._coming.pop(peer)
        return self._pull(peer)

    def take_news(self, connected: Container[NodeId]) -> bool:
        """Return once whether entries came in, as soon as nobody owes an answer.

        Before that a task may seem to wait only because its end is still to come.
        """
        if self._asked or self._heads:
            for peer in {*self._asked, *self._heads}:
                if peer not in connected:
                    self.forget(peer)
        if not self._has_news or self._asked or self._heads:
            return False
        self._has_news = False
        return True

    def forget(self, peer: NodeId) -> None:
        """The link is gone, and the question with it."""
        self._asked.discard(peer)
        self._heads.pop(peer, None)
        self._parts.pop(peer, None)
        self._wanted.pop(peer, None)
        self._coming.pop(peer, None)

    def _pull_on(self, peer: NodeId, number: int) -> list[Effect]:
        """Ask for more once the part before the last is on disk, so that none pile up.

        The disk is busy with one part while the next one is on its way.
        """
        before = self._parts.get(peer, 0)
        self._parts[peer] = number
        if before <= self._journal.persisted:
            return self._pull(peer)

        def go_on(_: Moment) -> list[Effect]:
            return self._pull(peer) if self._parts.get(peer) == number else []

        self._asked.add(peer)  # It owes the rest.
        self._journal.after(go_on, before)
        return []

    def _pull(self, peer: NodeId) -> list[Effect]:
        self._asked.add(peer)
        cursor = None
        if peer in self._wanted:
            self._coming[peer] = self._wanted.pop(peer)
            cursor = WHOLE
        return [Send(peer, (Pull(self._journal.vector_items(), cursor),))]
