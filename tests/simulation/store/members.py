"""Members of arrays on a disk in memory, counted and shown as in the store."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from octaskly.core.log.merge import SubmissionTimes, TaskRecord, with_array_cancelled
from octaskly.core.model.arrays import ArrayProgress, member_id, member_spec
from octaskly.core.model.hlc import HLC_MAX
from octaskly.core.model.ids import StreamId
from octaskly.core.model.tasks import TaskState

MEMBERS = 1 << 40  #: first key of members
ROOM = 1000  #: number of keys for the members of one array
BORN = SubmissionTimes(HLC_MAX, 0, StreamId(0), 0)
"""The birth of a member: it is void with its array, so no floor needs it."""

Said = Mapping[int, TaskRecord]
"""Facts of the members of one array, by number; without envelopes."""


def counted(array: TaskRecord, said: Said) -> TaskRecord:
    """Return an array with its counts."""
    assert array.spec is not None
    assert array.spec.array is not None
    by = array.cancelled_by
    states = [with_array_cancelled(record, by).state for record in said.values()]
    left = TaskState.QUEUED if by is None else TaskState.CANCELLED
    states += [left] * (array.spec.array.count - len(said))
    ends = [a.outcome for r in said.values() for a in r.attempts if a.outcome]
    progress = ArrayProgress(
        queued=states.count(TaskState.QUEUED),
        running=states.count(TaskState.RUNNING),
        completed=states.count(TaskState.COMPLETED),
        failed=states.count(TaskState.FAILED),
        cancelled=states.count(TaskState.CANCELLED),
        started_ms=min((e.started_ms for e in ends if e.started_ms), default=None),
        ended_ms=max((e.ended_ms for e in ends if e.ended_ms), default=None),
    )
    return replace(array, progress=progress)


def with_rest(array: TaskRecord, said: Said) -> TaskRecord:
    """Return an array for the queue, with the numbers of members without facts.

    Each run of numbers stands alone, as the queue may receive them in any way.
    """
    if array.progress is None or array.cancelled_by is not None:
        return array
    assert array.spec is not None
    assert array.spec.array is not None
    asked = array.spec.array
    left = (at for at in range(asked.count) if asked.number(at) not in said)
    progress = replace(array.progress, remaining_runs=tuple((at, at) for at in left))
    return replace(array, progress=progress)


def shown(array: TaskRecord, number: int, said: Said) -> TaskRecord | None:
    """Return a member with the envelope derived from its array, if it has one."""
    spec = None if array.spec is None else member_spec(array.spec, number)
    if spec is None:
        return None
    record = said.get(number) or TaskRecord(id=member_id(array.id, number))
    record = replace(record, spec=spec, reprioritized=array.reprioritized)
    return with_array_cancelled(record, array.cancelled_by)


def is_live(record: TaskRecord) -> bool:
    """Return True if the latest attempt has no end."""
    return bool(record.attempts) and record.attempts[-1].state.is_live
