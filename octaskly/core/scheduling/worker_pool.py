"""Worker pool: selects the worker of the next attempt by free slots, then prefetch.

The pool knows the capacity of each worker and the resources in use, but no tasks.
Selection for a task without requirements takes logarithmic time, so neither a long
queue nor a large mesh slows it down. For a task with requirements it checks each
worker. The task holds its resources until it ends, and a worker never grants more than
it has.

A worker without credit gets no task. `core.worker.worker` grants none while the node is
drained or short of disk or memory; `core.dispatcher.outcomes` pauses a worker that
refuses tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import NodeInfo, RejectionReason
from octaskly.core.model.task_options import NO_REQUIREMENTS, Requirements
from octaskly.core.scheduling.locality import WORTH_BYTES, InputBytes
from octaskly.core.scheduling.requirements import (
    count_phrase,
    meets_requirements,
    why_none_meets,
)
from octaskly.core.scheduling.task_table import HeldAttempts

LOAD_STEP_PERCENT = 10  #: smaller differences in load are noise
HEAP_SLACK = 64  #: outdated heap entries beyond which the heap is rebuilt


@dataclass(slots=True)
class _Worker:
    """One worker, with its capacity and the resources in use."""

    info: NodeInfo
    slots: int
    credit: int
    outstanding: int = 0  #: slots that its attempts hold or wait for
    memory_mb: int = 0  #: granted to its attempts
    gpus: int = 0
    load: int = 0  #: in steps of `LOAD_STEP_PERCENT`
    is_attached: bool = False
    heap_version: int = 0  #: of its valid heap entry; others are outdated

    @property
    def rank(self) -> tuple[float, int, NodeId]:
        """Sort key among workers with room: the lowest comes first.

        A ratio below 1 means that a slot is free, so workers with free slots come
        first.
        """
        return self.outstanding / self.slots, self.load, self.info.id

    def has_room(self, requires: Requirements) -> bool:
        """Return True if it has room now for a task that it can run."""
        if not self.is_attached or self.outstanding >= self.credit:
            return False
        if not requires.needs_exclusive_resources:
            return True
        return (
            # Resources are reserved at once, so the attempt must be able to start now.
            self.outstanding + requires.slots <= min(self.credit, self.slots)
            and self.memory_mb + requires.memory_mb <= self.info.memory_mb
            and self.gpus + requires.gpus <= len(self.info.gpus)
        )


class WorkerPool:
    """The live workers, ordered by preference for the next attempt."""

    def __init__(self, prefetch_max: int) -> None:
        self._prefetch_max = prefetch_max
        self._workers: dict[NodeId, _Worker] = {}
        self._heap: list[tuple[float, int, NodeId, int]] = []
        self.wall_ms = 0  #: wall clock at the current step, by which visitors leave
        self.workers_with_room: set[NodeId] = set()
        """Workers that may have got more room since this set was last emptied."""

    def add(self, info: NodeInfo) -> None:
        """Add or update a worker; it gets no attempts before `attach`."""
        slots = max(info.slots, 1)
        worker = self._workers.get(info.id)
        if worker is None:
            self._workers[info.id] = _Worker(info, slots, slots)
            return
        worker.info, worker.slots = info, slots
        self._push_to_heap(info.id, worker)

    def remove(self, node: NodeId) -> None:
        """Remove a worker; its heap entries become outdated."""
        self._workers.pop(node, None)
        self.workers_with_room.discard(node)

    def attach(self, node: NodeId) -> None:
        """Allow attempts on a worker; `set_held` follows."""
        self._workers[node].is_attached = True

    def set_held(self, node: NodeId, held: HeldAttempts) -> None:
        """Set the resources that the worker's attempts take."""
        worker = self._workers.get(node)
        if worker is not None:
            worker.outstanding = held.slots
            worker.memory_mb, worker.gpus = held.memory_mb, held.gpus
            self._push_to_heap(node, worker)

    def clear(self) -> None:
        """Remove all workers, at the end of an epoch."""
        self._workers.clear()
        self._heap.clear()
        self.workers_with_room.clear()

    def slots(self, node: NodeId) -> int:
        """Return the number of slots of a worker, 0 if it is unknown."""
        worker = self._workers.get(node)
        return 0 if worker is None else worker.slots

    def is_attached(self, node: NodeId) -> bool:
        """Return True if the worker takes attempts."""
        worker = self._workers.get(node)
        return worker is not None and worker.is_attached

    def attached(self) -> list[NodeId]:
        """Return the workers that take attempts."""
        return [node for node, worker in self._workers.items() if worker.is_attached]

    def capable_workers(self, requires: Requirements | None) -> list[NodeId]:
        """Return the attached workers that meet the requirements, busy or not."""
        wanted = NO_REQUIREMENTS if requires is None else requires
        return [n for n in self.attached() if self._meets(self._workers[n], wanted)]

    def can_run(self, requires: Requirements) -> bool:
        """Return True if any known worker meets the requirements."""
        return any(self._meets(each, requires) for each in self._workers.values())

    def why_none_meets(self, requires: Requirements) -> str | None:
        """Return why no known worker meets the requirements; None if one does."""
        infos = [worker.info for worker in self._workers.values()]
        return why_none_meets(infos, requires, self.wall_ms)

    def shortage_reasons(
        self, node: NodeId, requires: Requirements
    ) -> Iterator[RejectionReason]:
        """Yield the resources that a worker lacks now for the requirements."""
        worker = self._workers[node]
        if not worker.credit:
            yield RejectionReason("slots", "accepts no tasks now")
            return
        free = max(0, min(worker.credit, worker.slots) - worker.outstanding)
        if worker.outstanding >= worker.credit or (
            requires.needs_exclusive_resources and not free
        ):
            many = f"all {worker.slots} slots are busy"
            yield RejectionReason(
                "slots", "its slot is busy" if worker.slots == 1 else many
            )
        elif requires.needs_exclusive_resources and requires.slots > free:
            yield RejectionReason(
                "slots", f"needs {requires.slots} free slots, has {free}"
            )
        left_mb = worker.info.memory_mb - worker.memory_mb
        if requires.memory_mb > left_mb:
            memory = f"needs {requires.memory_mb} MB of memory, has {left_mb} free"
            yield RejectionReason("memory_granted", memory)
        left = len(worker.info.gpus) - worker.gpus
        if requires.gpus > left:
            wanted = count_phrase(requires.gpus, "GPU")
            yield RejectionReason("gpus_granted", f"needs {wanted}, has {left} free")

    def could_make_room_for(self, node: NodeId, requires: Requirements) -> bool:
        """Return True if a worker that gets no other attempts will have room."""
        worker = self._workers.get(node)
        return (
            worker is not None
            and worker.is_attached
            and worker.credit >= requires.slots
            and self._meets(worker, requires)
        )

    def soonest_free_worker(
        self, requires: Requirements, excluded: Collection[NodeId]
    ) -> NodeId | None:
        """Return the worker that is likely to have room first, if any will."""
        return min(
            (
                node
                for node in self.attached()
                if node not in excluded and self.could_make_room_for(node, requires)
            ),
            key=lambda node: self._workers[node].rank,
            default=None,
        )

    def set_credit(self, node: NodeId, credit: int) -> None:
        """Set the credit that a worker reported, capped at slots plus prefetch."""
        worker = self._workers.get(node)
        if worker is not None:
            credit = max(0, min(credit, worker.slots + self._prefetch_max))
            if credit != worker.credit:
                worker.credit = credit
                self._push_to_heap(node, worker)

    def cap_credit(self, node: NodeId, *, is_refusing: bool) -> None:
        """Allow no prefetch, or no attempt, until the worker reports a credit."""
        worker = self._workers.get(node)
        if worker is not None:
            cap = 0 if is_refusing else worker.slots
            worker.credit = min(worker.credit, cap)

    def set_load(self, node: NodeId, cpu_percent: float) -> None:
        """Set a machine's load, which decides between equally occupied workers."""
        worker = self._workers.get(node)
        if worker is not None:
            # With this order of arguments, NaN counts as idle.
            load = int(max(0.0, min(cpu_percent, 100.0))) // LOAD_STEP_PERCENT
            if load != worker.load:
                worker.load = load
                self._push_to_heap(node, worker)

    def has_slot(self) -> bool:
        """Return True if some worker takes one more attempt."""
        heap, workers = self._heap, self._workers
        while heap:
            worker = workers.get(heap[0][2])
            if (
                worker is not None
                and worker.heap_version == heap[0][3]
                and worker.outstanding < worker.credit
            ):
                return True
            heappop(heap)
        return False

    def take_slot(
        self, excluded: Collection[NodeId] = (), inputs: InputBytes | None = None
    ) -> NodeId | None:
        """Choose a worker for one more attempt and count it; None if all are full.

        Args:
            excluded: Workers that must not get it.
            inputs: The bytes that it needs, if they matter.
        """
        if inputs is not None:
            near = self._nearest_free(NO_REQUIREMENTS, excluded, None, inputs)
            if near is not None:
                self._count_attempt(near, NO_REQUIREMENTS)
                return near
        heap, workers = self._heap, self._workers
        excluded_lines: list[tuple[float, int, NodeId, int]] = []
        chosen: NodeId | None = None
        while heap:
            line = heappop(heap)
            node = line[2]
            worker = workers.get(node)
            if worker is None or worker.heap_version != line[3]:
                continue
            if worker.outstanding >= worker.credit:
                continue  # Its credit shrank; a larger credit will push it again.
            if node in excluded:
                excluded_lines.append(line)
                continue
            worker.outstanding += 1
            self._push_to_heap(node, worker)
            chosen = node
            break
        for line in excluded_lines:
            heappush(heap, line)
        return chosen

    def take_resources(
        self,
        requires: Requirements,
        excluded: Collection[NodeId],
        among: Collection[NodeId] | None = None,
        inputs: InputBytes | None = None,
    ) -> NodeId | None:
        """Choose a worker for an attempt with requirements, and count its resources.

        Args:
            requires: Requirements of the task.
            excluded: Workers that must not get it.
            among: Workers to check; None for all.
            inputs: The bytes that it needs, if they matter.
        """
        chosen: NodeId | None = None
        if inputs is not None:
            chosen = self._nearest_free(requires, excluded, among, inputs)
        if chosen is None:
            best: tuple[float, int, NodeId] | None = None
            for worker in self._workers_with_room(requires, excluded, among):
                rank = worker.rank
                if (best is None or rank < best) and self._meets(worker, requires):
                    best, chosen = rank, worker.info.id
        if chosen is not None:
            self._count_attempt(chosen, requires)
        return chosen

    def _workers_with_room(
        self,
        requires: Requirements,
        excluded: Collection[NodeId],
        among: Collection[NodeId] | None,
    ) -> Iterator[_Worker]:
        for node in self._workers if among is None else among:
            worker = self._workers.get(node)
            if worker is None or node in excluded or not worker.has_room(requires):
                continue
            yield worker

    def _nearest_free(
        self,
        requires: Requirements,
        excluded: Collection[NodeId],
        among: Collection[NodeId] | None,
        inputs: InputBytes,
    ) -> NodeId | None:
        """Return the worker with a free slot that lacks the fewest bytes, if any.

        The usual choice stays where it lacks only a few.
        """
        free = [
            worker
            for worker in self._workers_with_room(requires, excluded, among)
            if worker.outstanding < worker.slots and self._meets(worker, requires)
        ]
        if not free:
            return None
        usual = min(free, key=lambda worker: worker.rank).info.id
        if inputs.missing_at(usual) <= WORTH_BYTES:
            return usual
        nearest = min(
            free, key=lambda worker: (inputs.missing_at(worker.info.id), worker.rank)
        )
        return nearest.info.id

    def _meets(self, worker: _Worker, requires: Requirements) -> bool:
        return meets_requirements(worker.info, requires, self.wall_ms)

    def _count_attempt(self, node: NodeId, requires: Requirements) -> None:
        worker = self._workers[node]
        worker.outstanding += requires.slots
        worker.memory_mb += requires.memory_mb
        worker.gpus += requires.gpus
        self._push_to_heap(node, worker)

    def _push_to_heap(self, node: NodeId, worker: _Worker) -> None:
        """Push the worker's current entry to the heap, if it has room."""
        worker.heap_version += 1
        if not worker.is_attached or worker.outstanding >= worker.credit:
            return
        self.workers_with_room.add(node)
        if worker.info.leaves_ms is not None:
            return  # A visitor gets only tasks that allow it.
        heappush(self._heap, (*worker.rank, worker.heap_version))
        if len(self._heap) > 4 * len(self._workers) + HEAP_SLACK:
            self._rebuild_heap()

    def _rebuild_heap(self) -> None:
        """Drop the outdated heap entries."""
        self._heap[:] = [
            line
            for line in self._heap
            if (worker := self._workers.get(line[2])) is not None
            and worker.heap_version == line[3]
        ]
        heapify(self._heap)
