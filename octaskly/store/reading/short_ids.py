"""Short ids of tasks: their number, or a prefix of their eight hexadecimal digits.

Numbers and digits of generated ids are in the index `tasks_sequence`: counted ids with
their number, and ids with a derived number with their digits. See `rows.sequence_of`.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import TaskId, task_name
from octaskly.store.tables import rows, task_name_collisions

FOUND_MAX: Final = 4  #: tasks returned for one short id
DIGITS_MIN: Final = 4  #: shortest prefix of hexadecimal digits
COUNTED_MAX: Final = 10_000  #: latest counted ids whose digits are compared
DERIVED_MAX: Final = 100
"""Names examined that begin like those with a derived number; clients may choose such.
"""

_ID_DIGITS: Final = 8
_DIGITS: Final = re.compile(rf"[0-9a-f]{{{DIGITS_MIN},{_ID_DIGITS}}}")
_START: Final = rows.DERIVED_SEQUENCE_START
_LETTER: Final = re.compile(r"[a-f]")


def names_with_short_id(db: sqlite3.Connection, text: str) -> tuple[str, ...]:
    """Return the names of the tasks that a short id may mean: at most `FOUND_MAX`.

    A number takes precedence over equal digits, and the digits of ids with a derived
    number over those of counted ids, which `shortest_ids` shows by their number.
    """
    if text.isascii() and text.isdecimal():
        number = text.lstrip("0") or "0"
        if found := names_with_sequence(db, int(number[: len(str(_START))])):
            return found
    if not _DIGITS.fullmatch(text):
        return ()
    first, last = (int(f"{text:{fill}<{_ID_DIGITS}}", 16) for fill in "0f")
    derived = db.execute(
        "SELECT id FROM tasks INDEXED BY tasks_sequence WHERE sequence IS NOT NULL"
        " AND sequence BETWEEN ? AND ? ORDER BY sequence LIMIT ?",
        (_START + first, _START + last, FOUND_MAX),
    ).fetchall()
    if derived:
        return _names(db, derived)
    counted = db.execute(
        "SELECT id FROM (SELECT id FROM tasks INDEXED BY tasks_sequence"
        " WHERE sequence IS NOT NULL AND sequence < ? ORDER BY sequence DESC LIMIT ?)"
        " WHERE id GLOB 'task-*-' || ? || '*' LIMIT ?",
        (_START, COUNTED_MAX, text, FOUND_MAX),
    )
    return _names(db, counted)


def names_with_sequence(db: sqlite3.Connection, sequence: int) -> tuple[str, ...]:
    """Return at most two names of tasks with this number, counted or derived."""
    if not 0 <= sequence < _START:
        return ()
    found = db.execute(
        "SELECT id FROM tasks INDEXED BY tasks_sequence"
        " WHERE sequence IS NOT NULL AND sequence = ? ORDER BY key LIMIT 2",
        (sequence,),
    ).fetchall()
    return _names(db, (*found, *_ids_with_derived_number(db, sequence)))[:2]


def _ids_with_derived_number(db: sqlite3.Connection, number: int) -> list[rows.Row]:
    """Return at most two ids with this number, without the members of an array."""
    found: list[rows.Row] = []
    start = f"task-{number:0{rows.DERIVED_DIGITS}}"  # A derived number has zeros.
    low, end = f"{start}-", f"{start}."
    for _ in range(DERIVED_MAX):
        first = db.execute(
            "SELECT id FROM tasks WHERE id >= ? AND id < ? ORDER BY id LIMIT 1",
            (low, end),
        ).fetchone()
        if first is None or len(found) > 1:
            break
        name = first[0][: len(start) + 1 + _ID_DIGITS]
        found += db.execute(
            "SELECT id FROM (SELECT id, key FROM tasks WHERE id = ?1 UNION ALL"
            " SELECT id, key FROM tasks WHERE id > ?1 || '~' AND id < ?1 || char(127))"
            " ORDER BY key LIMIT 2",
            (name,),
        )
        low = f"{name}\x7f"
    return found[:2]


def shortest_ids(db: sqlite3.Connection, records: Sequence[TaskRecord]) -> list[str]:
    """Return the shortest text that `names_with_short_id` finds each task with.

    The number of a member follows the short id of its array. A task with a name that
    its client chose has only this name.
    """
    places = [split_member_id(record.id) for record in records]
    named = [
        record.id if place is None else place[0]
        for record, place in zip(records, places, strict=True)
    ]
    sequences = {task: rows.sequence_of(task) for task in named}
    known = [sequence for sequence in sequences.values() if sequence is not None]
    shared = _read_shared(db, known)
    near = _read_nearest(db, [each for each in known if each >= _START])
    short_ids: list[str] = []
    for record, task, place in zip(records, named, places, strict=True):
        sequence, occurrence = sequences[task], record.occurrence
        if sequence is None or occurrence > 1 or sequence in shared:
            text = task_name(task, occurrence)
        elif sequence < _START:
            text = str(sequence)
        else:
            text = _shortest_digits(sequence, near[sequence]) or task_name(task)
        short_ids.append(text if place is None else f"{text}.{place[1]}")
    return short_ids


def _read_shared(db: sqlite3.Connection, sequences: Sequence[int]) -> set[int]:
    """Return the numbers and digits that several tasks have."""
    found = rows.select_in(
        db,
        "SELECT sequence FROM tasks INDEXED BY tasks_sequence"
        " WHERE sequence IS NOT NULL AND sequence",
        sequences,
        "GROUP BY sequence HAVING count(*) > 1",
    )
    return {sequence for (sequence,) in found}


def _read_nearest(
    db: sqlite3.Connection, sequences: Sequence[int]
) -> dict[int, list[int]]:
    """Return the digits before and after each of these, as stored."""
    near: dict[int, list[int]] = {}
    for some in rows.split_for_parameters(sequences):
        for mine, *found in db.execute(
            f"WITH given (mine) AS (VALUES {', '.join(['(?)'] * len(some))})"  # noqa: S608
            " SELECT mine, (SELECT max(sequence) FROM tasks INDEXED BY tasks_sequence"
            f" WHERE sequence IS NOT NULL AND sequence BETWEEN {_START} AND mine - 1),"
            " (SELECT min(sequence) FROM tasks INDEXED BY tasks_sequence"
            " WHERE sequence IS NOT NULL AND sequence > mine) FROM given",
            some,
        ):
            near[mine] = [each for each in found if each is not None]
    return near


def _shortest_digits(sequence: int, near: Iterable[int]) -> str | None:
    """Return the digits that tell a task from its nearest ones; None: all are needed.

    Digits without a letter may be the number of another task, now or later.
    """
    digits = _digits_of(sequence)
    shared = max((_shared_digits(digits, _digits_of(each)) for each in near), default=0)
    for length in range(max(DIGITS_MIN, shared + 1), _ID_DIGITS + 1):
        if _LETTER.search(digits[:length]):
            return digits[:length]
    return None


def _digits_of(sequence: int) -> str:
    return f"{sequence - _START:0{_ID_DIGITS}x}"


def _shared_digits(mine: str, other: str) -> int:
    """Return the length of the common prefix."""
    pairs = zip(mine, other, strict=True)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), _ID_DIGITS)


def _names(db: sqlite3.Connection, found: Iterable[rows.Row]) -> tuple[str, ...]:
    ids = [TaskId(task_id) for (task_id,) in found]
    places = task_name_collisions.read_occurrences(db, ids)
    return tuple(task_name(task_id, places.get(task_id, 1)) for task_id in ids)
