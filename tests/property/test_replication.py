"""Replication: copies are counted by disks, despite any loss or reordering."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from octaskly.core.effects import Append, Effect, LogLine, Send, ServePull
from octaskly.core.events import SavedState
from octaskly.core.log.facts import Entry
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import (
    DispatcherEpoch,
    Epoch,
    NodeId,
    StreamId,
    Vector,
    covers,
)
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import (
    Entries,
    Message,
    Pull,
    Replicate,
    ReplicateOk,
)
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.log_tail import (
    LogTail,
    append_size_bytes,
    replicate_messages,
)
from octaskly.core.replication.standby_appends import Standby
from tests.support.builders import STREAM, epoch, moment
from tests.support.replicating_dispatcher import FACT, ReplicatingDispatcher

STREAMS = [StreamId(n) for n in (5, 6, 7)]
FOLLOWERS = st.sampled_from("bcd")
SOLO_S = 2.0


@given(
    sizes=st.lists(st.lists(st.sampled_from(STREAMS), max_size=5), max_size=20),
    before=st.integers(0, 20),
    held=st.dictionaries(st.sampled_from(STREAMS), st.integers(0, 12)),
    entries_max=st.integers(1, 30),
    bytes_max=st.integers(1, 3000),
)
def test_node_and_log_tail_together_hold_every_entry(
    sizes: list[list[StreamId]],
    before: int,
    held: Vector,
    entries_max: int,
    bytes_max: int,
) -> None:
    """No entry is left out, and none comes out of order or without its writer."""
    tail = LogTail(Limits(tail_entries=entries_max))
    tail.restart_from({})
    vector: Vector = {}
    kept: deque[list[Entry]] = deque()
    for number, streams in enumerate(sizes):
        if number == before:
            tail.restart_from(vector)
            kept.clear()
        fresh = []
        for stream in streams:
            vector[stream] = vector.get(stream, 0) + 1
            fresh.append(Entry(stream, vector[stream], 1, FACT))
        writers = tuple((stream, epoch(int(stream))) for stream in streams)
        append = Append(number, tuple(fresh), writers)
        tail.add(append, append_size_bytes(append))
        kept.append(fresh)
        while sum(map(len, kept)) > entries_max:
            kept.popleft()
    held = {stream: min(seq, vector.get(stream, 0)) for stream, seq in held.items()}
    first = {
        entry.stream: entry.seq for fresh in reversed(kept) for entry in fresh[::-1]
    }
    is_long_enough = all(
        held.get(stream, 0) >= first.get(stream, vector[stream] + 1) - 1
        for stream in vector
    )
    node = Journal(SavedState(vector=tuple(held.items())), Outbox())

    missing = tail.appends_missing_in(held)

    assert (missing is not None) == is_long_enough
    if missing is None:
        return
    parts = replicate_messages(DispatcherEpoch(epoch(), STREAM), missing, 7, bytes_max)
    for part in parts:
        named = {stream for stream, _ in part.epochs}
        assert {entry.stream for entry in part.entries if entry.seq == 1} <= named
        node.append_remote(part.entries, part.epochs)
    assert covers(node.vector, vector.items())
    assert sum(len(part.entries) for part in parts) == sum(vector.values()) - sum(
        held.values()
    )
    assert [part.number for part in parts] == [0] * (len(parts) - 1) + [7]


@dataclass
class _Follower:
    """The core of a standby, with its disk and its link."""

    name: str
    journal: Journal = field(default_factory=lambda: Journal(SavedState(), Outbox()))
    inbox: deque[Message] = field(default_factory=deque)
    outbox: deque[Message] = field(default_factory=deque)
    disk: Vector = field(default_factory=dict)
    is_linked: bool = False

    def __post_init__(self) -> None:
        self.exchange = AntiEntropy(self.journal, Outbox(), {})
        self.standby = Standby(self.journal, self.exchange)


class CopiesMachine(RuleBasedStateMachine):
    """Successive epochs, three followers, links and disks that take time."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.world = ReplicatingDispatcher(
            limits=Limits(tail_entries=4, entries_bytes=450)
        )
        self.followers = {name: _Follower(name) for name in "bcd"}
        self.log: list[tuple[int, Entry]] = []
        self.writers: dict[StreamId, Epoch] = {}
        self.reads: deque[ServePull] = deque()
        self.asked: deque[tuple[str, float, int, Vector]] = deque()
        self.names = 0

    @initialize()
    def begin(self) -> None:
        self.writers[self.world.stream] = self.world.epoch
        self.write(1)  # Like the claim; no append has the number 0.
        for name in self.followers:
            self.link(name)
            self.catch_up(name)
        assert self.world.in_sync == ["b", "c"]

    # --- Possible events.

    @rule(count=st.integers(1, 5))
    def write(self, count: int) -> None:
        world = self.world
        append = world.journal.append([FACT] * count, moment(self.seconds))
        self.log += [(append.number, entry) for entry in append.entries]
        now = moment(self.seconds)
        self.perform(world.replication.on_log_write(append, now))

    @rule()
    def submit(self) -> None:
        """A question about an entry that was just written is the usual case."""
        self.write(1)
        self.ask()

    @rule()
    def ask(self) -> None:
        self.names += 1
        journal = self.world.journal
        name = f"x{self.names}"
        promise = (name, self.seconds, journal.last_number, dict(journal.vector))
        self.asked.append(promise)
        self.perform(self.world.ask(name, self.seconds))

    @rule(share=st.floats(0.0, 1.0))
    def commit(self, share: float) -> None:
        journal = self.world.journal
        waiting = journal.last_number - journal.persisted
        journal.on_persisted(journal.persisted + round(share * waiting))
        now = moment(self.seconds)
        self.perform(
            self.world.replication.release_acks(now) + journal.run_deferred(now)
        )

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 2.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.seconds += seconds

    @rule(name=FOLLOWERS)
    def link(self, name: str) -> None:
        follower = self.followers[name]
        if not follower.is_linked:
            follower.is_linked = True
            held = follower.journal.vector_items()
            self.perform(self.world.follow(name, self.seconds, held=held))

    @rule(name=FOLLOWERS)
    def cut(self, name: str) -> None:
        follower = self.followers[name]
        if follower.is_linked:
            follower.is_linked = False
            follower.inbox.clear()
            follower.outbox.clear()
            follower.exchange.drop_peer(NodeId("a"))
            self.perform(self.world.lose(name, self.seconds))

    @rule(name=FOLLOWERS, times=st.integers(1, 4))
    def deliver(self, name: str, times: int) -> None:
        follower = self.followers[name]
        for _ in range(min(times, len(follower.inbox))):
            message = follower.inbox.popleft()
            now = moment(self.seconds)
            if isinstance(message, Replicate):
                effects = follower.standby.on_replicate(NodeId("a"), message, now)
            else:
                assert isinstance(message, Entries)
                effects = follower.exchange.on_entries(NodeId("a"), message)
            self.said(follower, effects)

    @rule(name=FOLLOWERS)
    def keep(self, name: str) -> None:
        """A standby's disk has committed its writes."""
        follower = self.followers[name]
        follower.disk = dict(follower.journal.vector)
        follower.journal.on_persisted(follower.journal.last_number)
        self.said(follower, follower.journal.run_deferred(moment(self.seconds)))

    @rule(name=FOLLOWERS, times=st.integers(1, 4))
    def hear(self, name: str, times: int) -> None:
        follower = self.followers[name]
        node, now = NodeId(name), moment(self.seconds)
        for _ in range(min(times, len(follower.outbox))):
            message = follower.outbox.popleft()
            if isinstance(message, Pull):
                self.perform(self.world.pull(name, message.vector, self.seconds))
            else:
                assert isinstance(message, ReplicateOk)
                self.perform(self.world.replication.on_replicate_ok(node, message, now))

    @rule(name=FOLLOWERS)
    def catch_up(self, name: str) -> None:
        """Deliver, keep and hear everything under way."""
        self.deliver(name, 9)
        self.keep(name)
        self.hear(name, 9)

    @rule(name=FOLLOWERS)
    def cross(self, name: str) -> None:
        """Entries are written while an acknowledgement is under way."""
        self.submit()
        self.deliver(name, 1)
        self.keep(name)
        self.submit()
        self.hear(name, 9)
        self.commit(1.0)

    @rule()
    def read(self) -> None:
        """The dispatcher's store answers one PULL from its durable entries."""
        if not self.reads:
            return
        asked = self.reads.popleft()
        held, persisted = dict(asked.vector), self.world.journal.persisted
        found = tuple(
            entry
            for number, entry in self.log
            if number <= persisted and entry.seq > held.get(entry.stream, 0)
        )[:3]
        message = Entries(found, tuple(self.writers.items()), has_more=False, vector=())
        if self.followers[asked.peer].is_linked:
            self.followers[asked.peer].inbox.append(message)

    @rule()
    def renew(self) -> None:
        """The node claims again; its followers confirm when they learn of it."""
        self.world.renew(self.seconds)
        self.writers[self.world.stream] = self.world.epoch
        for name, follower in self.followers.items():
            if follower.is_linked:
                self.cut(name)
                self.link(name)

    # --- Consequences.

    def said(self, follower: _Follower, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send) and follower.is_linked:
                follower.outbox.extend(effect.messages)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, messages):
                    if self.followers[peer].is_linked:
                        self.followers[peer].inbox.extend(messages)
                case ServePull():
                    self.reads.append(effect)
                case LogLine("info", event, (("copies", copies),)):
                    self.answered(event, int(copies))
                case _:
                    pass

    def answered(self, name: str, copies: int) -> None:
        """Each answer is sent once, in order, and with no more copies than exist."""
        first, _, number, vector = self.asked.popleft()
        assert name == first
        is_here = number <= self.world.journal.persisted
        holders = [
            follower.name
            for follower in self.followers.values()
            if covers(follower.disk, vector.items())
        ]
        assert 1 <= copies <= is_here + len(holders), f"{copies} copies, {holders}"

    @invariant()
    def no_answer_waits_for_more_than_two_seconds(self) -> None:
        """The limit starts when the entry is durable; no step is due in the past."""
        self.perform(self.world.review(self.seconds))
        journal = self.world.journal
        for name, since_s, number, _ in self.asked:
            # A microsecond more: sums of floats are not exact.
            is_late = self.seconds >= since_s + SOLO_S + 1e-6
            assert not is_late or number > journal.persisted, name
        due_s = self.world.replication.deadline()
        assert due_s > moment(self.seconds).mono_s

    @invariant()
    def two_standbys_are_enough(self) -> None:
        assert len(self.world.standbys) <= 2


TestCopies = CopiesMachine.TestCase
