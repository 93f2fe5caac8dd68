"""Lanes: the front of the queue in memory, split by requirements and submitter.

Lanes keep queued tasks in order, and record how far the store was read. A lane has the
single tasks, or the arrays, of one submitter with equal requirements. So a task that no
node can run now neither delays other lanes nor takes space from them, and a million
tasks of one submitter in the store do not hide the tasks and arrays of another.

The tasks of a lane that exclude the same workers form a group: most exclude none, some
those that refused them. So the first task of a group stands for all of it.

A group has flows: its single tasks, or one for each array. The order in a flow is that
of `TaskSpec.ord`, which `core.dispatcher.admission` computes from priority and time,
and for members of an array that of their numbers.
`turns` decides between flows of equal priority.

The tasks and bytes of a lane are bounded, and so is the number of lanes for tasks with
requirements. The store holds the rest. If there are more such lanes, those that some
node could run come first, and the submitters take turns. `matching` reserves a worker
for a group that is blocked for too long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from operator import itemgetter

from octaskly.core.effects import LoadQueued
from octaskly.core.events import QueuedLoaded
from octaskly.core.model.arrays import lane_key_of
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import Requirements, requires_of, shape_of
from octaskly.core.model.tasks import MEMBERS_LANE, PRIORITY_SHIFT, LaneKey, TaskSpec
from octaskly.core.replies import QueuedAhead
from octaskly.core.scheduling.queued_task import QueuedTask, Stage
from octaskly.core.scheduling.task_table import TaskTable
from octaskly.core.scheduling.turns import FlowKey, Turns

BEFORE_ALL = -1  #: below every `ord`
LANES_KEPT = 2
"""Lanes that stay open though they are empty: that for members, and one beside it.

