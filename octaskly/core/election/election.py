"""Leader election: the phase of one node, and its transitions.

Owns the phase, the highest epoch seen, and the facts about a lost dispatcher. The rest
of the node reads `dispatcher_epoch` and `attachment`. `timeouts` starts transitions on
timers, and `claims` starts them on messages. This module makes each transition
complete, whichever of the two started it.

This node announces a claim of its own, and confirms the claim of another node, only
after the epoch is durable: see `claim_epoch` and `follow`.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from octaskly.core.effects import Effect, LogLine, Relay, Send
from octaskly.core.election.candidacy import UNREADABLE_LOG_REASON, Candidacy
from octaskly.core.election.failure_detector import Suspicion, TimeoutScaling
from octaskly.core.election.heartbeats import Heartbeats
from octaskly.core.election.phases import (
    PHASE_TRANSITIONS,
    Attachment,
    Campaigning,
    Claiming,
    Discovering,
    Dispatching,
    Following,
    FollowLink,
    Phase,
    SteppingDown,
)
from octaskly.core.events import SavedState
from octaskly.core.log.retired_streams import LogExtent
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.component_signals import (
    Outbox,
    RelayChanged,
    RoleChanged,
)
from octaskly.core.model.ids import (
    DispatcherEpoch,
    Epoch,
    Moment,
    NodeId,
    StreamId,
)
from octaskly.core.model.nodes import NodeInfo, Takeover
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import ClaimOk, Redirect
from octaskly.core.replication.journal import Journal


def mint_stream(info: NodeInfo, term: int, draw: float) -> StreamId:
    """Return the id of a new stream: 63 bits, never zero.

    `draw` supplies the randomness. Node, boot and term make the ids of two claims
    differ even if their draws are equal.
    """
    seed = f"{info.id}/{info.boot}/{term}/{draw!r}".encode()
    number = int.from_bytes(sha256(seed).digest()[:8], "big") >> 1
    return StreamId(number or 1)


# Constants, because building these unions at every step costs time.
LINKED_PHASES = (Following, SteppingDown)  #: phases of a node that follows a dispatcher
ATTACHED_PHASES = (Following, Dispatching)  #: phases in which a worker may be attached


@dataclass(slots=True)
class DispatcherLoss:
    """Facts about the lost dispatcher, until this node follows another one."""

    since_s: float | None = None  #: start of the loss; None: no dispatcher is missing
    dispatcher: NodeId | None = None
    was_silent: bool = False  #: True: it may still be running

    def mark_missing(self, now: Moment, dispatcher: NodeId | None = None) -> None:
        """Start the loss now, unless it has started already."""
        self.dispatcher = dispatcher or self.dispatcher
        if self.since_s is None:
            self.since_s = now.mono_s

    def mark_silent(self, since_s: float) -> None:
        """Record the start of its silence, which does not prove that it ended."""
        self.since_s, self.was_silent = since_s, True


class Election:
    """The phase of one node, and every transition between phases."""

    def __init__(
        self,
        settings: Settings,
        saved: SavedState,
        journal: Journal,
        peer_table: PeerTable,
        candidacy: Candidacy,
        heartbeats: Heartbeats,
        outbox: Outbox,
    ) -> None:
        self._outbox = outbox
        self.phase: Phase = Discovering(0.0, 0.0, Moment(0.0, 0))
        self.dispatcher_epoch: DispatcherEpoch | None = None
        """Durable epoch of the phase `Dispatching`; cached, as it is read often."""
        self.epoch = saved.epoch  #: highest epoch followed or owned
        self.term = max(saved.term, saved.epoch.term)  #: highest term seen
        self.loss = DispatcherLoss()
        self.last_takeover: Takeover | None = None  #: this node's latest takeover
        self.timeout_scaling = TimeoutScaling()
        self.heartbeats = heartbeats
        self._me = settings.node
        self._timing = settings.timing
        self._journal = journal
        self._peer_table = peer_table
        self._candidacy = candidacy
        self._log_versions = candidacy.log_versions
        self.draw = 0.0
        """Random number in [0, 1) from the latest event that carried one."""
        self._epoch_save_number = 0  #: number of the `Save` that made `epoch` durable
        self._attachment_serial = 0  #: serial of the latest attachment

    @property
    def follow_link(self) -> FollowLink | None:
        """The link to the dispatcher that this node follows."""
        phase = self.phase
        return phase.follow_link if isinstance(phase, LINKED_PHASES) else None

    @property
    def dispatcher(self) -> NodeId | None:
        """The dispatcher that this node follows."""
        follow_link = self.follow_link
        return None if follow_link is None else follow_link.attachment.dispatcher

    @property
    def reachable_dispatcher(self) -> NodeId | None:
        """The dispatcher that this node can reach, itself included."""
        if self.dispatcher_epoch is not None:
            return self._me.id
        dispatcher = self.dispatcher
        return dispatcher if dispatcher in self._peer_table.peers else None

    @property
    def suspicion(self) -> Suspicion | None:
        """The suspicion of a dispatcher, while it is tested."""
        phase = self.phase
        return phase.suspicion if isinstance(phase, Discovering | Following) else None

    @property
    def relay(self) -> Relay | None:
        """The peer that can reach a dispatcher which this node cannot reach."""
        suspicion = self.suspicion
        peers = self._peer_table.peers
        if suspicion is None or suspicion.relay not in peers:
            return None
        view = peers[suspicion.relay]
        return Relay(
            suspicion.relay, suspicion.suspect, view.addresses, view.info.lan_port
        )

    @property
    def attachment(self) -> Attachment | None:
        """The dispatcher and epoch that this node's worker serves."""
        phase = self.phase
        return phase.attachment if isinstance(phase, ATTACHED_PHASES) else None

    @property
    def follower_count(self) -> int:
        """The number of peers that follow this node."""
        own = self.dispatcher_epoch
        followers = () if own is None else self._peer_table.followers(own.epoch)
        return sum(1 for _ in followers)

    @property
    def is_withdrawn(self) -> bool:
        """Return True if this node never claims again: it stops or was revoked."""
        return self._candidacy.is_withdrawn

    @property
    def has_many_successors(self) -> bool:
        """Return True if the successors are too many to be linked to each other."""
        return self._candidacy.successor_ratio > 1.0

    @property
    def is_mass_succession(self) -> bool:
        """Return True if many nodes dial successors at once, as this one does."""
        is_succeeding = isinstance(self.phase, Following | Campaigning | Claiming)
        return is_succeeding and self.has_many_successors

    @property
    def min_epoch(self) -> Epoch:
        """The lowest epoch that this node would follow.

        A first claim counts only once it is durable. A claim that renews this node's
        epoch counts at once, because this node is dispatcher in either case.
        """
        phase = self.phase
        if isinstance(phase, Dispatching) and phase.claim is not None:
            return max(self.epoch, phase.claim.epoch)
        return self.epoch

    def is_followed_epoch(self, peer: NodeId, epoch: Epoch) -> bool:
        """Return True if this node follows the peer in this epoch."""
        return peer == self.dispatcher and epoch == self.epoch

    @property
    def _pending_claim(self) -> DispatcherEpoch | None:
        """The claim that is not durable yet."""
        phase = self.phase
        return phase.claim if isinstance(phase, Claiming | Dispatching) else None

    def observe_term(self, term: int) -> None:
        """Record a term in use, so that the next claim is above it."""
        self.term = max(self.term, term)

    def _enter_phase(self, phase: Phase) -> None:
        assert type(phase) in PHASE_TRANSITIONS[type(self.phase)]
        self.phase = phase
        self._outbox.put(RoleChanged())
        if isinstance(phase, Dispatching):
            self.dispatcher_epoch = phase.dispatcher_epoch
        else:
            self.dispatcher_epoch = None
            self.heartbeats.stop_heartbeats()

    # Discovering

    def start_election(self, now: Moment) -> list[Effect]:
        """Start the uptime and look for a mesh."""
        self._candidacy.start_uptime(now)
        return self.start_discovering("started", now)

    def start_discovering(self, reason: str, now: Moment) -> list[Effect]:
        """End any role and look for a mesh."""
        jitter_s = self._timing.discovery_jitter_s * self.draw
        self._enter_phase(Discovering(now.mono_s, jitter_s, now))
        return [LogLine("info", "discovering", (("reason", reason),))]

    def withdraw(self) -> None:
        """Never claim again."""
        self._candidacy.withdraw()

    def leave_mesh(self, reason: str, now: Moment) -> list[Effect]:
        """End any role and close all links, without entries in the log."""
        self.start_discovering(reason, now)
        effects: list[Effect] = []
        for peer in tuple(self._peer_table.peers):
            effects += self._peer_table.disconnect(peer, reason, now)
        return effects

    def silent_followers(self, now: Moment) -> list[NodeId]:
        """Return the followers that exceed the worker timeout."""
        assert self.dispatcher_epoch is not None
        scaling = self.timeout_scaling
        timeout_s = self._timing.worker_timeout_s * scaling.timeout_scale(now)
        return [
            peer
            for peer, view in self._peer_table.followers(self.dispatcher_epoch.epoch)
            if now.mono_s - scaling.silent_since_s(view.last_frame_s) >= timeout_s
        ]

    # Following

    def follow(
        self, peer: NodeId, epoch: Epoch, extent: LogExtent, reason: str, now: Moment
    ) -> list[Effect]:
        """Follow a dispatcher; its epoch must be at least the highest seen."""
        assert epoch >= self.epoch
        if self._candidacy.reads_newer_log_than(peer):
            return self.claim_epoch_above(epoch, UNREADABLE_LOG_REASON)
        effects = self._log_versions.on_dispatcher_followed(
            peer
        ) + self._redirect_followers(peer, epoch)
        self._attachment_serial += 1
        follow_link = FollowLink(Attachment(peer, epoch, self._attachment_serial))
        had_role = isinstance(self.phase, Dispatching | SteppingDown)
        vector, retired = extent
        if had_role and not self._journal.is_held_by(vector, (retired.digest,)):
            self._enter_phase(SteppingDown(now.mono_s, follow_link=follow_link))
        else:
            self._enter_phase(Following(follow_link, now.mono_s))
        self.loss = DispatcherLoss()
        self.observe_term(epoch.term)
        if epoch > self.epoch:
            self.timeout_scaling.on_epoch_start(now)
            self.epoch = epoch
            effects.append(self._journal.save(term=self.term, epoch=epoch))
            self._epoch_save_number = self._journal.last_number
        fields = (("peer", peer), ("term", epoch.term), ("reason", reason))
        effects.append(LogLine("info", "dispatcher followed", fields))
        # The epoch is durable before anything starts in it: after a restart, a worker
        # must not obey a dispatcher of an older epoch.
        if self._journal.is_all_durable:
            return effects + self._confirm_follow(follow_link, now)
        self._journal.defer_until_durable(
            partial(self._confirm_follow, follow_link), self._epoch_save_number
        )
        return effects

    def _confirm_follow(self, follow_link: FollowLink, _: Moment) -> list[Effect]:
        """Confirm the claim to the dispatcher and attach the worker."""
        if (
            follow_link is not self.follow_link
            or follow_link.dispatcher not in self._peer_table.peers
        ):
            return []
        follow_link.is_confirmed = True
        if isinstance(self.phase, Following):
            self.phase.is_worker_attached = True
            self._outbox.put(RoleChanged())
        return [self._claim_ok_message(follow_link.dispatcher)]

    def set_plain_worker(self, *, is_plain_worker: bool) -> None:
        """Record if the dispatcher treats this node as a plain worker."""
        if self.follow_link is not None:
            self.follow_link.is_plain_worker = is_plain_worker

    def send_vector(self, source: NodeId) -> list[Effect]:
        """Send the dispatcher this node's vector after entries came from `source`.

        The dispatcher may lack these entries.
        """
        follow_link = self.follow_link
        if (
            follow_link is None
            or follow_link.dispatcher == source
            or not follow_link.is_confirmed
        ):
            return []
        return [self._claim_ok_message(follow_link.dispatcher)]

    def state_log_to_relay(self, now: Moment) -> list[Effect]:
        """Send a new relay this node's vector: the dispatcher cannot pull from here.

        This node may have been dispatcher, so it may hold tasks that nobody else has.
        """
        return self._journal.when_durable(self._state_durable_log, now)

    def _state_durable_log(self, _now: Moment) -> list[Effect]:
        if self.relay is None:
            return []
        if self._epoch_save_number > self._journal.persisted:
            # It follows a newer dispatcher since.
            self._journal.defer_until_durable(
                self._state_durable_log, self._epoch_save_number
            )
            return []
        return [self._claim_ok_message(self.relay.node)]

    def _claim_ok_message(self, receiver: NodeId) -> Send:
        vector, retired = self._journal.vector_items(), self._journal.retired_summary()
        return Send(receiver, (ClaimOk(self.epoch, vector, retired),))

    def on_dispatcher_lost(
        self, reason: str, now: Moment, *, is_proven: bool = False
    ) -> list[Effect]:
        """Start the succession after the dispatcher is known to be lost."""
        phase = self.phase
        assert isinstance(phase, Following)
        lost_dispatcher = phase.follow_link.dispatcher
        self.loss.mark_missing(now, lost_dispatcher)
        # Without a roster, a node that just joined is in no order of succession.
        if not (self._candidacy.may_succeed and self._candidacy.successors):
            return self.start_discovering("dispatcher lost", now)
        self._enter_phase(
            Campaigning(now.mono_s, lost_dispatcher, is_proven, phase.transfer_extent)
        )
        fields = (("peer", lost_dispatcher), ("reason", reason))
        return [LogLine("warning", "dispatcher lost", fields), *self.claim_if_turn(now)]

    def on_dispatcher_silent(self, since_s: float) -> None:
        """Record the start of the silence of a dispatcher that may be alive."""
        self.loss.mark_silent(since_s)

    def start_suspicion(
        self, phase: Discovering | Following, suspicion: Suspicion, now: Moment
    ) -> None:
        """Suspect a dispatcher; the worker is detached while the suspicion lasts."""
        self.loss.mark_missing(now)
        phase.suspicion = suspicion
        self._outbox.put(RoleChanged())

    def note_relay_change(self) -> None:
        """Announce that another peer, or none, hears a suspect."""
        self._outbox.put(RelayChanged())

    def claim_turn_s(self, phase: Campaigning) -> float:
        """Return the time of this node's turn to claim."""
        wait_s = self._candidacy.claim_delay_s(
            phase.lost_dispatcher, is_proven=phase.is_end_proven
        )
        return phase.since_s + wait_s

    def claim_if_turn(self, now: Moment) -> list[Effect]:
        """Claim in place of the lost dispatcher, once it is this node's turn."""
        phase = self.phase
        assert isinstance(phase, Campaigning)
        if now.mono_s < self.claim_turn_s(phase):
            return []
        return self.claim_epoch("dispatcher lost")

    # Claiming

    def claim_epoch(
        self, reason: str, predecessor: Epoch | None = None
    ) -> list[Effect]:
        """Claim a new epoch; peers get the claim only once it is durable."""
        self.term = max(self.term, self.epoch.term) + 1
        epoch = Epoch(self.term, self._me.id)
        stream = mint_stream(self._me, self.term, self.draw)
        assert stream not in self._journal.vector
        claim = DispatcherEpoch(epoch, stream)
        if isinstance(self.phase, Dispatching):
            self.phase.claim = claim
        else:
            self._enter_phase(Claiming(claim, predecessor))
        effects = self._log_versions.write_own_version()
        save = self._journal.save(term=self.term, epoch=epoch, stream=(stream, epoch))
        number = self._journal.last_number
        self._journal.defer_until_durable(
            partial(self._on_claim_durable, claim, number, reason)
        )
        fields = (("term", epoch.term), ("reason", reason))
        return [*effects, save, LogLine("info", "claiming", fields)]

    def claim_epoch_above(self, epoch: Epoch, reason: str) -> list[Effect]:
        """Claim a new epoch above `epoch`, unless a pending claim is above it."""
        if self._pending_claim is not None and self._pending_claim.epoch > epoch:
            return []
        self.observe_term(epoch.term)
        return self.claim_epoch(reason)

    def _on_claim_durable(
        self, claim: DispatcherEpoch, number: int, reason: str, now: Moment
    ) -> list[Effect]:
        """Become dispatcher, unless the claim was abandoned before it was durable."""
        if self._pending_claim is not claim:
            return []
        self._attachment_serial += 1
        own = Attachment(self._me.id, claim.epoch, self._attachment_serial)
        self._enter_phase(Dispatching(claim, own))
        self.timeout_scaling.on_epoch_start(now)
        if self.loss.since_s is not None:
            lasted_ms = round((now.mono_s - self.loss.since_s) * 1000)
            self.last_takeover = Takeover(now.wall_ms, lasted_ms, reason)
            self.loss.since_s = None
        self.epoch = claim.epoch
        self._epoch_save_number = number
        fields = (
            ("term", claim.epoch.term),
            ("peers", len(self._peer_table.peers)),
            ("reason", reason),
        )
        note = LogLine("info", "dispatcher elected", fields)
        return [*self.heartbeats.start_heartbeats(claim, now), note]

    # Stepping down

    def step_down_for(self, winner: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Stop dispatching at once, and wait for the winner's claim."""
        if self._candidacy.reads_newer_log_than(winner):
            return self.claim_epoch_above(self.min_epoch, UNREADABLE_LOG_REASON)
        effects = self._redirect_followers(winner, self.epoch)
        self._enter_phase(SteppingDown(now.mono_s, winner=winner))
        fields = (("peer", winner), ("reason", reason))
        return [*effects, LogLine("info", "stepping down", fields)]

    def on_winner_lost(self, now: Moment) -> None:
        """Wait for any claim after the loss of the winner that this node followed."""
        self._enter_phase(SteppingDown(now.mono_s))

    def finish_step_down(self, reason: str, now: Moment) -> list[Effect]:
        """Attach the worker to the winner, which holds or will pull this node's log."""
        follow_link = self.follow_link
        assert follow_link is not None
        self._enter_phase(Following(follow_link, now.mono_s, is_worker_attached=True))
        fields = (("peer", follow_link.dispatcher), ("reason", reason))
        return [LogLine("info", "stepped down", fields)]

    # Redirects

    def _redirect_followers(self, dispatcher: NodeId, epoch: Epoch) -> list[Effect]:
        """Redirect this node's followers, or the dispatcher that it follows."""
        if self.dispatcher_epoch is not None:
            followers = self._peer_table.followers(self.dispatcher_epoch.epoch)
            peers = [peer for peer, _ in followers]
        else:
            peers = [] if self.dispatcher is None else [self.dispatcher]
        others = [peer for peer in peers if peer != dispatcher]
        return self.redirect_peers(others, dispatcher, epoch)

    def redirect_peers(
        self, peers: Iterable[NodeId], dispatcher: NodeId, epoch: Epoch
    ) -> list[Effect]:
        """Send the address of the dispatcher to those of `peers` that are connected."""
        addresses = self._peer_table.addresses_of(dispatcher)
        redirect = Redirect(epoch, dispatcher, addresses)
        return [
            Send(peer, (redirect,)) for peer in peers if peer in self._peer_table.peers
        ]
