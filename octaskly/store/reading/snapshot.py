"""Snapshots: task rows and records sent to a peer instead of log entries.

All parts are read in one transaction: see `open_snapshots`. So the rows have the facts
of the entries up to the vector of the head, and no others.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from heapq import merge
from operator import attrgetter, itemgetter
from typing import Final

from msgspec.structs import replace

from octaskly.core.effects import ServePull
from octaskly.core.log.facts import Entry, Recorded
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.log.range_facts import MEMBER_BYTES
from octaskly.core.log.range_rows import RangeRow
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.ids import AttemptId, Epoch, NodeId, StreamId
from octaskly.core.model.tasks import Outcome
from octaskly.core.protocol.messages import (
    ENTRIES_MAX,
    RANGE_ROWS_MAX,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.ports.store import Packer
from octaskly.store.reading import queries
from octaskly.store.tables import arrays, member_ranges, mesh_records, node_state, rows
from octaskly.store.tables.floors import read_floor, read_retired_digest

LAG_ENTRIES: Final = 200_000  #: a lag up to this is always sent as entries
ENTRIES_PER_TASK: Final = 2  #: more entries per task are sent as rows

OUTPUT_BYTES_MAX: Final = 2 << 20
"""Of all outputs in one row: those of one attempt, beside which a large spec fits.

Lists of files count as well, with the most bytes that their paths may have.
"""

_RETIRED_BYTES: Final = 18  #: of one retired stream in a message, at most


def read_snapshot_part(
    db: sqlite3.Connection,
    packer: Packer,
    cursor: SnapshotCursor,
    bytes_max: int,
    ages: TaskAges,
    head: SnapshotHead | None = None,
) -> Snapshot:
    """Return the next part of a snapshot.

    Args:
        db: A reader in the transaction of the snapshot.
        packer: Decodes entries.
        cursor: The end of the last part.
        bytes_max: Size limit of the part. It has at least one item, if any is left.
        ages: What the ages of the rows are computed from.
        head: The head of the snapshot, for its first part.
    """
    after = cursor if head is None else None
    retired, has_all_retired = _read_retired(db, cursor.retired_key, bytes_max)
    cursor = replace(cursor, retired_key=cursor.retired_key + len(retired))
    part = Snapshot(
        rows=(), cursor=cursor, has_more=False, head=head, after=after, retired=retired
    )
    if not has_all_retired:
        return replace(part, has_more=True)
    sent: list[Recorded] = []
    left = bytes_max - _RETIRED_BYTES * len(retired)
    for id_, record in mesh_records.read_after(db, cursor.record_key):
        if sent and left <= 0:
            return replace(part, records=tuple(sent), cursor=cursor, has_more=True)
        sent.append(record)
        cursor = replace(cursor, record_key=id_)
        left -= mesh_records.size_of(record)
    part = replace(part, records=tuple(sent), cursor=cursor)
    part, left = _with_rows(db, part, left, ages)
    return part if part.has_more else _with_pending(db, packer, part, left)


def _with_rows(
    db: sqlite3.Connection, part: Snapshot, left: int, ages: TaskAges
) -> tuple[Snapshot, int]:
    """Add rows of tasks and ranges, as many as have room; return it with the room."""
    found: list[TaskRow] = []
    ranges: list[RangeRow] = []
    key, has_more = part.cursor.row_key, False
    for next_key, row in _rows(db, key, ages):
        is_full = left <= 0 or len(ranges) == RANGE_ROWS_MAX
        # A range whose first member is apart has the key of that member's row.
        if is_full and (found or ranges) and next_key > key:
            has_more = True
            break
        if isinstance(row, RangeRow):
            ranges.append(row)
            left -= MEMBER_BYTES * len(row.members)
        else:
            found.append(row)
            left -= rows.size_of(row.record)
        key = next_key
    part = replace(
        part,
        rows=tuple(found),
        ranges=tuple(ranges),
        cursor=replace(part.cursor, row_key=key),
        has_more=has_more,
    )
    return part, left


def _with_pending(
    db: sqlite3.Connection, packer: Packer, part: Snapshot, left: int
) -> Snapshot:
    """Add pending entries to the last rows, as many as have room."""
    key, some = part.cursor.pending_key, list[Entry]()
    has_more = False
    for entry, size_bytes in queries.read_pending_entries(db, packer, key):
        if (part.rows or part.ranges or some) and left <= 0:
            has_more = True
            break
        some.append(entry)
        key = entry.stream, entry.seq
        left -= size_bytes
    cursor = replace(part.cursor, pending_key=key)
    return replace(part, pending=tuple(some), cursor=cursor, has_more=has_more)


def _read_retired(
    db: sqlite3.Connection, after: int, bytes_max: int
) -> tuple[tuple[tuple[StreamId, int], ...], bool]:
    """Return the next retired streams, and True if they are the last ones.

    Numbers have no gaps, because no row is ever deleted.
    """
    limit = min(max(1, bytes_max // _RETIRED_BYTES), ENTRIES_MAX)
    found = db.execute(
        "SELECT stream, seq FROM retired_streams WHERE no > ? ORDER BY no LIMIT ?",
        (after, limit),
    ).fetchall()
    return tuple(found), len(found) < limit


def read_snapshot_head(db: sqlite3.Connection) -> SnapshotHead:
    """Return what a snapshot covers."""
    streams = db.execute("SELECT stream, term, node FROM streams ORDER BY stream")
    return SnapshotHead(
        vector=node_state.read_vector(db),
        epochs=tuple((StreamId(s), Epoch(term, NodeId(n))) for s, term, n in streams),
        floor=read_floor(db),
        hlc=node_state.read_hlc(db),
        retired=read_retired_digest(db),
    )


def is_snapshot_needed(db: sqlite3.Connection, pull: ServePull) -> bool:
    """Return True if the peer's next entries are deleted, or far more than the rows."""
    if pull.retired_count is None:
        return True
    lag, vector = 0, dict(pull.vector)
    for stream, end in db.execute(
        "SELECT stream, seq FROM retired_streams WHERE no > ?", (pull.retired_count,)
    ):
        if vector.get(stream, 0) < end:
            return True
    starts = dict(
        db.execute("SELECT stream, max(snapshot_seq, floor_seq) FROM streams")
    )
    for stream, have in node_state.read_vector(db):
        seen = vector.get(stream, 0)
        if seen < starts[stream]:
            return True
        lag += max(0, have - seen)
    if lag <= LAG_ENTRIES:
        return False
    (tasks,) = db.execute(
        "SELECT coalesce(sum(n), 0) FROM counts WHERE kind < ?", (arrays.MEMBER,)
    ).fetchone()
    return bool(lag > ENTRIES_PER_TASK * (tasks + arrays.count_member_rows(db)))


