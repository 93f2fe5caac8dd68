"""Drafts become tasks: who names them, and where they stand in the queue."""

from __future__ import annotations

from collections.abc import Iterable

from octaskly.core.events import TasksSubmitted
from octaskly.core.model.drafts import PRIORITY_BAND, logged_id, number_of
from octaskly.core.model.hlc import PRIORITY_SHIFT
from octaskly.core.model.ids import Moment, TaskId
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.replication.journal import Journal
from octaskly.core.scheduling.task_queue import TaskQueue

THREE_DIGITS = 99  #: numbers above have so many


class Acceptance:
    """Names and places of new tasks."""

    def __init__(self, journal: Journal, queue: TaskQueue, sequence: int) -> None:
        self._journal = journal
        self._queue = queue
        self._sequence = sequence
        self._chosen: dict[TaskId, TaskSpec] = {}
        """Ids that clients chose, while their submission is not durable."""

    def raise_sequence(self, sequence: int) -> None:
        """Number new tasks above `sequence`, which another node has used."""
        self._sequence = max(self._sequence, sequence)

    def name(self, suffix: str) -> TaskId:
        """Return an id with a number that no other task has."""
        self._sequence = number = self._sequence + 1
        digits = number if number > THREE_DIGITS else f"{number:03d}"  # That is slow.
        return TaskId(f"task-{digits}-{suffix}")

    def forget(self, specs: Iterable[TaskSpec]) -> None:
        """These are durable: the store knows their ids."""
        for spec in specs if self._chosen else ():
            self._chosen.pop(spec.id, None)

    def specs(
        self, event: TasksSubmitted, now: Moment
    ) -> tuple[list[TaskSpec], list[TaskSpec]]:
        """Return the tasks of a request, and those of them that are new."""
        specs = []
        fresh = []
        hlc = self._journal.tick(now, len(event.drafts))
        submitter, created_ms = event.submitter, now.wall_ms
        logged = event.logged or (logged_id(d, submitter) for d in event.drafts)
        drafts = zip(event.drafts, event.suffixes, logged, strict=True)
        for draft, suffix, task_id in drafts:
            spec = None if task_id is None else self._known_spec(task_id)
            if spec is None:
                if task_id is None:
                    task_id = self.name(suffix)
                spec = TaskSpec(
                    task_id,
                    draft.command,
                    draft.timeout_s,
                    draft.inputs,
                    draft.outputs,
                    submitter,
                    created_ms,
                    (PRIORITY_BAND - draft.priority << PRIORITY_SHIFT) | hlc,
                    draft.options,
                )
                hlc += 1
                fresh.append(spec)
                if draft.id is not None:
                    self.raise_sequence(number_of(draft.id))
                    self._chosen[task_id] = spec
                    self._queue.renew(task_id)
            specs.append(spec)
        return specs, fresh

    def _known_spec(self, task_id: TaskId) -> TaskSpec | None:
        """Return the task that has this id, if it is in hand."""
        known = self._queue.tasks.get(task_id)
        if known is not None and known.is_sure:
            return known.spec
        return self._chosen.get(task_id)
