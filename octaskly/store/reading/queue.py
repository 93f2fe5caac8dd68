"""Queued and live tasks, read for the dispatcher."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from msgspec.structs import replace

from octaskly.core.effects import LoadLive, LoadQueued, LoadTasks
from octaskly.core.events import LiveLoaded, QueuedLoaded, TasksLoaded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import Requirements, requires_of
from octaskly.core.model.tasks import MEMBERS_LANE, PRIORITY_SHIFT, LaneKey
from octaskly.store.tables import arrays, member_ranges, rows

LOAD_BYTES = 16 << 20  #: approximate size of the tasks of one reply
LANE_LOAD_BYTES = 1 << 20  #: for tasks with requirements: there may be many lanes
TASKS_PER_QUERY = 16  #: read by id; they may have 1 MiB each
LANES_MAX = 10_000  #: number of lanes in one reply
LANE_HEADS_MAX = 1000  #: pairs of lane and priority read for `oldest_ms`

_QUEUE = "FROM tasks INDEXED BY tasks_queued WHERE state = 0 AND is_blocked = 0"
_LANE = f"{_QUEUE} AND shape = ? AND submitter = ?"
_PLACE = "ifnull(place, ord)"
_PLACED = f"SELECT {rows.STORED_COLUMNS}, {_PLACE} {_LANE}"
"""Rows of `STORED_COLUMNS` and, last, the place of each in the queue."""


def load_queued_tasks(
    db: sqlite3.Connection, ask: LoadQueued
) -> tuple[QueuedLoaded, list[rows.StoredTask]]:
    """Return queued tasks of one lane whose `ord` is above `after_ord`, in order.

    Tasks with the same one are never split, so there may be more than `limit`. There
    may be fewer if they are large. The first page of `MEMBERS_LANE` lists the others.

    Returns:
        The answer, and its tasks as stored.
    """
    after_ord, lane = ask.after_ord, ask.lane
    found, has_more = first_rows(
        db.execute(
            f"{_PLACED} AND {_PLACE} > ? ORDER BY {_PLACE}, key",
            (*_columns_of(lane), after_ord),
        ),
        ask.limit,
        LANE_LOAD_BYTES if lane.shape else LOAD_BYTES,
    )
    if has_more:
        found = _with_ties(db, lane, found)
        has_more = _has_more_behind(db, lane, found[-1][-1])
    others = _other_lanes(db) if lane == MEMBERS_LANE and after_ord < 0 else ()
    records = _queue_records(db, [row[: rows.WIDTH] for row in found])
    answer = QueuedLoaded(ask.term, records, has_more, lane, others)
    return answer, list(map(rows.StoredTask, found, records))


def read_queued_bytes(db: sqlite3.Connection, uncounted_bytes: int) -> dict[str, int]:
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

    With more than `LANE_HEADS_MAX` pairs of lane and priority, only the first count.
    """
    return min(islice(_lane_heads(db), LANE_HEADS_MAX), default=None)


def load_live_tasks(db: sqlite3.Connection, ask: LoadLive) -> LiveLoaded:
    """Return tasks with an attempt that has not ended, in the order of their keys.

    These are running tasks, and tasks in a final state whose latest attempt has not
    ended, such as cancelled ones. Arrays with running members, and these members, are
    included.
    """
    stored = db.execute(
        f"SELECT {rows.TASK_COLUMNS} FROM tasks INDEXED BY tasks_state"  # noqa: S608
        " WHERE state = 1 AND key > ?1"
        f" UNION ALL SELECT {rows.TASK_COLUMNS} FROM tasks INDEXED BY tasks_live"
        " WHERE runs_on = 1 AND key > ?1 ORDER BY key",
        (ask.after_key,),
    )
    built = member_ranges.live_rows_after(db, ask.after_key)
    found, has_more = first_rows(member_ranges.merged_by_key(stored, built), ask.limit)
    next_key = found[-1][0] if has_more else None
    return LiveLoaded(ask.term, _queue_records(db, found), next_key)


