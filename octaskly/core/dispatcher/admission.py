"""Admission: turns drafts into tasks, with ids and places in the queue.

The place is `TaskSpec.ord`: a higher priority first, then the earlier submission. It is
in the log, so a change of the formula applies to new tasks only.
"""

from __future__ import annotations

from collections.abc import Iterable

from octaskly.core.events import TasksSubmitted
from octaskly.core.model.drafts import TaskDraft, sequence_of
from octaskly.core.model.ids import Moment, TaskId
from octaskly.core.model.task_options import requires_of
from octaskly.core.model.tasks import TaskSpec, ord_of
from octaskly.core.replication.journal import Journal
from octaskly.core.replies import Unplaceable
from octaskly.core.scheduling.task_queue import TaskQueue
from octaskly.core.scheduling.worker_pool import WorkerPool

PADDED_NUMBER_MAX = 99  #: numbers above have so many


class Admission:
    """Assigns ids and places in the queue to new tasks."""

    def __init__(
        self, journal: Journal, queue: TaskQueue, pool: WorkerPool, sequence: int
    ) -> None:
        self._journal = journal
        self._queue = queue
        self._pool = pool
        self._sequence = sequence
        self._pending_named: dict[TaskId, TaskSpec] = {}
        """Ids that clients chose, while their submission is not durable."""

    def raise_sequence(self, sequence: int) -> None:
        """Number new tasks above `sequence`, which another node has used."""
        self._sequence = max(self._sequence, sequence)

    def mint_task_id(self, suffix: str) -> TaskId:
        """Return an id with a number that no other task has."""
        self._sequence = number = self._sequence + 1
        digits = (
            number if number > PADDED_NUMBER_MAX else f"{number:03d}"
        )  # That is slow.
        return TaskId(f"task-{digits}-{suffix}")

    def drop_durable_specs(self, specs: Iterable[TaskSpec]) -> None:
        """These are durable: the store knows their ids."""
        for spec in specs if self._pending_named else ():
            self._pending_named.pop(spec.id, None)

    def find_unplaceable(self, drafts: Iterable[TaskDraft]) -> Unplaceable | None:
        """Return the first task that must fail fast and that no node could run."""
        for index, draft in enumerate(drafts):
            requires = requires_of(draft.options) if draft.is_fail_fast else None
            if requires is not None:
                missing_text = self._pool.why_none_meets(requires)
                if missing_text is not None:
                    return Unplaceable(index, missing_text)
        return None

    def specs_from_drafts(
        self, event: TasksSubmitted, now: Moment
    ) -> tuple[list[TaskSpec], list[TaskSpec]]:
        """Return the tasks of a request, and those of them that are new."""
        specs = []
        new_specs = []
        hlc = self._journal.reserve_timestamps(now, len(event.drafts))
        submitter, created_ms = event.submitter, now.wall_ms
        drafts = zip(event.drafts, event.id_suffixes, event.log_ids, strict=True)
        for draft, suffix, task_id in drafts:
            spec = None if task_id is None else self._pending_spec(task_id)
            if spec is None:
                if task_id is None:
                    task_id = self.mint_task_id(suffix)
                spec = TaskSpec(
                    task_id,
                    draft.command,
                    draft.timeout_s,
                    draft.inputs,
                    draft.outputs,
                    submitter,
                    created_ms,
                    ord_of(draft.priority, hlc),
                    draft.options,
                )
                hlc += 1
                new_specs.append(spec)
                if draft.id is not None:
                    self.raise_sequence(sequence_of(draft.id))
                    self._pending_named[task_id] = spec
                    self._queue.forget_final(task_id)
            specs.append(spec)
        return specs, new_specs

    def _pending_spec(self, task_id: TaskId) -> TaskSpec | None:
        """Return the task that has this id, if it is in hand."""
        known = self._queue.tasks.get(task_id)
        if known is not None and known.is_read:
            return known.spec
        return self._pending_named.get(task_id)
