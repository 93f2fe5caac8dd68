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
from math import inf

from octaskly.core.effects import Answer, Effect, LogLine, Send
from octaskly.core.events import RecordDraft
from octaskly.core.log.records import KEYS_HELD, RecordTable
from octaskly.core.membership.membership import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.keys import (
    OUTDATED_REASON,
    REVOKED_REASON,
    ChangeKeyring,
    KeyringChanged,
    KeyringMessage,
    KeyringState,
    KeyringStatus,
    KeyringStep,
    KeyringTransfer,
    MergeKeyring,
    RotateRequested,
    RotationNotStarted,
    RotationPhase,
    RotationStarted,
    SendKeyring,
)
from octaskly.core.model.settings import URGENT_STEP_S, Settings
from octaskly.core.model.timer_heap import Timer, TimerHeap

RENEWING_REASON = "until the old secret is over none but members are let in"
STEP_RETRY_S = 15.0  #: a step is asked for again after so long
OLD_LINK_GRACE_S = 15.0  #: links of a generation that is over end after so long
TICKETS_MAX = 64  #: requests that wait for one rotation


class KeyRotation:
    """The generations of this node, and of those it knows."""

    def __init__(
        self,
        settings: Settings,
        peer_table: PeerTable,
        roster_builder: RosterBuilder,
        record_table: RecordTable,
        keys: KeyringState,
        timers: TimerHeap,
    ) -> None:
        self._timers = timers
        self.keyring = keys
        self._me = settings.node.id
        self._timing = settings.timing
        self._peer_keyrings_max = settings.limits.peers
        self._peer_table = peer_table
        self._roster_builder = roster_builder
        self._record_table = (
            record_table  #: which nodes are known to have which generation
        )
        self._peer_keyrings: dict[NodeId, KeyringState] = {}  #: as peers said last
        self._sent_keyrings: dict[
            NodeId, KeyringState
        ] = {}  #: what connected peers know of this node
        self._tickets: list[int] = []
        self._step_requested_s: float | None = (
            None  #: when the shell was asked for a step
        )
        self._changed_s = 0.0
        self._phase_age: tuple[float, float] | None = None
        """How old the phase was when this process first asked for that, and when."""
        self._may_have_confirmations = (
            True  #: a peer may have confirmed since that was written
        )
        self._allowed_nodes: frozenset[NodeId] | None = None
        """Who gets the new secret while others can still show the old one."""

    @property
    def is_revoked(self) -> bool:
        """Whether this node itself has to go."""
        return self._me in self.keyring.revoked

    def is_peer_revoked(self, peer: NodeId) -> bool:
        """Whether a peer is revoked."""
        return peer in self.keyring.revoked

    def link_refusal(self, peer: NodeId) -> str | None:
        """Return why a peer may have no link, None if it may.

        Who has a secret that has to go can make any number of identities. Those that
        no roster has shown to people are out until that secret is. The roster of the
        moment would not do: a dispatcher that is revoked takes out of it whoever leaves
        it for that.
        """
        if self.is_peer_revoked(peer):
            return REVOKED_REASON
        is_known = self._allowed_nodes is None or peer in self._allowed_nodes
        return None if is_known else RENEWING_REASON

    def confirmed_nodes(self) -> frozenset[NodeId]:
        """Return the nodes that are known to have the newest generation."""
        nodes = {*self._peer_keyrings, *self._known_nodes()}
        return frozenset(filter(self._has_confirmed, nodes))

    def awaited_nodes(self) -> frozenset[NodeId]:
        """Return the nodes that should have the newest generation, and may not yet."""
        if self.keyring.phase is RotationPhase.SETTLED:
            return frozenset()
        nodes = (
            set(self._peer_table.peers)
            if self.keyring.is_urgent
            else self._known_nodes()
        )
        return frozenset(
            nodes - {self._me} - set(self.keyring.revoked) - self.confirmed_nodes()
        )

    def unwritten_confirmations(self) -> list[RecordDraft]:
        """Return what the next dispatcher has to know, while a node is waited for."""
        if not self._may_have_confirmations:  # As mostly: it is asked at each step.
            return []
        is_spreading = (
            self.keyring.phase is RotationPhase.SPREADING and not self.keyring.is_urgent
        )
        if not (is_spreading and self.awaited_nodes()):
            return []
        self._may_have_confirmations = False
        until_ms = self.keyring.phase_since_ms + int(
            self._timing.rotation_spread_s * 1000
        )
        return [
            RecordDraft(KEYS_HELD, self._record_key(node), b"", until_ms)
            for node, peer_keyring in self._peer_keyrings.items()
            if self._has_newest_generation(peer_keyring)
            and not self._is_confirmation_written(node)
        ]

    # --- Peers.

    def on_peer_up(self, peer: NodeId, now: Moment) -> list[Effect]:
        """Tell a peer that came what this node has.

        A mesh that never renewed its secret says nothing.
        """
        if self.keyring.newest > 1:
            self._timers.set_earlier(
                Timer.OUTDATED_LINKS, now.mono_s + OLD_LINK_GRACE_S
            )
        self._sent_keyrings.pop(peer, None)
        was_never_renewed = self.keyring.newest == 1 and not self.keyring.revoked
        return [] if was_never_renewed else self._send_status((peer,))

    def on_keyring_message(self, peer: NodeId, message: KeyringMessage) -> list[Effect]:
        """Learn what a peer has, give it what it lacks, take what this node lacks."""
        match message:
            case KeyringTransfer(text):
                # What a revoked node makes of keyrings is not for others.
                return [] if self.is_revoked else [MergeKeyring(peer, text)]
            case KeyringStatus(keys):
                self._peer_keyrings.pop(peer, None)
                self._peer_keyrings[peer] = keys
                self._may_have_confirmations = True
                if len(self._peer_keyrings) > self._peer_keyrings_max:
                    del self._peer_keyrings[next(iter(self._peer_keyrings))]
                effects = (
                    self._send_status((peer,))
                    if self.keyring.would_gain_from(keys)
                    else []
                )
                return effects + self._send_keyring((peer,))

    def on_own_revocation(self, by: NodeId) -> list[Effect]:
        """A member said that this node has to go; keep that, and go by it."""
        if self.is_revoked:
            return []
        note = LogLine(
            "error",
            "this node was revoked",
            (("peer", by), ("hint", "octaskly leave, then octaskly join CODE")),
        )
        return [note, ChangeKeyring(KeyringStep.REVOKE, self._me)]

    # --- This node.

    def on_rotate_requested(self, event: RotateRequested, now: Moment) -> list[Effect]:
        """Begin a rotation, if none is on its way."""
        hindrance = self._why_not_now(event, now)
        if hindrance is not None or len(self._tickets) >= TICKETS_MAX:
            return [
                Answer(
                    event.ticket, RotationNotStarted(hindrance or "too many ask for it")
                )
            ]
        self._tickets.append(event.ticket)
        fields: tuple[tuple[str, str], ...] = (("by", event.by),)
        if event.revoked is not None:
            fields += (("peer", event.revoked),)
        note = LogLine("warning", "the mesh secret is renewed", fields)
        change = ChangeKeyring(KeyringStep.RENEW, event.revoked, event.is_urgent)
        return [note, *self._request_step(change, now)]

    def on_keyring_changed(self, event: KeyringChanged, now: Moment) -> list[Effect]:
        """Go by the keyring as it is now, and tell everybody."""
        before, self.keyring = self.keyring, event.keys
        is_newly_urgent = self.keyring.is_urgent and self.keyring.newest > before.newest
        if is_newly_urgent or not set(self.keyring.revoked) <= set(before.revoked):
            self._allowed_nodes = self._roster_builder.named_nodes() or frozenset(
                self._peer_table.peers
            )
        if self._tickets or not event.failure:  # A step is not tried again at once.
            self._step_requested_s = None
        self._may_have_confirmations = True
        effects: list[Effect] = []
        if before.rank != self.keyring.rank:
            self._changed_s, self._phase_age = now.mono_s, None
            self._timers.set(Timer.OUTDATED_LINKS, now.mono_s + OLD_LINK_GRACE_S)
            phase = ("phase", self.keyring.phase.value)
            fields = (("generation", self.keyring.newest), phase)
            effects.append(LogLine("info", "mesh secret", fields))
        failure = event.failure
        if failure:
            cause = ("cause", failure)
            effects.append(LogLine("error", "mesh secret not changed", (cause,)))
        reply = (
            RotationNotStarted(failure) if failure else RotationStarted(self.keyring)
        )
        tickets, self._tickets = self._tickets, []
        effects += [Answer(ticket, reply) for ticket in tickets]
        effects += self._send_status(self._peer_table.peers)
        # Nobody is asked first: what is new here is new to nearly all.
        return effects + self._send_keyring(self._peer_table.peers)

    def lift_link_refusal(self) -> None:
        """Refuse nobody any more whom TLS lets in, once the old secret is over."""
        if not self.keyring.is_urgent:
            self._allowed_nodes = None

    def on_time(self, now: Moment) -> list[Effect]:
        """Take the step that is due; only a dispatcher is asked."""
        if (
            self.keyring.phase is RotationPhase.SETTLED
            or self.is_revoked
            or self._is_step_pending(now)
        ):
            return []
        timing, is_urgent = self._timing, self.keyring.is_urgent
        age_s = self._phase_age_s(now)
        settle = ChangeKeyring(KeyringStep.SETTLE)
        if self.keyring.phase is RotationPhase.SWITCHED:
            keep_s = URGENT_STEP_S if is_urgent else timing.old_secret_s
            return self._request_step(settle, now) if age_s >= keep_s else []
        spread_s = URGENT_STEP_S if is_urgent else timing.rotation_spread_s
        if age_s < spread_s and self.awaited_nodes():
            return []
        return self._request_step(
            settle if is_urgent else ChangeKeyring(KeyringStep.SWITCH), now
        )

    def links_to_close(self, now: Moment) -> list[tuple[NodeId, str]]:
        """Return the connected peers whose links have to end, and what to tell them.

        A link outlives the certificates that made it, but not for long: whoever has
        not shown that it knows the newer generation is gone once the older is over.
        """
        if not self.keyring.revoked and self.keyring.newest == 1:
            return []
        refused = ((peer, self.link_refusal(peer)) for peer in self._peer_table.peers)
        ends = [(peer, reason) for peer, reason in refused if reason is not None]
        if self.keyring.phase is RotationPhase.SETTLED and not self.is_revoked:
            ends += [
                (peer, OUTDATED_REASON)
                for peer, view in self._peer_table.peers.items()
                if now.mono_s
                >= max(self._changed_s, view.connected_s) + OLD_LINK_GRACE_S
                and self._peer_keyrings.get(peer, KeyringState()).newest
                < self.keyring.oldest
            ]
        return ends

    def set_timer(self, now: Moment) -> None:
        """Set the timer for the next link that may have to end."""
        grace_ends_s = (
            max(self._changed_s, view.connected_s) + OLD_LINK_GRACE_S
            for view in self._peer_table.peers.values()
        )
        due_s = min((at_s for at_s in grace_ends_s if at_s > now.mono_s), default=inf)
        self._timers.set(Timer.OUTDATED_LINKS, due_s)

    # --- Inside.

    def _is_step_pending(self, now: Moment) -> bool:
        """Whether the shell is at a step, or failed at one a moment ago."""
        return (
            self._step_requested_s is not None
            and now.mono_s < self._step_requested_s + STEP_RETRY_S
        )

    def _phase_age_s(self, now: Moment) -> float:
        """Return for how long the phase has lasted.

        Wall clocks are asked once, for what has passed before. So neither one that
        jumps ends a secret that sleeping nodes show, nor does one that was ahead, or
        goes back, keep that of a revoked node alive.
        """
        if self._phase_age is None:
            passed_ms = (
                self._peer_table.earliest_wall_ms(now) - self.keyring.phase_since_ms
            )
            self._phase_age = max(0.0, passed_ms / 1000), now.mono_s
        age_s, asked_s = self._phase_age
        return age_s + now.mono_s - asked_s

    def _why_not_now(self, request: RotateRequested, now: Moment) -> str | None:
        keys = self.keyring
        if self.is_revoked:
            return "this node was revoked"
        if request.revoked is not None:
            is_own = request.revoked == self._me
            return "a node does not revoke itself" if is_own else None
        is_spreading = keys.phase is RotationPhase.SPREADING
        if request.is_urgent and is_spreading and not keys.is_urgent:
            return None  # One that takes long is overtaken.
        if is_spreading or self._is_step_pending(now):
            return f"generation {keys.newest} is not in force yet"
        return None

    def _known_nodes(self) -> set[NodeId]:
        """Return the nodes of the mesh, whether they are there or not."""
        roster = self._roster_builder.roster
        listed = () if roster is None else (member.id for member in roster.members)
        address_book = self._peer_table.address_book
        return {
            *listed,
            *address_book.remembered_nodes(),
            *address_book.heard_of_nodes(),
        }

    def _has_confirmed(self, node: NodeId) -> bool:
        """Whether a node has the newest generation; its own word counts most."""
        peer_keyring = self._peer_keyrings.get(node)
        return (
            self._is_confirmation_written(node)
            if peer_keyring is None
            else self._has_newest_generation(peer_keyring)
        )

    def _is_confirmation_written(self, node: NodeId) -> bool:
        return self._record_table.get(KEYS_HELD, self._record_key(node)) is not None

    def _record_key(self, node: NodeId) -> str:
        return f"{self.keyring.newest}-{self.keyring.fingerprint}-{node}"

    def _has_newest_generation(self, peer_keyring: KeyringState) -> bool:
        """Whether a peer has the newest generation, and the same one."""
        keys = self.keyring
        if peer_keyring.newest != keys.newest:
            return peer_keyring.newest > keys.newest
        return peer_keyring.fingerprint == keys.fingerprint

    def _request_step(self, change: ChangeKeyring, now: Moment) -> list[Effect]:
        self._step_requested_s = now.mono_s
        return [change]

    def _send_keyring(self, peers: Iterable[NodeId]) -> list[Effect]:
        """Give the keyring to those of these peers that lack some of it.

        A revoked node does not: who was away with it would renew a secret that the
        others have renewed already.
        """
        if self.is_revoked:
            return []
        return [
            SendKeyring(peer)
            for peer in peers
            if self._peer_keyrings.get(peer, KeyringState()).would_gain_from(
                self.keyring
            )
            and self.link_refusal(peer) is None
        ]

    def _send_status(self, peers: Iterable[NodeId]) -> list[Effect]:
        """Tell what this node has to those of these peers that do not know it."""
        effects: list[Effect] = []
        for peer in tuple(peers):
            if self._sent_keyrings.get(
                peer
            ) != self.keyring and not self.is_peer_revoked(peer):
                self._sent_keyrings[peer] = self.keyring
                effects.append(Send(peer, (KeyringStatus(self.keyring),)))
        return effects
