"""Tasks whose dependencies are met or broken, read for the dispatcher."""

from __future__ import annotations

import sqlite3

from octaskly.core.effects import LoadUnblocked
from octaskly.core.events import UnblockedLoaded, UnblockedTask
from octaskly.core.model.hlc import ORD_HLC_MASK
from octaskly.store.tables import rows
from octaskly.store.tables.rows import EDGE_BROKEN, EDGE_OPEN


def load_unblocked_tasks(db: sqlite3.Connection, ask: LoadUnblocked) -> UnblockedLoaded:
    """Return tasks whose dependencies are met or broken, oldest first."""
    keys = [
        key
        for (key,) in db.execute(
            "SELECT child FROM unblocked_tasks ORDER BY child LIMIT ?", (ask.limit,)
        )
    ]
    if ask.before_hlc and len(keys) < ask.limit:
        keys += _tasks_with_unknown_parents(db, ask.before_hlc, ask.limit - len(keys))
    unblocked: list[UnblockedTask] = []
    for some in rows.split_for_parameters(dict.fromkeys(keys)):
        these = f"IN ({rows.placeholders(len(some))})"
        found = db.execute(
            f"SELECT {rows.TASK_COLUMNS} FROM tasks WHERE key {these} ORDER BY key",  # noqa: S608
            some,
        ).fetchall()
        broken = dict(
            db.execute(
                f"SELECT child, min(parent) FROM dependencies WHERE child {these}"  # noqa: S608
                " AND status = ? GROUP BY child",
                (*some, EDGE_BROKEN),
            )
        )
        records = rows.records_from(db, found)
        unblocked += [
            UnblockedTask(record, broken.get(row[0]))
            for row, (record, _) in zip(found, records, strict=True)
        ]
    left = db.execute("SELECT 1 FROM dependencies LIMIT 1").fetchone()
    return UnblockedLoaded(ask.query_number, tuple(unblocked), left is not None)


def _tasks_with_unknown_parents(
    db: sqlite3.Connection, before_hlc: int, limit: int
) -> list[int]:
    """Return old tasks whose open dependencies are all on unknown tasks."""
    found = db.execute(
        "SELECT DISTINCT child FROM dependencies AS e"
        " JOIN tasks AS t ON t.key = e.child"
        " WHERE (t.ord & ?) < ? AND e.status = ? AND NOT EXISTS ("
        "SELECT 1 FROM dependencies AS o JOIN tasks AS p ON p.id = o.parent"
        " WHERE o.child = e.child AND o.status = ?) LIMIT ?",
        (ORD_HLC_MASK, before_hlc, EDGE_OPEN, EDGE_OPEN, limit),
    )
    return [key for (key,) in found]
