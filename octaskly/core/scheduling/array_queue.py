"""Arrays in the queue, and the members of each that are not yet assigned.

An array is a single queued task. A member becomes a task of its own when a worker gets
it. From then on it is treated like any other task.

Nothing limits how many members of an array run at once. `max_fails` only cancels the
rest after too many failures.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import (
    RUNS_MAX,
    RemainingMembers,
    array_of,
    member_id,
    member_spec,
    position_of,
)
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.scheduling.queued_task import QueuedTask, Stage
from octaskly.core.scheduling.task_table import TaskTable

COUNTED_ARRAYS_MAX = 50_000  #: whose failures are counted; more are read when needed


def new_queued_task(spec: TaskSpec) -> QueuedTask:
    """Return a new queued task; for an array, all members remain."""
    task = QueuedTask(TaskRecord(spec.id, spec))
    if spec.array is not None:
        task.remaining = RemainingMembers([(0, spec.array.count - 1)])
    return task


def goes_by_range(spec: TaskSpec) -> bool:
    """Return True if workers get the members of an array by ranges.

    Then they need not be looked at one by one before they are assigned: any worker may
    run any of them, and none has its inputs.
    """
    options = spec.options
    return (
        options is not None
        and options.requires is None
        and options.tree is None
        and options.stdin_file is None
        and not options.outputs_of
    )


def first_member_spec(array: QueuedTask) -> TaskSpec:
    """Return the spec of the first remaining member of an array."""
    assert array.remaining is not None
    assert array.spec.array is not None
    number = array.spec.array.number(array.remaining.first)
    spec = member_spec(array.spec, number)
    assert spec is not None
    return spec


def take_member(array: QueuedTask) -> QueuedTask:
    """Return the first remaining member of an array as a task, and remove it there."""
    assert array.remaining is not None
    spec = first_member_spec(array)
    array.remaining.pop()
    changed = array.record.reprioritized
    return QueuedTask(TaskRecord(spec.id, spec, reprioritized=changed))


def merge_array_record(task: QueuedTask, record: TaskRecord, table: TaskTable) -> None:
    """Merge the store's progress of an array into its queued task.

    A read may not show yet that the members in memory were assigned.
    """
    progress, array = record.progress, task.spec.array
    assert progress is not None
    assert array is not None
    task.is_read = len(progress.remaining_runs) < RUNS_MAX
    if task.remaining is None:
        task.remaining = RemainingMembers(progress.remaining_runs)
    else:
        task.remaining.intersect(progress.remaining_runs)
    for live in table.ranges.of_array(record.id):
        task.remaining.remove_run(live.position, live.position + len(live.ids) - 1)
    for member in table.single_members_of(record.id):
        position = position_of(member, array)
        if position is not None:
            task.remaining.remove(position)


class ArrayQueue:
    """The arrays among the tasks in memory, and how many members of each failed."""

    def __init__(self, tasks: TaskTable) -> None:
        self._tasks = tasks
        self._failures_left: OrderedDict[TaskId, float] = OrderedDict()
        """By array, how many more of its members may fail; infinite: any number.

        It outlives the array in the queue: members also fail after all were assigned.
        """

    def knows_failures(self, array: TaskId) -> bool:
        """Return True if an array's failures are counted, or have no bound."""
        return array in self._failures_left

    def count_failures(self, array: TaskRecord) -> None:
        """Count an array's failures from here on, after those in its record.

        Those of a cancelled array have no bound, as none of its members begin.
        """
        assert array.spec is not None
        assert array.spec.array is not None
        left, max_fails = math.inf, array.spec.array.max_fails
        if max_fails is not None and array.cancelled_by is None:
            failed = 0 if array.progress is None else array.progress.failed
            left = min(max_fails - failed, self._failures_left.get(array.id, left))
        self._set_failures_left(array.id, left)

    def _set_failures_left(self, array: TaskId, left: float) -> None:
        self._failures_left[array] = left
        self._failures_left.move_to_end(array)
        if len(self._failures_left) > COUNTED_ARRAYS_MAX:
            self._failures_left.popitem(last=False)

    def add_failure(self, array: TaskId) -> bool:
        """Count one failure; return True if it is one too many."""
        self._failures_left[array] -= 1
        return self._failures_left[array] < 0

    def ignore_failures(self, array: TaskId) -> None:
        """Stop counting the failures of an array, because it was cancelled."""
        self._set_failures_left(array, math.inf)

    def forget_failures(self, array: TaskId) -> None:
        """Forget the failures of an array: there are more, or it is another array."""
        self._failures_left.pop(array, None)

    def has_bounded_failures(self, array: TaskId) -> bool:
        """Return True if failures of an array are counted, and may be too many."""
        return self._failures_left.get(array, math.inf) < math.inf

    def has_unended_members(self, array: TaskId) -> bool:
        """Return True if a member of an array in hand has not ended or not begun.

        Members that ended stay in memory for a while, in front of the others.
        """
        task = self._tasks.get(array)
        if (
            task is not None
            and task.stage is Stage.QUEUED
            and (task.remaining or not task.is_read)
        ):
            return True
        ranges = reversed(self._tasks.ranges.of_array(array))
        if any(live.live_count for live in ranges):
            return True
        singles = reversed(self._tasks.single_members_of(array).values())
        return any(member.final_state is None for member in singles)

    def is_withdrawn(self, array: TaskId) -> bool:
        """Return True if an array was just cancelled, or is read again."""
        task = self._tasks.get(array)
        return task is not None and task.stage is Stage.ENDED

    def has_next_member(self, array: QueuedTask) -> bool:
        """Return True if members remain; the first of them is not in memory then."""
        remaining, array_spec = array.remaining, array.spec.array
        assert remaining is not None
        assert array_spec is not None
        # No member in a range remains, but a newer read of the store may add others.
        known = self._tasks.single_members_of(array.spec.id)
        while known and remaining:
            number = array_spec.number(remaining.first)
            if member_id(array.spec.id, number) not in known:
                return True
            remaining.pop()
        return bool(remaining)

    def remove_member(self, member: TaskId) -> None:
        """Remove a member that got into memory by other means from its array."""
        array_id = array_of(member)
        array = None if array_id is None else self._tasks.get(array_id)
        if array is None or array.remaining is None or array.spec.array is None:
            return
        position = position_of(member, array.spec.array)
        if position is not None:
            array.remaining.remove(position)
