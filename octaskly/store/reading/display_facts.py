"""Facts about tasks for people: short ids, starts of running work, first failures."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import islice

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.hlc import wall_ms_of
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import TaskState
from octaskly.ports.store import DisplayFacts, MemberFailure
from octaskly.store.reading.short_ids import shortest_ids
from octaskly.store.tables import arrays, member_ranges, rows
from octaskly.store.tables.arrays import ArrayMembers

_RUNNING = rows.NUMBER_OF[TaskState.RUNNING]
_FAILED = rows.NUMBER_OF[TaskState.FAILED]


def read_display_facts(
    db: sqlite3.Connection, records: Sequence[TaskRecord]
) -> dict[TaskId, DisplayFacts]:
    """Return the facts by the id of the task."""
    # A plain task that does not run has only a short id.
    found = _read_rows(
        db, [r.id for r in records if r.progress or r.state is TaskState.RUNNING]
    )
    members = arrays.read_members(db, (key for key, _ in found.values()))
    facts: dict[TaskId, DisplayFacts] = {}
    for record, short_id in zip(records, shortest_ids(db, records), strict=True):
        row = found.get(record.id)
        activity = () if row is None else _activity(db, record, *row, members)
        facts[record.id] = DisplayFacts(short_id, *activity)
    return facts


def _read_rows(
    db: sqlite3.Connection, ids: Sequence[TaskId]
) -> dict[TaskId, tuple[int, int]]:
    """Return key and timestamp of the latest fact, by id."""
    select = "SELECT id, key, last_change_hlc FROM tasks WHERE id"
    found = {task: (key, hlc) for task, key, hlc in rows.select_in(db, select, ids)}
    for each in member_ranges.rows_by_id(db, [id_ for id_ in ids if id_ not in found]):
        found[each.row[1]] = each.row[0], each.last_change_hlc
    return found


def _activity(
    db: sqlite3.Connection,
    record: TaskRecord,
    key: int,
    hlc: int,
    members: dict[int, ArrayMembers],
) -> tuple[int | None, MemberFailure | None]:
    """Return the start of running work, and the first failed member.

    `key` is that of the task's row, `hlc` the timestamp of its latest fact.
    """
    is_running = record.state is TaskState.RUNNING
    counted = members.get(key)
    if counted is None:
        # The latest fact about a running task is the assignment of its attempt.
        return wall_ms_of(hlc) if is_running else None, None
    started_ms = counted.started_ms
    if started_ms is None and is_running:
        started_ms = _first_assignment(db, counted)
    failed = counted.counts[_FAILED]
    return started_ms, _first_failure(db, record, counted) if failed else None


def _first_assignment(db: sqlite3.Connection, members: ArrayMembers) -> int | None:
    """Return when the first member was assigned, if none has ended."""
    keys = members.first, members.last
    stored = db.execute(
        "SELECT key, last_change_hlc FROM tasks INDEXED BY tasks_state"
        " WHERE state = ? AND key BETWEEN ? AND ? ORDER BY key LIMIT 1",
        (_RUNNING, *keys),
    ).fetchall()
    built = member_ranges.rows_between(db, *keys, is_live=True)
    in_ranges = ((each.row[0], each.last_change_hlc) for each in islice(built, 1))
    _, hlc = min([*stored, *in_ranges], default=(0, None))
    return None if hlc is None else wall_ms_of(hlc)


def _first_failure(
    db: sqlite3.Connection, array: TaskRecord, members: ArrayMembers
) -> MemberFailure | None:
    spec = None if array.spec is None else array.spec.array
    found = db.execute(
        f"SELECT {rows.TASK_COLUMNS} FROM tasks INDEXED BY tasks_state"  # noqa: S608
        " WHERE state = ? AND key BETWEEN ? AND ? ORDER BY key LIMIT 1",
        (_FAILED, members.first, members.last),
    ).fetchall()
    if spec is None or not found:
        return None
    ((member, _),) = rows.records_from(found)
    attempt = member.deciding_attempt
    number = spec.number(found[0][0] - members.first)
    return MemberFailure(number, None if attempt is None else attempt.outcome)
