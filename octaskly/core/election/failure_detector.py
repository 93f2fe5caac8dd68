"""Failure detector: tests a silent dispatcher by a dial and by probes to peers.

The dial goes to the suspect. At the same time, probes ask peers for the age of their
last frame from it. A refused dial proves that its process ended. If a peer has a fresh
frame, the takeover is held back: the suspect is only unreachable from this node.

A dispatcher that loses its followers continues: see `core.node.availability`.

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

EPOCH_CHURN_WINDOW_S = 30.0  #: window in which epoch starts are counted
EPOCH_CHURN_MAX = 3  #: each further start in the window doubles the timeouts
TIMEOUT_SCALE_MAX = 8.0


class TimeoutScaling:
    """The factor that lengthens suspicion timeouts while epochs change often.

    Frequent epoch changes mean that nodes are slow, not dead. Each claim adds work and
    makes them slower, so the timeouts grow until the changes stop. After a pause of
    this node itself, silence counts from the end of the pause.
    """

    def __init__(self) -> None:
        self._epoch_starts_s: deque[float] = deque(maxlen=EPOCH_CHURN_MAX + 4)
        self._resumed_s = 0.0  #: end of this node's last pause

    def on_pause(self, now: Moment) -> None:
        """Restart the silence of all peers now, at the end of this node's own pause."""
        self._resumed_s = now.mono_s

    def silent_since_s(self, frame_s: float = 0.0) -> float:
        """Return the start of a peer's silence, given the time of its last frame."""
        return max(frame_s, self._resumed_s)

    def on_epoch_start(self, now: Moment) -> None:
        """Count the start of an epoch, on this node or another."""
        self._epoch_starts_s.append(now.mono_s)

    def timeout_scale(self, now: Moment) -> float:
        """Return the factor for suspicion timeouts, from 1 to `TIMEOUT_SCALE_MAX`."""
        if len(self._epoch_starts_s) <= EPOCH_CHURN_MAX:
            return 1.0
        recent = sum(
            now.mono_s - began_s < EPOCH_CHURN_WINDOW_S
            for began_s in self._epoch_starts_s
        )
        return min(TIMEOUT_SCALE_MAX, 2.0 ** max(0, recent - EPOCH_CHURN_MAX))


class SuspicionState(Enum):
    """The state of a suspicion."""

    PROBING = "wait"
    HEARD = "hold"  #: a peer has a fresh frame from it
    DEAD = "dead"


class Suspicion:
    """The probes about one suspect, and their result."""

    def __init__(
        self, suspect: NodeId, timing: Timing, timeout_scale: float = 1.0
    ) -> None:
        self.suspect = suspect
        self._timing = timing
        self._probe_s = timing.probe_s * timeout_scale
        self._probe_sent_s = 0.0
        self._state_until_s = 0.0
        self._heard_by: list[NodeId] = []  #: fresh answers to the latest probe
        self._is_takeover_held = False
        self._is_dead = False
        self.is_proven = False
        self.connected: frozenset[NodeId] = frozenset()
        """Peers at the time of the latest probe, which not all of them got."""
        self.relay: NodeId | None = None
        """A peer that hears the suspect, so it can relay requests to it."""

    def send_probes(self, peers: Iterable[NodeId], now: Moment) -> list[Effect]:
        """Send probes to all peers but the suspect, which the caller dials."""
        self._probe_sent_s = now.mono_s
        self._state_until_s = now.mono_s + self._probe_s
        self._heard_by.clear()
        self._is_takeover_held = self._is_dead = False
        probe = Probe(self.suspect, now.mono_s)
        return [Send(peer, (probe,)) for peer in peers if peer != self.suspect]

    def on_probe_ok(self, peer: NodeId, message: ProbeOk) -> None:
        """Record a peer's answer, if it answers the latest probe."""
        if message.suspect != self.suspect or message.sent_s != self._probe_sent_s:
            return
        if message.age_s is not None and message.age_s <= self._timing.frame_fresh_s:
            self._heard_by.append(peer)
            self.relay = self.relay or peer

    def mark_proven_dead(self) -> None:
        """Record that the suspect's process has ended."""
        self._is_dead = self.is_proven = True

    @property
    def death_reason(self) -> str:
        """The reason for the state `DEAD`, for the log."""
        return "nobody listens there" if self.is_proven else "no peer hears it"

    def restart_probe(self, now: Moment) -> None:
        """Restart the wait for answers after a pause of this node itself."""
        self._state_until_s = now.mono_s + self._probe_s

    def evaluate(self, now: Moment) -> SuspicionState:
        """Return the state now; after a hold has ended, it is `PROBING` again."""
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
        if not self._heard_by:
            self._is_dead = True
            return SuspicionState.DEAD
        if self.relay not in self._heard_by:
            self.relay = self._heard_by[0]
        self._is_takeover_held = True
        self._state_until_s = now.mono_s + 2 * self._probe_s
        return SuspicionState.HEARD

    def is_probe_due(self, now: Moment) -> bool:
        """Return True if a hold has ended, so that probes are due again."""
        return self._is_takeover_held and now.mono_s >= self._state_until_s

    def deadline(self) -> float:
        """Return the time at which the state may change."""
        return 0.0 if self._is_dead else self._state_until_s
