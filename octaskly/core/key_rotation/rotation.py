"""Renews the mesh secret: who knows which generation, and when the next step is due.

Every node tells its peers which generations it has, and gives its keyring to those that
lack some of it; so a rotation reaches all nodes whoever began it, also through one that
was away. The dispatcher alone takes the steps: the newer generation comes into force
when all nodes know it or have had the time, and the older one goes long after. How far
that is stands in the keyring, so any other dispatcher goes on with it. While a node is
waited for, it writes down which others have confirmed, as those may sleep when it dies.
"""

from __future__ import annotations

from collections.abc import Iterable

from octaskly.core.effects import Answer, Effect, Note, Send
from octaskly.core.events import RecordDraft
from octaskly.core.log.records import KEYS_HELD, Book
from octaskly.core.membership.membership import Membership
from octaskly.core.membership.roster import Registry
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.keys import (
    OUTDATED,
    REVOKED,
    ChangeKeys,
    GiveKeys,
    Keys,
    KeysChanged,
    KeysGiven,
    KeysHeld,
    KeysMessage,
    KeyStep,
    NotRotated,
    Phase,
    RotateAsked,
    Rotating,
    TakeKeys,
)
from octaskly.core.model.settings import URGENT_S, Settings

RENEWING = "until the old secret is over none but members are let in"
PATIENCE_S = 15.0  #: a step is asked for again after so long
GRACE_S = 15.0  #: links of a generation that is over end after so long
WAITING_MAX = 64  #: requests that wait for one rotation


