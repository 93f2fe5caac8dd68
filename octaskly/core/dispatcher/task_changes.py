"""Changes to tasks and arrays that clients ask for: cancels, and other priorities.

The state of a task in memory is newer than the state from the store. An answer waits
until the change is replicated; running attempts are killed without waiting. An array is
read again before the answer, as its last members may have ended before its cancel.

The new place in the queue counts at once for what is in memory. What only the store has
is read once the fact is durable, because it may come before what was read already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from msgspec.structs import replace

from octaskly.core.dispatcher import task_rules
from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.effects import Answer, Effect
from octaskly.core.events import CancelRequested, ReprioritizeRequested
from octaskly.core.log.facts import Reprioritized, TaskCancelled
from octaskly.core.log.merge import TaskRecord, cancel_of
from octaskly.core.model.ids import Epoch, Moment, TaskId
from octaskly.core.model.tasks import TaskState
from octaskly.core.replication.journal import Journal, WhenDurable
from octaskly.core.replication.pending_acks import WhenReplicated
from octaskly.core.replies import (
    CancelResult,
    NotDispatching,
    NotReplicated,
    ReprioritizeResult,
)
from octaskly.core.scheduling.queued_task import WAITING_STAGES, QueuedTask, Stage

CommitStep = Callable[[Moment, WhenDurable | None, WhenReplicated | None], list[Effect]]
"""Commits the dispatcher's current step; see `DispatchStep.commit_step`."""


