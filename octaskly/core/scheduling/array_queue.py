"""Arrays in the queue, and the members of each that are not yet assigned.

An array is a single queued task. A member becomes a task of its own when a worker gets
it. From then on it is treated like any other task.

Nothing limits how many members of an array run at once. `max_fails` only cancels the
rest after too many failures.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from msgspec.structs import replace

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import (
    RUNS_MAX,
    RemainingMembers,
    member_id,
    member_spec,
    split_member_id,
)
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.scheduling.queued_task import QueuedTask, Stage

COUNTED_ARRAYS_MAX = (
    10_000  #: arrays outside the queue whose failures are still counted
)


def new_queued_task(spec: TaskSpec) -> QueuedTask:
    """Return a new queued task; for an array, all members remain."""
    task = QueuedTask(TaskRecord(spec.id, spec))
    if spec.array is not None:
        task.remaining = RemainingMembers([(0, spec.array.count - 1)])
    return task


def merge_array_record(
    task: QueuedTask, record: TaskRecord, members: Iterable[QueuedTask]
) -> None:
    """Merge the store's progress of an array into its queued task.

    A read may not show yet that the members in memory were assigned.
    """
    progress, array = record.progress, task.spec.array
    assert progress is not None
    assert array is not None
    task.is_read = len(progress.remaining_runs) < RUNS_MAX
    if task.remaining is None:
        task.remaining, task.failed_members = (
            RemainingMembers(progress.remaining_runs),
            progress.failed,
        )
    else:
        task.remaining.intersect(progress.remaining_runs)
        task.failed_members = max(task.failed_members, progress.failed)
    for member in members:
        array_and_number = split_member_id(member.spec.id)
        assert array_and_number is not None
        position = array.position(array_and_number[1])
        if position is not None:
            task.remaining.remove(position)


class ArrayQueue:
    """The arrays among the tasks in memory."""

    def __init__(self, tasks: dict[TaskId, QueuedTask]) -> None:
        self._tasks = tasks
        self._counted_arrays: OrderedDict[TaskId, QueuedTask] = OrderedDict()
        """Arrays with a bound on failures, without their commands and items.

        Members may fail after all were assigned, or while the store is read.
        """

    def counted_array_of(self, member: TaskId) -> QueuedTask | None:
        """Return the array that counts a member's failures, if there is one."""
        array_and_number = split_member_id(member)
        if array_and_number is None:
            return None
        array = self._tasks.get(array_and_number[0])
        if array is not None and array.stage is Stage.QUEUED:
            return array
        return self._counted_arrays.get(array_and_number[0])

    def keep_counting_failures(self, array: QueuedTask) -> None:
        """Keep the failure count of an array, even after it left the queue."""
        array_spec, id_ = array.spec.array, array.spec.id
        if array_spec is None or array_spec.max_fails is None:
            return
        earlier = self._counted_arrays.pop(id_, None)
        if earlier is not None:
            array.failed_members = max(array.failed_members, earlier.failed_members)
        bound = TaskOptions(array=replace(array_spec, has_items=False, items=()))
        spec = TaskSpec(id=id_, command="", options=bound)
        self._counted_arrays[id_] = QueuedTask(
            TaskRecord(id_, spec), failed_members=array.failed_members
        )
        if len(self._counted_arrays) > COUNTED_ARRAYS_MAX:
            self._counted_arrays.popitem(last=False)

    def stop_counting_failures(self, array: TaskId) -> None:
        """Stop counting failures of an array that ended or whose id was reused."""
        self._counted_arrays.pop(array, None)

    def clear_arrays(self) -> None:
        """Drop all arrays at the end of an epoch."""
        self._counted_arrays.clear()

    def queued_array_of(self, member: TaskId) -> QueuedTask | None:
        """Return the array of a member, if it is queued in memory."""
        array_and_number = split_member_id(member)
        array = (
            None if array_and_number is None else self._tasks.get(array_and_number[0])
        )
        is_waiting = array is not None and array.stage is Stage.QUEUED
        return array if is_waiting else None

    def is_remainder_cancelled(self, member: TaskId) -> bool:
        """Return True if the rest of the member's array was just cancelled."""
        array_and_number = split_member_id(member)
        array = (
            None if array_and_number is None else self._tasks.get(array_and_number[0])
        )
        return array is not None and array.stage is Stage.ENDED

    def take_next_member(self, array: QueuedTask) -> QueuedTask | None:
        """Return the next member that is not yet in memory; None if none is left."""
        array_spec = array.spec.array
        assert array_spec is not None
        if array.next_member is not None and array.next_member.spec.id in self._tasks:
            array.next_member = None  # A newer read of the store added it.
        while array.next_member is None and array.remaining:
            number = array_spec.number(array.remaining.pop())
            if member_id(array.spec.id, number) not in self._tasks:
                spec = member_spec(array.spec, number)
                assert spec is not None
                changed = array.record.reprioritized
                record = TaskRecord(spec.id, spec, reprioritized=changed)
                array.next_member = QueuedTask(record)
        return array.next_member

    def remove_member(self, member: TaskId) -> None:
        """Remove a member that got into memory by other means from its array."""
        array = self.queued_array_of(member)
        if array is None or array.remaining is None or array.spec.array is None:
            return
        if array.next_member is not None and array.next_member.spec.id == member:
            array.next_member = None
            return
        array_and_number = split_member_id(member)
        position = (
            None
            if array_and_number is None
            else array.spec.array.position(array_and_number[1])
        )
        if position is not None:
            array.remaining.remove(position)
