"""How a dispatcher records what is about no task, and who hears of it."""

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
    RecordDraft,
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
    """A node with a disk that writes when it is told to."""

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
        """Let the disk write what waits."""
        effects: list[Effect] = []
        while self.numbers:
            effects += self.feed(Persisted(self.numbers.pop(0)))
        return effects

    def reign(self) -> None:
        while not self.node.is_dispatcher:
            self.seconds += 0.1
            self.feed(TimerFired())
            self.write()

    def meet(self) -> list[Effect]:
        """Let a peer connect and follow."""
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


def told(effects: list[Effect]) -> list[Recorded]:
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
    """Return what the shell is told to go by."""
    return [r for e in effects if isinstance(e, ApplyRecords) for r in e.records]


def kept(effects: list[Effect]) -> list[object]:
    """Return the answers."""
    return [e.reply for e in effects if isinstance(e, Answer)]


def test_a_node_goes_by_what_it_kept_from_its_first_step_on() -> None:
    """A token that was revoked stays so when every node restarts."""
    assert learnt(Shell().feed(TimerFired())) == [OLD]


def test_only_a_dispatcher_records() -> None:
    """Another node forwards the request."""
    shell = Shell()
    shell.feed(TimerFired())

    assert kept(shell.ask(DRAFT)) == [NotDispatching()]


def test_a_record_is_gone_by_and_answered_once_it_is_on_the_disk() -> None:
    """As a task: nobody is told what a crash would undo."""
    shell = Shell()
    shell.reign()

    before = shell.ask(DRAFT)
    after = shell.write()

    assert (learnt(before), kept(before)) == ([], [])
    (answer,) = kept(after)
    assert isinstance(answer, RecordsKept)
    assert answer.replicas == 1
    (record,) = answer.records
    assert (record.kind, record.key, record.body) == DRAFT[:3]
    assert learnt(after) == [record]


def test_followers_hear_all_when_they_attach_and_the_rest_when_it_is_durable() -> None:
    """Most of them keep no log."""
    shell = Shell()
    shell.reign()
    assert told(shell.meet()) == [OLD]

    assert told(shell.ask(DRAFT)) == []
    (record,) = told(shell.write())

    assert record.key == "abc"


def test_what_is_only_listed_is_told_to_nobody() -> None:
    """An audit log of twenty thousand lines concerns who asks for it."""
    shell = Shell()
    shell.reign()
    shell.meet()

    effects = shell.ask(RecordDraft(AUDIT, "1", b"{}")) + shell.write()

    assert told(effects) == learnt(effects) == []


def test_a_follower_keeps_what_it_is_told_and_then_goes_by_it() -> None:
    """Over a restart, too."""
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


def test_a_key_that_is_taken_answers_with_what_counts() -> None:
    """So who comes second knows that, and nothing is written twice."""
    shell = Shell()
    shell.reign()
    shell.ask(RecordDraft(TOKEN, "2", b"first"))
    shell.write()

    effects = shell.ask(RecordDraft(TOKEN, "2", b"second"))
    (answer,) = kept(effects + shell.write())

    assert isinstance(answer, RecordsKept)
    assert answer.records[0].body == b"first"
    assert not any(isinstance(effect, Append) for effect in effects)


def test_what_was_told_without_the_log_is_written_when_it_is_asked_for() -> None:
    """The answer counts copies of the log, and nobody had copied that."""
    shell = Shell()
    shell.reign()

    effects = shell.ask(RecordDraft(TOKEN_REVOKED, "old", b"again"))

    (append,) = [effect for effect in effects if isinstance(effect, Append)]
    assert [entry.fact for entry in append.entries] == [OLD]
    assert kept(effects) == []
    assert kept(shell.write()) == [RecordsKept((OLD,), 1)]


def test_more_records_than_a_kind_may_have_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each node has them in memory; those that are over make room."""
    monkeypatch.setitem(KINDS, TOKEN_REVOKED, RecordKind(2, 256, is_broadcast=True))
    shell = Shell()
    shell.reign()
    now_ms = moment(shell.seconds).wall_ms
    shell.ask(DRAFT._replace(expires_ms=now_ms + 1))

    assert kept(shell.ask(DRAFT._replace(key="x"))) == [
        RecordLimitReached(TOKEN_REVOKED, 2)
    ]

    shell.seconds += 0.1
    shell.ask(DRAFT._replace(key="x"))
    assert all(isinstance(reply, RecordsKept) for reply in kept(shell.write()))
