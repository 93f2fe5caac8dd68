"""Arrays in the queue: each is one entry, out of which members come one by one.

Owns which members of an array in hand are still to be handed out. A member becomes a
task in hand when a worker gets it, and is like any other from then on.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping

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
    10_000  #: arrays that are not in hand and whose failures are counted
)

MemberNumbers = Mapping[TaskId, list[int]]
"""Numbers of members in hand, by array."""


def new_queued_task(spec: TaskSpec) -> QueuedTask:
    """Return a new task as it waits; an array with all its members."""
    task = QueuedTask(spec)
    if spec.array is not None:
        task.remaining = RemainingMembers([(0, spec.array.count - 1)])
    return task


def queued_member_numbers(tasks: Iterable[TaskId]) -> MemberNumbers:
    """Return which members are in hand, so that a read may be older than that."""
    found: defaultdict[TaskId, list[int]] = defaultdict(list)
    for array_and_number in map(split_member_id, tasks):
        if array_and_number is not None:
            found[array_and_number[0]].append(array_and_number[1])
    return found


def merge_array_record(
    task: QueuedTask, record: TaskRecord, numbers: MemberNumbers
) -> None:
    """Take over what the store says of the members of an array."""
    progress, array = record.progress, task.spec.array
    assert progress is not None
    assert array is not None
    task.is_store_confirmed = len(progress.remaining_runs) < RUNS_MAX
    if task.remaining is None:
        task.remaining, task.failed_members = (
            RemainingMembers(progress.remaining_runs),
            progress.failed,
        )
    else:
        task.remaining.intersect(progress.remaining_runs)
        task.failed_members = max(task.failed_members, progress.failed)
    for number in numbers.get(task.spec.id, ()):
        position = array.position(number)
        if position is not None:
            task.remaining.remove(position)


class ArrayQueue:
    """The arrays among the tasks in hand."""

    def __init__(self, tasks: dict[TaskId, QueuedTask]) -> None:
        self._tasks = tasks
        self._counted_arrays: OrderedDict[TaskId, QueuedTask] = OrderedDict()
        """Those with a bound on failures, without items and rest: their members may
        fail when all of them were handed out, or while the store is read."""

    def counted_array_of(self, member: TaskId) -> QueuedTask | None:
        """Return the array of a member that counts its failures, if one does."""
        array_and_number = split_member_id(member)
        if array_and_number is None:
            return None
        array = self._tasks.get(array_and_number[0]) or self._counted_arrays.get(
            array_and_number[0]
        )
        return array if array is not None and array.stage is Stage.QUEUED else None

    def keep_counting_failures(self, array: QueuedTask) -> None:
        """Count the failures of an array whether it is in hand or not."""
        array_spec, id_ = array.spec.array, array.spec.id
        if array_spec is None or array_spec.max_fails is None:
            return
        earlier = self._counted_arrays.pop(id_, None)
        if earlier is not None:
            array.failed_members = max(array.failed_members, earlier.failed_members)
        bound = TaskOptions(array=replace(array_spec, has_items=False, items=()))
        spec = TaskSpec(id=id_, command="", options=bound)
        self._counted_arrays[id_] = QueuedTask(
            spec, failed_members=array.failed_members
        )
        if len(self._counted_arrays) > COUNTED_ARRAYS_MAX:
            self._counted_arrays.popitem(last=False)

    def stop_counting_failures(self, array: TaskId) -> None:
        """Count no more failures of an array that is over, or not the same any more."""
        self._counted_arrays.pop(array, None)

    def clear_arrays(self) -> None:
        """The reign is over."""
        self._counted_arrays.clear()

    def queued_array_of(self, member: TaskId) -> QueuedTask | None:
        """Return the array of a member, if it waits in hand."""
        array_and_number = split_member_id(member)
        array = (
            None if array_and_number is None else self._tasks.get(array_and_number[0])
        )
        is_waiting = array is not None and array.stage is Stage.QUEUED
        return array if is_waiting else None

    def is_remainder_cancelled(self, member: TaskId) -> bool:
        """Whether the rest of its array was cancelled just now."""
        array_and_number = split_member_id(member)
        array = (
            None if array_and_number is None else self._tasks.get(array_and_number[0])
        )
        return array is not None and array.stage is Stage.ENDED

    def take_next_member(self, array: QueuedTask) -> QueuedTask | None:
        """Return the member that is next, not yet in hand; None: none is left."""
        array_spec = array.spec.array
        assert array_spec is not None
        if array.next_member is not None and array.next_member.spec.id in self._tasks:
            array.next_member = None  # A read of the store was newer.
        while array.next_member is None and array.remaining:
            number = array_spec.number(array.remaining.pop())
            if member_id(array.spec.id, number) not in self._tasks:
                spec = member_spec(array.spec, number)
                assert spec is not None
                array.next_member = QueuedTask(spec)
        return array.next_member

    def remove_member(self, member: TaskId) -> None:
        """Note that a member is in hand otherwise, and not to be handed out."""
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
