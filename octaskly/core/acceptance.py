"""Drafts become tasks: who names them, and where they stand in the queue."""

from __future__ import annotations

from collections.abc import Iterable

from octaskly.core.events import Draft, TasksSubmitted
from octaskly.core.facts import PRIORITY_SHIFT
from octaskly.core.journal import Journal
from octaskly.core.model import Moment, TaskId, TaskSpec
from octaskly.core.taskqueue import TaskQueue

PRIORITY_BAND = 50  #: of every task as yet; 0..100, a lower band runs first


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

    def forget(self, specs: Iterable[TaskSpec]) -> None:
        """These are durable: the store knows their ids."""
        for spec in specs:
            self._chosen.pop(spec.id, None)

    def specs(
        self, event: TasksSubmitted, now: Moment
    ) -> tuple[list[TaskSpec], list[TaskSpec]]:
        """Return the tasks of a request, and those of them that are new."""
        specs = []
        fresh = []
        for draft, suffix in zip(event.drafts, event.suffixes, strict=True):
            spec = self._known_spec(draft.id)
            if spec is None:
                spec = self._spec(draft, suffix, event.submitter, now)
                fresh.append(spec)
                if draft.id is not None:
                    self._chosen[spec.id] = spec
            specs.append(spec)
        return specs, fresh

    def _known_spec(self, task_id: TaskId | None) -> TaskSpec | None:
        """Return the task that has an id which a client chose, if it is in hand."""
        if task_id is None:
            return None
        known = self._queue.tasks.get(task_id)
        if known is not None and known.is_sure:
            return known.spec
        return self._chosen.get(task_id)

    def _spec(self, draft: Draft, suffix: str, submitter: str, now: Moment) -> TaskSpec:
        self._sequence += 1
        return TaskSpec(
            id=draft.id or TaskId(f"task-{self._sequence:03d}-{suffix}"),
            command=draft.command,
            timeout_s=draft.timeout_s,
            inputs=draft.inputs,
            outputs=draft.outputs,
            submitter=submitter,
            created_ms=now.wall_ms,
            ord=(PRIORITY_BAND << PRIORITY_SHIFT) | self._journal.tick(now),
        )
