"""Reads of a dispatcher: tasks that wait, that run, and whose wait is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octaskly.core.effects import LoadLive, LoadQueued, LoadTasks, LoadUnblocked
from octaskly.core.events import (
    LiveLoaded,
    QueuedLoaded,
    TasksLoaded,
    UnblockedLoaded,
    UnblockedTask,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.hlc import accepted_hlc
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import TaskState
from tests.simulation.store.ages import task_ages
from tests.simulation.store.members import is_live, with_rest
from tests.simulation.store.snapshot import row_keys
from tests.support.builders import load_reply

if TYPE_CHECKING:
    from tests.simulation.store.disk import Disk

GOOD = {
    "success": {TaskState.COMPLETED},
    "failure": {TaskState.FAILED, TaskState.CANCELLED},
    "any": {TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED},
}


def queued(disk: Disk) -> list[TaskRecord]:
    """Return the tasks that wait, in queue order: an array before its members."""
    waiting = [
        _with_rest(disk, record)
        for record in disk.records.values()
        if record.spec is not None
        and record.state is TaskState.QUEUED
        and record.waits_for is None
    ]
    members = disk.shown_members(lambda raw: raw.state is TaskState.QUEUED)
    # The array may be cancelled, and its members that wait with it.
    waiting += (r for r in members if r.state is TaskState.QUEUED)
    return sorted(waiting, key=_place)


def load(disk: Disk, asked: LoadQueued) -> QueuedLoaded:
    """Read the next queued tasks of a shape."""
    return load_reply(queued(disk), asked)


def live(disk: Disk, ask: LoadLive) -> LiveLoaded:
    """Read some of the tasks that run, or are decided while an attempt still runs."""
    records = (*disk.records.values(), *disk.shown_members(_is_open))
    running = {r.id: r for r in records if _is_running(disk, r)}
    keys = row_keys(disk)
    order = sorted(task for task in running if keys[task] > ask.after_key)
    order.sort(key=keys.__getitem__)
    found = tuple(_with_rest(disk, running[task]) for task in order[: ask.limit])
    next_key = keys[found[-1].id] if len(order) > ask.limit else None
    return LiveLoaded(ask.term, found, next_key)


def by_id(disk: Disk, ask: LoadTasks) -> TasksLoaded:
    """Read the first half of these tasks, so that what is left out is asked for."""
    tasks = ask.tasks[: len(ask.tasks) // 2 + 1]
    wanted = set(tasks)
    records = (
        *(record for task, record in disk.records.items() if task in wanted),
        *disk.shown_members(lambda raw: raw.id in wanted),
    )
    found = tuple(_with_rest(disk, record) for record in records)
    return TasksLoaded(ask.term, tasks, found)


def ripe(disk: Disk, ask: LoadUnblocked) -> UnblockedLoaded:
    """Read tasks whose parents have ended, like the port of that name."""
    waiting = [
        record
        for record in map(disk.records.__getitem__, disk.with_parents)
        if record.waits_for is not None
    ]
    found = []
    for record in waiting:
        after = record.waits_for
        assert after is not None
        parents = [TaskId(task) for task in after.tasks]
        ends = {task: _end(disk, task) for task in parents}
        assert record.spec is not None
        stored_ms = disk.stored.get(record.id, 0)
        since_hlc = task_ages(disk).since_hlc(accepted_hlc(record.spec), stored_ms)
        is_old = since_hlc < ask.before_hlc
        bad = [t for t, end in ends.items() if end and end not in GOOD[after.end]]
        is_over = all(
            end is not None or (is_old and task not in disk.records)
            for task, end in ends.items()
        )
        if bad or is_over:
            found.append(UnblockedTask(record, min(bad, default=None)))
    return UnblockedLoaded(ask.query_number, tuple(found[: ask.limit]), bool(waiting))


def _is_open(raw: TaskRecord) -> bool:
    return raw.state is TaskState.RUNNING or is_live(raw)


def _is_running(disk: Disk, record: TaskRecord) -> bool:
    return record.state is TaskState.RUNNING or is_any_live(disk, record)


def is_any_live(disk: Disk, record: TaskRecord) -> bool:
    """Return True if the latest attempt, or that of a member, has no end."""
    said = disk.members.get(record.id)
    return is_live(record) or (said is not None and any(map(is_live, said.values())))


def _with_rest(disk: Disk, record: TaskRecord) -> TaskRecord:
    said = disk.members.get(record.id)
    return record if said is None else with_rest(record, said)


def _end(disk: Disk, task: TaskId) -> TaskState | None:
    """Return a task's end, if any, also where the task was forgotten."""
    record = disk.records.get(task)
    state = disk.past.get(task) if record is None else record.state
    return state if state is not None and state.is_final else None


def _place(record: TaskRecord) -> tuple[int, int, TaskId]:
    """Return the position in the queue."""
    place = split_member_id(record.id)
    return record.ord, -1 if place is None else place[1], record.id
