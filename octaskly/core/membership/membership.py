"""Which peers are connected.

Owns what peers said of themselves; where others may be found is for `hints`. It does
not judge a dispatcher's silence (`suspicion`), nor give names (`roster`).
"""

from __future__ import annotations

from collections.abc import Iterator

from octaskly.core.effects import Disconnect, Effect, Remember
from octaskly.core.events import PeerUp, Saved
from octaskly.core.membership.address_book import Hints
from octaskly.core.membership.peer import PeerView, without_repeats
from octaskly.core.model.hlc import HLC_EPOCH_MS
from octaskly.core.model.ids import Address, Epoch, Holdings, Moment, NodeId
from octaskly.core.model.settings import Settings


class Membership:
    """Connected peers, beside the places to dial."""

    def __init__(self, settings: Settings, saved: Saved) -> None:
        self.peers: dict[NodeId, PeerView] = {}  #: connected
        self.hints = Hints(settings, saved, self.peers)
        self.most = settings.limits.peers  #: of which all are told
        self.changes = 0  #: grows when peers come, go or begin to follow
        self._me = settings.node.id
        self._log_version = settings.log_version

    def changed(self) -> None:
        """Count a change of the peers, or of what they are to this node."""
        self.changes += 1

    def note_standby(self, node: NodeId, *, is_standby: bool) -> None:
        """A follower keeps copies from now on, or no more."""
        if node in self.peers:
            self.peers[node].is_standby = is_standby
        self.changed()

    # Links

    def on_peer_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        """A link is connected; what was known of an earlier one is void."""
        hello = event.hello
        addresses = without_repeats(
            (event.address,),
            tuple(Address(h, hello.node.peer_port) for h in hello.node.addresses),
        )
        self.peers[event.peer] = PeerView(
            info=hello.node,
            addresses=addresses,
            up_s=now.mono_s,
            frame_s=now.mono_s,
            uptime_s=hello.uptime_s,
            epoch=hello.epoch,
            dispatcher=hello.dispatcher,
            vector=dict(hello.vector),
            reads=hello.reads,
            log_version=hello.log_version,
            is_reader=hello.reads >= self._log_version,
            wall_ahead_ms=hello.wall_ms - now.wall_ms if hello.wall_ms else 0,
        )
        self.changed()
        self.hints.on_met(event, addresses, now)
        return [Remember(event.peer, hello.node.name, addresses)]

    def on_moved(
        self, peer: NodeId, hosts: tuple[str, ...], now: Moment
    ) -> list[Effect]:
        """A connected peer says that its machine has these addresses by now, if any."""
        view = self.peers.get(peer)
        if view is None or not hosts or hosts == view.info.addresses:
            return []
        view.move(hosts)
        self.hints.on_moved(peer, view.addresses, now)
        return [Remember(peer, view.info.name, view.addresses)]

    def on_peer_down(self, peer: NodeId, now: Moment) -> PeerView | None:
        """A link ended; return what was known, None if it was not connected."""
        view = self.peers.pop(peer, None)
        self.changed()
        self.hints.on_lost(peer, now)
        return view

    def disconnect(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Close a link; frames of it that are still under way count no more."""
        if self.on_peer_down(peer, now) is None:
            return []
        return [Disconnect(peer, reason)]

    def touch(self, peer: NodeId, now: Moment) -> bool:
        """Note a frame; return whether the peer is connected at all."""
        view = self.peers.get(peer)
        if view is None:
            return False
        view.frame_s = now.mono_s
        return True

    def confirm(
        self, peer: NodeId, epoch: Epoch, vector: Holdings, ahead: Holdings = ()
    ) -> None:
        """A connected peer follows this node's reign."""
        view = self.peers[peer]
        if view.follows != epoch:
            view.follows = epoch
            view.has_roster = view.has_records = view.is_standby = False
            view.told.clear()
        view.dispatcher = self._me
        view.vector, view.ahead = dict(vector), ahead
        self.changed()

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Return where a node may be dialled, best first."""
        view = self.peers.get(node)
        return self.hints.addresses_of(node) if view is None else view.addresses

    def earliest_ms(self, now: Moment) -> int:
        """Return the wall clock that is furthest behind, of ours and the peers'.

        One that was never set does not count: it would hold up all that goes by age.
        """
        views = self.peers.values()
        told = (now.wall_ms + view.wall_ahead_ms for view in views)
        return min((now.wall_ms, *(ms for ms in told if ms >= HLC_EPOCH_MS)))

    def age_s(self, node: NodeId, now: Moment) -> float | None:
        """Return the age of the last frame; None without a link."""
        view = self.peers.get(node)
        return None if view is None else now.mono_s - view.frame_s

    def followers(self, epoch: Epoch) -> Iterator[tuple[NodeId, PeerView]]:
        """Yield the peers that confirmed this reign, ordered by id."""
        for peer in sorted(self.peers):
            if self.peers[peer].follows == epoch:
                yield peer, self.peers[peer]
