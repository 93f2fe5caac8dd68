"""Worker: holds this node's attempts, and their results until acknowledged.

Owns the attempts, the result outbox and the credit of this node. The runner runs the
processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from octaskly.core.effects import (
    Effect,
    Freeze,
    ReleaseWaiting,
    Send,
    Start,
    Stop,
    Unspool,
)
from octaskly.core.events import HeldBlobsChanged
from octaskly.core.model.component_signals import Outbox, WorkerAvailabilityChanged
from octaskly.core.model.ids import NO_EPOCH, AttemptId, Epoch, Moment, NodeId
from octaskly.core.model.nodes import NO_HOLD, Availability, OperatorHold
from octaskly.core.model.settings import SHORT_TASK_MS, Settings
from octaskly.core.model.task_options import slots_of
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.model.tree_sizes import HELD_MAX
from octaskly.core.protocol.messages import (
    Assign,
    AssignRanges,
    HeldBlobs,
    Kill,
    Message,
    Probe,
    ProbeOk,
    RangeResults,
    RangeResultsOk,
    Reattach,
    Report,
    Results,
    ResultsOk,
)
from octaskly.core.worker.result_outbox import (
    AttemptKey,
    PendingResult,
    RangePlace,
    ResultOutbox,
    SuccessesByRange,
)

PREFETCH_MS = 50.0  #: prefetched work, in milliseconds
SHORT_TASK_PREFETCH_MS = 100.0  #: for short tasks, whose results come every 50 ms
LONG_TASK_MS = 50.0  #: tasks above this are long; nothing is prefetched behind them
DURATION_MS_MIN = 0.5  #: durations are whole milliseconds, so 0 means less than one
EWMA_SHARE = 0.125  #: weight of the newest duration
OUTBOX_BYTES_MAX = 64 << 20  #: with more results waiting, the credit is 0


class _HeldAttempt(Struct, eq=False, gc=False):
    """An attempt that runs or waits for a slot."""

    spec: TaskSpec
    slots: int  #: slots that it holds while it runs
    place: RangePlace | None = None  #: its place in the range that it came with
    is_killed: bool = False


class Worker:
    """This node's role as worker."""

    def __init__(
        self,
        settings: Settings,
        saved_reports: tuple[Report, ...],
        timers: TimerHeap,
        signals: Outbox,
        hold: OperatorHold = NO_HOLD,
        *,
        is_revoked: bool = False,
    ) -> None:
        self._me = settings.node.id
        self._timers = timers
        self._signals = signals
        self._slots = settings.node.slots
        self._prefetch_max = settings.limits.prefetch
        self._dispatcher_id: NodeId | None = None
        self._epoch = NO_EPOCH
        self.availability = Availability(hold, is_revoked=is_revoked)
        """The reasons that keep this node from new work."""
        self._attempts: dict[AttemptKey, _HeldAttempt] = {}
        self._started_s: dict[AttemptKey, float] = {}
        """Attempts in slots with approximate start times, oldest first."""
        self._busy_slots = 0  #: slots held by these attempts
        self._waiting: deque[AttemptKey] = deque()
        self._outbox = ResultOutbox(saved_reports, settings.limits.entries_bytes)
        self._mean_ms: float | None = None
        self._sent_credit: int | None = None
        self._sent_availability = Availability()
        self._fenced_since_s: float | None = None
        """End of a pause that the dispatcher may have taken for this node's end."""
        self._held_blobs: dict[int, None] = {}
        """Keys of the large blobs and whole trees that are here, the latest last."""
        self._now_s = 0.0

    @property
    def running(self) -> int:
        """The number of attempts in slots."""
        return len(self._started_s)

    @property
    def is_idle(self) -> bool:
        """Return True if the node can stop: no attempt and no result is pending.

        Without a dispatcher, results wait on disk for the next start.
        """
        return not self._attempts and (not self._outbox or self._dispatcher_id is None)

    @property
    def has_no_work(self) -> bool:
        """Return True if no attempt is here, and no result waits to be sent."""
        return not self._attempts and not self._outbox

    @property
    def credit(self) -> int:
        """The number of attempts that this node accepts, running and waiting.

        Work for 50 to 100 ms is prefetched, but none behind a long task: a short task
        would start earlier on any other node.
        """
        if (
            not self.availability.takes_work
            or self._outbox.size_bytes >= OUTBOX_BYTES_MAX
        ):
            return 0
        if self._mean_ms is None or self._mean_ms > LONG_TASK_MS:
            return self._slots
        if self._started_s:
            oldest_s = next(iter(self._started_s.values()))
            if (self._now_s - oldest_s) * 1000 > LONG_TASK_MS:
                return self._slots
        are_tasks_short = self._mean_ms < SHORT_TASK_MS
        ahead_ms = SHORT_TASK_PREFETCH_MS if are_tasks_short else PREFETCH_MS
        ahead = int(self._slots * ahead_ms / self._mean_ms)
        return self._slots + min(ahead, self._prefetch_max)

    def credit_at(self, now: Moment) -> int:
        """Return `credit` at this time."""
        self._now_s = now.mono_s
        return self.credit

    # --- The dispatcher.

    def attach(self, dispatcher: NodeId, epoch: Epoch, now: Moment) -> list[Effect]:
        """Attach to a dispatcher: send unacknowledged results, then running attempts.

        The order matters: an attempt that is neither reported nor running counts as
        lost and would run again. Results that do not fit into the first message are
        listed as running; they follow after acknowledgements.
        """
        self._now_s = now.mono_s
        self._dispatcher_id = dispatcher
        self._fenced_since_s = None  # This link is newer than the pause.
        self._epoch = max(self._epoch, epoch)
        effects = self._outbox.spool_results() if dispatcher != self._me else []
        self._outbox.mark_all_unsent(
            now.mono_s, is_own_dispatcher=dispatcher == self._me
        )
        effects += self._send_unsent()
        running = [(key[1], held.spec) for key, held in self._attempts.items()]
        unsent = [(k.report.attempt, k.spec) for k in self._outbox.unsent_results()]
        later = [(attempt, spec) for attempt, spec in unsent if spec is not None]
        self._sent_credit, self._sent_availability = self.credit, self.availability
        self._set_timer()
        message = Reattach(
            (*running, *later), self._sent_credit, self.availability.state
        )
        held = HeldBlobs(tuple(self._held_blobs))
        return [
            *effects,
            Send(dispatcher, (message, held) if held.added else (message,)),
        ]

    def detach(self, now: Moment) -> list[Effect]:
        """Detach from the dispatcher; attempts continue, results are spooled."""
        self._now_s = now.mono_s
        self._dispatcher_id = self._fenced_since_s = None
        self._timers.clear(Timer.RESULTS)
        return self._outbox.spool_results()

    def on_pause(self, now: Moment) -> list[Effect]:
        """Refuse assignments after a pause until the dispatcher answers a probe.

        The dispatcher may have given this node's attempts to other workers meanwhile,
        and then an assignment that waited in the socket would run twice. Heartbeats
        wait there as well, so a heartbeat alone does not lift the fence.
        """
        if self._dispatcher_id in (None, self._me):
            return []
        self._fenced_since_s = now.mono_s
        return self.probe_if_fenced(now)

    def probe_if_fenced(self, now: Moment) -> list[Effect]:
        """Send a probe to the dispatcher; at each heartbeat, in case one was lost."""
        if self._dispatcher_id is None or self._fenced_since_s is None:
            return []
        probe = Probe(self._dispatcher_id, now.mono_s)
        return [Send(self._dispatcher_id, (probe,))]

    def on_probe_ok(self, sender: NodeId, message: ProbeOk) -> None:
        """Lift the fence: in this epoch, the dispatcher has this node as a worker."""
        if (
            self._fenced_since_s is not None
            and (sender, message.epoch) == (self._dispatcher_id, self._epoch)
            and message.sent_s >= self._fenced_since_s
        ):
            self._fenced_since_s = None

    def on_assign(
        self, sender: NodeId, message: Assign | AssignRanges, now: Moment
    ) -> list[Effect]:
        """Start attempts, each once; refuse those that may run elsewhere by now."""
        self._now_s = now.mono_s
        if message.epoch < self._epoch:
            # Rule I7: a node that has seen an epoch never starts work for an older one.
            # The answer shows the sender that it is deposed.
            reports = [
                replace(_refused_report(attempt, spec, EndReason.STALE), spec=spec)
                for attempt, spec, _ in _assigned_attempts(message)
            ]
            return [Send(sender, (Results(tuple(reports), 0),))]
        self._epoch = message.epoch
        new_attempts: list[tuple[AttemptId, TaskSpec]] = []
        resent: list[PendingResult] = []
        refused: list[PendingResult] = []
        refusal: EndReason | None = None
        if self._fenced_since_s is not None:
            refusal = EndReason.STALE
        elif not self.availability.takes_work:
            refusal = EndReason.DRAINING
        held, outbox = self._attempts, self._outbox
        for attempt, spec, place in _assigned_attempts(message):
            key = (spec.id, attempt)
            if (known := outbox.get(key)) is not None:
                resent.append(known)
            elif key in held:
                continue
            elif refusal is not None:
                report = _refused_report(attempt, spec, refusal)
                refused.append(self._outbox.add_result(report, spec))
            else:
                new_attempts.append((attempt, spec))
                self._hold_attempt(key, spec, place)
        effects: list[Effect] = []
        if new_attempts:
            holders = message.holders if isinstance(message, Assign) else ()
            effects.append(Start(tuple(new_attempts), holders))
        if resent:
            effects += self._send_results(resent)
        return effects + self._send_new_results(refused)

    def on_kill(self, message: Kill, now: Moment) -> list[Effect]:
        """Stop attempts; each is reported as cancelled, even if it succeeds.

        Attempts that had ended before keep their result; the dispatcher decides about
        it.
        """
        self._now_s = now.mono_s
        if message.epoch < self._epoch:
            return []  # The new dispatcher decides about these attempts.
        if message.spares_begun:
            waiting = tuple(key for key in message.items if key in self._attempts)
            return [Stop(waiting, EndReason.RETURNED)] if waiting else []
        stops: list[AttemptKey] = []
        resent: list[PendingResult] = []
        unknown: list[PendingResult] = []
        for key in message.items:
            if (held := self._attempts.get(key)) is not None:
                held.is_killed = True
                stops.append(key)
            elif (known := self._outbox.get(key)) is not None:
                resent.append(known)
            else:
                unknown.append(
                    self._outbox.add_result(_cancelled_report(key, now), None)
                )
        effects: list[Effect] = [Stop(tuple(stops))] if stops else []
        if resent:
            effects += self._send_results(resent)
        return effects + self._send_new_results(unknown)

    def on_results_ok(
        self, message: ResultsOk | RangeResultsOk, now: Moment
    ) -> list[Effect]:
        """Forget results that are durable at the dispatcher."""
        self._now_s = now.mono_s
        keys: Iterable[AttemptKey]
        if isinstance(message, ResultsOk):
            keys = message.items
        else:
            keys = (key for members in message.items for key in members.attempt_keys())
        spooled = self._outbox.drop_acknowledged(keys)
        effects: list[Effect] = [Unspool(spooled)] if spooled else []
        effects += self._send_unsent()
        self._set_timer()
        return effects + self._send_credit_change()

    # --- Runner, operator and timer.

    def on_attempts_ended(self, reports: Sequence[Report], now: Moment) -> list[Effect]:
        """Report attempts that ended or were released by the runner."""
        self._now_s = now.mono_s
        new_results = []
        for report in reports:
            held = self._remove_attempt((report.task, report.attempt))
            spec = place = None
            if held is not None:
                spec, place = held.spec, held.place
                outcome = report.outcome
                if held.is_killed:
                    report = replace(report, outcome=_killed_outcome(outcome))
                elif _is_stopped(outcome) and not spec.may_run_twice:
                    report = replace(report, outcome=_lost_outcome(outcome))
            self._update_mean_duration(report.outcome)
            new_results.append(self._outbox.add_result(report, spec, place))
        return self._send_new_results(new_results)

    def on_held_blobs_changed(self, event: HeldBlobsChanged) -> list[Effect]:
        """Report large blobs and whole trees that are new here, or gone."""
        held = self._held_blobs
        for key in event.removed:
            held.pop(key, None)
        for key in event.added:
            held.pop(key, None)
            held[key] = None
        dropped = tuple(islice(held, max(0, len(held) - HELD_MAX)))
        for key in dropped:
            del held[key]
        if self._dispatcher_id is None:
            return []
        message = HeldBlobs(
            event.added[-HELD_MAX:], (*event.removed, *dropped)[-HELD_MAX:]
        )
        return [Send(self._dispatcher_id, (message,))]

    def stop_attempts(self) -> list[Effect]:
        """Stop running attempts, so that other nodes run them."""
        keys = tuple(key for key, held in self._attempts.items() if not held.is_killed)
        return [Stop(keys, EndReason.DRAINING)] if keys else []

    def set_availability(self, availability: Availability, now: Moment) -> list[Effect]:
        """Set the availability, and send a change to the dispatcher at once."""
        self._now_s = now.mono_s
        previous, self.availability = self.availability, availability
        if availability != previous:
            self._signals.put(WorkerAvailabilityChanged())
        effects: list[Effect] = []
        if availability.hold.is_paused != previous.hold.is_paused:
            effects.append(Freeze(availability.hold.is_paused))
        if previous.takes_work and not availability.takes_work:
            effects.append(ReleaseWaiting())
        sent = self._sent_availability
        is_already_sent = (sent.state, sent.pressure) == (
            availability.state,
            availability.pressure,
        )
        if self._dispatcher_id is None or is_already_sent:
            return effects
        self._sent_credit, self._sent_availability = self.credit, availability
        update = Results((), self._sent_credit, availability.state)
        return [*effects, Send(self._dispatcher_id, (update,))]

    def on_time(self, now: Moment) -> list[Effect]:
        """Resend unacknowledged results, the oldest message first."""
        self._now_s = now.mono_s
        if self._dispatcher_id is None or not self._outbox:
            return []
        effects = self._send_results(self._outbox.due_results(now.mono_s))
        self._set_timer()
        return effects

    def _set_timer(self) -> None:
        """Set the timer for the next resend."""
        self._timers.set(Timer.RESULTS, self._outbox.deadline())

    # --- Slots and the waiting queue.

    def _hold_attempt(
        self, key: AttemptKey, spec: TaskSpec, place: RangePlace | None
    ) -> None:
        held = _HeldAttempt(spec, slots_of(spec.options), place)
        self._attempts[key] = held
        if self._busy_slots + held.slots <= self._slots:
            self._occupy_slots(key, held)
        else:
            self._waiting.append(key)

    def _occupy_slots(self, key: AttemptKey, held: _HeldAttempt) -> None:
        self._started_s[key] = self._now_s
        self._busy_slots += held.slots

    def _remove_attempt(self, key: AttemptKey) -> _HeldAttempt | None:
        """Remove an attempt, and start waiting ones in its slots."""
        held = self._attempts.pop(key, None)
        if held is None or self._started_s.pop(key, None) is None:
            return held  # Its entry in the waiting queue is skipped later.
        self._busy_slots -= held.slots
        waiting = self._waiting
        while waiting and self._busy_slots < self._slots:
            next_key = waiting[0]
            if (successor := self._attempts.get(next_key)) is not None:
                if self._busy_slots + successor.slots > self._slots:
                    break
                self._occupy_slots(next_key, successor)
            waiting.popleft()
        return held

    def _update_mean_duration(self, outcome: Outcome) -> None:
        """Update the moving average of task durations."""
        if outcome.duration_ms is None or outcome.state is AttemptState.RELEASED:
            return
        lasted_ms = max(float(outcome.duration_ms), DURATION_MS_MIN)
        if self._mean_ms is None:
            self._mean_ms = lasted_ms
        self._mean_ms += (lasted_ms - self._mean_ms) * EWMA_SHARE

    # --- Results.

    def _send_new_results(self, new_results: list[PendingResult]) -> list[Effect]:
        """Spool new results, and send them if there is a dispatcher."""
        if not new_results:
            return []
        is_remote = self._dispatcher_id != self._me
        effects = self._outbox.spool_results(new_results) if is_remote else []
        return effects + self._send_results(new_results, is_new=True)

    def _send_results(
        self, results: list[PendingResult], *, is_new: bool = False
    ) -> list[Effect]:
        """Send results in messages of bounded size."""
        if self._dispatcher_id is None or not results:
            return []
        self._sent_credit = self.credit
        messages: list[Message] = []
        for chunk in self._outbox.split_into_messages(results):
            reports = self._outbox.mark_sent(chunk, self._now_s, is_new=is_new)
            members = SuccessesByRange()
            if is_new:
                reports = [
                    report
                    for report, result in zip(reports, chunk, strict=True)
                    if result.place is None
                    or not members.add_success(report, result.place)
                ]
            if members:
                messages.append(RangeResults(members.reports(), self._sent_credit))
            if reports:
                messages.append(Results(tuple(reports), self._sent_credit))
        self._timers.set_earlier(Timer.RESULTS, self._outbox.deadline())
        return [Send(self._dispatcher_id, tuple(messages))]

    def _send_unsent(self) -> list[Effect]:
        """Send one message of results that were not sent to this dispatcher."""
        unsent = self._outbox.unsent_results()
        if not unsent:
            return []
        return self._send_results(next(self._outbox.split_into_messages(unsent)))

    def _send_credit_change(self) -> list[Effect]:
        """Send the credit at once if it changes to or from 0."""
        credit = self.credit
        if self._dispatcher_id is None or bool(credit) == bool(self._sent_credit):
            return []
        self._sent_credit = credit
        return [Send(self._dispatcher_id, (Results((), credit),))]


