"""How far the floor may rise: what is old enough, and what must be carried first."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from octaskly.core.events import FloorPlanned
from octaskly.core.facts import HLC_MAX, Floor, Mark
from octaskly.core.merge import TaskRecord
from octaskly.core.model import Epoch, NodeId, StreamId, TaskState
from octaskly.store import reader, rows
from octaskly.store.purge import read_floor

TASKS_MAX: Final = 10_000  #: looked at in one step
CARRIED_MAX: Final = 500  #: written again in one step,
CARRIED_BYTES_MAX: Final = 1 << 20  #: and how much of it, commands and outputs

_ENDED: Final = tuple(rows.NUMBER_OF[state] for state in TaskState if state.is_final)


@dataclass(slots=True)
class _Cut:
    """How far the walk came: all tasks born up to `horizon` are void or carried."""

    horizon: int = 0
    last: dict[int, int] = field(default_factory=dict)
    """For each stream the last submission that the walk passed."""
    carried: list[TaskRecord] = field(default_factory=list)
    is_over: bool = True  #: nothing beyond is old enough


def plan_floor(db: sqlite3.Connection, before_hlc: int, tasks_max: int) -> FloorPlanned:
    """Find the next step of the floor.

    It is a cut through time: tasks born up to the horizon are void or carried. A node
    that lacks entries from before it gets rows instead, so nothing that counts is lost.

    Args:
        db: A reader in a transaction.
        before_hlc: Tasks whose last fact is older are old enough.
        tasks_max: Beyond so many ended tasks, the oldest are old enough in any case.
    """
    (ended,) = db.execute(
        f"SELECT coalesce(sum(n), 0) FROM counts WHERE state IN ({rows.marks(3)})",  # noqa: S608
        _ENDED,
    ).fetchone()
    known = read_floor(db)
    floors = {mark.stream: mark.seq for mark in known.marks}
    if _is_purging(db, floors, known.horizon):
        return FloorPlanned(None, has_more=True)
    cut = _walk(db, floors, before_hlc, surplus=ended - tasks_max)
    if not cut.horizon:
        return FloorPlanned(None)
    marks = _marks(db, cut, floors)
    return FloorPlanned(
        Floor(cut.horizon, marks), tuple(cut.carried), has_more=not cut.is_over
    )


def _is_purging(
    db: sqlite3.Connection, floors: Mapping[StreamId, int], horizon: int
) -> bool:
    """Return whether tasks wait for their deletion since the last step."""
    oldest = db.execute(
        "SELECT stream, seq, changed FROM tasks INDEXED BY tasks_born"
        " ORDER BY born, key LIMIT 1"
    ).fetchone()
    if oldest is None:
        return False
    stream, seq, changed = oldest
    return bool(seq <= floors.get(stream, 0) and changed <= horizon)


def _walk(
    db: sqlite3.Connection,
    floors: Mapping[StreamId, int],
    before_hlc: int,
    surplus: int,
) -> _Cut:
    """Pass tasks in the order of their birth until one has to stay where it is."""
    cut = _Cut()
    left = CARRIED_BYTES_MAX
    latest = 0  #: fact about a task that is void
    until = HLC_MAX  #: no other task was born up to here
    found = db.execute(
        f"SELECT {rows.TASK_COLUMNS}, state, is_live, changed,"  # noqa: S608
        " born, reborn, stream, seq FROM tasks INDEXED BY tasks_born ORDER BY born, key"
    )
    for passed, row in enumerate(found):
        is_live, changed, born, reborn, stream, seq = row[-6:]
        is_ended = row[-7] in _ENDED and not is_live
        limit = changed if is_ended else born
        is_old = surplus > 0 or limit < before_hlc
        if born > cut.horizon:  # Else the cut is through it already.
            is_full = passed >= TASKS_MAX or len(cut.carried) >= CARRIED_MAX
            if not is_old or is_full or left <= 0:
                cut.is_over = not is_old
                until = born - 1
                break
        # One that was submitted again meanwhile stays, with what was said of it.
        is_passed = reborn <= max(born, cut.horizon) and is_old
        if is_ended and (is_passed or seq <= floors.get(stream, 0)):
            surplus -= 1
            latest = max(latest, changed)
        else:
            record = _whole(db, row[:-7])
            left -= rows.size_of(record)
            cut.carried.append(record)
        cut.horizon = max(cut.horizon, born)
        if reborn == born:
            cut.last[stream] = max(cut.last.get(stream, 0), seq)
    if cut.horizon:
        cut.horizon = max(cut.horizon, min(latest, until))
    return cut


def _whole(db: sqlite3.Connection, row: Sequence[Any]) -> TaskRecord:
    ((record, outputs),) = rows.records_from(db, [row])
    return reader.with_outputs(db, record, outputs)


def _marks(
    db: sqlite3.Connection, cut: _Cut, floors: Mapping[StreamId, int]
) -> tuple[Mark, ...]:
    """Return for each stream the last entry up to the horizon."""
    marks = []
    for stream, term, node, have, base in db.execute(
        "SELECT stream, term, node, have_seq, base_seq FROM streams ORDER BY stream"
    ).fetchall():
        floor = max(floors.get(stream, 0), cut.last.get(stream, 0))
        seq = _last_until(db, stream, cut.horizon, max(floor, base), have)
        if seq == base > floor:
            seq = floor  # The log begins later; nothing more is known of before.
        if seq:
            marks.append(Mark(StreamId(stream), seq, Epoch(term, NodeId(node))))
    return tuple(marks)


def _last_until(
    db: sqlite3.Connection, stream: int, horizon: int, low: int, high: int
) -> int:
    """Return the last entry between `low` and `high` that is not after the horizon."""
    while low < high:
        middle = (low + high + 1) // 2
        found = db.execute(
            "SELECT hlc FROM log WHERE stream = ? AND seq = ?", (stream, middle)
        ).fetchone()
        if found is not None and found[0] <= horizon:
            low = middle
        else:
            high = middle - 1
    return low
