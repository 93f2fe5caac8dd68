"""Whether a dispatcher that fell silent is dead: one dial, and the word of others.

The dial goes to the suspect itself; at the same time peers are asked how long ago they
had a frame from it. A refused dial is proof: no process listens there any more.
Anybody with a fresh frame holds the takeover back, for the suspect is then only
unreachable from here.

Source: docs/explanation/election.md, after SWIM and Lifeguard.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from octaskly.core.effects import Effect, Send
from octaskly.core.messages import Probe, ProbeOk
from octaskly.core.model import Moment, NodeId, Timing


class Verdict(Enum):
    """What is known of the suspect."""

    WAIT = "wait"
    HOLD = "hold"  #: somebody hears it
    DEAD = "dead"


class Suspicion:
    """One suspect, from the first doubt to the verdict."""

    def __init__(self, about: NodeId, timing: Timing) -> None:
        self.about = about
        self._timing = timing
        self._asked_s = 0.0
        self._ends_s = 0.0
        self._is_heard = False
        self._is_holding = False
        self._is_dead = False

    def ask(self, peers: Iterable[NodeId], now: Moment) -> list[Effect]:
        """Ask these peers about the suspect; the caller dials it."""
        self._asked_s = now.mono_s
        self._ends_s = now.mono_s + self._timing.probe_s
        self._is_heard = self._is_holding = False
        probe = Probe(self.about, now.mono_s)
        return [Send(peer, (probe,)) for peer in peers if peer != self.about]

    def on_probe_ok(self, message: ProbeOk) -> None:
        """Take a peer's word, if it answers the question asked last."""
        if message.about != self.about or message.sent_s != self._asked_s:
            return
        if message.age_s is not None and message.age_s <= self._timing.fresh_s:
            self._is_heard = True

    def on_proof(self) -> None:
        """The suspect's process is gone for certain."""
        self._is_dead = True

    def restart(self, now: Moment) -> None:
        """Give the suspect the time again that this node itself slept through."""
        self._ends_s = now.mono_s + self._timing.probe_s

    def verdict(self, now: Moment) -> Verdict:
        """Return what is known; after HOLD has lasted, ask again."""
        if self._is_dead:
            return Verdict.DEAD
        if now.mono_s < self._ends_s:
            return Verdict.HOLD if self._is_holding else Verdict.WAIT
        if self._is_holding:
            return Verdict.WAIT
        if not self._is_heard:
            self._is_dead = True
            return Verdict.DEAD
        self._is_holding = True
        self._ends_s = now.mono_s + 2 * self._timing.probe_s
        return Verdict.HOLD

    def is_asking_due(self, now: Moment) -> bool:
        """Whether a hold has lasted long enough to ask again."""
        return self._is_holding and now.mono_s >= self._ends_s

    def deadline(self) -> float:
        """Return when the verdict may change."""
        return self._ends_s
