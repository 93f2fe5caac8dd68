"""How an ended task is repeated: of an array the members that did not succeed."""

from __future__ import annotations

from dataclasses import replace

from octaskly.agent.submissions import Submission
from octaskly.core.acceptance import repeating
from octaskly.core.arrays import ITEMS_BYTES_MAX
from octaskly.core.events import Draft
from octaskly.core.merge import TaskRecord
from octaskly.core.model import name_of
from octaskly.core.options import ITEM_BYTES, ArraySpec
from octaskly.errors import NothingToRepeat, TaskNotEnded
from octaskly.ports import Log

KEY = "retry "  #: begins the key of a repetition; no client's key has a space

_MEMBERS_MAX = ITEMS_BYTES_MAX // ITEM_BYTES + 1  #: so many fit into no array


async def repetition(record: TaskRecord, store: Log, submitter: str) -> Submission:
    """Return the wish to repeat a task, which is the same whoever has it.

    Raises:
        TaskNotEnded: it is queued or runs.
        NothingToRepeat: it is an array whose members are all completed, or of which
            more are not than fit into one.
    """
    spec = record.spec
    if spec is None or not record.state.is_final:
        raise TaskNotEnded("Task has not ended", hint=f"it is {record.state}")
    draft = repeating(spec)
    if spec.array is not None:
        draft = await _left(record, spec.array, draft, store)
    return Submission(
        drafts=(draft,),
        submitter=submitter,
        key=f"{KEY}{record.name}",
        is_key_of_all=True,
        is_strict=False,
    )


async def _left(
    record: TaskRecord, asked: ArraySpec, draft: Draft, store: Log
) -> Draft:
    """Return a draft of an array with the members that did not succeed."""
    assert draft.options is not None
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
        max_fails=asked.max_fails,
    )
    if array.items_bytes > ITEMS_BYTES_MAX:
        raise NothingToRepeat(
            "Nothing to repeat",
            hint="more members are left than fit into one array; hand in others",
        )
    return replace(draft, options=replace(draft.options, array=array))
