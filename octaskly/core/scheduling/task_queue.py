"""The dispatcher's tasks in memory: the front of the queue, and all live tasks.

This module decides which tasks are in memory, and keeps them consistent with the store.
`queue_lanes` keeps the order of `TaskSpec.ord`, which `core.dispatcher.admission` sets,
and `turns` decides between those who submitted them. The queue does not choose workers
and writes no facts.

The store holds the whole queue, the lanes only its front. So the use of memory depends
on running work, not on the length of the queue.

A read of the store may be older than a decision of this node. So a task stays in memory
until its facts are durable. After that, an ended task stays as a shadow until no
pending read can return its old state.

A task never runs without its stdin. If its stdin was freed, the task ended, and another
node knows how. The task is set aside until its end arrives, or until no node can have
it.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import heappop, heappush
from itertools import islice

from msgspec.structs import replace

from octaskly.core.effects import Effect, LoadLive, LoadTasks
from octaskly.core.events import LiveLoaded, QueuedLoaded, TasksLoaded
from octaskly.core.log.facts import Reprioritized
from octaskly.core.log.merge import TaskRecord, later_priority
from octaskly.core.model.arrays import RemainingMembers, array_of, lane_key_of
from octaskly.core.model.ids import AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import Requirements, is_stdin_freed
from octaskly.core.model.tasks import EndReason, LaneKey, TaskSpec, TaskState
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.scheduling.array_queue import (
    ArrayQueue,
    merge_array_record,
    new_queued_task,
)
from octaskly.core.scheduling.live_ranges import LiveRange
from octaskly.core.scheduling.pending_reads import PendingReads, Read
from octaskly.core.scheduling.queue_lanes import Flow, Group, Lanes
from octaskly.core.scheduling.queued_task import WAITING_STAGES, QueuedTask, Stage
from octaskly.core.scheduling.task_table import TaskTable
from octaskly.core.scheduling.turns import Turns, release


class TaskQueue:
    """Tasks in memory, and the reads of the store that supply them.

    Args:
        limits: Bounds on the part of the queue in memory.
        can_run: Returns True if some worker meets the requirements, busy or not.
    """

    def __init__(
        self, limits: Limits, can_run: Callable[[Requirements], bool] = lambda _: True
    ) -> None:
        self._limits = limits
        self._can_run = can_run
        self.ended_counts = dict.fromkeys(TaskState, 0)
        """Number of tasks and members that ended here since the start, by state."""
        self.is_reading_paused = False
        """Pauses reads while other nodes may hold newer facts than this node's disk."""
        self.clear_queue()

    def clear_queue(self) -> None:
        """Start with no tasks, at the end of an epoch too."""
        self.tasks = TaskTable()
        self.array_queue = ArrayQueue(self.tasks)
        self.turns = Turns()
        self.lanes = Lanes(self._limits, self.turns, self._can_run)
        self.reads = PendingReads()
        self._shadows: deque[tuple[int, QueuedTask | LiveRange]] = deque()
        """Ended tasks with their `last_read`; one that ended again has two entries."""
        self._missing_ends: dict[TaskId, TaskSpec] = {}
        """Queued tasks and arrays whose stdin was freed."""
        # To find its first key, a plain dict would scan all deleted entries before it.
        self._recent_finals: OrderedDict[TaskId, TaskState] = OrderedDict()
        self._lookups: dict[TaskId, None] = {}
        """Tasks to read by id."""
        self._are_lookups_first = False  #: before the lanes are read again
        self._looked_up: tuple[TaskId, ...] = ()
        """Tasks that the pending read by id answers for."""
        self._needs_live_read = False
        self._live_key: int | None = None
        """Key up to which live tasks were read; None: all were."""

    # --- The lanes and the store.

    def start_reading(self, term: int) -> list[Effect]:
        """Start an epoch: read the front of the queue and all live tasks."""
        self.reads.term = term
        self.mark_for_reread()
        return self.next_reads()

    def mark_for_reread(self) -> None:
        """Have `next_reads` read the queue from its front, and all live tasks."""
        self.lanes.needs_restart = self._needs_live_read = True

    def _reread_task(self, task: TaskId) -> None:
        """Read a task that left memory, whether it waits or is live."""
        self.lanes.needs_restart = True
        self.look_up_task(task)

    def _reread_array(self, array: TaskId) -> None:
        """Read an array, and only then the lanes with members of it that wait."""
        self._reread_task(array)
        self._are_lookups_first = True

    def _restart_lanes(self) -> None:
        self._missing_ends.clear()  # Those without an end are read again.
        waiting = [task for task in self.tasks.waiting if task.stage is Stage.QUEUED]
        for task in waiting:
            if task.commit_number == 0:
                self.tasks.remove(task)
                if task.remaining is not None:
                    self.look_up_missing(task.spec.id)
        self.lanes.restart(task for task in waiting if task.commit_number)

    def look_up_missing(self, task: TaskId) -> None:
        """Like `look_up_task`, unless the task is in memory."""
        if task not in self.tasks:
            self.look_up_task(task)

    def look_up_array_of(self, member: TaskId) -> None:
        """Look up the array of a member that was found, unless it is in memory.

        Once a member has ended, no read of the queue returns the array.
        """
        if (array := array_of(member)) is not None:
            self.look_up_missing(array)

    def look_up_task(self, task: TaskId) -> None:
        """Read a task or an array by its id at the next `next_reads`, live or not."""
        self._lookups[task] = None

    def read_afresh(self, task: TaskId) -> None:
        """Look up a task by a new read; a pending one may miss what is durable now."""
        self.reads.overtake((task,))
        self.look_up_task(task)

    def look_up_waiting(self) -> None:
        """Look up waiting tasks that reads of the queue omit; they may have ended."""
        for task in self.tasks.waiting:
            if task.stage is Stage.BACKING_OFF or task.commit_number:
                self.look_up_task(task.spec.id)

    def on_live_answer(self, answer: LiveLoaded) -> list[TaskRecord] | None:
        """Return live tasks, unless they are overtaken; None if of another epoch."""
        number = self.reads.end(Read.LIVE, answer.term)
        if number is None:
            return None
        self._live_key = answer.next_key
        return self._current_records(answer.records, number, self.look_up_task)

    def on_lookup_answer(
        self, answer: TasksLoaded
    ) -> tuple[list[TaskId], list[TaskRecord]] | None:
        """Return the tasks that were read, and their records; None if of another epoch.

        Tasks that the answer omits or that were overtaken are read next.
        """
        number = self.reads.end(Read.NAMED, answer.term)
        if number is None:
            return None
        for task in self._looked_up[len(answer.tasks) :]:
            self.look_up_task(task)
        records = self._current_records(answer.records, number, self.look_up_task)
        for record in records:  # Another node's log may have changed its end.
            if record.id in self._recent_finals and record.state.is_final:
                self._recent_finals[record.id] = record.state
        return [t for t in answer.tasks if t not in self._lookups], records

    def _current_records(
        self,
        records: Iterable[TaskRecord],
        number: int,
        read_again: Callable[[TaskId], None],
    ) -> list[TaskRecord]:
        """Return the records of read `number` that no other log has overtaken."""
        current = []
        for record in records:
            if self.reads.is_overtaken(record.id, number):
                read_again(record.id)
            else:
                current.append(record)
        return current

    def next_reads(self) -> list[Effect]:
        """Return the reads that are needed: stale tasks, and lanes below half."""
        effects: list[Effect] = []
        if self.is_reading_paused:
            return effects
        if self._shadows:
            self._retire_shadows()
        # Dropping tasks is safe only if no pending read can return an older state.
        if self.lanes.needs_restart and not self.reads:
            self._restart_lanes()
        if self.lanes.needs_restart:
            return effects  # The reads that are pending end first.
        if self._lookups and Read.NAMED not in self.reads:
            effects.append(self._read_by_id())
        if self._needs_live_read or self._live_key is not None:
            effects += self._read_live()
        if self._are_lookups_first and Read.NAMED in self.reads:
            return effects
        self._are_lookups_first = False
        load = self.lanes.next_read(self.reads.term)
        if load is None:
            return effects
        self.reads.start(Read.QUEUED)
        return [*effects, load]

    def _read_by_id(self) -> LoadTasks:
        tasks = tuple(islice(self._lookups, self._limits.load_tasks))
        for task in tasks:
            del self._lookups[task]
        self._looked_up = tasks
        self.reads.start(Read.NAMED)
        return LoadTasks(self.reads.term, tasks)

    def _read_live(self) -> list[Effect]:
        """Continue to read live tasks, or start to."""
        if Read.LIVE in self.reads:
            return []
        if self._live_key is None:
            self._needs_live_read, self._live_key = False, 0
        self.reads.start(Read.LIVE)
        return [LoadLive(self.reads.term, self._live_key, self._limits.load_tasks)]

    @property
    def has_read_live(self) -> bool:
        """Return True if all live tasks in the store are in memory."""
        is_pending = self._needs_live_read or self._live_key is not None
        return not (is_pending or Read.LIVE in self.reads or self.is_reading_paused)

    def on_queued_answer(self, answer: QueuedLoaded) -> bool:
        """Queue the answer of the store; return True if it belongs to this epoch."""
        number = self.reads.end(Read.QUEUED, answer.term)
        if number is None:
            return False
        self.lanes.on_answer(answer)
        lane = self.lanes.get(answer.lane)
        if lane is not None and not self.lanes.needs_restart:
            before, last_ord = self.tasks.count, lane.cursor
            records = self._current_records(answer.records, number, self._reread_task)
            self.add_arrays(records)
            for record in records:
                self._add_record(record, answer.lane)
                last_ord = max(last_ord, record.ord)
            is_new = self.tasks.count > before
            lane.note_read(last_ord, is_new=is_new, has_more=answer.has_more)
        return True

    def add_arrays(self, records: Iterable[TaskRecord]) -> None:
        """Queue arrays from the store, or merge their progress into queued ones."""
        for record in records:
            if record.progress is None:
                continue
            queued = self.tasks.get(record.id)
            if queued is None or queued.stage is not Stage.ENDED:
                self.array_queue.count_failures(record)
            if record.waits_for is not None:
                continue
            task = queued or QueuedTask(replace(record, progress=None))
            if task.stage is Stage.QUEUED:
                merge_array_record(task, record, self.tasks)
            if queued is not None and record.reprioritized is not None:
                self.reprioritize(record.reprioritized)
            if queued is None and task.remaining and record.cancelled_by is None:
                self._enqueue(task)

    def _add_record(self, record: TaskRecord, lane: LaneKey) -> None:
        """Queue a task from the store, unless it is in memory.

        A member waits until the failures of its array are known.
        """
        if record.progress is not None:
            return
        if (queued := self.tasks.get(record.id)) is not None:
            if queued.stage is not Stage.ENDED:  # An ended task is newer in memory.
                queued.is_read = True
                self.join(queued, record)
        elif record.state is TaskState.QUEUED:
            array = array_of(record.id)
            if array is not None and self.array_queue.is_withdrawn(array):
                return
            if array is not None and not self.array_queue.knows_failures(array):
                self._reread_array(array)
                return
            task = self.task_from_record(record)
            task.lane = lane
            self._enqueue(task)

    def task_from_record(self, record: TaskRecord) -> QueuedTask:
        """Return a task in the state of its record, without queueing it."""
        assert record.spec is not None
        task = QueuedTask(record)
        for attempt in record.attempts:
            task.attempt, task.node = attempt.id, attempt.node
            outcome = attempt.outcome
            # Inputs that a worker lacked in an earlier epoch may have arrived since.
            if (
                outcome is not None
                and outcome.reason is EndReason.INPUTS
                and attempt.id.term == self.reads.term
            ):
                task.add_missing_inputs(attempt.node, outcome.detail)
        return task

    # --- Stages of tasks.

    def admit_undurable(self, spec: TaskSpec) -> QueuedTask | None:
        """Queue a task that is being committed; None if it has to wait for that.

        Nothing may wait before it. The caller must `pin_until_durable` it.
        """
        # A worker may have reported it already, if it was submitted in another epoch.
        if spec.array is not None or spec.has_dependencies or spec.id in self.tasks:
            return None
        lane = lane_key_of(spec)
        if not self.lanes.is_lane_empty(lane):
            return None
        task = QueuedTask(TaskRecord(spec.id, spec), lane=lane)
        self._enqueue(task)
        return task

    def admit(self, specs: Iterable[TaskSpec]) -> bool:
        """Queue tasks that became durable, or leave them in the store for later.

        Return False if all of them were in memory already.
        """
        has_new = has_grown = False
        for spec in specs:
            if spec.id in self.tasks:
                continue  # It was queued while it was committed, or read since.
            has_new = True
            # A forgotten array may have had the same id.
            self.array_queue.forget_failures(spec.id)
            if (lane := self.lanes.admitting_lane(spec, spec.ord)) is not None:
                task = new_queued_task(spec)
                if task.remaining is not None:
                    self.array_queue.count_failures(task.record)
                self.tasks.add(task)
                lane.push(task)
                has_grown = True
        if has_grown:
            self._trim_lanes()
        return has_new

    def admit_records(self, records: Iterable[TaskRecord]) -> None:
        """Queue single tasks that wait, or leave them in the store for later."""
        for record in records:
            spec = record.spec
            if spec is None or spec.array is not None or record.id in self.tasks:
                continue
            is_waiting = record.state is TaskState.QUEUED and record.waits_for is None
            lane = self.lanes.admitting_lane(spec, record.ord) if is_waiting else None
            if lane is not None:
                self._add_record(record, lane.key)
        self._trim_lanes()

    def _trim_lanes(self) -> None:
        for task in self.lanes.trim_lanes(self.tasks):
            self.tasks.remove(task)

    def reprioritize(self, change: Reprioritized) -> None:
        """Move a task to its new place, and an array with its members."""
        task = self.tasks.get(change.task)
        if task is not None:
            self.change_place(task, change)
        for member in self.tasks.members_of(change.task):
            self.change_place(member, change)

    def change_place(self, task: QueuedTask, change: Reprioritized | None) -> None:
        """Move a task, unless a later change of its priority is known."""
        known = task.record.reprioritized
        if (later := later_priority(known, change)) != known:
            self.join(task, TaskRecord(task.spec.id, reprioritized=later))

    def join(self, task: QueuedTask, record: TaskRecord) -> None:
        """Join what is known of a task, and move it if its priority changed."""
        before = task.ord
        task.join(record)
        is_queued = task.stage is Stage.QUEUED and task.spec.id in self.tasks
        if is_queued and task.ord != before:
            self._move_in_lane(task)

    def first_in_group(self, group: Group) -> QueuedTask | None:
        """Return the task of a group whose turn is next, if there is one."""
        flow = min(self.flows_with_task(group), key=Flow.turn, default=None)
        return None if flow is None else self.first_in_flow(flow)

    def flows_with_task(self, group: Group) -> list[Flow]:
        """Return the flows of a group that have a next task."""
        return [f for f in [*group.flows.values()] if self.first_in_flow(f) is not None]

    def first_in_flow(self, flow: Flow) -> QueuedTask | None:
        """Return a flow's next task, or array, if there is one."""
        while (task := flow.first(self.tasks)) is not None:
            if is_stdin_freed(task.spec.options):
                self._set_aside(task)
                continue
            if task.record.attempts and task.exclusions != task.excluded:
                self._move_in_lane(task)  # A visitor is known to have returned it.
                continue
            if task.remaining is None or self.array_queue.has_next_member(task):
                return task
            self._drop_array(task)
        return None

    def _drop_array(self, array: QueuedTask) -> None:
        """Drop an array whose members were all assigned."""
        self._leave_lane(array)
        self.tasks.remove(array)
        if not array.is_read:
            self._reread_task(array.spec.id)

    def _set_aside(self, task: QueuedTask) -> None:
        """Take a task out of the queue, because its end is missing here."""
        if task.commit_number:
            self.end(task)  # It is read again once its facts are durable.
            return
        self._leave_lane(task)
        self.tasks.remove(task)
        self._missing_ends[task.spec.id] = task.spec

    @property
    def has_missing_ends(self) -> bool:
        """Return True if tasks are set aside, and no read can show their ends."""
        is_read = not (self.reads or self.lanes.needs_restart)
        return bool(self._missing_ends) and is_read and not self.is_reading_paused

    def pop_missing_ends(self) -> list[TaskSpec]:
        """Remove and return the tasks and arrays whose ends are missing here."""
        specs = [
            spec
            for task_id, spec in self._missing_ends.items()
            if task_id not in self.tasks and task_id not in self._recent_finals
        ]
        self._missing_ends.clear()
        return specs

    def refused_tasks(self) -> list[QueuedTask]:
        """Return the queued tasks that some workers must not get."""
        groups = [group for group in self.lanes.groups() if group.excluded]
        flows = [flow for group in groups for flow in group.flows.values()]
        return [task for flow in flows for _, task in flow.entries(self.tasks)]

    @property
    def may_assign(self) -> bool:
        """Return False if no task waits, and no worker is reserved for one."""
        return self.tasks.has_waiting or self.lanes.has_constrained

    def assign(self, task: QueuedTask, attempt: AttemptId, node: NodeId) -> None:
        """Record that `node` holds an attempt of the task; no other node does."""
        self._move_to(Stage.LIVE, task)
        self._note_attempt(task, attempt, node)

    def adopt(self, task: QueuedTask, attempt: AttemptId, node: NodeId) -> None:
        """Add a task that `node` was found to hold, or a member that it gets."""
        task_id = task.spec.id
        assert task_id not in self.tasks
        task.stage = Stage.LIVE  # It was in no lane.
        self.tasks.add(task)
        self.array_queue.remove_member(task_id)
        self._note_attempt(task, attempt, node)

    def _note_attempt(self, task: QueuedTask, attempt: AttemptId, node: NodeId) -> None:
        task.shares = self.turns.charge(task.flow, task.slots)
        task.attempt, task.node, task.is_worker_confirmed = attempt, node, False
        task.add_live_attempt(attempt, node)
        self.tasks.hold(node, task)

    def end_members(self, live: LiveRange, offsets: Collection[int]) -> None:
        """End live members of a range, which succeeded."""
        self.tasks.end_members(live, offsets)
        release(live.shares, len(offsets))
        self.ended_counts[TaskState.COMPLETED] += len(offsets)

    def requeue(self, task: QueuedTask) -> None:
        """Queue the task again at its old place, or end it if it is or may be final."""
        if (
            task.final_state is not None
            or not task.is_read
            or task.may_be_array_cancelled
        ):
            self.end(task)
        else:
            self._move_to(Stage.QUEUED, task)

    def back_off(self, task: QueuedTask, retry_s: float) -> None:
        """Release the task, but keep it from the queue until `requeue`."""
        self._move_to(Stage.BACKING_OFF, task)
        task.retry_s = retry_s

    def end(self, task: QueuedTask) -> None:
        """Remove the task from the queue; if it is not final, it is read again."""
        if task.final_state is not None:
            self.count_end(task)
        self._move_to(Stage.ENDED, task)

    def count_end(self, task: QueuedTask) -> None:
        """Count a task that has ended; an array does not count, as its members do."""
        assert task.final_state is not None
        is_array = task.remaining is not None or task.spec.array is not None
        self.ended_counts[task.final_state] += not is_array

    def add_shadow(self, record: TaskRecord) -> QueuedTask:
        """Add an ended task, so that a pending read cannot return its old state."""
        task = QueuedTask(record, stage=Stage.ENDED, is_read=False)
        self.tasks.add(task)
        self.array_queue.remove_member(record.id)
        return task

    def array_in_hand(self, array: TaskId) -> QueuedTask:
        """Return an array; if it is not in memory, as a shadow without members."""
        task = self.tasks.get(array)
        if task is None:
            task = self.add_shadow(TaskRecord(array))
            task.remaining = RemainingMembers(())
        return task

    def drop_durable_tasks(
        self, tasks: Iterable[QueuedTask | LiveRange], number: int
    ) -> None:
        """Release tasks whose facts were made durable by commit `number`."""
        is_reading = bool(self.reads)
        for task in tasks:
            if task.commit_number != number:
                continue  # It has later facts that are not yet durable.
            task.commit_number = 0
            if _may_leave_memory(task):
                if is_reading:
                    task.last_read = self.reads.last
                    self._shadows.append((task.last_read, task))
                else:
                    self._retire_shadow(task)
            elif isinstance(task, QueuedTask) and task.stage is Stage.QUEUED:
                self._return_to_store(task)

    def _return_to_store(self, task: QueuedTask) -> None:
        """Drop a task if its new priority is beyond what was read of its lane."""
        if task.record.reprioritized is None:
            return
        if self.tasks.get(task.spec.id) is not task or task.remaining is not None:
            return  # It is from an earlier epoch, or an array, which stays in memory.
        if self.lanes.returns_to_store(task):
            self._leave_lane(task)
            self.tasks.remove(task)

    def has_ended_recently(self, task_id: TaskId) -> bool:
        """Return True if a task that is not in memory ended recently."""
        return task_id in self._recent_finals

    def forget_final(self, task_id: TaskId) -> None:
        """Forget the end of a task, because a new task reuses its id."""
        self._recent_finals.pop(task_id, None)

    def final_state_of(self, task_id: TaskId, stored_state: TaskState) -> TaskState:
        """Return the final state of a task not in memory, else `stored_state`."""
        return self._recent_finals.get(task_id, stored_state)

    def _move_to(self, stage: Stage, task: QueuedTask) -> None:
        """Change the stage of a task, and update counts and lanes."""
        before = task.stage
        assert before is not Stage.ENDED or stage is before, "it has ended"
        if before is Stage.QUEUED:
            self._leave_lane(task)
        elif before is Stage.LIVE:
            assert task.node is not None
            assert task.shares is not None
            self.tasks.release(task.node, task)
            release(task.shares, task.slots)
        self.tasks.set_stage(task, stage)
        if stage is Stage.QUEUED:
            self._enqueue(task)

    def _enqueue(self, task: QueuedTask) -> None:
        self.tasks.add(task)
        self.lanes.lane_of(task).push(task)

    def _leave_lane(self, task: QueuedTask) -> None:
        self.lanes.lane_of(task).leave(task)

    def _move_in_lane(self, task: QueuedTask) -> None:
        self._leave_lane(task)
        self._enqueue(task)

    def _retire_shadows(self) -> None:
        """Drop shadows once no pending read can return their old state."""
        shadows, oldest = self._shadows, self.reads.oldest
        while shadows and shadows[0][0] < oldest:
            number, task = shadows.popleft()
            # It may have got facts since, which a later read may have missed, too.
            if task.commit_number == 0 and task.last_read == number:
                self._retire_shadow(task)

    def _retire_shadow(self, task: QueuedTask | LiveRange) -> None:
        if isinstance(task, LiveRange):
            self._retire_range(task)
            return
        if self.tasks.get(task.spec.id) is not task:
            return  # It is from an earlier epoch, or the task changed since.
        self.tasks.remove(task)
        if (final := task.final_state) is not None:
            self._note_final(task.spec.id, final)
        elif task.record.spec is None or task.remaining is not None:
            self._reread_array(task.spec.id)  # Without a spec, it may be one.
        else:
            self._reread_task(task.spec.id)

    def _retire_range(self, live: LiveRange) -> None:
        if live not in self.tasks.ranges:
            return  # It is from an earlier epoch, or was split.
        for task_id in self.tasks.retire_range(live):
            self._note_final(task_id, TaskState.COMPLETED)

    def _note_final(self, task_id: TaskId, final: TaskState) -> None:
        self._recent_finals[task_id] = final
        if len(self._recent_finals) > self._limits.window_tasks:
            self._recent_finals.popitem(last=False)


