"""A visitor's own decisions: find the dispatcher, run its attempts, and leave in time.

It composes the worker of a member with nothing else: no log, no election, no roster.
It dials the members that it was told of until one of them leads it to the dispatcher.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from msgspec.structs import replace

from octaskly.core.effects import (
    Dial,
    Disconnect,
    Effect,
    LogLine,
    Send,
    ServeOutput,
    Stopped,
)
from octaskly.core.events import (
    AttemptsEnded,
    DialFailed,
    Event,
    LoadSampled,
    PeerDown,
    PeerUp,
    Received,
    StopRequested,
)
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import NO_EPOCH, Address, Epoch, Moment, NodeId
from octaskly.core.model.keyring_state import OUTDATED_REASON, VISIT_ENDED_REASON
from octaskly.core.model.nodes import NO_LOAD, LoadSample
from octaskly.core.model.settings import Settings
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.model.timer_heap import Timer, TimerHeap, backoff
from octaskly.core.protocol.messages import (
    UNNEEDED_REASON,
    Assign,
    Contact,
    Contacts,
    Heartbeat,
    HeartbeatOk,
    Hello,
    Kill,
    Leave,
    Message,
    ProbeOk,
    ReadOutput,
    Redirect,
    Report,
    ResultsOk,
)
from octaskly.core.protocol.visitor_rules import TIME_UP_REASON
from octaskly.core.worker.worker import Worker

TICK_S = 0.5  #: longest time between two steps
SILENCE_S = 6.0  #: of the dispatcher, after which the visitor dials again
UNREACHABLE_S = 600.0  #: without any dispatcher, after which the visitor gives up
REDIAL_S = 0.2  #: until the first dial after a lost link
REDIAL_S_MAX = 5.0
RESULTS_S = 10.0  #: wait for acknowledgements before it leaves
FAILURE_HOLD_S = 2.0
"""A failure is reported so much later. What ends a visitor may end its tasks first: a
cancelled allocation, like a stopped service, signals all its processes at once."""

UNWANTED_REASONS = (VISIT_ENDED_REASON, OUTDATED_REASON, TIME_UP_REASON)
"""With these a member ends a link for good."""


class LeaveReason(StrEnum):
    """Why a visitor leaves."""

    IDLE = "idle"
    TIME_UP = "its time is up"
    ASKED = "it was asked to"
    UNREACHABLE = "no member is reachable"
    UNWANTED = "a member ended the visit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """The terms of one visit."""

    seeds: tuple[tuple[Address, ...], ...]  #: addresses of members, each of one
    ends_ms: int  #: wall clock
    return_s: float  #: so long before the end, it gives back what it runs
    idle_s: float | None = None  #: it leaves after so long without a task


class VisitorNode:
    """All decisions of a visitor; `step` is called like that of a member's node."""

    def __init__(self, settings: Settings, visit: Visit) -> None:
        self.leave_reason: LeaveReason | None = None
        self.dispatcher: NodeId | None = None  #: that it is attached to
        self.contacts: tuple[Contact, ...] = ()  #: the dispatcher first
        self._settings, self._visit = settings, visit
        self._timers, self._signals = TimerHeap(), Outbox()
        self.worker = Worker(settings, (), self._timers, self._signals)
        self._peers: dict[NodeId, float] = {}  #: linked members, and when last heard
        self._epoch = NO_EPOCH
        self._load = NO_LOAD
        self._last_step_s: float | None = None
        self._lost_s = 0.0  #: since when there is no dispatcher
        self._busy_s: float | None = None  #: when it last held an attempt
        self._next_dial_s = 0.0
        self._dials = 0  #: since the dispatcher was lost
        self._failures: deque[tuple[float, Report]] = deque()
        """Failed attempts, each with the time when it is reported."""
        self._give_up_s = math.inf  #: longest wait after attempts were stopped
        self._is_stopped = False

    def hello(self, now: Moment) -> Hello:
        """Return the HELLO for a new link."""
        return Hello(
            node=self._settings.node,
            epoch=self._epoch,
            dispatcher=self.dispatcher,
            wall_ms=now.wall_ms,
        )

    def deadline(self) -> float:
        """Return the monotonic time of the next step without an event."""
        if self._last_step_s is None:
            return -math.inf
        report_s = self._failures[0][0] if self._failures else math.inf
        return min(self._timers.next_at(), report_s, self._last_step_s + TICK_S)

    def step(self, event: Event, now: Moment) -> list[Effect]:
        """Run what is due at `now`, then handle `event`; return ordered effects."""
        if self._last_step_s is None:
            self._lost_s = now.mono_s
        effects: list[Effect] = []
        gap_s = 0.0 if self._last_step_s is None else now.mono_s - self._last_step_s
        self._last_step_s = now.mono_s
        if gap_s > TICK_S + 1.0:
            effects += self.worker.on_pause(now)
        if Timer.RESULTS in self._timers.pop_due(now.mono_s):
            effects += self.worker.on_time(now)
        effects += self._on_event(event, now)
        effects += self._report_failures(now)
        effects += self._check_dispatcher(now)
        effects += self._check_leaving(now)
        while self._signals.pop() is not None:
            pass  # Heartbeat answers tell all of it.
        return effects

    # --- Events.

    def _on_event(self, event: Event, now: Moment) -> list[Effect]:
        match event:
            case PeerUp(peer):
                self._peers[peer] = now.mono_s
                return []
            case PeerDown(peer, reason):
                return self._on_link_ended(peer, reason, now)
            case Received(peer, messages):
                effects: list[Effect] = []
                for message in messages:
                    if peer in self._peers:
                        self._peers[peer] = now.mono_s
                        effects += self._on_message(peer, message, now)
                return effects
            case DialFailed():
                return []
            case AttemptsEnded(reports):
                return self._on_attempts_ended(reports, now)
            case LoadSampled(load, are_launchers_failing):
                return self._on_load(load, now, are_failing=are_launchers_failing)
            case StopRequested():
                return self._leave(LeaveReason.ASKED, now)
            case _:
                return []

    def _on_load(
        self, load: LoadSample, now: Moment, *, are_failing: bool
    ) -> list[Effect]:
        self._load = load
        availability = self.worker.availability.with_stalled_percent(
            load.stalled_percent
        )
        return self.worker.set_availability(
            availability.with_launchers(are_failing=are_failing), now
        )

    def _on_link_ended(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        effects = self._on_peer_down(peer, now)
        if reason in UNWANTED_REASONS:
            effects += self._leave(LeaveReason.UNWANTED, now)
        return effects

    def _on_peer_down(self, peer: NodeId, now: Moment) -> list[Effect]:
        self._peers.pop(peer, None)
        if peer != self.dispatcher:
            return []
        self.dispatcher = None
        self._lost_s, self._dials = now.mono_s, 0
        self._next_dial_s = now.mono_s + REDIAL_S
        note = LogLine("info", "dispatcher lost", (("peer", peer),))
        return [note, *self.worker.detach(now)]

    def _on_message(self, peer: NodeId, message: Message, now: Moment) -> list[Effect]:
        match message:
            case Heartbeat():
                return self._on_heartbeat(peer, message, now)
            case Redirect(epoch, dispatcher, addresses) if epoch >= self._epoch:
                is_known = dispatcher in self._peers or not addresses
                return [] if is_known else [Dial(dispatcher, addresses)]
            case Contacts(epoch, members) if epoch >= self._epoch:
                self.contacts = members
            case ProbeOk():
                self.worker.on_probe_ok(peer, message)
            case Leave():
                return self._on_peer_down(peer, now)
            case ReadOutput() if peer == self.dispatcher:
                return [ServeOutput(peer, message)]
            case Assign() | Kill() | ResultsOk() if peer == self.dispatcher:
                return self._on_order(message, now)
            case _:
                pass
        return []

    def _on_order(
        self, message: Assign | Kill | ResultsOk, now: Moment
    ) -> list[Effect]:
        assert self.dispatcher is not None
        match message:
            case Assign():
                return self.worker.on_assign(self.dispatcher, message, now)
            case Kill():
                return self.worker.on_kill(message, now)
            case ResultsOk():
                return self.worker.on_results_ok(message, now)

    # --- Ends of attempts.

    def _on_attempts_ended(
        self, reports: Sequence[Report], now: Moment
    ) -> list[Effect]:
        """Report how attempts ended, but hold failures for a moment.

        A failure may come from the signal that ends the visit. If the visit ends in
        that moment, the attempt is given back instead.
        """
        if self.leave_reason is not None:
            return self.worker.on_attempts_ended([*map(_given_back, reports)], now)
        report_s = now.mono_s + FAILURE_HOLD_S
        self._failures += ((report_s, each) for each in reports if _is_failure(each))
        others = [each for each in reports if not _is_failure(each)]
        return self.worker.on_attempts_ended(others, now) if others else []

    def _report_failures(self, now: Moment) -> list[Effect]:
        """Report the failures that are old enough."""
        due: list[Report] = []
        while self._failures and self._failures[0][0] <= now.mono_s:
            due.append(self._failures.popleft()[1])
        return self.worker.on_attempts_ended(due, now) if due else []

    def _give_failures_back(self, now: Moment) -> list[Effect]:
        """Give back the attempts that failed a moment ago, so that they run again."""
        reports = [_given_back(report) for _, report in self._failures]
        self._failures.clear()
        return self.worker.on_attempts_ended(reports, now) if reports else []

    # --- The dispatcher.

    def _on_heartbeat(
        self, peer: NodeId, heartbeat: Heartbeat, now: Moment
    ) -> list[Effect]:
        epoch = heartbeat.epoch
        if epoch < self._epoch or epoch.node != peer:
            return [Disconnect(peer, UNNEEDED_REASON)]
        effects: list[Effect] = []
        if (peer, epoch) != (self.dispatcher, self._epoch):
            effects += self._attach(peer, epoch, now)
        effects += self.worker.probe_if_fenced(now)
        ok = HeartbeatOk(
            epoch,
            heartbeat.sent_s,
            self.worker.availability.state,
            self.worker.credit_at(now),
            self._load,
            pressure=self.worker.availability.pressure,
        )
        return [*effects, Send(peer, (ok,))]

    def _attach(self, peer: NodeId, epoch: Epoch, now: Moment) -> list[Effect]:
        effects = self.worker.detach(now) if self.dispatcher is not None else []
        self.dispatcher, self._epoch = peer, epoch
        if self._busy_s is None:
            self._busy_s = now.mono_s
        effects += [
            Disconnect(other, UNNEEDED_REASON) for other in self._peers if other != peer
        ]
        self._peers = {peer: now.mono_s}
        effects.append(LogLine("info", "visitor ready", (("dispatcher", peer),)))
        return effects + self.worker.attach(peer, epoch, now)

    def _check_dispatcher(self, now: Moment) -> list[Effect]:
        """Close links to silent members, and dial while there is no dispatcher."""
        effects: list[Effect] = []
        for peer, heard_s in tuple(self._peers.items()):
            if now.mono_s - heard_s > SILENCE_S:
                effects += [Disconnect(peer, "silent"), *self._on_peer_down(peer, now)]
        is_unwanted = self.leave_reason is LeaveReason.UNWANTED
        is_attached = self.dispatcher is not None
        if is_attached or is_unwanted or now.mono_s < self._next_dial_s:
            return effects
        self._dials += 1
        self._next_dial_s = now.mono_s + backoff(
            self._dials, base_s=REDIAL_S, cap_s=REDIAL_S_MAX
        )
        for contact in self.contacts:
            if contact.id not in self._peers:
                effects.append(Dial(contact.id, contact.addresses))
        if not self._peers:
            effects += [Dial(None, addresses) for addresses in self._visit.seeds]
        return effects

    # --- Leaving.

    def _check_leaving(self, now: Moment) -> list[Effect]:
        """Leave if the time is up, or after a while without a task or a member."""
        if not self.worker.has_no_work:
            self._busy_s = now.mono_s
        effects: list[Effect] = []
        if self.leave_reason is None:
            reason = self._reason_to_leave(now)
            if reason is not None:
                effects += self._leave(reason, now)
        if self.leave_reason is None or self._is_stopped:
            return effects
        is_late = now.mono_s >= self._give_up_s
        # Nobody takes the results of a visitor that is unwanted.
        is_unwanted = self.leave_reason is LeaveReason.UNWANTED
        is_idle = self.worker.is_idle and (is_unwanted or self.worker.has_no_work)
        if is_idle or is_late:
            self._is_stopped = True
            reason_field = (("reason", str(self.leave_reason)),)
            effects += [LogLine("info", "visitor leaves", reason_field), Stopped()]
        return effects

    def _reason_to_leave(self, now: Moment) -> LeaveReason | None:
        visit = self._visit
        if now.wall_ms >= visit.ends_ms - 1000 * visit.return_s:
            return LeaveReason.TIME_UP
        if self.dispatcher is None and now.mono_s - self._lost_s >= UNREACHABLE_S:
            return LeaveReason.UNREACHABLE
        is_idle = (
            visit.idle_s is not None
            and self._busy_s is not None
            and now.mono_s - self._busy_s >= visit.idle_s
        )
        return LeaveReason.IDLE if is_idle else None

    def _leave(self, reason: LeaveReason, now: Moment) -> list[Effect]:
        """Stop accepting attempts, and return those that are here to the mesh."""
        if self.leave_reason is not None:
            return []
        self.leave_reason = reason
        grace_s = self._settings.timing.kill_grace_s
        self._give_up_s = now.mono_s + grace_s + RESULTS_S
        availability = self.worker.availability.with_stopping()
        effects = self._give_failures_back(now)
        effects += self.worker.set_availability(availability, now)
        return effects + self.worker.stop_attempts()


def _is_failure(report: Report) -> bool:
    """Return True if the task's own processes ended, and not well."""
    outcome = report.outcome
    is_own_end = outcome.reason in (EndReason.EXIT, EndReason.SIGNAL)
    return is_own_end and outcome.state is AttemptState.FAILED


def _given_back(report: Report) -> Report:
    """Return the report of a failure as that of an attempt that was given back."""
    if not _is_failure(report):
        return report
    ended = report.outcome
    outcome = Outcome(
        AttemptState.RELEASED,
        EndReason.DRAINING,
        started_ms=ended.started_ms,
        ended_ms=ended.ended_ms,
        duration_ms=ended.duration_ms,
        detail="it failed while its node stopped",
    )
    return replace(report, outcome=outcome)
