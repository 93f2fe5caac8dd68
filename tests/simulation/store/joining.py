"""Rows of a peer's snapshot, applied part by part.

They hold more than the log here, until the last part brings the vector that they stand
for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from octaskly.core.effects import MergeRows
from octaskly.core.log.facts import Submitted
from octaskly.core.log.merge import TaskRow, facts_of
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import Vector
from tests.simulation.store.ages import note_stored
from tests.simulation.store.folding import Kept, fold, fold_submission, kept, learn
from tests.simulation.store.purge import drop, drop_early, is_void, raise_floor, seqs_of

if TYPE_CHECKING:
    from tests.simulation.store.disk import Disk


def join_rows(disk: Disk, effect: MergeRows) -> None:
    """Apply a peer's rows, and with the last ones its vector."""
    head = effect.head
    floors = dict(effect.retired) | seqs_of(head.floor)
    loose = disk.loose.setdefault(head.hlc, set())
    for row in (_without_void(disk, row) for row in effect.rows):
        if row is None or row.record.spec is None:
            continue
        task = row.record.id
        mine = disk.records.get(task)
        if mine and mine.spec and mine.spec.ord != row.record.spec.ord:
            birth = disk.births[task]
            if birth.seq <= floors.get(birth.stream, 0):
                drop(disk, task)  # The id is in use again.
        drop_early(disk, task, floors)
        for fact in facts_of(row.record):
            loose.add(kept(fact))
            if isinstance(fact, Submitted):
                fold_submission(disk, fact, row.submission_times)
            else:
                fold(disk, fact, row.last_change_hlc)
        disk.changed[task] = max(disk.changed[task], row.last_change_hlc)
        note_stored(disk, task, row.age_ms)
    for row in (row for row in effect.rows if split_member_id(row.record.id)):
        loose |= _join_member(disk, row, floors)
    loose |= learn(disk, effect.records)
    for stream, seq in effect.vector:
        disk.stands_for[stream] = max(disk.stands_for.get(stream, 0), seq)
    if effect.is_last:
        _end(disk, effect)


def _end(disk: Disk, effect: MergeRows) -> None:
    """Hold all that the rows stand for, without the entries."""
    head = effect.head
    disk.kept |= disk.loose.pop(head.hlc)
    disk.add_writers(head.epochs)
    for stream, seq in head.vector:
        if seq > disk.have(stream):
            disk.begin_at(stream, seq)
    disk.hlc = max(disk.hlc, head.hlc)
    raise_floor(disk, replace(head.floor, retired=effect.retired))


def _join_member(disk: Disk, row: TaskRow, floors: Vector) -> set[Kept]:
    """Apply a peer's facts about a member, if its array is here."""
    task = row.record.id
    drop_early(disk, task, floors)
    facts = facts_of(row.record) if disk.has(task) else ()
    for fact in facts:
        fold(disk, fact, row.last_change_hlc)
    note_stored(disk, task, row.age_ms)
    return set(map(kept, facts))


def _without_void(disk: Disk, row: TaskRow) -> TaskRow | None:
    """Return a row; of a void one, only its additions to a task that is still here."""
    if not is_void(disk, row.submission_times, row.last_change_hlc):
        return row
    mine = disk.records.get(row.record.id)
    if mine is None or not (mine.spec and row.record.spec):
        return None
    is_same = mine.spec.ord == row.record.spec.ord
    return replace(row, submission_times=disk.births[mine.id]) if is_same else None
