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
from octaskly.core.events import Advert, DialFailed, PeerUp, Saved
from octaskly.core.membership.peer import ADDRESSES_MAX, PeerView, without_repeats
from octaskly.core.model.ids import Address, Moment, NodeId
from octaskly.core.model.settings import Settings

FORGET_S: Final = 7 * 86_400.0  #: for how long an absent peer is dialled
FORGET_ADVERT_S: Final = 60.0
"""For how long what was only seen: that anybody can say, and who is there says it again
each time that it is asked, which a dispatcher does three times in that time."""


@dataclass(slots=True)
class Place:
    """One place to dial."""

    node: NodeId | None
    addresses: tuple[Address, ...]
    since_s: float  #: when it was heard of first, or lost
    next_s: float
    heard_s: float  #: when it was heard of last
    is_known: bool = field(kw_only=True)  #: as a peer, or by `--join`

    def is_over(self, now_s: float) -> bool:
        """Whether it is dialled no more."""
        if self.is_known:
            return now_s - self.since_s > FORGET_S
        return now_s - self.heard_s > FORGET_ADVERT_S


@dataclass(slots=True)
class Dialled:
    """A dial that has neither met anybody nor failed."""

    node: NodeId | None
    until_s: float  #: then it is waited for no longer
    is_in_sight: bool = False  #: not only remembered
    is_dispatcher: bool = False


REDIAL_S = 2.5  #: between dials to an absent peer in its first ten minutes
REDIAL_MAX_S = 30.0  #: and after that
REDIAL_FAST_FOR_S = 600.0
FAVOURED_MAX = 3  #: dispatchers in sight for which others wait, until a peer is met
HOLD_S = 0.3  #: nodes in sight wait, so that a dispatcher is dialled before them
ROSTER_S = 1.0  #: for a dispatcher that was just met to send its roster
SOUGHT = 4  #: peers that a seeking node meets before it tries greater ids
MEETING_MAX = 7.0
"""By so much more is waited in a crowd: enough for a hundred agents of one machine.
Anybody can say that there are a thousand, and nobody is to wait minutes for them."""


class Circle(Enum):
    """Whom a node dials."""

    FEW = "few"  #: who seeks meets those that rank first, a dispatcher before them
    ALL = "all"  #: who reigns meets everybody
    NONE = "none"  #: who follows leaves it to its dispatcher


