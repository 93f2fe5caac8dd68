"""Cancellation of tasks and arrays.

The state of a task in memory is newer than the state from the store. An answer waits
until the cancel is replicated; running attempts are killed without waiting.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from octaskly.core.dispatcher import task_rules
from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.effects import Answer, Effect
from octaskly.core.events import CancelRequested
from octaskly.core.log.facts import TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import FORCED_PREFIX
from octaskly.core.model.ids import Moment
from octaskly.core.model.tasks import TaskState
from octaskly.core.replication.journal import WhenDurable
from octaskly.core.replication.pending_acks import WhenReplicated
from octaskly.core.replies import CancelResult, NotReplicated, ReprioritizeResult
from octaskly.core.scheduling.queued_task import WAITING_STAGES, QueuedTask, Stage


class CommitStep(Protocol):
    """Commits the dispatcher's current step."""

    def __call__(
        self,
        now: Moment,
        when_durable: WhenDurable | None = None,
        when_replicated: WhenReplicated | None = None,
    ) -> list[Effect]:
        """Do `when_replicated` once all that was decided so far is safe."""


class Canceller:
    """Cancels tasks and arrays while this node is dispatcher.

    Args:
        step: Tasks in memory, and the facts of the current step.
        commit_step: Commits the current step.
        is_strict: If true, an answer needs copies on two disks.
    """

    def __init__(
        self,
        step: DispatchStep,
        commit_step: CommitStep,
        *,
        is_strict: bool,
    ) -> None:
        self._step = step
        self._queue = step.queue
        self._commit_step = commit_step
        self._is_strict = is_strict

    def has_ended(self, event: CancelRequested) -> bool:
        """Return True if the task or array to cancel is known to have ended."""
        if (array := event.array_record) is not None:
            return array.state.is_final or array.cancelled_by is not None
        return self._visible_task(event)[1].is_final

    def _visible_task(
        self, event: CancelRequested
    ) -> tuple[QueuedTask | None, TaskState]:
        task = self._queue.tasks.get(event.task)
        stored_state = self._queue.final_state_of(event.task, event.stored_state)
        return task, visible_state(task, stored_state)

    def on_cancel_requested(self, event: CancelRequested, now: Moment) -> list[Effect]:
        """Cancel a task; what is in hand is newer than what the store said."""
        if event.array_record is not None:
            return self._cancel_array(event, event.array_record, now)
        task, state = self._visible_task(event)
        has_begun = not self._step.is_prefetched(task)
        if not task_rules.may_cancel(state, has_begun=has_begun, force=event.force):
            self._repeat_cancel(event, state)
            return self._answer_state(event, state, now)
        if task is None:
            task = self._queue.add_shadow(TaskRecord(event.task))
        term = self._step.epoch.term
        self._step.write(task, TaskCancelled(event.task, event.by, term))
        done = CancelResult(event.task, TaskState.CANCELLED, was_done=True)
        answer = partial(answer_change, event.ticket, done, is_strict=self._is_strict)
        return self._commit_step(now, when_replicated=answer)

    def _cancel_array(
        self, event: CancelRequested, array: TaskRecord, now: Moment
    ) -> list[Effect]:
        """Cancel the members that have not begun, with `force` those that run, too."""
        spec, progress = array.spec, array.progress
        assert spec is not None
        assert progress is not None
        if not task_rules.may_cancel_array(array.state, progress, force=event.force):
            # Who asks again, as the answer was lost, hears that it was done.
            was_cancelled = progress.running and array.cancelled_by is not None
            state = TaskState.CANCELLED if was_cancelled else array.state
            return self._answer_state(event, state, now)
        by = f"{FORCED_PREFIX}{event.by}" if event.force else event.by
        self._step.cancel_remaining_members(spec, by)
        if event.force:
            self._step.cancel_live_members(spec, event.by)
        done = CancelResult(event.task, TaskState.CANCELLED, was_done=True)
        answer = partial(answer_change, event.ticket, done, is_strict=self._is_strict)
        return self._commit_step(now, when_replicated=answer)

    def _repeat_cancel(self, event: CancelRequested, state: TaskState) -> None:
        """Repeat the cancel of an earlier epoch before a client hears of it."""
        term = self._step.epoch.term
        cancel = task_rules.repeated_cancel(event.earlier_cancel, term)
        if state is TaskState.CANCELLED and cancel is not None:
            self._step.facts.append(cancel)

    def _answer_state(
        self, event: CancelRequested, state: TaskState, now: Moment
    ) -> list[Effect]:
        """Answer once all that this node decided is safe, as the state may be."""
        done = CancelResult(event.task, state, state is TaskState.CANCELLED)
        answer = partial(answer_change, event.ticket, done, is_strict=self._is_strict)
        return self._commit_step(now, when_replicated=answer)


def answer_change(
    ticket: int,
    done: CancelResult | ReprioritizeResult,
    _: Moment,
    replicas: int,
    *,
    is_strict: bool,
) -> list[Effect]:
    """Answer a cancel or a new priority; if strict, only once another disk has it.

    What runs is ended all the same: who cancels must not wait for a standby.
    """
    lacks_copy = is_strict and done.was_done and replicas == 1
    return [Answer(ticket, NotReplicated() if lacks_copy else done)]


def visible_state(task: QueuedTask | None, stored_state: TaskState) -> TaskState:
    """Return where a task stands: what is in hand is newer, if it is sure."""
    if task is None or (not task.is_read and stored_state.is_final):
        return stored_state
    if task.final_state is not None:
        return task.final_state
    if task.stage in WAITING_STAGES:
        return TaskState.QUEUED
    return TaskState.RUNNING if task.stage is Stage.LIVE else stored_state
