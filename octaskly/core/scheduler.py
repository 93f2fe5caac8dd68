"""Which worker gets the next attempt: free slots first, then prefetch, always fair.

Owns how much each worker may hold and how much it holds. It does not know tasks:
it answers "who takes one more?", in logarithmic time, so that neither a long queue
nor a big mesh costs anything per task.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from octaskly.core.model import NodeId

LOAD_STEP_PERCENT = 10  #: finer differences in load are noise, not a reason
HEAP_SLACK = 64  #: outdated heap lines that are kept before the heap is rebuilt


@dataclass(slots=True)
class _Worker:
    """One worker as the pool counts it."""

    slots: int
    credit: int
    outstanding: int = 0
    load: int = 0  #: in steps of `LOAD_STEP_PERCENT`
    is_attached: bool = False
    version: int = 0  #: of its line in the heap; other lines are outdated


class WorkerPool:
    """The live workers, ordered by who should take the next attempt.

    Order: outstanding per slot, then load, then id. A worker below one attempt per
    slot has a free slot, so free slots come first by themselves.
    """

    def __init__(self, prefetch_max: int) -> None:
        self._prefetch_max = prefetch_max
        self._workers: dict[NodeId, _Worker] = {}
        self._heap: list[tuple[float, int, NodeId, int]] = []

    def __contains__(self, node: NodeId) -> bool:
        return node in self._workers

    def add(self, node: NodeId, slots: int) -> None:
        """Know a worker; it takes nothing before it is attached."""
        slots = max(slots, 1)
        worker = self._workers.get(node)
        if worker is None:
            self._workers[node] = _Worker(slots, slots)
            return
        worker.slots = slots
        self._offer(node, worker)

    def remove(self, node: NodeId) -> None:
        """Forget a worker; its lines in the heap become outdated."""
        self._workers.pop(node, None)

    def attach(self, node: NodeId, outstanding: int) -> None:
        """Let a worker take attempts, on top of those that it said it holds."""
        worker = self._workers[node]
        worker.is_attached = True
        worker.outstanding = outstanding
        self._offer(node, worker)

    def detach_all(self) -> None:
        """Let nobody take anything until it is attached again."""
        for worker in self._workers.values():
            worker.is_attached = False
            worker.outstanding = 0
            worker.credit = worker.slots
        self._heap.clear()

    def slots(self, node: NodeId) -> int:
        """Return how many attempts a worker runs at a time, 0 if it is not known."""
        worker = self._workers.get(node)
        return 0 if worker is None else worker.slots

    def is_attached(self, node: NodeId) -> bool:
        """Whether the worker takes attempts."""
        worker = self._workers.get(node)
        return worker is not None and worker.is_attached

    def attached(self) -> list[NodeId]:
        """Return the workers that take attempts."""
        return [node for node, worker in self._workers.items() if worker.is_attached]

    def set_credit(self, node: NodeId, credit: int) -> None:
        """Believe what a worker says it takes in all, within what we allow."""
        worker = self._workers.get(node)
        if worker is not None:
            credit = max(0, min(credit, worker.slots + self._prefetch_max))
            if credit != worker.credit:
                worker.credit = credit
                self._offer(node, worker)

    def cap_credit(self, node: NodeId, *, is_refusing: bool) -> None:
        """Give no work ahead, or none at all, until the worker names a credit."""
        worker = self._workers.get(node)
        if worker is not None:
            cap = 0 if is_refusing else worker.slots
            worker.credit = min(worker.credit, cap)

    def set_load(self, node: NodeId, cpu_percent: float) -> None:
        """Prefer idle machines among those that hold equally much."""
        worker = self._workers.get(node)
        if worker is not None:
            # In this order of arguments NaN counts as idle.
            load = int(max(0.0, min(cpu_percent, 100.0))) // LOAD_STEP_PERCENT
            if load != worker.load:
                worker.load = load
                self._offer(node, worker)

    def give_back(self, node: NodeId, count: int) -> None:
        """Count attempts that the worker holds no longer."""
        worker = self._workers.get(node)
        if worker is not None:
            worker.outstanding = max(0, worker.outstanding - count)
            self._offer(node, worker)

    def take(self, excluded: Collection[NodeId] = ()) -> NodeId | None:
        """Choose who takes one more attempt and count it; None: all are full."""
        heap, workers = self._heap, self._workers
        passed: list[tuple[float, int, NodeId, int]] = []
        chosen: NodeId | None = None
        while heap:
            line = heappop(heap)
            node = line[2]
            worker = workers.get(node)
            if worker is None or worker.version != line[3]:
                continue
            if worker.outstanding >= worker.credit:
                continue  # Its credit shrank; a larger one offers it again.
            if node in excluded:
                passed.append(line)
                continue
            worker.outstanding += 1
            self._offer(node, worker)
            chosen = node
            break
        for line in passed:
            heappush(heap, line)
        return chosen

    def _offer(self, node: NodeId, worker: _Worker) -> None:
        """Put the worker's current line into the heap, if it has room."""
        worker.version += 1
        if not worker.is_attached or worker.outstanding >= worker.credit:
            return
        ratio = worker.outstanding / worker.slots
        heappush(self._heap, (ratio, worker.load, node, worker.version))
        if len(self._heap) > 4 * len(self._workers) + HEAP_SLACK:
            self._rebuild()

    def _rebuild(self) -> None:
        """Drop the outdated lines."""
        self._heap[:] = [
            line
            for line in self._heap
            if (worker := self._workers.get(line[2])) is not None
            and worker.version == line[3]
        ]
        heapify(self._heap)
