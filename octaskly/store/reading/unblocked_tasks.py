"""Tasks whose dependencies are met or broken, read for the dispatcher."""

from __future__ import annotations

import sqlite3
from itertools import islice

from octaskly.core.effects import LoadUnblocked
from octaskly.core.events import UnblockedLoaded, UnblockedTask
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.tasks import ORD_HLC_MASK
from octaskly.store.reading.queue import first_rows
from octaskly.store.tables import rows
from octaskly.store.tables.rows import EDGE_BROKEN, EDGE_OPEN


def load_unblocked_tasks(
    db: sqlite3.Connection, ask: LoadUnblocked, ages: TaskAges
) -> UnblockedLoaded:
    """Return tasks whose dependencies are met or broken, oldest first.

    There may be fewer than the limit if they are large.
    """
    keys = [
        key
        for (key,) in db.execute(
            "SELECT child FROM unblocked_tasks ORDER BY child LIMIT ?", (ask.limit,)
        )
    ]
    if ask.before_hlc and len(keys) < ask.limit:
        left = ask.limit - len(keys)
        keys += _tasks_with_unknown_parents(db, ask.before_hlc, ages, left)
    select = f"SELECT {rows.TASK_COLUMNS} FROM tasks WHERE key = ?"  # noqa: S608
    read = (row for key in dict.fromkeys(keys) for row in db.execute(select, (key,)))
    found, _ = first_rows(read, ask.limit)
    select = (
        "SELECT child, min(parent) FROM dependencies"  # noqa: S608
        f" WHERE status = {EDGE_BROKEN} AND child"
    )
    broken = dict(
        rows.select_in(db, select, [row[0] for row in found], "GROUP BY child")
    )
    unblocked = tuple(
        UnblockedTask(record, broken.get(row[0]))
        for row, (record, _) in zip(found, rows.records_from(found), strict=True)
    )
    other = db.execute("SELECT 1 FROM dependencies LIMIT 1").fetchone()
    return UnblockedLoaded(ask.query_number, unblocked, other is not None)


def _tasks_with_unknown_parents(
    db: sqlite3.Connection, before_hlc: int, ages: TaskAges, limit: int
) -> list[int]:
    """Return old tasks whose open dependencies are all on unknown tasks."""
    found = db.execute(
        "SELECT DISTINCT child, t.ord & ?, t.stored_ms FROM dependencies AS e"
        " JOIN tasks AS t ON t.key = e.child"
        " WHERE (t.ord & ?) < ? AND e.status = ? AND NOT EXISTS ("
        "SELECT 1 FROM dependencies AS o JOIN tasks AS p ON p.id = o.parent"
        " WHERE o.child = e.child AND o.status = ?)",
        (ORD_HLC_MASK, ORD_HLC_MASK, before_hlc, EDGE_OPEN, EDGE_OPEN),
    )
    old = (
        key
        for key, hlc, stored_ms in found
        if ages.since_hlc(hlc, stored_ms) < before_hlc
    )
    return list(islice(old, limit))
