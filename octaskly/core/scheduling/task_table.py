"""The tasks in the dispatcher's memory by id, with the sets that steps go through.

There may be tens of thousands of live tasks, and a step must not go through all. So the
table also keeps the waiting tasks, and the members of each array.
"""

from __future__ import annotations

from collections.abc import Collection

from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import TaskId
from octaskly.core.scheduling.queued_task import WAITING_STAGES, QueuedTask


class TaskTable(dict[TaskId, QueuedTask]):
    """Tasks by id.

    Whoever changes the stage of a task calls `note_stage`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[TaskId, QueuedTask] = {}
        self._members: dict[TaskId, dict[TaskId, QueuedTask]] = {}

    def __setitem__(self, task_id: TaskId, task: QueuedTask) -> None:
        super().__setitem__(task_id, task)
        self.note_stage(task)
        if (array_and_number := split_member_id(task_id)) is not None:
            self._members.setdefault(array_and_number[0], {})[task_id] = task

    def __delitem__(self, task_id: TaskId) -> None:
        super().__delitem__(task_id)
        self._waiting.pop(task_id, None)
        if (array_and_number := split_member_id(task_id)) is not None:
            members = self._members[array_and_number[0]]
            del members[task_id]
            if not members:
                del self._members[array_and_number[0]]

    def clear(self) -> None:
        """Remove all tasks."""
        super().clear()
        self._waiting.clear()
        self._members.clear()

    def note_stage(self, task: QueuedTask) -> None:
        """Note the current stage of a task in the table."""
        if task.stage in WAITING_STAGES:
            self._waiting[task.spec.id] = task
        else:
            self._waiting.pop(task.spec.id, None)

    @property
    def waiting(self) -> Collection[QueuedTask]:
        """The tasks that are queued or back off, in no order."""
        return self._waiting.values()

    def members_of(self, array: TaskId) -> Collection[QueuedTask]:
        """Return the members of an array that are in memory, in no order."""
        members = self._members.get(array)
        return () if members is None else members.values()
