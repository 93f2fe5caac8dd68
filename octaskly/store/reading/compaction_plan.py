"""Compaction plan: the next floor, and the tasks and records to rewrite above it.

The dispatcher decides when to ask for a plan, and how long ended tasks are kept: see
`core.dispatcher.compaction`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from octaskly.core.effects import PlanFloor
from octaskly.core.events import FloorPlanned
from octaskly.core.log.facts import (
    RETIRED_MAX,
    Finished,
    Floor,
    Recorded,
    StreamFloor,
)
from octaskly.core.log.merge import TaskRecord, record_of
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.hlc import HLC_MAX, wall_ms_of
from octaskly.core.model.ids import (
    STREAMS_KEPT,
    STREAMS_WARN,
    Epoch,
    NodeId,
    StreamId,
)
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import TaskState
from octaskly.ports.store import Packer
from octaskly.store.reading import queries
from octaskly.store.tables import arrays, member_ranges, mesh_records, rows
from octaskly.store.tables.database import used_bytes
from octaskly.store.tables.floors import (
    FLOOR_OF_TASK,
    IS_PENDING,
    StreamFloors,
    read_floor,
)
from octaskly.store.tables.log_rows import find_last_until
from octaskly.store.tables.staged_parts import is_merging

TASKS_MAX: Final = 10_000  #: tasks examined in one step
CARRIED_MAX: Final = 500  #: tasks, or records, rewritten in one step
CARRIED_BYTES_MAX: Final = 1 << 20  #: size of the tasks rewritten in one step
ENTRIES_MIN: Final = 1000  #: entries that justify a floor which removes no task
SPARE_DIVISOR: Final = 16  #: 1/16 of the bytes is kept free for entries during a purge

_OPTIONS: Final = rows.TASK_COLUMNS.split(", ").index("options")
_OUTPUTS_OF: Final = f"'$[{TaskOptions.__struct_fields__.index('outputs_of')}]'"
_BY_FIRST_SUBMISSION: Final = (
    f"SELECT {rows.TASK_COLUMNS}, state,"  # noqa: S608
    " runs_on OR EXISTS (SELECT 1 FROM dependencies WHERE parent = id)"
    # Unfinished tasks get outputs. The list is only read for tasks that have some:
    # unlike `AND`, `iif` evaluates only what it needs.
    " OR iif(outputs IS NULL, 0, id IN (SELECT value"
    " FROM tasks AS t INDEXED BY tasks_with_options,"
    f" json_each(t.options, {_OUTPUTS_OF})"
    " WHERE t.options IS NOT NULL AND t.state < 2 AND type = 'text')),"
    " last_change_hlc, first_submitted_hlc, last_submitted_hlc, stream, seq, stored_ms"
    " FROM tasks INDEXED BY tasks_first_submitted ORDER BY first_submitted_hlc, key"
)
_ENDED: Final = tuple(rows.NUMBER_OF[state] for state in TaskState if state.is_final)


class _ResubmittedTask(NamedTuple):
    """An ended task: void if its last submission is void, carried otherwise."""

    last_submitted_hlc: int
    last_change_hlc: int
    rows: int
    records: list[TaskRecord]


@dataclass(slots=True)
class _CompactionCut:
    """Progress of the scan. All tasks up to `horizon` are void or carried."""

    horizon: int = 0
    last: dict[int, int] = field(default_factory=dict)
    """Number of the last submission up to the horizon, by stream."""
    carried: list[TaskRecord] = field(default_factory=list)
    resubmitted: list[_ResubmittedTask] = field(default_factory=list)
    """Ended tasks that were resubmitted, possibly after the horizon."""
    passed: list[tuple[int, int, int]] = field(default_factory=list)
    """Timestamp, stream and number of the last submissions of passed tasks."""
    latest_void_hlc: int = 0
    """Timestamp of the latest fact about a void task.

    Live tasks up to it are carried. Else the floor stops before it, and the task stays.
    """
    void_rows: int = 0  #: number of void rows of tasks and members
    is_over: bool = True  #: no later task is old enough
    horizon_max: int = HLC_MAX  #: all tasks after the cut were submitted later

    def add_void(self, row_count: int, last_change_hlc: int) -> None:
        """Count a void task; `row_count` includes the rows of its members."""
        self.void_rows += row_count
        self.latest_void_hlc = max(self.latest_void_hlc, last_change_hlc)

    def decide_resubmitted(self) -> None:
        """Decide for each resubmitted task if it is void, once `horizon` is known.

        Before, the horizon rises to the latest fact about any ended task that the scan
        has passed, but not to the next task. It would stay below a log that was written
        again from rows otherwise.
        """
        if not self.horizon:
            return
        latest_hlc = self.latest_void_hlc
        for each in self.resubmitted:
            latest_hlc = max(latest_hlc, each.last_change_hlc)
        self.horizon = max(self.horizon, min(latest_hlc, self.horizon_max))
        for each in self.resubmitted:
            if each.last_submitted_hlc <= self.horizon:
                self.add_void(each.rows, each.last_change_hlc)
            else:
                self.carried += each.records
        for submitted_hlc, stream, seq in self.passed:
            if submitted_hlc <= self.horizon:
                self.last[stream] = max(self.last.get(stream, 0), seq)


def plan_compaction(
    db: sqlite3.Connection,
    packer: Packer,
    ask: PlanFloor,
    bytes_max: int,
    ages: TaskAges,
) -> FloorPlanned:
    """Plan the next rise of the compaction floor.

    The horizon is a point in time. A task that was first submitted before it is either
    void, or carried: its facts are written again above the floor. A node that lacks
    entries below the floor gets rows instead, so it loses no live data. Results of
    tasks that only other nodes know are carried as well.

    The plan has no floor while a snapshot is merged, or while more records or such
    results lie below the floor than one step may carry; it then has some of them. As
    the log nears `bytes_max`, the oldest ended tasks are purged at any age.

    The caller must have opened a transaction, and read `ages` in it.
    """
    known, floors = read_floor(db), StreamFloors(db)
    if _is_purging(db, known.horizon) or is_merging(db):
        return FloorPlanned(None, has_more=True)
    unlogged = mesh_records.read_missing_from_log(db, ask.wall_ms, CARRIED_MAX)
    if unlogged:
        return FloorPlanned(None, has_more=True, records=unlogged)
    ended, used = _count_ended(db), used_bytes(db)
    part = bytes_max // SPARE_DIVISOR
    # Purging starts above `high` and aims at `low`.
    high, low = bytes_max - part, bytes_max - 2 * part
    if used > high and _is_purging_log(db, known):
        return FloorPlanned(None, has_more=True)
    surplus = max(ended - ask.tasks_max, _surplus_of_streams(db, ended))
    if used > high:
        surplus = max(surplus, _surplus_of_bytes(db, ended, used, low))
    cut = _scan_oldest(db, floors, ask, ages, surplus, ended)
    marks, has_more = _with_taskless_streams(db, ask, _marks(db, cut, floors, ask))
    retired = _read_retirable(db, ask.stream)
    if not marks and not retired:
        is_full = used > bytes_max
        return FloorPlanned(None, is_low_on_space=used > low, is_log_too_large=is_full)
    rest = _plan_without_tasks(db, packer, ask, marks)
    if rest.has_more:
        return rest
    cut.carried += rest.carried
    floor = Floor(cut.horizon, marks, retired=retired)
    planned = _planned(cut, floor, rest.records, is_low_on_space=used > low)
    return replace(planned, has_more=has_more or planned.has_more)


def _marks(
    db: sqlite3.Connection, cut: _CompactionCut, floors: StreamFloors, ask: PlanFloor
) -> tuple[StreamFloor, ...]:
    """Return the floors that pass the tasks of the cut, or at least other entries."""
    if cut.horizon:
        return _marks_at_horizon(db, cut, floors)
    return _marks_without_tasks(db, cut, floors, ask)


def _count_streams(db: sqlite3.Connection) -> int:
    (count,) = db.execute("SELECT count(*) FROM streams").fetchone()
    return int(count)


def _surplus_of_bytes(db: sqlite3.Connection, ended: int, used: int, low: int) -> int:
    """Return how many ended tasks to forget so that the log shrinks to `low` bytes."""
    return min(_count_rows(db) * (used - low) // used + 1, ended)


def _surplus_of_streams(db: sqlite3.Connection, ended: int) -> int:
    """Return how many ended tasks to forget because there are too many streams."""
    streams = _count_streams(db)
    if streams <= STREAMS_WARN:
        return 0
    return ended * (streams - STREAMS_KEPT) // streams


def _planned(
    cut: _CompactionCut,
    floor: Floor,
    carried_records: tuple[Recorded, ...],
    *,
    is_low_on_space: bool,
) -> FloorPlanned:
    return FloorPlanned(
        floor,
        tuple(cut.carried),
        records=carried_records,
        has_more=not cut.is_over or len(floor.retired) == RETIRED_MAX,
        is_low_on_space=is_low_on_space,
        purged_count=cut.void_rows,
    )


def _count_ended(db: sqlite3.Connection) -> int:
    """Return the number of rows of ended tasks and members."""
    (tasks,) = db.execute(
        "SELECT coalesce(sum(n), 0) FROM counts"  # noqa: S608
        f" WHERE kind < ? AND state IN ({rows.placeholders(len(_ENDED))})",
        (arrays.MEMBER, *_ENDED),
    ).fetchone()
    return int(tasks) + arrays.count_ended_member_rows(db)


def _count_rows(db: sqlite3.Connection) -> int:
    """Return the number of rows of tasks and members."""
    (tasks,) = db.execute(
        "SELECT coalesce(sum(n), 0) FROM counts WHERE kind < ?", (arrays.MEMBER,)
    ).fetchone()
    return int(tasks) + arrays.count_member_rows(db)


def _is_purging(db: sqlite3.Connection, horizon: int) -> bool:
    """Return True if void tasks of the last step are not deleted yet."""
    found = db.execute(
        "SELECT 1 FROM tasks INDEXED BY tasks_first_submitted"  # noqa: S608
        " WHERE first_submitted_hlc <= ? AND last_change_hlc <= ?"
        f" AND seq > 0 AND seq <= {FLOOR_OF_TASK} LIMIT 1",
        (horizon, horizon),
    ).fetchone()
    return found is not None


def _is_purging_log(db: sqlite3.Connection, floor: Floor) -> bool:
    """Return True if entries below the floor are not deleted yet."""
    return any(
        db.execute(
            "SELECT 1 FROM log WHERE stream = ? AND seq <= ? LIMIT 1", mark
        ).fetchone()
        for mark in floor.ends
    )


def _with_taskless_streams(
    db: sqlite3.Connection, ask: PlanFloor, marks: tuple[StreamFloor, ...]
) -> tuple[tuple[StreamFloor, ...], bool]:
    """Return the floors with those of streams without facts about tasks, if many.

    An agent that crashes again and again opens thousands of streams in a day, which
    hold only floors and records. They need not wait until they are old. The second item
    is True if there are any; then they can be retired with the next floor.
    """
    if _count_streams(db) <= STREAMS_KEPT:
        return marks, False
    found = db.execute(
        "SELECT stream, term, node, last_seq FROM streams"
        " WHERE floor_seq < last_seq AND snapshot_seq <= floor_seq"
        " AND task_seq <= floor_seq AND stream != ?",
        (ask.stream,),
    ).fetchall()
    joined = {mark.stream: mark for mark in marks}
    for stream, term, node, seq in found:
        mark = StreamFloor(StreamId(stream), seq, Epoch(term, NodeId(node)))
        joined[mark.stream] = mark
    return tuple(joined[stream] for stream in sorted(joined)), bool(found)


def _read_retirable(
    db: sqlite3.Connection, own: StreamId
) -> tuple[tuple[StreamId, int], ...]:
    """Return streams whose entries are all void, with the last one, oldest first."""
    found = db.execute(
        "SELECT stream, last_seq FROM streams"
        " WHERE 0 < last_seq AND last_seq = floor_seq AND stream != ?"
        " ORDER BY term, node, stream LIMIT ?",
        (own, RETIRED_MAX),
    )
    return tuple(found)


def _plan_without_tasks(
    db: sqlite3.Connection,
    packer: Packer,
    ask: PlanFloor,
    marks: tuple[StreamFloor, ...],
) -> FloorPlanned:
    """Plan to carry facts that belong to no task here, and that `marks` pass.

    These are records, and results of tasks that only other nodes know. `has_more` is
    True if there are more than one step may carry.
    """
    left = mesh_records.read_below_marks(db, marks, ask.wall_ms, CARRIED_MAX + 1)
    if len(left) > CARRIED_MAX:
        return FloorPlanned(None, has_more=True, records=left[:CARRIED_MAX])
    results, is_all = _read_foreign_results(db, packer, ask, marks)
    return FloorPlanned(None, results, has_more=not is_all, records=left)


def _read_foreign_results(
    db: sqlite3.Connection,
    packer: Packer,
    ask: PlanFloor,
    marks: tuple[StreamFloor, ...],
) -> tuple[tuple[TaskRecord, ...], bool]:
    """Return results below `marks` of tasks that only other nodes know.

    The entry that assigned the attempt is not here yet. If the task was forgotten
    instead, that entry is known. The second item is False if there are more results
    than one step may carry. Results that are above the marks as well are left out,
    because an earlier step wrote them again. Old ones are left out once no other node
    may know the task: a node that does would show an end which is in no log.
    """
    void = {mark.stream: mark.seq for mark in marks}
    before_ms = wall_ms_of(ask.before_hlc) if ask.is_log_complete else 0
    above: set[Finished] = set()
    below: dict[Finished, int | None] = {}
    for stream, seq, hlc, body, output in db.execute(
        "SELECT stream, seq, hlc, body, output FROM pending_entries"  # noqa: S608
        f" WHERE {IS_PENDING} ORDER BY hlc"
    ):
        fact = packer.unpack_entry(stream, seq, hlc, body).fact
        if not isinstance(fact, Finished):
            continue
        if seq > void.get(stream, 0):
            above.add(fact)
        elif not queries.is_assignment_known(db, fact.attempt) and (
            fact.outcome.ended_ms is None or fact.outcome.ended_ms >= before_ms
        ):
            below[fact] = output
    carried: list[TaskRecord] = []
    left = CARRIED_BYTES_MAX
    for fact, output in below.items():
        if fact in above:
            continue
        if len(carried) == CARRIED_MAX or left <= 0:
            return tuple(carried), False
        outputs = {} if output is None else {fact.attempt: output}
        carried.append(queries.with_outputs(db, record_of(fact), outputs))
        left -= rows.size_of(carried[-1])
    return tuple(carried), True


def _scan_oldest(
    db: sqlite3.Connection,
    floors: StreamFloors,
    ask: PlanFloor,
    ages: TaskAges,
    surplus: int,
    ended: int,
) -> _CompactionCut:
    """Scan tasks by first submission, up to the first one that must stay in place."""
    cut = _CompactionCut()
    left = CARRIED_BYTES_MAX
    for passed, row in enumerate(db.execute(_BY_FIRST_SUBMISSION)):
        if row[0] >= rows.MEMBER_KEYS_START:
            break  # Members are deleted with their arrays.
        is_wanted, changed, born, reborn, stream, seq, stored_ms = row[-7:]
        is_ended = row[-8] in _ENDED and not is_wanted
        since_hlc = ages.since_hlc(changed, stored_ms) if is_ended else born
        # An operator asks by the times that lists show.
        is_requested = ended > 0 and (changed if is_ended else born) < ask.purge_hlc
        must_pass = not is_ended and born < cut.latest_void_hlc
        is_old = surplus > 0 or since_hlc < ask.before_hlc or is_requested or must_pass
        if born > cut.horizon:  # Otherwise the horizon is past this task already.
            kept = len(cut.carried) + len(cut.resubmitted)
            is_full = passed >= TASKS_MAX or kept >= CARRIED_MAX
            if not is_old or is_full or left <= 0 or _is_large(db, row):
                cut.is_over = not (is_old and (is_full or left <= 0))
                cut.horizon_max = born - 1
                break
        # A task that was resubmitted after the cut stays, with all its facts.
        is_passed = reborn <= max(born, cut.horizon) and is_old
        if is_ended and (is_passed or seq <= floors[stream]):
            gone = 1 + _count_member_rows(db, row)
            surplus -= gone
            ended -= gone
            cut.add_void(gone, changed)
        else:
            carried = _with_members(db, row[:-8])
            left -= sum(map(rows.size_of, carried))
            if is_ended and is_old:
                task = _ResubmittedTask(
                    reborn, changed, 1 + _count_member_rows(db, row), carried
                )
                cut.resubmitted.append(task)
            else:
                cut.carried += carried
        cut.horizon = max(cut.horizon, born)
        cut.passed.append((reborn, stream, seq))
    cut.decide_resubmitted()
    return cut


def _count_member_rows(db: sqlite3.Connection, row: Sequence[Any]) -> int:
    """Return the number of member rows of a task; 0 if it is not an array."""
    members = arrays.read_members(db, [row[0]]) if row[_OPTIONS] is not None else {}
    return sum(counted.row_count for counted in members.values())


def _is_large(db: sqlite3.Connection, row: Sequence[Any]) -> bool:
    """Return True if this is a live array with too many member rows to carry.

    It stops the scan, so no younger task is purged before it. Users see the array, and
    can cancel its remaining members.
    """
    is_open = row[-8] not in _ENDED or row[-7]
    return bool(is_open and _count_member_rows(db, row) > CARRIED_MAX)


def _with_members(db: sqlite3.Connection, row: Sequence[Any]) -> list[TaskRecord]:
    """Return the records of a task: for an array, first all members with a row."""
    carried: list[TaskRecord] = []
    found = arrays.read_members(db, [row[0]]) if row[_OPTIONS] is not None else {}
    for members in found.values():
        keys = members.first, members.last
        stored = db.execute(
            f"SELECT {rows.TASK_COLUMNS} FROM tasks"  # noqa: S608
            " WHERE key BETWEEN ? AND ? ORDER BY key",
            keys,
        )
        begun = member_ranges.merged_by_key(
            stored, member_ranges.rows_between(db, *keys)
        )
        carried += [_read_record(db, member) for member in begun]
    return [*carried, _read_record(db, row)]


def _read_record(db: sqlite3.Connection, row: Sequence[Any]) -> TaskRecord:
    ((record, outputs),) = rows.records_from([row])
    return queries.with_outputs(db, record, outputs)


def _marks_at_horizon(
    db: sqlite3.Connection, cut: _CompactionCut, floors: StreamFloors
) -> tuple[StreamFloor, ...]:
    """Return the last entry of each stream up to the horizon."""
    marks = []
    for stream, term, node, have, base in db.execute(
        "SELECT stream, term, node, last_seq, snapshot_seq FROM streams ORDER BY stream"
    ).fetchall():
        floor = max(floors[stream], cut.last.get(stream, 0))
        seq, _ = find_last_until(db, stream, cut.horizon, max(floor, base), have)
        if seq == base > floor:
            seq = floor  # The log starts after a snapshot and has no earlier entry.
        if seq:
            marks.append(StreamFloor(StreamId(stream), seq, Epoch(term, NodeId(node))))
    return tuple(marks)


def _marks_without_tasks(
    db: sqlite3.Connection,
    cut: _CompactionCut,
    floors: StreamFloors,
    ask: PlanFloor,
) -> tuple[StreamFloor, ...]:
    """Return floors that remove at least `ENTRIES_MIN` entries but no task, or none.

    This bounds the size of a log that gets only records.
    """
    cut.horizon = min(ask.before_hlc, cut.horizon_max)
    marks = _marks_at_horizon(db, cut, floors)
    passed = sum(mark.seq - floors[mark.stream] for mark in marks)
    return marks if passed >= ENTRIES_MIN else ()
