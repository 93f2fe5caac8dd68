"""Matching of queued tasks to workers, with a reservation against starvation.

`turns` decides which flow of the queue is next. If no worker has room for its first
task, the matcher skips the lane, so that other lanes proceed. A lane skipped for
`RESERVE_AFTER_S` gets a reservation: one worker takes no task of other lanes, except
with a higher priority, until it has room for that lane's next task. There is one
reservation at a time.

`requirements` decides if an idle node could run a task. `worker_pool` decides if a
worker has room now, and which of several workers is best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from operator import itemgetter

from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.task_options import NO_REQUIREMENTS, Requirements
from octaskly.core.model.tasks import PRIORITY_SHIFT, LaneKey
from octaskly.core.scheduling.array_queue import first_member_spec
from octaskly.core.scheduling.locality import InputBytes, Locality
from octaskly.core.scheduling.queue_lanes import Flow, Lane, Turn
from octaskly.core.scheduling.queued_task import QueuedTask
from octaskly.core.scheduling.task_queue import TaskQueue
from octaskly.core.scheduling.worker_pool import WorkerPool

RESERVE_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """A worker that is reserved for the next task of a lane."""

    node: NodeId
    lane: LaneKey
    ord: int  #: of that task; tasks with a higher priority may still use the worker


class Matcher:
    """Chooses pairs of a task and a worker."""

    def __init__(self, queue: TaskQueue, pool: WorkerPool, locality: Locality) -> None:
        self._queue = queue
        self._pool = pool
        self._locality = locality
        self.reservation: Reservation | None = None

    def reserved_from(
        self, task: QueuedTask, lane: LaneKey | None
    ) -> tuple[NodeId, ...]:
        """Return the reserved worker if this task may not use it, else nothing."""
        reservation = self.reservation
        if (
            reservation is None
            or task.ord >> PRIORITY_SHIFT < reservation.ord >> PRIORITY_SHIFT
            or lane == reservation.lane
        ):
            return ()
        return (reservation.node,)

    def input_bytes(self, task: QueuedTask) -> InputBytes | None:
        """Return the bytes that a task needs; None if its place does not matter."""
        options = task.spec.options
        if options is not None and options.tree and task.remaining is not None:
            options = first_member_spec(task).options  # It may need other folders.
        return None if options is None else self._locality.input_bytes(options)

    def match_tasks(self, now: Moment) -> Iterator[tuple[QueuedTask, NodeId]]:
        """Yield pairs of task and worker; the caller assigns each before the next.

        An array stands for its first remaining member.
        """
        while True:
            reservation = self.reservation
            yield from self._match_by_turn(now)
            if reservation is None or reservation is self.reservation:
                return
            # The reservation was released, so a skipped lane may use its worker.

    def _match_by_turn(self, now: Moment) -> Iterator[tuple[QueuedTask, NodeId]]:
        """Match tasks until no lane has one that some worker has room for."""
        queue, pool = self._queue, self._pool
        freed, pool.workers_with_room = pool.workers_with_room, set()
        blocked: set[LaneKey] = set()
        is_full = not pool.has_slot()
        waiting = self._next_of_flows(is_full=is_full)
        while waiting:
            turn, number, lane, flow = waiting[0]
            task = None
            is_skipped = lane.key in blocked if lane.key.shape else is_full
            if flow.queued and not is_skipped:
                task = queue.first_in_flow(flow)
            if task is None:
                heappop(waiting)
                continue
            # It, or its submitter, may have got slots in this step.
            if len(waiting) > 1 and (current := flow.turn()) > turn:
                heapreplace(waiting, (current, number, lane, flow))
                continue
            node = self._take_worker(lane, task, freed)
            if node is not None:
                lane.blocked_s = None
                if self.reservation is not None and self.reservation.lane == lane.key:
                    self._release_reservation(self.reservation)
                yield task, node
            elif lane.key.shape:
                if lane.blocked_s is None:
                    lane.blocked_s = now.mono_s
                blocked.add(lane.key)
            else:
                is_full = True
        if queue.lanes.has_constrained:
            self._update_reservation(now.mono_s)

    def _next_of_flows(self, *, is_full: bool) -> list[tuple[Turn, int, Lane, Flow]]:
        """Return a heap of the flows by their turns; the numbers decide between equals.

        Args:
            is_full: No worker has a slot, so lanes without requirements are left out.
        """
        queue = self._queue
        waiting: list[tuple[Turn, int, Lane, Flow]] = []
        lanes = queue.lanes.constrained() if is_full else queue.lanes.all_lanes()
        for lane in lanes:
            flows = queue.flows_with_task(lane)
            if not flows:
                lane.blocked_s = None  # The lane's next task was never skipped.
            for flow in flows:
                waiting.append((flow.turn(), len(waiting), lane, flow))
        heapify(waiting)
        return waiting

    def _take_worker(
        self, lane: Lane, task: QueuedTask, freed: set[NodeId]
    ) -> NodeId | None:
        """Choose a worker with room for the next task of a lane, if there is one."""
        inputs = None if task.spec.options is None else self.input_bytes(task)
        reserved = self.reserved_from(task, lane.key)
        if not lane.key.shape:
            return self._pool.take_slot(reserved, inputs)
        among = None
        if lane.blocked_s is not None:
            # The other workers had no room before. The reserved one was perhaps not
            # tried.
            kept = (
                () if self.reservation is None or reserved else (self.reservation.node,)
            )
            among = {*freed, *kept}
        requires = task.requires or NO_REQUIREMENTS
        return self._pool.take_resources(requires, reserved, among, inputs)

    def _update_reservation(self, now_s: float) -> None:
        """Release a reservation that is not needed, and make one for a starved lane."""
        reservation = self.reservation
        if reservation is not None and not self._is_reservation_needed(reservation):
            self._release_reservation(reservation)
        if self.reservation is None:
            self.reservation = self._reserve_worker(now_s)

    def _release_reservation(self, reservation: Reservation) -> None:
        self.reservation = None
        self._pool.workers_with_room.add(reservation.node)

    def _is_reservation_needed(self, reservation: Reservation) -> bool:
        lane = self._queue.lanes.get(reservation.lane)
        task = None if lane is None else self._queue.first_in_lane(lane)
        return (
            lane is not None
            and task is not None
            and task.requires is not None
            and lane.blocked_s is not None
            and self._pool.could_make_room_for(reservation.node, task.requires)
        )

    def _reserve_worker(self, now_s: float) -> Reservation | None:
        """Return a reservation for the next task of the lanes skipped for too long."""
        long_blocked: list[tuple[int, Lane, Requirements]] = []
        for lane in self._queue.lanes.constrained():
            if lane.blocked_s is None or now_s - lane.blocked_s < RESERVE_AFTER_S:
                continue
            task = self._queue.first_in_lane(lane)
            if task is not None and task.requires is not None:
                long_blocked.append((task.ord, lane, task.requires))
        for ord_, lane, requires in sorted(long_blocked, key=itemgetter(0)):
            node = self._pool.soonest_free_worker(requires)
            if node is not None:
                return Reservation(node, lane.key, ord_)
            lane.blocked_s = now_s  # No worker could run it, so try again later.
        return None
