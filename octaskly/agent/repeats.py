"""How an ended task is repeated: of an array the members that did not succeed."""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.acceptance import repeating
from octaskly.core.arrays import ITEMS_BYTES_MAX
from octaskly.core.events import Draft
from octaskly.core.merge import TaskRecord
from octaskly.core.model import name_of
from octaskly.core.options import ITEM_BYTES, ArraySpec
from octaskly.errors import NothingToRepeat, TaskNotEnded
from octaskly.ports import Log

_MEMBERS_MAX = ITEMS_BYTES_MAX // ITEM_BYTES + 1  #: so many fit into no array


async def repetition(record: TaskRecord, store: Log) -> Draft:
    """Return the wish to repeat a task.

    Raises:
        TaskNotEnded: it is queued or runs.
        NothingToRepeat: it is an array whose members are all completed, or of which
            more are not than fit into one.
    """
    spec = record.spec
    if spec is None or not record.state.is_final:
        raise TaskNotEnded("Task has not ended", hint=f"it is {record.state}")
    draft = repeating(spec)
    if spec.array is None or draft.options is None:
        return draft
    wanted = await store.unfinished(record.id, _MEMBERS_MAX)
    if not wanted:
        hint = "all members of the array are completed"
        raise NothingToRepeat("Nothing to repeat", hint=hint)
    whole = (await store.tasks([name_of(record.id)]))[name_of(record.id)]
    given = {other.id: other.spec for other in whole}[record.id]
    assert given is not None
    assert given.array is not None
    items = tuple(map(given.array.item, wanted))
    array = ArraySpec(
        count=len(items),
        has_items=True,
        items=items,
        max_fails=spec.array.max_fails,
    )
    if array.items_bytes > ITEMS_BYTES_MAX:
        raise NothingToRepeat(
            "Nothing to repeat",
            hint="more members are left than fit into one array; hand in others",
        )
    return replace(draft, options=replace(draft.options, array=array))
