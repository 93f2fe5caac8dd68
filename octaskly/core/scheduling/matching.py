"""Matching of queued tasks to workers, with a reservation against starvation.

Lanes keep their own order. Among the first tasks of all lanes, the one with the highest
priority and then the greatest age is placed first. If no worker has room for it, the
matcher skips its lane, so that other lanes proceed. A lane skipped for
`RESERVE_AFTER_S` gets a reservation: one worker takes no later task from other lanes
until it has room for that lane's first task. There is one reservation at a time.

`requirements` decides if an idle node could run a task. `worker_pool` decides if a
worker has room now, and which of several workers is best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.task_options import NO_REQUIREMENTS, Requirements
from octaskly.core.scheduling.locality import InputBytes, Locality
from octaskly.core.scheduling.queue_lanes import Lane
from octaskly.core.scheduling.queued_task import QueuedTask
from octaskly.core.scheduling.task_queue import TaskQueue
from octaskly.core.scheduling.worker_pool import WorkerPool

RESERVE_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """A worker that is reserved for the first task of a lane."""

    node: NodeId
    shape: int
    ord: int  #: place of that task; earlier tasks may still use the worker


class Matcher:
    """Chooses pairs of a task and a worker."""

    def __init__(self, queue: TaskQueue, pool: WorkerPool, locality: Locality) -> None:
        self._queue = queue
        self._pool = pool
        self._locality = locality
        self.reservation: Reservation | None = None

    def clear_reservation(self) -> None:
        """Drop the reservation, if any."""
        self.reservation = None

    def reserved_from(self, task: QueuedTask, shape: int | None) -> tuple[NodeId, ...]:
        """Return the reserved worker if this task may not use it, else nothing."""
        reservation = self.reservation
        if (
            reservation is None
            or task.spec.ord <= reservation.ord
            or shape == reservation.shape
        ):
            return ()
        return (reservation.node,)

    def input_bytes(self, task: QueuedTask) -> InputBytes | None:
        """Return the bytes that a task needs; None if its place does not matter."""
        options = task.spec.options
        return None if options is None else self._locality.input_bytes(options)

    def match_tasks(self, now: Moment) -> Iterator[tuple[QueuedTask, NodeId]]:
        """Yield pairs of task and worker; the caller assigns each before the next."""
        lanes = self._queue.lanes
        if lanes.has_constrained:
            while True:
                reservation = self.reservation
                yield from self._match_in_order(now)
                if reservation is None or reservation is self.reservation:
                    break
                # The reservation was released, so a skipped lane may use its worker.
        else:
            self._pool.workers_with_room.clear()
        yield from self._match_unconstrained(None)

    def _match_unconstrained(
        self, before: int | None
    ) -> Iterator[tuple[QueuedTask, NodeId]]:
        """Match tasks without requirements, up to the place `before`."""
        queue, pool = self._queue, self._pool
        lane = queue.lanes.unconstrained
        while (task := queue.first_in_lane(lane)) is not None:
            if before is not None and task.spec.ord >= before:
                return
            node = pool.take_slot(self.reserved_from(task, 0), self.input_bytes(task))
            if node is None:
                return
            yield task, node

    def _match_in_order(self, now: Moment) -> Iterator[tuple[QueuedTask, NodeId]]:
        """Match tasks with requirements, and those without that come before them."""
        queue, pool = self._queue, self._pool
        freed, pool.workers_with_room = pool.workers_with_room, set()
        waiting = []
        for shape, lane in queue.lanes.constrained():
            task = queue.first_in_lane(lane)
            if task is None:
                lane.blocked_s = None  # The lane's next task was never skipped.
            else:
                waiting.append((task.spec.ord, shape, lane))
        heapify(waiting)
        while waiting:
            ord_, shape, lane = heappop(waiting)
            yield from self._match_unconstrained(ord_)
            task = queue.first_in_lane(lane)
            assert task is not None
            among = self._candidate_nodes(lane, ord_, freed)
            requires = task.requires or NO_REQUIREMENTS
            node = pool.take_resources(
                requires,
                self.reserved_from(task, shape),
                among,
                self.input_bytes(task),
            )
            if node is None:
                lane.mark_blocked(now.mono_s)
                continue
            lane.blocked_s = None
            if self.reservation is not None and self.reservation.shape == shape:
                self._release_reservation(self.reservation)
            yield task, node
            following = queue.first_in_lane(lane)
            if following is not None:
                heappush(waiting, (following.spec.ord, shape, lane))
        self._update_reservation(now.mono_s)

    def _candidate_nodes(
        self, lane: Lane, ord_: int, freed: set[NodeId]
    ) -> set[NodeId] | None:
        """Return the workers that may have room for a lane; None: any worker."""
        if not lane.is_blocked:
            return None
        reservation = self.reservation
        # The other workers had no room before. The reserved one was perhaps not tried.
        return (
            freed
            if reservation is None or ord_ > reservation.ord
            else {*freed, reservation.node}
        )

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
        lane = self._queue.lanes.get(reservation.shape)
        task = None if lane is None else self._queue.first_in_lane(lane)
        return (
            lane is not None
            and task is not None
            and task.requires is not None
            and lane.blocked_s is not None
            and self._pool.could_make_room_for(reservation.node, task.requires)
        )

    def _reserve_worker(self, now_s: float) -> Reservation | None:
        """Return a reservation for the first task of the lanes skipped for too long."""
        long_blocked: list[tuple[int, int, Lane, Requirements]] = []
        for shape, lane in self._queue.lanes.constrained():
            if lane.blocked_s is None or now_s - lane.blocked_s < RESERVE_AFTER_S:
                continue
            task = self._queue.first_in_lane(lane)
            if task is not None and task.requires is not None:
                long_blocked.append((task.spec.ord, shape, lane, task.requires))
        for ord_, shape, lane, requires in sorted(long_blocked):
            node = self._pool.soonest_free_worker(requires)
            if node is not None:
                return Reservation(node, shape, ord_)
            lane.blocked_s = now_s  # No worker could run it, so try again later.
        return None
