"""Message handlers: what this node does with each message of a peer."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Effect, Send
from octaskly.core.model.component_signals import (
    RecordsAdded,
    RosterChanged,
    SyncProgressed,
)
from octaskly.core.model.ids import Epoch, Moment, NodeId, is_visitor
from octaskly.core.model.keyring_state import KeyringStatus, KeyringTransfer
from octaskly.core.model.nodes import Role
from octaskly.core.model.settings import Settings
from octaskly.core.node.components import Components, Handlers
from octaskly.core.protocol.messages import (
    Assign,
    AssignRanges,
    Claim,
    ClaimOk,
    ClaimRejected,
    Contacts,
    Entries,
    Heartbeat,
    HeartbeatOk,
    HeldBlobs,
    Hello,
    HelloOk,
    Kill,
    Leave,
    Message,
    OutputPieces,
    Probe,
    ProbeOk,
    Pull,
    RangeResults,
    RangeResultsOk,
    ReadOutput,
    Reattach,
    RecordBatch,
    Redirect,
    Replicate,
    ReplicateOk,
    Results,
    ResultsOk,
    Roster,
    Snapshot,
    Transfer,
)


class MessageHandlers:
    """Passes each message to the component that it is for."""

    def __init__(
        self, settings: Settings, components: Components, handlers: Handlers
    ) -> None:
        self._me, self._limits = settings.node.id, settings.limits
        self._outbox = components.outbox
        self._peer_table = components.peer_table
        self._roster_builder = components.roster_builder
        self._log_versions = components.log_versions
        self._candidacy = components.candidacy
        self._election = components.election
        self._timeouts = components.timeouts
        self._claim_handlers = components.claim_handlers
        self._replication = components.replication
        self._record_writer = components.dispatcher.record_writer
        self._worker = components.worker
        self._rotation = components.rotation
        self._connections = handlers.connections
        self._link_policy = handlers.link_policy
        self._log_receiver = handlers.log_receiver
        self._self_description = handlers.self_description
        self._worker_messages = handlers.worker_messages
        self._visitors = handlers.visitors

    def on_received(
        self, peer: NodeId, messages: tuple[Message, ...], now: Moment
    ) -> list[Effect]:
        """Handle the messages of one frame, until one of them is invalid."""
        if is_visitor(peer):
            return self._visitors.on_received(peer, messages, now)
        effects: list[Effect] = []
        for message in messages:
            if not self._peer_table.record_frame(peer, now):
                break  # The link ended within this batch.
            refused = self._connections.reject_invalid(
                peer, message, self._election.term, now
            )
            if refused:
                return effects + refused
            effects += self.on_message(peer, message, now)
        return effects

    def on_message(  # noqa: C901, PLR0911, PLR0912  # A flat table.
        self, peer: NodeId, message: Message, now: Moment
    ) -> list[Effect]:
        """Handle one message of a connected peer, or of this node to itself.

        A peer may be slow, deposed or wrong. A message that does not fit its role is
        ignored or answered, never an error.
        """
        claim_handlers = self._claim_handlers
        match message:  # Frequent messages come first, as each case takes time.
            case Heartbeat():
                return self._on_heartbeat(peer, message, now)
            case HeartbeatOk() | Results() | RangeResults() | Reattach() | HeldBlobs():
                return self._worker_messages.on_worker_message(peer, message, now)
            case Replicate():
                return self._log_receiver.on_replicate(peer, message, now)
            case ReplicateOk():
                return self._replication.on_replicate_ok(peer, message, now)
            case (
                Assign(epoch) | AssignRanges(epoch) | Kill(epoch) | RecordBatch(epoch)
            ) if self._is_stale_epoch(epoch):
                # Rule I7 applies as soon as a higher epoch is known. The worker gets
                # the epoch only once it is durable.
                return claim_handlers.reject_stale_dispatcher(peer)
            case Assign() | AssignRanges():
                return self._worker.on_assign(peer, message, now)
            case Kill():
                return self._worker.on_kill(message, now)
            case ResultsOk() | RangeResultsOk():
                return self._worker.on_results_ok(message, now)
            case RecordBatch():
                # Records are valid in every epoch.
                self._outbox.put(RecordsAdded())
                return self._record_writer.on_record_batch(message)
            case Roster():
                return self._on_roster(peer, message, now)
            case Pull():
                return self._on_pull(peer, message, now)
            case Entries() | Snapshot():
                return self._log_receiver.on_remote_log(peer, message, now)
            case Transfer():
                return claim_handlers.on_transfer(peer, message, now)
            case Claim():
                return claim_handlers.on_claim(peer, message, now)
            case ClaimOk():
                return claim_handlers.on_claim_ok(peer, message)
            case ClaimRejected():
                return claim_handlers.on_claim_no(peer, message, now)
            case Redirect():
                effects = claim_handlers.on_redirect(peer, message, now)
                self._timeouts.set_timer(now)  # It may name another dispatcher.
                return effects
            case Probe():
                return self._timeouts.on_probe(peer, message, now)
            case ProbeOk():
                self._worker.on_probe_ok(peer, message)
                return self._timeouts.on_probe_ok(peer, message)
            case KeyringStatus() | KeyringTransfer():
                return self._rotation.on_keyring_message(peer, message)
            case Leave(reason):
                return self._connections.on_peer_down(peer, reason, now)
            case Contacts() | ReadOutput() | OutputPieces():
                return []  # Only between members and visitors.
            case Hello() | HelloOk():
                return []  # The link handles the first of each; more are ignored.

    def _is_stale_epoch(self, epoch: Epoch) -> bool:
        return epoch < self._election.epoch

    def _on_heartbeat(
        self, peer: NodeId, heartbeat: Heartbeat, now: Moment
    ) -> list[Effect]:
        effects = self._claim_handlers.on_heartbeat(peer, heartbeat.epoch, now)
        if not self._election.is_followed_epoch(peer, heartbeat.epoch):
            return effects
        effects += self._timeouts.on_dispatcher_heard(now)
        effects += self._worker.probe_if_fenced(now)
        ok = replace(
            self._self_description.heartbeat_ok(now),
            epoch=heartbeat.epoch,
            sent_s=heartbeat.sent_s,
        )
        return [*effects, Send(peer, (ok,))]

    def _on_roster(self, peer: NodeId, roster: Roster, now: Moment) -> list[Effect]:
        limits, election = self._limits, self._election
        is_followed = election.is_followed_epoch(peer, roster.epoch)
        if is_followed and len(roster.members) <= limits.peers:
            self._roster_builder.set_roster(roster, now)
            is_standby = self._roster_builder.role_of(self._me) is Role.STANDBY
            is_large = len(roster.members) > limits.full_mesh_peers
            election.set_plain_worker(is_plain_worker=is_large and not is_standby)
            self._candidacy.set_successors(roster)
            self._link_policy.update_dial_scope()
            self._outbox.put(RosterChanged())
        return self._connections.close_unneeded_links(now)

    def _on_pull(self, peer: NodeId, message: Pull, now: Moment) -> list[Effect]:
        effects = self._claim_handlers.on_pull(peer, message, now)
        self._outbox.put(SyncProgressed())  # It carries the peer's vector.
        if not self._log_versions.can_read_our_log(peer):
            # The peer sent it before it knew that this node writes a newer log version.
            return [self._log_receiver.empty_answer(peer, message), *effects]
        return self._replication.on_pull(peer, message, now) + effects
