"""Peer table: the connected peers and their latest state.

`address_book` owns the addresses of other nodes, `core.election` decides about
silent dispatchers, and `roster` assigns names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from octaskly.core.effects import Disconnect, Effect, SavePeer
from octaskly.core.events import PeerUp, SavedState
from octaskly.core.log.retired_streams import NONE_RETIRED, RetiredSummary
from octaskly.core.membership.address_book import AddressBook
from octaskly.core.membership.peer import PeerView, merge_addresses
from octaskly.core.model.component_signals import LinksClosed, MembershipChanged, Outbox
from octaskly.core.model.hlc import HLC_EPOCH_MS
from octaskly.core.model.ids import Address, Epoch, Moment, NodeId, VectorItems
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.protocol.messages import HeartbeatOk


class PeerTable:
    """The connected peers, and the address book."""

    def __init__(
        self,
        settings: Settings,
        saved: SavedState,
        timers: TimerHeap,
        outbox: Outbox,
    ) -> None:
        self._outbox = outbox
        self.peers: dict[NodeId, PeerView] = {}  #: connected
        self._closed: list[NodeId] = []  #: see `pop_closed`
        self.address_book = AddressBook(settings, saved, self.peers, timers)
        self.members_max = settings.limits.peers  #: most members of a roster
        self._alone_since_s = math.inf  #: end of the last link
        self.change_count = 0  #: grows when peers connect, leave or start to follow
        self._me = settings.node.id
        self._log_version = settings.log_version

    @property
    def alone_since_s(self) -> float:
        """The time since which this node has no peer, if it had one; else infinity."""
        return math.inf if self.peers else self._alone_since_s

    def count_change(self) -> None:
        """Count a change of the peers or of their roles."""
        self.change_count += 1
        self._outbox.put(MembershipChanged())

    def record_state(self, view: PeerView, state: NodeState) -> None:
        """Record the state of a peer."""
        if state is not view.state:
            view.state = state
            self.count_change()

    def record_heartbeat_ok(self, view: PeerView, message: HeartbeatOk) -> None:
        """Record a follower's answer to a heartbeat."""
        was_candidate, view.last_heartbeat_ok = view.is_candidate, message
        if view.is_candidate is not was_candidate:
            self.count_change()

    def set_standby(self, node: NodeId, *, is_standby: bool) -> None:
        """Record if a follower is a standby."""
        if node in self.peers:
            self.peers[node].is_standby = is_standby
        self.count_change()

    # Links

    def on_peer_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        """Add the peer of a new link; it replaces the data of an earlier link."""
        hello = event.peer_hello
        addresses = merge_addresses(
            (event.address,),
            tuple(Address(h, hello.node.peer_port) for h in hello.node.addresses),
        )
        self.peers[event.peer] = PeerView(
            info=hello.node,
            addresses=addresses,
            connected_s=now.mono_s,
            last_frame_s=now.mono_s,
            uptime_s=hello.uptime_s,
            epoch=hello.epoch,
            dispatcher=hello.dispatcher,
            vector=dict(hello.vector),
            retired=hello.retired,
            readable_log_version=hello.readable_log_version,
            log_version=hello.log_version,
            can_read_our_log=hello.readable_log_version >= self._log_version,
            wall_ahead_ms=hello.wall_ms - now.wall_ms if hello.wall_ms else 0,
        )
        self.count_change()
        self.address_book.on_peer_up(event, addresses, now)
        return [SavePeer(event.peer, hello.node.name, addresses)]

    def on_addresses_changed(
        self, peer: NodeId, hosts: tuple[str, ...], now: Moment
    ) -> list[Effect]:
        """Record the addresses that a connected peer now reports, if any."""
        view = self.peers.get(peer)
        if view is None or not hosts or hosts == view.info.addresses:
            return []
        view.set_addresses(hosts)
        self.address_book.on_addresses_changed(peer, view.addresses, now)
        return [SavePeer(peer, view.info.name, view.addresses)]

    def on_peer_down(self, peer: NodeId, now: Moment) -> PeerView | None:
        """Remove the peer of an ended link; return its view, or None."""
        view = self.peers.pop(peer, None)
        if view is not None:
            self._alone_since_s = now.mono_s
        self.count_change()
        self.address_book.on_peer_down(peer, now)
        return view

    def disconnect(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Close a link; later frames from it are ignored."""
        if self.on_peer_down(peer, now) is None:
            return []
        self._closed.append(peer)
        self._outbox.put(LinksClosed())
        return [Disconnect(peer, reason)]

    def pop_closed(self) -> list[NodeId]:
        """Return the peers whose links `disconnect` closed since the last call."""
        closed, self._closed = self._closed, []
        return closed

    def record_frame(self, peer: NodeId, now: Moment) -> bool:
        """Record the time of a frame; return True if the peer is connected."""
        view = self.peers.get(peer)
        if view is None:
            return False
        view.last_frame_s = now.mono_s
        return True

    def confirm_follower(
        self,
        peer: NodeId,
        epoch: Epoch,
        vector: VectorItems,
        retired: RetiredSummary = NONE_RETIRED,
    ) -> None:
        """Record that a connected peer follows this node's epoch."""
        view = self.peers[peer]
        if view.followed_epoch != epoch:
            view.followed_epoch = epoch
            view.has_roster = view.has_records = view.is_standby = False
            view.reattach_parts.clear()
        view.dispatcher = self._me
        view.set_extent(vector, retired)
        self.count_change()

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Return the addresses of a node, best first."""
        view = self.peers.get(node)
        return self.address_book.addresses_of(node) if view is None else view.addresses

    def earliest_wall_ms(self, now: Moment) -> int:
        """Return the earliest of the wall clocks of this node and its peers.

        A clock that was never set does not count, because it would delay everything
        that depends on age.
        """
        views = self.peers.values()
        peer_wall_ms = (now.wall_ms + view.wall_ahead_ms for view in views)
        return min((now.wall_ms, *(ms for ms in peer_wall_ms if ms >= HLC_EPOCH_MS)))

    def frame_age_s(self, node: NodeId, now: Moment) -> float | None:
        """Return the age of the last frame in seconds; None without a link."""
        view = self.peers.get(node)
        return None if view is None else now.mono_s - view.last_frame_s

    def followers(self, epoch: Epoch) -> Iterator[tuple[NodeId, PeerView]]:
        """Yield the peers that confirmed this epoch, ordered by id."""
        for peer in sorted(self.peers):
            if self.peers[peer].followed_epoch == epoch:
                yield peer, self.peers[peer]
