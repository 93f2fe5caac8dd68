"""Queued and live tasks, read for the dispatcher."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import islice

from msgspec.structs import replace

from octaskly.core.effects import LoadLive, LoadTasks
from octaskly.core.events import LiveLoaded, QueuedLoaded, TasksLoaded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import Requirements, requires_of
from octaskly.core.model.tasks import PRIORITY_SHIFT
from octaskly.store.tables import arrays, rows

LOAD_BYTES = 16 << 20  #: approximate size of the tasks of one reply
LANE_LOAD_BYTES = 1 << 20  #: for shapes other than 0: there may be many
TASKS_PER_QUERY = 16  #: read by id; they may have 1 MiB each
SHAPES_MAX = 10_000  #: number of shapes in one reply
SHAPE_HEADS_MAX = 1000  #: pairs of shape and priority read for `oldest_ms`

_QUEUE = "FROM tasks INDEXED BY tasks_queued WHERE state = 0 AND is_blocked = 0"


def load_queued_tasks(
    db: sqlite3.Connection, after_ord: int, limit: int, shape: int = 0
) -> QueuedLoaded:
    """Return queued tasks of one shape with `ord > after_ord`, in order.

    Tasks with the same `ord` are never split, so there may be more than `limit`. There
    may be fewer if they are large. The first page of shape 0 lists the other shapes.
    """
    found, has_more = _first_rows(
        db.execute(
            f"SELECT {rows.TASK_COLUMNS} {_QUEUE} AND shape = ? AND ord > ?"
            " ORDER BY ord, key",
            (shape, after_ord),
        ),
        limit,
        LANE_LOAD_BYTES if shape else LOAD_BYTES,
    )
    if has_more:
        found = _with_ties(db, shape, found)
        has_more = _has_more_behind(db, shape, found[-1][-1])
    shapes = _shapes(db) if shape == 0 and after_ord < 0 else ()
    return QueuedLoaded(after_ord, _queue_records(db, found), has_more, shape, shapes)


def queued_bytes(db: sqlite3.Connection, uncounted_bytes: int) -> dict[str, int]:
    """Return the bytes of queued tasks by submitter, beyond so many of each task.

    `length` reads the size of stdin from the head of its row, not its content.
    """
    return dict(
        db.execute(
            "SELECT submitter, sum(bytes - ?1) FROM (SELECT submitter, length(command)"
            " + ifnull(length(options), 0) + ifnull(length(stdin), 0)"
            " + ifnull(length(items), 0) + ifnull(length(env), 0)"
            " + ifnull(length(inputs), 0) + ifnull(length(outputs), 0) AS bytes"
            " FROM tasks WHERE state = 0)"
            " WHERE bytes > ?1 GROUP BY submitter",
            (uncounted_bytes,),
        )
    )


def oldest_ms(db: sqlite3.Connection) -> int | None:
    """Return the time when the oldest queued task was accepted; None if there is none.

    Tasks of one shape and priority are ordered by that time, so only the first of them
    is read.
    """
    oldest: int | None = None
    place = (0, 0)
    for _ in range(SHAPE_HEADS_MAX):
        head = db.execute(
            f"SELECT shape, ord, created_ms {_QUEUE} AND (shape, ord) >= (?, ?)"
            " ORDER BY shape, ord LIMIT 1",
            place,
        ).fetchone()
        if head is None:
            break
        shape, ord_, created_ms = head
        oldest = created_ms if oldest is None else min(oldest, created_ms)
        place = (shape, ((ord_ >> PRIORITY_SHIFT) + 1) << PRIORITY_SHIFT)
    return oldest


def load_live_tasks(db: sqlite3.Connection, ask: LoadLive) -> LiveLoaded:
    """Return tasks with an attempt that has not ended, in the order of their keys.

    These are running tasks, and tasks in a final state whose latest attempt has not
    ended, such as cancelled ones. Arrays with running members, and these members, are
    included.
    """
    found, has_more = _first_rows(
        db.execute(
            f"SELECT {rows.TASK_COLUMNS} FROM tasks INDEXED BY tasks_state"  # noqa: S608
            " WHERE state = 1 AND key > ?1"
            f" UNION ALL SELECT {rows.TASK_COLUMNS} FROM tasks INDEXED BY tasks_live"
            " WHERE is_live = 1 AND state > 1 AND key > ?1 ORDER BY key",
            (ask.after_key,),
        ),
        ask.limit,
    )
    next_key = found[-1][0] if has_more else None
    return LiveLoaded(ask.term, _queue_records(db, found), next_key)


def load_tasks(db: sqlite3.Connection, ask: LoadTasks) -> TasksLoaded:
    """Return the first tasks of `ask`, as many as one answer may have."""
    found: list[rows.Row] = []
    asked = iter(ask.tasks)
    answered: list[TaskId] = []
    size = 0
    while size <= LOAD_BYTES and (some := list(islice(asked, TASKS_PER_QUERY))):
        found += db.execute(
            f"SELECT {rows.TASK_COLUMNS} FROM tasks WHERE id IN"  # noqa: S608
            f" ({rows.placeholders(len(some))})",
            some,
        )
        size = sum(map(rows.size_of_row, found))
        answered += some
    return TasksLoaded(ask.term, tuple(answered), _queue_records(db, found))


def _first_rows(
    rows_in_order: Iterable[rows.Row], limit: int, bytes_max: int = LOAD_BYTES
) -> tuple[list[rows.Row], bool]:
    """Return as many rows as one answer may have; True if there are more."""
    found: list[rows.Row] = []
    size = 0
    for row in rows_in_order:
        if len(found) == limit or size > bytes_max:
            return found, True
        found.append(row)
        size += rows.size_of_row(row)
    return found, False


def _shapes(db: sqlite3.Connection) -> tuple[tuple[int, Requirements], ...]:
    """Return the requirements of each shape in the queue, `SHAPES_MAX` at most."""
    shapes: list[tuple[int, Requirements]] = []
    last = 0
    while len(shapes) < SHAPES_MAX:
        found = db.execute(
            f"SELECT shape {_QUEUE} AND shape > ? ORDER BY shape LIMIT 1", (last,)
        ).fetchone()
        if found is None:
            break
        (last,) = found
        select = f"SELECT {rows.TASK_COLUMNS} {_QUEUE} AND shape = ? LIMIT 1"
        (record,) = arrays.records_without_outputs(
            db, db.execute(select, (last,)).fetchall()
        )
        requires = None if record.spec is None else requires_of(record.spec.options)
        assert requires is not None
        shapes.append((last, requires))
    return tuple(shapes)


def _queue_records(
    db: sqlite3.Connection, found: Sequence[rows.Row]
) -> tuple[TaskRecord, ...]:
    """Return records; those of arrays list the members without a row."""
    records = arrays.records_without_outputs(db, found)
    if not any(record.progress for record in records):
        return records
    members = arrays.read_members(db, (row[0] for row in found))
    whole = []
    for row, record in zip(found, records, strict=True):
        progress = record.progress
        if progress is not None and record.cancelled_by is None:
            runs = arrays.ranges_without_row(db, members[row[0]])
            record = replace(record, progress=replace(progress, remaining_runs=runs))
        whole.append(record)
    return tuple(whole)


def _with_ties(
    db: sqlite3.Connection, shape: int, found: list[rows.Row]
) -> list[rows.Row]:
    """Add the other tasks with the last `ord`, which the limit cut off."""
    last = found[-1][-1]
    ties = db.execute(
        f"SELECT {rows.TASK_COLUMNS} {_QUEUE} AND shape = ? AND ord = ?"
        " ORDER BY ord, key",
        (shape, last),
    ).fetchall()
    return [row for row in found if row[-1] != last] + ties


def _has_more_behind(db: sqlite3.Connection, shape: int, last_ord: int) -> bool:
    row = db.execute(
        f"SELECT 1 {_QUEUE} AND shape = ? AND ord > ? LIMIT 1",
        (shape, last_ord),
    ).fetchone()
    return row is not None
