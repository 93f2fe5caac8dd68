"""Gathering: while many ends arrive, they share a commit, and acknowledgements wait.

A commit, its copies to the standbys and each frame cost the same for one end as for
twenty. A hundred workers whose tasks last a second report each end alone, sixteen
hundred a second.

The rule: while at least `MANY` reports were recorded within `WAIT_S`, their facts wait
for up to `WAIT_S` before they go to the disk and to the standbys, and acknowledgements
wait for the next message to their worker. Nothing else waits: orders leave at once, so
no slot is free for longer. Any other write, such as that of a submission, takes along
what waits. On an idle mesh, nothing waits.

The rest of the core sees a disk that takes a few milliseconds longer, so this changes
no guarantee.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from octaskly.core.effects import Append, Effect, Send
from octaskly.core.log.facts import Assigned, Finished
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import ResultsOk

MANY: Final = 20
WAIT_S: Final = 0.05
ACK_WAIT_S: Final = 0.25  #: a worker without an acknowledgement repeats after 1 s
ENTRY_BYTES: Final = 512  #: of an entry without output, roughly


class Gathering:
    """The writes and acknowledgements of this dispatcher that wait.

    Args:
        bytes_max: A larger write does not wait, roughly.
        timers: The heap with the timer `GATHERING`.
    """

    def __init__(self, bytes_max: int, timers: TimerHeap) -> None:
        self._bytes_max = bytes_max
        self._timers = timers
        self._recorded_s: deque[float] = deque(maxlen=MANY)
        """Times at which the latest reports were recorded."""
        self._appends: list[Append] = []
        self._appends_bytes = 0
        self._appends_due_s = math.inf
        self._acks: dict[NodeId, list[tuple[TaskId, AttemptId]]] = {}
        self._acks_due_s = math.inf

    def hold(self, effect: Effect, now: Moment) -> bool:
        """Return True if an effect waits, and is part of a later one."""
        if isinstance(effect, Append):
            return self._hold_append(effect, now)
        if isinstance(effect, Send):
            return self._hold_ack(effect, now)
        return False

    def pop_append(self) -> list[Append]:
        """Remove and return the writes that wait, as one, before any other write."""
        appends, self._appends = self._appends, []
        self._appends_bytes, self._appends_due_s = 0, math.inf
        if len(appends) < 2:  # noqa: PLR2004
            return appends
        entries = tuple(entry for append in appends for entry in append.entries)
        epochs = dict.fromkeys(pair for append in appends for pair in append.epochs)
        return [Append(appends[-1].number, entries, tuple(epochs))]

    def add_ack(self, effect: Send) -> Send:
        """Return a message with the acknowledgement that waits for it, if one does."""
        items = self._acks.pop(effect.peer, None)
        if items is None:
            return effect
        return Send(effect.peer, (ResultsOk(tuple(items)), *effect.messages))

    def pop_due(self, now: Moment, *, may_wait: bool) -> list[Effect]:
        """Remove and return what has waited for long enough."""
        effects: list[Effect] = []
        if not may_wait or self._appends_due_s <= now.mono_s:
            effects += self.pop_append()
        if not may_wait or self._acks_due_s <= now.mono_s:
            effects += [
                Send(node, (ResultsOk(tuple(items)),))
                for node, items in self._acks.items()
            ]
            self._acks.clear()
            self._acks_due_s = math.inf
        return effects

    def set_timer(self) -> None:
        self._timers.set(Timer.GATHERING, min(self._appends_due_s, self._acks_due_s))

    def _hold_append(self, append: Append, now: Moment) -> bool:
        size_bytes = 0
        has_ends = False
        for entry in append.entries:
            fact = entry.fact
            size_bytes += ENTRY_BYTES
            if isinstance(fact, Finished):
                size_bytes += fact.outcome.size_bytes
                has_ends = True
            elif not isinstance(fact, Assigned):
                return False
        if has_ends:
            self._recorded_s.append(now.mono_s)
        size_bytes += self._appends_bytes
        if size_bytes > self._bytes_max or not self._are_many_ending(now):
            return False
        if not self._appends:
            self._appends_due_s = now.mono_s + WAIT_S
        self._appends.append(append)
        self._appends_bytes = size_bytes
        return True

    def _hold_ack(self, effect: Send, now: Moment) -> bool:
        message = effect.messages[0]
        if (
            len(effect.messages) > 1
            or not isinstance(message, ResultsOk)
            or not self._are_many_ending(now)
        ):
            return False
        if not self._acks:
            self._acks_due_s = now.mono_s + ACK_WAIT_S
        self._acks.setdefault(effect.peer, []).extend(message.items)
        return True

    def _are_many_ending(self, now: Moment) -> bool:
        times = self._recorded_s
        return len(times) == MANY and now.mono_s - times[0] <= WAIT_S