def load_tasks(db: sqlite3.Connection, ask: LoadTasks) -> TasksLoaded:
    """Return the first tasks of `ask`, as many as one answer may have."""
    found: list[rows.Row] = []
    asked = iter(ask.tasks)
    answered: list[TaskId] = []
    size = 0
    while size <= LOAD_BYTES and (some := list(islice(asked, TASKS_PER_QUERY))):
        found += member_ranges.read_rows_by_id(db, rows.TASK_COLUMNS, some)
        size = sum(map(rows.size_of_row, found))
        answered += some
    return TasksLoaded(ask.term, tuple(answered), _queue_records(db, found))


def first_rows(
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


def _other_lanes(
    db: sqlite3.Connection,
) -> tuple[tuple[LaneKey, Requirements | None], ...]:
    """Return the lanes in the queue but the first, `LANES_MAX` at most."""
    lanes: list[tuple[LaneKey, Requirements | None]] = []
    for shape, submitter in islice(_lane_columns(db), LANES_MAX + 1):
        is_array = shape < 0
        lane = LaneKey(~shape if is_array else shape, submitter, is_array)
        if lane != MEMBERS_LANE:
            lanes.append((lane, _requirements_of(db, lane) if lane.shape else None))
    return tuple(lanes)


def _lane_columns(db: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    """Yield the columns `shape` and `submitter` of each lane in the queue, in order.

    SQLite would read all tasks of a lane to compare both columns at once.
    """
    select, order = f"SELECT shape, submitter {_QUEUE}", "ORDER BY shape, submitter"
    found = db.execute(f"{select} {order} LIMIT 1").fetchone()
    while found is not None:
        yield found
        shape = found[0]
        found = (
            db.execute(
                f"{select} AND shape = ? AND submitter > ? {order} LIMIT 1", found
            ).fetchone()
            or db.execute(
                f"{select} AND shape > ? {order} LIMIT 1", (shape,)
            ).fetchone()
        )


def _lane_heads(db: sqlite3.Connection) -> Iterator[int]:
    """Yield when the first task of each lane and priority was accepted.

    Tasks of one lane and priority are ordered by that time.
    """
    for lane in _lane_columns(db):
        place = 0
        while head := db.execute(
            f"SELECT {_PLACE}, created_ms {_LANE} AND {_PLACE} >= ?"
            f" ORDER BY {_PLACE} LIMIT 1",
            (*lane, place),
        ).fetchone():
            place, created_ms = head
            yield created_ms
            place = ((place >> PRIORITY_SHIFT) + 1) << PRIORITY_SHIFT


def _columns_of(lane: LaneKey) -> tuple[int, str]:
    """Return the columns `shape` and `submitter` of the tasks in a lane."""
    return rows.stored_shape(lane.shape, is_array=lane.is_array), lane.submitter


def _requirements_of(db: sqlite3.Connection, lane: LaneKey) -> Requirements | None:
    """Return the requirements of the tasks in a lane."""
    select = f"SELECT {rows.TASK_COLUMNS} {_LANE} LIMIT 1"
    found = db.execute(select, _columns_of(lane)).fetchall()
    (record,) = arrays.records_without_outputs(db, found)
    return None if record.spec is None else requires_of(record.spec.options)


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
    db: sqlite3.Connection, lane: LaneKey, found: list[rows.Row]
) -> list[rows.Row]:
    """Add the other tasks at the last place, which the limit cut off."""
    last = found[-1][-1]
    ties = db.execute(
        f"{_PLACED} AND {_PLACE} = ? ORDER BY key",
        (*_columns_of(lane), last),
    ).fetchall()
    return [row for row in found if row[-1] != last] + ties


def _has_more_behind(db: sqlite3.Connection, lane: LaneKey, last_ord: int) -> bool:
    row = db.execute(
        f"SELECT 1 {_LANE} AND {_PLACE} > ? LIMIT 1", (*_columns_of(lane), last_ord)
    ).fetchone()
    return row is not None
