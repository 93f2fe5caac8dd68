"""Log receiver: entries, snapshots and the dispatcher's stream from other nodes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Effect, LogWrite, Send
from octaskly.core.log.facts import Entry, Finished, Submitted, TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.drafts import sequence_of
from octaskly.core.model.ids import Moment, NodeId, TaskId
from octaskly.core.protocol.messages import Entries, Pull, Replicate, Snapshot
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.standby_appends import Standby


class LogReceiver:
    """Stores other nodes' log entries, and updates this node's tasks from them."""

    def __init__(
        self,
        journal: Journal,
        anti_entropy: AntiEntropy,
        standby: Standby,
        dispatcher: Dispatcher,
    ) -> None:
        self._journal = journal
        self._anti_entropy = anti_entropy
        self._standby = standby
        self._dispatcher = dispatcher

    def on_entries(self, peer: NodeId, message: Entries) -> list[Effect]:
        """Store entries that this node pulled."""
        effects = self._anti_entropy.on_entries(peer, message)
        self._dispatcher.raise_sequence(highest_submitted_sequence(message.entries))
        self._withdraw_ended(message, effects)
        return effects

    def on_snapshot(self, peer: NodeId, message: Snapshot) -> list[Effect]:
        """Store snapshot rows that this node pulled."""
        effects = self._anti_entropy.on_snapshot(peer, message)
        self._dispatcher.raise_sequence(
            highest_id_sequence(row.record.id for row in message.rows)
        )
        self._withdraw_ended(message, effects)
        return effects

    def _withdraw_ended(
        self, message: Entries | Snapshot, effects: Iterable[Effect]
    ) -> None:
        """Withdraw tasks that ended elsewhere, once their entries are durable."""
        ended = _ended_tasks(message)
        if ended and any(isinstance(effect, LogWrite) for effect in effects):
            self._journal.defer_until_durable(
                partial(self._dispatcher.on_ended_elsewhere, ended)
            )

    def on_replicate(
        self, peer: NodeId, message: Replicate, now: Moment
    ) -> list[Effect]:
        """Store an append of the dispatcher."""
        self._dispatcher.raise_sequence(highest_submitted_sequence(message.entries))
        return self._standby.on_replicate(peer, message, now)

    def on_foreign_stream(self, peer: NodeId, message: Replicate) -> None:
        """Discard an append from a node that this one does not follow."""
        # It may be the only answer to a PULL, which is then no longer pending.
        self._anti_entropy.drop_peer(peer)
        self._standby.note_missed(message)

    def empty_answer(self, peer: NodeId, pull: Pull) -> Send:
        """Return an empty answer, so that the peer's PULL is not left pending."""
        own_vector = self._journal.vector
        common = (
            (s, min(seq, own_vector[s])) for s, seq in pull.vector if s in own_vector
        )
        return Send(peer, (Entries((), (), has_more=False, vector=tuple(common)),))


def _ended_tasks(message: Entries | Snapshot) -> tuple[TaskId, ...]:
    """Return the tasks that ended, or had failed attempts, according to `message`.

    The number of failed attempts decides about a retry.
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
