"""This node as worker: it takes attempts, and keeps their ends until acknowledged.

Owns which attempts are here, which results no dispatcher has acknowledged, and how
much work this node takes. It does not run processes: the runner does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from octaskly.core.effects import Effect, Send, Spool, Start, Stop, Unspool
from octaskly.core.events import AttemptsEnded
from octaskly.core.messages import (
    Dispatch,
    Kill,
    Message,
    Reattach,
    Report,
    Results,
    ResultsOk,
)
from octaskly.core.model import (
    NO_EPOCH,
    AttemptId,
    AttemptState,
    Epoch,
    Moment,
    NodeId,
    NodeState,
    Outcome,
    Reason,
    Settings,
    TaskId,
    TaskSpec,
)
from octaskly.core.retry import ceiling

RESEND_S = 0.2  #: before the first repetition of a result
RESEND_MAX_S = 5.0
AHEAD_MS = 30.0  #: of work that should wait on a worker with short tasks
LONG_MS = 50.0  #: from here on a task is long, and nothing may wait behind it
SHORTEST_MS = 0.5  #: durations are whole milliseconds; 0 means less than one
EWMA_SHARE = 0.125  #: weight of the newest duration
KEPT_BYTES_MAX = 64 << 20  #: of results kept before this node takes no more work
REPORT_BYTES = 512  #: what a report takes beyond output and command, roughly
CHAR_BYTES = 4  #: most bytes of one character of a command

Key = tuple[TaskId, AttemptId]


@dataclass(slots=True)
class _Taken:
    """An attempt that is here, running or waiting for a slot."""

    spec: TaskSpec
    is_killed: bool = False


@dataclass(slots=True)
class _Kept:
    """A result that no dispatcher has acknowledged."""

    report: Report  #: with its envelope, if that is known
    size: int  #: in bytes on the wire, roughly
    is_spooled: bool = False
    sent_s: float = 0.0
    sends: int = 0  #: to the present dispatcher


class Worker:
    """The worker's half of a node."""

    def __init__(self, settings: Settings, saved_reports: tuple[Report, ...]) -> None:
        self._me = settings.node.id
        self._slots = settings.node.slots
        self._prefetch_max = settings.limits.prefetch
        self._message_bytes = settings.limits.entries_bytes
        self._dispatcher: NodeId | None = None
        self._epoch = NO_EPOCH
        self._is_draining = False
        self._taken: dict[Key, _Taken] = {}
        self._started: dict[Key, float] = {}
        """Attempts in slots and since when, oldest first, as far as can be told."""
        self._waiting: deque[Key] = deque()
        self._kept: dict[Key, _Kept] = {}
        self._kept_bytes = 0
        for report in saved_reports:
            self._keep(report).is_spooled = True
        self._mean_ms: float | None = None
        self._told_credit: int | None = None
        self._now_s = 0.0

    @property
    def running(self) -> int:
        """How many attempts are in slots."""
        return len(self._started)

    @property
    def state(self) -> NodeState:
        """Whether this node takes work."""
        return NodeState.DRAINING if self._is_draining else NodeState.READY

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost if the node stops: no attempt, nothing to report.

        Without a dispatcher the results wait on disk for the next start.
        """
        return not self._taken and (not self._kept or self._dispatcher is None)

    @property
    def credit(self) -> int:
        """How many attempts this node takes in all, running and waiting.

        Work for about `AHEAD_MS` may wait here, and none behind a long task: a
        short one would be faster anywhere else.
        """
        if self._is_draining or self._kept_bytes >= KEPT_BYTES_MAX:
            return 0
        if self._mean_ms is None or self._mean_ms > LONG_MS:
            return self._slots
        oldest_s = next(iter(self._started.values()), self._now_s)
        if (self._now_s - oldest_s) * 1000 > LONG_MS:
            return self._slots
        ahead = int(self._slots * AHEAD_MS / self._mean_ms)
        return self._slots + min(ahead, self._prefetch_max)

    # --- The dispatcher.

    def attach(self, dispatcher: NodeId, epoch: Epoch, now: Moment) -> list[Effect]:
        """Follow a dispatcher: tell it what ended unheard, then what still runs.

        In this order, because an attempt that is neither reported nor running is
        lost, and would be run again.
        """
        self._now_s = now.mono_s
        self._dispatcher = dispatcher
        self._epoch = max(self._epoch, epoch)
        effects = self._spool() if dispatcher != self._me else []
        for kept in self._kept.values():
            kept.sends = 0
        effects += self._send(list(self._kept.values()))
        running = tuple((key[1], taken.spec) for key, taken in self._taken.items())
        self._told_credit = self.credit
        effects.append(
            Send(dispatcher, (Reattach(running, self._told_credit, self.state),))
        )
        return effects

    def detach(self, now: Moment) -> list[Effect]:
        """Go on without a dispatcher; results wait, on disk."""
        self._now_s = now.mono_s
        self._dispatcher = None
        return self._spool()

    def on_dispatch(
        self, sender: NodeId, message: Dispatch, now: Moment
    ) -> list[Effect]:
        """Start attempts, each once, and none for a deposed dispatcher."""
        self._now_s = now.mono_s
        if message.epoch < self._epoch:
            # Rule I7: a node that has seen an epoch never starts work for an older
            # one. The sender may learn it from this.
            reports = [_refused(*item, Reason.STALE) for item in message.items]
            return [Send(sender, (Results(tuple(reports), 0),))]
        self._epoch = message.epoch
        fresh: list[tuple[AttemptId, TaskSpec]] = []
        again: list[_Kept] = []
        refused: list[Report] = []
        for attempt, spec in message.items:
            key = (spec.id, attempt)
            if key in self._kept:
                again.append(self._kept[key])
            elif key in self._taken:
                continue
            elif self._is_draining:
                refused.append(_refused(attempt, spec, Reason.DRAINING))
            else:
                fresh.append((attempt, spec))
                self._take(key, spec)
        effects: list[Effect] = [Start(tuple(fresh))] if fresh else []
        if again:
            effects += self._send(again)
        return effects + self._report(refused)

    def on_kill(self, sender: NodeId, message: Kill, now: Moment) -> list[Effect]:
        """End attempts; each is reported as cancelled, whatever it still achieves."""
        del sender
        self._now_s = now.mono_s
        if message.epoch < self._epoch:
            return []  # Its successor decides what is void.
        stops: list[Key] = []
        again: list[_Kept] = []
        unknown: list[Report] = []
        for key in message.items:
            if (taken := self._taken.get(key)) is not None:
                taken.is_killed = True
                stops.append(key)
            elif key in self._kept:
                again.append(self._kept[key])
            else:
                unknown.append(_cancelled(key, now))
        effects: list[Effect] = [Stop(tuple(stops))] if stops else []
        if again:
            effects += self._send(again)
        return effects + self._report(unknown)

    def on_results_ok(self, message: ResultsOk, now: Moment) -> list[Effect]:
        """Forget results that are durable at the dispatcher."""
        self._now_s = now.mono_s
        spooled: list[Key] = []
        for key in message.items:
            kept = self._kept.pop(key, None)
            if kept is not None:
                self._kept_bytes -= kept.size
                if kept.is_spooled:
                    spooled.append(key)
        effects: list[Effect] = [Unspool(tuple(spooled))] if spooled else []
        return effects + self._tell_credit()

    # --- The runner, the operator, time.

    def on_ended(self, event: AttemptsEnded, now: Moment) -> list[Effect]:
        """Report what the runner saw end or gives back."""
        self._now_s = now.mono_s
        reports = []
        for report in event.reports:
            key = (report.task, report.attempt)
            taken = self._leave(key)
            if taken is not None:
                outcome = report.outcome
                if taken.is_killed:
                    outcome = _as_killed(outcome)
                report = replace(report, outcome=outcome, spec=taken.spec)
            self._learn(report.outcome)
            reports.append(report)
        return self._report(reports)

    def drain(self, is_draining: bool, now: Moment) -> list[Effect]:  # noqa: FBT001
        """Take no more work, or take it again; the dispatcher hears of it at once."""
        self._now_s = now.mono_s
        self._is_draining = is_draining
        return self._tell_credit()

    def on_time(self, now: Moment) -> list[Effect]:
        """Repeat results that were not acknowledged, the oldest message first."""
        self._now_s = now.mono_s
        if self._dispatcher is None:
            return []
        due = []
        for kept in self._kept.values():
            if self._due_s(kept) > now.mono_s:
                break
            due.append(kept)
        if not due:
            return []
        # One message at a time: a dispatcher that is slow is not helped by more.
        return self._send(next(self._chunks(due)))

    def deadline(self) -> float | None:
        """Return when `on_time` has something to do."""
        if self._dispatcher is None:
            return None
        return next((self._due_s(kept) for kept in self._kept.values()), None)

    # --- Slots and waiting.

    def _take(self, key: Key, spec: TaskSpec) -> None:
        self._taken[key] = _Taken(spec)
        if len(self._started) < self._slots:
            self._started[key] = self._now_s
        else:
            self._waiting.append(key)

    def _leave(self, key: Key) -> _Taken | None:
        """Take an attempt out of its slot or its waiting place."""
        taken = self._taken.pop(key, None)
        if self._started.pop(key, None) is None:
            return taken  # Its line among those that wait is skipped later.
        while self._waiting:
            successor = self._waiting.popleft()
            if successor in self._taken:
                self._started[successor] = self._now_s
                break
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

    def _report(self, reports: list[Report]) -> list[Effect]:
        """Keep new results, and send them where a dispatcher is known."""
        if not reports:
            return []
        fresh = [self._keep(report) for report in reports]
        effects = self._spool(fresh) if self._dispatcher != self._me else []
        return effects + self._send(fresh, is_news=True)

    def _keep(self, report: Report) -> _Kept:
        kept = _Kept(report, _size(report))
        before = self._kept.get((report.task, report.attempt))
        self._kept_bytes += kept.size - (0 if before is None else before.size)
        self._kept[report.task, report.attempt] = kept
        return kept

    def _spool(self, candidates: Iterable[_Kept] | None = None) -> list[Effect]:
        """Write results to disk that are not there; what was given back need not be."""
        chosen = [
            kept
            for kept in (self._kept.values() if candidates is None else candidates)
            if not kept.is_spooled
            and kept.report.outcome.state is not AttemptState.RELEASED
        ]
        for kept in chosen:
            kept.is_spooled = True
        if not chosen:
            return []
        return [Spool(tuple(kept.report for kept in chosen))]

    def _send(self, results: list[_Kept], *, is_news: bool = False) -> list[Effect]:
        """Send results in messages of bounded size.

        All but news carry the envelope: their dispatcher may not know the task.
        """
        if self._dispatcher is None or not results:
            return []
        self._told_credit = self.credit
        messages: list[Message] = []
        for chunk in self._chunks(results):
            reports = tuple(self._told(kept, is_news=is_news) for kept in chunk)
            messages.append(Results(reports, self._told_credit))
        return [Send(self._dispatcher, tuple(messages))]

    def _told(self, kept: _Kept, *, is_news: bool) -> Report:
        """Note that a result is sent now, and return what is said of it."""
        report = kept.report
        key = (report.task, report.attempt)
        # The oldest sending comes first, so that `on_time` looks at no other.
        del self._kept[key]
        self._kept[key] = kept
        kept.sent_s = self._now_s
        kept.sends += 1
        if report.spec is None or not is_news:
            return report
        return Report(task=report.task, attempt=report.attempt, outcome=report.outcome)

    def _chunks(self, results: list[_Kept]) -> Iterator[list[_Kept]]:
        """Cut results so that each message fits into a frame."""
        chunk: list[_Kept] = []
        size = 0
        for kept in results:
            if chunk and size + kept.size > self._message_bytes:
                yield chunk
                chunk, size = [], 0
            chunk.append(kept)
            size += kept.size
        yield chunk

    def _due_s(self, kept: _Kept) -> float:
        if not kept.sends:
            return kept.sent_s
        return kept.sent_s + ceiling(kept.sends, base_s=RESEND_S, cap_s=RESEND_MAX_S)

    def _tell_credit(self) -> list[Effect]:
        """Say at once that this node takes work again, or no more."""
        credit = self.credit
        if self._dispatcher is None or bool(credit) == bool(self._told_credit):
            return []
        self._told_credit = credit
        return [Send(self._dispatcher, (Results((), credit),))]


def _size(report: Report) -> int:
    size = REPORT_BYTES + len(report.outcome.stdout) + len(report.outcome.stderr)
    if report.spec is not None:
        size += CHAR_BYTES * len(report.spec.command)
    return size


def _refused(attempt: AttemptId, spec: TaskSpec, reason: Reason) -> Report:
    outcome = Outcome(state=AttemptState.RELEASED, reason=reason)
    return Report(task=spec.id, attempt=attempt, outcome=outcome, spec=spec)


def _cancelled(key: Key, now: Moment) -> Report:
    """Return the end of an attempt that was never here, or is here no more."""
    outcome = Outcome(
        state=AttemptState.CANCELLED, reason=Reason.CANCELLED, ended_ms=now.wall_ms
    )
    return Report(task=key[0], attempt=key[1], outcome=outcome)


def _as_killed(outcome: Outcome) -> Outcome:
    """Return the end of an attempt that was told to end: never a success."""
    return replace(outcome, state=AttemptState.CANCELLED, reason=Reason.CANCELLED)
