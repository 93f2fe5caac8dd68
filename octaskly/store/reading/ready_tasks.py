"""Tasks whose dependencies have ended, read for the dispatcher."""

from __future__ import annotations

import sqlite3

from octaskly.core.effects import LoadUnblocked
from octaskly.core.events import UnblockedLoaded, UnblockedTask
from octaskly.core.model.hlc import ORD_HLC_MASK
from octaskly.store.tables import rows
from octaskly.store.tables.rows import EDGE_BROKEN, EDGE_OPEN


def load_ripe(db: sqlite3.Connection, ask: LoadUnblocked) -> UnblockedLoaded:
    """Return tasks whose wait is over, the oldest first."""
    keys = [
        key
        for (key,) in db.execute(
            "SELECT child FROM ripe ORDER BY child LIMIT ?", (ask.limit,)
        )
    ]
    if ask.before_hlc and len(keys) < ask.limit:
        keys += _orphans(db, ask.before_hlc, ask.limit - len(keys))
    ripe: list[UnblockedTask] = []
    for some in rows.chunks(dict.fromkeys(keys)):
        these = f"IN ({rows.marks(len(some))})"
        found = db.execute(
            f"SELECT {rows.TASK_COLUMNS} FROM tasks WHERE key {these} ORDER BY key",  # noqa: S608
            some,
        ).fetchall()
        broken = dict(
            db.execute(
                f"SELECT child, min(parent) FROM edges WHERE child {these}"  # noqa: S608
                " AND met = ? GROUP BY child",
                (*some, EDGE_BROKEN),
            )
        )
        records = rows.records_from(db, found)
        ripe += [
            UnblockedTask(record, broken.get(row[0]))
            for row, (record, _) in zip(found, records, strict=True)
        ]
    left = db.execute("SELECT 1 FROM edges LIMIT 1").fetchone()
    return UnblockedLoaded(ask.query_number, tuple(ripe), left is not None)


def _orphans(db: sqlite3.Connection, before_hlc: int, limit: int) -> list[int]:
    """Return old tasks that wait for nothing but tasks which are not known here."""
    found = db.execute(
        "SELECT DISTINCT child FROM edges AS e JOIN tasks AS t ON t.key = e.child"
        " WHERE (t.ord & ?) < ? AND e.met = ? AND NOT EXISTS ("
        "SELECT 1 FROM edges AS o JOIN tasks AS p ON p.id = o.parent"
        " WHERE o.child = e.child AND o.met = ?) LIMIT ?",
        (ORD_HLC_MASK, before_hlc, EDGE_OPEN, EDGE_OPEN, limit),
    )
    return [key for (key,) in found]
