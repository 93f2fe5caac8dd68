"""Rows of task arrays and their members.

An array has one row in `tasks`, and one in `arrays` that counts its members. A member
gets a row in `tasks` with the first fact about it, unless it is in a range: see
`member_ranges`. The key of that row is the key of
the array's first member plus the member's position, so it needs no index. Keys of
members start at `MEMBER_KEYS_START`; lists show only rows below it. The row of a member
holds its queue position and its state. Its envelope is not stored, because it follows
from the array.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from octaskly.core.log.merge import SubmissionTimes, TaskRecord, with_array_cancelled
from octaskly.core.model.arrays import (
    RUNS_MAX,
    ArrayProgress,
    array_of,
    member_spec,
    split_member_id,
)
from octaskly.core.model.hlc import HLC_MAX
from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.model.tasks import TaskSpec, TaskState
from octaskly.ports.store import LISTED_COMMAND_CHARS
from octaskly.store.tables import rows
from octaskly.store.tables.array_items import ItemReader
from octaskly.store.tables.list_counts import next_block_key

MEMBER_BIRTH: Final = SubmissionTimes(HLC_MAX, 0, StreamId(0), 0)
"""Placeholder for members: compaction deletes a member with its array."""

TASK, ARRAY, MEMBER = range(3)
"""Values of `counts.kind`. Members without a row are counted as well."""

_QUEUED: Final = rows.NUMBER_OF[TaskState.QUEUED]
_CANCELLED: Final = rows.NUMBER_OF[TaskState.CANCELLED]
_COLUMNS: Final = (
    "members, total, queued, running, completed, failed, cancelled, live,"
    " started_ms, ended_ms"
)


@dataclass(slots=True)
class ArrayMembers:
    """The row of one array in `arrays`: counts of its members."""

    first: int  #: key of the first member
    total: int
    counts: list[int] = field(default_factory=lambda: [0] * len(rows.STATES))
    """Number of rows, and of members in ranges, indexed by the number of the state."""
    live_count: int = 0  #: of these, those with an attempt that has not ended
    started_ms: int | None = None  #: earliest start of an ended attempt
    ended_ms: int | None = None  #: latest end of an attempt
    counted_without_row: tuple[int, int] | None = None
    """State and number of the members without a row, as stored in `counts`."""

    @property
    def last(self) -> int:
        """Key of the last member."""
        return self.first + self.total - 1

    @property
    def row_count(self) -> int:
        """Number of members with a row or in a range."""
        return sum(self.counts)

    def without_row(self, by: str | None) -> tuple[int, int]:
        """Return the state and the number of the members without a row.

        They are queued, or cancelled if `by` cancelled the array.
        """
        state = _QUEUED if by is None else _CANCELLED
        return state, self.total - self.row_count

    def progress(self, by: str | None) -> ArrayProgress:
        """Return the number of members in each state, including those without a row."""
        counts = list(self.counts)
        state, left = self.without_row(by)
        counts[state] += left
        queued, running, completed, failed, cancelled = counts
        return ArrayProgress(
            *(queued, running, completed, failed, cancelled),
            started_ms=self.started_ms,
            ended_ms=self.ended_ms,
        )

    def widen_times(self, started_ms: int | None, ended_ms: int | None) -> None:
        """Extend the times of the array by an earliest start and a latest end."""
        if started_ms is not None:
            self.started_ms = min(self.started_ms or started_ms, started_ms)
        if ended_ms is not None:
            self.ended_ms = max(self.ended_ms or 0, ended_ms)

    def array_row(self, key: int) -> tuple[int | None, ...]:
        """Return the row of `arrays`."""
        times = self.started_ms, self.ended_ms
        return (key, self.first, self.total, *self.counts, self.live_count, *times)


def read_members(
    db: sqlite3.Connection, keys: Iterable[int]
) -> dict[int, ArrayMembers]:
    """Read the counts of arrays, by key of the array."""
    select = f"SELECT task, {_COLUMNS} FROM arrays WHERE task"  # noqa: S608
    return {
        key: ArrayMembers(first, total, counts, live, started_ms, ended_ms)
        for key, first, total, *counts, live, started_ms, ended_ms in rows.select_in(
            db, select, keys
        )
    }


def read_members_of(db: sqlite3.Connection, array: TaskId) -> ArrayMembers | None:
    """Read the counts of one array, or None if `array` is not an array."""
    found = db.execute("SELECT key FROM tasks WHERE id = ?", (array,)).fetchone()
    return None if found is None else read_members(db, found).get(found[0])


def next_key(db: sqlite3.Connection) -> int:
    """Return the first key of a block above all keys of members."""
    (last,) = db.execute("SELECT max(members + total) FROM arrays").fetchone()
    return next_block_key(last or rows.MEMBER_KEYS_START)


def count_member_rows(db: sqlite3.Connection) -> int:
    """Return the number of members with a row."""
    (held,) = db.execute(
        "SELECT coalesce(sum(queued + running + completed + failed + cancelled), 0)"
        " FROM arrays"
    ).fetchone()
    return int(held)


def count_ended_member_rows(db: sqlite3.Connection) -> int:
    """Return the number of ended members with a row."""
    (ended,) = db.execute(
        "SELECT coalesce(sum(completed + failed + cancelled), 0) FROM arrays"
    ).fetchone()
    return int(ended)


def records_from(
    db: sqlite3.Connection,
    found: Sequence[rows.Row],
    array_columns: str = rows.SHOWN_COLUMNS,
) -> rows.RecordsWithOutputs:
    """Return complete records, for rows of `TASK_COLUMNS`.

    Members get the envelope that follows from these columns of their array. Arrays get
    their progress.
    """
    plain = rows.records_from(found)
    above = read_arrays(db, _array_ids(plain), array_columns)
    return list(_complete_records(db, found, plain, above))


def records_without_outputs(
    db: sqlite3.Connection, found: Sequence[rows.Row]
) -> tuple[TaskRecord, ...]:
    """Return complete records without outputs, for rows of `TASK_COLUMNS`."""
    return tuple(record for record, _ in records_from(db, found))


def listed_records(
    db: sqlite3.Connection, found: Sequence[rows.Row]
) -> tuple[TaskRecord, ...]:
    """Return complete records for a list, for rows of `LIST_COLUMNS`.

    The command of a member is cut as `LIST_COLUMNS` cuts that of a task, before the
    next member is built: 1000 members of a long command would take 64 MB.
    """
    plain = rows.records_from(found)
    above = read_arrays(db, _array_ids(plain), rows.BRIEF_COLUMNS)
    for array in above.values():
        array.record = _without_unlisted(array.record)
    records = _complete_records(db, found, plain, above)
    return tuple(_with_listed_command(record) for record, _ in records)


def build_member_record(array: StoredArray, number: int) -> TaskRecord | None:
    """Return the record of a member without facts; None if no such member exists."""
    spec = array.member_spec(number)
    if spec is None:
        return None
    record = TaskRecord(
        id=spec.id,
        spec=spec,
        reprioritized=array.record.reprioritized,
    )
    return with_array_cancelled(record, array.record.cancelled_by)


def ranges_without_row(
    db: sqlite3.Connection, members: ArrayMembers
) -> tuple[tuple[int, int], ...]:
    """Return the positions of members without a row: the first `RUNS_MAX` ranges."""
    held = members.row_count
    if not held:
        return ((0, members.total - 1),)
    keys = (members.first, members.last)
    (last,) = db.execute(
        "SELECT max(ifnull((SELECT max(key) FROM tasks WHERE key BETWEEN ?1 AND ?2),"
        " 0), ifnull((SELECT key + n - 1 FROM member_ranges WHERE key BETWEEN ?1 AND ?2"
        " ORDER BY key DESC LIMIT 1), 0))",
        keys,
    ).fetchone()
    runs: list[tuple[int, int]] = []
    start = members.first
    if last - members.first + 1 > held:
        for first, end in db.execute(
            # SQLite merges both in their order, without a copy.
            "SELECT key, key AS last FROM tasks WHERE key BETWEEN ?1 AND ?2 UNION ALL"
            " SELECT key, key + n - 1 FROM member_ranges WHERE key BETWEEN ?1 AND ?2"
            " ORDER BY key",
            keys,
        ):
            if start < first:
                runs.append((start, first - 1))
            if len(runs) == RUNS_MAX:
                break
            start = max(start, end + 1)  # A member with a row may lie within a range.
    if last < members.last and len(runs) < RUNS_MAX:
        runs.append((last + 1, members.last))
    return tuple((a - members.first, b - members.first) for a, b in runs)


def _array_ids(records: rows.RecordsWithOutputs) -> Iterator[TaskId]:
    """Yield the id of the array of each record that is a member."""
    for record, _ in records:
        if (array := array_of(record.id)) is not None:
            yield array


def _complete_records(
    db: sqlite3.Connection,
    found: Sequence[rows.Row],
    plain: rows.RecordsWithOutputs,
    above: Mapping[TaskId, StoredArray],
) -> Iterator[tuple[TaskRecord, dict[AttemptId, int]]]:
    """Yield the records with envelope and progress; `above` has the arrays."""
    arrays = (
        r[0] for r, (record, _) in zip(found, plain, strict=True) if _is_array(record)
    )
    members = read_members(db, arrays)
    if not above and not members:
        yield from plain
        return
    for row, (record, outputs) in zip(found, plain, strict=True):
        yield _complete_record(row[0], record, members, above), outputs


def _without_unlisted(array: TaskRecord) -> TaskRecord:
    """Return an array without the parts of its envelope that no list shows."""
    spec = array.spec
    if spec is None:
        return array
    return replace(array, spec=replace(spec, inputs=(), outputs=()))


def _with_listed_command(record: TaskRecord) -> TaskRecord:
    """Return a record with its command cut as in `LIST_COLUMNS`."""
    spec = record.spec
    if spec is None or len(spec.command) <= LISTED_COMMAND_CHARS:
        return record
    command = spec.command[: LISTED_COMMAND_CHARS + 1]
    return replace(record, spec=replace(spec, command=command))


def _is_array(record: TaskRecord) -> bool:
    return record.spec is not None and record.spec.array is not None


class StoredArray:
    """An array on disk, without its progress; it reads items as members need them."""

    def __init__(self, db: sqlite3.Connection, key: int, record: TaskRecord) -> None:
        self.record = record  #: without items
        self._items = ItemReader(db, key)

    def member_spec(self, number: int) -> TaskSpec | None:
        """Return the spec of the member with this number; None if there is none."""
        spec = self.record.spec
        if spec is None or spec.array is None:
            return None
        position, item = spec.array.position(number), None
        if spec.array.has_items and position is not None:
            item = self._items.read_item(position)
        return member_spec(spec, number, item)


def read_arrays(
    db: sqlite3.Connection, ids: Iterable[TaskId], columns: str = rows.SHOWN_COLUMNS
) -> dict[TaskId, StoredArray]:
    """Read these columns of arrays; they have no items and progress."""
    select = f"SELECT {columns} FROM tasks WHERE id"  # noqa: S608
    found = list(rows.select_in(db, select, dict.fromkeys(ids)))
    records = rows.records_from(found)
    return {
        record.id: StoredArray(db, key, record)
        for (key, *_), (record, _) in zip(found, records, strict=True)
    }


def _complete_record(
    key: int,
    record: TaskRecord,
    members: Mapping[int, ArrayMembers],
    above: Mapping[TaskId, StoredArray],
) -> TaskRecord:
    counted = members.get(key)
    if counted is not None:
        return replace(record, progress=counted.progress(record.cancelled_by))
    place = split_member_id(record.id)
    array = None if place is None else above.get(place[0])
    if place is None or array is None or array.record.spec is None:
        return record
    record = replace(
        record,
        spec=array.member_spec(place[1]),
        reprioritized=array.record.reprioritized,
    )
    return with_array_cancelled(record, array.record.cancelled_by)
