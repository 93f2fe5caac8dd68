"""Data for a peer that lacks it: entries of the log, or rows instead.

Parts are small here, so that a few tasks need several.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING

from msgspec.structs import replace

from octaskly.core.effects import ServePull
from octaskly.core.log.facts import Entry
from octaskly.core.log.merge import TaskRow
from octaskly.core.model.arrays import member_id
from octaskly.core.model.ids import Epoch, StreamId, TaskId, Vector
from octaskly.core.protocol.messages import (
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from tests.simulation.store.ages import task_ages
from tests.simulation.store.members import BORN, MEMBERS, ROOM
from tests.simulation.store.purge import seqs_of

if TYPE_CHECKING:
    from tests.simulation.store.disk import Disk

PART_ROWS = 3  #: rows in one part of a snapshot, few so that several are needed
NOT_OPEN: tuple[int, list[Snapshot]] = (-1, [])
LAG_ENTRIES = 60  #: fewer missing entries are always sent as entries


def entries_after(
    disk: Disk, vector: Vector, most: int, draw: random.Random | None = None
) -> tuple[tuple[Entry, ...], tuple[tuple[StreamId, Epoch], ...], bool]:
    """Read entries beyond a vector, like the port of that name.

    With `draw` the streams come in any order, as the protocol allows.
    """
    found: list[Entry] = []
    # The oldest epoch comes first: floors wait for the entries that their writer held.
    order = sorted(disk.streams, key=lambda s: (disk.writers[s], s))
    if draw is not None:
        draw.shuffle(order)
    for stream in order:
        seen, start = vector.get(stream, 0), disk.starts.get(stream, 0)
        if seen >= start:
            found += disk.streams[stream][seen - start :]
    chunk = tuple(found[:most])
    streams = dict.fromkeys(entry.stream for entry in chunk)
    epochs = tuple((stream, disk.writers[stream]) for stream in streams)
    return chunk, epochs, len(found) > most


def next_part(disk: Disk, pull: ServePull) -> Snapshot | None:
    """Return the next part of a snapshot; None if entries serve better.

    All parts are read with the first one, so later writes are in none of them.
    """
    cursor = pull.cursor
    if cursor is None and not _is_wanted(disk, pull, _head(disk)):
        return None
    part = _open_part(disk, pull)
    if part is None:
        assert not disk.is_merging, "the rows exceed the head"
        disk.sent_count += 1
        first = SnapshotCursor(disk.sent_count, 0, retired_key=pull.retired_count or 0)
        parts = _all_parts(disk, first)
        disk.sent[pull.peer] = disk.sent_count, parts
        part = parts[0]
    if not part.has_more:
        del disk.sent[pull.peer]
    return part


def must_wait(disk: Disk, pull: ServePull) -> bool:
    """Return True if the answer is a new snapshot, and another is merged here."""
    if pull.cursor is None:
        return disk.is_merging and _is_wanted(disk, pull, _head(disk))
    return disk.is_merging and _open_part(disk, pull) is None


def _open_part(disk: Disk, pull: ServePull) -> Snapshot | None:
    """Return the part that a peer asks for, if its snapshot is open."""
    open_id, parts = disk.sent.get(pull.peer, NOT_OPEN)
    if pull.cursor is None or pull.cursor.snapshot_id != open_id:
        return None
    # A restored disk uses an id again.
    return next((part for part in parts if part.after == pull.cursor), None)


def _all_parts(disk: Disk, cursor: SnapshotCursor) -> list[Snapshot]:
    """Read a snapshot: retired streams, records, rows, then pending entries."""
    parts: list[Snapshot] = []
    after, keys = cursor, row_keys(disk)
    while not parts or parts[-1].has_more:
        part = _part_after(disk, after, keys)
        head = None if parts else _head(disk)
        parts.append(replace(part, head=head, after=after if parts else None))
        after = part.cursor
    return parts


def _part_after(
    disk: Disk, cursor: SnapshotCursor, keys: dict[TaskId, int]
) -> Snapshot:
    left = disk.retired.rows_after(cursor.retired_key)
    retired = tuple((StreamId(s), end) for s, end, _ in left)[:PART_ROWS]
    cursor = replace(cursor, retired_key=cursor.retired_key + len(retired))
    part = Snapshot(rows=(), cursor=cursor, has_more=False, retired=retired)
    if len(left) > PART_ROWS:
        return replace(part, has_more=True)
    told = disk.committed_records()[cursor.record_key :][:PART_ROWS]
    if len(told) == PART_ROWS:
        cursor = replace(cursor, record_key=cursor.record_key + PART_ROWS)
        return replace(part, records=told, cursor=cursor, has_more=True)
    # In the order of sending; a long log has thousands of parts.
    seen = bisect_right(list(keys.values()), cursor.row_key)
    tasks = list(islice(keys, seen, seen + PART_ROWS))
    ages = task_ages(disk)
    rows = tuple(
        TaskRow(disk.raw(task), disk.births.get(task, BORN), changed_hlc, age_ms)
        for task in tasks
        for changed_hlc in [disk.changed[task]]
        for age_ms in [ages.age_ms(changed_hlc, disk.stored.get(task, 0))]
    )
    key = keys[tasks[-1]] if tasks else cursor.row_key
    cursor = replace(cursor, row_key=key, record_key=cursor.record_key + len(told))
    part = replace(part, rows=rows, records=told, cursor=cursor)
    if len(keys) > seen + len(tasks):
        return replace(part, has_more=True)
    early = _early_after(disk, cursor.pending_key)
    pending = tuple(early[: PART_ROWS - len(tasks)])
    if pending:
        last = pending[-1].stream, pending[-1].seq
        cursor = replace(cursor, pending_key=last)
    return replace(
        part, pending=pending, cursor=cursor, has_more=len(early) > len(pending)
    )


def _early_after(disk: Disk, after: tuple[StreamId, int]) -> list[Entry]:
    """Return the facts of unknown tasks after a place in the log, in order."""
    floors = seqs_of(disk.floor)
    return sorted(
        (
            Entry(entry.stream, entry.seq, entry.hlc, entry.fact)
            for some in disk.early.values()
            for entry in some
            if entry.seq > floors.get(entry.stream, 0)
            and (entry.stream, entry.seq) > after
        ),
        key=lambda entry: (entry.stream, entry.seq),
    )


def row_keys(disk: Disk) -> dict[TaskId, int]:
    """Return the position of each row, in order: members come behind all tasks."""
    keys = dict(disk.keys) if disk.members else disk.keys
    for array, key in disk.keys.items() if disk.members else ():
        asked = disk.records[array].spec
        for number in sorted(disk.members.get(array, ())):
            assert asked is not None
            assert asked.array is not None
            position = asked.array.position(number)
            assert position is not None
            keys[member_id(array, number)] = MEMBERS + key * ROOM + position
    return keys


def _head(disk: Disk) -> SnapshotHead:
    """Return the vector that a snapshot stands for: all entries but void ones."""
    return SnapshotHead(
        vector=disk.vector(),
        epochs=disk.epochs(),
        floor=disk.floor,
        hlc=disk.hlc,
        retired=disk.retired.digest,
    )


def _is_wanted(disk: Disk, pull: ServePull, head: SnapshotHead) -> bool:
    lag, vector = 0, dict(pull.vector)
    known = pull.retired_count
    if known is None or not disk.retired.are_held_after(known, vector):
        return True
    for stream, have in head.vector:
        seen = vector.get(stream, 0)
        if seen < disk.starts.get(stream, 0):
            return True
        lag += max(0, have - seen)
    return lag > max(LAG_ENTRIES, 2 * len(disk.records))
