"""The tasks in the dispatcher's memory by id, with the sets that steps go through.

There may be tens of thousands of live tasks, and a step must not go through all. So the
table also keeps the waiting tasks, the members of each array, and the live tasks of
each worker.

Members that were assigned together are ranges in memory until somebody asks for one of
them: then each of them becomes a task of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import cast

from octaskly.core.model.arrays import RangeMembers
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.scheduling.live_ranges import APART, SUCCEEDED, LiveRange, LiveRanges
from octaskly.core.scheduling.queued_task import (
    WAITING_STAGES,
    QueuedTask,
    Stage,
)

HeldKey = TaskId | AttemptId
"""Id of a task that a worker holds, or first attempt of a range."""
Held = QueuedTask | LiveRange


@dataclass(slots=True)
class HeldAttempts:
    """The attempts that one worker holds, and the resources that they take."""

    by_key: dict[HeldKey, Held] = field(default_factory=dict)
    """In the order in which the worker got them."""
    attempts: int = 0
    slots: int = 0
    memory_mb: int = 0
    gpus: int = 0

    def count(self, spec: TaskSpec, attempts: int) -> None:
        """Count attempts at a task, or members of a range, that came or (< 0) went."""
        self.attempts += attempts
        self.slots += attempts
        if spec.options is None:  # A shortcut for most tasks.
            return
        requires = spec.options.requires
        if requires is not None and requires.needs_exclusive_resources:
            self.slots += attempts * (requires.slots - 1)
            self.memory_mb += attempts * requires.memory_mb
            self.gpus += attempts * requires.gpus


class TaskTable:
    """Tasks by id."""

    def __init__(self) -> None:
        self._tasks: dict[TaskId, QueuedTask] = {}
        """All but the members in ranges."""
        self._waiting: dict[TaskId, QueuedTask] = {}
        self._members: dict[TaskId, dict[TaskId, QueuedTask]] = {}
        self.ranges = LiveRanges()
        self._held: defaultdict[NodeId, HeldAttempts] = defaultdict(HeldAttempts)
        self._changed: list[Held] = []
        """See `pop_changed`."""

    def get(self, task_id: TaskId) -> QueuedTask | None:
        """Return a task; None if it is not in memory."""
        task = self._tasks.get(task_id)
        if task is None and (found := self.ranges.find(task_id)) is not None:
            self._split_range(found[0])
            task = self._tasks[task_id]
        return task

    def __contains__(self, task_id: TaskId) -> bool:
        return task_id in self._tasks or self.ranges.find(task_id) is not None

    def add(self, task: QueuedTask) -> None:
        """Add a task, or replace the one with its id."""
        task_id = task.spec.id
        self._tasks[task_id] = task
        if task.stage in WAITING_STAGES:
            self._waiting[task_id] = task
        else:
            self._waiting.pop(task_id, None)
        if task.array is not None:
            self._members.setdefault(task.array, {})[task_id] = task

    def remove(self, task: QueuedTask) -> None:
        """Remove a task."""
        task_id = task.spec.id
        del self._tasks[task_id]
        self._waiting.pop(task_id, None)
        if task.array is not None:
            members = self._members[task.array]
            del members[task_id]
            if not members:
                del self._members[task.array]

    def set_stage(self, task: QueuedTask, stage: Stage) -> None:
        """Change the stage of a task."""
        before, task.stage = task.stage, stage
        if stage in WAITING_STAGES:
            self._waiting[task.spec.id] = task
        elif before is not Stage.LIVE:
            self._waiting.pop(task.spec.id, None)

    @property
    def count(self) -> int:
        """Number of tasks in memory, with the members in ranges."""
        return len(self._tasks) + self.ranges.count_members()

    @property
    def has_waiting(self) -> bool:
        """Return True if any task is queued or backs off."""
        return bool(self._waiting)

    @property
    def waiting(self) -> Collection[QueuedTask]:
        """The tasks that are queued or back off, in no order."""
        return self._waiting.values()

    def members_of(self, array: TaskId) -> Collection[QueuedTask]:
        """Return the members of an array that are in memory, in no order."""
        for live in list(self.ranges.of_array(array)):
            self._split_range(live)
        members = self._members.get(array)
        return () if members is None else members.values()

    def single_members_of(self, array: TaskId) -> dict[TaskId, QueuedTask]:
        """Return the members of an array that are in memory outside of ranges."""
        return self._members.get(array, {})

    # --- What workers hold.

    def hold(self, node: NodeId, task: QueuedTask) -> None:
        """Note that a worker got an attempt of a task."""
        held = self._held[node]
        held.by_key[task.spec.id] = task
        held.count(task.spec, 1)

    def release(self, node: NodeId, task: QueuedTask) -> None:
        """Note that a worker no longer holds an attempt of a task."""
        held = self._held[node]
        del held.by_key[task.spec.id]
        held.count(task.spec, -1)
        self._drop_if_empty(node, held)

    def held_at(self, node: NodeId) -> HeldAttempts:
        """Return what a worker holds."""
        return self._held.get(node) or HeldAttempts()

    def held_in_order(self, node: NodeId) -> Collection[Held]:
        """Return what a worker holds, in the order in which it got that."""
        return self.held_at(node).by_key.values()

    def held_task(self, node: NodeId, task_id: TaskId) -> QueuedTask | None:
        """Return a task that a worker holds outside of ranges, if it does."""
        task = self.held_at(node).by_key.get(task_id)
        return task if isinstance(task, QueuedTask) else None

    def held_by(self, node: NodeId) -> list[QueuedTask]:
        """Return the live tasks of a worker, in the order in which it got them."""
        for live in list(self.held_in_order(node)) if self.ranges else ():
            if isinstance(live, LiveRange):
                self._split_range(live)
        return cast("list[QueuedTask]", list(self.held_in_order(node)))

    # --- Ranges.

    def add_range(self, live: LiveRange) -> None:
        """Add members that a worker gets together."""
        self.ranges.add(live)
        held = self._held[live.node]
        held.by_key[live.attempt] = live
        held.count(live.spec, live.live_count)

    def range_of(self, members: RangeMembers, node: NodeId) -> LiveRange | None:
        """Return the range as which a worker got these members, if it is in memory."""
        live = self.ranges.find_near(members.array, members.number)
        return live if live is not None and live.is_source_of(members, node) else None

    def end_members(self, live: LiveRange, offsets: Collection[int]) -> None:
        """Note that live members of a range succeeded."""
        for offset in offsets:
            live.states[offset] = SUCCEEDED
        self._drop_live(live, len(offsets))

    def take_reported(
        self, task_id: TaskId, attempt: AttemptId, node: NodeId
    ) -> QueuedTask | None:
        """Return a task of which a worker reports an attempt; None: not in memory.

        If it is a live member of a range, only this member becomes a task. It must end
        in this step, because it loses its place among the attempts of the worker.
        """
        known = self._tasks.get(task_id)
        found = self.ranges.find(task_id) if known is None else None
        if found is None:
            return known
        live, offset = found
        task = live.task_at(offset)
        if not task.is_live_at(node, attempt):
            return self.get(task_id)
        live.states[offset] = APART
        self._drop_live(live, 1)
        self._changed.append(live)
        self.add(task)
        self.hold(node, task)
        return task

    def retire_range(self, live: LiveRange) -> list[TaskId]:
        """Remove a range; the few members that still run become tasks of their own.

        Returns:
            The members that succeeded, which are no longer in memory.
        """
        ended = live.drop_succeeded()
        self._split_range(live)
        return ended

    def pop_changed(self) -> list[Held]:
        """Return the ranges that lost members since the last call, and ended members.

        They stay in memory until all that is known of them is durable.
        """
        changed, self._changed = self._changed, []
        return changed

    def _drop_live(self, live: LiveRange, count: int) -> None:
        live.live_count -= count
        held = self._held[live.node]
        held.count(live.spec, -count)
        if not live.live_count and count:
            del held.by_key[live.attempt]
            self._drop_if_empty(live.node, held)

    def _drop_if_empty(self, node: NodeId, held: HeldAttempts) -> None:
        """Keep nothing of a worker without attempts: many visitors come and go."""
        if not held.by_key:
            del self._held[node]

    def _split_range(self, live: LiveRange) -> None:
        """Let a task of its own stand for each member, in the place of the range."""
        tasks = [
            live.task_at(offset)
            for offset, state in enumerate(live.states)
            if state != APART
        ]
        self.ranges.remove(live)
        running: dict[HeldKey, Held] = {
            task.spec.id: task for task in tasks if task.stage is Stage.LIVE
        }
        if running:
            held: dict[HeldKey, Held] = {}
            for key, each in self._held[live.node].by_key.items():
                if each is live:
                    held.update(running)
                else:
                    held[key] = each
            self._held[live.node].by_key = held
        live.states[:] = bytes([APART]) * len(live.states)
        live.live_count = 0
        for task in tasks:
            self.add(task)
        self._changed += (task for task in tasks if task.stage is Stage.ENDED)
