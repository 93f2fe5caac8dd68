"""A dispatcher with its standbys, and filters for their messages."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Effect, LogLine, Send, ServePull
from octaskly.core.events import PeerUp, SavedState
from octaskly.core.log.facts import Fact, Submitted, TaskCancelled
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import (
    Address,
    DispatcherEpoch,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.settings import Limits, Settings
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.protocol.messages import (
    STOPPING_REASON,
    Hello,
    Message,
    Pull,
    Replicate,
    ReplicateOk,
)
from octaskly.core.replication.replication import Replication
from tests.support.builders import STREAM, epoch, journal, moment, settings, spec

FACT = TaskCancelled(TaskId("t"), "x")
NEXT_STREAM = StreamId(78)


def answered_note(name: str, copies: int) -> LogLine:
    """Return the trace of an answer with the number of disks that hold it."""
    return LogLine("info", name, (("copies", copies),))


def large_fact(chars: int) -> Submitted:
    """Return a fact with a command of so many characters."""
    return Submitted(spec(command="x" * chars))


class ReplicatingDispatcher:
    """Node a is dispatcher; the test controls the others, the disk and time."""

    def __init__(
        self, followers: str = "", *, limits: Limits | None = None, in_sync: bool = True
    ) -> None:
        self.known: Settings = settings("a", limits=limits)
        self.journal = journal()
        self.members = PeerTable(self.known, SavedState(), TimerHeap(), Outbox())
        self.epoch: Epoch = epoch()
        self.stream = STREAM
        self.timers = TimerHeap()
        self.replication = Replication(
            self.known, self.journal, self.members, self.timers
        )
        self.begin()
        for name in followers:
            self.follow(name)
            if in_sync:
                self.ack(name)

    def begin(self, at: float = 0.0, *, is_expecting: bool = False) -> None:
        """Begin the epoch."""
        reign = DispatcherEpoch(self.epoch, self.stream)
        self.replication.start_replicating(
            reign, moment(at), expects_standbys=is_expecting
        )

    def renew(self, at: float = 0.0) -> None:
        """Begin a higher epoch, as after another node's claim."""
        self.replication.stop_replicating(moment(at))
        self.journal.close_stream()
        self.epoch = epoch(self.epoch.term + 1)
        self.stream = StreamId(self.stream + 1)
        self.journal.open_stream(self.stream)
        self.begin(at, is_expecting=True)

    # --- Followers.

    def follow(
        self,
        name: str,
        at: float = 0.0,
        *,
        held: VectorItems | None = None,
        electable: bool = True,
        state: NodeState = NodeState.READY,
    ) -> list[Effect]:
        """Connect a node that confirms the epoch; `held` is all by default."""
        node = NodeId(name)
        known = replace(settings(name).node, electable=electable)
        hello = Hello(node=known, epoch=self.epoch, dispatcher=None)
        self.members.on_peer_up(
            PeerUp(node, hello, hello, Address(name, 1)), moment(at)
        )
        view = self.members.peers[node]
        view.state = state
        vector = self.journal.vector_items() if held is None else held
        self.members.confirm_follower(node, self.epoch, vector)
        return self.review(at)

    def lose(self, name: str, at: float = 0.0, reason: str = "eof") -> list[Effect]:
        """A follower's link ends."""
        node, now = NodeId(name), moment(at)
        self.members.on_peer_down(node, now)
        self.replication.on_follower_lost(
            node, now, is_leaving=reason == STOPPING_REASON
        )
        return self.review(at)

    def ack(
        self,
        name: str,
        number: int | None = None,
        at: float = 0.0,
        *,
        of: Epoch | None = None,
    ) -> list[Effect]:
        """Acknowledge as a standby, by default everything."""
        number = self.journal.last_number if number is None else number
        ok = ReplicateOk(of or self.epoch, number)
        return self.replication.on_replicate_ok(NodeId(name), ok, moment(at))

    def pull(self, name: str, held: VectorItems, at: float = 0.0) -> list[Effect]:
        """Pull as a follower, beyond `held`."""
        self.members.peers[NodeId(name)].vector = dict(held)
        return self.replication.on_pull(NodeId(name), Pull(held), moment(at))

    # --- This node.

    def write(self, *facts: Fact, at: float = 0.0) -> list[Effect]:
        """Append facts, by default one, and stream them."""
        append = self.journal.append(facts or (FACT,), moment(at))
        return self.replication.on_log_write(append, moment(at))

    def ask(self, name: str, at: float = 0.0) -> list[Effect]:
        """Request an answer that waits until it is safe."""
        return self.replication.when_replicated(
            lambda _, copies: [answered_note(name, copies)], moment(at)
        )

    def commit(self, at: float = 0.0) -> list[Effect]:
        """Make everything durable here."""
        self.journal.on_persisted(self.journal.last_number)
        return self.replication.release_acks(moment(at)) + self.journal.run_deferred(
            moment(at)
        )

    def review(self, at: float = 0.0) -> list[Effect]:
        return self.replication.update_standbys(moment(at))

    @property
    def standbys(self) -> list[str]:
        """The standbys, the first successor first."""
        return list(self.replication.standby_nodes)

    @property
    def in_sync(self) -> list[str]:
        """The standbys in sync."""
        return [
            view.node for view in self.replication.standby_views() if view.is_in_sync
        ]


def messages_to(effects: list[Effect], to: str) -> list[Message]:
    """Return the messages to a node."""
    return [
        message
        for effect in effects
        if isinstance(effect, Send) and effect.peer == to
        for message in effect.messages
    ]


def streamed_to(effects: list[Effect], to: str) -> list[tuple[int, list[int]]]:
    """Return number and sequences of each message streamed to a node."""
    return [
        (message.number, [entry.seq for entry in message.entries])
        for message in messages_to(effects, to)
        if isinstance(message, Replicate)
    ]


def nodes_served(effects: list[Effect]) -> list[str]:
    """Return the nodes that receive entries from the disk."""
    return [effect.peer for effect in effects if isinstance(effect, ServePull)]
