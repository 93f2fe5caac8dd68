"""Which of several links to one peer lives.

Where two nodes dial each other at once, the one with the smaller id decides which
link lives: it accepts one HELLO at a time, and prefers the link that it dialled. The
other accepts whatever it is offered, and a link that becomes connected replaces the
one before. So both ends always agree, and a peer that lost its link without this node
noticing can come back at once.

Where two processes live with one node id, because a state folder was copied, the
second is refused, and takes a new id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from octaskly.core.model.ids import NodeId
from octaskly.core.protocol.messages import Hello
from octaskly.mesh.links.link import Link
from octaskly.ports import Clock

ALIVE_S: Final = 1.0  #: a peer heard within this time lives: heartbeats come faster
RACE_S: Final = 2.0  #: in which the other dial may arrive, once a link is connected

DUPLICATE: Final = "duplicate link"
DUPLICATE_ID: Final = "duplicate node id"
OWN_NODE: Final = "this is the node itself"
TOO_MANY_PEERS: Final = "too many peers"


class DuplicateLinks:
    """All links of this node that are not ended.

    Args:
        me: This node.
        peers_max: Most links that are connected, and most that are on the way there.
        clock: Times when peers were heard.
        on_duplicate: Told that another process lives with this node's id, and keeps it.
    """

    def __init__(
        self,
        own_id: NodeId,
        peers_max: int,
        clock: Clock,
        on_duplicate: Callable[[], None],
    ) -> None:
        self.links: dict[NodeId, Link] = {}  #: connected
        self.handshaking: set[Link] = set()  #: TLS is done, HELLO is not
        self._own_id = own_id
        self._peers_max = peers_max
        self._clock = clock
        self._on_duplicate = on_duplicate
        self._connected_s: dict[NodeId, float] = {}
        self._heard_s: dict[NodeId, float] = {}

    def on_open(self, link: Link) -> str | None:
        """Give up a dial to a peer that is reached already."""
        if len(self.handshaking) >= self._peers_max:
            return TOO_MANY_PEERS
        self.handshaking.add(link)
        if link.peer == self._own_id:
            return None  # The HELLO tells a clone from this very process.
        if link.dialled is None:
            return None
        rivals = self._other_handshakes(link)
        is_met = any(rival.dialled or rival.has_accepted for rival in rivals)
        return DUPLICATE if is_met or link.peer in self.links else None

    def on_hello(self, link: Link) -> str | None:
        """Accept a peer, or say why not."""
        assert link.peer_hello is not None
        assert link.own_hello is not None
        if link.peer == self._own_id:
            return self._handle_own_id(link.own_hello, link.peer_hello)
        if self._is_id_in_use(link):
            return DUPLICATE_ID
        if link.peer not in self.links and len(self.links) >= self._peers_max:
            return TOO_MANY_PEERS
        if self._own_id < link.peer and self._is_duplicate(link):
            return DUPLICATE
        return None

    def on_connected(self, link: Link) -> None:
        """Put a link in its place, which is empty."""
        self.handshaking.discard(link)
        self.links[link.peer] = link
        self._connected_s[link.peer] = self._clock.now().mono_s

    def record_heard(self, peer: NodeId) -> None:
        """A frame came from a connected peer."""
        self._heard_s[peer] = self._clock.now().mono_s

    def on_ended(self, link: Link) -> bool:
        """Take a link out; tell whether it was the connected one of its peer."""
        self.handshaking.discard(link)
        if self.links.get(link.peer) is not link:
            return False
        del self.links[link.peer]
        del self._connected_s[link.peer]
        self._heard_s.pop(link.peer, None)
        return True

    def _handle_own_id(self, sent: Hello, hello: Hello) -> str:
        """Tell this very process from a copy; of two, the younger gives up the id."""
        mine, theirs = sent.node.boot, hello.node.boot
        if mine == theirs:
            return OWN_NODE
        if (sent.uptime_s, mine) > (hello.uptime_s, theirs):
            return DUPLICATE_ID
        self._on_duplicate()
        return OWN_NODE

    def _is_id_in_use(self, link: Link) -> bool:
        """Return whether another process with this peer's id lives: a copied folder.

        A process that ended has closed its link before it can start again, and a
        machine that fell silent takes longer than `ALIVE_S` to come back.
        """
        existing = self.links.get(link.peer)
        if existing is None:
            return False
        assert existing.peer_hello is not None
        assert link.peer_hello is not None
        is_other = existing.peer_hello.node.boot != link.peer_hello.node.boot
        heard_s = self._heard_s.get(link.peer, float("-inf"))
        return is_other and self._clock.now().mono_s - heard_s < ALIVE_S

    def _other_handshakes(self, link: Link) -> list[Link]:
        """Return the other links to this peer that are not connected yet."""
        return [o for o in self.handshaking if o is not link and o.peer == link.peer]

    def _is_duplicate(self, link: Link) -> bool:
        """Decide as the smaller of two nodes whether a link is one too many."""
        assert link.peer_hello is not None
        rivals = self._other_handshakes(link)
        if link.dialled:
            return link.peer in self.links or any(o.has_accepted for o in rivals)
        if any(o.dialled for o in rivals):
            return True
        existing = self.links.get(link.peer)
        if existing is None or existing.dialled is None:
            return False  # The peer dialled again, so it lost what was there.
        assert existing.peer_hello is not None
        if existing.peer_hello.node.boot != link.peer_hello.node.boot:
            return False
        return self._clock.now().mono_s - self._connected_s[link.peer] < RACE_S
