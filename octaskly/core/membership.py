"""Which peers are connected, and which should be dialled when.

Owns what peers said of themselves and the hints where others may be found. It does
not judge a dispatcher's silence (`suspicion`), nor give names (`roster`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from octaskly.core.effects import Dial, Disconnect, Effect, Remember
from octaskly.core.events import Advert, DialFailed, PeerUp, Saved
from octaskly.core.messages import HeartbeatOk, Reattach
from octaskly.core.model import (
    NO_EPOCH,
    Address,
    Epoch,
    Holdings,
    Moment,
    NodeId,
    NodeInfo,
    NodeState,
    Settings,
    StreamId,
)
from octaskly.core.succession import Standing, log_size, standing

REDIAL_S = 2.5  #: between dials to an absent peer in its first ten minutes
REDIAL_MAX_S = 30.0  #: and after that
REDIAL_FAST_FOR_S = 600.0
FORGET_S = 7 * 86_400.0  #: an absent peer is dialled so long
ADDRESSES_MAX = 16  #: of one peer
HOLD_S = 0.3  #: a dispatcher that is in sight, too, is dialled first
ROSTER_S = 1.0  #: and once it is met, its roster may come first


@dataclass(slots=True)
class PeerView:
    """What this node knows of one connected peer."""

    info: NodeInfo
    addresses: tuple[Address, ...]  #: best first
    up_s: float  #: when the link came up
    frame_s: float  #: when the last frame came
    uptime_s: float  #: of the peer, when the link came up
    epoch: Epoch  #: highest that it named
    dispatcher: NodeId | None  #: whom it said to follow
    vector: dict[StreamId, int]
    wall_ahead_ms: int = 0  #: its wall clock against ours, when the link came up
    health: HeartbeatOk | None = None
    state: NodeState = NodeState.READY  #: as it said last
    follows: Epoch | None = None  #: the reign of this node that it confirmed
    has_roster: bool = False  #: it was sent the roster of that reign
    is_standby: bool = False  #: it keeps copies of this node's reign
    is_worker: bool = False  #: it has told what it runs, so it can be given work
    streamed: tuple[Epoch, int] = (NO_EPOCH, 0)  #: the last number that it streamed
    told: list[Reattach] = field(default_factory=list)  #: parts, until the last

    @property
    def is_candidate(self) -> bool:
        """Whether it may keep copies and succeed."""
        is_failing = self.health is not None and self.health.is_disk_failing
        return self.info.electable and not is_failing

    def standing(self, now: Moment) -> Standing:
        """Return the peer's rank as a candidate."""
        uptime_s = self.uptime_s + now.mono_s - self.up_s
        return standing(self.info, log_size(self.vector.items()), uptime_s)

    def joined(self, part: Reattach) -> Reattach:
        """Return the parts of what it runs as one message, once they are complete."""
        if part.more:
            self.told.append(part)
            return part
        parts, self.told = [*self.told, part], []
        return replace(part, running=tuple(chain(*(each.running for each in parts))))


@dataclass(slots=True)
class _Hint:
    """One place to dial; `since_s` is when it was heard of or lost."""

    node: NodeId | None
    addresses: tuple[Address, ...]
    since_s: float
    next_s: float


