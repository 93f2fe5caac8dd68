"""Matching of queued tasks to workers, with a reservation against starvation.

`turns` decides which flow of the queue is next. If no worker that may run its first
task has room for it, the matcher skips its group, so that others proceed. A group
skipped for `RESERVE_AFTER_S` gets a reservation: one worker takes no task of others,
except with a higher priority, until it has room for that group's next task. There is
one reservation at a time.

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
from octaskly.core.model.tasks import PRIORITY_SHIFT
from octaskly.core.scheduling.array_queue import first_member_spec
from octaskly.core.scheduling.locality import InputBytes, Locality
from octaskly.core.scheduling.queue_lanes import Flow, Group, Turn
from octaskly.core.scheduling.queued_task import QueuedTask
from octaskly.core.scheduling.task_queue import TaskQueue
from octaskly.core.scheduling.worker_pool import WorkerPool

RESERVE_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """A worker that is reserved for the next task of a group."""

    node: NodeId
    group: Group
    ord: int  #: of that task; tasks with a higher priority may still use the worker


class Matcher:
    """Chooses pairs of a task and a worker."""

    def __init__(self, queue: TaskQueue, pool: WorkerPool, locality: Locality) -> None:
        self._queue = queue
        self._pool = pool
        self._locality = locality
        self.reservation: Reservation | None = None

    def reserved_from(self, task: QueuedTask) -> tuple[NodeId, ...]:
        """Return the reserved worker if this task may not use it, else nothing."""
        reservation = self.reservation
        if (
            reservation is None
            or task.ord >> PRIORITY_SHIFT < reservation.ord >> PRIORITY_SHIFT
            or reservation.group.key == (task.lane, task.excluded)
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
            # The reservation was released, so a skipped group may use its worker.

    def _match_by_turn(self, now: Moment) -> Iterator[tuple[QueuedTask, NodeId]]:
        """Match tasks until no group has one that some worker has room for."""
        queue, pool = self._queue, self._pool
        freed, pool.workers_with_room = pool.workers_with_room, set()
        blocked: set[Group] = set()
        is_full = not pool.has_slot()
        waiting = self._next_of_flows(is_full=is_full)
        while waiting:
            turn, number, group, flow = waiting[0]
            task = None
            is_skipped = group in blocked if group.is_constrained else is_full
            if flow.queued and not is_skipped:
                task = queue.first_in_flow(flow)
            if task is None:
                heappop(waiting)
                continue
            # It, or its submitter, may have got slots in this step.
            if len(waiting) > 1 and (current := flow.turn()) > turn:
                heapreplace(waiting, (current, number, group, flow))
                continue
            node = self._take_worker(group, task, freed)
            if node is not None:
                group.blocked_s = None
                if self.reservation is not None and self.reservation.group is group:
                    self._release_reservation(self.reservation)
                yield task, node
            elif group.is_constrained:
                if group.blocked_s is None:
                    group.blocked_s = now.mono_s
                blocked.add(group)
            else:
                is_full = True
        if queue.lanes.has_constrained:
            self._update_reservation(now.mono_s)

    def _next_of_flows(self, *, is_full: bool) -> list[tuple[Turn, int, Group, Flow]]:
        """Return a heap of the flows by their turns; the numbers decide between equals.

        Args:
            is_full: No worker has a slot, so lanes without requirements are left out.
        """
        queue = self._queue
        waiting: list[tuple[Turn, int, Group, Flow]] = []
        lanes = queue.lanes.constrained() if is_full else queue.lanes.all_lanes()
        for lane in lanes:
            for group in [*lane.groups.values()]:
                if not group.flows:
                    del lane.groups[group.excluded]
                for flow in queue.flows_with_task(group):
                    waiting.append((flow.turn(), len(waiting), group, flow))
        heapify(waiting)
        return waiting

    def _take_worker(
        self, group: Group, task: QueuedTask, freed: set[NodeId]
    ) -> NodeId | None:
        """Choose a worker with room for the next task of a group, if there is one."""
        inputs = None if task.spec.options is None else self.input_bytes(task)
        reserved = self.reserved_from(task)
        if not group.is_constrained:
            return self._pool.take_slot(reserved, inputs)
        among = None
        if group.blocked_s is not None:
            # The other workers had no room before. The reserved one was perhaps not
            # tried.
            kept = (
                () if self.reservation is None or reserved else (self.reservation.node,)
            )
            among = {*freed, *kept}
        requires = task.requires or NO_REQUIREMENTS
        excluded = group.excluded.union(reserved)
        return self._pool.take_resources(requires, excluded, among, inputs)

    def _update_reservation(self, now_s: float) -> None:
        """Release a reservation that is not needed; make one for a starved group."""
        reservation = self.reservation
        if reservation is not None and not self._is_reservation_needed(reservation):
            self._release_reservation(reservation)
        if self.reservation is None:
            self.reservation = self._reserve_worker(now_s)

    def _release_reservation(self, reservation: Reservation) -> None:
        self.reservation = None
        self._pool.workers_with_room.add(reservation.node)

    def _is_reservation_needed(self, reservation: Reservation) -> bool:
        task = self._queue.first_in_group(reservation.group)
        return (
            task is not None
            and task.requires is not None
            and reservation.group.blocked_s is not None
            and self._pool.could_make_room_for(reservation.node, task.requires)
        )

    def _reserve_worker(self, now_s: float) -> Reservation | None:
        """Return a reservation for the next task of the groups skipped for too long."""
        long_blocked: list[tuple[int, Group, Requirements]] = []
        lanes = self._queue.lanes.constrained()
        for group in [group for lane in lanes for group in lane.groups.values()]:
            if group.blocked_s is None or now_s - group.blocked_s < RESERVE_AFTER_S:
                continue
            task = self._queue.first_in_group(group)
            if task is not None and task.requires is not None:
                long_blocked.append((task.ord, group, task.requires))
        for ord_, group, requires in sorted(long_blocked, key=itemgetter(0)):
            node = self._pool.soonest_free_worker(requires, group.excluded)
            if node is not None:
                return Reservation(node, group, ord_)
            group.blocked_s = now_s  # No worker could run it, so try again later.
        return None