def _may_leave_memory(task: QueuedTask | LiveRange) -> bool:
    """Return True if nothing is to be done about a task whose facts are durable."""
    if isinstance(task, LiveRange):
        return task.is_nearly_over
    return task.stage is Stage.ENDED


BACKING_OFF_MAX = 10_000  #: tasks beyond it run again at once


class BackoffQueue:
    """Tasks that back off, or that some workers refused, by the time of their retry."""

    def __init__(self, queue: TaskQueue, timers: TimerHeap) -> None:
        self._queue = queue
        self._timers = timers
        self._backoffs: list[tuple[float, TaskId]] = []
        """A heap; a task may have earlier entries that no longer count."""
        self._refusals: list[tuple[float, TaskId]] = []
        """Another one, of tasks that the bound on those that back off is not about."""

    def clear_backoff(self) -> None:
        """Drop all tasks at the end of an epoch."""
        self._backoffs.clear()
        self._refusals.clear()
        self._set_timer()

    def _set_timer(self) -> None:
        firsts = [heap[0][0] for heap in (self._backoffs, self._refusals) if heap]
        self._timers.set(Timer.BACKOFF, min(firsts, default=math.inf))

    def add_task(self, task: QueuedTask, now: Moment, delay_s: float) -> None:
        """Back off a task after a failed attempt, or queue it at once."""
        if (
            task.final_state is not None
            or not task.is_read
            or len(self._backoffs) >= BACKING_OFF_MAX
        ):
            self._queue.requeue(task)
            return
        self._queue.back_off(task, now.mono_s + delay_s)
        heappush(self._backoffs, (task.retry_s, task.spec.id))
        self._set_timer()

    def end_refusals(self, task: QueuedTask, now: Moment, delay_s: float) -> None:
        """Have a queued task offered again to those that refused it, after a wait."""
        if task.retry_s <= now.mono_s:  # Else a wait has begun.
            task.retry_s = now.mono_s + delay_s
            heappush(self._refusals, (task.retry_s, task.spec.id))
            self._set_timer()

    def pop_due(self, now: Moment) -> Iterator[QueuedTask]:
        """Yield the tasks that wait, and whose backoff or exclusions are over."""
        for heap in (self._backoffs, self._refusals):
            while heap and heap[0][0] <= now.mono_s:
                retry_s, task_id = heappop(heap)
                task = self._queue.tasks.get(task_id)
                # It may have run meanwhile, and back off again.
                if task and task.stage in WAITING_STAGES and task.retry_s == retry_s:
                    yield task
        self._set_timer()
