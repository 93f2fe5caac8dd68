"""Compaction: the floor rises, and all data below it is deleted at once.

A task is void once its submission is below the floor and no later fact is about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from octaskly.core.log.facts import Floor
from octaskly.core.log.merge import SubmissionTimes, TaskRow, facts_of, join_floors
from octaskly.core.model.arrays import member_id
from octaskly.core.model.ids import StreamId, TaskId, Vector
from tests.simulation.store.folding import kept

if TYPE_CHECKING:
    from tests.simulation.store.disk import Disk


def raise_floor(disk: Disk, floor: Floor) -> None:
    """Forget what is void from now on."""
    disk.add_writers(tuple((mark.stream, mark.epoch) for mark in floor.stream_floors))
    retire(disk, floor.retired)
    joined = join_floors(disk.floor, floor)
    known = [m for m in joined.stream_floors if m.seq > disk.retired.end_of(m.stream)]
    disk.floor = replace(joined, stream_floors=tuple(known))
    floors = floors_of(disk)
    for stream, seq in seqs_of(disk.floor).items():
        if seq > (start := disk.starts.get(stream, 0)):
            disk.begin_at(stream, seq)
            disk.streams[stream] = disk.streams[stream][max(0, seq - start) :]
            disk.starts[stream] = max(seq, disk.starts.get(stream, 0))
    horizon = disk.floor.horizon
    for task, birth in list(disk.births.items()):
        is_below = birth.seq <= floors.get(birth.stream, 0)
        if is_below and disk.changed[task] <= horizon:
            drop(disk, task)
        elif birth.first_hlc <= horizon:
            # A task's turn comes with its latest submission, or with its last fact.
            turn = disk.changed[task] if is_below else birth.last_hlc
            disk.births[task] = replace(birth, first_hlc=turn)
    for task in list(disk.early):
        drop_early(disk, task, floors)


def retire(disk: Disk, pairs: tuple[tuple[StreamId, int], ...]) -> None:
    """Leave out streams of which all is void."""
    for stream, end in pairs:
        disk.retired.add(stream, end)
        if disk.have(stream) <= end:
            disk.streams.pop(stream, None)
            disk.starts.pop(stream, None)
        elif stream in disk.streams and disk.starts.get(stream, 0) < end:
            disk.streams[stream] = disk.streams[stream][
                end - disk.starts.get(stream, 0) :
            ]
            disk.starts[stream] = end


def floors_of(disk: Disk) -> Vector:
    """Return up to where each stream is void, retired or not."""
    floors = {StreamId(s): 0 for s, _, _ in disk.retired.rows_after(0)}
    floors = {stream: disk.retired.end_of(stream) for stream in floors}
    return floors | seqs_of(disk.floor)


def is_void(disk: Disk, birth: SubmissionTimes, changed: int) -> bool:
    """Return True if the floor has passed a task that was born and changed then."""
    floor = floors_of(disk).get(birth.stream, 0)
    return birth.seq <= floor and changed <= disk.floor.horizon


def drop(disk: Disk, task: TaskId) -> None:
    """Forget a task, an array with its members."""
    record = disk.records.pop(task)
    disk.past[task] = record.state
    del disk.keys[task]
    disk.stored.pop(task, None)
    disk.with_parents.pop(task, None)
    disk.kept -= {kept(fact) for fact in facts_of(record)}
    for number, member in disk.members.pop(task, {}).items():
        disk.kept -= {kept(fact) for fact in facts_of(member)}
        del disk.changed[member_id(task, number)]
    row = TaskRow(record, disk.births.pop(task), disk.changed.pop(task))
    disk.gone.append(row)


def drop_early(disk: Disk, task: TaskId, floors: Vector) -> None:
    """Drop early facts below the floor about a task that is not here."""
    waiting = disk.early.pop(task, ())
    left = [entry for entry in waiting if entry.seq > floors.get(entry.stream, 0)]
    # A fact that was carried is in two entries.
    void = {kept(entry.fact) for entry in waiting} - {kept(e.fact) for e in left}
    disk.kept -= void
    if left:
        disk.early[task] = left


def seqs_of(floor: Floor) -> Vector:
    """Return the last sequence below a floor, for each stream."""
    return {mark.stream: mark.seq for mark in floor.stream_floors}