class Hints:
    """Places to dial, with the times of the next dials."""

    def __init__(
        self, settings: Settings, saved: Saved, peers: Mapping[NodeId, PeerView]
    ) -> None:
        self.circle = Circle.FEW
        self._peers = peers  #: who is connected, as `membership` has it
        self._me = settings.node.id
        self._limits = settings.limits
        self._meet_s = settings.timing.meet_s
        self._hints: dict[NodeId | Address, Place] = {}
        self._saved = saved.peers
        self._due_s: float | None = None  #: the next dial; None: to be found
        self._dialled: dict[NodeId | Address, Dialled] = {}
        self._held: set[NodeId] = set()  #: in sight, not dialled yet
        self._shunned: frozenset[NodeId] = frozenset()
        self._shuns_all = False
        self._held_until_s = 0.0
        self._favoured = 0

    @property
    def is_meeting(self) -> bool:
        """Whether a dispatcher is being dialled, or nobody is met of those in sight."""
        is_close = any(dial.is_in_sight for dial in self._dialled.values())
        return self._is_meeting_dispatcher or (is_close and not self._peers)

    @property
    def meet_s(self) -> float:
        """How long to wait for nodes that are dialled: longer in a crowd."""
        return self._meet_s * min(self._crowding_heard_of, MEETING_MAX)

    @property
    def is_alone(self) -> bool:
        """Whether no peer was ever seen or remembered."""
        return not self._peers and not self._hints and not self._saved

    def awaited(self) -> list[NodeId]:
        """Return the nodes in sight that are dialled and have not answered yet."""
        return [
            dial.node
            for dial in self._dialled.values()
            if dial.is_in_sight and dial.node is not None
        ]

    def is_dialling(self, node: NodeId) -> bool:
        """Whether a dial to a node is under way."""
        return node in self._dialled

    @property
    def awaited_until_s(self) -> float:
        """When the first of the dials under way is given up."""
        return min((d.until_s for d in self._dialled.values()), default=math.inf)

    def met(self) -> list[NodeId]:
        """Return the nodes that this process has heard of."""
        return [hint.node for hint in self._hints.values() if hint.node is not None]

    def remembered(self) -> list[NodeId]:
        """Return the nodes that were met before this process started."""
        return [advert.node for advert in self._saved if advert.node is not None]

    def begin(self, now: Moment) -> list[Effect]:
        """Dial peers that are remembered."""
        saved, self._saved = self._saved, ()
        for advert in saved:
            self._learn(advert.node, advert.addresses, now)
        return self._dial_all(self._hints.values(), now)

    def shun(self, nodes: Iterable[NodeId], *, shuns_all: bool) -> None:
        """Dial these nodes no more, or nobody: they were revoked, or this node was."""
        self._shunned, self._shuns_all = frozenset(nodes), shuns_all
        for key, hint in tuple(self._hints.items()):
            if shuns_all or hint.node in self._shunned:
                del self._hints[key]
        self._due_s = None

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Return where a node may be dialled, as far as it was heard."""
        hint = self._hints.get(node)
        return () if hint is None else hint.addresses

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
            is_known = advert.node is None
            hint = self._learn(advert.node, advert.addresses, now, is_known=is_known)
            if hint is None or (wanted and advert.node not in wanted):
                continue
            node = advert.node
            if node is None or advert.is_dispatcher or wanted:
                is_dispatcher = advert.is_dispatcher
                effects += self._dial(
                    hint, now, is_in_sight=True, is_dispatcher=is_dispatcher
                )
            else:
                self._hold(node, hint, now)
        return effects

    def _hold(self, node: NodeId, hint: Place, now: Moment) -> None:
        """Dial a node a little later: met first, a dispatcher may make it needless."""
        dialled = self._dialled.get(node)
        if dialled is not None:
            dialled.is_in_sight = True
            return
        if len(self._held) >= self._limits.peers or node in self._peers:
            return
        if not self._held:
            self._held_until_s = max(self._held_until_s, now.mono_s + HOLD_S)
        self._held.add(node)
        hint.next_s = max(hint.next_s, now.mono_s + self._pause_s(hint, now))
        self._due_s = None

    @property
    def has_dials(self) -> bool:
        """Whether a dial is under way, or waits."""
        return bool(self._dialled or self._held)

    def dial_held(self, wanted: frozenset[NodeId], now: Moment) -> list[Effect]:
        """Dial those that waited, unless a follower in a large mesh needs no link."""
        if self._dialled:
            self._dialled = {
                key: dial
                for key, dial in self._dialled.items()
                if now.mono_s < dial.until_s
            }
        if not self._held or now.mono_s < self._held_until_s:
            return []
        self._held_until_s = now.mono_s + HOLD_S
        if self._is_meeting_dispatcher:
            return []
        held, self._held = self._held, set()
        if self.circle is Circle.NONE and self._crowding_heard_of > 1.0:
            return []
        hints = [self._hints[n] for n in held & (wanted or held) if n in self._hints]
        effects = self._dial_all(hints, now, is_in_sight=True)
        if self.circle is Circle.FEW:
            self._held = held - self._peers.keys() - self._dialled.keys()
        return effects

    def dial(
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
        hint = self._learn(node, addresses, now)
        if hint is None:
            return []
        return self._dial(
            hint, now, is_in_sight=is_dispatcher, is_dispatcher=is_dispatcher
        )

    def dial_later(
        self, node: NodeId, addresses: tuple[Address, ...], now: Moment
    ) -> None:
        """Dial one node in a moment, unless it has dialled this one by then."""
        hint = self._learn(node, addresses, now)
        if hint is not None and node != self._me:
            self._hold(node, hint, now)

    def on_dial_failed(self, event: DialFailed, now: Moment) -> None:
        """Wait before the next dial, longer when the peer is away for long."""
        for key in (event.node, *event.addresses):
            if key is not None:
                self._dialled.pop(key, None)
            hint = None if key is None else self._hints.get(key)
            if hint is not None:
                hint.next_s = max(hint.next_s, now.mono_s + self._pause_s(hint, now))
                self._due_s = None

    def on_met(
        self, event: PeerUp, addresses: tuple[Address, ...], now: Moment
    ) -> None:
        """A dial has led to a peer, or the peer has dialled itself."""
        node = event.peer
        self._hints.pop(event.address, None)
        self._dialled.pop(event.address, None)
        self._dialled.pop(node, None)
        self._favoured = 0
        if event.hello.dispatcher == node:
            self._held_until_s = now.mono_s + ROSTER_S
        self._learn(node, addresses, now)
        self._due_s = None

    def on_moved(
        self, node: NodeId, addresses: tuple[Address, ...], now: Moment
    ) -> None:
        """A connected peer has other addresses than before."""
        self._learn(node, addresses, now)

    def on_lost(self, node: NodeId, now: Moment) -> None:
        """A link ended; it may come back."""
        hint = self._hints.get(node)
        if hint is not None:
            hint.since_s = now.mono_s
            hint.next_s = now.mono_s + REDIAL_S
        self._due_s = None

    def redial_all(self, now: Moment) -> list[Effect]:
        """Dial hints that lead to no connected peer; in a crowd, each in its turn."""
        if self.circle is not Circle.ALL and self._crowding_heard_of > 1.0:
            return []
        hints = [hint for hint in self._hints.values() if hint.node not in self._held]
        return self._dial_all(hints, now)

    def on_time(self, now: Moment) -> list[Effect]:
        """Dial the hints that are due, forget those that are too old."""
        if self.circle is Circle.NONE:
            return []
        if now.mono_s < self.deadline():
            return []
        self._due_s = None
        due = []
        for key, hint in tuple(self._hints.items()):
            if hint.next_s > now.mono_s or hint.node in self._peers:
                continue
            if hint.is_over(now.mono_s):
                del self._hints[key]
                continue
            hint.next_s = now.mono_s + self._pause_s(hint, now)
            due.append(hint)
        return self._dial_all(due, now)

    def deadline(self) -> float:
        """Return when the next dial is due."""
        held_s = self._held_until_s if self._held else math.inf
        if self.circle is Circle.NONE:
            return held_s
        if self._due_s is None:
            hints = self._hints.values()
            due = (hint.next_s for hint in hints if hint.node not in self._peers)
            self._due_s = min(due, default=math.inf)
        return min(self._due_s, held_s)

    @property
    def _is_meeting_dispatcher(self) -> bool:
        return any(dial.is_dispatcher for dial in self._dialled.values())

    @property
    def _crowding_heard_of(self) -> float:
        """How crowded the LAN is by what was heard, true or not."""
        return self._limits.crowding(len(self._hints))

    def _dial_all(
        self, hints: Iterable[Place], now: Moment, *, is_in_sight: bool = False
    ) -> list[Effect]:
        """Dial places; while seeking, a dispatcher first, then those first by id.

        Of nodes that start together the one with the smallest id ranks first. All meet
        it then, or meet one who has, without a link between each two of them.
        """
        if self.circle is Circle.FEW and self._is_meeting_dispatcher:
            return []
        met = set(self._peers)
        for dial in self._dialled.values():
            if dial.node is not None and dial.is_in_sight >= is_in_sight:
                met.add(dial.node)
        effects: list[Effect] = []
        for hint in sorted(hints, key=lambda hint: hint.node or ""):
            node = hint.node
            if node is not None:
                before = sum(other < node for other in met)
                if self.circle is Circle.FEW and before >= SOUGHT:
                    break
                met.add(node)
            effects += self._dial(hint, now, is_in_sight=is_in_sight)
        return effects

    def _dial(
        self,
        hint: Place,
        now: Moment,
        *,
        is_in_sight: bool = False,
        is_dispatcher: bool = False,
    ) -> list[Effect]:
        if hint.node in self._peers or not hint.addresses:
            return []  # Nowhere to dial is no proof that nobody is there.
        hint.next_s = now.mono_s + self._pause_s(hint, now)
        self._due_s = None
        key = hint.node or hint.addresses[0]
        until_s = now.mono_s + self.meet_s
        self._favoured += is_dispatcher and key not in self._dialled
        is_dispatcher &= self._favoured <= FAVOURED_MAX
        dial = self._dialled.setdefault(key, Dialled(hint.node, until_s))
        dial.is_in_sight |= is_in_sight
        dial.is_dispatcher |= is_dispatcher
        return [Dial(hint.node, hint.addresses)]

    def _learn(
        self,
        node: NodeId | None,
        addresses: tuple[Address, ...],
        now: Moment,
        *,
        is_known: bool = True,
    ) -> Place | None:
        """Return the hint for a place; None where a connected peer covers it.

        None also where nobody is to be dialled.
        """
        if self._shuns_all or node in self._shunned:
            return None
        key: NodeId | Address = addresses[0] if node is None else node
        if node is None and any(key in v.addresses for v in self._peers.values()):
            return None
        hint = self._hints.get(key)
        if hint is None:
            kept, now_s = addresses[:ADDRESSES_MAX], now.mono_s
            hint = Place(node, kept, now_s, now_s, now_s, is_known=is_known)
            self._hints[key] = hint
            self._due_s = None
            self._bound()
        else:
            hint.addresses = without_repeats(addresses, hint.addresses)
        hint.heard_s = now.mono_s
        hint.is_known |= is_known
        return hint

    def _bound(self) -> None:
        """Forget the oldest hint that leads to no connected peer, or was only seen."""
        if len(self._hints) <= self._limits.peers:
            return
        absent = [key for key, h in self._hints.items() if h.node not in self._peers]
        if len(absent) > 1:
            del self._hints[min(absent, key=lambda key: self._hints[key].is_known)]

    def _pause_s(self, hint: Place, now: Moment) -> float:
        """Return the seconds before an absent peer is dialled again."""
        absent_s = now.mono_s - hint.since_s
        factor = max(1.0, absent_s / REDIAL_FAST_FOR_S)
        if self.circle is Circle.FEW:
            factor = max(factor, self._crowding_heard_of)
        return min(REDIAL_MAX_S, REDIAL_S * factor)
