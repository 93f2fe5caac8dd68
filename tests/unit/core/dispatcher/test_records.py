"""Records that belong to no task, and their distribution to followers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.effects import (
    Answer,
    Append,
    ApplyRecords,
    Effect,
    MergeRows,
    Save,
    Send,
)
from octaskly.core.events import (
    Event,
    PeerUp,
    Persisted,
    Received,
    RecordRequested,
    SavedState,
    TimerFired,
)
from octaskly.core.log.facts import Recorded
from octaskly.core.log.mesh_records import (
    AUDIT,
    KINDS,
    TOKEN,
    TOKEN_REVOKED,
    RecordDraft,
    RecordKind,
)
from octaskly.core.model.ids import NO_EPOCH, Address, Epoch
from octaskly.core.model.nodes import NodeState
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import (
    ClaimOk,
    Hello,
    Message,
    Reattach,
    RecordBatch,
)
from octaskly.core.replies import NotDispatching, RecordLimitReached, RecordsKept
from tests.support.builders import moment, node_id, settings

PEER = node_id("b")
DRAFT = RecordDraft(TOKEN_REVOKED, "abc", b"why")
OLD = Recorded(TOKEN_REVOKED, "old", b"", 0, 7)


class Shell:
    """A node with a disk that writes on request."""

    def __init__(self, saved: SavedState | None = None) -> None:
        self.node = Node(settings("a"), saved or SavedState(records=(OLD,)))
        self.seconds = 0.0
        self.numbers: list[int] = []
        self.done: list[Effect] = []

    def feed(self, event: Event) -> list[Effect]:
        effects = self.node.step(event, moment(self.seconds))
        for effect in effects:
            if isinstance(effect, Append | Save | MergeRows):
                self.numbers.append(effect.number)
        self.done += effects
        return effects

    def write(self) -> list[Effect]:
        """Write the queued entries to the disk."""
        effects: list[Effect] = []
        while self.numbers:
            effects += self.feed(Persisted(self.numbers.pop(0)))
        return effects

    def become_dispatcher(self) -> None:
        while not self.node.is_dispatcher:
            self.seconds += 0.1
            self.feed(TimerFired())
            self.write()

    def meet(self) -> list[Effect]:
        """Connect a peer as follower."""
        hello = Hello(
            node=replace(settings("b").node, id=PEER), epoch=NO_EPOCH, dispatcher=None
        )
        sent = self.node.hello(moment())
        effects = self.feed(PeerUp(PEER, sent, hello, Address("::1", 7)))
        followed = ClaimOk(self.node.epoch, ())
        effects += self.hear(followed, Reattach((), 2, NodeState.READY))
        return effects

    def hear(self, *messages: Message) -> list[Effect]:
        return self.feed(Received(PEER, messages))

    def ask(self, *drafts: RecordDraft) -> list[Effect]:
        return self.feed(RecordRequested(1, drafts))


def sent_records(effects: list[Effect]) -> list[Recorded]:
    """Return the records that were sent to the peer."""
    return [
        record
        for effect in effects
        if isinstance(effect, Send)
        for message in effect.messages
        if isinstance(message, RecordBatch)
        for record in message.items
    ]


def learnt(effects: list[Effect]) -> list[Recorded]:
    """Return the records that the shell must apply."""
    return [r for e in effects if isinstance(e, ApplyRecords) for r in e.records]


def kept(effects: list[Effect]) -> list[object]:
    """Return the answers."""
    return [e.reply for e in effects if isinstance(e, Answer)]


def test_a_node_applies_its_records_from_its_first_step() -> None:
    """A revoked token stays revoked when every node restarts."""
    assert learnt(Shell().feed(TimerFired())) == [OLD]


def test_only_a_dispatcher_records() -> None:
    """Another node forwards the request."""
    shell = Shell()
    shell.feed(TimerFired())

    assert kept(shell.ask(DRAFT)) == [NotDispatching()]


def test_a_record_is_applied_and_answered_once_it_is_durable() -> None:
    """As for tasks: no answer reports anything that a crash would undo."""
    shell = Shell()
    shell.become_dispatcher()

    before = shell.ask(DRAFT)
    after = shell.write()

    assert (learnt(before), kept(before)) == ([], [])
    (answer,) = kept(after)
    assert isinstance(answer, RecordsKept)
    assert answer.replicas == 1
    (record,) = answer.records
    assert (record.kind, record.key, record.body) == DRAFT[:3]
    assert learnt(after) == [record]


def test_followers_get_all_records_first_and_new_ones_once_durable() -> None:
    """Most of them keep no log."""
    shell = Shell()
    shell.become_dispatcher()
    assert sent_records(shell.meet()) == [OLD]

    assert sent_records(shell.ask(DRAFT)) == []
    (record,) = sent_records(shell.write())

    assert record.key == "abc"


def test_listed_records_are_not_sent_to_followers() -> None:
    """Only readers of an audit log need its twenty thousand lines."""
    shell = Shell()
    shell.become_dispatcher()
    shell.meet()

    effects = shell.ask(RecordDraft(AUDIT, "1", b"{}")) + shell.write()

    assert sent_records(effects) == learnt(effects) == []


def test_a_follower_stores_a_record_before_it_applies_it() -> None:
    """So the record survives a restart."""
    shell = Shell()
    shell.feed(TimerFired())
    epoch = Epoch(3, PEER)
    hello = Hello(
        node=replace(settings("b").node, id=PEER), epoch=epoch, dispatcher=PEER
    )
    shell.feed(PeerUp(PEER, shell.node.hello(moment()), hello, Address("::1", 7)))
    new = Recorded(TOKEN_REVOKED, "new", b"", 0, 9)

    before = shell.hear(RecordBatch(epoch, (OLD, new)))
    after = shell.write()

    (save,) = [e for e in before if isinstance(e, Save) and e.records]
    assert save.records == (new,)
    assert learnt(before) == []
    assert learnt(after) == [new]


def test_a_taken_key_answers_with_the_existing_record() -> None:
    """The second client learns the record, and nothing is written twice."""
    shell = Shell()
    shell.become_dispatcher()
    shell.ask(RecordDraft(TOKEN, "2", b"first"))
    shell.write()

    effects = shell.ask(RecordDraft(TOKEN, "2", b"second"))
    (answer,) = kept(effects + shell.write())

    assert isinstance(answer, RecordsKept)
    assert answer.records[0].body == b"first"
    assert not any(isinstance(effect, Append) for effect in effects)


def test_a_record_received_without_the_log_is_written_on_request() -> None:
    """The answer counts copies of the log, and none contains the record."""
    shell = Shell()
    shell.become_dispatcher()

    effects = shell.ask(RecordDraft(TOKEN_REVOKED, "old", b"again"))

    (append,) = [effect for effect in effects if isinstance(effect, Append)]
    assert [entry.fact for entry in append.entries] == [OLD]
    assert kept(effects) == []
    assert kept(shell.write()) == [RecordsKept((OLD,), 1)]


def test_records_beyond_the_limit_of_a_kind_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each node keeps them in memory; expired ones make room."""
    monkeypatch.setitem(KINDS, TOKEN_REVOKED, RecordKind(2, 256, is_broadcast=True))
    shell = Shell()
    shell.become_dispatcher()
    now_ms = moment(shell.seconds).wall_ms
    shell.ask(DRAFT._replace(expires_ms=now_ms + 1))

    assert kept(shell.ask(DRAFT._replace(key="x"))) == [
        RecordLimitReached(TOKEN_REVOKED, 2)
    ]

    shell.seconds += 0.1
    shell.ask(DRAFT._replace(key="x"))
    assert all(isinstance(reply, RecordsKept) for reply in kept(shell.write()))
