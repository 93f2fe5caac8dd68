"""A hostile visitor in front of the core: it can lie about its own tasks, no others.

The links refuse most of what it sends here; the core must not rely on them.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from octaskly.core.effects import Append, Disconnect, Effect, Send, Start
from octaskly.core.events import Event as CoreEvent
from octaskly.core.events import (
    LiveLoaded,
    PeerUp,
    Persisted,
    QueuedLoaded,
    Received,
    SavedState,
    TasksSubmitted,
    TimerFired,
)
from octaskly.core.log.facts import Assigned, Fact, Finished
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import (
    Address,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
)
from octaskly.core.model.nodes import NO_LOAD, NodeInfo, NodeState
from octaskly.core.model.settings import Settings
from octaskly.core.model.task_options import Requirements, TaskOptions, VisitorRule
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import (
    Assign,
    HeartbeatOk,
    Hello,
    Leave,
    Message,
    Probe,
    Reattach,
    Report,
    Results,
)
from octaskly.core.protocol.visitor_rules import redacted_for_visitor
from tests.support.builders import node_moment
from tests.support.sample_messages import MESSAGES

ME, VISITOR = NodeId("m" * 16), NodeId("visitor-" + "v" * 16)
EPOCH = Epoch(1, ME)
HOUR_MS = 3_600_000


def info(node: NodeId) -> NodeInfo:
    return NodeInfo(
        id=node,
        boot="boot",
        name="pi",
        slots=1,
        version="1.0",
        peer_port=7878,
        lan_port=3443,
        addresses=("10.0.0.1",),
    )


class Member:
    """A dispatcher with a disk that answers at once."""

    def __init__(self) -> None:
        self.node = Node(Settings(node=info(ME)), SavedState())
        self.now_s = 100.0
        self.effects: list[Effect] = []

    def feed(self, event: CoreEvent) -> list[Effect]:
        effects = self.node.step(event, node_moment(self.now_s))
        self.effects += effects
        for effect in tuple(effects):
            if isinstance(effect, Append) or type(effect).__name__ == "Save":
                effects += self.feed(Persisted(effect.number))  # type: ignore[union-attr]
        return effects

    def run(self, until_s: float) -> None:
        while self.now_s < until_s:
            due_s = max(self.node.deadline(), self.now_s + 0.001)
            self.now_s = min(due_s, until_s)
            self.feed(TimerFired(0.5))

    def submit(self, suffix: str, *, visitors: bool) -> None:
        rule = VisitorRule.ALLOWED if visitors else VisitorRule.UNSET
        options = TaskOptions(requires=Requirements(visitors=rule), name=suffix)
        draft = TaskDraft("true", options=options)
        self.feed(TasksSubmitted(1, (draft,), "ana", (suffix,), (None,)))


def visited() -> tuple[Member, AttemptId, TaskSpec, list[TaskId]]:
    """Return a dispatcher whose visitor has one of three tasks, and the others."""
    member = Member()
    member.feed(TimerFired(0.5))
    member.run(100.75)
    member.feed(LiveLoaded(1, ()))
    member.feed(QueuedLoaded(1, (), has_more=False))
    member.submit("00000001", visitors=False)  # It runs at the member.
    member.submit("00000002", visitors=False)  # It waits.
    hello = Hello(node=info(VISITOR), epoch=Epoch(0, NodeId("")), dispatcher=None)
    now = node_moment(member.now_s)
    sent = member.node.hello(now)
    address = Address("10.0.0.2", 1)
    ends_ms = now.wall_ms + HOUR_MS
    member.feed(
        PeerUp(VISITOR, sent, hello, address, visit_ends_ms=ends_ms, handshake_ms=1)
    )
    member.run(member.now_s + 1.5)
    member.feed(Received(VISITOR, (Reattach((), 1, NodeState.READY),)))
    member.submit("00000003", visitors=True)
    ((attempt, spec),) = [
        item
        for effect in member.effects
        if isinstance(effect, Send) and effect.peer == VISITOR
        for message in effect.messages
        if isinstance(message, Assign)
        for item in message.items
    ]
    starts = [e for e in member.effects if isinstance(e, Start)]
    others = [spec.id for start in starts for _, spec in start.items]
    assert len(others) == 1
    return member, attempt, spec, others


def written(member: Member, since: int) -> list[Fact]:
    """Return the facts that were written after so many effects."""
    return [
        entry.fact
        for effect in member.effects[since:]
        if isinstance(effect, Append)
        for entry in effect.entries
    ]


OUTCOMES = st.builds(
    Outcome,
    state=st.sampled_from(AttemptState),
    reason=st.sampled_from(EndReason),
    stdout=st.binary(max_size=9),
)
ATTEMPTS = st.builds(
    AttemptId,
    term=st.integers(0, 2),
    stream=st.integers(0, 3).map(StreamId),
    seq=st.integers(1, 9),
    n=st.integers(1, 2),
)


@st.composite
def lies(draw: st.DrawFn, attempt: AttemptId, ids: Sequence[TaskId]) -> Message:
    """Return what a visitor may send, about any task, or what it may not send."""
    kind = draw(st.integers(0, 5))
    run = draw(ATTEMPTS | st.just(attempt))
    spec = TaskSpec(id=draw(st.sampled_from(ids)), command="rm -rf /")
    match kind:
        case 0:
            report = Report(
                task=spec.id, attempt=run, outcome=draw(OUTCOMES), spec=spec
            )
            return Results((report,), draw(st.integers(-1, 1 << 40)))
        case 1:
            return Reattach(((run, spec),), 1 << 40, draw(st.sampled_from(NodeState)))
        case 2:
            epoch = draw(st.sampled_from([EPOCH, Epoch(9, VISITOR), Epoch(9, ME)]))
            ready = NodeState.READY
            return HeartbeatOk(epoch, 0.0, ready, 99, NO_LOAD, is_merging=True)
        case 3:
            return Probe(ME, 1.0)
        case 4:
            return Leave("bye")
        case _:
            return draw(st.sampled_from(MESSAGES))


@settings(max_examples=60)
@given(st.data())
def test_only_its_own_attempt_can_change(data: st.DataObject) -> None:
    """Whatever it sends, and in whatever order."""
    member, attempt, spec, others = visited()
    ids = [spec.id, *others, TaskId("task-002-00000002"), TaskId("unknown")]
    since, epoch = len(member.effects), member.node.epoch

    for _ in range(data.draw(st.integers(1, 8))):
        message = data.draw(lies(attempt, ids))
        member.feed(Received(VISITOR, (message,)))
        member.run(member.now_s + 0.3)

    for fact in written(member, since):
        if isinstance(fact, Finished):
            assert (fact.task, fact.attempt, fact.node) == (spec.id, attempt, VISITOR)
        elif isinstance(fact, Assigned):
            assert fact.task == spec.id or fact.node == ME
        else:
            assert getattr(fact, "task", spec.id) == spec.id
    for effect in member.effects[since:]:
        if isinstance(effect, Send):
            assert effect.peer == VISITOR
            told = (redacted_for_visitor(message) for message in effect.messages)
            assert all(message is not None for message in told)
        assert not isinstance(effect, Disconnect) or effect.peer == VISITOR
    assert (member.node.epoch, member.node.is_dispatcher) == (epoch, True)
    assert VISITOR not in member.node.peers
    roster = member.node.roster
    assert roster is not None
    assert [each.id for each in roster.members] == [ME]


@settings(max_examples=30)
@given(st.integers(-(1 << 60), 1 << 60), st.text(max_size=5))
def test_what_it_says_of_itself_is_bounded(slots: int, name: str) -> None:
    """Its link ends, or its slots and its name are such that they can be shown."""
    member, *_ = visited()
    hello = Hello(
        node=replace(info(VISITOR), slots=slots, name=name),
        epoch=Epoch(1 << 50, VISITOR),
        dispatcher=VISITOR,
    )
    now = node_moment(member.now_s)
    up = PeerUp(
        VISITOR, hello, hello, Address("::", 1), visit_ends_ms=now.wall_ms + HOUR_MS
    )

    effects = member.feed(up)

    is_refused = any(isinstance(effect, Disconnect) for effect in effects)
    assert is_refused or (0 < slots <= 1 << 12 and name.isprintable())
    assert member.node.epoch == EPOCH
