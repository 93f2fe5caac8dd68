"""Changes of the priority of queued tasks and arrays.

The new place in the queue counts at once for what is in memory. What only the store has
is read once the fact is durable, because it may come before what was read already.
"""

from __future__ import annotations

from functools import partial

from octaskly.core.dispatcher.cancellation import (
    CommitStep,
    answer_change,
    visible_state,
)
from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.effects import Effect
from octaskly.core.events import ReprioritizeRequested
from octaskly.core.log.facts import Reprioritized
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import Epoch, Moment, TaskId
from octaskly.core.model.tasks import TaskState
from octaskly.core.replication.journal import Journal
from octaskly.core.replies import ReprioritizeResult
from octaskly.core.scheduling.queued_task import WAITING_STAGES


class Reprioritizer:
    """Changes priorities while this node is dispatcher.

    Args:
        step: Tasks in memory, and the facts of the current step.
        journal: Supplies timestamps, which order the changes of one epoch.
        commit_step: Commits the current step.
        is_strict: If true, an answer needs copies on two disks.
    """

    def __init__(
        self,
        step: DispatchStep,
        journal: Journal,
        commit_step: CommitStep,
        *,
        is_strict: bool,
    ) -> None:
        self._step = step
        self._queue = step.queue
        self._journal = journal
        self._commit_step = commit_step
        self._is_strict = is_strict

    def on_reprioritize_requested(
        self, event: ReprioritizeRequested, now: Moment
    ) -> list[Effect]:
        """Give a task or an array that waits another priority."""
        record = event.record
        state, is_waiting = self._standing(record)
        done = ReprioritizeResult(state, is_waiting)
        answer = partial(answer_change, event.ticket, done, is_strict=self._is_strict)
        if not is_waiting:
            return self._commit_step(now, when_replicated=answer)
        hlc = self._journal.reserve_timestamps(now)
        change = Reprioritized(record.id, self._step.epoch.term, hlc, event.priority)
        self._step.facts.append(change)
        queue = self._queue
        task = queue.tasks.get(record.id)
        queue.reprioritize(change)
        # A read of the store must not bring back the old priority before the commit.
        for each in (task, *queue.tasks.members_of(record.id)):
            if each is not None and each.stage in WAITING_STAGES:
                self._step.pin_until_durable(each)
        look_up = None
        if task is None:
            look_up = partial(self._look_up, record.id, self._step.epoch)
        return self._commit_step(now, look_up, answer)

    def _look_up(self, task: TaskId, epoch: Epoch, now: Moment) -> list[Effect]:
        """Read a changed task that is not in memory, unless the epoch has ended."""
        if self._step.epoch != epoch:
            return []
        self._queue.look_up_task(task)
        return self._commit_step(now)

    def _standing(self, record: TaskRecord) -> tuple[TaskState, bool]:
        """Return the state of a task, and True if it or members of it wait."""
        task = self._queue.tasks.get(record.id)
        stored = self._queue.final_state_of(record.id, record.state)
        if record.progress is None:
            state = visible_state(task, stored)
            return state, state is TaskState.QUEUED
        final = None if task is None else task.final_state
        state = final or stored
        is_over = state.is_final or record.cancelled_by is not None
        return state, not is_over and record.progress.queued > 0
