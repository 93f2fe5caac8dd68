"""Address book: the addresses of peers, and the schedule of dials.

Addresses come from mDNS, from the saved peers, from rosters and from `--join`; none is
verified. Machines that start together discover each other at the same time. Discovering
nodes then connect only to the same few first-ranked nodes; the dispatcher connects to
the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from octaskly.core.effects import Dial, Effect
from octaskly.core.events import DialFailed, PeerHint, PeerUp, SavedState
from octaskly.core.membership.peer import ADDRESSES_MAX, PeerView, merge_addresses
from octaskly.core.model.ids import Address, Moment, NodeId
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import Timer, TimerHeap

FORGET_PEER_S: Final = 7 * 86_400.0  #: an absent peer is dialled for this long
FORGET_ADVERT_S: Final = 60.0
"""The same limit for an unconfirmed advertisement, which any host can send.

A live node advertises again at each query; a dispatcher sends three queries in this
time.
"""


@dataclass(slots=True)
class DialTarget:
    """One node or address to dial."""

    node: NodeId | None
    addresses: tuple[Address, ...]
    absent_since_s: float  #: when it was first heard of, or lost
    next_dial_s: float
    last_heard_s: float  #: when it was last heard of
    is_confirmed: bool = field(kw_only=True)  #: by a link, a roster or `--join`

    def is_expired(self, now_s: float) -> bool:
        """Return True if the target is too old to be dialled."""
        if self.is_confirmed:
            return now_s - self.absent_since_s > FORGET_PEER_S
        return now_s - self.last_heard_s > FORGET_ADVERT_S


@dataclass(slots=True)
class PendingDial:
    """A dial in progress."""

    node: NodeId | None
    deadline_s: float  #: the dial is abandoned then
    was_discovered: bool = False  #: by discovery, not only from the saved peers
    is_dispatcher: bool = False


REDIAL_S = 2.5  #: interval of dials to an absent peer in the first ten minutes
REDIAL_MAX_S = 30.0  #: upper bound of the interval later
REDIAL_FAST_FOR_S = 600.0
PREFERRED_DISPATCHERS_MAX = (
    3  #: dials to this many discovered dispatchers delay other dials
)
DIAL_DELAY_S = 0.3  #: delay of discovered nodes, so that a dispatcher is dialled first
ROSTER_WAIT_S = 1.0  #: wait for the roster of a newly connected dispatcher
DISCOVERY_PEERS = 4  #: a discovering node connects to this many smaller ids only
DIAL_WAIT_SCALE_MAX = 7.0
"""Limit of the factor for waits in a large mesh: enough for a hundred agents on a host.

