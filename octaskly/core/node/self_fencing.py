"""A dispatcher that stood still may be deposed: it does nothing until it is heard.

After a pause of its own it neither accepts nor places work before a follower has
answered a heartbeat of this reign, sent after the pause. It waits for that as long as
an answer waits for a standby; then it goes on, alone.
"""

from __future__ import annotations

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Effect, LogLine
from octaskly.core.election.election import Election
from octaskly.core.election.transfer import DispatcherTransfer
from octaskly.core.model.consequences import AdmissionChanged, Outbox
from octaskly.core.model.ids import Epoch, Moment
from octaskly.core.model.settings import Timing
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import HeartbeatOk

FENCING_PAUSE_S = 1.0  #: a pause that others may have taken for death


class SelfFencing:
    """Whether this node's reign is in doubt, and since when."""

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
        self._fenced_epoch: Epoch | None = None  #: the reign that is in doubt
        self._fenced_since_s = 0.0

    def on_pause(self, gap_s: float, now: Moment) -> list[Effect]:
        """This node itself stood still for so long."""
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
        return [LogLine("warning", "stood still", (("seconds", round(gap_s, 1)),))]

    def on_heartbeat_ok(self, message: HeartbeatOk, now: Moment) -> list[Effect]:
        """A follower of this reign has answered."""
        if message.epoch != self._fenced_epoch or message.sent_s < self._fenced_since_s:
            return []
        return self._lift_fence(now)

    def on_time(self, now: Moment) -> list[Effect]:
        """Go on when nobody is left to ask."""
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
            return []  # It is paused for more than this.
        self._outbox.put(AdmissionChanged())
        return self._dispatcher.resume_accepting(now)
