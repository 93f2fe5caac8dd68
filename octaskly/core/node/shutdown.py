"""How a node leaves on purpose: hand over, finish what runs, say goodbye.

A dispatcher asks its best follower to claim, one after another until one does; alone,
it ends its reign by itself. Then the worker drains; what still runs when patience is
over is ended and given back. At last every link gets its Leave.
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

PROCESS_EXIT_S = 6.0  #: beyond the grace, for processes to go and results to be kept
DISK_FLUSH_S = 2.0  #: for what is on its way to the disk when patience is over


class Shutdown:
    """The way out of one node; idle until it is asked for."""

    def __init__(
        self,
        timing: Timing,
        journal: Journal,
        election: Election,
        dispatcher_transfer: DispatcherTransfer,
        worker: Worker,
        timers: TimerHeap,
    ) -> None:
        self.is_requested = False  #: the node is on its way out
        self.is_done = False
        self._journal = journal
        self._election = election
        self._dispatcher_transfer = dispatcher_transfer
        self._worker = worker
        self._timers = timers
        self._drain_deadline_s: float | None = (
            None  #: when patience with the worker is over
        )
        self._kill_timeout_s = timing.kill_grace_s + PROCESS_EXIT_S
        self._has_stopped_attempts = False
        self._is_drain_over = False

    def start_shutdown(self, drain_s: float, now: Moment) -> list[Effect]:
        """Start to leave; asked a second time, leave at once."""
        if self.is_requested:
            return self._finish("stopped at once", now)
        if self._worker.availability.hold.is_paused:
            drain_s = 0.0  # What is frozen does not end.
        self.is_requested = True
        self._drain_deadline_s = now.mono_s + drain_s
        self._election.withdraw()
        # Standbys that were asked while the disk failed may be ready by now.
        self._dispatcher_transfer.reset()
        note = LogLine("info", "stopping", (("drain_s", drain_s),))
        availability = self._worker.availability.with_stopping()
        return [note, *self._worker.set_availability(availability, now)]

    def on_time(self, now: Moment) -> list[Effect]:
        """Go on as far as possible; asked at each step while the node stops."""
        effects = self._go_on(now)
        deadline_s = self._deadline_s()
        # What was due already waits for something else than time.
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
            # Others run it again, but not beside what is left of it here.
            if ended := self._worker.stop_attempts():
                self._drain_deadline_s += self._kill_timeout_s
                return ended
        # Without a successor answers would leave that one disk alone holds.
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
        """Return when patience ends."""
        if self._drain_deadline_s is None or self.is_done:
            return math.inf
        if self._election.dispatcher_epoch is None:
            return self._drain_deadline_s
        flush_s = DISK_FLUSH_S if self._is_drain_over else 0.0
        return self._dispatcher_transfer.deadline() or self._drain_deadline_s + flush_s

    def _is_safe_to_stop(self) -> bool:
        """Whether all that this node ran and wrote is safe elsewhere or on disk."""
        is_stepping_down = isinstance(self._election.phase, SteppingDown)
        return (
            self._worker.is_idle
            and self._journal.is_all_durable
            and not is_stepping_down
        )

    def _finish(self, reason: str, now: Moment) -> list[Effect]:
        self.is_done = True
        effects: list[Effect] = [LogLine("info", "stopped", (("reason", reason),))]
        effects += self._election.leave_mesh(STOPPING_REASON, now)
        return [*effects, Stopped()]
