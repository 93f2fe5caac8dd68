"""Gathering: while many reports arrive, they share steps, commits and frames.

A step, a commit, its copies to the standbys and each frame cost nearly as much for one
end as for fifty. A hundred workers whose tasks last a second report each end alone,
some 1600 a second.

The rule: once `Limits.many_reports` arrived within `GATHER_S`,

- a report waits for a small share of the time that its attempt took, so that one step
  handles several. Heartbeats that follow wait with it; any other event ends the wait,
  so the order of events stays, and a slot is free for little longer;
- the facts about ends wait for up to `GATHER_S` before they go to the disk and to the
  standbys. Any other write, such as that of a submission, takes along what waits;
- an acknowledgement waits for the next message to its worker.

The fact that an attempt did not succeed never waits, nor that the last member of an
array ended: many watch for these, and few of all ends are such. The core does not know
which tasks a client waits for.

Fewer reports, as on an idle mesh, never wait. The rest of the core sees a slower
network and a slower disk, so no guarantee depends on this. A worker holds its reports
only while it has other work (`runner.pool.report_queue`): else its slots would be free.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, get_args

from octaskly.core.effects import Append, NumberedWrite, Send
from octaskly.core.events import AttemptsEnded, Event, Received
from octaskly.core.log.facts import (
    Assigned,
    Finished,
    MembersAssigned,
    MembersSucceeded,
)
from octaskly.core.log.range_facts import MEMBER_BYTES
from octaskly.core.model.arrays import array_of
from octaskly.core.model.ids import Moment, NodeId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import AttemptState
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import (
    HeartbeatOk,
    Message,
    RangeResults,
    RangeResultsOk,
    Results,
    ResultsOk,
)

REPORT_WAIT_S: Final = 0.002
"""At most 4 % of a task of 50 ms. Workers prefetch tasks that are shorter."""
REPORT_WAIT_SHARE: Final = 0.01  #: of a longer attempt, for which a report waits
REPORT_WAIT_S_MAX: Final = 0.01
REPORTS_MAX: Final = 64  #: that wait
GATHER_S: Final = 0.05  #: a client does not notice it, and 50 ends share pages
ACK_WAIT_S: Final = 0.25  #: much less than the second after which workers repeat
ENTRY_BYTES: Final = 512  #: of an entry without output, roughly

GatheredEffect = Send | NumberedWrite
"""An effect that waits, or that takes along what waits."""
GATHERED_EFFECTS: Final = get_args(GatheredEffect)

Ack = ResultsOk | RangeResultsOk


class Gathering:
    """The reports, writes and acknowledgements of this dispatcher that wait.

    Args:
        limits: Settings of this node.
        timers: Timers of this node.
        has_unended_members: Returns True if some member of an array in hand has not
            ended, or has not begun.
    """

    def __init__(
        self,
        limits: Limits,
        timers: TimerHeap,
        has_unended_members: Callable[[TaskId], bool],
    ) -> None:
        self._bytes_max = limits.entries_bytes
        self._has_unended_members = has_unended_members
        self._timers = timers
        self._arrived_s: deque[float] = deque(maxlen=limits.many_reports)
        """Times of the latest reports."""
        self.reports: list[Event] = []  #: that wait
        self._reports_due_s = math.inf
        self._appends: list[Append] = []
        self._appends_bytes = 0
        self._appends_due_s = math.inf
        self._acks: dict[NodeId, list[Ack]] = {}
        self._acks_due_s = math.inf

    @property
    def is_empty(self) -> bool:
        """Return True if nothing waits."""
        return not (self.reports or self._appends or self._acks)

    def hold_report(
        self, event: Event, now: Moment, may_wait: Callable[[], bool]
    ) -> bool:
        """Return True if the event is a report that waits, or may wait with one.

        The timer is then set. While few reports arrive, `may_wait` is not asked.
        """
        took_ms = _attempt_times_ms(event)
        if took_ms is None:
            return False
        if took_ms:
            self._arrived_s.append(now.mono_s)
        elif not self.reports:
            return False  # A heartbeat waits only with reports.
        if not self._are_many_arriving(now) or not may_wait():
            return False
        if len(self.reports) >= REPORTS_MAX:
            return False
        if took_ms:
            wait_s = max(REPORT_WAIT_S, REPORT_WAIT_SHARE * min(took_ms) / 1000)
            due_s = now.mono_s + min(wait_s, REPORT_WAIT_S_MAX)
            self._reports_due_s = min(self._reports_due_s, due_s)
            self._timers.set_earlier(Timer.GATHERING, due_s)
        self.reports.append(event)
        return True

    def take_reports(self) -> list[Event]:
        """Remove and return the events that wait; each other one comes after them."""
        reports, self.reports = self.reports, []
        self._reports_due_s = math.inf
        return reports

    def hold(self, effect: GatheredEffect, now: Moment) -> bool:
        """Return True if the effect waits; it is then part of a later one."""
        if not self._are_many_arriving(now):
            return False
        if isinstance(effect, Append):
            return self._hold_append(effect, now)
        return isinstance(effect, Send) and self._hold_ack(effect, now)

    def take_writes(self) -> list[Append]:
        """Remove and return the writes that wait, as one; other writes come after."""
        appends, self._appends = self._appends, []
        self._appends_bytes, self._appends_due_s = 0, math.inf
        if len(appends) <= 1:
            return appends
        entries = tuple(entry for append in appends for entry in append.entries)
        epochs = dict.fromkeys(pair for append in appends for pair in append.epochs)
        return [Append(appends[-1].number, entries, tuple(epochs))]

    def with_ack(self, effect: Send) -> Send:
        """Return a message, with the acknowledgement that waits for one."""
        acks = self._acks.pop(effect.peer, None)
        if acks is None:
            return effect
        return Send(effect.peer, (*_join_acks(acks), *effect.messages))

    def take_due(self, now: Moment, *, may_wait: bool) -> list[Append | Send]:
        """Remove and return what has waited long enough; else set the timer."""
        effects: list[Append | Send] = []
        if not may_wait or self._appends_due_s <= now.mono_s:
            effects += self.take_writes()
        if not may_wait or self._acks_due_s <= now.mono_s:
            effects += [
                Send(peer, _join_acks(acks)) for peer, acks in self._acks.items()
            ]
            self._acks.clear()
            self._acks_due_s = math.inf
        due_s = min(self._reports_due_s, self._appends_due_s, self._acks_due_s)
        self._timers.set(Timer.GATHERING, due_s)
        return effects

    def _hold_append(self, append: Append, now: Moment) -> bool:
        added_bytes = self._size_of_ends(append)
        size_bytes = self._appends_bytes + added_bytes
        if not added_bytes or size_bytes > self._bytes_max:
            return False
        if not self._appends:
            self._appends_due_s = now.mono_s + GATHER_S
        self._appends.append(append)
        self._appends_bytes = size_bytes
        return True

    def _size_of_ends(self, append: Append) -> int:
        """Return the size of a write of ends that may wait, 0 of any other.

        What was assigned in their place may be part of it.
        """
        size_bytes = ENTRY_BYTES * len(append.entries)
        has_ends, arrays = False, set[TaskId]()
        for entry in append.entries:
            match entry.fact:
                case Assigned() | MembersAssigned():
                    continue
                case Finished(task, outcome=outcome) if (
                    outcome.state is AttemptState.OK
                ):
                    size_bytes += outcome.size_bytes
                    array = array_of(task)
                case MembersSucceeded(array) as ended:
                    size_bytes += MEMBER_BYTES * ended.count
                case _:
                    return 0
            has_ends = True
            if array is not None:
                arrays.add(array)
        # The end of the last member of an array does not wait.
        may_wait = has_ends and all(map(self._has_unended_members, arrays))
        return size_bytes if may_wait else 0

    def _hold_ack(self, effect: Send, now: Moment) -> bool:
        acks = [message for message in effect.messages if isinstance(message, Ack)]
        if len(acks) < len(effect.messages):
            return False
        if not self._acks:
            self._acks_due_s = now.mono_s + ACK_WAIT_S
        self._acks.setdefault(effect.peer, []).extend(acks)
        return True

    def _are_many_arriving(self, now: Moment) -> bool:
        times = self._arrived_s
        return len(times) == times.maxlen and now.mono_s - times[0] <= GATHER_S


def _join_acks(acks: Sequence[Ack]) -> tuple[Message, ...]:
    """Return the acknowledgements for one worker, in one message of each kind."""
    if len(acks) == 1:
        return (acks[0],)
    single = [item for ack in acks if isinstance(ack, ResultsOk) for item in ack.items]
    ranges = [
        item for ack in acks if isinstance(ack, RangeResultsOk) for item in ack.items
    ]
    joined = ResultsOk(tuple(single)), RangeResultsOk(tuple(ranges))
    return tuple(ack for ack in joined if ack.items)


def _attempt_times_ms(event: Event) -> list[int] | None:
    """Return how long the first attempt of each message took that reports ends.

    Returns:
        Nothing for a heartbeat; None for an event that says anything else.
    """
    if isinstance(event, AttemptsEnded):
        return [report.outcome.duration_ms or 0 for report in event.reports[:1]]
    if not isinstance(event, Received):
        return None
    times_ms: list[int] = []
    for message in event.messages:
        time_ms = _first_time_ms(message)
        if time_ms is not None:
            times_ms.append(time_ms)
        elif not isinstance(message, HeartbeatOk):
            return None
    return times_ms


def _first_time_ms(message: Message) -> int | None:
    """Return how long the first attempt took, 0 if unknown; None: no report."""
    if isinstance(message, Results):
        reports = message.reports
        return (reports[0].outcome.duration_ms or 0) if reports else None
    if isinstance(message, RangeResults):
        successes = message.items[0].successes if message.items else ()
        return (successes[0].duration_ms or 0) if successes else 0
    return None
