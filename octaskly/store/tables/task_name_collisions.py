"""Names of tasks for which clients chose the same name during a network split.

The ids of these tasks differ. The task that was accepted first keeps the name, and the
others are shown as `<name>~2`, `<name>~3`. All nodes that hold the same tasks derive
the same names, without a fact in the log.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import member_id, split_member_name
from octaskly.core.model.ids import TaskId, task_name
from octaskly.core.model.task_options import ArraySpec
from octaskly.store.tables import rows

SIMILAR_MAX: Final = 10_000  #: names examined for one array
_REF: Final = re.compile(r"([^~]+)(?:~([1-9][0-9]*))?")


def ids_of(db: sqlite3.Connection, names: Iterable[str]) -> dict[str, list[TaskId]]:
    """Return the tasks with each name, in the order of their acceptance."""
    found: list[tuple[bool, int, TaskId]] = []
    for some in rows.split_for_parameters(names):
        listed = ",".join(["(?)"] * len(some))
        # `~` is character 126, so this range holds all ids `<name>~...`.
        found += db.execute(
            f"WITH n (name) AS (VALUES {listed})"  # noqa: S608
            " SELECT 0, ord, id FROM n CROSS JOIN tasks ON id = name UNION ALL"
            " SELECT 1, ord, id FROM n CROSS JOIN tasks"
            " ON id > name || '~' AND id < name || char(127)",
            some,
        ).fetchall()
        found += _members_of_arrays(db, some)
    ids: dict[str, list[TaskId]] = {}
    for _, _, task_id in sorted(set(found)):
        ids.setdefault(task_name(task_id), []).append(task_id)
    return ids


def _members_of_arrays(
    db: sqlite3.Connection, names: Iterable[str]
) -> list[tuple[bool, int, TaskId]]:
    """Return the members of arrays with these names, as `ids_of` does.

    They count from the acceptance of their arrays, so that no name changes when a
    member begins.
    """
    places = [place for name in names if (place := split_member_name(name))]
    if not places:
        return []
    numbers: dict[str, list[int]] = {}
    for array, number in places:
        numbers.setdefault(array, []).append(number)
    listed = ",".join(["(?)"] * len(numbers))
    found = db.execute(
        f"WITH n (name) AS (VALUES {listed}),"  # noqa: S608
        " same (is_hashed, key, ord, id, options) AS ("
        " SELECT 0, key, ord, id, options FROM n CROSS JOIN tasks ON id = name"
        " UNION ALL SELECT 1, key, ord, id, options FROM n CROSS JOIN tasks"
        " ON id > name || '~' AND id < name || char(127))"
        " SELECT is_hashed, ord, id, options FROM same JOIN arrays ON task = key",
        list(numbers),
    ).fetchall()
    return [
        (is_hashed, ord_, member_id(TaskId(array), number))
        for is_hashed, ord_, array, options in found
        for number in numbers[task_name(TaskId(array))]
        if rows.array_spec(options).position(number) is not None
    ]


def id_of(db: sqlite3.Connection, ref: str) -> TaskId | None:
    """Return the task that clients refer to as `ref`, or None."""
    match = _REF.fullmatch(ref)
    if match is None:
        return None
    ids = ids_of(db, [match[1]]).get(match[1], [])
    occurrence = int(match[2] or 1)
    is_proper = match[2] != "1"
    return ids[occurrence - 1] if is_proper and occurrence <= len(ids) else None


def find_name_collision(
    db: sqlite3.Connection, arrays: Mapping[TaskId, ArraySpec]
) -> str | None:
    """Return the name of a task that a member of `arrays` would also have.

    Of more than `SIMILAR_MAX` names that begin like those of members, the last one
    counts as such: a client could otherwise occupy the reader of all submissions.
    """
    for name, array in arrays.items():
        # `:` is the character after `9`.
        found = db.execute(
            "SELECT id FROM tasks WHERE id > ? || '.' AND id < ? || '.:'", (name, name)
        )
        for count, (task_id,) in enumerate(found, 1):
            task = task_name(TaskId(task_id))
            if count > SIMILAR_MAX:
                return task
            place = split_member_name(task)
            if place and place[0] == name and array.position(place[1]) is not None:
                return task
    return None


def read_occurrences(
    db: sqlite3.Connection, ids: Iterable[TaskId]
) -> dict[TaskId, int]:
    """Return the occurrence, from 1, of each task with a chosen name, and no others."""
    names = dict.fromkeys(task_name(task_id) for task_id in ids if "~" in task_id)
    if not names:
        return {}
    found = ids_of(db, names).values()
    return {task_id: n for same in found for n, task_id in enumerate(same, 1)}


def with_occurrences(
    db: sqlite3.Connection, records: Sequence[TaskRecord]
) -> tuple[TaskRecord, ...]:
    """Return the records with `occurrence` set."""
    occurrences = read_occurrences(db, (record.id for record in records))
    return tuple(
        record if number == 1 else replace(record, occurrence=number)
        for record in records
        for number in [occurrences.get(record.id, 1)]
    )
