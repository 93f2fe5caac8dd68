"""Rows of records: what the mesh keeps that is about no task.

A row is what counts of its kind and key, and the latest entry that says it, which is
what a floor is compared with. Stream 0 stands for none: a dispatcher told it, or it
came with a snapshot, so the log here does not say it yet.
"""

from __future__ import annotations

import heapq
import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final

from octaskly.core.log.facts import Entry, Recorded, StreamFloor
from octaskly.core.log.records import KINDS, earlier_record
from octaskly.ports import RecordQuery

GRACE_MS: Final = 86_400_000  #: clocks of nodes differ: what is over stays so long
RECORD_OVERHEAD_BYTES: Final = 200  #: of a record in a message, beside its body

_COLUMNS: Final = "kind, key, body, expires_ms, recorded_hlc"
_LISTED: Final = tuple(name for name, kind in KINDS.items() if kind.is_list_only)


def apply_record(
    db: sqlite3.Connection, entry: Entry, record: Recorded, wall_ms: int
) -> None:
    """Join what an entry says, which is in the log; forget others that are over.

    That goes by this machine's own clock: one that is wrong elsewhere must not make
    all forget what was revoked.
    """
    _upsert_record(db, record, (entry.hlc, entry.stream, entry.seq))
    db.execute(
        "DELETE FROM records WHERE kind = ? AND expires_ms BETWEEN 1 AND ?",
        (record.kind, wall_ms - GRACE_MS),
    )
    _delete_oldest(db, record.kind)


def merge_records(db: sqlite3.Connection, records: Iterable[Recorded]) -> None:
    """Join what others told, which the log here does not say."""
    for record in records:
        _upsert_record(db, record, (0, 0, 0))
    for kind in _LISTED:
        _delete_oldest(db, kind)


def _upsert_record(
    db: sqlite3.Connection, record: Recorded, place: tuple[int, int, int]
) -> None:
    """Keep what counts; of two entries that say it, the later one."""
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
        "INSERT INTO records (kind, key, body, expires_ms, recorded_hlc, hlc, stream, seq)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET"
        " body = excluded.body, expires_ms = excluded.expires_ms, recorded_hlc = excluded.recorded_hlc,"
        " hlc = excluded.hlc, stream = excluded.stream, seq = excluded.seq",
        (record.kind, record.key, record.body, record.expires_ms, record.hlc, *place),
    )


def _delete_oldest(db: sqlite3.Connection, kind: str) -> None:
    """Forget the oldest of a kind that is only listed.

    To keep the latest ones is a join as well, so nodes still agree.
    """
    if kind in _LISTED:
        db.execute(
            "DELETE FROM records WHERE id IN (SELECT id FROM records WHERE kind = ?"
            " ORDER BY recorded_hlc DESC, key DESC LIMIT -1 OFFSET ?)",
            (kind, KINDS[kind].count_max),
        )


def read_unlisted(db: sqlite3.Connection) -> tuple[Recorded, ...]:
    """Return all records but those that are only listed."""
    marks = ", ".join("?" * len(_LISTED))
    found = db.execute(
        f"SELECT {_COLUMNS} FROM records WHERE kind NOT IN ({marks}) ORDER BY id",  # noqa: S608
        _LISTED,
    )
    return tuple(Recorded(*row) for row in found)


def read_after(db: sqlite3.Connection, last: int) -> Iterator[tuple[int, Recorded]]:
    """Return records with the ids of their rows, behind row `last`."""
    for id_, *row in db.execute(
        f"SELECT id, {_COLUMNS} FROM records WHERE id > ? ORDER BY id",  # noqa: S608
        (last,),
    ):
        yield id_, Recorded(*row)


def read_page(db: sqlite3.Connection, query: RecordQuery) -> tuple[Recorded, ...]:
    """Return records of these kinds, in one order."""
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
    """Return records that the log here does not say."""
    return _read_upto(db, 0, 0, today_ms, limit)


def read_below_marks(
    db: sqlite3.Connection, marks: Iterable[StreamFloor], today_ms: int, limit: int
) -> tuple[Recorded, ...]:
    """Return records that only entries up to these marks say."""
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
    """Return roughly how many bytes a record takes in a message."""
    return RECORD_OVERHEAD_BYTES + len(record.body) + len(record.key)
