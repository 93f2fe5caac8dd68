"""Tasks that come after others: when they may run, and when they never will.

Owns when the store is asked whose wait is over, and what is written about those tasks.
The store keeps who waits for whom, since there may be a million of them. Each answer
is settled on disk before the next question, so no task is decided twice.

Now and then tasks are let go that wait for one that nobody knows: it was forgotten
while they came in, or the only disk that had it has been away for long.
"""

from __future__ import annotations

import math

from octaskly.core.dispatcher.step import Placing
from octaskly.core.effects import Effect, LoadRipe
from octaskly.core.events import Ripe, RipeLoaded
from octaskly.core.log.facts import CancelAsked, Ready
from octaskly.core.log.merge import BROKEN
from octaskly.core.model.hlc import hlc_of
from octaskly.core.model.ids import Moment, name_of
from octaskly.core.model.settings import Timing
from octaskly.core.model.tasks import TaskSpec, TaskState
from octaskly.core.replication.journal import Journal

RIPE_MAX = 1000  #: tasks of one answer


def is_late(spec: TaskSpec) -> bool:
    """Whether a task comes after others."""
    return spec.options is not None and spec.options.after is not None


class Parents:
    """The tasks of this reign that wait for others."""

    def __init__(self, placing: Placing, journal: Journal, timing: Timing) -> None:
        self._placing = placing
        self._queue = placing.queue
        self._journal = journal
        self._number = 0
        """Of the last question; answers to others are of an earlier reign."""
        self._are_waiting = False
        """Whether any task waits, as far as is known."""
        self._is_dirty = False
        """Whether a task may have become ripe since the last question."""
        self._is_asking = False
        self._has_come = False
        """Whether tasks that wait came since the last question."""
        self._orphan_ms = round(timing.orphan_s * 1000)
        self._period_s = timing.floor_s
        self._due_s = 0.0

    def begin(self, now: Moment) -> None:
        """Ask as soon as the log is read: what became ripe may not have been seen."""
        self._number += 1
        self._done()
        self._due_s = now.mono_s + self._period_s
        self.stir()

    def deadline(self) -> float:
        """Return when `ask` has something to do without anything having happened."""
        is_idle = self._are_waiting and not (self._is_asking or self._queue.is_held)
        return self._due_s if is_idle else math.inf

    def stir(self) -> None:
        """Tasks came that wait: ask when they are durable."""
        self._are_waiting = self._is_dirty = self._has_come = True

    def ask(self, now: Moment) -> list[Effect]:
        """Ask the store, if there is a reason to; at the end of each step."""
        is_due = now.mono_s >= self._due_s
        self._is_dirty = self._placing.take_news() or self._is_dirty or is_due
        if not (self._is_dirty and self._are_waiting) or self._is_asking:
            return []
        if self._queue.is_held:
            return []  # Others may hold that such a task has run.
        self._is_dirty, self._has_come, self._is_asking = False, False, True
        self._placing.over = set()
        self._number += 1
        before_hlc = 0
        if is_due:
            self._due_s = now.mono_s + self._period_s
            before_hlc = hlc_of(now.wall_ms - self._orphan_ms)
        question = LoadRipe(self._number, RIPE_MAX, before_hlc)
        return self._journal.when_durable(lambda _: [question], now)

    def on_loaded(self, event: RipeLoaded, now: Moment) -> list[Effect]:
        """Let tasks run whose parents ended well; cancel those that never can."""
        number = self._number
        if event.number != number:
            return []
        self._are_waiting = event.are_left or bool(event.ripe) or self._has_come
        # What a worker was found to run, or told of, waits no more.
        tasks = self._queue.tasks
        some = [r for r in event.ripe if r.broken is None or r.record.id not in tasks]
        ready = [self._decide(ripe) for ripe in some]
        self._is_dirty = self._is_dirty or bool(some)
        admitted = [spec for spec in ready if spec is not None]

        def settled(now: Moment) -> list[Effect]:
            if self._number != number:
                return []
            # What is over meanwhile may be, on disk, behind what was read.
            over = self._placing.over or ()
            begun = [spec for spec in admitted if spec.id not in over]
            self._queue.admit(spec for spec in begun if spec.array is None)
            for spec in begun:
                if spec.array is not None:  # Some members may be cancelled already.
                    self._queue.look_for(spec.id)
            self._done()
            return self._placing.commit(now) + self.ask(now)

        return self._placing.commit(now, settled)

    def _done(self) -> None:
        self._is_asking, self._placing.over = False, None

    def _decide(self, ripe: Ripe) -> TaskSpec | None:
        """Write what becomes of one task; return it if it may run."""
        spec = ripe.record.spec
        assert spec is not None
        if self._placing.over and spec.id in self._placing.over:
            return None
        if ripe.broken is None:
            self._placing.facts.append(Ready(spec.id))
            return spec
        self._placing.facts.append(
            CancelAsked(spec.id, f"{BROKEN}{name_of(ripe.broken)}")
        )
        task = self._queue.shadow(spec, TaskState.CANCELLED)
        self._placing.touch(task)
        self._placing.tell([spec.id])
        return None
