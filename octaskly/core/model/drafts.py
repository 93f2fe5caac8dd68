"""Drafts of tasks, and the task ids and priorities made from them."""

from __future__ import annotations

import json
from hashlib import blake2b

from msgspec import Struct
from msgspec.structs import replace

from octaskly.core.model import arrays
from octaskly.core.model.ids import TaskId, task_name
from octaskly.core.model.task_options import (
    NO_REQUIREMENTS,
    TaskOptions,
    VisitorRule,
    are_equal_options,
)
from octaskly.core.model.tasks import TaskSpec, priority_of


class TaskDraft(Struct, frozen=True, gc=False):
    """A validated task that is not yet accepted."""

    command: str
    timeout_s: int | None = 3600  #: None: no limit
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    id: TaskId | None = None  #: chosen by the client, or derived from its key
    priority: int = 0  #: -50..50, a higher one runs first
    options: TaskOptions | None = None
    is_fail_fast: bool = False  #: reject it if no node could ever run it


def with_visitors_allowed(draft: TaskDraft) -> TaskDraft:
    """Return a draft that visitors may run, unless it says something about them."""
    options = draft.options or TaskOptions()
    requires = options.requires or NO_REQUIREMENTS
    if requires.visitors is not VisitorRule.UNSET:
        return draft
    rule = VisitorRule.HAS_ENV if options.env else VisitorRule.ALLOWED
    requires = replace(requires, visitors=rule, visitor_s=draft.timeout_s or 0)
    return replace(draft, options=replace(options, requires=requires))


SEQUENCE_DIGITS_MAX = 11  #: a longer number in a task id comes from an idempotency key
DIGEST_DIGITS = 15  #: digest of the draft in the id of a task with a chosen name


def sequence_of(task: TaskId) -> int:
    """Return the sequence number in a generated task id, else 0."""
    word, _, rest = task.partition("-")
    digits = rest.partition("-")[0]
    is_number = word == "task" and digits.isdecimal() and digits.isascii()
    return int(digits) if is_number and len(digits) <= SEQUENCE_DIGITS_MAX else 0


def rerun_draft(spec: TaskSpec) -> TaskDraft:
    """Return a draft that runs an ended task again, as a new task."""
    options = replace(
        spec.options or TaskOptions(), retry_of=task_name(spec.id), after=None
    )
    return replace(_draft_of(spec), options=options)


def matches_draft(draft: TaskDraft, spec: TaskSpec) -> bool:
    """Return True if the task equals the draft, apart from name and submitter."""
    given = replace(draft, id=None, is_fail_fast=False, options=None)
    has_equal_fields = given == replace(_draft_of(spec), options=None)
    return has_equal_fields and are_equal_options(draft.options, spec.options)


def _draft_of(spec: TaskSpec) -> TaskDraft:
    """Return the draft from which a task was made, without its name."""
    return TaskDraft(
        command=spec.command,
        timeout_s=spec.timeout_s,
        inputs=spec.inputs,
        outputs=spec.outputs,
        priority=priority_of(spec.ord),
        options=spec.options,
    )


def log_id_of(draft: TaskDraft, submitter: str) -> TaskId | None:
    """Return the id of a task with a chosen name; None if no name was chosen.

    Both sides of a network split give equal tasks the same id, and different tasks
    different ids.
    """
    if draft.id is None:
        return None
    files = (draft.inputs, draft.outputs)
    content: tuple[object, ...] = (draft.command, draft.timeout_s, *files, submitter)
    if draft.options is not None or draft.priority:
        content += (draft.priority, repr(draft.options))
    digest = blake2b(json.dumps(content).encode()).hexdigest()
    array = None if draft.options is None else draft.options.array
    digits = DIGEST_DIGITS if array is None else arrays.ARRAY_DIGEST_DIGITS
    return TaskId(f"{draft.id}~{digest[:digits]}")
