"""The queued tasks that a visitor could run that is not there yet."""

from __future__ import annotations

from octaskly.core.model.arrays import lane_key_of
from octaskly.core.model.ids import VISITOR_PREFIX, NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.task_options import (
    NO_REQUIREMENTS,
    Requirements,
)
from octaskly.core.model.tasks import LaneKey
from octaskly.core.replies import VisitorDemand
from octaskly.core.scheduling.queued_task import Stage
from octaskly.core.scheduling.requirements import meets_requirements
from octaskly.core.scheduling.task_queue import TaskQueue

Label = tuple[str, str]

FAR_MS = 1 << 53  #: a visitor that stays for as long as any task needs


def count_waiting(queue: TaskQueue, label: Label | None) -> VisitorDemand:
    """Count the queued tasks, and members, that a visitor could run.

    Nobody knows this visitor yet. So the count assumes that it is large enough and
    stays long enough for each task, and has no label but the given one.

    Args:
        queue: The tasks in memory.
        label: If given, only tasks that require this label count.
    """
    fits: dict[LaneKey, bool] = {}
    waiting = 0
    for task in queue.tasks.waiting:
        if task.stage is not Stage.QUEUED or task.avoids_visitors:
            continue
        key = task.lane or lane_key_of(task.spec)
        if key not in fits:
            fits[key] = _fits(task.requires or NO_REQUIREMENTS, label)
        if fits[key]:
            waiting += 1 if task.remaining is None else len(task.remaining)
    lanes = queue.lanes
    is_exact = not lanes.has_unopened and not any(
        lane.has_more and _fits(lane.requires or NO_REQUIREMENTS, label)
        for lane in lanes.all_lanes()
    )
    return VisitorDemand(waiting, is_exact)


def _fits(requires: Requirements, label: Label | None) -> bool:
    """Return True if a visitor with this label could meet the requirements."""
    if label is not None and label not in requires.labels:
        return False
    visitor = NodeInfo(
        id=NodeId(f"{VISITOR_PREFIX}next"),
        boot="",
        name="",
        slots=requires.slots,
        version="",
        peer_port=0,
        lan_port=0,
        labels=() if label is None else (label,),
        memory_mb=requires.memory_mb,
        os=requires.os,
        arch=requires.arch,
        gpus=("any",) * requires.gpus,
        pythons=(requires.python,),
        leaves_ms=FAR_MS,
    )
    return meets_requirements(visitor, requires, 0)
