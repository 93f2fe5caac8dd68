"""Lanes: the front of the queue in memory, split by the requirements of tasks.

Lanes keep queued tasks in order, and record how far the store was read. Tasks with
equal requirements (most have none) have one shape and fit the same nodes. So they wait
in one lane, ordered by priority and age, and the first of them shows if any can run. A
task that no node can run now neither delays other lanes nor takes space from them.

The tasks and bytes of a lane are bounded, and so is the number of lanes. The store
holds the rest. If there are more shapes than lanes, shapes that some node could run
come first.

The order is that of `TaskSpec.ord`, which `core.dispatcher.admission` computes from
priority and time. `matching` reserves a worker for a lane that is blocked for too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heappop, heappush

from octaskly.core.effects import LoadQueued
from octaskly.core.events import QueuedLoaded
from octaskly.core.model.ids import TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import Requirements, requires_of, shape_of
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.scheduling.queued_task import QueuedTask, Stage

TasksById = Mapping[TaskId, QueuedTask]


class Lane:
    """The front of the queue of one shape, and the cursor of its reads."""

    def __init__(
        self,
        shape: int,
        requires: Requirements | None,
        bounds: tuple[int, int],
        cursor: int,
    ) -> None:
        self.shape = shape
        self.requires = requires
        self.queued = 0  #: tasks in memory in stage QUEUED
        self.blocked_s: float | None = None
        """Time since which no worker has room for its first task; None if one has."""
        self.has_more = False  #: the store may have more beyond the cursor
        self.was_last_read_empty = True  #: the last read returned nothing new
        self.cursor = cursor  #: all queued tasks up to this `ord` are in memory
        self._first_skipped_ord: int | None = None
        """Lowest `ord` of the tasks that were left in the store during a read."""
        self._tasks_max, self._bytes_max = bounds
        self._size_bytes = 0  #: bytes of its tasks, roughly
        self._heap: list[tuple[int, TaskId]] = []

    @property
    def is_full(self) -> bool:
        """Return True if further tasks must wait in the store."""
        return self.queued >= self._tasks_max or self._size_bytes >= self._bytes_max

    @property
    def is_overfull(self) -> bool:
        """Return True if tasks of higher priority overfilled it, so it needs a trim."""
        is_many = self.queued >= 2 * self._tasks_max
        return is_many or self._size_bytes >= 2 * self._bytes_max

    @property
    def needs_refill(self) -> bool:
        """Return True if more should be read from the store."""
        is_low = self.queued <= self._tasks_max // 2
        return self.has_more and is_low and self._size_bytes <= self._bytes_max // 2

    @property
    def is_empty(self) -> bool:
        """Return True if no task waits in it, in memory or in the store."""
        return not self.queued and not self.has_more

    def admits(self, spec: TaskSpec) -> bool:
        """Return True if a newly durable task is queued in memory now.

        Otherwise it stays in the store until a later read.
        """
        if spec.ord <= self.cursor:
            return True
        if self.has_more or self.is_full:
            self.has_more = True
            self._first_skipped_ord = (
                spec.ord
                if self._first_skipped_ord is None
                else min(self._first_skipped_ord, spec.ord)
            )
            return False
        self.cursor, self.was_last_read_empty = spec.ord, False
        return True

    def count_task(self, task: QueuedTask) -> None:
        """Count a task without putting it into the order."""
        self.queued += 1
        task.shape = self.shape
        task.size_bytes = task.size_bytes or task.spec.size_bytes
        self._size_bytes += task.size_bytes

    def push(self, task: QueuedTask) -> None:
        """Queue a task at its place in the order."""
        self.count_task(task)
        if not task.nodes_lacking_inputs:
            # A released member comes before the remaining members of its array.
            place = task.spec.ord + (task.remaining is not None)
            heappush(self._heap, (place, task.spec.id))

    def leave(self, task: QueuedTask) -> None:
        """Remove a task; its entry in the heap becomes outdated."""
        self.queued -= 1
        self._size_bytes -= task.size_bytes

    def first(self, tasks: TasksById) -> QueuedTask | None:
        """Return the first task that every worker of its shape may run, if any."""
        heap = self._heap
        while heap:
            task = tasks.get(heap[0][1])
            if (
                task is not None
                and task.stage is Stage.QUEUED
                and not task.nodes_lacking_inputs
            ):
                return task
            heappop(heap)
        return None

    @property
    def is_blocked(self) -> bool:
        """Return True if no worker had room for its first task."""
        return self.blocked_s is not None

    def mark_blocked(self, now_s: float) -> None:
        """Note that no worker has room for its first task."""
        if self.blocked_s is None:
            self.blocked_s = now_s

    def trim_lane(self, tasks: TasksById) -> list[QueuedTask]:
        """Drop the tasks at the end of the lane, which the store holds; return them.

        Tasks that are not durable stay, and so do arrays, because the store may have
        another state of them.
        """
        queued = ((place, tasks.get(task_id)) for place, task_id in sorted(self._heap))
        waiting = [(p, t) for p, t in queued if t and t.stage is Stage.QUEUED]
        count = size = 0
        for place, task in waiting:
            if count and (count >= self._tasks_max or size >= self._bytes_max):
                break
            count, size, self.cursor = count + 1, size + task.size_bytes, place
        dropped = [
            t for _, t in waiting[count:] if not t.commit_number and t.remaining is None
        ]
        self.was_last_read_empty, self.has_more = False, True
        gone = {task.spec.id for task in dropped}
        self._heap = [
            (place, task.spec.id)
            for place, task in waiting
            if not task.nodes_lacking_inputs and task.spec.id not in gone
        ]
        for task in dropped:
            self.leave(task)
        return dropped

    def count_before(self, ord_: int, tasks: TasksById) -> int:
        """Return the number of tasks in memory with a lower `ord`."""
        ahead = (tasks.get(task_id) for place, task_id in self._heap if place < ord_)
        return sum(1 for task in ahead if task and task.stage is Stage.QUEUED)

    def next_read_range(self, load_tasks: int) -> tuple[int, int]:
        """Return the `ord` after which to read, and how many tasks to read."""
        self._first_skipped_ord = None
        # Two streams can use the same `ord`, so the last one is read again.
        after_ord = self.cursor - (not self.was_last_read_empty)
        return after_ord, min(load_tasks, max(1, self._tasks_max - self.queued))

    def note_read(self, last_ord: int, *, is_new: bool, has_more: bool) -> None:
        """Move the cursor after a read."""
        if self._first_skipped_ord is not None:
            # The read may predate the skipped task, which may precede its results.
            last_ord, has_more = min(last_ord, self._first_skipped_ord - 1), True
        self.cursor = max(self.cursor, last_ord)
        self.was_last_read_empty = not is_new
        self.has_more = has_more


class Lanes:
    """All lanes, and the read of the store that may be pending."""

    def __init__(self, limits: Limits, can_run: Callable[[Requirements], bool]) -> None:
        self._limits = limits
        self._can_run = can_run
        self._lanes: dict[int, Lane] = {}
        self._pending_read: tuple[int, int] | None = (
            None  #: shape, and the `ord` after which it reads
        )
        self._stale_reads: set[tuple[int, int]] = set()  #: answers to be ignored
        self._restart_count = 0  #: each restart has a first cursor of its own
        self._are_shapes_known = False  #: the shapes in the store are known
        self._has_unlisted_shapes = False  #: some shapes have no lane
        self._has_runnable_unlisted = (
            False  #: and a node could run at least one of these
        )
        self._has_skipped_shape = False  #: a shape got no lane since the last restart
        self.needs_restart = False  #: restart once no read is pending

    @property
    def unconstrained(self) -> Lane:
        """The lane of the tasks without requirements."""
        return self._lanes.get(0) or self._open_lane(0, None)

    @property
    def is_reading(self) -> bool:
        """Return True if a read of the store is pending."""
        return self._pending_read is not None

    @property
    def queued(self) -> int:
        """Number of queued tasks in memory."""
        return sum(lane.queued for lane in self._lanes.values())

    @property
    def has_constrained(self) -> bool:
        """Return True if there is a lane for tasks with requirements."""
        return len(self._lanes) > 1

    def constrained(self) -> Iterator[tuple[int, Lane]]:
        """Yield the lanes for tasks with requirements, and their shapes."""
        return ((shape, lane) for shape, lane in self._lanes.items() if shape)

    def get(self, shape: int) -> Lane | None:
        """Return the lane of a shape, if it has one."""
        return self._lanes.get(shape)

    def lane_of(self, task: QueuedTask) -> Lane:
        """Return the lane of a task; open it if necessary, beyond the bound too."""
        if task.shape is None:
            task.shape = shape_of(task.spec.options)
        return self._lanes.get(task.shape) or self._open_lane(task.shape, task.requires)

    def clear_lanes(self) -> None:
        """Drop all lanes at the end of an epoch."""
        self._lanes.clear()
        if self._pending_read is not None:
            self._stale_reads.add(self._pending_read)
        self._pending_read = None
        self.needs_restart = self._are_shapes_known = False
        self._has_unlisted_shapes = self._has_runnable_unlisted = (
            self._has_skipped_shape
        ) = False

    def restart(self, kept_tasks: Iterable[QueuedTask]) -> None:
        """Read the queue again from its front; `kept_tasks` stay in memory."""
        self._restart_count += 1
        self._lanes.clear()
        self.needs_restart = self._are_shapes_known = self._has_runnable_unlisted = (
            self._has_skipped_shape
        ) = False
        self._has_unlisted_shapes = True
        self._open_lane(0, None)
        for task in kept_tasks:
            self.lane_of(task).push(task)

    def is_lane_empty(self, spec: TaskSpec) -> bool:
        """Return True if no task waits in the spec's lane, in memory or the store."""
        shape = shape_of(spec.options)
        if self.needs_restart or (
            self._pending_read is not None and self._pending_read[0] == shape
        ):
            return False
        lane = self._lanes.get(shape)
        if lane is None:
            return self._are_shapes_known and not self._has_unlisted_shapes
        return lane.is_empty

    def count_tasks_before(self, spec: TaskSpec, tasks: TasksById) -> tuple[int, bool]:
        """Return the number of tasks in memory before `spec`; True if these are all."""
        lanes = self._lanes.values()
        count = sum(lane.count_before(spec.ord, tasks) for lane in lanes)
        are_all = all(not each.has_more or each.cursor >= spec.ord for each in lanes)
        return count, are_all and not self._has_unlisted_shapes

    def trim_lanes(self, tasks: TasksById) -> list[QueuedTask]:
        """Drop the ends of overfull lanes to bound memory; return the dropped tasks."""
        # A lane with a pending read stays: its answer would move the cursor too far.
        read_shape = None if self._pending_read is None else self._pending_read[0]
        dropped = []
        for shape, lane in self._lanes.items():
            if lane.is_overfull and shape != read_shape:
                dropped += lane.trim_lane(tasks)
        return dropped

    def admitting_lane(self, spec: TaskSpec) -> Lane | None:
        """Return the lane that takes a new task; None if it waits in the store."""
        shape = shape_of(spec.options)
        lane = self._lanes.get(shape)
        if lane is None:
            requires = requires_of(spec.options)
            if not self._may_open_lane(requires):
                self._has_unlisted_shapes = self._has_skipped_shape = True
                return None
            lane = self._open_lane(shape, requires)
        return lane if lane.admits(spec) else None

    def on_workers_changed(self) -> None:
        """Restart if other shapes may deserve a lane now."""
        has_read_shapes = self._are_shapes_known or self._has_skipped_shape
        self.needs_restart = self.needs_restart or (
            has_read_shapes and self._has_unlisted_shapes
        )

    # --- Reading.

    def next_read(self) -> LoadQueued | None:
        """Return the next read; None if nothing is needed or a read is pending."""
        if self._pending_read is not None:
            return None
        self._close_empty_lanes()
        for shape, lane in self._lanes.items():
            if lane.needs_refill:
                del self._lanes[shape]
                self._lanes[shape] = lane  # Last, so that lanes take turns.
                return self._read_lane(shape, lane)
        return None

    def _read_lane(self, shape: int, lane: Lane) -> LoadQueued:
        after_ord, limit = lane.next_read_range(self._limits.load_tasks)
        while (shape, after_ord) in self._stale_reads:
            after_ord -= 1
        self._pending_read = (shape, after_ord)
        return LoadQueued(after_ord, limit, shape)

    def on_answer(self, answer: QueuedLoaded) -> bool:
        """Process an answer of the store; return True if it is the expected one."""
        key = (answer.shape, answer.after_ord)
        if key != self._pending_read:
            self._stale_reads.discard(key)
            return False
        self._pending_read = None
        if not self.needs_restart and not answer.shape and not self._are_shapes_known:
            self._add_shapes(answer.other_shapes)
        return True

    def _add_shapes(self, shapes: Iterable[tuple[int, Requirements]]) -> None:
        """Open lanes for shapes in the store, first for those that a node could run."""
        self._are_shapes_known, self._has_unlisted_shapes = True, False
        new_shapes = [pair for pair in shapes if pair[0] not in self._lanes]
        new_shapes.sort(key=lambda pair: not self._can_run(pair[1]))
        free_count = max(0, self._limits.lanes - len(self._lanes))
        for shape, requires in new_shapes[:free_count]:
            self._open_lane(shape, requires).has_more = True
        unlisted = new_shapes[free_count:]
        self._has_unlisted_shapes = bool(unlisted) or self._has_skipped_shape
        self._has_runnable_unlisted |= bool(unlisted) and self._can_run(unlisted[0][1])

    # --- Opening and closing lanes.

    def _open_lane(self, shape: int, requires: Requirements | None) -> Lane:
        limits = self._limits
        tasks_max, bytes_max = limits.window_tasks, limits.window_bytes
        if shape:
            tasks_max = min(tasks_max, limits.lane_tasks)
            bytes_max = min(bytes_max, limits.lane_bytes)
        # The first cursor is below every `ord` and differs after each restart. So an
        # answer from before the restart is not taken for a new one.
        lane = Lane(shape, requires, (tasks_max, bytes_max), -self._restart_count)
        lane.has_more = self._has_unlisted_shapes or (
            shape != 0 and not self._are_shapes_known
        )
        self._lanes[shape] = lane
        return lane

    def _may_open_lane(self, requires: Requirements | None) -> bool:
        """Return True if a shape without a lane may get one now."""
        has_room = len(self._lanes) < self._limits.lanes
        if requires is None or (has_room and not self._has_unlisted_shapes):
            return True
        if not self._can_run(requires):
            return False
        if has_room and not self._has_runnable_unlisted:
            return True
        if not self._has_runnable_unlisted:
            self._has_runnable_unlisted = True
            self.needs_restart = any(
                lane.requires is not None and not self._can_run(lane.requires)
                for lane in self._lanes.values()
            )
        return False

    def _close_empty_lanes(self) -> None:
        """Close empty lanes; restart if that makes enough room for other shapes."""
        if len(self._lanes) <= 1:
            return
        for shape in [s for s, lane in self._lanes.items() if s and lane.is_empty]:
            del self._lanes[shape]
        if self._has_runnable_unlisted and len(self._lanes) <= self._limits.lanes // 2:
            self.needs_restart = True