class Rotation:
    """The generations of this node, and of those it knows."""

    def __init__(
        self,
        settings: Settings,
        members: Membership,
        registry: Registry,
        book: Book,
        keys: Keys,
    ) -> None:
        self.keys = keys
        self._me = settings.node.id
        self._timing = settings.timing
        self._held_max = settings.limits.peers
        self._members = members
        self._registry = registry
        self._book = book  #: which nodes are known to have which generation
        self._held: dict[NodeId, Keys] = {}  #: as peers said last
        self._told: dict[NodeId, Keys] = {}  #: what connected peers know of this node
        self._tickets: list[int] = []
        self._asked_s: float | None = None  #: when the shell was asked for a step
        self._changed_s = 0.0
        self._age: tuple[float, float] | None = None
        """How old the phase was when this process first asked for that, and when."""
        self._has_news = True  #: a peer may have confirmed since that was written
        self._entitled: frozenset[NodeId] | None = None
        """Who gets the new secret while others can still show the old one."""

    @property
    def is_revoked(self) -> bool:
        """Whether this node itself has to go."""
        return self._me in self.keys.denied

    def denies(self, peer: NodeId) -> bool:
        """Whether a peer is revoked."""
        return peer in self.keys.denied

    def refusal(self, peer: NodeId) -> str | None:
        """Return why a peer may have no link, None if it may.

        Who has a secret that has to go can make any number of identities. Those that
        no roster has shown to people are out until that secret is. The roster of the
        moment would not do: a dispatcher that is revoked takes out of it whoever leaves
        it for that.
        """
        if self.denies(peer):
            return REVOKED
        is_known = self._entitled is None or peer in self._entitled
        return None if is_known else RENEWING

    def confirmed(self) -> frozenset[NodeId]:
        """Return the nodes that are known to have the newest generation."""
        nodes = {*self._held, *self._known()}
        return frozenset(filter(self._has_confirmed, nodes))

    def awaited(self) -> frozenset[NodeId]:
        """Return the nodes that should have the newest generation, and may not yet."""
        if self.keys.phase is Phase.SETTLED:
            return frozenset()
        nodes = set(self._members.peers) if self.keys.is_urgent else self._known()
        return frozenset(nodes - {self._me} - set(self.keys.denied) - self.confirmed())

    def unwritten(self) -> list[RecordDraft]:
        """Return what the next dispatcher has to know, while a node is waited for."""
        if not self._has_news:  # As mostly: it is asked at each step.
            return []
        is_plain = self.keys.phase is Phase.SPREADING and not self.keys.is_urgent
        if not (is_plain and self.awaited()):
            return []
        self._has_news = False
        until_ms = self.keys.since_ms + int(self._timing.spread_s * 1000)
        return [
            RecordDraft(KEYS_HELD, self._record_key(node), b"", until_ms)
            for node, held in self._held.items()
            if self._is_level(held) and not self._is_written(node)
        ]

    # --- Peers.

    def on_up(self, peer: NodeId) -> list[Effect]:
        """Tell a peer that came what this node has.

        A mesh that never renewed its secret says nothing.
        """
        self._told.pop(peer, None)
        is_plain = self.keys.newest == 1 and not self.keys.denied
        return [] if is_plain else self._tell((peer,))

    def on_message(self, peer: NodeId, message: KeysMessage) -> list[Effect]:
        """Learn what a peer has, give it what it lacks, take what this node lacks."""
        match message:
            case KeysGiven(text):
                # What a revoked node makes of keyrings is not for others.
                return [] if self.is_revoked else [TakeKeys(peer, text)]
            case KeysHeld(keys):
                self._held.pop(peer, None)
                self._held[peer] = keys
                self._has_news = True
                if len(self._held) > self._held_max:
                    del self._held[next(iter(self._held))]
                effects = self._tell((peer,)) if self.keys.lacks(keys) else []
                return effects + self._give((peer,))

    def on_revoked(self, by: NodeId) -> list[Effect]:
        """A member said that this node has to go; keep that, and go by it."""
        if self.is_revoked:
            return []
        note = Note(
            "error",
            "this node was revoked",
            (("peer", by), ("hint", "octaskly leave, then octaskly join CODE")),
        )
        return [note, ChangeKeys(KeyStep.DENY, self._me)]

    # --- This node.

    def on_asked(self, event: RotateAsked, now: Moment) -> list[Effect]:
        """Begin a rotation, if none is on its way."""
        why = self._hindrance(event, now)
        if why is not None or len(self._tickets) >= WAITING_MAX:
            return [Answer(event.ticket, NotRotated(why or "too many ask for it"))]
        self._tickets.append(event.ticket)
        fields: tuple[tuple[str, str], ...] = (("by", event.by),)
        if event.revoked is not None:
            fields += (("peer", event.revoked),)
        note = Note("warning", "the mesh secret is renewed", fields)
        change = ChangeKeys(KeyStep.RENEW, event.revoked, event.is_urgent)
        return [note, *self._ask(change, now)]

    def on_changed(self, event: KeysChanged, now: Moment) -> list[Effect]:
        """Go by the keyring as it is now, and tell everybody."""
        before, self.keys = self.keys, event.keys
        is_newly_urgent = self.keys.is_urgent and self.keys.newest > before.newest
        if is_newly_urgent or not set(self.keys.denied) <= set(before.denied):
            self._entitled = self._registry.named() or frozenset(self._members.peers)
        if self._tickets or not event.failure:  # A step is not tried again at once.
            self._asked_s = None
        self._has_news = True
        effects: list[Effect] = []
        if before.rank != self.keys.rank:
            self._changed_s, self._age = now.mono_s, None
            phase = ("phase", self.keys.phase.value)
            told = (("generation", self.keys.newest), phase)
            effects.append(Note("info", "mesh secret", told))
        failure = event.failure
        if failure:
            cause = ("cause", failure)
            effects.append(Note("error", "mesh secret not changed", (cause,)))
        reply = NotRotated(failure) if failure else Rotating(self.keys)
        tickets, self._tickets = self._tickets, []
        effects += [Answer(ticket, reply) for ticket in tickets]
        effects += self._tell(self._members.peers)
        # Nobody is asked first: what is new here is new to nearly all.
        return effects + self._give(self._members.peers)

    def let_in(self) -> None:
        """Refuse nobody any more whom TLS lets in, once the old secret is over."""
        if not self.keys.is_urgent:
            self._entitled = None

    def on_time(self, now: Moment) -> list[Effect]:
        """Take the step that is due; only a dispatcher is asked."""
        if self.keys.phase is Phase.SETTLED or self.is_revoked or self._is_asked(now):
            return []
        timing, is_urgent = self._timing, self.keys.is_urgent
        age_s = self._age_s(now)
        settle = ChangeKeys(KeyStep.SETTLE)
        if self.keys.phase is Phase.SWITCHED:
            keep_s = URGENT_S if is_urgent else timing.keep_old_s
            return self._ask(settle, now) if age_s >= keep_s else []
        spread_s = URGENT_S if is_urgent else timing.spread_s
        if age_s < spread_s and self.awaited():
            return []
        return self._ask(settle if is_urgent else ChangeKeys(KeyStep.SWITCH), now)

    def unwanted(self, now: Moment) -> list[tuple[NodeId, str]]:
        """Return the connected peers whose links have to end, and what to tell them.

        A link outlives the certificates that made it, but not for long: whoever has
        not shown that it knows the newer generation is gone once the older is over.
        """
        if not self.keys.denied and self.keys.newest == 1:
            return []
        refused = ((peer, self.refusal(peer)) for peer in self._members.peers)
        ends = [(peer, reason) for peer, reason in refused if reason is not None]
        if self.keys.phase is Phase.SETTLED and not self.is_revoked:
            ends += [
                (peer, OUTDATED)
                for peer, view in self._members.peers.items()
                if now.mono_s >= max(self._changed_s, view.up_s) + GRACE_S
                and self._held.get(peer, Keys()).newest < self.keys.oldest
            ]
        return ends

    # --- Inside.

    def _is_asked(self, now: Moment) -> bool:
        """Whether the shell is at a step, or failed at one a moment ago."""
        return self._asked_s is not None and now.mono_s < self._asked_s + PATIENCE_S

    def _age_s(self, now: Moment) -> float:
        """Return for how long the phase has lasted.

        Wall clocks are asked once, for what has passed before. So neither one that
        jumps ends a secret that sleeping nodes show, nor does one that was ahead, or
        goes back, keep that of a revoked node alive.
        """
        if self._age is None:
            passed_ms = self._members.earliest_ms(now) - self.keys.since_ms
            self._age = max(0.0, passed_ms / 1000), now.mono_s
        age_s, asked_s = self._age
        return age_s + now.mono_s - asked_s

    def _hindrance(self, asked: RotateAsked, now: Moment) -> str | None:
        keys = self.keys
        if self.is_revoked:
            return "this node was revoked"
        if asked.revoked is not None:
            is_own = asked.revoked == self._me
            return "a node does not revoke itself" if is_own else None
        is_spreading = keys.phase is Phase.SPREADING
        if asked.is_urgent and is_spreading and not keys.is_urgent:
            return None  # One that takes long is overtaken.
        if is_spreading or self._is_asked(now):
            return f"generation {keys.newest} is not in force yet"
        return None

    def _known(self) -> set[NodeId]:
        """Return the nodes of the mesh, whether they are there or not."""
        roster = self._registry.roster
        listed = () if roster is None else (member.id for member in roster.members)
        hints = self._members.hints
        return {*listed, *hints.remembered(), *hints.met()}

    def _has_confirmed(self, node: NodeId) -> bool:
        """Whether a node has the newest generation; its own word counts most."""
        held = self._held.get(node)
        return self._is_written(node) if held is None else self._is_level(held)

    def _is_written(self, node: NodeId) -> bool:
        return self._book.get(KEYS_HELD, self._record_key(node)) is not None

    def _record_key(self, node: NodeId) -> str:
        return f"{self.keys.newest}-{self.keys.mark}-{node}"

    def _is_level(self, held: Keys) -> bool:
        """Whether a peer has the newest generation, and the same one."""
        keys = self.keys
        if held.newest != keys.newest:
            return held.newest > keys.newest
        return held.mark == keys.mark

    def _ask(self, change: ChangeKeys, now: Moment) -> list[Effect]:
        self._asked_s = now.mono_s
        return [change]

    def _give(self, peers: Iterable[NodeId]) -> list[Effect]:
        """Give the keyring to those of these peers that lack some of it.

        A revoked node does not: who was away with it would renew a secret that the
        others have renewed already.
        """
        if self.is_revoked:
            return []
        return [
            GiveKeys(peer)
            for peer in peers
            if self._held.get(peer, Keys()).lacks(self.keys)
            and self.refusal(peer) is None
        ]

    def _tell(self, peers: Iterable[NodeId]) -> list[Effect]:
        """Tell what this node has to those of these peers that do not know it."""
        effects: list[Effect] = []
        for peer in tuple(peers):
            if self._told.get(peer) != self.keys and not self.denies(peer):
                self._told[peer] = self.keys
                effects.append(Send(peer, (KeysHeld(self.keys),)))
        return effects
