"""Compaction floors of the streams, and the highest numbers kept in `meta`."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from octaskly.core.log.facts import Floor, StreamFloor
from octaskly.core.model.ids import Epoch, NodeId, StreamId


def write_floor(db: sqlite3.Connection, floor: Floor) -> None:
    """Raise the floors of streams. All entries up to a floor count as held."""
    db.executemany(
        "INSERT INTO streams (stream, term, node, last_seq, floor_seq)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " last_seq = max(last_seq, excluded.last_seq),"
        " floor_seq = max(floor_seq, excluded.floor_seq)",
        [(m.stream, *m.epoch, m.seq, m.seq) for m in floor.stream_floors],
    )
    raise_meta_number(db, "horizon", floor.horizon)


def read_floor(db: sqlite3.Connection) -> Floor:
    """Return the floors of all streams that have one."""
    found = db.execute(
        "SELECT stream, floor_seq, term, node FROM streams"
        " WHERE floor_seq > 0 ORDER BY stream"
    )
    marks = tuple(
        StreamFloor(StreamId(stream), seq, Epoch(term, NodeId(node)))
        for stream, seq, term, node in found
    )
    return Floor(read_meta_numbers(db).get("horizon", 0), marks)


def raise_meta_number(db: sqlite3.Connection, key: str, number: int) -> None:
    """Raise a number in `meta` to `number`; it never falls."""
    db.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE"
        " SET value = max(value, excluded.value)",
        (key, number),
    )


def read_meta_numbers(db: sqlite3.Connection) -> Mapping[str, int]:
    """Return the numbers in `meta` that `raise_meta_number` writes."""
    return dict(
        db.execute(
            "SELECT key, value FROM meta"
            " WHERE key IN ('horizon', 'hlc', 'sequence', 'output')"
        )
    )
