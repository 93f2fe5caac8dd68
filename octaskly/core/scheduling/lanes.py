"""The queue by what its tasks ask for: lanes, each a window over the store.

Owns the order of what waits, and how far the store was read. Tasks that ask for the
same (most ask for nothing) fit the same nodes, so they wait in one lane, oldest first,
and the first of a lane tells whether any of it can run. What no node can run now holds
up nobody else, and takes no room from others.

A lane holds a bounded number of tasks and bytes, and the number of lanes is bounded;
the store holds the rest. Where there are more shapes than lanes, those that some node
could run come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heappop, heappush

from octaskly.core.effects import Load
from octaskly.core.events import Loaded
from octaskly.core.model.ids import TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import Requires, requires_of, shape_of
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.scheduling.queued_task import InHand, Stage

Tasks = Mapping[TaskId, InHand]


class Lane:
    """The front of the queue of one shape, and how far the store was read for it."""

    def __init__(
        self,
        shape: int,
        requires: Requires | None,
        bounds: tuple[int, int],
        cursor: int,
    ) -> None:
        self.shape = shape
        self.requires = requires
        self.queued = 0  #: tasks in stage QUEUED that are in hand
        self.blocked_s: float | None = None
        """Since when its first task finds no worker with room."""
        self.has_more = False  #: the store may have more beyond the cursor
        self.is_stuck = True  #: the last read brought nothing new
        self.cursor = cursor  #: all that the store has queued up to here is in hand
        self._left: int | None = None
        """The first place of what was left in the store during a read."""
        self._tasks_max, self._bytes_max = bounds
        self._size = 0  #: bytes of its tasks, roughly
        self._heap: list[tuple[int, TaskId]] = []

    @property
    def is_full(self) -> bool:
        """Whether it takes no more tasks that may as well wait in the store."""
        return self.queued >= self._tasks_max or self._size >= self._bytes_max

    @property
    def is_overfull(self) -> bool:
        """Whether so much came with a higher priority that the end must go."""
        is_many = self.queued >= 2 * self._tasks_max
        return is_many or self._size >= 2 * self._bytes_max

    @property
    def is_hungry(self) -> bool:
        """Whether more should be read."""
        is_low = self.queued <= self._tasks_max // 2
        return self.has_more and is_low and self._size <= self._bytes_max // 2

    @property
    def is_over(self) -> bool:
        """Whether nothing waits in it, here or in the store."""
        return not self.queued and not self.has_more

    def admits(self, spec: TaskSpec) -> bool:
        """Whether a task that became durable is taken now, or left in the store."""
        if spec.ord <= self.cursor:
            return True
        if self.has_more or self.is_full:
            self.has_more = True
            self._left = spec.ord if self._left is None else min(self._left, spec.ord)
            return False
        self.cursor, self.is_stuck = spec.ord, False
        return True

    def enter(self, task: InHand) -> None:
        """Count a task that is not to wait."""
        self.queued += 1
        task.shape = self.shape
        task.size = task.size or task.spec.size_bytes
        self._size += task.size

    def push(self, task: InHand) -> None:
        """Let a task wait in its turn."""
        self.enter(task)
        if not task.lacking:
            # A member that came back stands before those that never left their array.
            place = task.spec.ord + (task.rest is not None)
            heappush(self._heap, (place, task.spec.id))

    def leave(self, task: InHand) -> None:
        """Take a task out; its line in the heap becomes outdated."""
        self.queued -= 1
        self._size -= task.size

    def first(self, tasks: Tasks) -> InHand | None:
        """Return the task that is next, if any worker of its shape will do for it."""
        heap = self._heap
        while heap:
            task = tasks.get(heap[0][1])
            if task is not None and task.stage is Stage.QUEUED and not task.lacking:
                return task
            heappop(heap)
        return None

    @property
    def is_blocked(self) -> bool:
        """Whether its first task found no worker with room."""
        return self.blocked_s is not None

    def block(self, now_s: float) -> None:
        """Its first task finds no worker with room."""
        if self.blocked_s is None:
            self.blocked_s = now_s

    def trim(self, tasks: Tasks) -> list[InHand]:
        """Leave the end of the lane to the store again; return what that is.

        Not what the store may see otherwise: what is not durable yet, and arrays.
        """
        queued = ((place, tasks.get(task_id)) for place, task_id in sorted(self._heap))
        waiting = [(p, t) for p, t in queued if t and t.stage is Stage.QUEUED]
        count = size = 0
        for place, task in waiting:
            if count and (count >= self._tasks_max or size >= self._bytes_max):
                break
            count, size, self.cursor = count + 1, size + task.size, place
        dropped = [t for _, t in waiting[count:] if not t.number and t.rest is None]
        self.is_stuck, self.has_more = False, True
        gone = {task.spec.id for task in dropped}
        self._heap = [
            (place, task.spec.id)
            for place, task in waiting
            if not task.lacking and task.spec.id not in gone
        ]
        for task in dropped:
            self.leave(task)
        return dropped

    def count_before(self, ord_: int, tasks: Tasks) -> int:
        """Return how many tasks in hand stand before this place."""
        ahead = (tasks.get(task_id) for place, task_id in self._heap if place < ord_)
        return sum(1 for task in ahead if task and task.stage is Stage.QUEUED)

    def asked(self, load_tasks: int) -> tuple[int, int]:
        """Return after which place to read how many tasks."""
        self._left = None
        # Two streams can give one `ord`, so the last one is read again.
        after_ord = self.cursor - (not self.is_stuck)
        return after_ord, min(load_tasks, max(1, self._tasks_max - self.queued))

    def read(self, last_ord: int, *, is_news: bool, has_more: bool) -> None:
        """Note what a read brought."""
        if self._left is not None:
            # It may be older than that, and stand before what it brought.
            last_ord, has_more = min(last_ord, self._left - 1), True
        self.cursor = max(self.cursor, last_ord)
        self.is_stuck = not is_news
        self.has_more = has_more


class Lanes:
    """All lanes, and the one read of the store that may be under way."""

    def __init__(self, limits: Limits, can_run: Callable[[Requires], bool]) -> None:
        self._limits = limits
        self._can_run = can_run
        self._lanes: dict[int, Lane] = {}
        self._reading: tuple[int, int] | None = None  #: shape, and after which `ord`
        self._stale_reads: set[tuple[int, int]] = set()  #: answers that do not count
        self._starts = 0  #: each start from the front has its own cursor
        self._is_listed = False  #: the shapes in the store are known
        self._has_hidden = False  #: some shapes wait in the store alone
        self._is_crowded = False  #: and a node could run at least one of these
        self._is_left = False  #: a shape was left in the store since the last start
        self.is_dirty = False  #: start again once no read is under way

    @property
    def plain(self) -> Lane:
        """The lane of the tasks that ask for nothing."""
        return self._lanes.get(0) or self._open(0, None)

    @property
    def is_reading(self) -> bool:
        """Whether an answer of the store is awaited."""
        return self._reading is not None

    @property
    def queued(self) -> int:
        """Tasks in hand that wait."""
        return sum(lane.queued for lane in self._lanes.values())

    @property
    def has_others(self) -> bool:
        """Whether there are lanes whose tasks ask for something."""
        return len(self._lanes) > 1

    def others(self) -> Iterator[tuple[int, Lane]]:
        """Yield the lanes whose tasks ask for something, with their shapes."""
        return ((shape, lane) for shape, lane in self._lanes.items() if shape)

    def get(self, shape: int) -> Lane | None:
        """Return the lane of a shape, if it is in hand."""
        return self._lanes.get(shape)

    def of(self, task: InHand) -> Lane:
        """Return the lane of a task that must be in hand, whatever the bounds."""
        if task.shape is None:
            task.shape = shape_of(task.spec.options)
        return self._lanes.get(task.shape) or self._open(task.shape, task.requires)

    def forget(self) -> None:
        """Drop everything: the reign is over."""
        self._lanes.clear()
        if self._reading is not None:
            self._stale_reads.add(self._reading)
        self._reading = None
        self.is_dirty = self._is_listed = False
        self._has_hidden = self._is_crowded = self._is_left = False

    def restart(self, kept: Iterable[InHand]) -> None:
        """Begin to read everything again, but for `kept`."""
        self._starts += 1
        self._lanes.clear()
        self.is_dirty = self._is_listed = self._is_crowded = self._is_left = False
        self._has_hidden = True
        self._open(0, None)
        for task in kept:
            self.of(task).push(task)

    def is_idle(self, spec: TaskSpec) -> bool:
        """Whether nothing waits, here or in the store, in the lane of a task."""
        shape = shape_of(spec.options)
        if self.is_dirty or (self._reading is not None and self._reading[0] == shape):
            return False
        lane = self._lanes.get(shape)
        if lane is None:
            return self._is_listed and not self._has_hidden
        return lane.is_over

    def count_before(self, spec: TaskSpec, tasks: Tasks) -> tuple[int, bool]:
        """Return how many tasks stand before one, and whether these are all."""
        lanes = self._lanes.values()
        count = sum(lane.count_before(spec.ord, tasks) for lane in lanes)
        are_all = all(not each.has_more or each.cursor >= spec.ord for each in lanes)
        return count, are_all and not self._has_hidden

    def trim(self, tasks: Tasks) -> list[InHand]:
        """Return what is left to the store again, lest memory follow the queue."""
        # The answer to a read would be taken to reach further than the lane then does.
        reading = None if self._reading is None else self._reading[0]
        dropped = []
        for shape, lane in self._lanes.items():
            if lane.is_overfull and shape != reading:
                dropped += lane.trim(tasks)
        return dropped

    def entry(self, spec: TaskSpec) -> Lane | None:
        """Return the lane that takes a new task; None: it is left in the store."""
        shape = shape_of(spec.options)
        lane = self._lanes.get(shape)
        if lane is None:
            requires = requires_of(spec.options)
            if not self._makes_room(requires):
                self._has_hidden = self._is_left = True
                return None
            lane = self._open(shape, requires)
        return lane if lane.admits(spec) else None

    def new_workers(self) -> None:
        """Other shapes may be worth a lane than before."""
        is_known = self._is_listed or self._is_left
        self.is_dirty = self.is_dirty or (is_known and self._has_hidden)

    # --- Reading.

    def next_read(self) -> Load | None:
        """Return what to read next, if anything, and no read is under way."""
        if self._reading is not None:
            return None
        self._close_some()
        for shape, lane in self._lanes.items():
            if lane.is_hungry:
                del self._lanes[shape]
                self._lanes[shape] = lane  # Each in its turn.
                return self._read(shape, lane)
        return None

    def _read(self, shape: int, lane: Lane) -> Load:
        after_ord, limit = lane.asked(self._limits.load_tasks)
        while (shape, after_ord) in self._stale_reads:
            after_ord -= 1
        self._reading = (shape, after_ord)
        return Load(after_ord, limit, shape)

    def answered(self, answer: Loaded) -> bool:
        """Count an answer of the store; tell whether it is the one that is awaited."""
        key = (answer.shape, answer.after_ord)
        if key != self._reading:
            self._stale_reads.discard(key)
            return False
        self._reading = None
        if not self.is_dirty and not answer.shape and not self._is_listed:
            self._list(answer.shapes)
        return True

    def _list(self, shapes: Iterable[tuple[int, Requires]]) -> None:
        """Give lanes to shapes that wait in the store, first to those that can run."""
        self._is_listed, self._has_hidden = True, False
        fresh = [pair for pair in shapes if pair[0] not in self._lanes]
        fresh.sort(key=lambda pair: not self._can_run(pair[1]))
        room = max(0, self._limits.lanes - len(self._lanes))
        for shape, requires in fresh[:room]:
            self._open(shape, requires).has_more = True
        hidden = fresh[room:]
        self._has_hidden = bool(hidden) or self._is_left
        self._is_crowded |= bool(hidden) and self._can_run(hidden[0][1])

    # --- Lanes come and go.

    def _open(self, shape: int, requires: Requires | None) -> Lane:
        limits = self._limits
        tasks_max, bytes_max = limits.window_tasks, limits.window_bytes
        if shape:
            tasks_max = min(tasks_max, limits.lane_tasks)
            bytes_max = min(bytes_max, limits.lane_bytes)
        # Below every `ord`, and never the same twice, so that the answer to a read of
        # an earlier reign is not taken for this one.
        lane = Lane(shape, requires, (tasks_max, bytes_max), -self._starts)
        lane.has_more = self._has_hidden or (shape != 0 and not self._is_listed)
        self._lanes[shape] = lane
        return lane

    def _makes_room(self, requires: Requires | None) -> bool:
        """Whether a shape without a lane may have one now."""
        has_room = len(self._lanes) < self._limits.lanes
        if requires is None or (has_room and not self._has_hidden):
            return True
        if not self._can_run(requires):
            return False
        if has_room and not self._is_crowded:
            return True
        if not self._is_crowded:
            self._is_crowded = True
            self.is_dirty = any(
                lane.requires is not None and not self._can_run(lane.requires)
                for lane in self._lanes.values()
            )
        return False

    def _close_some(self) -> None:
        """Let go of lanes that are over, and look for others in the store."""
        if len(self._lanes) <= 1:
            return
        for shape in [s for s, lane in self._lanes.items() if s and lane.is_over]:
            del self._lanes[shape]
        if self._is_crowded and len(self._lanes) <= self._limits.lanes // 2:
            self.is_dirty = True
