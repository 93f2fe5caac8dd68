"""Self-fencing: a dispatcher that was paused stops until a follower confirms its epoch.

After a pause of its own process, another node may have been elected. So the dispatcher
neither accepts nor places work until a follower answers a heartbeat of this epoch that
was sent after the pause. It waits for at most `replication_wait_s`.

Without a pause, a dispatcher that loses its followers continues, because there is no
quorum. `core.election.claims` decides between two dispatchers once they meet.
"""

from __future__ import annotations

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Effect, LogLine
from octaskly.core.election.election import Election
from octaskly.core.election.transfer import DispatcherTransfer
from octaskly.core.model.component_signals import AdmissionChanged, Outbox
from octaskly.core.model.ids import Epoch, Moment
from octaskly.core.model.settings import Timing
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import HeartbeatOk

FENCING_PAUSE_S = 1.0  #: after a pause this long, others may have elected a dispatcher


class PauseFencing:
    """The fence of this dispatcher: the unconfirmed epoch, and its start."""

    def __init__(
        self,
        timing: Timing,
        election: Election,
        dispatcher_transfer: DispatcherTransfer,
        dispatcher: Dispatcher,
        timers: TimerHeap,
        outbox: Outbox,
    ) -> None:
        self._timing = timing
        self._election = election
        self._dispatcher_transfer = dispatcher_transfer
        self._dispatcher = dispatcher
        self._timers = timers
        self._outbox = outbox
        self._fenced_epoch: Epoch | None = (
            None  #: the unconfirmed epoch; None: no fence
        )
        self._fenced_since_s = 0.0

    def on_pause(self, gap_s: float, now: Moment) -> list[Effect]:
        """Fence this dispatcher after a pause of its own process."""
        dispatcher_epoch = self._election.dispatcher_epoch
        if (
            gap_s < FENCING_PAUSE_S
            or dispatcher_epoch is None
            or not self._election.follower_count
        ):
            return []
        self._fenced_epoch, self._fenced_since_s = dispatcher_epoch.epoch, now.mono_s
        self._timers.set(Timer.FENCING, self._deadline_s())
        self._dispatcher.pause_accepting()
        self._outbox.put(AdmissionChanged())
        return [
            LogLine("warning", "process was suspended", (("seconds", round(gap_s, 1)),))
        ]

    def on_heartbeat_ok(self, message: HeartbeatOk, now: Moment) -> list[Effect]:
        """Lift the fence if a follower answered a heartbeat sent after the pause."""
        if message.epoch != self._fenced_epoch or message.sent_s < self._fenced_since_s:
            return []
        return self._lift_fence(now)

    def on_time(self, now: Moment) -> list[Effect]:
        """Lift the fence after the longest wait."""
        if self._fenced_epoch is None or now.mono_s < self._deadline_s():
            return []
        return self._lift_fence(now)

    def _deadline_s(self) -> float:
        return self._fenced_since_s + self._timing.replication_wait_s

    def _lift_fence(self, now: Moment) -> list[Effect]:
        epoch, self._fenced_epoch = self._fenced_epoch, None
        self._timers.clear(Timer.FENCING)
        dispatcher_epoch = self._election.dispatcher_epoch
        if dispatcher_epoch is None or dispatcher_epoch.epoch != epoch:
            return []
        if self._election.is_withdrawn or self._dispatcher_transfer.is_in_progress:
            return []  # Another reason keeps it paused.
        self._outbox.put(AdmissionChanged())
        return self._dispatcher.resume_accepting(now)
