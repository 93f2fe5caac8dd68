"""Log receiver: entries, snapshots and the dispatcher's stream from other nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Effect, LogWrite, Send
from octaskly.core.election.claims import ClaimHandlers
from octaskly.core.election.election import Election
from octaskly.core.log.facts import Decided, Entry, Finished, Submitted, TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.log.range_facts import member_entries
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.drafts import sequence_of
from octaskly.core.model.ids import Moment, NodeId, TaskId
from octaskly.core.node.message_checks import MessageValidator
from octaskly.core.protocol.messages import Entries, Pull, Replicate, Snapshot
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.not_found_rule import NotFoundRule
from octaskly.core.replication.standby_appends import Standby


class LogReceiver:
    """Stores other nodes' log entries, and updates this node's tasks from them."""

    def __init__(
        self,
        journal: Journal,
        anti_entropy: AntiEntropy,
        standby: Standby,
        dispatcher: Dispatcher,
        election: Election,
        claim_handlers: ClaimHandlers,
        message_validator: MessageValidator,
    ) -> None:
        self._election = election
        self._claim_handlers = claim_handlers
        self._message_validator = message_validator
        self._journal = journal
        self._anti_entropy = anti_entropy
        self._standby = standby
        self._dispatcher = dispatcher

    def on_remote_log(
        self, peer: NodeId, message: Entries | Snapshot, now: Moment
    ) -> list[Effect]:
        """Store what this node pulled, and send the dispatcher the new vector."""
        if isinstance(message, Entries):
            entries = message.entries
            effects = self._message_validator.check_entry_clocks(peer, entries, now)
            effects += self._on_entries(peer, message)
        else:
            effects = self._on_snapshot(peer, message)
        if any(isinstance(effect, LogWrite) for effect in effects):
            # The dispatcher pulls at once, and a PULL reads what is durable.
            send = partial(self._send_vector, peer)
            effects += self._journal.when_durable(send, now)
        return effects + self._claim_handlers.continue_transfer()

    def _send_vector(self, peer: NodeId, _: Moment) -> list[Effect]:
        return self._election.send_vector(peer)

    def _on_entries(self, peer: NodeId, message: Entries) -> list[Effect]:
        effects = self._anti_entropy.on_entries(peer, message)
        self._dispatcher.raise_sequence(highest_submitted_sequence(message.entries))
        self._withdraw_ended(message, effects)
        return effects

    def _on_snapshot(self, peer: NodeId, message: Snapshot) -> list[Effect]:
        self._dispatcher.raise_sequence(
            highest_id_sequence(row.record.id for row in message.rows)
        )
        ended = _ended_tasks(message) if self._dispatcher.is_active else ()
        when_merged = partial(
            self._on_part_merged, peer, ended, is_last=not message.has_more
        )
        return self._anti_entropy.on_snapshot(peer, message, when_merged)

    def _on_part_merged(
        self, peer: NodeId, ended: tuple[TaskId, ...], now: Moment, *, is_last: bool
    ) -> list[Effect]:
        """Withdraw tasks that ended elsewhere; the last part raised the vector."""
        effects = self._dispatcher.on_ended_elsewhere(ended, now) if ended else []
        if is_last:
            effects += self._election.send_vector(peer)
            effects += self._claim_handlers.continue_transfer()
        return effects

    def _withdraw_ended(self, message: Entries, effects: Iterable[Effect]) -> None:
        """Withdraw tasks that ended elsewhere, once their entries are durable."""
        ended = _ended_tasks(message)
        if ended and any(isinstance(effect, LogWrite) for effect in effects):
            self._journal.defer_until_durable(
                partial(self._dispatcher.on_ended_elsewhere, ended)
            )

    def on_replicate(
        self, peer: NodeId, message: Replicate, now: Moment
    ) -> list[Effect]:
        """Store an append of the dispatcher, unless the dispatcher is deposed."""
        if not self._election.is_followed_epoch(peer, message.epoch):
            # It may be the only answer to a PULL, which is then no longer pending.
            self._anti_entropy.drop_peer(peer)
            self._standby.note_missed(message)
            return self._claim_handlers.reject_stale_dispatcher(peer)
        effects = self._message_validator.check_entry_clocks(peer, message.entries, now)
        self._dispatcher.raise_sequence(highest_submitted_sequence(message.entries))
        effects += self._standby.on_replicate(peer, message, now)
        return effects + self._claim_handlers.continue_transfer()

    def empty_answer(self, peer: NodeId, pull: Pull) -> Send:
        """Return an empty answer, so that the peer's PULL is not left pending."""
        own_vector = self._journal.vector
        common = (
            (s, min(seq, own_vector[s])) for s, seq in pull.vector if s in own_vector
        )
        return Send(peer, (Entries((), (), has_more=False, vector=tuple(common)),))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReader:
    """Lets the dispatcher read its queue again when other nodes' entries arrived."""

    journal: Journal
    peer_table: PeerTable
    anti_entropy: AntiEntropy
    not_found_rule: NotFoundRule
    dispatcher: Dispatcher

    def reread_after_sync(self, now: Moment) -> list[Effect]:
        """Read the queue again once all entries of other nodes are durable."""
        dispatcher, not_found_rule = self.dispatcher, self.not_found_rule
        if dispatcher.reconciler.is_log_behind:
            if not_found_rule.has_read_all:
                return dispatcher.on_log_read(now)
            if not_found_rule.can_read_more(now.mono_s):
                progress = self.anti_entropy.progress
                dispatcher.reconciler.extend_waits(progress, now)
        if not self.anti_entropy.pop_has_new_entries(self.peer_table.peers):
            return []
        return self.journal.when_durable(dispatcher.on_remote_entries, now)


def _ended_tasks(message: Entries | Snapshot) -> tuple[TaskId, ...]:
    """Return the tasks that ended, or had failed attempts, according to `message`.

    The number of failed attempts decides about a retry.
    """
    match message:
        case Entries(entries):
            return _ended_by(entries)
        case Snapshot(rows=rows, pending=pending):
            ended = (row.record.id for row in rows if _has_ended_attempt(row.record))
            return (*ended, *_ended_by(pending))


def _ended_by(entries: Iterable[Entry]) -> tuple[TaskId, ...]:
    facts = (entry.fact for entry in member_entries(entries))
    return tuple(
        f.task for f in facts if isinstance(f, Finished | TaskCancelled | Decided)
    )


def _has_ended_attempt(record: TaskRecord) -> bool:
    return record.state.is_final or any(a.outcome for a in record.attempts)


def highest_submitted_sequence(entries: tuple[Entry, ...]) -> int:
    """Return the highest sequence number in the ids of submitted tasks, or 0."""
    facts = (entry.fact for entry in entries)
    return highest_id_sequence(
        fact.task for fact in facts if isinstance(fact, Submitted)
    )


def highest_id_sequence(ids: Iterable[TaskId]) -> int:
    """Return the highest sequence number in task ids, or 0."""
    return max(map(sequence_of, ids), default=0)
