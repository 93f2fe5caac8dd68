"""Standby: stores the dispatcher's appends and acknowledges them.

An acknowledgement is sent only when everything before it is on this node's disk,
including entries that were pulled before streaming started. An append of several
messages is stored only when it is complete. Otherwise a dispatcher that dies could
leave part of a batch, and its successor would run that part.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from msgspec.structs import replace

from octaskly.core.effects import Effect, Send
from octaskly.core.model.ids import NO_EPOCH, Epoch, Moment, NodeId, Vector
from octaskly.core.protocol.messages import Replicate, ReplicateOk
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal

APPEND_PARTS_MAX: Final = 64
"""Limit of the parts held of an append; a dispatcher sends at most 16 MiB in parts."""


class Standby:
    """This node's role as standby; idle until a dispatcher streams to it."""

    def __init__(self, journal: Journal, anti_entropy: AntiEntropy) -> None:
        self._journal = journal
        self._anti_entropy = anti_entropy
        self._received_append = 0  #: number of the latest `Replicate`
        self._streaming_epoch: Epoch = NO_EPOCH  #: epoch of the latest `Replicate`
        self._parts: list[Replicate] = []  #: parts of an incomplete append
        self._missing_vector: Vector = {}
        """Entries streamed beyond a gap; no append is complete before they are here."""

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
            # This node has a gap, and pulls the missing entries.
            return [*effects, *self._anti_entropy.pull_from(peer)]
        self._anti_entropy.drop_peer(peer)
        if not message.number:
            return effects
        self._received_append = message.number
        ok = ReplicateOk(message.epoch, message.number)
        acknowledge = partial(self._acknowledge, peer, ok)
        return effects + self._journal.when_durable(acknowledge, now)

    def _acknowledge(self, peer: NodeId, ok: ReplicateOk, _: Moment) -> list[Effect]:
        # If a later append is durable too, its acknowledgement includes this one.
        if self._received_append != ok.number and self._journal.is_all_durable:
            return []
        return [Send(peer, (ok,))]

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
            self._received_append = 0
            self._missing_vector.clear()
        held_seq = self._journal.held_seq
        for entry in message.entries:
            if held_seq(entry.stream) < entry.last_seq:
                self._missing_vector[entry.stream] = entry.last_seq
        if self._journal.holds(self._missing_vector.items()):
            self._missing_vector.clear()
        return not self._missing_vector
