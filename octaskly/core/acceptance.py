"""Drafts become tasks: who names them, and where they stand in the queue."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b

from octaskly.core import arrays
from octaskly.core.events import Draft, TasksSubmitted
from octaskly.core.journal import Journal
from octaskly.core.model import Moment, TaskId, TaskSpec, name_of
from octaskly.core.options import TaskOptions
from octaskly.core.taskqueue import TaskQueue
from octaskly.core.timestamps import PRIORITY_SHIFT

PRIORITY_BAND = 50  #: of priority 0; a lower band runs first
THREE_DIGITS = 99  #: numbers above have so many
SEQUENCE_DIGITS_MAX = 11  #: longer numbers in task ids come from idempotency keys
DIGEST_DIGITS = 15  #: of what was asked for, in the id of a task whose name was chosen


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


def number_of(task: TaskId) -> int:
    """Return the number in the id of a task that was counted, else 0."""
    word, _, rest = task.partition("-")
    digits = rest.partition("-")[0]
    is_number = word == "task" and digits.isdecimal() and digits.isascii()
    return int(digits) if is_number and len(digits) <= SEQUENCE_DIGITS_MAX else 0


def priority_of(spec: TaskSpec) -> int:
    """Return the priority that a task was given: a higher one runs first."""
    return PRIORITY_BAND - (spec.ord >> PRIORITY_SHIFT)


def repeating(spec: TaskSpec) -> Draft:
    """Return the wish to run an ended task once more, as another task."""
    options = replace(
        spec.options or TaskOptions(), retry_of=name_of(spec.id), after=None
    )
    return replace(_wish_for(spec), options=options)


def is_asked_by(draft: Draft, spec: TaskSpec) -> bool:
    """Whether a task is what the draft asks for, whoever asked and by what name."""
    return replace(draft, id=None, is_fail_fast=False) == _wish_for(spec)


def _wish_for(spec: TaskSpec) -> Draft:
    """Return the draft that a task was made of, without a name."""
    return Draft(
        command=spec.command,
        timeout_s=spec.timeout_s,
        inputs=spec.inputs,
        outputs=spec.outputs,
        priority=priority_of(spec),
        options=spec.options,
    )


def logged_id(draft: Draft, submitter: str) -> TaskId | None:
    """Return the id of a task whose name was chosen; None where it was not.

    It is the same for the same task on both sides of a split, and only for that.
    """
    if draft.id is None:
        return None
    files = (draft.inputs, draft.outputs)
    asked: tuple[object, ...] = (draft.command, draft.timeout_s, *files, submitter)
    if draft.options is not None or draft.priority:
        asked += (draft.priority, repr(draft.options))
    digest = blake2b(json.dumps(asked).encode()).hexdigest()
    array = None if draft.options is None else draft.options.array
    digits = DIGEST_DIGITS if array is None else arrays.DIGEST_DIGITS
    return TaskId(f"{draft.id}~{digest[:digits]}")
