"""Shutdown: transfers the role of dispatcher, drains the worker and closes all links.

A dispatcher asks its best followers to claim, one after another; without followers it
just stops. Then the worker drains. Attempts that still run at the drain deadline are
stopped and released. Finally, a Leave is sent on every link.
"""

from __future__ import annotations

import math

from octaskly.core.effects import Effect, LogLine, Stopped
from octaskly.core.election.election import Election
from octaskly.core.election.phases import SteppingDown
from octaskly.core.election.transfer import DispatcherTransfer
from octaskly.core.model.ids import Moment
from octaskly.core.model.settings import Timing
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import STOPPING_REASON
from octaskly.core.replication.journal import Journal
from octaskly.core.worker.worker import Worker

PROCESS_EXIT_S = 6.0  #: after the kill grace, for exits and stored results
DISK_FLUSH_S = 2.0  #: time for pending writes after the drain deadline


class Shutdown:
    """The shutdown of one node; idle until it is requested."""

    def __init__(
        self,
        timing: Timing,
        journal: Journal,
        election: Election,
        dispatcher_transfer: DispatcherTransfer,
        worker: Worker,
        timers: TimerHeap,
    ) -> None:
        self.is_requested = False  #: the shutdown has started
        self.is_done = False
        self._reason = STOPPING_REASON
        self._journal = journal
        self._election = election
        self._dispatcher_transfer = dispatcher_transfer
        self._worker = worker
        self._timers = timers
        self._drain_deadline_s: float | None = None  #: end of the wait for the worker
        self._kill_timeout_s = timing.kill_grace_s + PROCESS_EXIT_S
        self._has_stopped_attempts = False
        self._is_drain_over = False

    def start_shutdown(
        self, drain_s: float, now: Moment, reason: str = STOPPING_REASON
    ) -> list[Effect]:
        """Start the shutdown, whose reason peers get; a second call ends it at once."""
        if self.is_requested:
            return self._finish("stopped at once", now)
        if self._worker.availability.hold.is_paused:
            drain_s = 0.0  # Frozen processes do not end.
        self.is_requested = True
        self._reason = reason
        self._drain_deadline_s = now.mono_s + drain_s
        self._election.withdraw()
        # Standbys that were asked while the disk failed may be in sync now.
        self._dispatcher_transfer.reset()
        note = LogLine("info", "stopping", (("drain_s", drain_s),))
        availability = self._worker.availability.with_stopping()
        return [note, *self._worker.set_availability(availability, now)]

    def on_time(self, now: Moment) -> list[Effect]:
        """Run the actions of the shutdown that are due; called at every step."""
        effects = self._go_on(now)
        deadline_s = self._deadline_s()
        # An overdue action waits for something other than time.
        self._timers.set(
            Timer.SHUTDOWN, deadline_s if deadline_s > now.mono_s else math.inf
        )
        return effects

    def _go_on(self, now: Moment) -> list[Effect]:
        if self._drain_deadline_s is None or self.is_done:
            return []
        self._is_drain_over = is_drain_over = now.mono_s >= self._drain_deadline_s
        if is_drain_over and not self._has_stopped_attempts:
            self._has_stopped_attempts = True
            # Wait for the processes to end before other nodes run these attempts again.
            if ended := self._worker.stop_attempts():
                self._drain_deadline_s += self._kill_timeout_s
                return ended
        # Without a successor, answers would leave with a single copy. So wait for one,
        # unless this disk does not respond.
        has_waited = now.mono_s >= self._drain_deadline_s + DISK_FLUSH_S
        is_stuck = has_waited and not self._journal.is_all_durable
        if self._election.dispatcher_epoch is not None and not is_stuck:
            effects = self._dispatcher_transfer.ask_next_successor(now)
            if effects is not None:
                return effects
        if not is_drain_over and not self._is_safe_to_stop():
            return []
        is_over = is_drain_over or self._has_stopped_attempts
        return self._finish("drain over" if is_over else "drained", now)

    def _deadline_s(self) -> float:
        """Return the time of the next action."""
        if self._drain_deadline_s is None or self.is_done:
            return math.inf
        if self._election.dispatcher_epoch is None:
            return self._drain_deadline_s
        flush_s = DISK_FLUSH_S if self._is_drain_over else 0.0
        return self._dispatcher_transfer.deadline() or self._drain_deadline_s + flush_s

    def _is_safe_to_stop(self) -> bool:
        """Return True if all results and writes of this node are safe."""
        is_stepping_down = isinstance(self._election.phase, SteppingDown)
        return (
            self._worker.is_idle
            and self._journal.is_all_durable
            and not is_stepping_down
        )

    def _finish(self, reason: str, now: Moment) -> list[Effect]:
        self.is_done = True
        effects: list[Effect] = [LogLine("info", "stopped", (("reason", reason),))]
        effects += self._election.leave_mesh(self._reason, now)
        return [*effects, Stopped()]
