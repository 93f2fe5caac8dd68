"""Dependencies between tasks: releases tasks to run, or cancels those that never can.

The store keeps the dependencies, since there may be a million of them:
`store.writing.dependency_index` decides if one is met or broken. This module decides
when to query the store for unblocked tasks, and writes facts about them. The facts of
each answer are durable before the next query, so no task is decided twice.
`agent.gateway.parent_lookup` resolves the names of parents at submission.

A task does not wait for ever for a dependency that no node knows. The dependency was
forgotten during the submission, or its only disk has been offline for long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from octaskly.core.dispatcher import task_rules
from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.effects import Effect, LoadUnblocked
from octaskly.core.events import UnblockedLoaded, UnblockedTask
from octaskly.core.log.facts import Unblocked
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.hlc import hlc_of
from octaskly.core.model.ids import Moment
from octaskly.core.model.settings import Timing
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.replication.journal import Journal, return_effects

UNBLOCKED_MAX = 1000  #: tasks of one answer


class Dependencies:
    """Releases or cancels tasks that wait for dependencies."""

    def __init__(
        self, step: DispatchStep, journal: Journal, timing: Timing, timers: TimerHeap
    ) -> None:
        self._timers = timers
        self._step = step
        self._queue = step.queue
        self._journal = journal
        self._query_number = 0
        """Number of the last query; other answers belong to an earlier epoch."""
        self.has_waiting_tasks = False
        """True if a task waits by the last answer, or one came since the question."""
        self._missing_dependency_ms = round(timing.missing_dependency_s * 1000)
        self._period_s = timing.floor_interval_s
        self._due_s = 0.0

    def start_checking(self, now: Moment) -> None:
        """Ask as soon as the log is read: what became ripe may not have been seen."""
        self._query_number += 1
        self._finish_query()
        self._due_s = now.mono_s + self._period_s
        self.note_waiting_tasks()

    def stop_checking(self) -> None:
        """Let no answer of the ended epoch begin a task once it is durable."""
        self._query_number += 1

    def _set_timer(self) -> None:
        """Set the timer for a query for which nothing has to happen.

        One that is due while reading is paused is made when it goes on.
        """
        is_idle = self.has_waiting_tasks and self._step.changed_since_query is None
        self._timers.set(Timer.DEPENDENCIES, self._due_s if is_idle else math.inf)

    def note_waiting_tasks(self) -> None:
        """Tasks came that wait: ask when they are durable."""
        self.has_waiting_tasks = True
        self._step.may_unblock = True
        self._set_timer()

    def query_unblocked(self, now: Moment) -> list[Effect]:
        """Ask the store, if there is a reason to; at the end of each step."""
        step, is_due = self._step, now.mono_s >= self._due_s
        step.may_unblock |= is_due
        is_querying = step.changed_since_query is not None
        if is_querying or not (step.may_unblock and self.has_waiting_tasks):
            return []
        if self._queue.is_reading_paused:
            return []  # Others may hold that such a task has run.
        step.may_unblock = self.has_waiting_tasks = False
        step.changed_since_query = set()
        self._query_number += 1
        before_hlc = 0
        if is_due:
            self._due_s = now.mono_s + self._period_s
            before_hlc = hlc_of(now.wall_ms - self._missing_dependency_ms)
        self._set_timer()
        query = LoadUnblocked(self._query_number, UNBLOCKED_MAX, before_hlc)
        return self._journal.when_durable(partial(return_effects, [query]), now)

    def on_unblocked_loaded(self, event: UnblockedLoaded, now: Moment) -> list[Effect]:
        """Let tasks run whose parents ended well; cancel those that never can."""
        number = self._query_number
        if event.query_number != number:
            return []
        self.has_waiting_tasks |= event.has_more or bool(event.tasks)
        # A task that a worker was found to run, or reported, no longer waits.
        tasks = self._queue.tasks
        undecided = [
            r
            for r in event.tasks
            if r.failed_dependency is None or r.record.id not in tasks
        ]
        decided = [self._decide_unblocked(ripe) for ripe in undecided]
        self._step.may_unblock |= bool(undecided)
        admitted = [record for record in decided if record is not None]
        return self._step.commit_step(now, partial(self._admit, number, admitted))

    def _admit(
        self, query_number: int, admitted: Sequence[TaskRecord], now: Moment
    ) -> list[Effect]:
        """Queue the tasks of a query that may run, now that this is durable."""
        if self._query_number != query_number:
            return []
        # What is over meanwhile may be, on disk, behind what was read.
        ended = self._step.changed_since_query or ()
        still_wanted = [record for record in admitted if record.id not in ended]
        self._queue.admit_records(still_wanted)
        for record in still_wanted:
            if record.spec is not None and record.spec.array is not None:
                # Some members may be cancelled already.
                self._queue.look_up_missing(record.id)
        self._finish_query()
        return self._step.commit_step(now) + self.query_unblocked(now)

    def _finish_query(self) -> None:
        self._step.changed_since_query = None
        self._set_timer()

    def _decide_unblocked(self, unblocked: UnblockedTask) -> TaskRecord | None:
        """Write what becomes of one task; return it if it may run."""
        spec = unblocked.record.spec
        assert spec is not None
        if spec.id in (self._step.changed_since_query or ()):
            return None
        term = self._step.epoch.term
        fact = task_rules.unblock(spec.id, unblocked.failed_dependency, term)
        if isinstance(fact, Unblocked):
            self._step.facts.append(fact)
            return replace(unblocked.record, is_unblocked=True)
        self._step.write(self._queue.add_shadow(unblocked.record), fact)
        return None
