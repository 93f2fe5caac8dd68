"""Standby: stores the dispatcher's appends and acknowledges them.

An acknowledgement is sent only when everything before it is on this node's disk,
including entries that were pulled before streaming started. An append of several
messages is stored only when it is complete. Otherwise a dispatcher that dies could
leave part of a batch, and its successor would run that part.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from msgspec.structs import replace

from octaskly.core.effects import Effect, Send
from octaskly.core.model.ids import NO_EPOCH, Epoch, Moment, NodeId, Vector
from octaskly.core.protocol.messages import Heartbeat, Replicate, ReplicateOk
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal

NO_EVIDENCE_S = float("-inf")  #: no evidence from any heartbeat
HEARTBEATS_MAX = 150
"""Heartbeats kept: over 4 s of heartbeats at the highest rate."""


class _ConfirmedHeartbeat(NamedTuple):
    """A heartbeat that this node has confirmed."""

    sent_s: float  #: sender's clock; identifies the heartbeat
    confirmed_s: float  #: this node's clock
    earlier_confirmed_s: float  #: the heartbeat was sent after this
    received_append: int  #: latest append received by then
    acked_append: int  #: latest append acknowledged by then


class AckGuarantee:
    """Evidence from heartbeats that the dispatcher still waits for this standby.

    Args:
        replication_wait_s: Longest wait of an answer for a standby, in seconds.
    """

    def __init__(self, replication_wait_s: float) -> None:
        self._replication_wait_s = replication_wait_s
        self._heartbeats: deque[_ConfirmedHeartbeat] = deque(maxlen=HEARTBEATS_MAX)
        self._unacked_since_s = NO_EVIDENCE_S
        """Every append that may lack an acknowledgement was sent after this time."""

    def end_guarantee(self) -> None:
        """Discard the evidence: answers do not wait for this node."""
        self._heartbeats.clear()
        self._unacked_since_s = NO_EVIDENCE_S

    def is_guaranteed(self, now_s: float) -> bool:
        """Return True if no answer can have been sent without this node yet."""
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
        """Record a heartbeat that this node confirms now.

        Args:
            sent_s: Identifies the heartbeat.
            confirmed_sent_s: The latest heartbeat whose confirmation reached the
                sender.
            now_s: This node's clock.
            received: Number of the latest append received.
            acked: Number of the latest append acknowledged.
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
                # The dispatcher has received acknowledgements of all appends before
                # this heartbeat.
                self._unacked_since_s = max(
                    self._unacked_since_s, heartbeats[0].earlier_confirmed_s
                )
        heartbeats.append(_ConfirmedHeartbeat(sent_s, now_s, after_s, received, acked))


APPEND_PARTS_MAX: Final = 64
"""Limit of the parts held of an append; a dispatcher sends at most 16 MiB in parts."""


class Standby:
    """This node's role as standby; idle until a dispatcher streams to it."""

    def __init__(
        self, journal: Journal, anti_entropy: AntiEntropy, replication_wait_s: float
    ) -> None:
        self._journal = journal
        self._anti_entropy = anti_entropy
        self.in_sync_epoch: Epoch = NO_EPOCH
        """The latest epoch in which this node was in sync."""
        self._ack_guarantee = AckGuarantee(replication_wait_s)
        self._received_append = 0  #: number of the latest `Replicate`
        self._acked_append = 0  #: number of the latest acknowledged append
        self._streaming_epoch: Epoch = NO_EPOCH  #: epoch of the latest `Replicate`
        self._parts: list[Replicate] = []  #: parts of an incomplete append
        self._missing_vector: Vector = {}
        """Entries streamed beyond a gap; no append is complete before they are here."""

    def mark_behind(self) -> None:
        """Leave the in-sync state: the dispatcher may answer without this node."""
        self.in_sync_epoch = NO_EPOCH

    def on_heartbeat(self, heartbeat: Heartbeat, now: Moment) -> None:
        """Update the evidence that the dispatcher waits for this node."""
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
        """Mark this node behind unless answers must have waited for it until now."""
        if not self._ack_guarantee.is_guaranteed(now.mono_s):
            self.mark_behind()

    def _mark_behind_in(self, epoch: Epoch) -> None:
        if self.in_sync_epoch == epoch:
            self.mark_behind()

    def note_missed(self, message: Replicate) -> None:
        """Record entries that were streamed while this node did not follow the sender.

        This node may follow the same epoch again. It must not acknowledge later appends
        before these entries are here.
        """
        if message.epoch >= self._streaming_epoch:
            self._has_all_streamed(self._join_parts(message))

    def on_replicate(
        self, peer: NodeId, message: Replicate, now: Moment
    ) -> list[Effect]:
        """Store an append of the dispatcher, and acknowledge it once durable."""
        if not message.number and len(self._parts) < APPEND_PARTS_MAX:
            self._parts = [*self._earlier_parts(message), message]
            self._anti_entropy.drop_peer(peer)
            return []
        message = self._join_parts(message)
        append = self._journal.append_remote(message.entries, message.epochs)
        effects: list[Effect] = [] if append is None else [append]
        if not self._has_all_streamed(message):
            # This node has a gap, so it is not in sync, and pulls the missing entries.
            self._mark_behind_in(message.epoch)
            return [*effects, *self._anti_entropy.pull_from(peer)]
        self._anti_entropy.drop_peer(peer)
        if not message.number:
            return effects
        if message.acks_beyond_standbys:
            # The dispatcher also acknowledges data that only its rows hold, which this
            # node lacks. Or it does not wait for this node until it knows that it is in
            # sync.
            self._mark_behind_in(message.epoch)
        else:
            self.in_sync_epoch = message.epoch
        self._received_append = message.number
        ok = ReplicateOk(message.epoch, message.number)

        def durable(_: Moment) -> list[Effect]:
            # If a later append is durable too, its acknowledgement includes this one.
            if self._received_append != ok.number and self._journal.is_all_durable:
                return []
            self._acked_append = ok.number
            return [Send(peer, (ok,))]

        return effects + self._journal.when_durable(durable, now)

    def _join_parts(self, last: Replicate) -> Replicate:
        """Return the message joined with the earlier parts of its append."""
        parts, self._parts = [*self._earlier_parts(last), last], []
        if len(parts) == 1:
            return last
        entries = tuple(entry for part in parts for entry in part.entries)
        epochs = dict.fromkeys(pair for part in parts for pair in part.epochs)
        return replace(last, entries=entries, epochs=tuple(epochs))

    def _earlier_parts(self, message: Replicate) -> list[Replicate]:
        """Return the earlier parts of the append; parts of other epochs are void."""
        return [part for part in self._parts if part.epoch == message.epoch]

    def _has_all_streamed(self, message: Replicate) -> bool:
        """Return True if the writer has this and everything before it in the epoch."""
        if message.epoch != self._streaming_epoch:
            self._streaming_epoch = message.epoch
            self._received_append = self._acked_append = 0
            self._ack_guarantee.end_guarantee()
            self._missing_vector.clear()
        held_seq = self._journal.held_seq
        for entry in message.entries:
            if held_seq(entry.stream) < entry.seq:
                self._missing_vector[entry.stream] = entry.seq
        if self._journal.holds(self._missing_vector.items()):
            self._missing_vector.clear()
        return not self._missing_vector
