"""Parts of snapshots of peers, staged until they are merged into the tables.

An incomplete snapshot is dropped when the same peer starts another one, and when the
store is opened. A complete one is merged part by part: see `core.replication.journal`.
The parts with the head and with retired streams stay until the last part is merged,
because a merge that goes on after a crash needs them.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from octaskly.core.effects import MergeRows, StageRows
from octaskly.core.model.ids import VectorItems
from octaskly.core.protocol.messages import Snapshot, SnapshotHead
from octaskly.ports.store import Packer


class StagedPart(NamedTuple):
    """A part that is still to be merged."""

    key: int
    stored_ms: int  #: as in table `tasks`
    part: Snapshot


def add_part(
    db: sqlite3.Connection, packer: Packer, item: StageRows, stored_ms: int
) -> None:
    """Store a part, in a transaction of the caller."""
    if item.part.head is not None:
        _drop_incomplete(db, item.peer)
    db.execute(
        "INSERT INTO staged_parts (snapshot, peer, is_last, stored_ms, body)"
        " VALUES (?, ?, ?, ?, ?)",
        (
            item.snapshot,
            item.peer,
            not item.part.has_more,
            stored_ms,
            packer.pack(item.part),
        ),
    )


def read_next_part(db: sqlite3.Connection, packer: Packer, snapshot: int) -> StagedPart:
    """Return the first part of a snapshot that is not merged."""
    key, stored_ms, body = db.execute(
        "SELECT key, stored_ms, body FROM staged_parts"
        " WHERE snapshot = ? AND is_merged = 0 ORDER BY key LIMIT 1",
        (snapshot,),
    ).fetchone()
    return StagedPart(key, stored_ms, packer.unpack(body, Snapshot))


def remove_part(db: sqlite3.Connection, item: MergeRows, staged: StagedPart) -> None:
    """Remove a merged part, or all that is left of the snapshot after the last one."""
    if item.is_last:
        db.execute("DELETE FROM staged_parts WHERE snapshot = ?", (item.snapshot,))
    elif staged.part.head is not None or staged.part.retired:
        db.execute("UPDATE staged_parts SET is_merged = 1 WHERE key = ?", (staged.key,))
    else:
        db.execute("DELETE FROM staged_parts WHERE key = ?", (staged.key,))


def is_merging(db: sqlite3.Connection) -> bool:
    """Return True if rows of a complete snapshot are still to be merged."""
    found = db.execute("SELECT 1 FROM staged_parts WHERE is_last = 1 LIMIT 1")
    return found.fetchone() is not None


def read_interrupted_merges(
    db: sqlite3.Connection, packer: Packer
) -> list[tuple[MergeRows, int]]:
    """Return the complete snapshots, each with the number of parts to merge."""
    found = db.execute(
        "SELECT snapshot, sum(1 - is_merged) FROM staged_parts"
        " GROUP BY snapshot HAVING max(is_last) ORDER BY snapshot"
    ).fetchall()
    return [
        (
            MergeRows(0, snapshot, *_read_head(db, packer, snapshot), is_last=False),
            count,
        )
        for snapshot, count in found
    ]


def drop_incomplete_snapshots(db: sqlite3.Connection) -> None:
    """Drop all incomplete snapshots, in a transaction of the caller."""
    peers = db.execute("SELECT DISTINCT peer FROM staged_parts").fetchall()
    for (peer,) in peers:
        _drop_incomplete(db, peer)


def _drop_incomplete(db: sqlite3.Connection, peer: str) -> None:
    db.execute(
        "DELETE FROM staged_parts WHERE peer = ? AND snapshot NOT IN"
        " (SELECT snapshot FROM staged_parts WHERE is_last = 1)",
        (peer,),
    )


def _read_head(
    db: sqlite3.Connection, packer: Packer, snapshot: int
) -> tuple[SnapshotHead, VectorItems]:
    """Return the head of a snapshot, and its retired streams, which come first."""
    head, retired = None, VectorItems()
    for (body,) in db.execute(
        "SELECT body FROM staged_parts WHERE snapshot = ? ORDER BY key", (snapshot,)
    ):
        part = packer.unpack(body, Snapshot)
        head = head or part.head
        retired += part.retired
        if part.rows or part.ranges or part.records:
            break
    assert head is not None, "the first part has the head, and stays"
    return head, retired
