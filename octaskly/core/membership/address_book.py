"""Where peers may be found, and when each place is dialled.

Hints come from mDNS, from memory, from rosters and from `--join`; none of them is a
fact. Many machines that are switched on together see each other at once: who seeks
then meets a few, the same few as all others, and leaves the rest to who reigns.
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

FORGET_PEER_S: Final = 7 * 86_400.0  #: for how long an absent peer is dialled
FORGET_ADVERT_S: Final = 60.0
"""For how long what was only seen: that anybody can say, and who is there says it again
each time that it is asked, which a dispatcher does three times in that time."""


@dataclass(slots=True)
class DialTarget:
    """One place to dial."""

    node: NodeId | None
    addresses: tuple[Address, ...]
    absent_since_s: float  #: when it was heard of first, or lost
    next_dial_s: float
    last_heard_s: float  #: when it was heard of last
    is_confirmed: bool = field(kw_only=True)  #: as a peer, or by `--join`

    def is_expired(self, now_s: float) -> bool:
        """Whether it is dialled no more."""
        if self.is_confirmed:
            return now_s - self.absent_since_s > FORGET_PEER_S
        return now_s - self.last_heard_s > FORGET_ADVERT_S


@dataclass(slots=True)
class PendingDial:
    """A dial that has neither met anybody nor failed."""

    node: NodeId | None
    deadline_s: float  #: then it is waited for no longer
    was_discovered: bool = False  #: not only remembered
    is_dispatcher: bool = False


REDIAL_S = 2.5  #: between dials to an absent peer in its first ten minutes
REDIAL_MAX_S = 30.0  #: and after that
REDIAL_FAST_FOR_S = 600.0
PREFERRED_DISPATCHERS_MAX = (
    3  #: dispatchers in sight for which others wait, until a peer is met
)
DIAL_DELAY_S = 0.3  #: nodes in sight wait, so that a dispatcher is dialled before them
ROSTER_WAIT_S = 1.0  #: for a dispatcher that was just met to send its roster
DISCOVERY_PEERS = 4  #: peers that a seeking node meets before it tries greater ids
DIAL_WAIT_SCALE_MAX = 7.0
"""By so much more is waited in a crowd: enough for a hundred agents of one machine.
Anybody can say that there are a thousand, and nobody is to wait minutes for them."""


class DialScope(Enum):
    """Whom a node dials."""

    FIRST_RANKED = (
        "few"  #: who seeks meets those that rank first, a dispatcher before them
    )
    EVERYBODY = "all"  #: who reigns meets everybody
    NOBODY = "none"  #: who follows leaves it to its dispatcher


class AddressBook:
    """Places to dial, with the times of the next dials."""

    def __init__(
        self,
        settings: Settings,
        saved: SavedState,
        peers: Mapping[NodeId, PeerView],
        timers: TimerHeap,
    ) -> None:
        self._dial_scope = DialScope.FIRST_RANKED
        self._timers = timers
        self._peers = peers  #: who is connected, as `membership` has it
        self._me = settings.node.id
        self._limits = settings.limits
        self._dial_wait_s = settings.timing.dial_wait_s
        self._targets: dict[NodeId | Address, DialTarget] = {}
        self._remembered = saved.peers
        self._pending_dials: dict[NodeId | Address, PendingDial] = {}
        self._delayed_nodes: set[NodeId] = set()  #: in sight, not dialled yet
        self._blocked: frozenset[NodeId] = frozenset()
        self._blocks_all = False
        self._delayed_until_s = 0.0
        self._preferred_count = 0

    @property
    def is_awaiting_dials(self) -> bool:
        """Whether a dispatcher is being dialled, or nobody is met of those in sight."""
        is_dialling_discovered = any(
            dial.was_discovered for dial in self._pending_dials.values()
        )
        return self._is_dialling_dispatcher or (
            is_dialling_discovered and not self._peers
        )

    @property
    def dial_wait_s(self) -> float:
        """How long to wait for nodes that are dialled: longer in a crowd."""
        return self._dial_wait_s * min(self._heard_of_ratio, DIAL_WAIT_SCALE_MAX)

    @property
    def knows_no_peer(self) -> bool:
        """Whether no peer was ever seen or remembered."""
        return not self._peers and not self._targets and not self._remembered

    def unanswered_nodes(self) -> list[NodeId]:
        """Return the nodes in sight that are dialled and have not answered yet."""
        return [
            dial.node
            for dial in self._pending_dials.values()
            if dial.was_discovered and dial.node is not None
        ]

    def is_dialling(self, node: NodeId) -> bool:
        """Whether a dial to a node is under way."""
        return node in self._pending_dials

    @property
    def first_dial_deadline_s(self) -> float:
        """When the first of the dials under way is given up."""
        return min(
            (d.deadline_s for d in self._pending_dials.values()), default=math.inf
        )

    def heard_of_nodes(self) -> list[NodeId]:
        """Return the nodes that this process has heard of."""
        return [hint.node for hint in self._targets.values() if hint.node is not None]

    def remembered_nodes(self) -> list[NodeId]:
        """Return the nodes that were met before this process started."""
        return [advert.node for advert in self._remembered if advert.node is not None]

    def dial_remembered(self, now: Moment) -> list[Effect]:
        """Dial peers that are remembered."""
        saved, self._remembered = self._remembered, ()
        for advert in saved:
            self._add_target(advert.node, advert.addresses, now)
        effects = self._dial_targets(self._targets.values(), now)
        self._set_timer()
        return effects

    def set_dial_scope(self, scope: DialScope) -> None:
        """Dial these nodes from now on."""
        if scope is not self._dial_scope:
            self._dial_scope = scope
            self._set_timer()

    def block_nodes(self, nodes: Iterable[NodeId], *, blocks_all: bool) -> None:
        """Dial these nodes no more, or nobody: they were revoked, or this node was."""
        self._blocked, self._blocks_all = frozenset(nodes), blocks_all
        for key, hint in tuple(self._targets.items()):
            if blocks_all or hint.node in self._blocked:
                del self._targets[key]
        self._set_timer()

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Return where a node may be dialled, as far as it was heard."""
        hint = self._targets.get(node)
        return () if hint is None else hint.addresses

    def on_peers_discovered(
        self,
        hints: Iterable[PeerHint],
        now: Moment,
        needed: frozenset[NodeId] = frozenset(),
    ) -> list[Effect]:
        """Keep hints and dial those that lead to no connected peer.

        Args:
            hints: As discovery, memory or `--join` brought them.
            now: Both clocks.
            needed: When not empty, only these nodes are worth a link.
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
        """Dial a node a little later: met first, a dispatcher may make it needless."""
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
        """Whether a dial is under way, or waits."""
        return bool(self._pending_dials or self._delayed_nodes)

    def dial_delayed(self, needed: frozenset[NodeId], now: Moment) -> list[Effect]:
        """Dial those that waited, unless a follower in a large mesh needs no link."""
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
        """Dial one node in a moment, unless it has dialled this one by then."""
        target = self._add_target(node, addresses, now)
        if target is not None and node != self._me:
            self._delay_dial(node, target, now)

    def on_dial_failed(self, event: DialFailed, now: Moment) -> None:
        """Wait before the next dial, longer when the peer is away for long."""
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
        """A dial has led to a peer, or the peer has dialled itself."""
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
        """A connected peer has other addresses than before."""
        self._add_target(node, addresses, now)

    def on_peer_down(self, node: NodeId, now: Moment) -> None:
        """A link ended; it may come back."""
        target = self._targets.get(node)
        if target is not None:
            target.absent_since_s = now.mono_s
            target.next_dial_s = now.mono_s + REDIAL_S
            if self._dial_scope is not DialScope.NOBODY:
                self._timers.set_earlier(Timer.DIAL, target.next_dial_s)

    def redial_all(self, now: Moment) -> list[Effect]:
        """Dial hints that lead to no connected peer; in a crowd, each in its turn."""
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
        """Dial the hints that are due, forget those that are too old."""
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
        """Set the timer for the next dial, or for the end of one under way.

        Where many nodes are dialled in a loop it may be too early, never too late.
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
        """How crowded the LAN is by what was heard, true or not."""
        return self._limits.full_mesh_ratio(len(self._targets))

    def _dial_targets(
        self,
        targets: Iterable[DialTarget],
        now: Moment,
        *,
        was_discovered: bool = False,
    ) -> list[Effect]:
        """Dial places; while seeking, a dispatcher first, then those first by id.

        Of nodes that start together the one with the smallest id ranks first. All meet
        it then, or meet one who has, without a link between each two of them.
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
            if node is not None:
                before = sum(other < node for other in reached)
                if (
                    self._dial_scope is DialScope.FIRST_RANKED
                    and before >= DISCOVERY_PEERS
                ):
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
            return []  # Nowhere to dial is no proof that nobody is there.
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
        """Return the hint for a place; None where a connected peer covers it.

        None also where nobody is to be dialled.
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
        """Forget the oldest hint that leads to no connected peer, or was only seen."""
        if len(self._targets) <= self._limits.peers:
            return
        absent = [key for key, h in self._targets.items() if h.node not in self._peers]
        if len(absent) > 1:
            del self._targets[
                min(absent, key=lambda key: self._targets[key].is_confirmed)
            ]

    def _redial_delay_s(self, target: DialTarget, now: Moment) -> float:
        """Return the seconds before an absent peer is dialled again."""
        absent_s = now.mono_s - target.absent_since_s
        factor = max(1.0, absent_s / REDIAL_FAST_FOR_S)
        if self._dial_scope is DialScope.FIRST_RANKED:
            factor = max(factor, self._heard_of_ratio)
        return min(REDIAL_MAX_S, REDIAL_S * factor)
