"""Repair of a log that names too many streams, when it is opened.

Usually a floor retires streams, on all nodes. For such a log it is too late for that: a
floor names all streams that its writer holds, and no node could read so large a floor.
Streams that are not retired alike on all nodes do no harm, because nodes join their
sets of retired streams.

Source: docs/decisions/0031-retired-streams.md.
"""

from __future__ import annotations

import secrets
import sqlite3

from octaskly.core.model.ids import STREAMS_MAX, StreamId
from octaskly.store.tables.floors import (
    FLOOR_OF_TASK,
    add_retired_streams,
    raise_meta_number,
    read_meta_numbers,
)
from octaskly.store.tables.node_state import read_hlc


def repair_streams(db: sqlite3.Connection, streams_max: int = STREAMS_MAX) -> None:
    """Retire streams of a log that has too many, in a transaction of the caller.

    Above a quarter of `streams_max`, streams without facts about tasks are retired.
    Above `streams_max`, all streams are, and their tasks stay as rows.
    """
    if _count_streams(db) <= streams_max // 4:
        return
    raise_meta_number(db, "hlc", read_hlc(db))
    db.execute(
        "UPDATE streams SET floor_seq = last_seq"
        " WHERE floor_seq < last_seq AND snapshot_seq <= floor_seq"
        " AND task_seq <= floor_seq"
    )
    _retire_void_streams(db)
    if _count_streams(db) > streams_max:
        _keep_tasks_as_rows(db)
        _retire_void_streams(db)


def _count_streams(db: sqlite3.Connection) -> int:
    (count,) = db.execute("SELECT count(*) FROM streams").fetchone()
    return int(count)


def _retire_void_streams(db: sqlite3.Connection) -> None:
    void = "FROM streams WHERE 0 < last_seq AND last_seq = floor_seq"
    pairs = db.execute(f"SELECT stream, last_seq {void}").fetchall()
    add_retired_streams(db, pairs)
    db.execute(f"DELETE {void}")


def _keep_tasks_as_rows(db: sqlite3.Connection) -> None:
    """Resubmit all tasks in a new stream without entries, and void the others.

    For this node and its peers, that stream came with a snapshot: it starts after its
    only entry, and peers pull the rows. A later time of submission keeps the rows valid
    on a peer that holds the void entries. Streams with entries about tasks that are
    unknown here stay, because no row has these entries.
    """
    horizon, hlc = read_meta_numbers(db).get("horizon", 0), read_hlc(db) + 1
    stream = StreamId(1 + secrets.randbits(62))
    db.execute(
        "UPDATE tasks SET stream = ?, seq = 1,"  # noqa: S608
        " last_submitted_hlc = max(last_submitted_hlc + 1, last_change_hlc)"
        f" WHERE seq > 0 AND (seq > {FLOOR_OF_TASK} OR last_change_hlc > ?)",
        (stream, horizon),
    )
    db.execute(
        "UPDATE streams SET floor_seq = last_seq"
        " WHERE stream NOT IN (SELECT stream FROM pending_entries)"
    )
    raise_meta_number(db, "hlc", hlc)
    db.execute(
        "INSERT INTO streams (stream, term, node, last_seq, snapshot_seq)"
        " SELECT ?, term, node, 1, 1 FROM streams"
        " ORDER BY term DESC, node DESC LIMIT 1",
        (stream,),
    )
