"""Which versions of the log the nodes read, and what follows from it.

A program reads the logs of all programs before it, and writes its own version. So an
older program cannot keep copies for a newer one, and must not reign where a newer one
is connected: it would know only a part of the tasks.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, Note
from octaskly.core.journal import Journal
from octaskly.core.membership import Membership
from octaskly.core.messages import Hello
from octaskly.core.model import Moment, NodeId, Settings
from octaskly.core.peers import PeerView
from octaskly.core.succession import Standing

UNREADABLE = "a dispatcher cannot read this log"  #: why a newer program claims


class Versions:
    """What this node can read, what it holds, and what it has heard of."""

    def __init__(
        self, settings: Settings, journal: Journal, members: Membership
    ) -> None:
        self._reads = settings.log_version
        self._journal = journal
        self._members = members
        self._newest = journal.version  #: of the logs of the mesh, as far as heard

    @property
    def is_outdated(self) -> bool:
        """Whether a peer could reign that reads what this node cannot."""
        return self._newest > self._reads and any(
            view.reads >= self._newest and view.info.electable
            for view in self._members.peers.values()
        )

    def on_up(self, peer: NodeId, hello: Hello) -> list[Effect]:
        """Take in what a peer says of its program and its log."""
        self._newest = max(self._newest, hello.log_version)
        effects = self.hold(hello.log_version)
        if hello.reads < self._journal.version:
            hint = "update the program there: until then it keeps no copies"
            fields = (("peer", peer), ("version", hello.node.version), ("hint", hint))
            effects.append(Note("warning", "program of a peer is older", fields))
        return effects

    def on_followed(self, peer: NodeId) -> list[Effect]:
        """Expect the log to be of the version that its dispatcher writes."""
        view = self._members.peers.get(peer)
        if view is None:
            return []
        self._newest = max(self._newest, view.reads)
        return self.hold(view.reads)

    def on_claim(self) -> list[Effect]:
        """Write in the version of this program from now on."""
        return self.hold(self._reads)

    def hold(self, version: int) -> list[Effect]:
        """Entries of a version may come here, if this program can read them."""
        if not self._journal.version < version <= self._reads:
            return []
        self._newest = max(self._newest, version)
        return [self._journal.save(log_version=version)]

    def reads_ours(self, peer: NodeId) -> bool:
        """Whether a peer can read the log of this node, as far as is known."""
        view = self._members.peers.get(peer)
        return view is None or view.reads >= self._journal.version

    def is_readable(self, peer: NodeId) -> bool:
        """Whether this node can read the log of a connected peer."""
        return self._members.peers[peer].log_version <= self._reads

    def rank(self, view: PeerView, now: Moment) -> Standing:
        """Return the rank of a peer: last, if it cannot read the log of this node."""
        rank = view.standing(now)
        return (True, *rank[1:]) if view.reads < self._journal.version else rank
