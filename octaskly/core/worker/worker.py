"""This node as worker: it takes attempts, and keeps their ends until acknowledged.

Owns which attempts are here, which results no dispatcher has acknowledged, and how
much work this node takes. It does not run processes: the runner does.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

from octaskly.core.effects import Effect, Freeze, HandBack, Send, Start, Stop, Unspool
from octaskly.core.events import AttemptsEnded
from octaskly.core.model.ids import NO_EPOCH, AttemptId, Epoch, Moment, NodeId
from octaskly.core.model.nodes import NO_HOLD, Hold, Stance
from octaskly.core.model.settings import BRIEF_MS, Settings
from octaskly.core.model.task_options import slots_of
from octaskly.core.model.tasks import AttemptState, Outcome, Reason, TaskSpec
from octaskly.core.protocol.messages import (
    Dispatch,
    Kill,
    Message,
    Reattach,
    Report,
    Results,
    ResultsOk,
)
from octaskly.core.worker.result_outbox import KeptResult, KeptResults, Key

AHEAD_MS = 50.0  #: of work that should wait on a worker with short tasks
BRIEF_AHEAD_MS = 100.0  #: of work with such tasks, whose ends are told each 50
LONG_MS = 50.0  #: from here on a task is long, and nothing may wait behind it
SHORTEST_MS = 0.5  #: durations are whole milliseconds; 0 means less than one
EWMA_SHARE = 0.125  #: weight of the newest duration
KEPT_BYTES_MAX = 64 << 20  #: of results kept before this node takes no more work


@dataclass(slots=True)
class _Taken:
    """An attempt that is here, running or waiting for a slot."""

    spec: TaskSpec
    slots: int  #: that it holds while it runs
    is_killed: bool = False


class Worker:
    """The worker's half of a node."""

    def __init__(
        self,
        settings: Settings,
        saved_reports: tuple[Report, ...],
        hold: Hold = NO_HOLD,
        *,
        is_revoked: bool = False,
    ) -> None:
        self._me = settings.node.id
        self._slots = settings.node.slots
        self._prefetch_max = settings.limits.prefetch
        self._dispatcher: NodeId | None = None
        self._epoch = NO_EPOCH
        self.stance = Stance(hold, is_revoked=is_revoked)
        """Whether it takes work."""
        self._taken: dict[Key, _Taken] = {}
        self._started: dict[Key, float] = {}
        """Attempts in slots and since when, oldest first, as far as can be told."""
        self._busy = 0  #: slots that these hold
        self._waiting: deque[Key] = deque()
        self._kept = KeptResults(saved_reports, settings.limits.entries_bytes)
        self._mean_ms: float | None = None
        self._told_credit: int | None = None
        self._told_stance = Stance()
        self._now_s = 0.0

    @property
    def running(self) -> int:
        """How many attempts are in slots."""
        return len(self._started)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost if the node stops: no attempt, nothing to report.

        Without a dispatcher the results wait on disk for the next start.
        """
        return not self._taken and (not self._kept or self._dispatcher is None)

    @property
    def credit(self) -> int:
        """How many attempts this node takes in all, running and waiting.

        Work for some 50 to 100 ms may wait here, and none behind a long task: a
        short one would be faster anywhere else.
        """
        if not self.stance.takes_work or self._kept.size >= KEPT_BYTES_MAX:
            return 0
        if self._mean_ms is None or self._mean_ms > LONG_MS:
            return self._slots
        oldest_s = next(iter(self._started.values()), self._now_s)
        if (self._now_s - oldest_s) * 1000 > LONG_MS:
            return self._slots
        is_brief = self._mean_ms < BRIEF_MS
        ahead_ms = BRIEF_AHEAD_MS if is_brief else AHEAD_MS
        ahead = int(self._slots * ahead_ms / self._mean_ms)
        return self._slots + min(ahead, self._prefetch_max)

    def credit_at(self, now: Moment) -> int:
        """Return `credit`, though nothing has happened here for a while."""
        self._now_s = now.mono_s
        return self.credit

    # --- The dispatcher.

    def attach(self, dispatcher: NodeId, epoch: Epoch, now: Moment) -> list[Effect]:
        """Follow a dispatcher: tell it what ended unheard, then what still runs.

        In this order, because an attempt that is neither reported nor running is
        lost, and would be run again. Results that do not fit into the first message
        are told as running; they follow as that is acknowledged.
        """
        self._now_s = now.mono_s
        self._dispatcher = dispatcher
        self._epoch = max(self._epoch, epoch)
        effects = self._kept.spool() if dispatcher != self._me else []
        self._kept.restart(now.mono_s, is_own=dispatcher == self._me)
        effects += self._send_unsent()
        running = [(key[1], taken.spec) for key, taken in self._taken.items()]
        unsent = [(k.report.attempt, k.spec) for k in self._kept.unsent()]
        later = [(attempt, spec) for attempt, spec in unsent if spec is not None]
        self._told_credit, self._told_stance = self.credit, self.stance
        message = Reattach((*running, *later), self._told_credit, self.stance.state)
        return [*effects, Send(dispatcher, (message,))]

    def detach(self, now: Moment) -> list[Effect]:
        """Go on without a dispatcher; results wait, on disk."""
        self._now_s = now.mono_s
        self._dispatcher = None
        return self._kept.spool()

    def on_dispatch(
        self, sender: NodeId, message: Dispatch, now: Moment
    ) -> list[Effect]:
        """Start attempts, each once, and none for a deposed dispatcher."""
        self._now_s = now.mono_s
        if message.epoch < self._epoch:
            # Rule I7: a node that has seen an epoch never starts work for an older
            # one. The sender may learn it from this.
            reports = [
                replace(_refused(attempt, spec, Reason.STALE), spec=spec)
                for attempt, spec in message.items
            ]
            return [Send(sender, (Results(tuple(reports), 0),))]
        self._epoch = message.epoch
        fresh: list[tuple[AttemptId, TaskSpec]] = []
        again: list[KeptResult] = []
        refused: list[KeptResult] = []
        takes_work = self.stance.takes_work
        for attempt, spec in message.items:
            key = (spec.id, attempt)
            if key in self._kept:
                again.append(self._kept[key])
            elif key in self._taken:
                continue
            elif not takes_work:
                report = _refused(attempt, spec, Reason.DRAINING)
                refused.append(self._kept.keep(report, spec))
            else:
                fresh.append((attempt, spec))
                self._take(key, spec)
        effects: list[Effect] = [Start(tuple(fresh))] if fresh else []
        if again:
            effects += self._send(again)
        return effects + self._report(refused)

    def on_kill(self, message: Kill, now: Moment) -> list[Effect]:
        """End attempts; each is reported as cancelled, whatever it still achieves.

        What has ended is told as it did: a dispatcher knows whether that still counts.
        """
        self._now_s = now.mono_s
        if message.epoch < self._epoch:
            return []  # Its successor decides what is void.
        stops: list[Key] = []
        again: list[KeptResult] = []
        unknown: list[KeptResult] = []
        for key in message.items:
            if (taken := self._taken.get(key)) is not None:
                taken.is_killed = True
                stops.append(key)
            elif key in self._kept:
                again.append(self._kept[key])
            else:
                unknown.append(self._kept.keep(_cancelled(key, now), None))
        effects: list[Effect] = [Stop(tuple(stops))] if stops else []
        if again:
            effects += self._send(again)
        return effects + self._report(unknown)

    def on_results_ok(self, message: ResultsOk, now: Moment) -> list[Effect]:
        """Forget results that are durable at the dispatcher."""
        self._now_s = now.mono_s
        spooled = self._kept.forget(message.items)
        effects: list[Effect] = [Unspool(spooled)] if spooled else []
        effects += self._send_unsent()
        return effects + self._tell_credit()

    # --- The runner, the operator, time.

    def on_ended(self, event: AttemptsEnded, now: Moment) -> list[Effect]:
        """Report what the runner saw end or gives back."""
        self._now_s = now.mono_s
        fresh = []
        for report in event.reports:
            taken = self._leave((report.task, report.attempt))
            if taken is not None and taken.is_killed:
                report = replace(report, outcome=_as_killed(report.outcome))
            self._learn(report.outcome)
            spec = None if taken is None else taken.spec
            fresh.append(self._kept.keep(report, spec))
        return self._report(fresh)

    def give_up(self) -> list[Effect]:
        """End what still runs, for other nodes to run it."""
        keys = tuple(key for key, taken in self._taken.items() if not taken.is_killed)
        return [Stop(keys, Reason.DRAINING)] if keys else []

    def take_stance(self, stance: Stance, now: Moment) -> list[Effect]:
        """Take work from now on, or none; the dispatcher hears of it at once."""
        self._now_s = now.mono_s
        before, self.stance = self.stance, stance
        effects: list[Effect] = []
        if stance.hold.is_paused != before.hold.is_paused:
            effects.append(Freeze(stance.hold.is_paused))
        if before.takes_work and not stance.takes_work:
            effects.append(HandBack())
        told = self._told_stance
        is_known = (told.state, told.strain) == (stance.state, stance.strain)
        if self._dispatcher is None or is_known:
            return effects
        self._told_credit, self._told_stance = self.credit, stance
        news = Results((), self._told_credit, stance.state)
        return [*effects, Send(self._dispatcher, (news,))]

    def on_time(self, now: Moment) -> list[Effect]:
        """Repeat results that were not acknowledged, the oldest message first."""
        self._now_s = now.mono_s
        if self._dispatcher is None or not self._kept:
            return []
        return self._send(self._kept.due(now.mono_s))

    def deadline(self) -> float:
        """Return when `on_time` has something to do."""
        return math.inf if self._dispatcher is None else self._kept.deadline()

    # --- Slots and waiting.

    def _take(self, key: Key, spec: TaskSpec) -> None:
        taken = self._taken[key] = _Taken(spec, slots_of(spec.options))
        if self._busy + taken.slots <= self._slots:
            self._start(key, taken)
        else:
            self._waiting.append(key)

    def _start(self, key: Key, taken: _Taken) -> None:
        self._started[key] = self._now_s
        self._busy += taken.slots

    def _leave(self, key: Key) -> _Taken | None:
        """Take an attempt out of its slots or its waiting place."""
        taken = self._taken.pop(key, None)
        if taken is None or self._started.pop(key, None) is None:
            return taken  # Its line among those that wait is skipped later.
        self._busy -= taken.slots
        while self._waiting:
            successor = self._taken.get(self._waiting[0])
            if successor is not None:
                if self._busy + successor.slots > self._slots:
                    break
                self._start(self._waiting[0], successor)
            self._waiting.popleft()
        return taken

    def _learn(self, outcome: Outcome) -> None:
        """Follow how long tasks take here."""
        if outcome.duration_ms is None or outcome.state is AttemptState.RELEASED:
            return
        lasted_ms = max(float(outcome.duration_ms), SHORTEST_MS)
        if self._mean_ms is None:
            self._mean_ms = lasted_ms
        self._mean_ms += (lasted_ms - self._mean_ms) * EWMA_SHARE

    # --- Results.

    def _report(self, fresh: list[KeptResult]) -> list[Effect]:
        """Send results that were just kept where a dispatcher is known."""
        if not fresh:
            return []
        is_remote = self._dispatcher != self._me
        effects = self._kept.spool(fresh) if is_remote else []
        return effects + self._send(fresh, is_news=True)

    def _send(
        self, results: list[KeptResult], *, is_news: bool = False
    ) -> list[Effect]:
        """Send results in messages of bounded size."""
        if self._dispatcher is None or not results:
            return []
        self._told_credit = self.credit
        messages: list[Message] = []
        for chunk in self._kept.chunks(results):
            reports = [
                self._kept.told(kept, self._now_s, is_news=is_news) for kept in chunk
            ]
            messages.append(Results(tuple(reports), self._told_credit))
        return [Send(self._dispatcher, tuple(messages))]

    def _send_unsent(self) -> list[Effect]:
        """Send one message of what the present dispatcher was not sent."""
        return self._send(next(iter(self._kept.chunks(self._kept.unsent())), []))

    def _tell_credit(self) -> list[Effect]:
        """Say at once that this node takes work again, or no more."""
        credit = self.credit
        if self._dispatcher is None or bool(credit) == bool(self._told_credit):
            return []
        self._told_credit = credit
        return [Send(self._dispatcher, (Results((), credit),))]


def _refused(attempt: AttemptId, spec: TaskSpec, reason: Reason) -> Report:
    outcome = Outcome(state=AttemptState.RELEASED, reason=reason)
    return Report(task=spec.id, attempt=attempt, outcome=outcome)


def _cancelled(key: Key, now: Moment) -> Report:
    """Return the end of an attempt that was never here, or is here no more."""
    outcome = Outcome(
        state=AttemptState.CANCELLED, reason=Reason.CANCELLED, ended_ms=now.wall_ms
    )
    return Report(task=key[0], attempt=key[1], outcome=outcome)


def _as_killed(outcome: Outcome) -> Outcome:
    """Return the end of an attempt that was told to end: never a success."""
    return replace(outcome, state=AttemptState.CANCELLED, reason=Reason.CANCELLED)
