"""The log of other nodes as it comes in: entries, snapshots, a dispatcher's stream."""

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
from octaskly.core.replication.standby import Standby


class LogReceiver:
    """Takes in what other nodes wrote, and what that means for this node's tasks."""

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
        """Take in entries that this node asked for."""
        effects = self._anti_entropy.on_entries(peer, message)
        self._dispatcher.raise_sequence(highest_submitted_sequence(message.entries))
        self._withdraw_ended(message, effects)
        return effects

    def on_snapshot(self, peer: NodeId, message: Snapshot) -> list[Effect]:
        """Take in rows that this node asked for."""
        effects = self._anti_entropy.on_snapshot(peer, message)
        self._dispatcher.raise_sequence(
            highest_id_sequence(row.record.id for row in message.rows)
        )
        self._withdraw_ended(message, effects)
        return effects

    def _withdraw_ended(
        self, message: Entries | Snapshot, effects: Iterable[Effect]
    ) -> None:
        """Begin none of the tasks that ended elsewhere, once that is on disk."""
        ended = _ended_tasks(message)
        if ended and any(isinstance(effect, LogWrite) for effect in effects):
            self._journal.defer_until_durable(
                partial(self._dispatcher.on_ended_elsewhere, ended)
            )

    def on_replicate(
        self, peer: NodeId, message: Replicate, now: Moment
    ) -> list[Effect]:
        """Keep what the dispatcher appends."""
        self._dispatcher.raise_sequence(highest_submitted_sequence(message.entries))
        return self._standby.on_replicate(peer, message, now)

    def on_foreign_stream(self, peer: NodeId, message: Replicate) -> None:
        """Keep nothing of what a node appends that this one does not follow."""
        # It may be all the answer that a PULL gets, which is owed no more then.
        self._anti_entropy.drop_peer(peer)
        self._standby.note_missed(message)

    def empty_answer(self, peer: NodeId, pull: Pull) -> Send:
        """Return an answer that gives a peer nothing, so that none is owed to it."""
        own_vector = self._journal.vector
        common = (
            (s, min(seq, own_vector[s])) for s, seq in pull.vector if s in own_vector
        )
        return Send(peer, (Entries((), (), has_more=False, vector=tuple(common)),))


def _ended_tasks(message: Entries | Snapshot) -> tuple[TaskId, ...]:
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