class Membership:
    """Connected peers and hints, with the times of the next dials."""

    def __init__(self, settings: Settings, saved: Saved) -> None:
        self.peers: dict[NodeId, PeerView] = {}
        self._me = settings.node.id
        self._limits = settings.limits
        self._hints: dict[NodeId | Address, _Hint] = {}
        self._saved = saved.peers
        self.is_redialling = True  #: attached nodes leave it to the dispatcher
        self.changes = 0  #: grows when peers come, go or begin to follow
        self._due_s: float | None = None  #: the next dial; None: to be found
        self._awaited: dict[NodeId | Address, bool] = {}
        """In sight and dialled, without an answer; whether it is dispatcher."""
        self._held: set[NodeId] = set()  #: in sight, not dialled yet
        self._held_until_s = 0.0

    @property
    def is_meeting(self) -> bool:
        """Whether nobody is connected yet, but a node in sight is being dialled."""
        return bool(self._awaited) and not self.peers

    @property
    def is_alone(self) -> bool:
        """Whether no peer was ever seen or remembered."""
        return not self.peers and not self._hints and not self._saved

    def met(self) -> list[NodeId]:
        """Return the nodes that this process has heard of."""
        return [hint.node for hint in self._hints.values() if hint.node is not None]

    def remembered(self) -> list[NodeId]:
        """Return the nodes that were met before this process started."""
        return [advert.node for advert in self._saved if advert.node is not None]

    def begin(self, now: Moment) -> list[Effect]:
        """Dial every peer that is remembered."""
        saved, self._saved = self._saved, ()
        effects: list[Effect] = []
        for advert in saved:
            hint = self._learn(advert.node, advert.addresses, now)
            if hint is not None:
                effects += self._dial(hint, now)
        return effects

    def changed(self) -> None:
        """Count a change of the peers, or of what they are to this node."""
        self.changes += 1
        self._due_s = None

    def note_standby(self, node: NodeId, *, is_standby: bool) -> None:
        """A follower keeps copies from now on, or no more."""
        if node in self.peers:
            self.peers[node].is_standby = is_standby
        self.changed()

    # Links

    def on_peer_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        """A link is connected; what was known of an earlier one is void."""
        hello = event.hello
        addresses = _joined(
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
            wall_ahead_ms=hello.wall_ms - now.wall_ms if hello.wall_ms else 0,
        )
        self.changed()
        self._hints.pop(event.address, None)
        self._awaited.clear()
        if hello.dispatcher == event.peer:
            self._held_until_s = now.mono_s + ROSTER_S
        self._learn(event.peer, addresses, now)
        return [Remember(event.peer, hello.node.name, addresses)]

    def on_peer_down(self, peer: NodeId, now: Moment) -> PeerView | None:
        """A link ended; return what was known, None if it was not connected."""
        view = self.peers.pop(peer, None)
        self.changed()
        hint = self._hints.get(peer)
        if hint is not None:
            hint.since_s = now.mono_s
            hint.next_s = now.mono_s + REDIAL_S
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

    def confirm(self, peer: NodeId, epoch: Epoch, vector: Holdings) -> None:
        """A connected peer follows this node's reign."""
        view = self.peers[peer]
        if view.follows != epoch:
            view.follows = epoch
            view.has_roster = view.is_standby = False
            view.told.clear()
        view.dispatcher = self._me
        view.vector = dict(vector)
        self.changed()

    def earliest_ms(self, now: Moment) -> int:
        """Return the wall clock that is furthest behind, of ours and the peers'."""
        ahead = (view.wall_ahead_ms for view in self.peers.values())
        return now.wall_ms + min((0, *ahead))

    def age_s(self, node: NodeId, now: Moment) -> float | None:
        """Return the age of the last frame; None without a link."""
        view = self.peers.get(node)
        return None if view is None else now.mono_s - view.frame_s

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Return where a node may be dialled, best first."""
        view = self.peers.get(node)
        if view is not None:
            return view.addresses
        hint = self._hints.get(node)
        return () if hint is None else hint.addresses

    def followers(self, epoch: Epoch) -> Iterator[tuple[NodeId, PeerView]]:
        """Yield the peers that confirmed this reign, ordered by id."""
        for peer in sorted(self.peers):
            if self.peers[peer].follows == epoch:
                yield peer, self.peers[peer]

    # Hints

    def on_seen(
        self,
        adverts: Iterable[Advert],
        now: Moment,
        wanted: frozenset[NodeId] = frozenset(),
    ) -> list[Effect]:
        """Keep hints and dial those that lead to no connected peer.

        Args:
            adverts: As discovery, memory or `--join` brought them.
            now: Both clocks.
            wanted: When not empty, only these nodes are worth a link.
        """
        effects: list[Effect] = []
        for advert in adverts:
            if advert.node == self._me or not advert.addresses:
                continue
            hint = self._learn(advert.node, advert.addresses, now)
            if hint is None or (wanted and advert.node not in wanted):
                continue
            node = advert.node
            if node is not None and not advert.is_dispatcher and not wanted:
                self._hold(node, hint, now)
                continue
            dials = self._dial(hint, now)
            if dials:
                self._awaited[node or advert.addresses[0]] = advert.is_dispatcher
            effects += dials
        return effects

    def _hold(self, node: NodeId, hint: _Hint, now: Moment) -> None:
        """Dial a node a little later: met first, a dispatcher may make it needless."""
        is_full = len(self._held) >= self._limits.peers
        if is_full or node in self.peers or node in self._awaited:
            return
        if not self._held:
            self._held_until_s = max(self._held_until_s, now.mono_s + HOLD_S)
        self._held.add(node)
        hint.next_s = max(hint.next_s, now.mono_s + _pause_s(hint, now))
        self._due_s = None

    def dial_held(
        self, wanted: frozenset[NodeId], now: Moment, *, is_following: bool
    ) -> list[Effect]:
        """Dial those that waited, unless a follower in a large mesh needs no link."""
        if not self._held or now.mono_s < self._held_until_s:
            return []
        if any(self._awaited.values()):
            self._held_until_s = now.mono_s + HOLD_S
            return []
        held, self._held = self._held, set()
        if is_following and len(held) > self._limits.full_mesh_peers:
            return []
        effects: list[Effect] = []
        for node in sorted(held & wanted if wanted else held):
            hint = self._hints.get(node)
            dials = [] if hint is None else self._dial(hint, now)
            if dials:
                self._awaited[node] = False
            effects += dials
        return effects

    def dial(
        self, node: NodeId, addresses: tuple[Address, ...], now: Moment
    ) -> list[Effect]:
        """Dial one node at once, unless it is connected."""
        if node == self._me:
            return []
        hint = self._learn(node, addresses, now)
        return [] if hint is None else self._dial(hint, now)

    def on_dial_failed(self, event: DialFailed, now: Moment) -> None:
        """Wait before the next dial, longer when the peer is away for long."""
        for key in (event.node, *event.addresses):
            if key is not None:
                self._awaited.pop(key, None)
            hint = None if key is None else self._hints.get(key)
            if hint is not None:
                hint.next_s = max(hint.next_s, now.mono_s + _pause_s(hint, now))
                self._due_s = None

    def redial_all(self, now: Moment) -> list[Effect]:
        """Dial every hint that leads to no connected peer."""
        effects: list[Effect] = []
        for hint in tuple(self._hints.values()):
            if hint.node not in self._held:
                effects += self._dial(hint, now)
        return effects

    def on_time(self, now: Moment) -> list[Effect]:
        """Dial the hints that are due, forget those that are too old."""
        due_s = self.deadline()
        if not self.is_redialling or due_s is None or now.mono_s < due_s:
            return []
        effects: list[Effect] = []
        for key, hint in tuple(self._hints.items()):
            if hint.next_s > now.mono_s or hint.node in self.peers:
                continue
            if now.mono_s - hint.since_s > FORGET_S:
                del self._hints[key]
                self._due_s = None
                continue
            effects += self._dial(hint, now)
        return effects

    def deadline(self) -> float | None:
        """Return when the next dial is due."""
        held_s = self._held_until_s if self._held else None
        if not self.is_redialling:
            return held_s
        if self._due_s is None:
            hints = self._hints.values()
            due = (hint.next_s for hint in hints if hint.node not in self.peers)
            self._due_s = min(due, default=math.inf)
        return self._due_s if held_s is None else min(self._due_s, held_s)

    def _dial(self, hint: _Hint, now: Moment) -> list[Effect]:
        if hint.node is not None and hint.node in self.peers:
            return []
        hint.next_s = now.mono_s + _pause_s(hint, now)
        self._due_s = None
        return [Dial(hint.node, hint.addresses)]

    def _learn(
        self, node: NodeId | None, addresses: tuple[Address, ...], now: Moment
    ) -> _Hint | None:
        """Return the hint for a place; None where a connected peer covers it."""
        key: NodeId | Address = addresses[0] if node is None else node
        if node is None and any(key in v.addresses for v in self.peers.values()):
            return None
        hint = self._hints.get(key)
        if hint is None:
            hint = _Hint(node, addresses[:ADDRESSES_MAX], now.mono_s, now.mono_s)
            self._hints[key] = hint
            self._due_s = None
            self._bound()
        else:
            hint.addresses = _joined(addresses, hint.addresses)
        return hint

    def _bound(self) -> None:
        """Forget the oldest hint that leads to no connected peer."""
        if len(self._hints) <= self._limits.peers:
            return
        absent = [key for key, h in self._hints.items() if h.node not in self.peers]
        if len(absent) > 1:
            del self._hints[absent[0]]


def _pause_s(hint: _Hint, now: Moment) -> float:
    """Return the seconds before an absent peer is dialled again."""
    absent_s = now.mono_s - hint.since_s
    if absent_s < REDIAL_FAST_FOR_S:
        return REDIAL_S
    return min(REDIAL_MAX_S, REDIAL_S * absent_s / REDIAL_FAST_FOR_S)


def _joined(
    first: tuple[Address, ...], then: tuple[Address, ...]
) -> tuple[Address, ...]:
    return tuple(dict.fromkeys(first + then))[:ADDRESSES_MAX]
