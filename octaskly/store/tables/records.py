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
TOLD_BYTES: Final = 200  #: of a record in a message, beside its body

_COLUMNS: Final = "kind, key, body, until_ms, at"
_LISTED: Final = tuple(name for name, kind in KINDS.items() if kind.is_list_only)


def enter(db: sqlite3.Connection, entry: Entry, record: Recorded, wall_ms: int) -> None:
    """Join what an entry says, which is in the log; forget others that are over.

    That goes by this machine's own clock: one that is wrong elsewhere must not make
    all forget what was revoked.
    """
    _put(db, record, (entry.hlc, entry.stream, entry.seq))
    db.execute(
        "DELETE FROM records WHERE kind = ? AND until_ms BETWEEN 1 AND ?",
        (record.kind, wall_ms - GRACE_MS),
    )
    _trim(db, record.kind)


def learn(db: sqlite3.Connection, records: Iterable[Recorded]) -> None:
    """Join what others told, which the log here does not say."""
    for record in records:
        _put(db, record, (0, 0, 0))
    for kind in _LISTED:
        _trim(db, kind)


def _put(db: sqlite3.Connection, record: Recorded, place: tuple[int, int, int]) -> None:
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
        "INSERT INTO records (kind, key, body, until_ms, at, hlc, stream, seq)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET"
        " body = excluded.body, until_ms = excluded.until_ms, at = excluded.at,"
        " hlc = excluded.hlc, stream = excluded.stream, seq = excluded.seq",
        (record.kind, record.key, record.body, record.expires_ms, record.hlc, *place),
    )


def _trim(db: sqlite3.Connection, kind: str) -> None:
    """Forget the oldest of a kind that is only listed.

    To keep the latest ones is a join as well, so nodes still agree.
    """
    if kind in _LISTED:
        db.execute(
            "DELETE FROM records WHERE id IN (SELECT id FROM records WHERE kind = ?"
            " ORDER BY at DESC, key DESC LIMIT -1 OFFSET ?)",
            (kind, KINDS[kind].count_max),
        )


def in_memory(db: sqlite3.Connection) -> tuple[Recorded, ...]:
    """Return all records but those that are only listed."""
    marks = ", ".join("?" * len(_LISTED))
    found = db.execute(
        f"SELECT {_COLUMNS} FROM records WHERE kind NOT IN ({marks}) ORDER BY id",  # noqa: S608
        _LISTED,
    )
    return tuple(Recorded(*row) for row in found)


def after(db: sqlite3.Connection, last: int) -> Iterator[tuple[int, Recorded]]:
    """Return records with the ids of their rows, behind row `last`."""
    for id_, *row in db.execute(
        f"SELECT id, {_COLUMNS} FROM records WHERE id > ? ORDER BY id",  # noqa: S608
        (last,),
    ):
        yield id_, Recorded(*row)


def page(db: sqlite3.Connection, query: RecordQuery) -> tuple[Recorded, ...]:
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
    where = "kind = ? AND at >= ?"
    values: list[str | int] = [kind, query.since]
    if query.keys is not None:
        where += " AND key IN (SELECT value FROM json_each(?))"
        values.append(json.dumps(query.keys))
    if query.beyond is not None:
        where += f" AND (at, key) {sign} (?, ?)"
        values += query.beyond
    found = db.execute(
        f"SELECT {_COLUMNS} FROM records WHERE {where}"  # noqa: S608
        f" ORDER BY at {order}, key {order} LIMIT ?",
        (*values, query.limit),
    )
    return (Recorded(*row) for row in found)


def outside_the_log(
    db: sqlite3.Connection, today_ms: int, limit: int
) -> tuple[Recorded, ...]:
    """Return records that the log here does not say."""
    return _upto(db, 0, 0, today_ms, limit)


def below(
    db: sqlite3.Connection, marks: Iterable[StreamFloor], today_ms: int, limit: int
) -> tuple[Recorded, ...]:
    """Return records that only entries up to these marks say."""
    found: list[Recorded] = []
    for stream, seq, _ in marks:
        found += _upto(db, stream, seq, today_ms, limit - len(found))
        if len(found) == limit:
            break
    return tuple(found)


def _upto(
    db: sqlite3.Connection, stream: int, seq: int, today_ms: int, limit: int
) -> tuple[Recorded, ...]:
    found = db.execute(
        f"SELECT {_COLUMNS} FROM records WHERE stream = ? AND seq <= ?"  # noqa: S608
        " AND (until_ms = 0 OR until_ms > ?) ORDER BY seq, id LIMIT ?",
        (stream, seq, today_ms, limit),
    )
    return tuple(Recorded(*row) for row in found)


def size_of(record: Recorded) -> int:
    """Return roughly how many bytes a record takes in a message."""
    return TOLD_BYTES + len(record.body) + len(record.key)
