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
        if covers(self._journal.vector, vector):
            return []
        return self.ask(peer)

    def ask(self, peer: NodeId) -> list[Effect]:
        """Ask the peer for more, which also shows it what this node holds."""
        return [] if peer in self._asked else self._pull(peer)

    def on_entries(self, peer: NodeId, message: Entries) -> tuple[list[Effect], bool]:
        """Take entries in; return the effects and whether anything was new.

        Only an empty answer ends the series. One that brings nothing new does not:
        another peer may have brought the same meanwhile, and more may follow.
        """
        self._asked.discard(peer)
        if not message.entries:
            return [], False
        append = self._journal.absorb(message.entries, message.epochs)
        effects: list[Effect] = [] if append is None else [append]
        return effects + self._pull(peer), append is not None

    def forget(self, peer: NodeId) -> None:
        """The link is gone, and the question with it."""
        self._asked.discard(peer)

    def _pull(self, peer: NodeId) -> list[Effect]:
        self._asked.add(peer)
        return [Send(peer, (Pull(self._journal.vector_items()),))]
