"""Multi-row SQL statements for bulk writes.

Python releases its global lock at each step of SQLite. While the event loop is busy,
the writer then waits up to 5 ms to get the lock back. So a commit must take few steps,
not one per row. Without this contention, these statements are 1.5 to 2 times as fast
as `executemany`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

Row = tuple[Any, ...]

_SIZES: Final = (256, 64, 16, 4, 2, 1)
"""Rows per step; few, so that all stay prepared."""


class BulkStatement:
    """One statement for any number of rows.

    Args:
        head: SQL before the rows.
        width: Number of bound values per row.
        tail: SQL after the rows.
        same: SQL at the end of each row, for values that are equal in all rows. It
            saves time, because a bound null costs as much as a bound number.
    """

    def __init__(self, head: str, width: int, tail: str = "", same: str = "") -> None:
        row = f"({','.join('?' * width)}{same})"
        self._of_one = f"{head} {row} {tail}"
        self._texts = [
            (size, f"{head} {','.join([row] * size)} {tail}") for size in _SIZES
        ]

    def execute(self, db: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Write rows in their order."""
        at, count = 0, len(rows)
        if count == 1:
            db.execute(self._of_one, rows[0])  # As on an idle node.
            return
        for size, text in self._texts:
            while count - at >= size:
                db.execute(text, list(chain.from_iterable(rows[at : at + size])))
                at += size


TASK_INSERT: Final = BulkStatement(
    "INSERT INTO tasks (key, id, sequence, state, node, cancelled_by,"
    " attempts, cancel_term, has_succeeded, is_unblocked, is_blocked, place,"
    " reprioritized, runs_on, last_change_hlc, notify, command, timeout_s,"
    " inputs, outputs, options, stdin, items, env, submitter, created_ms, ord, shape,"
    " first_submitted_hlc, last_submitted_hlc, stream, seq)"
    " VALUES",
    32,
)
PLAIN_INSERT: Final = BulkStatement(
    "INSERT INTO tasks (key, id, sequence, last_change_hlc, command, timeout_s,"
    " submitter, created_ms, ord, first_submitted_hlc, last_submitted_hlc, stream,"
    " seq, state) VALUES",
    13,
    same=", 0",
)
"""For queued tasks that are nothing but a command."""
RUNNING_INSERT: Final = BulkStatement(
    "INSERT INTO tasks (key, id, sequence, last_change_hlc, command, timeout_s,"
    " submitter, created_ms, ord, first_submitted_hlc, last_submitted_hlc, stream,"
    " seq, node, attempts, state) VALUES",
    15,
    same=", 1",
)
"""For the same tasks, if they already run at the commit."""


def _update_of_tasks(*columns: str) -> BulkStatement:
    """Return the statement that sets columns of tasks; the last value is the key.

    SQLite reads rows of `VALUES` one by one here. It would first copy the rows of a
    common table expression, which could name them.
    """
    changes = ", ".join(f"{name} = v.column{n}" for n, name in enumerate(columns, 1))
    width = len(columns) + 1
    return BulkStatement(
        f"UPDATE tasks SET {changes} FROM (VALUES",  # noqa: S608
        width,
        f") AS v WHERE tasks.key = v.column{width}",
    )


TASK_STATE_UPDATE: Final = _update_of_tasks(
    "state", "node", "attempts", "last_change_hlc"
)
"""For tasks whose other columns did not change, which are most."""
TASK_END_UPDATE: Final = _update_of_tasks("state", "attempts", "last_change_hlc")
"""The same for tasks that keep their node: SQLite would write its index again."""
TASK_UPDATE: Final = _update_of_tasks(
    *("state", "node", "cancelled_by", "attempts", "cancel_term", "has_succeeded"),
    *("is_unblocked", "is_blocked", "place", "reprioritized", "runs_on"),
    *("last_change_hlc", "notify"),
)
STORED_UPDATE: Final = BulkStatement(
    "UPDATE tasks SET stored_ms = max(stored_ms, v.column1) FROM (VALUES",
    2,
    ") AS v WHERE tasks.key = v.column2",
)
SUBMISSION_UPDATE: Final = _update_of_tasks(
    "first_submitted_hlc", "last_submitted_hlc", "stream", "seq"
)
SPEC_UPDATE: Final = _update_of_tasks(
    *("command", "timeout_s", "inputs", "outputs", "options", "stdin", "items"),
    *("env", "submitter", "created_ms", "ord", "shape"),
)
LOG_INSERT: Final = BulkStatement(
    "INSERT INTO log (stream, seq, n, hlc, task_id, heads, body) VALUES", 7
)
OUTPUT_INSERT: Final = BulkStatement(
    "INSERT INTO outputs (id, stdout, stderr) VALUES", 3
)
# An entry that came with a snapshot may come again by itself, before the merge ends.
PENDING_ENTRY_INSERT: Final = BulkStatement(
    "INSERT OR IGNORE INTO pending_entries (stream, seq, task_id, hlc, body, output)"
    " VALUES",
    6,
)
COUNT_ADD: Final = BulkStatement(
    "INSERT INTO counts (kind, node, state, n) VALUES",
    4,
    "ON CONFLICT DO UPDATE SET n = n + excluded.n",
)
BLOCK_ADD: Final = BulkStatement(
    "INSERT INTO block_counts (state, block, n) VALUES",
    3,
    "ON CONFLICT DO UPDATE SET n = n + excluded.n",
)
NODE_BLOCK_ADD: Final = BulkStatement(
    "INSERT INTO node_block_counts"
    " (block, node, running, completed, failed, cancelled) VALUES",
    6,
    "ON CONFLICT DO UPDATE SET running = running + excluded.running,"
    " completed = completed + excluded.completed, failed = failed + excluded.failed,"
    " cancelled = cancelled + excluded.cancelled",
)
RANGE_UPSERT: Final = BulkStatement(
    "INSERT OR REPLACE INTO member_ranges (key, n, live, body) VALUES", 4
)
ARRAY_UPSERT: Final = BulkStatement(
    "INSERT OR REPLACE INTO arrays (task, members, total, queued, running, completed,"
    " failed, cancelled, live, started_ms, ended_ms) VALUES",
    11,
)