A client that waits for each of its tasks needs it again.
"""

Turn = tuple[int, int, float, int, float, int]
"""Sort key of flows: the lowest comes first."""

FlowEntry = tuple[int, int, TaskId]
"""Sort key of a task in its flow: its place, and its number if it is a member."""


class Flow:
    """Queued tasks that follow each other: an array, or single tasks of a group."""

    def __init__(self, key: FlowKey, excluded: frozenset[NodeId], turns: Turns) -> None:
        self.queued = 0  #: tasks in stage QUEUED
        self._excluded = excluded
        self._submitter, self._share = turns.join(key)
        self._submitter.waiting += 1
        self._share.waiting += 1
        self._heap: list[FlowEntry] = []

    def leave_turns(self, *, is_empty: bool) -> None:
        """Drop the flow, because no task waits in it, or to read it again."""
        self._submitter.leave(is_empty=is_empty)
        self._share.leave(is_empty=is_empty)

    def turn(self, place: int | None = None) -> Turn:
        """Return when it is the turn of its first task, or of one at another place."""
        if place is None:
            place = self._heap[0][0]
        of_submitter, of_flow = self._submitter, self._share
        return (
            place >> PRIORITY_SHIFT,
            of_submitter.held,
            of_submitter.tag,
            of_flow.held,
            of_flow.tag,
            place,
        )

    def push(self, task: QueuedTask) -> None:
        """Put a task at its place in the order."""
        # A released member comes before the remaining members of its array.
        task.place = task.ord + (task.remaining is not None)
        heappush(self._heap, (task.place, task.number, task.spec.id))

    def first(self, tasks: TaskTable) -> QueuedTask | None:
        """Return the first task, if any."""
        heap = self._heap
        while heap:
            place, _, task_id = heap[0]
            task = tasks.get(task_id)
            if (
                task is not None
                and task.place == place
                and task.excluded == self._excluded
                and task.stage is Stage.QUEUED
            ):
                return task
            heappop(heap)
        return None

    def entries(self, tasks: TaskTable) -> list[tuple[int, QueuedTask]]:
        """Return its tasks with their places, in no order."""
        entries = dict.fromkeys(self._heap)  # A task may have returned to its place.
        found = ((place, tasks.get(task_id)) for place, _, task_id in entries)
        return [
            (place, task)
            for place, task in found
            if task
            and task.place == place
            and task.excluded == self._excluded
            and task.stage is Stage.QUEUED
        ]

    def drop_entries(self, dropped: set[TaskId]) -> None:
        """Drop these tasks, and outdated entries, from the order."""
        self._heap = [entry for entry in self._heap if entry[2] not in dropped]
        heapify(self._heap)


class Group:
    """Flows of a lane whose tasks the same workers may run."""

    def __init__(self, lane: LaneKey, excluded: frozenset[NodeId]) -> None:
        self.key = lane, excluded
        self.excluded = excluded  #: workers that must not get its tasks
        self.is_constrained = bool(lane.shape or excluded)
        """Not every worker may run its tasks."""
        self.flows: dict[FlowKey, Flow] = {}
        self.blocked_s: float | None = None
        """Time since which no worker has room for its first task; None if one has."""


class Lane:
    """Flows of the queue that are read together, and the cursor of the reads."""

    def __init__(
        self, key: LaneKey, requires: Requirements | None, cursor: int, turns: Turns
    ) -> None:
        self.key = key
        self.requires = requires
        self.groups: dict[frozenset[NodeId], Group] = {}
        """Its tasks that wait, by the workers that must not get them.

        Some may be empty; `matching` deletes these.
        """
        self.queued = 0  #: tasks in memory in stage QUEUED
        self.has_more = False  #: the store may have more beyond the cursor
        self.was_last_read_empty = True  #: the last read returned nothing new
        self.cursor = cursor  #: all queued tasks up to this `ord` are in memory
        self._first_skipped_ord: int | None = None
        """Lowest `ord` of the tasks that were left in the store during a read."""
        self.tasks_max = self.bytes_max = 1  #: its part of the window
        self.size_bytes = 0  #: of its tasks, roughly
        self._turns = turns

    @property
    def is_full(self) -> bool:
        """Return True if further tasks must wait in the store."""
        return self.queued >= self.tasks_max or self.size_bytes >= self.bytes_max

    @property
    def is_overfull(self) -> bool:
        """Return True if tasks of higher priority overfilled it, so it needs a trim."""
        is_many = self.queued >= 2 * self.tasks_max
        return is_many or self.size_bytes >= 2 * self.bytes_max

    @property
    def needs_refill(self) -> bool:
        """Return True if more should be read from the store, if it has more."""
        is_low = self.queued <= self.tasks_max // 2
        return is_low and self.size_bytes <= self.bytes_max // 2

    @property
    def is_empty(self) -> bool:
        """Return True if no task waits in it, in memory or in the store."""
        return not self.queued and not self.has_more

    def flows(self) -> list[Flow]:
        """Return the flows of all its groups."""
        return [f for group in self.groups.values() for f in group.flows.values()]

    def admits(self, ord_: int) -> bool:
        """Return True if a newly durable task is queued in memory now.

        Otherwise it stays in the store until a later read.
        """
        if ord_ <= self.cursor:
            return True
        if self.has_more or self.is_full:
            self.skip(ord_)
            return False
        self.cursor, self.was_last_read_empty = ord_, False
        return True

    def skip(self, ord_: int) -> None:
        """Leave a task that just became durable in the store."""
        self.has_more = True
        first = self._first_skipped_ord
        self._first_skipped_ord = ord_ if first is None else min(first, ord_)

    def push(self, task: QueuedTask) -> None:
        """Queue a task at its place in the order."""
        self.queued += 1
        task.lane, task.excluded = self.key, task.exclusions
        task.size_bytes = task.size_bytes or task.spec.size_bytes
        self.size_bytes += task.size_bytes
        group = self.groups.get(task.excluded)
        if group is None:
            group = self.groups[task.excluded] = Group(self.key, task.excluded)
        key = task.flow
        flow = group.flows.get(key)
        if flow is None:
            flow = group.flows[key] = Flow(key, task.excluded, self._turns)
        flow.queued += 1
        flow.push(task)

    def leave(self, task: QueuedTask) -> None:
        """Remove a task; its entry in the order becomes outdated."""
        self.queued -= 1
        self.size_bytes -= task.size_bytes
        group = self.groups[task.excluded]
        flow = group.flows[task.flow]
        flow.queued -= 1
        if not flow.queued:
            del group.flows[task.flow]
            flow.leave_turns(is_empty=True)

    def trim_lane(self, tasks: TaskTable) -> list[QueuedTask]:
        """Drop the tasks at the end of the lane, which the store holds; return them.

        Tasks that are not durable stay, and so do arrays, because the store may have
        another state of them.
        """
        flows = self.flows()
        waiting = [entry for flow in flows for entry in flow.entries(tasks)]
        waiting.sort(key=lambda entry: (entry[0], entry[1].number, entry[1].spec.id))
        count = size = last_ord = 0
        for place, task in waiting:
            if count and (count >= self.tasks_max or size >= self.bytes_max):
                break
            count, size, last_ord = count + 1, size + task.size_bytes, place
        # A task that was found at a worker may lie beyond what was read.
        self.cursor = min(self.cursor, last_ord)
        dropped = [
            t for _, t in waiting[count:] if not t.commit_number and t.remaining is None
        ]
        self.was_last_read_empty, self.has_more = False, True
        gone = {task.spec.id for task in dropped}
        for flow in flows:
            flow.drop_entries(gone)
        for task in dropped:
            self.leave(task)
        return dropped

    def next_read_range(self, load_tasks: int) -> tuple[int, int]:
        """Return the `ord` after which to read, and how many tasks to read."""
        self._first_skipped_ord = None
        # Two streams can use the same `ord`, so the last one is read again.
        after_ord = self.cursor - (not self.was_last_read_empty)
        return after_ord, min(load_tasks, max(1, self.tasks_max - self.queued))

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

    def __init__(
        self,
        limits: Limits,
        turns: Turns,
        can_run: Callable[[Requirements], bool],
    ) -> None:
        self._limits = limits
        self._turns = turns
        self._can_run = can_run
        self._lanes: dict[LaneKey, Lane] = {}
        self._reading: LaneKey | None = None  #: lane of the read that is pending
        self._constrained_count = 0  #: number of lanes for tasks with requirements
        self._are_keys_known = False  #: all lanes in the store are known
        self._has_unopened = False  #: some of them are not open
        self._has_runnable_unopened = (
            False  #: and a node could run at least one of these
        )
        self._has_skipped = False  #: a lane was not opened since the last restart
        self.needs_restart = False  #: restart once no read is pending

    @property
    def has_unopened(self) -> bool:
        """Return True if there are lanes in the store of which nothing is in memory."""
        return self._has_unopened

    @property
    def has_constrained(self) -> bool:
        """Return True if there is a lane for tasks with requirements."""
        return self._constrained_count > 0

    def constrained(self) -> Iterator[Lane]:
        """Yield the lanes for tasks with requirements."""
        return (lane for key, lane in self._lanes.items() if key.shape)

    def all_lanes(self) -> Iterator[Lane]:
        """Yield all lanes."""
        return iter(self._lanes.values())

    def groups(self) -> list[Group]:
        """Return the groups of all lanes."""
        return [g for lane in self._lanes.values() for g in lane.groups.values()]

    def unconstrained(self) -> Iterator[Lane]:
        """Yield the lanes for tasks without requirements."""
        return (lane for key, lane in self._lanes.items() if not key.shape)

    def get(self, key: LaneKey) -> Lane | None:
        """Return an open lane."""
        return self._lanes.get(key)

    def lane_of(self, task: QueuedTask) -> Lane:
        """Return the lane of a task; open it if necessary, beyond the bound too."""
        if task.lane is None:
            task.lane = lane_key_of(task.spec)
        requires = requires_of(task.spec.options)
        return self._lanes.get(task.lane) or self._open_lane(task.lane, requires)

    def restart(self, kept_tasks: Iterable[QueuedTask]) -> None:
        """Read the queue again from its front; `kept_tasks` stay in memory."""
        for lane in self._lanes.values():
            for group in lane.groups.values():
                for flow in group.flows.values():
                    flow.leave_turns(is_empty=False)
                group.flows.clear()  # A reservation may be for it.
        self._lanes.clear()
        self._constrained_count = 0
        self.needs_restart = self._are_keys_known = self._has_runnable_unopened = (
            self._has_skipped
        ) = False
        self._has_unopened = True
        self._open_lane(MEMBERS_LANE, None)
        for task in kept_tasks:
            self.lane_of(task).push(task)

    def is_lane_empty(self, key: LaneKey) -> bool:
        """Return True if no task waits in a lane, in memory or the store."""
        if self.needs_restart or self._reading == key:
            return False
        lane = self._lanes.get(key)
        if lane is None:
            return self._are_keys_known and not (key.shape and self._has_unopened)
        return lane.is_empty

    def ahead_of(self, task: QueuedTask, tasks: TaskTable) -> tuple[QueuedAhead, ...]:
        """Return what comes before a task now, by turn."""
        own, ord_ = task.flow, task.ord
        band = ord_ >> PRIORITY_SHIFT
        kind = shape_of(task.spec.options), task.exclusions
        places: dict[FlowKey, list[int]] = {}
        turns: dict[FlowKey, Turn] = {}
        unread: set[FlowKey] = set()
        own_turn: Turn | None = None
        for group in self.groups():
            lane = self._lanes[group.key[0]]
            if group.blocked_s is not None and kind != (lane.key.shape, group.excluded):
                continue  # No worker has room for its tasks, so they delay no others.
            for key, flow in group.flows.items():
                if key == own:
                    own_turn = flow.turn(ord_)
                end = ord_ if key == own else band + 1 << PRIORITY_SHIFT
                before = [place for place, _ in flow.entries(tasks) if place < end]
                if before:
                    places.setdefault(key, []).extend(before)
                    turn = flow.turn(min(before))
                    turns[key] = min(turn, turns.get(key, turn))
                if lane.has_more and lane.cursor < end:
                    unread.add(key)
        if own_turn is not None and own not in turns:
            turns = {key: turn for key, turn in turns.items() if turn < own_turn}
        return tuple(
            QueuedAhead(
                *key,
                tasks=len(places[key]),
                is_exact=key not in unread,
                takes_turns=key != own and turns[key][0] == band,
            )
            for key in sorted(turns, key=turns.__getitem__)
        )

    def returns_to_store(self, task: QueuedTask) -> bool:
        """Return True if a later read brings a task, as others may come before it."""
        lane = self.lane_of(task)
        is_beyond_reads = lane.has_more and task.ord > lane.cursor
        if is_beyond_reads:
            lane.skip(task.ord)  # A pending read may not have seen it.
        return is_beyond_reads

    def trim_lanes(self, tasks: TaskTable) -> list[QueuedTask]:
        """Drop the ends of overfull lanes to bound memory; return the dropped tasks."""
        overfull = [lane for lane in self.constrained() if lane.is_overfull]
        rest = list(self.unconstrained())
        limits = self._limits
        # One lane may keep what the others do not use, until all are too much.
        if (
            sum(lane.queued for lane in rest) >= 2 * limits.window_tasks
            or sum(lane.size_bytes for lane in rest) >= 2 * limits.window_bytes
        ):
            overfull += (lane for lane in rest if lane.is_full)
        # A lane with a pending read stays: its answer would move the cursor too far.
        dropped = []
        for lane in overfull:
            if lane.key != self._reading:
                dropped += lane.trim_lane(tasks)
        return dropped

    def admitting_lane(self, spec: TaskSpec, ord_: int) -> Lane | None:
        """Return the lane that takes a durable task; None if it waits in the store."""
        key = lane_key_of(spec)
        lane = self._lanes.get(key)
        if lane is None:
            requires = requires_of(spec.options)
            if not self._may_open_lane(key, requires):
                self._has_unopened = self._has_skipped = True
                return None
            lane = self._open_lane(key, requires)
        return lane if lane.admits(ord_) else None

    def on_workers_changed(self) -> None:
        """Restart if other lanes may deserve to be open now."""
        has_read_keys = self._are_keys_known or self._has_skipped
        self.needs_restart = self.needs_restart or (
            has_read_keys and self._has_unopened
        )

    # --- Reading.

    def next_read(self, term: int) -> LoadQueued | None:
        """Return the next read; None if nothing is needed or a read is pending."""
        if self._reading is not None:
            return None
        if len(self._lanes) > LANES_KEPT or self._has_unopened:
            self._close_empty_lanes()
        for key, lane in self._lanes.items():
            if lane.has_more and lane.needs_refill:
                del self._lanes[key]
                self._lanes[key] = lane  # Last, so that lanes take turns.
                self._reading = key
                after_ord, limit = lane.next_read_range(self._limits.load_tasks)
                return LoadQueued(term, after_ord, limit, key)
        return None

    def on_answer(self, answer: QueuedLoaded) -> None:
        """Process the answer of the store to the pending read."""
        self._reading = None
        is_listing = answer.lane == MEMBERS_LANE and not self._are_keys_known
        if is_listing and not self.needs_restart:
            self._add_lanes(answer.other_lanes)

    def _add_lanes(self, listed: Iterable[tuple[LaneKey, Requirements | None]]) -> None:
        """Open lanes for the tasks in the store, first those that a node could run.

        All lanes without requirements are opened. The others are given to submitters
        in turn, so none gets more than its share.
        """
        self._are_keys_known, self._has_unopened = True, False
        counts: Counter[str] = Counter(
            lane.key.submitter for lane in self.constrained()
        )
        ranked: list[tuple[bool, int, LaneKey, Requirements]] = []
        for key, requires in listed:
            if key in self._lanes:
                continue
            if requires is None or not key.shape:
                self._open_lane(key, None).has_more = True
                continue
            ranked.append(
                (not self._can_run(requires), counts[key.submitter], key, requires)
            )
            counts[key.submitter] += 1
        ranked.sort(key=itemgetter(0, 1))
        free_count = max(0, self._limits.lanes - self._constrained_count)
        for _, _, key, requires in ranked[:free_count]:
            self._open_lane(key, requires).has_more = True
        unopened = ranked[free_count:]
        self._has_unopened = bool(unopened) or self._has_skipped
        self._has_runnable_unopened |= bool(unopened) and not unopened[0][0]

    # --- Opening and closing lanes.

    def _open_lane(self, key: LaneKey, requires: Requirements | None) -> Lane:
        lane = Lane(key, requires, BEFORE_ALL, self._turns)
        lane.has_more = key != MEMBERS_LANE and not self._are_keys_known
        if key.shape or key == MEMBERS_LANE:
            lane.has_more |= self._has_unopened
        self._lanes[key] = lane
        self._constrained_count += key.shape != 0
        self._divide_window()
        return lane

    def _divide_window(self) -> None:
        """Divide the window among the lanes for tasks without requirements."""
        limits = self._limits
        count = sum(not key.shape and key != MEMBERS_LANE for key in self._lanes)
        for key, lane in self._lanes.items():
            if key.shape:
                lane.tasks_max = min(limits.window_tasks, limits.lane_tasks)
                lane.bytes_max = min(limits.window_bytes, limits.lane_bytes)
            else:
                # Few members are ever released, so their lane counts for nothing.
                parts = 1 if key == MEMBERS_LANE else count
                lane.tasks_max = max(1, limits.window_tasks // parts)
                lane.bytes_max = max(1, limits.window_bytes // parts)

    def _may_open_lane(self, key: LaneKey, requires: Requirements | None) -> bool:
        """Return True if a lane may be opened now."""
        counts = Counter(lane.key.submitter for lane in self.constrained())
        has_room = counts.total() < self._limits.lanes
        if requires is None or not key.shape or (has_room and not self._has_unopened):
            return True
        if not self._can_run(requires):
            return False
        if has_room and not self._has_runnable_unopened:
            return True
        if not self._has_runnable_unopened:
            self._has_runnable_unopened = True
            self.needs_restart |= any(
                lane.requires is not None and not self._can_run(lane.requires)
                for lane in self.constrained()
            )
        # Another submitter has several, so one of these is for this submitter.
        is_first = key.submitter not in counts
        self.needs_restart |= is_first and max(counts.values(), default=0) > 1
        return False

    def _close_empty_lanes(self) -> None:
        """Close empty lanes; restart if that makes enough room for other lanes."""
        empty = [k for k, v in self._lanes.items() if v.is_empty and k != MEMBERS_LANE]
        for key in empty:
            del self._lanes[key]
            self._constrained_count -= key.shape != 0
        if empty:
            self._divide_window()
        is_half_empty = self._constrained_count <= self._limits.lanes // 2
        if self._has_runnable_unopened and is_half_empty:
            self.needs_restart = True
