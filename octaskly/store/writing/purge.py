"""Purge: deletes rows below the compaction floor in small steps between commits.

A task is void when its latest submission is below the floor and its latest fact is not
after the horizon. Its outputs are deleted with it. Void rows are still shown until they
are deleted, but no fact is merged into them.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from octaskly.core.model.ids import StreamId
from octaskly.ports.store import Packer
from octaskly.store.tables import (
    arrays,
    bulk,
    list_counts,
    log_rows,
    member_ranges,
    rows,
)
from octaskly.store.tables.floors import FLOOR_OF_TASK, raise_meta_number, read_floor
from octaskly.store.tables.log_rows import StoredEntry

TASKS_PER_STEP: Final = 200
ENTRIES_PER_STEP: Final = 500


class Purger:
    """Scans the tables once at the start, and once after each rise of the floor."""

    def __init__(self, db: sqlite3.Connection, packer: Packer) -> None:
        self._db = db
        self._packer = packer
        self.restart()

    def restart(self) -> None:
        """Scan from the beginning."""
        floor = read_floor(self._db)
        self._horizon = floor.horizon
        self._floors = {mark.stream: mark.seq for mark in floor.stream_floors}
        self._floors |= _read_retired_floors(self._db)
        self._after = (-1, -1)
        self._streams = deque(sorted(self._floors))
        self._has_tasks = self._horizon > 0

    @property
    def is_done(self) -> bool:
        """Return True if no void row is left."""
        return not self._has_tasks and not self._streams

    def delete_some(self) -> None:
        """Delete a few rows, in a transaction of the caller."""
        if self._has_tasks:
            self._delete_tasks()
        elif self._streams:
            self._delete_entries(self._streams[0])

    def _delete_tasks(self) -> None:
        found = self._db.execute(
            "SELECT first_submitted_hlc, key, last_submitted_hlc,"  # noqa: S608
            f" seq <= {FLOOR_OF_TASK},"
            " last_change_hlc FROM tasks INDEXED BY tasks_first_submitted"
            " WHERE (first_submitted_hlc, key) > (?, ?) AND first_submitted_hlc <= ?"
            " ORDER BY first_submitted_hlc, key LIMIT ?",
            (*self._after, self._horizon, TASKS_PER_STEP),
        ).fetchall()
        void, kept = [], []
        for _, key, reborn, is_void, changed in found:
            if is_void and changed <= self._horizon:
                void.append(key)
            else:
                # Set the time of first submission to that of the latest submission
                # or fact, so that a later scan finds the task. The latest submission
                # may be below the horizon if another node sent it. A floor must not
                # pass an entry before the scan has passed the task of the entry.
                kept.append((changed if is_void else reborn, key))
        if delete_members(self._db, void, TASKS_PER_STEP):
            return  # Arrays are deleted after all their members.
        delete_tasks(self._db, void)
        self._db.executemany(
            "UPDATE tasks SET first_submitted_hlc = ? WHERE key = ?", kept
        )
        self._has_tasks = len(found) == TASKS_PER_STEP
        if found:
            self._after = found[-1][:2]

    def _delete_entries(self, stream: StreamId) -> None:
        """Delete the oldest entries of a stream, and outputs that no task uses."""
        db, floor = self._db, self._floors[stream]
        gone = log_rows.delete_entries(db, stream, floor, ENTRIES_PER_STEP)
        is_done = len(gone) < ENTRIES_PER_STEP
        if is_done:
            self._streams.popleft()
        if gone:
            _save_highest_numbers(db)
            _delete_outputs(db, self._unused_outputs(gone))
        # Those that came with a snapshot are not in the log.
        last = floor if is_done else gone[-1].last_seq
        pending = db.execute(
            "DELETE FROM pending_entries WHERE stream = ? AND seq <= ?"
            " RETURNING output",
            (stream, last),
        ).fetchall()
        _delete_outputs(db, (number for (number,) in pending if number is not None))

    def _unused_outputs(self, gone: Iterable[StoredEntry]) -> Iterator[int]:
        """Yield the outputs of entries that no attempt of their task refers to."""
        for entry in gone:
            if entry.output is None:
                continue
            task = self._packer.unpack_entry(*entry.packed).fact.task
            found = self._db.execute("SELECT attempts FROM tasks WHERE id = ?", (task,))
            (packed,) = found.fetchone() or (None,)
            if entry.output not in rows.unpack_attempts(packed)[1].values():
                yield entry.output


def _read_retired_floors(db: sqlite3.Connection) -> dict[StreamId, int]:
    """Return the retired streams that still have entries, with their floors.

    Those that came with a snapshot are not in the log.
    """
    found = db.execute(
        "WITH RECURSIVE logged (stream) AS (SELECT min(stream) FROM log UNION ALL"
        " SELECT (SELECT min(log.stream) FROM log WHERE log.stream > logged.stream)"
        " FROM logged WHERE stream NOT NULL)"
        " SELECT stream, max(retired_streams.seq) FROM (SELECT stream FROM logged"
        " UNION SELECT stream FROM pending_entries) JOIN retired_streams USING (stream)"
        " WHERE stream NOT IN (SELECT stream FROM streams) GROUP BY stream"
    )
    return {StreamId(stream): end for stream, end in found}


def delete_tasks(db: sqlite3.Connection, keys: Sequence[int]) -> None:
    """Delete tasks with their attempts and outputs, and update the counters.

    The members of an array are deleted with it.
    """
    if keys:
        _save_highest_numbers(db)
    for some in rows.split_for_parameters(keys):
        while delete_members(db, some, ENTRIES_PER_STEP):
            pass
        _delete_arrays(db, some)
        _delete_task_rows(db, some, arrays.TASK)


def delete_members(db: sqlite3.Connection, keys: Sequence[int], limit: int) -> bool:
    """Delete up to `limit` members of one array. Return True if there were any."""
    for members in arrays.read_members(db, keys).values():
        gone = member_ranges.delete_ranges(db, members.first, members.last, limit)
        if gone:
            cells = gone.items()
            bulk.COUNT_ADD.execute(
                db, [(arrays.MEMBER, node, state, n) for (node, state, _), n in cells]
            )
            list_counts.add_counts(db, gone)
            return True
        found = db.execute(
            "SELECT key FROM tasks WHERE key BETWEEN ? AND ? LIMIT ?",
            (members.first, members.last, limit),
        )
        some = [key for (key,) in found]
        if some:
            _delete_task_rows(db, some, arrays.MEMBER)
            return True
    return False


def _delete_arrays(db: sqlite3.Connection, keys: Sequence[int]) -> None:
    """Delete arrays whose members have no rows."""
    for key, members in arrays.read_members(db, keys).items():
        (by,) = db.execute(
            "SELECT cancelled_by FROM tasks WHERE key = ?", (key,)
        ).fetchone()
        state, left = members.without_row(by)
        bulk.COUNT_ADD.execute(db, [(arrays.MEMBER, "", state, -left)])
        _delete_task_rows(db, [key], arrays.ARRAY)
        db.execute("DELETE FROM arrays WHERE task = ?", (key,))


def _delete_task_rows(db: sqlite3.Connection, keys: Sequence[int], kind: int) -> None:
    these = f"IN ({rows.placeholders(len(keys))})"
    counted = db.execute(
        "SELECT coalesce(node, ''), state, key >> ?, -count(*) FROM tasks"  # noqa: S608
        f" WHERE key {these} GROUP BY 1, 2, 3",
        (list_counts.BLOCK_BITS, *keys),
    ).fetchall()
    bulk.COUNT_ADD.execute(
        db, [(kind, node, state, n) for node, state, _, n in counted]
    )
    list_counts.add_counts(
        db, {(node, state, block): n for node, state, block, n in counted}
    )
    for (packed,) in db.execute(
        f"SELECT attempts FROM tasks WHERE key {these} AND attempts NOT NULL",  # noqa: S608
        keys,
    ).fetchall():
        _delete_outputs(db, rows.unpack_attempts(packed)[1].values())
    db.execute(f"DELETE FROM tasks WHERE key {these}", keys)  # noqa: S608
    for table in ("dependencies", "unblocked_tasks"):
        db.execute(f"DELETE FROM {table} WHERE child {these}", keys)  # noqa: S608


def _delete_outputs(db: sqlite3.Connection, outputs: Iterable[int]) -> None:
    db.executemany("DELETE FROM outputs WHERE id = ?", ((each,) for each in outputs))


def _save_highest_numbers(db: sqlite3.Connection) -> None:
    """Save the highest numbers, so that they are not reused after the deletion."""
    raise_meta_number(db, "sequence", rows.sequence_max(db))
    (output,) = db.execute("SELECT coalesce(max(id), 0) FROM outputs").fetchone()
    raise_meta_number(db, "output", output)
