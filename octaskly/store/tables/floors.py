"""Forgets what lies below the floor, some rows at a time, between other commits.

A task is void when its latest submission is, and everything that was said of it; what
it wrote goes with it. Rows that wait for their deletion are still shown, but nothing is
ever joined to them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from octaskly.core.log.facts import Floor, StreamFloor
from octaskly.core.model.ids import Epoch, NodeId, StreamId


def write_floor(db: sqlite3.Connection, floor: Floor) -> None:
    """Raise the floors of streams; what is below them is held, as far as it counts."""
    db.executemany(
        "INSERT INTO streams (stream, term, node, last_seq, floor_seq)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " last_seq = max(last_seq, excluded.last_seq),"
        " floor_seq = max(floor_seq, excluded.floor_seq)",
        [(m.stream, *m.epoch, m.seq, m.seq) for m in floor.stream_floors],
    )
    raise_meta_number(db, "horizon", floor.horizon)


def read_floor(db: sqlite3.Connection) -> Floor:
    """Return all floors that this node knows."""
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
    """Keep the highest value of a number in `meta`."""
    db.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE"
        " SET value = max(value, excluded.value)",
        (key, number),
    )


def read_meta_numbers(db: sqlite3.Connection) -> Mapping[str, int]:
    """Return the numbers that are kept in `meta` by `raise_meta_number`."""
    return dict(
        db.execute(
            "SELECT key, value FROM meta"
            " WHERE key IN ('horizon', 'hlc', 'sequence', 'output')"
        )
    )
