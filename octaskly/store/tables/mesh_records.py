"""Rows of records: facts of the mesh that are not about a task.

A row holds the merged record of its kind and key, and the position of the latest entry
with this record. Compaction compares that position with the floor. Stream 0 means that
no entry of the local log has the record: it came from a dispatcher or a snapshot.
"""

from __future__ import annotations

import heapq
import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from octaskly.core.log.facts import Entry, Recorded, StreamFloor
from octaskly.core.log.mesh_records import KINDS, earlier_record
from octaskly.ports.store import RecordQuery

GRACE_MS: Final = 86_400_000  #: how long an expired record stays, as clocks differ
RECORD_OVERHEAD_BYTES: Final = 200  #: in a message, without body and key

_COLUMNS: Final = "kind, key, body, expires_ms, recorded_hlc"
_LISTED: Final = tuple(name for name, kind in KINDS.items() if kind.is_list_only)


def apply_record(db: sqlite3.Connection, entry: Entry, record: Recorded) -> None:
    """Merge the record of an entry of the log; then call `delete_surplus`."""
    _upsert_record(db, record, (entry.hlc, entry.stream, entry.seq))


def delete_surplus(db: sqlite3.Connection, kinds: Iterable[str], wall_ms: int) -> None:
    """Delete expired records of these kinds, and the oldest above their limits.

    `wall_ms` is this machine's clock: a wrong clock elsewhere must not make all nodes
    forget a revocation.
    """
    for kind in kinds:
        db.execute(
            "DELETE FROM records WHERE kind = ? AND expires_ms BETWEEN 1 AND ?",
            (kind, wall_ms - GRACE_MS),
        )
        _delete_oldest(db, kind)


def merge_records(db: sqlite3.Connection, records: Sequence[Recorded]) -> None:
    """Merge records from other nodes that the local log does not have."""
    for record in records:
        _upsert_record(db, record, (0, 0, 0))
    for kind in {record.kind for record in records}:
        _delete_oldest(db, kind)


def _upsert_record(
    db: sqlite3.Connection, record: Recorded, place: tuple[int, int, int]
) -> None:
    """Merge a record. If two entries have it, the position of the later one is kept."""
    found = db.execute(
        f"SELECT {_COLUMNS}, hlc, stream, seq FROM records"  # noqa: S608
        " WHERE kind = ? AND key = ?",
        (record.kind, record.key),
    ).fetchone()
    if found is not None:
        known = Recorded(*found[:5])
        if known == record:
            place = max(place, found[5:])
        elif earlier_record(known, record) == known:
            return
    db.execute(
        "INSERT INTO records"
        " (kind, key, body, expires_ms, recorded_hlc, hlc, stream, seq)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET"
        " body = excluded.body, expires_ms = excluded.expires_ms,"
        " recorded_hlc = excluded.recorded_hlc, hlc = excluded.hlc,"
        " stream = excluded.stream, seq = excluded.seq",
        (record.kind, record.key, record.body, record.expires_ms, record.hlc, *place),
    )


def _delete_oldest(db: sqlite3.Connection, kind: str) -> None:
    """Delete the oldest records of a list-only kind above its limit.

    Keeping the latest ones is a merge as well, so nodes still agree.
    """
    if kind in _LISTED:
        db.execute(
            "DELETE FROM records WHERE id IN (SELECT id FROM records WHERE kind = ?"
            " ORDER BY recorded_hlc DESC, key DESC LIMIT -1 OFFSET ?)",
            (kind, KINDS[kind].count_max),
        )


def read_unlisted(db: sqlite3.Connection) -> tuple[Recorded, ...]:
    """Return the records of all kinds that are not list-only."""
    marks = ", ".join("?" * len(_LISTED))
    found = db.execute(
        f"SELECT {_COLUMNS} FROM records WHERE kind NOT IN ({marks}) ORDER BY id",  # noqa: S608
        _LISTED,
    )
    return tuple(Recorded(*row) for row in found)


def read_after(db: sqlite3.Connection, last: int) -> Iterator[tuple[int, Recorded]]:
    """Yield the id and record of each row after row `last`."""
    for id_, *row in db.execute(
        f"SELECT id, {_COLUMNS} FROM records WHERE id > ? ORDER BY id",  # noqa: S608
        (last,),
    ):
        yield id_, Recorded(*row)


def read_page(db: sqlite3.Connection, query: RecordQuery) -> tuple[Recorded, ...]:
    """Return one page of records of several kinds, merged in time order."""
    found = heapq.merge(
        *(_of_kind(db, kind, query) for kind in query.kinds),
        key=lambda record: (record.hlc, record.key),
        reverse=query.is_newest_first,
    )
    return tuple(itertools.islice(found, query.limit))


def _of_kind(
    db: sqlite3.Connection, kind: str, query: RecordQuery
) -> Iterator[Recorded]:
    order, sign = ("DESC", "<") if query.is_newest_first else ("ASC", ">")
    where = "kind = ? AND recorded_hlc >= ?"
    values: list[str | int] = [kind, query.since_hlc]
    if query.keys is not None:
        where += " AND key IN (SELECT value FROM json_each(?))"
        values.append(json.dumps(query.keys))
    if query.after is not None:
        where += f" AND (recorded_hlc, key) {sign} (?, ?)"
        values += query.after
    found = db.execute(
        f"SELECT {_COLUMNS} FROM records WHERE {where}"  # noqa: S608
        f" ORDER BY recorded_hlc {order}, key {order} LIMIT ?",
        (*values, query.limit),
    )
    return (Recorded(*row) for row in found)


def read_missing_from_log(
    db: sqlite3.Connection, today_ms: int, limit: int
) -> tuple[Recorded, ...]:
    """Return records that are in no entry of the local log.

    Their latest entry is in no stream, or in a retired one.
    """
    found = db.execute(
        f"SELECT {_COLUMNS} FROM records"  # noqa: S608
        " WHERE stream NOT IN (SELECT stream FROM streams)"
        " AND (expires_ms = 0 OR expires_ms > ?) ORDER BY id LIMIT ?",
        (today_ms, limit),
    )
    return tuple(Recorded(*row) for row in found)


def read_below_marks(
    db: sqlite3.Connection, marks: Iterable[StreamFloor], today_ms: int, limit: int
) -> tuple[Recorded, ...]:
    """Return records whose latest entry is at or below these floors."""
    found: list[Recorded] = []
    for mark in marks:
        found += _read_upto(db, mark.stream, mark.seq, today_ms, limit - len(found))
        if len(found) == limit:
            break
    return tuple(found)


def _read_upto(
    db: sqlite3.Connection, stream: int, seq: int, today_ms: int, limit: int
) -> tuple[Recorded, ...]:
    found = db.execute(
        f"SELECT {_COLUMNS} FROM records WHERE stream = ? AND seq <= ?"  # noqa: S608
        " AND (expires_ms = 0 OR expires_ms > ?) ORDER BY seq, id LIMIT ?",
        (stream, seq, today_ms, limit),
    )
    return tuple(Recorded(*row) for row in found)


def size_of(record: Recorded) -> int:
    """Return the approximate size of a record in a message, in bytes."""
    return RECORD_OVERHEAD_BYTES + len(record.body) + len(record.key)
