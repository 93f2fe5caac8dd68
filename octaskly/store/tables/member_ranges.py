"""The table `member_ranges`: members of an array that were assigned together.

Nearly all members of an array are assigned once, together with others, and succeed
without output. Such members have no rows in `tasks`. One row of `member_ranges` says
how each of them ended, and readers build the rows of members from it. As soon as
anything else is said of a member, it gets a row in `tasks`, which counts from then on.

The key of a range is that of its first member, and no two ranges have a key in common.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from operator import itemgetter
from typing import Final, NamedTuple

from msgspec import Struct, msgpack

from octaskly.core.log.merge import TaskRecord, TaskRow
from octaskly.core.log.range_rows import (
    APART,
    RUNNING,
    MemberState,
    RangeRow,
)
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.arrays import (
    RANGE_MAX,
    attempt_at,
    member_id,
    split_member_id,
)
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskState,
)
from octaskly.store.tables import bulk, list_counts, rows
from octaskly.store.tables.arrays import MEMBER_BIRTH

RUNNING_STATE: Final = rows.NUMBER_OF[TaskState.RUNNING]
COMPLETED_STATE: Final = rows.NUMBER_OF[TaskState.COMPLETED]


class StoredRange(Struct, array_like=True):
    """Members of an array that were assigned together."""

    array: TaskId
    number: int  #: of the first member
    step: int
    attempt: AttemptId  #: of the first member; the others follow
    node: NodeId
    hlc: int  #: timestamp of the first assignment; the others follow
    members: list[MemberState]  #: each ended, or is RUNNING or APART

    @classmethod
    def from_row(cls, row: RangeRow) -> StoredRange:
        """Return the range of a row of a snapshot."""
        return cls(
            *(row.array, row.number, row.step, row.attempt, row.node, row.hlc),
            list(row.members),
        )

    @property
    def live_count(self) -> int:
        """Number of members that run."""
        return self.members.count(RUNNING)

    def state_at(self, offset: int) -> int:
        """Return the number of the state of a member that is not apart."""
        is_running = self.members[offset] == RUNNING
        return RUNNING_STATE if is_running else COMPLETED_STATE

    def hlc_at(self, offset: int) -> int:
        """Return the timestamp of the latest fact about a member."""
        end = self.members[offset]
        return self.hlc + (offset if isinstance(end, int) else end.later_hlc)

    def record_at(self, offset: int) -> TaskRecord:
        """Return what the facts alone say of a member."""
        task = member_id(self.array, self.number + self.step * offset)
        attempt, end = attempt_at(self.attempt, offset), self.members[offset]
        if isinstance(end, int):
            return TaskRecord(task, attempts=(Attempt(attempt, self.node),))
        outcome = Outcome(
            *(AttemptState.OK, EndReason.EXIT, 0, None),
            *(end.started_ms, end.started_ms + end.lasting_ms, end.duration_ms),
            cpu_ms=end.cpu_ms,
            memory_max_kb=end.memory_max_kb,
        )
        state, term = AttemptState.OK, end.decided_term
        ended = Attempt(attempt, self.node, state, outcome, term)
        return TaskRecord(task, attempts=(ended,))


class MemberRow(NamedTuple):
    """A row of `tasks`, built for a member that has none."""

    row: rows.Row  #: of `TASK_COLUMNS`
    node: NodeId
    state: int
    last_change_hlc: int


_decoder: Final = msgpack.Decoder(StoredRange)


def find_range(db: sqlite3.Connection, key: int) -> tuple[int, StoredRange] | None:
    """Return the range that has the member with a key, with its own key."""
    found = db.execute(
        "SELECT key, n, body FROM member_ranges WHERE key <= ?"
        " ORDER BY key DESC LIMIT 1",
        (key,),
    ).fetchone()
    if found is None or key >= found[0] + found[1]:
        return None
    return found[0], _decoder.decode(found[2])


def has_range_between(db: sqlite3.Connection, first: int, last: int) -> bool:
    """Return True if a range has any of these keys."""
    found = db.execute(f"SELECT 1 {_BETWEEN} LIMIT 1", (first - RANGE_MAX, last, first))
    return found.fetchone() is not None


def rows_between(
    db: sqlite3.Connection, first: int, last: int, *, is_live: bool = False
) -> Iterator[MemberRow]:
    """Yield the rows of members in ranges with these keys, in their order.

    With `is_live`, only those of members that run.
    """
    only = "AND live > 0" if is_live else ""
    for key, body in db.execute(
        f"SELECT key, body {_BETWEEN} {only} ORDER BY key",
        (first - RANGE_MAX, last, first),
    ):
        stored = _decoder.decode(body)
        for offset, member in enumerate(stored.members):
            is_wanted = member == RUNNING if is_live else member != APART
            if is_wanted and first <= key + offset <= last:
                yield _row_at(key, stored, offset)


def rows_by_key(db: sqlite3.Connection, keys: Iterable[int]) -> Iterator[MemberRow]:
    """Yield the rows of members in ranges with these keys, in the order of `keys`."""
    start, stored = 0, None
    for key in keys:
        if stored is None or not start <= key < start + len(stored.members):
            start, stored = find_range(db, key) or (0, None)
        if stored is not None and stored.members[key - start] != APART:
            yield _row_at(start, stored, key - start)


def merged_by_key(
    stored: Iterable[rows.Row], built: Iterable[MemberRow]
) -> Iterator[rows.Row]:
    """Yield rows of `tasks` and of members in ranges; both are ordered by key."""
    return merge(stored, (each.row for each in built), key=itemgetter(0))


def read_rows_by_id(
    db: sqlite3.Connection, columns: str, ids: Sequence[TaskId]
) -> list[rows.Row]:
    """Return rows of the tasks with these ids.

    `columns` is `TASK_COLUMNS`, or the same with less in some columns.
    """
    select = f"SELECT {columns} FROM tasks WHERE id"  # noqa: S608
    found: list[rows.Row] = [*rows.select_in(db, select, ids)]
    if len(found) < len(ids):
        known = {row[1] for row in found}
        missing = [task for task in ids if task not in known]
        found += (each.row for each in rows_by_id(db, missing))
    return found


def rows_by_id(db: sqlite3.Connection, ids: Iterable[TaskId]) -> Iterator[MemberRow]:
    """Yield the rows of those tasks that are members in ranges, ordered by key."""
    return rows_by_key(db, sorted(keys_of_members(db, ids)))


def range_rows_after(
    db: sqlite3.Connection, after: int, ages: TaskAges
) -> Iterator[tuple[int, RangeRow]]:
    """Yield the ranges after a key as rows of a snapshot, each with its key."""
    for key, body in db.execute(
        "SELECT key, body FROM member_ranges WHERE key > ? ORDER BY key", (after,)
    ):
        stored = _decoder.decode(body)
        last_hlc = max(map(stored.hlc_at, range(len(stored.members))))
        yield (
            key,
            RangeRow(
                *(
                    stored.array,
                    stored.number,
                    stored.step,
                    stored.attempt,
                    stored.node,
                ),
                *(stored.hlc, tuple(stored.members), ages.age_ms(last_hlc, 0)),
            ),
        )


def task_rows_of(row: RangeRow) -> Iterator[TaskRow]:
    """Yield the rows for which a row of a snapshot stands."""
    stored = StoredRange.from_row(row)
    for offset, member in enumerate(stored.members):
        if member != APART:
            record, hlc = stored.record_at(offset), stored.hlc_at(offset)
            yield TaskRow(record, MEMBER_BIRTH, hlc, row.age_ms)


def live_rows_after(db: sqlite3.Connection, after: int) -> Iterator[MemberRow]:
    """Yield the rows of members in ranges after a key that run."""
    return rows_between(db, after + 1, _KEY_MAX, is_live=True)


def delete_ranges(
    db: sqlite3.Connection, first: int, last: int, limit: int
) -> dict[list_counts.BlockCell, int]:
    """Delete ranges with these keys, until they had `limit` members.

    Returns:
        Minus the number of members, by node, state and block.
    """
    gone: dict[list_counts.BlockCell, int] = {}
    keys: list[tuple[int]] = []
    for key, body in db.execute(
        "SELECT key, body FROM member_ranges WHERE key BETWEEN ? AND ? ORDER BY key",
        (first, last),
    ):
        stored = _decoder.decode(body)
        keys.append((key,))
        for offset, member in enumerate(stored.members):
            if member != APART:
                block = list_counts.block_of(key + offset)
                cell = stored.node, stored.state_at(offset), block
                gone[cell] = gone.get(cell, 0) - 1
        limit -= len(stored.members)
        if limit <= 0:
            break
    db.executemany("DELETE FROM member_ranges WHERE key = ?", keys)
    return gone


def write_ranges(
    db: sqlite3.Connection, ranges: Iterable[tuple[int, StoredRange]]
) -> None:
    """Insert or replace ranges, each with its key."""
    bulk.RANGE_UPSERT.execute(
        db,
        [
            (key, len(stored.members), stored.live_count, msgpack.encode(stored))
            for key, stored in ranges
        ],
    )


# The first bound is there for the index: no range has more than `RANGE_MAX` members.
_BETWEEN: Final = "FROM member_ranges WHERE key > ? AND key <= ? AND key + n > ?"
_KEY_MAX: Final = (1 << 62) - 1


def keys_of_members(db: sqlite3.Connection, ids: Iterable[TaskId]) -> list[int]:
    """Return the keys of those tasks that are members of arrays."""
    places = [place for each in ids if (place := split_member_id(each)) is not None]
    keys: list[int] = []
    for array, first, text in rows.select_in(
        db,
        "SELECT id, members, options FROM tasks JOIN arrays ON task = tasks.key"
        " WHERE id",
        dict.fromkeys(each for each, _ in places),
    ):
        spec = rows.array_spec(text)
        positions = (spec.position(number) for of, number in places if of == array)
        keys += (first + at for at in positions if at is not None)
    return keys


def _row_at(start: int, stored: StoredRange, offset: int) -> MemberRow:
    """Return the row of a member, which has no columns but its attempt."""
    record = stored.record_at(offset)
    row = (
        *(start + offset, record.id, None, rows.pack_attempts(record, None)),
        *(0, None, "", rows.NO_LIMIT, None, None, None, None, None, None),
        *(0, 0, None, "", 0, 0),
    )
    return MemberRow(row, stored.node, stored.state_at(offset), stored.hlc_at(offset))
