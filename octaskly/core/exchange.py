"""Asks peers for the entries that they hold and this node lacks.

One PULL at a time goes to a peer; each non-empty answer is followed by another, so the
last PULL of a series shows the peer what this node holds by then.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, Send
from octaskly.core.journal import Journal
from octaskly.core.messages import Entries, Pull
from octaskly.core.model import NodeId
from octaskly.core.succession import Holdings, covers


class Exchange:
    """Which peers were asked for entries and have not answered."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._asked: set[NodeId] = set()

    def want(self, peer: NodeId, vector: Holdings) -> list[Effect]:
        """Ask the peer for what `vector` counts beyond this node's own."""
        if peer in self._asked or covers(self._journal.vector, vector):
            return []
        return self._pull(peer)

    def on_entries(self, peer: NodeId, message: Entries) -> tuple[list[Effect], bool]:
        """Take entries in; return the effects and whether anything was new.

        An answer that brings nothing new ends the series: asking again would bring
        the same until the peer's disk has moved on.
        """
        self._asked.discard(peer)
        append = self._journal.absorb(message.entries, message.epochs)
        if append is None:
            return [], False
        return [append, *self._pull(peer)], True

    def forget(self, peer: NodeId) -> None:
        """The link is gone, and the question with it."""
        self._asked.discard(peer)

    def _pull(self, peer: NodeId) -> list[Effect]:
        self._asked.add(peer)
        return [Send(peer, (Pull(self._journal.vector_items()),))]
