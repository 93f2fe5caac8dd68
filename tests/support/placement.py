"""Placement as one call: any workers in, the takers of the next attempts out."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from octaskly.core.model.ids import NodeId
from octaskly.core.scheduling.task_table import HeldAttempts
from octaskly.core.scheduling.worker_pool import WorkerPool
from tests.support.builders import node_info


class PlacementReason(StrEnum):
    """The reason for the choice of a worker."""

    SLOT = "slot"  #: it had a free slot
    PREFETCH = "prefetch"  #: no slot was free anywhere, and it takes work ahead


class WorkerView(NamedTuple):
    """The input of placement about one worker."""

    node: NodeId
    slots: int
    outstanding: int = 0  #: attempts that it holds, running and waiting
    credit: int | None = None  #: attempts that it accepts in all; None: its slots
    cpu_percent: float = 0.0


class Placement(NamedTuple):
    """One more attempt for a worker, and the reason."""

    node: NodeId
    why: PlacementReason


def place(
    views: Iterable[WorkerView], wanted: int, *, prefetch_max: int
) -> list[Placement]:
    """Return the worker of each of the next `wanted` attempts, in order.

    Shorter than `wanted` when all workers are full.
    """
    pool = WorkerPool(prefetch_max)
    slots: dict[NodeId, int] = {}
    held: dict[NodeId, int] = {}
    for view in views:
        slots[view.node], held[view.node] = view.slots, view.outstanding
        pool.add(node_info(view.node, view.slots))
        pool.set_credit(view.node, view.slots if view.credit is None else view.credit)
        pool.set_load(view.node, view.cpu_percent)
        pool.attach(view.node)
        pool.set_held(view.node, HeldAttempts(slots=view.outstanding))
    placements: list[Placement] = []
    while len(placements) < wanted and (node := pool.take_slot()) is not None:
        held[node] += 1
        is_ahead = held[node] > slots[node]
        placements.append(
            Placement(
                node, PlacementReason.PREFETCH if is_ahead else PlacementReason.SLOT
            )
        )
    return placements
