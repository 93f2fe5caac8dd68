"""How an ended task is repeated: of an array the members that failed."""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.acceptance import repeating
from octaskly.core.arrays import ITEMS_BYTES_MAX
from octaskly.core.events import Draft
from octaskly.core.merge import TaskRecord
from octaskly.core.model import TaskState, name_of
from octaskly.core.options import ITEM_BYTES, ArraySpec
from octaskly.errors import NothingToRepeat, TaskNotEnded
from octaskly.ports import Log

_FAILED_MAX = ITEMS_BYTES_MAX // (ITEM_BYTES + 1)


async def repetition(record: TaskRecord, store: Log) -> Draft:
    """Return the wish to repeat a task.

    Raises:
        TaskNotEnded: it is queued or runs.
        NothingToRepeat: it is an array without a member that failed, or with more than
            fit into one.
    """
    spec = record.spec
    if spec is None or not record.state.is_final:
        raise TaskNotEnded("Task has not ended", hint=f"it is {record.state}")
    draft = repeating(spec)
    if spec.array is None or draft.options is None:
        return draft
    failed = await store.positions(record.id, TaskState.FAILED, _FAILED_MAX)
    if not failed:
        raise NothingToRepeat("Nothing to repeat", hint="no member of the array failed")
    whole = (await store.tasks([name_of(record.id)]))[name_of(record.id)]
    given = {other.id: other.spec for other in whole}[record.id]
    assert given is not None
    assert given.array is not None
    items = tuple(map(given.array.item, failed))
    array = ArraySpec(
        count=len(items),
        has_items=True,
        items=items,
        max_fails=spec.array.max_fails,
    )
    if array.items_bytes > ITEMS_BYTES_MAX:
        raise NothingToRepeat(
            "Nothing to repeat",
            hint="too many members failed to fit into one array; hand in others",
        )
    return replace(draft, options=replace(draft.options, array=array))
