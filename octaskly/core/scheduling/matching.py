"""Who is next: lanes against workers, and a worker that is kept for the patient.

Owns the order in which lanes are served, and the one reservation. Within a lane the
order is the lane's own; among lanes the task that stands first by priority and age is
placed first. A lane whose first task finds no room is passed over, so that others run;
what has been passed over for `RESERVE_AFTER_S` gets a worker that is given nothing else
that stands behind it, until it has room. One worker at a time is kept that way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.task_options import NO_NEEDS, Requires
from octaskly.core.scheduling.lanes import Lane
from octaskly.core.scheduling.queued_task import InHand
from octaskly.core.scheduling.task_queue import TaskQueue
from octaskly.core.scheduling.worker_pool import WorkerPool

RESERVE_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """A worker that is kept for the first task of a lane."""

    node: NodeId
    shape: int
    ord: int  #: place of that task: who stands before it may still have the worker


class Turns:
    """Chooses pairs of a task and a worker."""

    def __init__(self, queue: TaskQueue, pool: WorkerPool) -> None:
        self._queue = queue
        self._pool = pool
        self.reserved: Reservation | None = None

    def forget(self) -> None:
        """Keep no worker for anybody."""
        self.reserved = None

    def kept_from(self, task: InHand, shape: int | None) -> tuple[NodeId, ...]:
        """Return the worker that this task may not have, if there is one."""
        kept = self.reserved
        if kept is None or task.spec.ord <= kept.ord or shape == kept.shape:
            return ()
        return (kept.node,)

    def turns(self, now: Moment) -> Iterator[tuple[InHand, NodeId]]:
        """Yield who runs where; the caller assigns each before it asks for the next."""
        lanes = self._queue.lanes
        if lanes.has_others:
            yield from self._by_order(now)
        else:
            self._pool.freed.clear()
        yield from self._plain(None)

    def _plain(self, before: int | None) -> Iterator[tuple[InHand, NodeId]]:
        """Place what asks for nothing, and stands before that place."""
        queue, pool = self._queue, self._pool
        plain = queue.lanes.plain
        while (task := queue.first(plain)) is not None:
            if before is not None and task.spec.ord >= before:
                return
            node = pool.take(self.kept_from(task, 0))
            if node is None:
                return
            yield task, node

    def _by_order(self, now: Moment) -> Iterator[tuple[InHand, NodeId]]:
        """Place what asks for something, and what asks for nothing before that."""
        queue, pool = self._queue, self._pool
        freed, pool.freed = pool.freed, set()
        waiting = []
        for shape, lane in queue.lanes.others():
            task = queue.first(lane)
            if task is None:
                lane.blocked_s = None  # What comes next was not passed over yet.
            else:
                waiting.append((task.spec.ord, shape, lane))
        heapify(waiting)
        while waiting:
            ord_, shape, lane = heappop(waiting)
            yield from self._plain(ord_)
            task = queue.first(lane)
            assert task is not None
            among = self._candidates(lane, ord_, freed)
            requires = task.requires or NO_NEEDS
            node = pool.take_for(requires, self.kept_from(task, shape), among)
            if node is None:
                lane.block(now.mono_s)
                continue
            lane.blocked_s = None
            if self.reserved is not None and self.reserved.shape == shape:
                self._release(self.reserved)
            yield task, node
            following = queue.first(lane)
            if following is not None:
                heappush(waiting, (following.spec.ord, shape, lane))
        self._review(now.mono_s)

    def _candidates(
        self, lane: Lane, ord_: int, freed: set[NodeId]
    ) -> set[NodeId] | None:
        """Return who may have room for a lane; None: anybody."""
        if not lane.is_blocked:
            return None
        kept = self.reserved
        # Others had no room before. The kept one may not have been asked.
        return freed if kept is None or ord_ > kept.ord else {*freed, kept.node}

    def _review(self, now_s: float) -> None:
        """Keep a worker for who has waited too long, no longer than that is needed."""
        kept = self.reserved
        if kept is not None and not self._is_needed(kept):
            self._release(kept)
        if self.reserved is None:
            self.reserved = self._reserve(now_s)

    def _release(self, kept: Reservation) -> None:
        self.reserved = None
        self._pool.freed.add(kept.node)

    def _is_needed(self, kept: Reservation) -> bool:
        lane = self._queue.lanes.get(kept.shape)
        task = None if lane is None else self._queue.first(lane)
        return (
            lane is not None
            and task is not None
            and task.requires is not None
            and lane.blocked_s is not None
            and self._pool.may_wait_for(kept.node, task.requires)
        )

    def _reserve(self, now_s: float) -> Reservation | None:
        """Return a worker for the first of those that were passed over for long."""
        patient: list[tuple[int, int, Lane, Requires]] = []
        for shape, lane in self._queue.lanes.others():
            if lane.blocked_s is None or now_s - lane.blocked_s < RESERVE_AFTER_S:
                continue
            task = self._queue.first(lane)
            if task is not None and task.requires is not None:
                patient.append((task.spec.ord, shape, lane, task.requires))
        for ord_, shape, lane, requires in sorted(patient):
            node = self._pool.clearest(requires)
            if node is not None:
                return Reservation(node, shape, ord_)
            lane.blocked_s = now_s  # Nobody could run it: look again later.
        return None
