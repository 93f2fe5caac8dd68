"""Writing and broadcasting of records.

A record goes through the log as a task does: the answer is sent once the record is on
this node's disk and on a standby's. Broadcast records also go to all followers, because
most of them keep no log. Followers get each record once it is durable, and all records
when they attach.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.effects import Answer, ApplyRecords, Effect, Send
from octaskly.core.events import RecordRequested
from octaskly.core.log.facts import Recorded
from octaskly.core.log.mesh_records import (
    KINDS,
    RecordDraft,
    is_expired,
    is_valid_record,
)
from octaskly.core.model.ids import NO_EPOCH, DispatcherEpoch, Epoch, Moment, NodeId
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import Message, RecordBatch
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication
from octaskly.core.replies import (
    NotDispatching,
    NotReplicated,
    RecordLimitReached,
    RecordsKept,
)

RECORDS_PER_MESSAGE_MAX: Final = 1000  #: records in one message, of 4 KiB at most


class RecordWriter:
    """Writes records while this node is dispatcher, and stores broadcast ones."""

    def __init__(
        self,
        step: DispatchStep,
        journal: Journal,
        replication: Replication,
        settings: Settings,
    ) -> None:
        self._step = step
        self._journal = journal
        self._peer_table = replication.peer_table
        self._is_strict = settings.is_strict
        self._broadcast_records: dict[tuple[str, str], Recorded] = {}
        """Records that followers must have, once durable on this node."""
        self._seen_peer_changes = -1  #: peer table's `change_count` at the last send

    def on_record_requested(
        self, event: RecordRequested, now: Moment, *, may_write: bool
    ) -> list[Effect]:
        """Record what is asked for; the answer waits until it is safe."""
        if not may_write:
            return [Answer(event.ticket, NotDispatching())]
        limit_reached = self._reached_limit(event.drafts, now)
        if limit_reached is not None:
            return [Answer(event.ticket, limit_reached)]
        effective = tuple(self._write_new_records(event.drafts, now))
        answer = partial(self._answer_kept, event.ticket, effective)
        return self._step.commit_step(now, when_replicated=answer)

    def _answer_kept(
        self, ticket: int, kept: tuple[Recorded, ...], _: Moment, replicas: int
    ) -> list[Effect]:
        if self._is_strict and replicas == 1:
            return [Answer(ticket, NotReplicated())]
        return [Answer(ticket, RecordsKept(kept, replicas))]

    def write_drafts(self, drafts: Sequence[RecordDraft], now: Moment) -> list[Effect]:
        """Record what nobody asked for and nobody waits for, if there is room."""
        if not drafts or self._reached_limit(drafts, now) is not None:
            return []
        self._write_new_records(drafts, now)
        return self._step.commit_step(now)

    def _write_new_records(
        self, drafts: Sequence[RecordDraft], now: Moment
    ) -> list[Recorded]:
        """Write what is new; return the records that count."""
        effective: list[Recorded] = []
        for draft in drafts:
            known = self._journal.record_table.get(draft.kind, draft.key)
            if known is None:
                known = Recorded(*draft, self._journal.reserve_timestamps(now))
                assert is_valid_record(known), (
                    f"no record of ours: {draft.kind} {draft.key}"
                )
                self._step.facts.append(known)
            elif not self._journal.record_table.is_logged(known):
                # It came outside the log, so no standby has a copy in its log.
                self._step.facts.append(known)
            effective.append(known)
        return effective

    def _reached_limit(
        self, drafts: Sequence[RecordDraft], now: Moment
    ) -> RecordLimitReached | None:
        """Return the kind of which there are too many already, if there is one."""
        for name in dict.fromkeys(draft.kind for draft in drafts):
            kind = KINDS[name]
            new_count = sum(
                draft.kind == name
                and self._journal.record_table.get(*draft[:2]) is None
                for draft in drafts
            )
            if not kind.is_list_only and new_count:
                free_count = self._journal.record_table.free_count(name, now.wall_ms)
                if new_count > free_count:
                    return RecordLimitReached(name, kind.count_max)
        return None

    def on_record_batch(self, message: RecordBatch) -> list[Effect]:
        """Keep what the dispatcher of this node says that all go by."""
        record_table = self._journal.record_table
        new_records = tuple(
            record for record in message.items if record_table.add_record(record)
        )
        return [self._journal.save(records=new_records)] if new_records else []

    def broadcast_new_records(
        self, dispatcher_epoch: DispatcherEpoch | None, now: Moment
    ) -> list[Effect]:
        """Apply new records here, and send them to the followers of this epoch."""
        effects: list[Effect] = []
        new_records = self._journal.record_table.pop_new_records()
        if new_records:
            apply = partial(self._apply_durable, new_records)
            effects += self._journal.when_durable(apply, now)
        if (
            dispatcher_epoch is not None
            and self._peer_table.change_count != self._seen_peer_changes
        ):
            self._seen_peer_changes = self._peer_table.change_count
            for peer, view in self._peer_table.followers(dispatcher_epoch.epoch):
                if not view.has_records:
                    view.has_records = True
                    effects += self._send_all_records(peer, now)
        return effects

    def _apply_durable(
        self, new_records: tuple[Recorded, ...], _: Moment
    ) -> list[Effect]:
        """Apply records that are durable here, and send them to the followers."""
        broadcast = tuple(r for r in new_records if KINDS[r.kind].is_broadcast)
        self._broadcast_records.update({(r.kind, r.key): r for r in broadcast})
        return [ApplyRecords(new_records), *self._broadcast(broadcast)]

    def _broadcast(self, items: tuple[Recorded, ...]) -> list[Effect]:
        """Send durable records to the followers, if this node is dispatcher."""
        epoch = self._step.epoch
        if not items or epoch == NO_EPOCH:
            return []
        messages = _messages(epoch, items)
        return [Send(peer, messages) for peer, _ in self._peer_table.followers(epoch)]

    def _send_all_records(self, peer: NodeId, now: Moment) -> list[Effect]:
        """Send a follower all broadcast records."""
        expired = [
            k
            for k, record in self._broadcast_records.items()
            if is_expired(record, now.wall_ms)
        ]
        for key in expired:
            del self._broadcast_records[key]
        messages = _messages(self._step.epoch, tuple(self._broadcast_records.values()))
        return [Send(peer, messages)] if messages else []


def _messages(epoch: Epoch, items: tuple[Recorded, ...]) -> tuple[Message, ...]:
    return tuple(
        RecordBatch(epoch, items[start : start + RECORDS_PER_MESSAGE_MAX])
        for start in range(0, len(items), RECORDS_PER_MESSAGE_MAX)
    )
