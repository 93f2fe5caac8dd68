"""What each message of a peer means, and to which machine it goes.

Messages of nodes without a link, and orders that do not fit the sender's role, are
values to ignore or to answer, never errors: a peer may be slow, deposed or wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from msgspec.structs import replace

from octaskly.core.effects import Effect, LogWrite, Send
from octaskly.core.log.facts import Entry, Finished, Submitted, TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.drafts import sequence_of
from octaskly.core.model.ids import Epoch, Moment, NodeId, TaskId
from octaskly.core.model.keys import KeyringMessage, KeyringStatus, KeyringTransfer
from octaskly.core.model.nodes import Role
from octaskly.core.node.announcements import SelfDescription
from octaskly.core.node.components import Components
from octaskly.core.node.connections import Connections
from octaskly.core.protocol.messages import (
    Assign,
    Claim,
    ClaimOk,
    ClaimRejected,
    Entries,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Kill,
    Leave,
    Message,
    Probe,
    ProbeOk,
    Pull,
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
    """The way in for messages of other nodes and of this one."""

    def __init__(
        self,
        components: Components,
        self_description: SelfDescription,
        connections: Connections,
    ) -> None:
        self._components = components
        self._me = components.settings.node.id
        self._self_description = self_description
        self._connections = connections

    def on_message(self, peer: NodeId, message: Message, now: Moment) -> list[Effect]:
        """Handle one message of a connected peer, or of this node's other half."""
        match message:
            case Heartbeat():
                return self._on_heartbeat(peer, message, now)
            case Assign() | Kill() | ResultsOk():
                return self._on_dispatcher_message(peer, message, now)
            case HeartbeatOk() | Results() | Reattach():
                return self._on_worker_message(peer, message, now)
            case Roster() | Replicate() | ReplicateOk() | Transfer() | RecordBatch():
                return self._on_log_message(peer, message, now)
            case Pull() | Entries() | Snapshot():
                return self._on_sync_message(peer, message, now)
            case Leave(reason):
                return self._connections.on_peer_down(peer, reason, now)
            case Hello() | HelloOk():
                return []  # The link has consumed those; a second one means nothing.
            case _:
                return self._on_election_message(peer, message, now)

    def _on_election_message(
        self,
        peer: NodeId,
        message: Claim
        | ClaimOk
        | ClaimRejected
        | Redirect
        | Probe
        | ProbeOk
        | KeyringMessage,
        now: Moment,
    ) -> list[Effect]:
        claim_handlers = self._components.claim_handlers
        match message:
            case Claim():
                return claim_handlers.on_claim(peer, message, now)
            case ClaimOk():
                return claim_handlers.on_claim_ok(peer, message)
            case ClaimRejected():
                return claim_handlers.on_claim_no(peer, message, now)
            case Redirect():
                return claim_handlers.on_redirect(peer, message, now)
            case Probe():
                return [Send(peer, (self._probe_ok(message, now),))]
            case ProbeOk():
                return self._components.timeouts.on_probe_ok(message)
            case KeyringStatus() | KeyringTransfer():
                return self._components.rotation.on_keyring_message(peer, message)

    def _probe_ok(self, message: Probe, now: Moment) -> ProbeOk:
        """Say how long ago a frame came from the node."""
        suspect, components = message.suspect, self._components
        age_s = (
            0.0
            if suspect == self._me
            else components.peer_table.frame_age_s(suspect, now)
        )
        return ProbeOk(suspect, message.sent_s, age_s, components.election.epoch)

    def _on_heartbeat(
        self, peer: NodeId, heartbeat: Heartbeat, now: Moment
    ) -> list[Effect]:
        election = self._components.election
        effects = self._components.claim_handlers.on_heartbeat(
            peer, heartbeat.epoch, now
        )
        if peer != election.dispatcher or heartbeat.epoch != election.epoch:
            return effects
        self._components.standby.on_heartbeat(heartbeat, now)
        ok = replace(
            self._self_description.heartbeat_ok(now),
            epoch=heartbeat.epoch,
            sent_s=heartbeat.sent_s,
        )
        return [*effects, Send(peer, (ok,))]

    def _on_sync_message(
        self, peer: NodeId, message: Pull | Entries | Snapshot, now: Moment
    ) -> list[Effect]:
        components = self._components
        effects: list[Effect] = []
        match message:
            case Pull():
                effects += components.claim_handlers.on_pull(peer, message, now)
                if not components.log_versions.can_read_our_log(peer):
                    # It asked before it heard that a newer program writes here now.
                    return [self._empty_entries(peer, message), *effects]
                return components.replication.on_pull(peer, message, now) + effects
            case Entries(entries):
                effects += components.message_validator.check_entry_clocks(
                    peer, entries, now
                )
                effects += components.anti_entropy.on_entries(peer, message)
                components.dispatcher.raise_sequence(
                    highest_submitted_sequence(entries)
                )
            case Snapshot(rows=rows):
                effects += components.anti_entropy.on_snapshot(peer, message)
                ids = (row.record.id for row in rows)
                components.dispatcher.raise_sequence(highest_id_sequence(ids))
        if any(isinstance(effect, LogWrite) for effect in effects):
            if ended := _ended_tasks(message):
                components.journal.defer_until_durable(
                    partial(components.dispatcher.on_ended_elsewhere, ended)
                )
            if peer == components.election.dispatcher:
                components.standby.mark_behind()  # Else it had been streamed.
            effects += components.election.send_vector(peer)
        return effects + components.claim_handlers.continue_transfer()

    def _empty_entries(self, peer: NodeId, pull: Pull) -> Send:
        """Return an answer that gives a peer nothing, so that none is owed to it."""
        own_vector = self._components.journal.vector
        common = (
            (s, min(seq, own_vector[s])) for s, seq in pull.vector if s in own_vector
        )
        return Send(peer, (Entries((), (), has_more=False, vector=tuple(common)),))

    def _on_log_message(
        self,
        peer: NodeId,
        message: Roster | Replicate | ReplicateOk | Transfer | RecordBatch,
        now: Moment,
    ) -> list[Effect]:
        components = self._components
        match message:
            case Replicate():
                return self._on_replicate(peer, message, now)
            case ReplicateOk():
                return components.replication.on_replicate_ok(peer, message, now)
            case Transfer():
                return components.claim_handlers.on_transfer(peer, message, now)
            case Roster():
                return self._on_roster(peer, message)
            case RecordBatch(epoch):
                if self._is_stale_epoch(epoch):
                    return components.claim_handlers.reject_stale_dispatcher(peer)
                # Whoever said it: it is true in every reign.
                return components.record_writer.on_record_batch(message)

    def _on_replicate(
        self, peer: NodeId, message: Replicate, now: Moment
    ) -> list[Effect]:
        """Keep what the dispatcher appends, unless it is dispatcher no more."""
        components = self._components
        election = components.election
        if peer != election.dispatcher or message.epoch != election.epoch:
            # It may be all the answer that a PULL gets, which is owed no more then.
            components.anti_entropy.drop_peer(peer)
            components.standby.note_missed(message)
            return components.claim_handlers.reject_stale_dispatcher(peer)
        components.dispatcher.raise_sequence(
            highest_submitted_sequence(message.entries)
        )
        effects = components.message_validator.check_entry_clocks(
            peer, message.entries, now
        )
        effects += components.standby.on_replicate(peer, message, now)
        return effects + components.claim_handlers.continue_transfer()

    def reread_after_sync(self, now: Moment) -> list[Effect]:
        """Let the queue be read afresh once all entries of others are on disk."""
        components = self._components
        dispatcher = components.dispatcher
        if dispatcher.is_active and components.journal.has_rows_ahead:
            self._hasten_row_rewrite(now)
        if dispatcher.reconciler.is_log_behind:
            if components.catch_up.has_read_all:
                dispatcher.reconciler.trust_log()
                return dispatcher.on_remote_entries(now)
            if components.catch_up.can_read_more(now.mono_s):
                dispatcher.reconciler.extend_read_delay(now)
        if not components.anti_entropy.pop_has_new_entries(components.peer_table.peers):
            return []
        return components.journal.when_durable(
            components.dispatcher.on_remote_entries, now
        )

    def _hasten_row_rewrite(self, now: Moment) -> None:
        """Let standbys have what rows alone say here, if nobody brings the log.

        Alone this node can wait for that longer: it is most of what it holds, maybe.
        """
        components = self._components
        if components.replication.standby_nodes and components.catch_up.has_read_all:
            components.dispatcher.retention.hasten_row_rewrite(now)

    def _on_roster(self, peer: NodeId, roster: Roster) -> list[Effect]:
        components = self._components
        election = components.election
        is_own = peer == election.dispatcher and roster.epoch == election.epoch
        if not is_own or len(roster.members) > components.settings.limits.peers:
            return []
        components.roster_builder.set_roster(roster)
        is_standby = components.roster_builder.role_of(self._me) is Role.STANDBY
        if not is_standby:
            components.standby.mark_behind()
        full_mesh_max = components.settings.limits.full_mesh_peers
        is_plain_worker = not is_standby and len(roster.members) > full_mesh_max
        election.set_plain_worker(is_plain_worker=is_plain_worker)
        components.candidacy.set_successors(roster)
        return []

    def _on_dispatcher_message(
        self, peer: NodeId, message: Assign | Kill | ResultsOk, now: Moment
    ) -> list[Effect]:
        """Hand a dispatcher's message to the worker, and tell a deposed one so."""
        components = self._components
        worker = components.worker
        if isinstance(message, ResultsOk):
            return worker.on_results_ok(message, now)
        if self._is_stale_epoch(message.epoch):
            # Rule I7, from the moment a higher epoch is known: the worker hears of
            # it only once it is on disk.
            return components.claim_handlers.reject_stale_dispatcher(peer)
        if isinstance(message, Assign):
            return worker.on_assign(peer, message, now)
        return worker.on_kill(message, now)

    def _is_stale_epoch(self, epoch: Epoch) -> bool:
        return epoch < self._components.election.epoch

    def _on_worker_message(
        self, peer: NodeId, message: HeartbeatOk | Results | Reattach, now: Moment
    ) -> list[Effect]:
        """Hand a worker's message to the reign that it confirmed."""
        components = self._components
        dispatcher, view = components.dispatcher, components.peer_table.peers.get(peer)
        if not dispatcher.is_active or components.election.dispatcher_epoch is None:
            return []  # The worker keeps its results until somebody reigns.
        if view is not None and view.followed_epoch != components.election.epoch:
            return []  # Said to an earlier reign; it will be said again.
        if view is not None and message.state is not None:
            view.state = message.state
        match message:
            case HeartbeatOk():
                if view is not None:
                    view.last_heartbeat_ok = message
                effects = components.peer_table.on_addresses_changed(
                    peer, message.addresses, now
                )
                effects += components.self_fencing.on_heartbeat_ok(message, now)
                return effects + dispatcher.on_heartbeat_ok(peer, message, now)
            case Results():
                if components.dispatcher_transfer.is_in_progress:
                    return []  # The successor must not take up a log that still grows.
                return dispatcher.on_results(peer, message, now)
            case Reattach():
                return self._on_reattach(peer, message, now)

    def _on_reattach(
        self, peer: NodeId, message: Reattach, now: Moment
    ) -> list[Effect]:
        """Know what a worker runs, once it has told all of it."""
        components = self._components
        view = components.peer_table.peers.get(peer)
        if view is None:
            info = components.settings.node
        else:
            message = view.join_reattach_parts(message)
            if message.has_more:
                return []  # What the next part lists is not lost.
            info = view.info
        name = components.roster_builder.assign_name(peer, info.name)
        effects = components.dispatcher.on_worker_up(replace(info, name=name), now)
        if view is not None:
            view.is_worker = True
        return effects + components.dispatcher.on_reattach(peer, message, now)


def _ended_tasks(message: Pull | Entries | Snapshot) -> tuple[TaskId, ...]:
    """Return the tasks that are over, or tried in vain, by what came from another node.

    How often they were tried decides whether they are tried again.
    """
    match message:
        case Entries(entries):
            facts = (entry.fact for entry in entries)
            return tuple(
                f.task for f in facts if isinstance(f, Finished | TaskCancelled)
            )
        case Snapshot(rows=rows):
            return tuple(
                row.record.id for row in rows if _has_ended_attempt(row.record)
            )
        case Pull():
            return ()


def _has_ended_attempt(record: TaskRecord) -> bool:
    return record.state.is_final or any(a.outcome for a in record.attempts)


def highest_submitted_sequence(entries: tuple[Entry, ...]) -> int:
    """Return the highest sequence number in ids of submitted tasks, else 0."""
    facts = (entry.fact for entry in entries)
    return highest_id_sequence(
        fact.task for fact in facts if isinstance(fact, Submitted)
    )


def highest_id_sequence(ids: Iterable[TaskId]) -> int:
    """Return the highest sequence number in ids of tasks, else 0."""
    return max(map(sequence_of, ids), default=0)