class TaskChanges:
    """Cancels tasks and changes priorities while this node is dispatcher.

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
        self._array_cancels: dict[TaskId, list[int]] = {}
        """Tickets of replicated cancels of arrays, which are read before the answer."""
        self._waiting: dict[TaskId, list[CancelRequested]] = {}
        """Requests about tasks whose ends may be in a log that is not read yet."""

    def _commit_and_answer(
        self,
        ticket: int,
        done: CancelResult | ReprioritizeResult,
        now: Moment,
        when_durable: WhenDurable | None = None,
    ) -> list[Effect]:
        """Answer once all that this node decided is safe, as the state may be."""
        answer = partial(self._answer, ticket, done)
        return self._commit_step(now, when_durable, answer)

    def _answer(
        self,
        ticket: int,
        done: CancelResult | ReprioritizeResult,
        _: Moment,
        replicas: int,
    ) -> list[Effect]:
        """Answer a request; if strict, only once another disk has the change.

        What runs is ended all the same: who cancels must not wait for a standby.
        """
        lacks_copy = self._is_strict and done.was_done and replicas == 1
        return [Answer(ticket, NotReplicated() if lacks_copy else done)]

    # --- Cancels.

    def has_ended(self, event: CancelRequested) -> bool:
        """Return True if the task or array to cancel is known to have ended."""
        if (array := event.array_record) is not None:
            return array.state.is_final or array.cancelled_by is not None
        return self._visible_state(event.task, event.stored_state).is_final

    def _visible_state(self, task_id: TaskId, stored_state: TaskState) -> TaskState:
        stored_state = self._queue.final_state_of(task_id, stored_state)
        return visible_state(self._queue.tasks.get(task_id), stored_state)

    def on_cancel_requested(self, event: CancelRequested, now: Moment) -> list[Effect]:
        """Cancel a task; what is in hand is newer than what the store said."""
        if (array := event.array_record) is not None:
            cancel = task_rules.cancel_array(
                array, event.by, self._step.epoch.term, force=event.force
            )
            if cancel is not None:
                self._step.cancel_array(cancel)
                read = partial(self._read_array, event, self._step.epoch)
                return self._commit_step(now, None, read)
            # Who asks again, as the answer was lost, hears that it was done.
            was_cancelled = (
                array.state is TaskState.RUNNING and array.cancelled_by is not None
            )
            state = TaskState.CANCELLED if was_cancelled else array.state
        else:
            state = self._cancel_task(event)
        done = CancelResult(event.task, state, state is TaskState.CANCELLED)
        return self._commit_and_answer(event.ticket, done, now)

    def _cancel_task(self, event: CancelRequested) -> TaskState:
        """Cancel a task if a request may; return its state then."""
        task = self._queue.tasks.get(event.task)
        state = self._visible_state(event.task, event.stored_state)
        term = self._step.epoch.term
        has_begun = not self._step.is_prefetched(task)
        if not task_rules.may_cancel(state, has_begun=has_begun, force=event.force):
            # Repeat the cancel of an earlier epoch before a client hears of it.
            cancel = task_rules.repeated_cancel(event.earlier_cancel, term)
            if state is TaskState.CANCELLED and cancel is not None:
                self._step.facts.append(cancel)
            return state
        if task is None:
            task = self._queue.add_shadow(TaskRecord(event.task))
        self._step.write(task, TaskCancelled(event.task, event.by, term))
        return TaskState.CANCELLED

    def _read_array(
        self, event: CancelRequested, epoch: Epoch, now: Moment, replicas: int
    ) -> list[Effect]:
        """Read a cancelled array after all that was decided before its cancel."""
        if self._is_strict and replicas == 1:
            return [Answer(event.ticket, NotReplicated())]
        if self._step.epoch != epoch:
            return [Answer(event.ticket, NotDispatching())]
        self._array_cancels.setdefault(event.task, []).append(event.ticket)
        self._queue.read_afresh(event.task)
        return self._commit_step(now, None, None)

    def add_waiting(self, event: CancelRequested) -> None:
        """Let a request wait until its task has been read."""
        self._waiting.setdefault(event.task, []).append(event)

    def take_read(
        self, tasks: Iterable[TaskId], records: Iterable[TaskRecord]
    ) -> tuple[list[CancelRequested], list[Effect]]:
        """Return the requests that waited for a read of these tasks, as it found them.

        Also returns the answers to the cancels of arrays, and about tasks that are not
        in the store. An array that has ended otherwise than by a cancel had ended
        before it.
        """
        requests: list[CancelRequested] = []
        answers: list[Effect] = []
        if not self._waiting and not self._array_cancels:
            return requests, answers
        read = {record.id: record for record in records}
        for task in tasks:
            waiting = self._waiting.pop(task, [])
            tickets = self._array_cancels.pop(task, [])
            record = read.get(task)
            if record is None:
                tickets += [event.ticket for event in waiting]
                answers += [Answer(ticket, NotDispatching()) for ticket in tickets]
                continue
            requests += [_as_read(event, record) for event in waiting]
            was_done = not record.state.is_final or record.state is TaskState.CANCELLED
            state = TaskState.CANCELLED if was_done else record.state
            done = CancelResult(task, state, was_done)
            answers += [Answer(ticket, done) for ticket in tickets]
        return requests, answers

    def drop_requests(self) -> list[Effect]:
        """Let clients ask again at the next dispatcher, at the end of an epoch."""
        tickets = [t for some in self._array_cancels.values() for t in some]
        tickets += [event.ticket for some in self._waiting.values() for event in some]
        self._array_cancels.clear()
        self._waiting.clear()
        return [Answer(ticket, NotDispatching()) for ticket in tickets]

    # --- Priorities.

    def on_reprioritize_requested(
        self, event: ReprioritizeRequested, now: Moment
    ) -> list[Effect]:
        """Give a task or an array that waits another priority."""
        record, queue = event.record, self._queue
        state, is_waiting = self._standing(record)
        done = ReprioritizeResult(state, is_waiting)
        if not is_waiting:
            return self._commit_and_answer(event.ticket, done, now)
        hlc = self._journal.reserve_timestamps(now)
        change = Reprioritized(record.id, self._step.epoch.term, hlc, event.priority)
        self._step.facts.append(change)
        self._step.note_changed((record.id,))
        task = queue.tasks.get(record.id)
        queue.reprioritize(change)
        # A read of the store must not bring back the old priority before the commit.
        for each in (task, *queue.tasks.members_of(record.id)):
            if each is not None and each.stage in WAITING_STAGES:
                self._step.pin_until_durable(each)
        look_up = None
        if task is None:
            look_up = partial(self._look_up, record.id, self._step.epoch)
        return self._commit_and_answer(event.ticket, done, now, look_up)

    def _look_up(self, task: TaskId, epoch: Epoch, now: Moment) -> list[Effect]:
        """Read a changed task that is not in memory, unless the epoch has ended."""
        if self._step.epoch != epoch:
            return []
        self._queue.look_up_task(task)
        return self._commit_step(now, None, None)

    def _standing(self, record: TaskRecord) -> tuple[TaskState, bool]:
        """Return the state of a task, and True if it or members of it wait."""
        if record.progress is None:
            state = self._visible_state(record.id, record.state)
            return state, state is TaskState.QUEUED
        task = self._queue.tasks.get(record.id)
        final = None if task is None else task.final_state
        state = final or self._queue.final_state_of(record.id, record.state)
        is_over = state.is_final or record.cancelled_by is not None
        return state, not is_over and record.progress.queued > 0


def _as_read(event: CancelRequested, record: TaskRecord) -> CancelRequested:
    """Return a request as if the store had just been asked about its task."""
    return replace(
        event,
        stored_state=record.state,
        array_record=None if record.progress is None else record,
        earlier_cancel=cancel_of(record),
    )


def visible_state(task: QueuedTask | None, stored_state: TaskState) -> TaskState:
    """Return where a task stands: what is in hand is newer, if it is sure."""
    if task is None or (not task.is_read and stored_state.is_final):
        return stored_state
    if task.final_state is not None:
        return task.final_state
    if task.stage in WAITING_STAGES:
        return TaskState.QUEUED
    return TaskState.RUNNING if task.stage is Stage.LIVE else stored_state
