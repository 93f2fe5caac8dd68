"""Whether a dispatcher that fell silent is dead: one dial, and the word of others.

The dial goes to the suspect itself; at the same time peers are asked how long ago they
had a frame from it. A refused dial is proof: no process listens there any more.
Anybody with a fresh frame holds the takeover back, for the suspect is then only
unreachable from here.

Source: docs/explanation/election.md, after SWIM and Lifeguard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum

from octaskly.core.effects import Effect, Send
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.settings import Timing
from octaskly.core.protocol.messages import Probe, ProbeOk

EPOCH_CHURN_WINDOW_S = 30.0  #: reigns that begin within this time count as restless
EPOCH_CHURN_MAX = 3  #: each of them beyond this number doubles the patience
TIMEOUT_SCALE_MAX = 8.0


class TimeoutScaling:
    """How much longer than usual silence is borne.

    Where reigns change again and again, nodes are slow rather than dead: each claim
    adds work, which makes them slower still. So patience grows until it is calm. Who
    stood still itself begins to listen anew.
    """

    def __init__(self) -> None:
        self._epoch_starts_s: deque[float] = deque(maxlen=EPOCH_CHURN_MAX + 4)
        self._resumed_s = 0.0  #: end of this node's last own pause

    def on_pause(self, now: Moment) -> None:
        """This node itself stood still until now."""
        self._resumed_s = now.mono_s

    def silent_since_s(self, frame_s: float = 0.0) -> float:
        """Return from when on a peer is silent that sent its last frame then."""
        return max(frame_s, self._resumed_s)

    def on_epoch_start(self, now: Moment) -> None:
        """A reign begins, here or elsewhere."""
        self._epoch_starts_s.append(now.mono_s)

    def timeout_scale(self, now: Moment) -> float:
        """Return by how much to multiply the times of silence, from 1 on."""
        if len(self._epoch_starts_s) <= EPOCH_CHURN_MAX:
            return 1.0
        recent = sum(
            now.mono_s - began_s < EPOCH_CHURN_WINDOW_S
            for began_s in self._epoch_starts_s
        )
        return min(TIMEOUT_SCALE_MAX, 2.0 ** max(0, recent - EPOCH_CHURN_MAX))


class SuspicionState(Enum):
    """What is known of the suspect."""

    PROBING = "wait"
    HEARD = "hold"  #: somebody hears it
    DEAD = "dead"


class Suspicion:
    """One suspect, from the first doubt to the judgement."""

    def __init__(
        self, suspect: NodeId, timing: Timing, timeout_scale: float = 1.0
    ) -> None:
        self.suspect = suspect
        self._timing = timing
        self._probe_s = timing.probe_s * timeout_scale
        self._probe_sent_s = 0.0
        self._state_until_s = 0.0
        self._is_heard = False
        self._is_takeover_held = False
        self._is_dead = False
        self.is_proven = False

    def send_probes(self, peers: Iterable[NodeId], now: Moment) -> list[Effect]:
        """Ask these peers about the suspect; the caller dials it."""
        self._probe_sent_s = now.mono_s
        self._state_until_s = now.mono_s + self._probe_s
        self._is_heard = self._is_takeover_held = False
        probe = Probe(self.suspect, now.mono_s)
        return [Send(peer, (probe,)) for peer in peers if peer != self.suspect]

    def on_probe_ok(self, message: ProbeOk) -> None:
        """Take a peer's word, if it answers the question asked last."""
        if message.suspect != self.suspect or message.sent_s != self._probe_sent_s:
            return
        if message.age_s is not None and message.age_s <= self._timing.frame_fresh_s:
            self._is_heard = True

    def mark_proven_dead(self) -> None:
        """The suspect's process is gone for certain."""
        self._is_dead = self.is_proven = True

    @property
    def death_reason(self) -> str:
        """Why the suspect counts as dead, in words for people."""
        return "nobody listens there" if self.is_proven else "nobody hears it"

    def restart_probe(self, now: Moment) -> None:
        """Give the suspect the time again that this node itself slept through."""
        self._state_until_s = now.mono_s + self._probe_s

    def evaluate(self, now: Moment) -> SuspicionState:
        """Return what is known; after HOLD has lasted, ask again."""
        if self._is_dead:
            return SuspicionState.DEAD
        if now.mono_s < self._state_until_s:
            return (
                SuspicionState.HEARD
                if self._is_takeover_held
                else SuspicionState.PROBING
            )
        if self._is_takeover_held:
            return SuspicionState.PROBING
        if not self._is_heard:
            self._is_dead = True
            return SuspicionState.DEAD
        self._is_takeover_held = True
        self._state_until_s = now.mono_s + 2 * self._probe_s
        return SuspicionState.HEARD

    def is_probe_due(self, now: Moment) -> bool:
        """Whether a hold has lasted long enough to ask again."""
        return self._is_takeover_held and now.mono_s >= self._state_until_s

    def deadline(self) -> float:
        """Return when the judgement may change."""
        return 0.0 if self._is_dead else self._state_until_s
