"""Availability of a node: operators' commands, shortages, failures and pauses.

A command applies at once and is answered once it is durable, so a drained node stays
drained after a restart. A node that is short of disk, memory or launchers accepts no
work meanwhile, and announces the shortage.
"""

from __future__ import annotations

import math
from functools import partial

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Answer, Effect, LogLine
from octaskly.core.election.candidacy import Candidacy
from octaskly.core.election.election import Election
from octaskly.core.election.transfer import DispatcherTransfer
from octaskly.core.events import (
    ApiChanged,
    AvailabilityRequested,
    DiskChanged,
    LoadSampled,
)
from octaskly.core.model.component_signals import AdmissionChanged, Outbox
from octaskly.core.model.ids import Epoch, Moment
from octaskly.core.model.nodes import Availability
from octaskly.core.model.settings import Timing
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import HeartbeatOk
from octaskly.core.replication.journal import Journal
from octaskly.core.replies import AvailabilityChanged
from octaskly.core.worker.worker import Worker

TRANSFER_RETRY_S = 5.0  #: delay before standbys are asked again
FENCING_PAUSE_S = 1.0  #: after a pause this long, others may have elected a dispatcher


class FailureHandler:
    """The states of this node's disk and API; transfers the role when one fails."""

    def __init__(
        self,
        candidacy: Candidacy,
        election: Election,
        dispatcher_transfer: DispatcherTransfer,
        dispatcher: Dispatcher,
        timers: TimerHeap,
        outbox: Outbox,
    ) -> None:
        self._candidacy = candidacy
        self._election = election
        self._dispatcher_transfer = dispatcher_transfer
        self._dispatcher = dispatcher
        self._timers = timers
        self._outbox = outbox
        self._next_transfer_s = 0.0  #: earliest time of the next transfer

    def on_disk_changed(self, event: DiskChanged, now: Moment) -> list[Effect]:
        """Record that the disk fails or works again."""
        if event.is_failing == self._candidacy.is_disk_failing:
            return []
        self._candidacy.is_disk_failing = event.is_failing
        return self._on_changed("disk", event, now)

    def on_api_changed(self, event: ApiChanged, now: Moment) -> list[Effect]:
        """Record that the API stopped serving other nodes, or serves them again.

        Heartbeats do not show that, so no other node would claim.
        """
        if event.is_failing == self._candidacy.is_api_failing:
            return []
        self._candidacy.is_api_failing = event.is_failing
        return self._on_changed("API", event, now)

    def _on_changed(
        self, part: str, event: DiskChanged | ApiChanged, now: Moment
    ) -> list[Effect]:
        """Log a failure or a recovery; keep the role if nothing fails any more."""
        self._next_transfer_s = now.mono_s
        if event.is_failing:
            fields = (("reason", event.reason),) if event.reason else ()
            return [LogLine("warning", f"{part} failing", fields)]
        effects: list[Effect] = [LogLine("info", f"{part} recovered")]
        if self._candidacy.is_withdrawn or self._candidacy.is_failing:
            return effects
        return effects + self._keep_dispatching(now)

    def on_time(self, now: Moment) -> list[Effect]:
        """Transfer the role during a failure; called at every step meanwhile."""
        effects = self._hand_over(now)
        deadline_s = self._deadline_s()
        # An overdue action waits for something other than time.
        self._timers.set(
            Timer.TRANSFER, deadline_s if deadline_s > now.mono_s else math.inf
        )
        return effects

    def _hand_over(self, now: Moment) -> list[Effect]:
        candidacy = self._candidacy
        is_idle = not candidacy.is_failing or candidacy.is_withdrawn
        if (
            is_idle
            or self._election.dispatcher_epoch is None
            or now.mono_s < self._next_transfer_s
        ):
            return []
        effects = self._dispatcher_transfer.ask_next_successor(
            now, must_be_in_sync=True, must_serve=not candidacy.is_disk_failing
        )
        if effects is None:
            self._next_transfer_s = now.mono_s + TRANSFER_RETRY_S
            return self._keep_dispatching(now)
        # New tasks would keep the standby from being in sync.
        self._dispatcher.pause_accepting()
        self._outbox.put(AdmissionChanged())
        return effects

    def _keep_dispatching(self, now: Moment) -> list[Effect]:
        """Stop the transfer, because no standby took over or the failure is over."""
        self._dispatcher_transfer.reset()
        self._outbox.put(AdmissionChanged())
        return self._dispatcher.resume_accepting(now)

    def _deadline_s(self) -> float:
        """Return the time at which `on_time` is due."""
        if not self._candidacy.is_failing or self._election.dispatcher_epoch is None:
            return math.inf
        return self._dispatcher_transfer.deadline() or self._next_transfer_s


class PauseFencing:
    """Self-fencing: a dispatcher that was paused stops until a follower confirms it.

    After a pause of its own process, another node may have been elected. So the
    dispatcher neither accepts nor places work until a follower answers a heartbeat of
    this epoch that was sent after the pause. It waits for at most `replication_wait_s`.

    Without a pause, a dispatcher that loses its followers continues, because there is
    no quorum. `core.election.claims` decides between two dispatchers once they meet.
    """

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


class AvailabilityControl:
    """Changes the availability of this node."""

    def __init__(self, journal: Journal, worker: Worker) -> None:
        self._journal = journal
        self._worker = worker

    def on_availability_requested(
        self, event: AvailabilityRequested, now: Moment
    ) -> list[Effect]:
        """Apply an operator's command; a command that changes nothing succeeds too."""
        availability = self._worker.availability
        hold = availability.hold.after_command(event.command)
        effects: list[Effect] = []
        if hold != availability.hold:
            fields = (("order", event.command.value), ("by", event.by))
            effects = [LogLine("info", "availability changed", fields)]
            effects += self._worker.set_availability(availability.with_hold(hold), now)
            effects.append(self._journal.save(hold=hold))
        answer = partial(self._answer, event.ticket)
        return effects + self._journal.when_durable(answer, now)

    def _answer(self, ticket: int, _: Moment) -> list[Effect]:
        worker = self._worker
        changed = AvailabilityChanged(worker.availability.state, worker.running)
        return [Answer(ticket, changed)]

    def on_load_sampled(self, event: LoadSampled, now: Moment) -> list[Effect]:
        """Take no work while tasks stall for lack of memory, or launchers fail.

        Without a launcher each attempt would be released after a delay; other nodes
        could have run it earlier.
        """
        availability = self._worker.availability.with_stalled_percent(
            event.load.stalled_percent
        )
        failing = event.are_launchers_failing
        return self._set_pressure(availability.with_launchers(are_failing=failing), now)

    def on_disk_changed(self, now: Moment, *, is_failing: bool) -> list[Effect]:
        """Take no work while the disk cannot store results."""
        availability = self._worker.availability.with_disk(is_failing=is_failing)
        return self._set_pressure(availability, now)

    def _set_pressure(self, availability: Availability, now: Moment) -> list[Effect]:
        previous = self._worker.availability
        effects = self._worker.set_availability(availability, now)
        if availability.pressure is previous.pressure:
            return effects
        if availability.pressure is None:
            return [*effects, LogLine("info", "takes work again")]
        fields = (("short_of", availability.pressure.value),)
        return [*effects, LogLine("warning", "takes no work", fields)]