A thousand false advertisements must not cause waits of minutes.
"""


class DialScope(Enum):
    """The set of nodes that this node dials."""

    FIRST_RANKED = "few"  #: discovering: a dispatcher, then the first-ranked nodes
    EVERYBODY = "all"  #: dispatcher: all nodes
    NOBODY = "none"  #: follower: none, because its dispatcher dials


class AddressBook:
    """The nodes and addresses to dial, with the time of each next dial."""

    def __init__(
        self,
        settings: Settings,
        saved: SavedState,
        peers: Mapping[NodeId, PeerView],
        timers: TimerHeap,
    ) -> None:
        self._dial_scope = DialScope.FIRST_RANKED
        self._timers = timers
        self._peers = peers  #: connected peers, owned by `PeerTable`
        self._me = settings.node.id
        self._limits = settings.limits
        self._dial_wait_s = settings.timing.dial_wait_s
        self._targets: dict[NodeId | Address, DialTarget] = {}
        self._remembered = saved.peers
        self._pending_dials: dict[NodeId | Address, PendingDial] = {}
        self._delayed_nodes: set[NodeId] = set()  #: discovered, not dialled yet
        self._blocked: frozenset[NodeId] = frozenset()
        self._blocks_all = False
        self._delayed_until_s = 0.0
        self._preferred_count = 0

    @property
    def is_awaiting_dials(self) -> bool:
        """Return True if a dial to a dispatcher, or the first link, is pending."""
        is_dialling_discovered = any(
            dial.was_discovered for dial in self._pending_dials.values()
        )
        return self._is_dialling_dispatcher or (
            is_dialling_discovered and not self._peers
        )

    @property
    def dial_wait_s(self) -> float:
        """Seconds to wait for a dial; longer if many nodes are known."""
        return self._dial_wait_s * min(self._heard_of_ratio, DIAL_WAIT_SCALE_MAX)

    @property
    def knows_no_peer(self) -> bool:
        """Return True if no peer is connected, discovered or saved."""
        return not self._peers and not self._targets and not self._remembered

    def unanswered_nodes(self) -> list[NodeId]:
        """Return the discovered nodes with a dial in progress."""
        return [
            dial.node
            for dial in self._pending_dials.values()
            if dial.was_discovered and dial.node is not None
        ]

    def is_dialling(self, node: NodeId) -> bool:
        """Return True if a dial to the node is in progress."""
        return node in self._pending_dials

    @property
    def first_dial_deadline_s(self) -> float:
        """The earliest deadline of the dials in progress."""
        return min(
            (d.deadline_s for d in self._pending_dials.values()), default=math.inf
        )

    def heard_of_nodes(self) -> list[NodeId]:
        """Return all nodes in the address book."""
        return [hint.node for hint in self._targets.values() if hint.node is not None]

    def remembered_nodes(self) -> list[NodeId]:
        """Return the saved nodes, until they are dialled."""
        return [advert.node for advert in self._remembered if advert.node is not None]

    def dial_remembered(self, now: Moment) -> list[Effect]:
        """Dial the saved peers."""
        saved, self._remembered = self._remembered, ()
        for advert in saved:
            self._add_target(advert.node, advert.addresses, now)
        effects = self._dial_targets(self._targets.values(), now)
        self._set_timer()
        return effects

    def set_dial_scope(self, scope: DialScope) -> None:
        """Change the set of nodes that this node dials."""
        if scope is not self._dial_scope:
            self._dial_scope = scope
            self._set_timer()

    def block_nodes(self, nodes: Iterable[NodeId], *, blocks_all: bool) -> None:
        """Stop dialling revoked nodes, or all nodes if this node was revoked."""
        self._blocked, self._blocks_all = frozenset(nodes), blocks_all
        for key, hint in tuple(self._targets.items()):
            if blocks_all or hint.node in self._blocked:
                del self._targets[key]
        self._set_timer()

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Return the known addresses of a node."""
        hint = self._targets.get(node)
        return () if hint is None else hint.addresses

    def on_peers_discovered(
        self,
        hints: Iterable[PeerHint],
        now: Moment,
        needed: frozenset[NodeId] = frozenset(),
    ) -> list[Effect]:
        """Add addresses, and dial those of nodes that are not connected.

        Args:
            hints: Addresses from discovery or `--join`.
            now: Both clocks.
            needed: If not empty, dial only these nodes.
        """
        effects: list[Effect] = []
        for peer_hint in hints:
            if peer_hint.node == self._me or not peer_hint.addresses:
                continue
            is_known = peer_hint.node is None
            target = self._add_target(
                peer_hint.node, peer_hint.addresses, now, is_confirmed=is_known
            )
            if target is None or (needed and peer_hint.node not in needed):
                continue
            node = peer_hint.node
            if node is None or peer_hint.is_dispatcher or needed:
                is_dispatcher = peer_hint.is_dispatcher
                effects += self._dial_target(
                    target, now, was_discovered=True, is_dispatcher=is_dispatcher
                )
            else:
                self._delay_dial(node, target, now)
        self._set_timer()
        return effects

    def _delay_dial(self, node: NodeId, target: DialTarget, now: Moment) -> None:
        """Delay the dial to a node: a link to a dispatcher may make it unnecessary."""
        dial = self._pending_dials.get(node)
        if dial is not None:
            dial.was_discovered = True
            return
        if len(self._delayed_nodes) >= self._limits.peers or node in self._peers:
            return
        if not self._delayed_nodes:
            self._delayed_until_s = max(
                self._delayed_until_s, now.mono_s + DIAL_DELAY_S
            )
        self._delayed_nodes.add(node)
        target.next_dial_s = max(
            target.next_dial_s, now.mono_s + self._redial_delay_s(target, now)
        )
        self._timers.set_earlier(Timer.DIAL, self._delayed_until_s)

    @property
    def has_dials(self) -> bool:
        """Return True if a dial is in progress or delayed."""
        return bool(self._pending_dials or self._delayed_nodes)

    def dial_delayed(self, needed: frozenset[NodeId], now: Moment) -> list[Effect]:
        """Dial delayed nodes, except from a follower in a large mesh."""
        if self._pending_dials:
            self._pending_dials = {
                key: dial
                for key, dial in self._pending_dials.items()
                if now.mono_s < dial.deadline_s
            }
        effects = self._dial_delayed_nodes(needed, now)
        self._set_timer()
        return effects

    def _dial_delayed_nodes(
        self, needed: frozenset[NodeId], now: Moment
    ) -> list[Effect]:
        if not self._delayed_nodes or now.mono_s < self._delayed_until_s:
            return []
        self._delayed_until_s = now.mono_s + DIAL_DELAY_S
        if self._is_dialling_dispatcher:
            return []
        delayed, self._delayed_nodes = self._delayed_nodes, set()
        if self._dial_scope is DialScope.NOBODY and self._heard_of_ratio > 1.0:
            return []
        targets = [
            self._targets[n]
            for n in delayed & (needed or delayed)
            if n in self._targets
        ]
        effects = self._dial_targets(targets, now, was_discovered=True)
        if self._dial_scope is DialScope.FIRST_RANKED:
            self._delayed_nodes = (
                delayed - self._peers.keys() - self._pending_dials.keys()
            )
        return effects

    def dial_node(
        self,
        node: NodeId,
        addresses: tuple[Address, ...],
        now: Moment,
        *,
        is_dispatcher: bool = False,
    ) -> list[Effect]:
        """Dial one node at once, unless it is connected."""
        if node == self._me:
            return []
        target = self._add_target(node, addresses, now)
        if target is None:
            return []
        return self._dial_target(
            target, now, was_discovered=is_dispatcher, is_dispatcher=is_dispatcher
        )

    def dial_node_later(
        self, node: NodeId, addresses: tuple[Address, ...], now: Moment
    ) -> None:
        """Dial one node after a delay, unless it has connected by then."""
        target = self._add_target(node, addresses, now)
        if target is not None and node != self._me:
            self._delay_dial(node, target, now)

    def on_dial_failed(self, event: DialFailed, now: Moment) -> None:
        """Schedule the next dial; the interval grows with the peer's absence."""
        for key in (event.node, *event.addresses):
            if key is not None:
                self._pending_dials.pop(key, None)
            target = None if key is None else self._targets.get(key)
            if target is not None:
                target.next_dial_s = max(
                    target.next_dial_s, now.mono_s + self._redial_delay_s(target, now)
                )
        self._set_timer()

    def on_peer_up(
        self, event: PeerUp, addresses: tuple[Address, ...], now: Moment
    ) -> None:
        """Record a new link, whichever side dialled."""
        node = event.peer
        self._targets.pop(event.address, None)
        self._pending_dials.pop(event.address, None)
        self._pending_dials.pop(node, None)
        self._preferred_count = 0
        if event.peer_hello.dispatcher == node:
            self._delayed_until_s = now.mono_s + ROSTER_WAIT_S
        self._add_target(node, addresses, now)
        self._set_timer()

    def on_addresses_changed(
        self, node: NodeId, addresses: tuple[Address, ...], now: Moment
    ) -> None:
        """Record new addresses of a connected peer."""
        self._add_target(node, addresses, now)

    def on_peer_down(self, node: NodeId, now: Moment) -> None:
        """Schedule a dial to a peer whose link ended."""
        target = self._targets.get(node)
        if target is not None:
            target.absent_since_s = now.mono_s
            target.next_dial_s = now.mono_s + REDIAL_S
            if self._dial_scope is not DialScope.NOBODY:
                self._timers.set_earlier(Timer.DIAL, target.next_dial_s)

    def forget_node(self, node: NodeId) -> None:
        """Do not dial a node again that left for good, unless it is discovered."""
        self._targets.pop(node, None)
        self._delayed_nodes.discard(node)

    def redial_all(self, now: Moment) -> list[Effect]:
        """Dial all nodes that are not connected.

        In a large mesh, a node that is not dispatcher keeps to the schedule instead.
        """
        if self._dial_scope is not DialScope.EVERYBODY and self._heard_of_ratio > 1.0:
            return []
        targets = [
            hint
            for hint in self._targets.values()
            if hint.node not in self._delayed_nodes
        ]
        effects = self._dial_targets(targets, now)
        self._set_timer()
        return effects

    def on_time(self, now: Moment) -> list[Effect]:
        """Dial the targets that are due, and remove expired ones."""
        effects: list[Effect] = []
        if self._dial_scope is not DialScope.NOBODY:
            effects = self._dial_due_targets(now)
        self._set_timer()
        return effects

    def _dial_due_targets(self, now: Moment) -> list[Effect]:
        due = []
        for key, hint in tuple(self._targets.items()):
            if hint.next_dial_s > now.mono_s or hint.node in self._peers:
                continue
            if hint.is_expired(now.mono_s):
                del self._targets[key]
                continue
            hint.next_dial_s = now.mono_s + self._redial_delay_s(hint, now)
            due.append(hint)
        return self._dial_targets(due, now)

    def _set_timer(self) -> None:
        """Set the timer for the next dial, or for the deadline of one in progress.

        During a loop of dials the timer may be too early, but never too late.
        """
        due_s = self.first_dial_deadline_s
        if self._delayed_nodes:
            due_s = min(due_s, self._delayed_until_s)
        if self._dial_scope is not DialScope.NOBODY:
            hints = self._targets.values()
            due = (hint.next_dial_s for hint in hints if hint.node not in self._peers)
            due_s = min(due_s, min(due, default=math.inf))
        self._timers.set(Timer.DIAL, due_s)

    @property
    def _is_dialling_dispatcher(self) -> bool:
        return any(dial.is_dispatcher for dial in self._pending_dials.values())

    @property
    def _heard_of_ratio(self) -> float:
        """Known targets, verified or not, as a multiple of the full-mesh limit."""
        return self._limits.full_mesh_ratio(len(self._targets))

    def _dial_targets(
        self,
        targets: Iterable[DialTarget],
        now: Moment,
        *,
        was_discovered: bool = False,
    ) -> list[Effect]:
        """Dial targets; while discovering, a dispatcher first, then the smallest ids.

        Of nodes that start together, the one with the smallest id ranks first. So each
        of them connects to that node, or to a node with a link to it, without a full
        mesh.
        """
        if self._dial_scope is DialScope.FIRST_RANKED and self._is_dialling_dispatcher:
            return []
        reached = set(self._peers)
        for dial in self._pending_dials.values():
            if dial.node is not None and dial.was_discovered >= was_discovered:
                reached.add(dial.node)
        effects: list[Effect] = []
        for hint in sorted(targets, key=lambda target: target.node or ""):
            node = hint.node
            if node is not None and self._dial_scope is DialScope.FIRST_RANKED:
                before = sum(other < node for other in reached)
                if before >= DISCOVERY_PEERS:
                    break
                reached.add(node)
            effects += self._dial_target(hint, now, was_discovered=was_discovered)
        return effects

    def _dial_target(
        self,
        target: DialTarget,
        now: Moment,
        *,
        was_discovered: bool = False,
        is_dispatcher: bool = False,
    ) -> list[Effect]:
        if target.node in self._peers or not target.addresses:
            return []  # Without a dial there is no proof that the node is absent.
        target.next_dial_s = now.mono_s + self._redial_delay_s(target, now)
        key = target.node or target.addresses[0]
        until_s = now.mono_s + self.dial_wait_s
        first_s = until_s
        if self._dial_scope is not DialScope.NOBODY:
            first_s = min(until_s, target.next_dial_s)
        self._timers.set_earlier(Timer.DIAL, first_s)
        self._preferred_count += is_dispatcher and key not in self._pending_dials
        is_dispatcher &= self._preferred_count <= PREFERRED_DISPATCHERS_MAX
        dial = self._pending_dials.setdefault(key, PendingDial(target.node, until_s))
        dial.was_discovered |= was_discovered
        dial.is_dispatcher |= is_dispatcher
        return [Dial(target.node, target.addresses)]

    def _add_target(
        self,
        node: NodeId | None,
        addresses: tuple[Address, ...],
        now: Moment,
        *,
        is_confirmed: bool = True,
    ) -> DialTarget | None:
        """Return the target of an address; None if a connected peer has the address.

        Also None if the node must not be dialled.
        """
        if self._blocks_all or node in self._blocked:
            return None
        key: NodeId | Address = addresses[0] if node is None else node
        if node is None and any(key in v.addresses for v in self._peers.values()):
            return None
        target = self._targets.get(key)
        if target is None:
            kept, now_s = addresses[:ADDRESSES_MAX], now.mono_s
            target = DialTarget(
                node, kept, now_s, now_s, now_s, is_confirmed=is_confirmed
            )
            self._targets[key] = target
            if self._dial_scope is not DialScope.NOBODY:
                self._timers.set_earlier(Timer.DIAL, target.next_dial_s)
            self._drop_oldest_target()
        else:
            target.addresses = merge_addresses(addresses, target.addresses)
        target.last_heard_s = now.mono_s
        target.is_confirmed |= is_confirmed
        return target

    def _drop_oldest_target(self) -> None:
        """Remove the oldest unconnected target; unconfirmed ones first."""
        if len(self._targets) <= self._limits.peers:
            return
        absent = [key for key, h in self._targets.items() if h.node not in self._peers]
        if len(absent) > 1:
            del self._targets[
                min(absent, key=lambda key: self._targets[key].is_confirmed)
            ]

    def _redial_delay_s(self, target: DialTarget, now: Moment) -> float:
        """Return the seconds before the next dial to an absent peer."""
        absent_s = now.mono_s - target.absent_since_s
        factor = max(1.0, absent_s / REDIAL_FAST_FOR_S)
        if self._dial_scope is DialScope.FIRST_RANKED:
            factor = max(factor, self._heard_of_ratio)
        return min(REDIAL_MAX_S, REDIAL_S * factor)
