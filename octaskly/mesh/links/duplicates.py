"""Duplicate links and duplicate node ids: which link to a peer is kept.

If two nodes dial each other at the same time, the node with the smaller id decides. It
accepts one HELLO at a time and prefers the link that it dialled. The other node accepts
every HELLO, and a newly connected link replaces the previous one. Both ends therefore
agree, and a peer whose old link died unnoticed can reconnect at once.

If two processes use one node id because a state folder was copied, the second one is
refused and takes a new id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from octaskly.core.model.ids import NodeId
from octaskly.core.protocol.messages import Hello
from octaskly.mesh.links.link import Link
from octaskly.ports.store import Clock

ALIVE_S: Final = 1.0  #: a peer heard within this time is alive: heartbeats come faster
RACE_S: Final = 2.0  #: after a link is connected, the peer's own dial may still arrive

DUPLICATE: Final = "duplicate link"
DUPLICATE_ID: Final = "duplicate node id"
OWN_NODE: Final = "this is the node itself"
TOO_MANY_PEERS: Final = "too many peers"


class DuplicateLinks:
    """All links of this node that have not ended.

    Args:
        own_id: This node.
        peers_max: Maximum number of connected links, and also of links in handshake.
        clock: For the times at which peers were heard.
        on_duplicate: Called if another process uses this node's id and keeps it.
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
        """Return why a link is unwanted, for example a dial to a connected peer."""
        if len(self.handshaking) >= self._peers_max:
            return TOO_MANY_PEERS
        self.handshaking.add(link)
        if link.peer == self._own_id:
            return None  # The HELLO shows whether this is a copy or this process.
        if link.dialled is None:
            return None
        others = self._other_handshakes(link)
        has_other = any(other.dialled or other.has_accepted for other in others)
        return DUPLICATE if has_other or link.peer in self.links else None

    def on_hello(self, link: Link) -> str | None:
        """Return why a peer is refused, or None to accept it."""
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

    def count_handshakes(self, peer: NodeId) -> int:
        """Return the number of links to a peer that are not connected yet."""
        return sum(link.peer == peer for link in self.handshaking)

    def on_connected(self, link: Link) -> None:
        """Record a connected link; the caller has closed the previous one."""
        self.handshaking.discard(link)
        self.links[link.peer] = link
        self._connected_s[link.peer] = self._clock.now().mono_s

    def record_heard(self, peer: NodeId) -> None:
        """Record that a connected peer has sent a frame."""
        self._heard_s[peer] = self._clock.now().mono_s

    def on_ended(self, link: Link) -> bool:
        """Remove a link; return True if it was the connected link of its peer."""
        self.handshaking.discard(link)
        if self.links.get(link.peer) is not link:
            return False
        del self.links[link.peer]
        del self._connected_s[link.peer]
        self._heard_s.pop(link.peer, None)
        return True

    def _handle_own_id(self, sent: Hello, hello: Hello) -> str:
        """Return why a link to the own id is refused.

        If the peer is another process, the younger of the two gives up the id.
        """
        mine, theirs = sent.node.boot, hello.node.boot
        if mine == theirs:
            return OWN_NODE
        if (sent.uptime_s, mine) > (hello.uptime_s, theirs):
            return DUPLICATE_ID
        self._on_duplicate()
        return OWN_NODE

    def _is_id_in_use(self, link: Link) -> bool:
        """Return True if another live process uses this peer's id.

        A restart does not cause this. A process that ends closes its link. A machine
        that fails without closing it takes longer than `ALIVE_S` to restart.
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
        """Return True if this node, which has the smaller id, refuses a link."""
        assert link.peer_hello is not None
        others = self._other_handshakes(link)
        if link.dialled:
            return link.peer in self.links or any(o.has_accepted for o in others)
        if any(o.dialled for o in others):
            return True
        existing = self.links.get(link.peer)
        if existing is None or existing.dialled is None:
            return False  # The peer dialled again, so it has lost the existing link.
        assert existing.peer_hello is not None
        if existing.peer_hello.node.boot != link.peer_hello.node.boot:
            return False
        return self._clock.now().mono_s - self._connected_s[link.peer] < RACE_S
