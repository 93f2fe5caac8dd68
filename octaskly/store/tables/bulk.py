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
    "INSERT INTO tasks (key, id, sequence, state, node, cancelled_by, is_live,"
    " attempts, cancel_term, has_succeeded, is_unblocked,"
    " is_blocked, place, reprioritized, last_change_hlc, notify, command, timeout_s,"
    " inputs, outputs, options, stdin, items, env, submitter, created_ms, ord, shape,"
    " first_submitted_hlc, last_submitted_hlc, stream, seq)"
    " VALUES",
    32,
)
PLAIN_INSERT: Final = BulkStatement(
    "INSERT INTO tasks (key, id, sequence, last_change_hlc, command, timeout_s,"
    " submitter, created_ms, ord, first_submitted_hlc, last_submitted_hlc, stream,"
    " seq, state, is_live) VALUES",
    13,
    same=", 0, 0",
)
"""For queued tasks that are nothing but a command."""
RUNNING_INSERT: Final = BulkStatement(
    "INSERT INTO tasks (key, id, sequence, last_change_hlc, command, timeout_s,"
    " submitter, created_ms, ord, first_submitted_hlc, last_submitted_hlc, stream,"
    " seq, node, attempts, state, is_live) VALUES",
    15,
    same=", 1, 1",
)
"""For the same tasks, if they already run at the commit."""
TASK_STATE_UPDATE: Final = BulkStatement(
    "WITH v (state, node, is_live, attempts, last_change_hlc, key) AS (VALUES",
    6,
    ") UPDATE tasks SET state = v.state, node = v.node, is_live = v.is_live,"
    " attempts = v.attempts, last_change_hlc = v.last_change_hlc"
    " FROM v WHERE tasks.key = v.key",
)
"""For tasks whose other columns did not change, which are most."""
TASK_END_UPDATE: Final = BulkStatement(
    "WITH v (state, is_live, attempts, last_change_hlc, key) AS (VALUES",
    5,
    ") UPDATE tasks SET state = v.state, is_live = v.is_live, attempts = v.attempts,"
    " last_change_hlc = v.last_change_hlc FROM v WHERE tasks.key = v.key",
)
"""The same for tasks that keep their node: SQLite would write its index again."""
TASK_UPDATE: Final = BulkStatement(
    "WITH v (state, node, by, is_live, attempts, cancel_term,"
    " has_succeeded, is_unblocked, is_blocked, place, reprioritized,"
    " last_change_hlc, notify, key) AS (VALUES",
    14,
    ") UPDATE tasks SET state = v.state, node = v.node, cancelled_by = v.by,"
    " is_live = v.is_live, attempts = v.attempts,"
    " cancel_term = v.cancel_term,"
    " has_succeeded = v.has_succeeded,"
    " is_unblocked = v.is_unblocked, is_blocked = v.is_blocked,"
    " place = v.place, reprioritized = v.reprioritized,"
    " last_change_hlc = v.last_change_hlc, notify = v.notify"
    " FROM v WHERE tasks.key = v.key",
)
STORED_UPDATE: Final = BulkStatement(
    "WITH v (stored_ms, key) AS (VALUES",
    2,
    ") UPDATE tasks SET stored_ms = max(tasks.stored_ms, v.stored_ms)"
    " FROM v WHERE tasks.key = v.key",
)
SUBMISSION_UPDATE: Final = BulkStatement(
    "WITH v (first_submitted_hlc, last_submitted_hlc, stream, seq, key) AS (VALUES",
    5,
    ") UPDATE tasks SET first_submitted_hlc = v.first_submitted_hlc,"
    " last_submitted_hlc = v.last_submitted_hlc, stream = v.stream, seq = v.seq"
    " FROM v WHERE tasks.key = v.key",
)
SPEC_UPDATE: Final = BulkStatement(
    "WITH v (command, timeout_s, inputs, outputs, options, stdin, items, env,"
    " submitter, created_ms, ord, shape, key) AS (VALUES",
    13,
    ") UPDATE tasks SET command = v.command, timeout_s = v.timeout_s,"
    " inputs = v.inputs, outputs = v.outputs, options = v.options, stdin = v.stdin,"
    " items = v.items, env = v.env, submitter = v.submitter,"
    " created_ms = v.created_ms, ord = v.ord, shape = v.shape"
    " FROM v WHERE tasks.key = v.key",
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
