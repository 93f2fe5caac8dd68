"""Pages of task lists, and text searches in them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from msgspec import json

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.hlc import hlc_of
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import TaskState
from octaskly.ports.store import TaskListPage, TaskQuery, TaskSearch
from octaskly.store.tables import (
    arrays,
    list_counts,
    member_ranges,
    rows,
    task_name_collisions,
)

SEARCH_S_MAX: Final = 0.03  #: time limit of one search
SEARCH_ROWS: Final = 16  #: rows scanned at once at first; more while that is fast
SEARCH_ROWS_MAX: Final = 1024
SEARCH_PART_S: Final = 0.005  #: a part that takes longer is followed by a shorter one

_RUNNING = rows.NUMBER_OF[TaskState.RUNNING]  #: ended states have higher numbers
_NAME = "options ->> 0"  #: null for a task without options
_CALL = "coalesce(options ->> 19, '')"
_LABELLED = "EXISTS (SELECT 1 FROM json_each(options, '$[1]') WHERE value ->> 0 = ?"

Keys = tuple[int, int]
"""The first and the last key of a range."""

_TASK_KEYS: Final = 0, rows.MEMBER_KEYS_START - 1  #: of all but members of arrays


def read_task_page(
    db: sqlite3.Connection,
    query: TaskQuery,
    now_s: Callable[[], float] = float,
) -> TaskListPage:
    """Return one page, and the total number of matching tasks.

    Args:
        db: The database.
        query: Filters, order and position of the page.
        now_s: A monotonic clock. The default always returns 0, so a search has no time
            limit.
    """
    if query.search is not None:
        return _search(db, query, query.search, now_s)
    if query.is_arrays_only:
        return _arrays(db, query)
    members = None if query.array is None else arrays.read_members_of(db, query.array)
    if query.array is not None and members is None:
        return TaskListPage((), 0)
    keys = _TASK_KEYS if members is None else (members.first, members.last)
    place = list_counts.find_page_start(
        db, _cells(query), keys, query.offset, is_last_first=query.is_newest_first
    )
    if query.limit <= 0:
        return TaskListPage((), place.total)
    if query.after is None:
        found = _read_keys(db, query, map(_keys_of_block, place.blocks), place.skip)
    else:
        parts = _parts(db, query, _rest_of(db, query, keys))
        found = _read_keys(db, query, (part for part, _ in parts))
    return TaskListPage(_read_shown(db, query, found), place.total)


def _read_keys(
    db: sqlite3.Connection, query: TaskQuery, blocks: Iterable[Keys], skip: int = 0
) -> list[int]:
    """Return the keys of a page, from one block after another."""
    found: list[int] = []
    for keys in blocks:
        found += _read_keys_of_block(db, query, keys, query.limit - len(found), skip)
        if len(found) == query.limit:
            break
        skip = 0
    return found


def _keys_of_block(first: int) -> Keys:
    return first, list_counts.last_key_of_block(first)


def _read_keys_of_block(
    db: sqlite3.Connection, query: TaskQuery, keys: Keys, limit: int, skip: int
) -> list[int]:
    """Return the keys of a page that are in one block."""
    where, values = _filters(query, keys)
    select = f"SELECT key FROM {where} {_order(query)}"  # noqa: S608
    if not member_ranges.has_range_between(db, *keys):
        some = db.execute(f"{select} LIMIT ? OFFSET ?", (*values, limit, skip))
        return [key for (key,) in some]
    state = None if query.state is None else rows.NUMBER_OF[query.state]
    found = [key for (key,) in db.execute(select, values)]
    found += (
        each.row[0]
        for each in member_ranges.rows_between(db, *keys)
        if query.node in (None, each.node) and state in (None, each.state)
    )
    found.sort(reverse=query.is_newest_first)
    return found[skip : skip + limit]


def read_listed(db: sqlite3.Connection, keys: Iterable[int]) -> tuple[TaskRecord, ...]:
    """Return the tasks with these keys as a list shows them, in the order of keys."""
    keys = sorted(keys)
    select = f"SELECT {rows.LIST_COLUMNS} FROM tasks WHERE key"  # noqa: S608
    found: list[rows.Row] = [*rows.select_in(db, select, keys, "ORDER BY key")]
    if len(found) < len(keys) and keys[-1] >= rows.MEMBER_KEYS_START:
        stored = {row[0] for row in found}
        built = member_ranges.rows_by_key(
            db, (key for key in keys if key not in stored)
        )
        found = list(member_ranges.merged_by_key(found, built))
    return task_name_collisions.with_occurrences(db, arrays.listed_records(db, found))


def _arrays(db: sqlite3.Connection, query: TaskQuery) -> TaskListPage:
    (total,) = db.execute("SELECT count(*) FROM arrays").fetchone()
    found = db.execute(
        f"SELECT task AS key FROM arrays {_order(query)} LIMIT ? OFFSET ?",  # noqa: S608
        (query.limit, query.offset),
    )
    return TaskListPage(_read_shown(db, query, [key for (key,) in found]), total)


def _search(
    db: sqlite3.Connection,
    query: TaskQuery,
    search: TaskSearch,
    now_s: Callable[[], float],
) -> TaskListPage:
    """Return the tasks with this name, label or text, without an index.

    It scans one part of a block of keys after another until the time limit, so that a
    search in a million tasks, or in long ones, delays nobody. For the first page it
    scans past the last task shown, so as to count all matches.
    """
    end_s = now_s() + SEARCH_S_MAX
    condition, wanted = _condition(search)
    found: list[int] = []
    left, last, is_over = 0, -1, False
    size = SEARCH_ROWS
    for block, n in _parts(db, query, _rest_of(db, query, _TASK_KEYS)):
        keys = block
        while keys[0] <= keys[1] and not is_over:
            began_s = now_s()
            part, keys = _split_keys(db, query, keys, size)
            where, values = _filters(query, part)
            select = f"SELECT key FROM {where} AND {condition} {_order(query)}"  # noqa: S608
            found += (key for (key,) in db.execute(select, (*values, *wanted)))
            last = part[0] if query.is_newest_first else part[1]
            is_full = query.after is not None and len(found) > query.limit
            is_over = is_full or now_s() >= end_s
            is_slow = now_s() > began_s + SEARCH_PART_S
            size = max(1, size // 2) if is_slow else min(2 * size, SEARCH_ROWS_MAX)
        if keys == block:
            left += n
        elif keys[0] <= keys[1]:
            left += _count_rows(db, query, keys)
    total = len(found) if not left and query.after is None else None
    some = found[: query.limit]
    if len(found) > len(some):
        last = some[-1]
        if total is None:
            left = _count_rows_after(db, query, last)
    is_all = len(found) == len(some) and not left
    return TaskListPage(
        _read_shown(db, query, some),
        total,
        next_name=None if is_all else _name_at(db, query, last),
        unsearched=left,
    )


def _split_keys(
    db: sqlite3.Connection, query: TaskQuery, keys: Keys, size: int
) -> tuple[Keys, Keys]:
    """Return the keys of the first `size` rows in the order of the query, and the rest.

    The first part ends with a row, from which a search can continue.
    """
    where, values = _filters(query, keys)
    end = db.execute(
        f"SELECT key FROM {where} {_order(query)} LIMIT 1 OFFSET ?",  # noqa: S608
        (*values, size - 1),
    ).fetchone()
    first, last = keys
    if end is None:
        return keys, (last + 1, last)
    (key,) = end
    if query.is_newest_first:
        return (key, last), (first, key - 1)
    return (first, key), (key + 1, last)


def _count_rows(db: sqlite3.Connection, query: TaskQuery, keys: Keys) -> int:
    """Return the number of rows with these keys that match the filters."""
    where, values = _filters(query, keys)
    (count,) = db.execute(f"SELECT count(*) FROM {where}", values).fetchone()  # noqa: S608
    return int(count)


def _count_rows_after(db: sqlite3.Connection, query: TaskQuery, key: int) -> int:
    """Return the number of rows of a search after a key, in the order of the query."""
    # The first block may begin before the key.
    return sum(
        n if position else _count_rows(db, query, keys)
        for position, (keys, n) in enumerate(
            _parts(db, query, _keys_after(query, _TASK_KEYS, key))
        )
    )


def _key_of(db: sqlite3.Connection, task: TaskId) -> int:
    """Return the key of a task; 0 if it is unknown."""
    found = db.execute("SELECT key FROM tasks WHERE id = ?", (task,)).fetchone()
    if found is None:  # It may be a member without a row.
        found = member_ranges.keys_of_members(db, [task])
    return found[0] if found else 0


def _rest_of(db: sqlite3.Connection, query: TaskQuery, keys: Keys) -> Keys:
    """Return the part of a key range after the task that the query begins after."""
    if query.after is None:
        return keys
    return _keys_after(query, keys, _key_of(db, query.after))


def _parts(
    db: sqlite3.Connection, query: TaskQuery, keys: Keys
) -> Iterator[tuple[Keys, int]]:
    """Yield the key range and the row count of each block with rows, in order.

    Args:
        db: Connection to the log.
        query: The list; its filters and order count.
        keys: The first and the last key. The counts of their blocks include rows beyond
            them.
    """
    first, last = keys
    for start, n in list_counts.read_block_counts(
        db, _cells(query), keys, is_last_first=query.is_newest_first
    ):
        end = list_counts.last_key_of_block(start)
        yield (max(first, start), min(last, end)), n


def _name_at(db: sqlite3.Connection, query: TaskQuery, key: int) -> str | None:
    """Return the name of the last task scanned: the one at `key`, or the one before."""
    near = "key >= ?" if query.is_newest_first else "key <= ?"
    order = "ASC" if query.is_newest_first else "DESC"
    found = db.execute(
        f"SELECT key FROM tasks WHERE {near} ORDER BY key {order} LIMIT 1",  # noqa: S608
        (key,),
    )
    for record in read_listed(db, [key for (key,) in found]):
        return record.name
    return None


def _condition(search: TaskSearch) -> tuple[str, list[str | int]]:
    """Return the SQL condition of a search, and its parameters."""
    # The fast test comes first, so that SQLite parses the JSON of few rows only.
    parts: list[str] = []
    values: list[str | int] = []
    if search.ended_after_ms is not None:
        # The last change of an ended task is its end.
        parts.append(f"state > {_RUNNING} AND last_change_hlc >= ?")
        values.append(hlc_of(search.ended_after_ms))
    if search.submitter is not None:
        parts.append("submitter = ?")
        values.append(search.submitter)
    if search.name is not None:
        parts.append(f"instr(options, ?) AND {_NAME} = ?")
        values += [_as_stored(search.name), search.name]
    for name, value in search.labels:
        if value is None:
            parts.append(f"instr(options, ?) AND {_LABELLED})")
            values += [_as_stored(name) + ",", name]
        else:
            parts.append(f"instr(options, ?) AND {_LABELLED} AND value ->> 1 = ?)")
            values += [_as_stored((name, value)), name, value]
    if search.text is not None:
        # LIKE would compare characters one by one, which takes a hundred times as long
        # in a command of many equal ones.
        parts.append(
            "(instr(lower(command), lower(?)) OR (instr(lower(options), lower(?))"
            f" AND (instr(lower({_NAME}), lower(?)) OR instr(lower({_CALL}), lower(?)))"
            "))"
        )
        written = _as_stored(search.text)[1:-1]
        values += (search.text, written, search.text, search.text)
    return " AND ".join(parts), values


def _as_stored(value: object) -> str:
    """Return a value as it is written in the column `options`."""
    return json.encode(value).decode()


def _cells(query: TaskQuery) -> tuple[str, int]:
    """Return the node and state in `block_counts` that match the filters."""
    state = None if query.state is None else rows.NUMBER_OF[query.state]
    return (
        list_counts.ANY_NODE if query.node is None else query.node,
        list_counts.ANY_STATE if state is None else state,
    )


def _keys_after(query: TaskQuery, keys: Keys, key: int) -> Keys:
    """Return the part of a key range after `key`, in the order of the query."""
    return (keys[0], key - 1) if query.is_newest_first else (key + 1, keys[1])


def _order(query: TaskQuery) -> str:
    return "ORDER BY key DESC" if query.is_newest_first else "ORDER BY key"


def _filters(query: TaskQuery, keys: Keys) -> tuple[str, list[int | str]]:
    """Return the table with its index and condition, and the parameters.

    The keys are those of one block.
    """
    between = "key BETWEEN ? AND ?"
    if query.node is not None:
        where = f"key >> {list_counts.BLOCK_BITS} = ? AND node = ? AND {between}"
        values: list[int | str] = [list_counts.block_of(keys[0]), query.node, *keys]
        if query.state is not None:
            where += " AND state = ?"
            values.append(rows.NUMBER_OF[query.state])
        return f"tasks INDEXED BY tasks_node WHERE {where}", values
    if query.state is not None:
        return (
            f"tasks INDEXED BY tasks_state WHERE state = ? AND {between}",
            [rows.NUMBER_OF[query.state], *keys],
        )
    return f"tasks WHERE {between}", [*keys]


def _read_shown(
    db: sqlite3.Connection, query: TaskQuery, keys: Sequence[int]
) -> tuple[TaskRecord, ...]:
    records = read_listed(db, keys)
    return records[::-1] if query.is_newest_first else records
