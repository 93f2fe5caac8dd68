"""This node as standby: it keeps what the dispatcher appends, and says when it does.

An acknowledgement leaves only when everything up to it is on this node's disk: also
what was pulled before the dispatcher began to stream. What is too much for one message
is kept when all of it is here: else a dispatcher that dies leaves a part of a batch,
which its successor would run.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Final, NamedTuple

from octaskly.core.effects import Effect, Send
from octaskly.core.model.ids import NO_EPOCH, Epoch, Moment, NodeId, Vector, covers
from octaskly.core.protocol.messages import Heartbeat, Repl, ReplOk
from octaskly.core.replication.anti_entropy import Exchange
from octaskly.core.replication.journal import Journal

LONG_AGO = float("-inf")  #: nothing later is known
BEATS_MAX = 150
"""Heartbeats that are remembered: of over 4 s, as often as they come at most."""


class _Beat(NamedTuple):
    """A heartbeat that was confirmed."""

    sent_s: float  #: sender's clock, its name
    at_s: float  #: when it was confirmed
    after_s: float  #: it was sent after that
    received: int  #: the last append that had come by then
    acked: int  #: and the last that was acknowledged by then


class Reliance:
    """What the heartbeats of one reign say of that.

    Args:
        solo_s: How long an answer waits for a standby, in seconds.
    """

    def __init__(self, solo_s: float) -> None:
        self._solo_s = solo_s
        self._beats: deque[_Beat] = deque(maxlen=BEATS_MAX)
        self._since_s = LONG_AGO
        """What the dispatcher may lack an acknowledgement of was sent after that."""

    def end(self) -> None:
        """No answer waits for this node from now on."""
        self._beats.clear()
        self._since_s = LONG_AGO

    def holds(self, now_s: float) -> bool:
        """Whether no answer can have left without this node yet."""
        return now_s < self._since_s + self._solo_s

    def on_heartbeat(
        self, sent_s: float, heard_s: float, now_s: float, *, received: int, acked: int
    ) -> None:
        """Take in a heartbeat that this node confirms now.

        Args:
            sent_s: What it is told by.
            heard_s: The one whose confirmation the sender had heard last.
            now_s: This node's clock.
            received: Number of the last append that has come.
            acked: Number of the last append that was acknowledged.
        """
        beats = self._beats
        heard = next((beat for beat in beats if beat.sent_s == heard_s), None)
        after_s = LONG_AGO
        if heard is not None:
            after_s = heard.at_s
            while beats[0] is not heard and beats[1].received <= heard.acked:
                beats.popleft()
            if beats[0].received <= heard.acked:
                # All that came before it was acknowledged, and that was heard.
                self._since_s = max(self._since_s, beats[0].after_s)
        beats.append(_Beat(sent_s, now_s, after_s, received, acked))


PARTS_MAX: Final = 64
"""Most parts of an append that are held: a dispatcher sends 16 MiB that way at most."""


class Standby:
    """The standby's half of a node; idle until a dispatcher streams to it."""

    def __init__(self, journal: Journal, exchange: Exchange, solo_s: float) -> None:
        self._journal = journal
        self._exchange = exchange
        self.epoch: Epoch = NO_EPOCH
        """The last reign that this node kept level with."""
        self._reliance = Reliance(solo_s)
        self._received = 0  #: number of the last `Repl`, so that acks are not repeated
        self._acked = 0  #: number of the last that was acknowledged
        self._streaming: Epoch = NO_EPOCH  #: the reign of the last `Repl`
        self._parts: list[Repl] = []  #: what came of an append whose end is missing
        self._due: Vector = {}
        """What was streamed beyond a gap: until it is here, no append is complete."""

    def fall_behind(self) -> None:
        """The dispatcher may answer without this node: it serves or lists another."""
        self.epoch = NO_EPOCH

    def on_heartbeat(self, beat: Heartbeat, now: Moment) -> None:
        """The dispatcher says whether it waits for this node, and what it has heard."""
        if beat.heard_s is None:
            self._reliance.end()
            self._lag(beat.epoch)
        elif beat.epoch == self._streaming:
            self._reliance.on_heartbeat(
                *(beat.sent_s, beat.heard_s, now.mono_s),
                received=self._received,
                acked=self._acked,
            )

    def judge(self, now: Moment) -> None:
        """Fall behind unless answers must have waited for this node until now."""
        if not self._reliance.holds(now.mono_s):
            self.fall_behind()

    def _lag(self, epoch: Epoch) -> None:
        if self.epoch == epoch:
            self.fall_behind()

    def miss(self, message: Repl) -> None:
        """Note what this node did not keep, as it does not follow who streams it.

        It may follow the same reign again, and must acknowledge nothing behind that
        before it is here.
        """
        if message.epoch >= self._streaming:
            self._holds(self._whole(message))

    def on_repl(self, peer: NodeId, message: Repl, now: Moment) -> list[Effect]:
        """Keep what the dispatcher of this node's epoch appends."""
        if not message.number and len(self._parts) < PARTS_MAX:
            self._parts = [*self._begun(message), message]
            self._exchange.forget(peer)
            return []
        message = self._whole(message)
        append = self._journal.absorb(message.entries, message.epochs)
        effects: list[Effect] = [] if append is None else [append]
        if not self._holds(message):
            # It was taken for level, and is not: what is missing comes by PULL.
            self._lag(message.epoch)
            return [*effects, *self._exchange.ask(peer)]
        self._exchange.forget(peer)
        if not message.number:
            return effects
        if message.is_ahead:
            # It answers for what its rows alone say, too, and that is not here yet;
            # or without this node, until it has heard that it keeps up.
            self._lag(message.epoch)
        else:
            self.epoch = message.epoch
        self._received = message.number
        ok = ReplOk(message.epoch, message.number)

        def durable(_: Moment) -> list[Effect]:
            # A later one says the same and more, if it is durable by the same commit.
            if self._received != ok.number and self._journal.is_settled:
                return []
            self._acked = ok.number
            return [Send(peer, (ok,))]

        return effects + self._journal.when_durable(durable, now)

    def _whole(self, last: Repl) -> Repl:
        """Return a message with the parts that came before it."""
        parts, self._parts = [*self._begun(last), last], []
        if len(parts) == 1:
            return last
        entries = tuple(entry for part in parts for entry in part.entries)
        epochs = dict.fromkeys(pair for part in parts for pair in part.epochs)
        return replace(last, entries=entries, epochs=tuple(epochs))

    def _begun(self, message: Repl) -> list[Repl]:
        """Return what came before of the same append; of other reigns it is void."""
        return [part for part in self._parts if part.epoch == message.epoch]

    def _holds(self, message: Repl) -> bool:
        """Return whether this and all before it in this reign is with the writer."""
        if message.epoch != self._streaming:
            self._streaming = message.epoch
            self._received = self._acked = 0
            self._reliance.end()
            self._due.clear()
        vector = self._journal.vector
        for entry in message.entries:
            if vector.get(entry.stream, 0) < entry.seq:
                self._due[entry.stream] = entry.seq
        if covers(vector, self._due.items()):
            self._due.clear()
        return not self._due
