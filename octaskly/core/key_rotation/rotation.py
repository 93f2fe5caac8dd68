"""Key rotation: renews the mesh secret, and tracks the generations that nodes have.

Every node sends its peers its keyring status, and sends the keyring to peers that lack
part of it. So a rotation reaches all nodes, even through a node that was offline. Only
the dispatcher advances a rotation. The new generation comes into force when all nodes
have it, or after a timeout; the old one ends much later. The keyring stores the
progress, so a new dispatcher continues the rotation. While the dispatcher waits for a
node, it writes the confirmations of the others to the log: they may be offline when it
dies.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from octaskly.core.effects import Answer, Effect, LogLine, Send
from octaskly.core.log.mesh_records import (
    KEYS_HELD,
    VISIT_ENDED,
    RecordDraft,
    RecordTable,
)
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.keyring_state import (
    OUTDATED_REASON,
    REVOKED_REASON,
    VISIT_ENDED_REASON,
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

RENEWING_REASON = "only known members may connect until the old secret ends"
STEP_RETRY_S = 15.0  #: delay before a step is requested again
OLD_LINK_GRACE_S = 15.0  #: delay before links of an ended generation are closed
TICKETS_MAX = 64  #: requests that wait for one rotation


class KeyRotation:
    """The generations of this node and of the nodes that it knows."""

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
        self._record_table = record_table  #: holds the confirmations of other nodes
        self._peer_keyrings: dict[NodeId, KeyringState] = {}  #: latest status
        self._sent_keyrings: dict[
            NodeId, KeyringState
        ] = {}  #: latest status sent to each peer
        self._tickets: list[int] = []
        self._step_requested_s: float | None = (
            None  #: time of the latest request for a step
        )
        self._changed_s = 0.0
        self._phase_age: tuple[float, float] | None = None
        """Age of the phase at its first query, and the monotonic time of that query."""
        self._may_have_confirmations = (
            True  #: True: there may be confirmations that are not in the log
        )
        self._allowed_nodes: frozenset[NodeId] | None = (
            (roster_builder.named_nodes() or None) if keys.is_urgent else None
        )
        """Nodes that may have links while the old secret is valid; None: all.

        A restart keeps the named nodes. A node that has just joined has none.
        """

    @property
    def is_revoked(self) -> bool:
        """Return True if this node itself is revoked."""
        return self._me in self.keyring.revoked

    def is_peer_revoked(self, peer: NodeId) -> bool:
        """Return True if the peer is revoked."""
        return peer in self.keyring.revoked

    def link_refusal(self, peer: NodeId) -> str | None:
        """Return the reason to refuse a link to the peer; None: it is allowed.

        The owner of a compromised secret can create any number of identities.
        Identities that were in no roster are refused until the secret ends. The current
        roster does not suffice: a revoked dispatcher can remove from it nodes that no
        longer follow.
        """
        if self.is_peer_revoked(peer):
            return REVOKED_REASON
        if self._record_table.get(VISIT_ENDED, peer) is not None:
            return VISIT_ENDED_REASON
        is_known = self._allowed_nodes is None or peer in self._allowed_nodes
        return None if is_known else RENEWING_REASON

    def confirmed_nodes(self) -> frozenset[NodeId]:
        """Return the nodes that have confirmed the newest generation."""
        nodes = {*self._peer_keyrings, *self._known_nodes()}
        return frozenset(filter(self._has_confirmed, nodes))

    def awaited_nodes(self) -> frozenset[NodeId]:
        """Return the nodes that have not confirmed the newest generation yet."""
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
        """Return the confirmations that the next dispatcher needs from the log."""
        if not self._may_have_confirmations:  # The common case, on every heartbeat.
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
        """Send a new peer the keyring status, unless the secret was never renewed."""
        if self.keyring.newest > 1:
            self._timers.set_earlier(
                Timer.OUTDATED_LINKS, now.mono_s + OLD_LINK_GRACE_S
            )
        self._sent_keyrings.pop(peer, None)
        was_never_renewed = self.keyring.newest == 1 and not self.keyring.revoked
        return [] if was_never_renewed else self._send_status((peer,))

    def on_keyring_message(self, peer: NodeId, message: KeyringMessage) -> list[Effect]:
        """Merge a peer's keyring, or record its status and send what it lacks."""
        match message:
            case KeyringTransfer(text):
                # A revoked node takes no part in rotations.
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
        """Store a revocation of this node that a member reported."""
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
        """Start a rotation, unless one is in progress."""
        hindrance = self._why_not_now(event, now)
        if hindrance is not None or len(self._tickets) >= TICKETS_MAX:
            return [
                Answer(
                    event.ticket,
                    RotationNotStarted(hindrance or "too many requests wait for it"),
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
        """Apply a changed keyring, answer requests, and send it to all peers."""
        before, self.keyring = self.keyring, event.keys
        is_newly_urgent = self.keyring.is_urgent and self.keyring.newest > before.newest
        if is_newly_urgent or not set(self.keyring.revoked) <= set(before.revoked):
            self._allowed_nodes = self._roster_builder.named_nodes() or frozenset(
                self._peer_table.peers
            )
        if self._tickets or not event.failure:  # Failed steps retry later.
            self._step_requested_s = None
        self._may_have_confirmations = True
        effects: list[Effect] = []
        for node in set(self.keyring.revoked) - set(before.revoked):
            effects += self._roster_builder.release_name(NodeId(node), "revoked")
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
        # Send it without a request, because nearly all peers lack it.
        return effects + self._send_keyring(self._peer_table.peers)

    def lift_link_refusal(self) -> None:
        """Stop refusing unknown nodes once the old secret has ended."""
        if not self.keyring.is_urgent:
            self._allowed_nodes = None

    def on_time(self, now: Moment) -> list[Effect]:
        """Request the next step of the rotation if it is due; for a dispatcher only."""
        if (
            self.keyring.phase is RotationPhase.SETTLED
            or self.is_revoked
            or self._is_step_pending(now)
        ):
            return []
        timing, is_urgent = self._timing, self.keyring.is_urgent
        age_s = self._phase_age_s(now)
        newest = self.keyring.fingerprint
        settle = ChangeKeyring(KeyringStep.SETTLE, fingerprint=newest)
        if self.keyring.phase is RotationPhase.SWITCHED:
            keep_s = URGENT_STEP_S if is_urgent else timing.old_secret_s
            return self._request_step(settle, now) if age_s >= keep_s else []
        spread_s = URGENT_STEP_S if is_urgent else timing.rotation_spread_s
        if age_s < spread_s and self.awaited_nodes():
            return []
        switch = ChangeKeyring(KeyringStep.SWITCH, fingerprint=newest)
        return self._request_step(settle if is_urgent else switch, now)

    def links_to_close(self, now: Moment) -> list[tuple[NodeId, str]]:
        """Return the peers whose links must end, each with the reason.

        A link can outlive the certificates that it was made with. After the old
        generation ends, the link of a peer without the new one is closed after
        `OLD_LINK_GRACE_S`.
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
        """Set the timer for the next link that may have to be closed."""
        grace_ends_s = (
            max(self._changed_s, view.connected_s) + OLD_LINK_GRACE_S
            for view in self._peer_table.peers.values()
        )
        due_s = min((at_s for at_s in grace_ends_s if at_s > now.mono_s), default=inf)
        self._timers.set(Timer.OUTDATED_LINKS, due_s)

    # --- Helpers.

    def _is_step_pending(self, now: Moment) -> bool:
        """Return True if a step was requested within the last `STEP_RETRY_S`."""
        return (
            self._step_requested_s is not None
            and now.mono_s < self._step_requested_s + STEP_RETRY_S
        )

    def _phase_age_s(self, now: Moment) -> float:
        """Return the age of the phase in seconds.

        The wall clocks are read once per phase, for the time before this process. So a
        clock that jumps forward does not end a secret that sleeping nodes still use. A
        clock that was ahead, or that jumps back, does not keep the secret of a revoked
        node valid.
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
            return None  # An urgent rotation replaces a slow one.
        if is_spreading or self._is_step_pending(now):
            return f"generation {keys.newest} is not in force yet"
        return None

    def _known_nodes(self) -> set[NodeId]:
        """Return the nodes of the mesh, connected or not."""
        roster = self._roster_builder.roster
        listed = () if roster is None else (member.id for member in roster.members)
        address_book = self._peer_table.address_book
        return {
            *listed,
            *address_book.remembered_nodes(),
            *address_book.heard_of_nodes(),
        }

    def _has_confirmed(self, node: NodeId) -> bool:
        """Return True if a node has the newest generation, by status or log."""
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
        """Return True if a peer has a newer generation, or the same newest one."""
        keys = self.keyring
        if peer_keyring.newest != keys.newest:
            return peer_keyring.newest > keys.newest
        return peer_keyring.fingerprint == keys.fingerprint

    def _request_step(self, change: ChangeKeyring, now: Moment) -> list[Effect]:
        self._step_requested_s = now.mono_s
        return [change]

    def _send_keyring(self, peers: Iterable[NodeId]) -> list[Effect]:
        """Send the keyring to those of `peers` that lack part of it.

        A revoked node sends none: a node that was offline with it would otherwise renew
        a secret that the others have renewed already.
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
        """Send the keyring status to those of `peers` that lack it."""
        effects: list[Effect] = []
        for peer in tuple(peers):
            if self._sent_keyrings.get(
                peer
            ) != self.keyring and not self.is_peer_revoked(peer):
                self._sent_keyrings[peer] = self.keyring
                effects.append(Send(peer, (KeyringStatus(self.keyring),)))
        return effects
