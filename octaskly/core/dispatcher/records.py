"""Records what the dispatcher is asked to, and lets all nodes know it.

A record goes through the log as a task does: the answer leaves once it is on this disk
and on a standby's. What every node goes by is also told to the followers, since most of
them keep no log: at once when it is durable, and all of it when they attach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from octaskly.core.dispatcher.step import Placing
from octaskly.core.effects import Answer, Effect, Learnt, Send
from octaskly.core.events import RecordAsked, RecordDraft
from octaskly.core.log.facts import Recorded
from octaskly.core.log.records import KINDS, is_over, is_sane
from octaskly.core.model.ids import NO_EPOCH, Epoch, Moment, NodeId, Reign
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import Message, Records
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication
from octaskly.core.replies import Crowded, Kept, NotDurable, NotHere

BATCH: Final = 1000  #: records in one message, of 4 KiB at most


class Clerk:
    """The records of one node; it writes while the node reigns."""

    def __init__(
        self,
        placing: Placing,
        journal: Journal,
        replication: Replication,
        settings: Settings,
    ) -> None:
        self._placing = placing
        self._journal = journal
        self._members = replication.members
        self._is_strict = settings.is_strict
        self._told: dict[tuple[str, str], Recorded] = {}
        """What followers have to know, as far as it is durable here."""
        self._seen_changes = -1  #: of the members, when all had been told

    def on_asked(
        self, event: RecordAsked, now: Moment, *, may_write: bool
    ) -> list[Effect]:
        """Record what is asked for; the answer waits until it is safe."""
        if not may_write:
            return [Answer(event.ticket, NotHere())]
        crowded = self._crowded(event.drafts, now)
        if crowded is not None:
            return [Answer(event.ticket, crowded)]
        counting = self._written(event.drafts, now)

        def answer(_: Moment, replicas: int) -> list[Effect]:
            if self._is_strict and replicas == 1:
                return [Answer(event.ticket, NotDurable())]
            return [Answer(event.ticket, Kept(tuple(counting), replicas))]

        return self._placing.commit(now, when_safe=answer)

    def write(self, drafts: Sequence[RecordDraft], now: Moment) -> list[Effect]:
        """Record what nobody asked for and nobody waits for, if there is room."""
        if not drafts or self._crowded(drafts, now) is not None:
            return []
        self._written(drafts, now)
        return self._placing.commit(now)

    def _written(self, drafts: Sequence[RecordDraft], now: Moment) -> list[Recorded]:
        """Write what is new; return the records that count."""
        counting: list[Recorded] = []
        for draft in drafts:
            known = self._journal.book.get(draft.kind, draft.key)
            if known is None:
                known = Recorded(*draft, self._journal.tick(now))
                assert is_sane(known), f"no record of ours: {draft.kind} {draft.key}"
                self._placing.facts.append(known)
            elif not self._journal.book.is_logged(known):
                # It was told without the log, which no standby copies.
                self._placing.facts.append(known)
            counting.append(known)
        return counting

    def _crowded(self, drafts: Sequence[RecordDraft], now: Moment) -> Crowded | None:
        """Return the kind of which there are too many already, if there is one."""
        for name in dict.fromkeys(draft.kind for draft in drafts):
            kind = KINDS[name]
            fresh = sum(
                draft.kind == name and self._journal.book.get(*draft[:2]) is None
                for draft in drafts
            )
            if not kind.is_listed and fresh:
                room = self._journal.book.room(name, now.wall_ms)
                if fresh > room:
                    return Crowded(name, kind.most)
        return None

    def on_told(self, message: Records) -> list[Effect]:
        """Keep what the dispatcher of this node says that all go by."""
        book = self._journal.book
        fresh = tuple(record for record in message.items if book.learn(record))
        return [self._journal.save(records=fresh)] if fresh else []

    def review(self, reign: Reign | None, now: Moment) -> list[Effect]:
        """Let know what is new, here and at the followers of this reign."""
        effects: list[Effect] = []
        news = self._journal.book.take_news()
        if news:

            def durable(_: Moment) -> list[Effect]:
                told = tuple(r for r in news if KINDS[r.kind].is_told)
                self._told.update({(r.kind, r.key): r for r in told})
                return [Learnt(news), *self._spread(told)]

            effects += self._journal.when_durable(durable, now)
        if reign is not None and self._members.changes != self._seen_changes:
            self._seen_changes = self._members.changes
            for peer, view in self._members.followers(reign.epoch):
                if not view.has_records:
                    view.has_records = True
                    effects += self._greet(peer, now)
        return effects

    def _spread(self, items: tuple[Recorded, ...]) -> list[Effect]:
        """Tell the followers what is durable now, if this node reigns."""
        epoch = self._placing.epoch
        if not items or epoch == NO_EPOCH:
            return []
        messages = _messages(epoch, items)
        return [Send(peer, messages) for peer, _ in self._members.followers(epoch)]

    def _greet(self, peer: NodeId, now: Moment) -> list[Effect]:
        """Tell a follower all that it has to know."""
        over = [k for k, record in self._told.items() if is_over(record, now.wall_ms)]
        for key in over:
            del self._told[key]
        messages = _messages(self._placing.epoch, tuple(self._told.values()))
        return [Send(peer, messages)] if messages else []


def _messages(epoch: Epoch, items: tuple[Recorded, ...]) -> tuple[Message, ...]:
    return tuple(
        Records(epoch, items[start : start + BATCH])
        for start in range(0, len(items), BATCH)
    )
