"""Compaction floors, retired streams, and the highest numbers kept in `meta`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

from octaskly.core.log.facts import Floor, StreamFloor
from octaskly.core.log.retired_streams import (
    EMPTY_DIGEST,
    RetiredStreams,
    add_digests,
    pair_digest,
)
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
    """Return the floors of all streams that have one and are not retired."""
    found = db.execute(
        "SELECT stream, floor_seq, term, node FROM streams"
        " WHERE floor_seq > 0 ORDER BY stream"
    )
    marks = tuple(
        StreamFloor(StreamId(stream), seq, Epoch(term, NodeId(node)))
        for stream, seq, term, node in found
    )
    return Floor(read_meta_numbers(db).get("horizon", 0), marks)


def _floor_of(table: str) -> str:
    """Return SQL for the floor of the stream in a row; 0 for an unknown stream."""
    return (
        "coalesce("  # noqa: S608
        f"(SELECT floor_seq FROM streams WHERE streams.stream = {table}.stream),"
        "(SELECT max(seq) FROM retired_streams"
        f" WHERE retired_streams.stream = {table}.stream), 0)"
    )


FLOOR_OF_TASK: Final = _floor_of("tasks")
"""SQL expression: the floor of the stream with the latest submission of a task."""

IS_PENDING: Final = f"seq > {_floor_of('pending_entries')}"
"""SQL condition: a row of `pending_entries` is above the floor.

Its stream is unknown while the snapshot that brought it is merged.
"""


class StreamFloors:
    """The floor of each stream, retired or not."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._floors = dict(db.execute("SELECT stream, floor_seq FROM streams"))

    def __getitem__(self, stream: int) -> int:
        floor = self._floors.get(stream)
        return read_retired_end(self._db, stream) if floor is None else floor


def add_retired_streams(
    db: sqlite3.Connection, pairs: Iterable[tuple[StreamId, int]]
) -> None:
    """Add retired streams, each with its last void entry, unless the pair is known."""
    digest = read_retired_digest(db)
    for pair in pairs:
        found = db.execute(
            "SELECT 1 FROM retired_streams WHERE stream = ? AND seq = ?", pair
        ).fetchone()
        if found is None:
            digest = add_digests(digest, pair_digest(*pair))
            db.execute(
                "INSERT INTO retired_streams (stream, seq, digest) VALUES (?, ?, ?)",
                (*pair, digest),
            )


def read_retired_streams(db: sqlite3.Connection) -> RetiredStreams:
    """Return all retired streams."""
    return RetiredStreams(
        db.execute("SELECT stream, seq, digest FROM retired_streams ORDER BY no")
    )


def read_retired_end(db: sqlite3.Connection, stream: int) -> int:
    """Return the last void entry of a retired stream, 0 for any other stream."""
    (end,) = db.execute(
        "SELECT max(seq) FROM retired_streams WHERE stream = ?", (stream,)
    ).fetchone()
    return end or 0


def read_retired_digest(db: sqlite3.Connection) -> int:
    """Return the digest of all retired streams."""
    found = db.execute(
        "SELECT digest FROM retired_streams ORDER BY no DESC LIMIT 1"
    ).fetchone()
    return found[0] if found else EMPTY_DIGEST


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