def _rows(
    db: sqlite3.Connection, after: int, ages: TaskAges
) -> Iterator[tuple[int, TaskRow | RangeRow]]:
    """Yield rows after a key in their order, those of ranges at their first key."""
    own = _task_rows(db, after, ages)
    return merge(
        own, member_ranges.range_rows_after(db, after, ages), key=itemgetter(0)
    )


def _fitting_row(
    db: sqlite3.Connection, record: TaskRecord, outputs: Mapping[AttemptId, int]
) -> TaskRecord:
    """Return a record with outputs that fit into a row, which is a part of one frame.

    The attempt that people see always has its output, and the list of its files. Of the
    others, the latest have theirs.
    """
    if len(record.attempts) <= 1:
        return queries.with_outputs(db, record, outputs)
    deciding = record.deciding_attempt
    shown = None if deciding is None else deciding.id
    attempts = sorted(record.attempts, key=lambda each: (each.id == shown, each.id))
    left = OUTPUT_BYTES_MAX
    fitting = []
    for attempt in reversed(attempts):
        whole = attempt
        if left > 0 and attempt.id in outputs:
            output = rows.read_output(db, outputs[attempt.id])
            whole = rows.with_output(attempt, output)
        if whole.outcome is not None:
            left -= whole.outcome.size_bytes
            if left < 0 and attempt.id != shown:
                whole = replace(whole, outcome=_without_outputs(whole.outcome))
        fitting.append(whole)
    return replace(record, attempts=tuple(sorted(fitting, key=attrgetter("id"))))


def _without_outputs(outcome: Outcome) -> Outcome:
    return replace(outcome, stdout=b"", stderr=b"", outputs=())


def _task_rows(
    db: sqlite3.Connection, after: int, ages: TaskAges
) -> Iterator[tuple[int, TaskRow]]:
    for row in db.execute(
        f"SELECT {rows.TASK_COLUMNS}, last_change_hlc,"  # noqa: S608
        " first_submitted_hlc, last_submitted_hlc, stream, seq, stored_ms"
        " FROM tasks WHERE key > ? ORDER BY key",
        (after,),
    ):
        ((record, outputs),) = rows.records_from([row[:-6]])
        whole = _fitting_row(db, record, outputs)
        *times, stored_ms = row[-5:]
        age_ms = ages.age_ms(row[-6], stored_ms)
        yield row[0], TaskRow(whole, SubmissionTimes(*times), row[-6], age_ms)