def _assigned_attempts(
    message: Assign | AssignRanges,
) -> Iterator[tuple[AttemptId, TaskSpec, RangePlace | None]]:
    """Yield the attempts of a message, each with its place if it came with a range."""
    if isinstance(message, Assign):
        for attempt, spec in message.items:
            yield attempt, spec, None
        return
    for members in message.items:
        for offset, (attempt, spec) in enumerate(members.members()):
            yield attempt, spec, (members, offset)


def _refused_report(attempt: AttemptId, spec: TaskSpec, reason: EndReason) -> Report:
    outcome = Outcome(state=AttemptState.RELEASED, reason=reason)
    return Report(task=spec.id, attempt=attempt, outcome=outcome)


def _cancelled_report(key: AttemptKey, now: Moment) -> Report:
    """Return the report of a cancelled attempt that this node does not hold."""
    outcome = Outcome(
        state=AttemptState.CANCELLED, reason=EndReason.CANCELLED, ended_ms=now.wall_ms
    )
    return Report(task=key[0], attempt=key[1], outcome=outcome)


def _killed_outcome(outcome: Outcome) -> Outcome:
    """Return the outcome of a killed attempt, which is never a success."""
    return replace(outcome, state=AttemptState.CANCELLED, reason=EndReason.CANCELLED)


def _is_stopped(outcome: Outcome) -> bool:
    """Return True if the attempt ran, and its node ended it to leave."""
    return outcome.reason is EndReason.DRAINING and outcome.started_ms is not None


def _lost_outcome(outcome: Outcome) -> Outcome:
    """Return the outcome of a stopped attempt that no other may follow."""
    detail = f"its node stopped while it ran ({outcome.detail})"
    return replace(outcome, reason=EndReason.LOST, detail=detail)
