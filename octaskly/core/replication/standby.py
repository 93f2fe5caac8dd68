"""This node as standby: it keeps what the dispatcher appends, and says when it does.

An acknowledgement leaves only when everything up to it is on this node's disk: also
what was pulled before the dispatcher began to stream. What is too much for one message
is kept when all of it is here: else a dispatcher that dies leaves a part of a batch,
which its successor would run.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from msgspec.structs import replace

from octaskly.core.effects import Effect, Send
from octaskly.core.model.ids import NO_EPOCH, Epoch, Moment, NodeId, Vector, covers
from octaskly.core.protocol.messages import Heartbeat, Replicate, ReplicateOk
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal

NO_EVIDENCE_S = float("-inf")  #: nothing later is known
HEARTBEATS_MAX = 150
"""Heartbeats that are remembered: of over 4 s, as often as they come at most."""


class _ConfirmedHeartbeat(NamedTuple):
    """A heartbeat that was confirmed."""

    sent_s: float  #: sender's clock, its name
    confirmed_s: float  #: when it was confirmed
    earlier_confirmed_s: float  #: it was sent after that
    received_append: int  #: the last append that had come by then
    acked_append: int  #: and the last that was acknowledged by then


class AckGuarantee:
    """What the heartbeats of one reign say of that.

    Args:
        solo_s: How long an answer waits for a standby, in seconds.
    """

    def __init__(self, replication_wait_s: float) -> None:
        self._replication_wait_s = replication_wait_s
        self._heartbeats: deque[_ConfirmedHeartbeat] = deque(maxlen=HEARTBEATS_MAX)
        self._unacked_since_s = NO_EVIDENCE_S
        """What the dispatcher may lack an acknowledgement of was sent after that."""

    def end_guarantee(self) -> None:
        """No answer waits for this node from now on."""
        self._heartbeats.clear()
        self._unacked_since_s = NO_EVIDENCE_S

    def is_guaranteed(self, now_s: float) -> bool:
        """Whether no answer can have left without this node yet."""
        return now_s < self._unacked_since_s + self._replication_wait_s

    def on_heartbeat(
        self,
        sent_s: float,
        confirmed_sent_s: float,
        now_s: float,
        *,
        received: int,
        acked: int,
    ) -> None:
        """Take in a heartbeat that this node confirms now.

        Args:
            sent_s: What it is told by.
            confirmed_sent_s: The one whose confirmation the sender had heard last.
            now_s: This node's clock.
            received: Number of the last append that has come.
            acked: Number of the last append that was acknowledged.
        """
        heartbeats = self._heartbeats
        confirmed = next(
            (
                heartbeat
                for heartbeat in heartbeats
                if heartbeat.sent_s == confirmed_sent_s
            ),
            None,
        )
        after_s = NO_EVIDENCE_S
        if confirmed is not None:
            after_s = confirmed.confirmed_s
            while (
                heartbeats[0] is not confirmed
                and heartbeats[1].received_append <= confirmed.acked_append
            ):
                heartbeats.popleft()
            if heartbeats[0].received_append <= confirmed.acked_append:
                # All that came before it was acknowledged, and that was heard.
                self._unacked_since_s = max(
                    self._unacked_since_s, heartbeats[0].earlier_confirmed_s
                )
        heartbeats.append(_ConfirmedHeartbeat(sent_s, now_s, after_s, received, acked))


APPEND_PARTS_MAX: Final = 64
"""Most parts of an append that are held: a dispatcher sends 16 MiB that way at most."""


class Standby:
    """The standby's half of a node; idle until a dispatcher streams to it."""

    def __init__(
        self, journal: Journal, anti_entropy: AntiEntropy, replication_wait_s: float
    ) -> None:
        self._journal = journal
        self._anti_entropy = anti_entropy
        self.in_sync_epoch: Epoch = NO_EPOCH
        """The last reign that this node kept level with."""
        self._ack_guarantee = AckGuarantee(replication_wait_s)
        self._received_append = (
            0  #: number of the last `Repl`, so that acks are not repeated
        )
        self._acked_append = 0  #: number of the last that was acknowledged
        self._streaming_epoch: Epoch = NO_EPOCH  #: the reign of the last `Repl`
        self._parts: list[
            Replicate
        ] = []  #: what came of an append whose end is missing
        self._missing_vector: Vector = {}
        """What was streamed beyond a gap: until it is here, no append is complete."""

    def mark_behind(self) -> None:
        """The dispatcher may answer without this node: it serves or lists another."""
        self.in_sync_epoch = NO_EPOCH

    def on_heartbeat(self, heartbeat: Heartbeat, now: Moment) -> None:
        """The dispatcher says whether it waits for this node, and what it has heard."""
        if heartbeat.confirmed_sent_s is None:
            self._ack_guarantee.end_guarantee()
            self._mark_behind_in(heartbeat.epoch)
        elif heartbeat.epoch == self._streaming_epoch:
            self._ack_guarantee.on_heartbeat(
                heartbeat.sent_s,
                heartbeat.confirmed_sent_s,
                now.mono_s,
                received=self._received_append,
                acked=self._acked_append,
            )

    def check_ack_guarantee(self, now: Moment) -> None:
        """Fall behind unless answers must have waited for this node until now."""
        if not self._ack_guarantee.is_guaranteed(now.mono_s):
            self.mark_behind()

    def _mark_behind_in(self, epoch: Epoch) -> None:
        if self.in_sync_epoch == epoch:
            self.mark_behind()

    def note_missed(self, message: Replicate) -> None:
        """Note what this node did not keep, as it does not follow who streams it.

        It may follow the same reign again, and must acknowledge nothing behind that
        before it is here.
        """
        if message.epoch >= self._streaming_epoch:
            self._has_all_streamed(self._join_parts(message))

    def on_replicate(
        self, peer: NodeId, message: Replicate, now: Moment
    ) -> list[Effect]:
        """Keep what the dispatcher of this node's epoch appends."""
        if not message.number and len(self._parts) < APPEND_PARTS_MAX:
            self._parts = [*self._earlier_parts(message), message]
            self._anti_entropy.drop_peer(peer)
            return []
        message = self._join_parts(message)
        append = self._journal.append_remote(message.entries, message.epochs)
        effects: list[Effect] = [] if append is None else [append]
        if not self._has_all_streamed(message):
            # It was taken for level, and is not: what is missing comes by PULL.
            self._mark_behind_in(message.epoch)
            return [*effects, *self._anti_entropy.pull_from(peer)]
        self._anti_entropy.drop_peer(peer)
        if not message.number:
            return effects
        if message.acks_beyond_standbys:
            # It answers for what its rows alone say, too, and that is not here yet;
            # or without this node, until it has heard that it keeps up.
            self._mark_behind_in(message.epoch)
        else:
            self.in_sync_epoch = message.epoch
        self._received_append = message.number
        ok = ReplicateOk(message.epoch, message.number)

        def durable(_: Moment) -> list[Effect]:
            # A later one says the same and more, if it is durable by the same commit.
            if self._received_append != ok.number and self._journal.is_all_durable:
                return []
            self._acked_append = ok.number
            return [Send(peer, (ok,))]

        return effects + self._journal.when_durable(durable, now)

    def _join_parts(self, last: Replicate) -> Replicate:
        """Return a message with the parts that came before it."""
        parts, self._parts = [*self._earlier_parts(last), last], []
        if len(parts) == 1:
            return last
        entries = tuple(entry for part in parts for entry in part.entries)
        epochs = dict.fromkeys(pair for part in parts for pair in part.epochs)
        return replace(last, entries=entries, epochs=tuple(epochs))

    def _earlier_parts(self, message: Replicate) -> list[Replicate]:
        """Return what came before of the same append; of other reigns it is void."""
        return [part for part in self._parts if part.epoch == message.epoch]

    def _has_all_streamed(self, message: Replicate) -> bool:
        """Return whether this and all before it in this reign is with the writer."""
        if message.epoch != self._streaming_epoch:
            self._streaming_epoch = message.epoch
            self._received_append = self._acked_append = 0
            self._ack_guarantee.end_guarantee()
            self._missing_vector.clear()
        vector = self._journal.vector
        for entry in message.entries:
            if vector.get(entry.stream, 0) < entry.seq:
                self._missing_vector[entry.stream] = entry.seq
        if covers(vector, self._missing_vector.items()):
            self._missing_vector.clear()
        return not self._missing_vector
