"""Snapshots of peers: staged until the last part is here, then merged part by part.

While they are merged, tasks hold more than the log here, until the last part brings the
vector that they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from octaskly.core.effects import MergeRows, StageRows
from octaskly.core.log.facts import Entry, Submitted
from octaskly.core.log.merge import TaskRow, facts_of
from octaskly.core.log.range_facts import task_entries
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import NodeId, Vector, VectorItems
from octaskly.core.protocol.messages import Snapshot, SnapshotHead
from tests.simulation.store.ages import note_stored
from tests.simulation.store.folding import (
    Kept,
    fold,
    fold_or_wait,
    fold_submission,
    kept,
    learn,
)
from tests.simulation.store.purge import drop, drop_early, is_void, raise_floor, seqs_of

if TYPE_CHECKING:
    from tests.simulation.store.disk import Disk


@dataclass
class Staged:
    """The parts of a snapshot on a disk that are not merged yet."""

    peer: NodeId
    head: SnapshotHead
    parts: list[Snapshot] = field(default_factory=list)
    retired: VectorItems = ()
    is_complete: bool = False
    loose: set[Kept] = field(default_factory=set)
    """Facts of merged rows and records, kept once the last part brings the vector."""

    def copy(self) -> Staged:
        """Return a copy that does not change with this."""
        some = list(self.parts), self.retired, self.is_complete, set(self.loose)
        return Staged(self.peer, self.head, *some)


def stage_rows(disk: Disk, effect: StageRows) -> None:
    """Keep a part; its records take effect at once."""
    part = effect.part
    if part.head is not None:
        for number, known in list(disk.staged.items()):
            if known.peer == effect.peer and not known.is_complete:
                del disk.staged[number]
        disk.staged[effect.snapshot] = Staged(effect.peer, part.head)
    staged = disk.staged[effect.snapshot]
    assert not staged.is_complete, "a part came after the last one"
    staged.parts.append(part)
    staged.retired += part.retired
    staged.is_complete = not part.has_more
    staged.loose |= learn(disk, part.records)


def finish_merges(disk: Disk) -> None:
    """Drop incomplete snapshots, and merge what is left of complete ones."""
    for number, staged in list(disk.staged.items()):
        if not staged.is_complete:
            del disk.staged[number]
        while staged.is_complete and number in disk.staged:
            is_last = len(staged.parts) == 1
            head, retired = staged.head, staged.retired
            join_rows(disk, MergeRows(0, number, head, retired, is_last))


def join_rows(disk: Disk, effect: MergeRows) -> None:
    """Apply the next rows of a snapshot, and with the last ones its vector."""
    staged = disk.staged[effect.snapshot]
    assert staged.is_complete, "half of a snapshot counts for nothing"
    assert (staged.head, staged.retired) == (effect.head, effect.retired)
    part = staged.parts.pop(0)
    rows = part.rows
    assert effect.is_last is not bool(staged.parts)
    floors = dict(effect.retired) | seqs_of(effect.head.floor)
    for row in (_without_void(disk, row) for row in rows):
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
            staged.loose.add(kept(fact))
            if isinstance(fact, Submitted):
                fold_submission(disk, fact, row.submission_times)
            else:
                fold(disk, fact, row.last_change_hlc)
        disk.changed[task] = max(disk.changed[task], row.last_change_hlc)
        note_stored(disk, task, row.age_ms)
    for row in (row for row in rows if split_member_id(row.record.id)):
        staged.loose |= _join_member(disk, row, floors)
    staged.loose |= _join_pending(disk, part.pending)
    if effect.is_last:
        _end(disk, effect, staged)


def _end(disk: Disk, effect: MergeRows, staged: Staged) -> None:
    """Hold all that the rows stand for, without the entries."""
    head = effect.head
    del disk.staged[effect.snapshot]
    disk.kept |= staged.loose
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


def _join_pending(disk: Disk, entries: Sequence[Entry]) -> set[Kept]:
    """Apply entries of a peer that are not in its rows, unless they are held."""
    news = [
        (entry, fact)
        for entry, fact in task_entries(entries)
        if entry.seq > disk.have(entry.stream)
    ]
    for entry, fact in news:
        fold_or_wait(disk, entry, fact)
    return {kept(fact) for _, fact in news}


def _without_void(disk: Disk, row: TaskRow) -> TaskRow | None:
    """Return a row; of a void one, only its additions to a task that is still here."""
    if not is_void(disk, row.submission_times, row.last_change_hlc):
        return row
    mine = disk.records.get(row.record.id)
    if mine is None or not (mine.spec and row.record.spec):
        return None
    is_same = mine.spec.ord == row.record.spec.ord
    return replace(row, submission_times=disk.births[mine.id]) if is_same else None
