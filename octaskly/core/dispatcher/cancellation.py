"""Cancels tasks and arrays, and answers whoever asked for it.

What is in hand is newer than what the store said when it was asked. Nothing is told
before it is safe, and what runs is killed without waiting for that.
"""

from __future__ import annotations

from typing import Protocol

from octaskly.core.dispatcher.step import Placing
from octaskly.core.effects import Announce, Answer, Effect
from octaskly.core.events import CancelRequested
from octaskly.core.log.facts import CancelAsked
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import FORCED
from octaskly.core.model.ids import Moment
from octaskly.core.model.tasks import TaskSpec, TaskState
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.pending_acks import WhenSafe
from octaskly.core.replication.replication import Replication
from octaskly.core.replies import CancelDone, NotDurable
from octaskly.core.scheduling.queued_task import WAITING, InHand, Stage


class Commit(Protocol):
    """Ends a step of the reign."""

    def __call__(self, now: Moment, *, when_safe: WhenSafe) -> list[Effect]:
        """Do `when_safe` once all that was decided so far is safe."""


class Cancelling:
    """What is cancelled in this reign.

    Args:
        placing: The tasks in hand, and what is decided of them in a step.
        journal: Whether rows alone may say what is known.
        replication: Who keeps copies.
        commit: Ends a step.
        is_strict: Whether an answer needs two disks.
    """

    def __init__(
        self,
        placing: Placing,
        journal: Journal,
        replication: Replication,
        commit: Commit,
        *,
        is_strict: bool,
    ) -> None:
        self._placing = placing
        self._queue = placing.queue
        self._journal = journal
        self._replication = replication
        self._commit = commit
        self._is_strict = is_strict

    def on_asked(self, event: CancelRequested, now: Moment) -> list[Effect]:
        """Cancel a task; what is in hand is newer than what the store said."""
        if event.array is not None:
            return self._cancel_array(event, event.array, now)
        task = self._queue.tasks.get(event.task)
        state = state_of(task, self._queue.settled(event.task, event.known))
        if state is TaskState.RUNNING and not (
            event.force or self._placing.is_ahead(task)
        ):
            return self._answer(event, state, now)
        if state.is_final:
            return self._answer(event, state, now)
        if task is None:
            spec = TaskSpec(id=event.task, command="")
            task = self._queue.shadow(spec, TaskState.CANCELLED)
        elif task.stage is Stage.LIVE:
            task.final = TaskState.CANCELLED
            self._placing.kill(task)
        else:
            self._queue.end(task, TaskState.CANCELLED)
        self._placing.touch(task)
        self._placing.note_end()
        self._placing.note_over([event.task])
        self._placing.facts.append(CancelAsked(event.task, event.by))
        done = CancelDone(event.task, TaskState.CANCELLED, was_done=True)

        def answer(_: Moment, replicas: int) -> list[Effect]:
            return [self._done(event, done, replicas), Announce((event.task,))]

        return self._commit(now, when_safe=answer)

    def _cancel_array(
        self, event: CancelRequested, array: TaskRecord, now: Moment
    ) -> list[Effect]:
        """Cancel the members that have not begun, with `force` those that run, too."""
        spec, progress = array.spec, array.progress
        assert spec is not None
        assert progress is not None
        if array.state.is_final or not (progress.queued or event.force):
            # Who asks again, as the answer was lost, hears that it was done.
            was_cut = progress.running and array.cancelled_by is not None
            state = TaskState.CANCELLED if was_cut else array.state
            return self._answer(event, state, now)
        self._placing.note_over([event.task])
        by = f"{FORCED}{event.by}" if event.force else event.by
        ended = self._placing.cut_off(spec, by, TaskState.CANCELLED)
        if event.force:
            ended += self._placing.cancel_live(spec, event.by)
        done = CancelDone(event.task, TaskState.CANCELLED, was_done=True)

        def answer(_: Moment, replicas: int) -> list[Effect]:
            return [self._done(event, done, replicas), Announce(tuple(ended))]

        self._placing.note_end()
        return self._commit(now, when_safe=answer)

    def _answer(
        self, event: CancelRequested, state: TaskState, now: Moment
    ) -> list[Effect]:
        """Answer once all that this node decided is safe, as the state may be."""
        done = CancelDone(event.task, state, state is TaskState.CANCELLED)
        is_sole = self._journal.is_ahead  # As with what a submission repeats.

        def answer(_: Moment, replicas: int) -> list[Effect]:
            return [self._done(event, done, 1 if is_sole else replicas)]

        return self._replication.when_safe(answer, now)

    def _done(self, event: CancelRequested, done: CancelDone, replicas: int) -> Answer:
        """Return the answer, if strict only once another disk has it, too.

        What runs is ended all the same: who cancels must not wait for a standby.
        """
        is_unsafe = self._is_strict and done.was_done and replicas == 1
        return Answer(event.ticket, NotDurable() if is_unsafe else done)


def state_of(task: InHand | None, known: TaskState) -> TaskState:
    """Return where a task stands: what is in hand is newer, if it is sure."""
    if task is None or (not task.is_sure and known.is_final):
        return known
    if task.final is not None:
        return task.final
    if task.stage in WAITING:
        return TaskState.QUEUED
    return TaskState.RUNNING if task.stage is Stage.LIVE else known
