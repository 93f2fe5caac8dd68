"""Asks peers for the entries that they hold and this node lacks.

One PULL at a time goes to a peer; each non-empty answer is followed by another, so the
last PULL of a series shows the peer what this node holds by then.
"""

from __future__ import annotations

from collections.abc import Container

from octaskly.core.effects import Effect, Send
from octaskly.core.journal import Journal
from octaskly.core.messages import Entries, Pull
from octaskly.core.model import Holdings, NodeId
from octaskly.core.succession import covers


class Exchange:
    """Which peers were asked for entries and have not answered."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._asked: set[NodeId] = set()
        self._has_news = False

    @property
    def is_busy(self) -> bool:
        """Whether a peer owes an answer."""
        return bool(self._asked)

    def want(self, peer: NodeId, vector: Holdings) -> list[Effect]:
        """Ask the peer for what `vector` counts beyond this node's own."""
        if covers(self._journal.vector, vector):
            return []
        return self.ask(peer)

    def ask(self, peer: NodeId) -> list[Effect]:
        """Ask the peer for more, which also shows it what this node holds."""
        return [] if peer in self._asked else self._pull(peer)

    def on_entries(self, peer: NodeId, message: Entries) -> list[Effect]:
        """Take entries in, and ask for more.

        Only an empty answer ends the series. One that brings nothing new does not:
        another peer may have brought the same meanwhile, and more may follow.
        """
        self._asked.discard(peer)
        if not message.entries:
            return []
        append = self._journal.absorb(message.entries, message.epochs)
        if append is None:
            return self._pull(peer)
        self._has_news = True
        return [append, *self._pull(peer)]

    def take_news(self, connected: Container[NodeId]) -> bool:
        """Return once whether entries came in, as soon as nobody owes an answer.

        Before that a task may seem to wait only because its end is still to come.
        """
        self._asked = {peer for peer in self._asked if peer in connected}
        if not self._has_news or self._asked:
            return False
        self._has_news = False
        return True

    def forget(self, peer: NodeId) -> None:
        """The link is gone, and the question with it."""
        self._asked.discard(peer)

    def _pull(self, peer: NodeId) -> list[Effect]:
        self._asked.add(peer)
        return [Send(peer, (Pull(self._journal.vector_items()),))]
