"""Ages of tasks on a disk in memory, by the rules that the store uses.

The bound for errors of clocks is small here, because tasks are kept for seconds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from octaskly.core.log.task_ages import (
    ClockWatch,
    TaskAges,
    storing_time_ms,
    trusted_timestamps,
)
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.hlc import HLC_EPOCH_MS
from octaskly.core.model.ids import Moment, TaskId

if TYPE_CHECKING:
    from tests.simulation.store.disk import Disk

CLOCK_ERROR_MS = 100  #: smaller errors of a clock are not corrected
FIRST_MOMENT = Moment(0.0, HLC_EPOCH_MS)


def watch_clock(now: Moment) -> ClockWatch:
    """Return a watch for the steps of a clock."""
    return ClockWatch(now, CLOCK_ERROR_MS)


def task_ages(disk: Disk) -> TaskAges:
    """Return what the ages on a disk are computed from."""
    return TaskAges(disk.now.wall_ms, tuple(disk.steps), CLOCK_ERROR_MS)


def note_stored(disk: Disk, task: TaskId, age_ms: int = 0) -> None:
    """Note when a fact was stored, unless its timestamp is trusted."""
    place = split_member_id(task)
    task = task if place is None else place[0]
    if task not in disk.records:
        return  # The fact waits for its task.
    stored_ms = storing_time_ms(disk.now) - age_ms
    first_hlc, last_hlc = _trusted(stored_ms)
    if not first_hlc <= disk.changed[task] <= last_hlc:
        disk.stored[task] = max(stored_ms, disk.stored.get(task, 0))


@lru_cache
def _trusted(stored_ms: int) -> tuple[int, int]:
    """Return what a disk trusts; all facts of one commit have the same time."""
    return trusted_timestamps(stored_ms, CLOCK_ERROR_MS)
