"""Retries of ended tasks, and of array members that did not succeed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from msgspec.structs import replace

from octaskly.agent.gateway.submissions import Submission
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import ITEMS_BYTES_MAX, array_of
from octaskly.core.model.drafts import TaskDraft, rerun_draft
from octaskly.core.model.ids import task_name
from octaskly.core.model.task_options import ITEMS_MAX, ArraySpec
from octaskly.core.model.tasks import TaskSpec, priority_of
from octaskly.errors import NothingToRetry, TaskNotEnded
from octaskly.store import Store

#: Prefix of a retry's idempotency key; a key from a client has no space.
RETRY_KEY_PREFIX = "retry "

PositionRanges = Sequence[tuple[int, int]]
"""Ranges of member positions, from first to last."""

_RANGES_SHOWN_MAX = 8
_MEMBERS_MAX = ITEMS_MAX + 1  #: one more than an array can have


async def build_retry(record: TaskRecord, store: Store, submitter: str) -> Submission:
    """Return a submission that retries a task; it is the same for all clients.

    Raises:
        TaskNotEnded: the task is queued or running.
        NothingToRetry: all members of the array are completed, or the remaining
            ones are neither one range nor few enough for a list.
    """
    spec = record.spec
    if spec is None or not record.state.is_final:
        raise TaskNotEnded("Task has not ended", hint=f"it is {record.state}")
    draft = rerun_draft(spec)
    if array_of(record.id) is None:  # The priority of a member may still change.
        draft = replace(draft, priority=priority_of(record.ord))
    if spec.array is not None:
        draft = await _draft_of_unsuccessful(record, spec.array, draft, store)
    return Submission(
        drafts=(draft,),
        submitter=submitter,
        idempotency_key=retry_key(record.name, spec),
        is_key_shared=True,
        is_strict=False,
    )


def retry_key(name: str, spec: TaskSpec) -> str:
    """Return the idempotency key of the retry of a task, for all submitters."""
    # The time is needed: after a purge, another task may get this name.
    return f"{RETRY_KEY_PREFIX}{name} {spec.created_ms}"


async def _draft_of_unsuccessful(
    record: TaskRecord, requested: ArraySpec, draft: TaskDraft, store: Store
) -> TaskDraft:
    """Return a draft of an array with the members that did not succeed."""
    assert draft.options is not None
    runs = await store.incomplete_member_ranges(record.id, _MEMBERS_MAX)
    if not runs:
        hint = "all members of the array are completed"
        raise NothingToRetry("Nothing to retry", hint=hint)
    whole = (await store.read_tasks_by_name([task_name(record.id)]))[
        task_name(record.id)
    ]
    given = {other.id: other.spec for other in whole}[record.id]
    assert given is not None
    assert given.array is not None
    array = _array_of_items(runs, given.array) or _array_of_range(runs, given.array)
    array = replace(array, max_fails=requested.max_fails)
    return replace(draft, options=replace(draft.options, array=array))


def _array_of_items(ranges: PositionRanges, original: ArraySpec) -> ArraySpec | None:
    """Return an array that lists its members; None if they are too many."""
    count = sum(last - first + 1 for first, last in ranges)
    if count > ITEMS_MAX:
        return None
    wanted = chain.from_iterable(range(first, last + 1) for first, last in ranges)
    items = tuple(map(original.item, wanted))
    array = ArraySpec(count=count, has_items=True, items=items)
    return array if array.items_bytes <= ITEMS_BYTES_MAX else None


def _array_of_range(ranges: PositionRanges, original: ArraySpec) -> ArraySpec:
    """Return an array that is one range of numbers.

    Raises:
        NothingToRetry: there are several ranges, with completed members between.
    """
    (first, last), *more = ranges
    if not more:
        count = last - first + 1
        return ArraySpec(count=count, first=original.number(first), step=original.step)
    step = f":{original.step}" if original.step > 1 else ""
    largest = sorted(ranges, key=lambda run: run[0] - run[1])[:_RANGES_SHOWN_MAX]
    shown = ", ".join(
        f"{original.number(a)}-{original.number(b)}{step}" for a, b in largest
    )
    unnamed = len(ranges) - len(largest)
    raise NothingToRetry(
        "Nothing to retry",
        hint="the members to retry are too many to list, and are not one range; "
        f"submit arrays of {shown}{f' and {unnamed} more' if unnamed else ''}",
    )
