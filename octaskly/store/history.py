"""The log as people read it: across streams, in the order of timestamps."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from heapq import merge
from typing import Final

from octaskly.core.facts import Entry
from octaskly.core.merge import TaskRecord
from octaskly.core.model import Epoch, NodeId, StreamId, TaskId
from octaskly.core.timeline import History, Reach, array_of
from octaskly.core.timestamps import HLC_MAX
from octaskly.ports import Packer
from octaskly.store import arrays, rows, twins

PART_BYTES_MAX: Final = 4 << 20  #: of the entries of one part, roughly

# What news show: nothing that can be large.
_OUTLINE: Final = rows.TASK_COLUMNS.replace(" command,", " '',").replace(
    "inputs, outputs, options, stdin, items",
    "NULL, NULL, (SELECT tasks.options FROM arrays WHERE arrays.task = tasks.key),"
    " NULL, NULL",
)
_STREAMS: Final = (
    "SELECT stream, term, node, have_seq, max(base_seq, floor_seq) FROM streams"
)


def reaches(db: sqlite3.Connection, hlc: int) -> tuple[int, tuple[Reach, ...]]:
    """Return the latest timestamp in the log up to `hlc`, and how far each stream goes.

    A stream of which the rows are gone goes as far as they did.
    """
    latest, found = 0, []
    for stream, term, node, have, start in db.execute(_STREAMS).fetchall():
        seq, at = _reach(db, stream, min(start, have), have, hlc)
        latest = max(latest, at)
        epoch = Epoch(term, NodeId(node))
        found.append(Reach(StreamId(stream), epoch, seq, min(start, have)))
    return latest, tuple(found)


def _reach(
    db: sqlite3.Connection, stream: int, low: int, high: int, hlc: int
) -> tuple[int, int]:
    """Return the last entry from `low` to `high` up to `hlc`, and its timestamp."""
    at = 0
    is_all = hlc >= HLC_MAX
    while low < high:
        middle = high if is_all else (low + high + 1) // 2
        (stamp,) = db.execute(
            "SELECT hlc FROM log WHERE stream = ? AND seq = ?", (stream, middle)
        ).fetchone()
        if stamp <= hlc:
            low, at = middle, stamp
        else:
            high = middle - 1
    return low, at


def history(
    db: sqlite3.Connection, packer: Packer, vector: Mapping[StreamId, int], limit: int
) -> History:
    """Return at most `limit` entries beyond `vector`, the oldest first.

    What is no longer in the log is left out, and what is about tasks that are gone.
    """
    reached: dict[StreamId, int] = {}
    parts = []
    is_whole = True
    for stream, _, _, have, start in db.execute(_STREAMS).fetchall():
        seen = vector.get(stream, 0)
        if have <= seen:
            continue
        if seen < start:
            is_whole = False
            reached[stream] = seen = start
        parts.append(_rows(db, stream, seen, limit + 1))
    entries: list[Entry] = []
    has_more, left = False, PART_BYTES_MAX
    for hlc, stream, seq, body in merge(*parts):
        if len(entries) == limit or left <= 0:
            has_more = True
            break
        entries.append(packer.unpack_entry(StreamId(stream), seq, hlc, body))
        reached[StreamId(stream)] = seq
        left -= len(body)
    ids = {entry.fact.task for entry in entries}
    records = _records(db, ids | {array_of(task) for task in ids})
    arrays_here = {task: record for task, record in records.items() if record.progress}
    items = tuple(
        (entry, records[entry.fact.task])
        for entry in entries
        if entry.fact.task in records
    )
    return History(
        items, arrays_here, tuple(sorted(reached.items())), has_more, is_whole
    )


def _rows(
    db: sqlite3.Connection, stream: int, seen: int, limit: int
) -> Iterator[tuple[int, int, int, bytes]]:
    return db.execute(
        "SELECT hlc, stream, seq, body FROM log WHERE stream = ? AND seq > ?"
        " ORDER BY seq LIMIT ?",
        (stream, seen, limit),
    )


def _records(db: sqlite3.Connection, ids: Iterable[TaskId]) -> dict[TaskId, TaskRecord]:
    records: list[TaskRecord] = []
    for some in rows.chunks(sorted(ids)):
        found = db.execute(
            f"SELECT {_OUTLINE} FROM tasks WHERE id IN"  # noqa: S608
            f" ({rows.marks(len(some))})",
            some,
        ).fetchall()
        records += (record for record, _ in arrays.records_from(db, found))
    places = twins.places(db, (record.id for record in records))
    return {
        record.id: replace(record, twin=places.get(record.id, 1)) for record in records
    }
