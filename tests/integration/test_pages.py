"""A page of a list is where its offset says, and found in few steps, however deep."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from octaskly.core.arrays import member_id
from octaskly.core.effects import Append
from octaskly.core.facts import Assigned, CancelAsked, Fact, Finished
from octaskly.core.model import NodeId, TaskId, TaskState
from octaskly.core.options import ArraySpec, TaskOptions
from octaskly.ports import TaskQuery
from octaskly.store import blocks, purge, reader, rows
from octaskly.store.database import open_writer
from octaskly.store.tables import Tables
from tests.contract import log_kit as kit

TASKS = 12_000
ARRAY = TaskId("array-1")
MEMBERS = 9000
NODES = [NodeId(f"{n:016x}") for n in range(1, 4)]


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A log with holes: of tasks that are gone, and of members that did not begin."""
    db = open_writer(Path(tmp_path_factory.mktemp("pages")) / "log.db")
    tables = Tables(db, kit.PicklePacker(), kit.HandClock())
    dice = random.Random(4)
    array = TaskOptions(array=ArraySpec(count=MEMBERS))
    facts: list[Fact] = [kit.submitted(9999, id=ARRAY, options=array)]
    for n in range(1, TASKS):
        facts.append(kit.submitted(n))
        facts += ended(kit.task_id(n), dice)
    for n in dice.sample(range(MEMBERS), MEMBERS // 2):
        facts += ended(member_id(ARRAY, n), dice)
    append(db, tables, facts)
    gone = dice.sample(range(2, TASKS), TASKS // 3)
    db.execute("BEGIN")
    purge.drop_tasks(db, [*gone, *range(1000, 2100)])
    db.execute("COMMIT")
    yield db
    db.close()


def append(db: sqlite3.Connection, tables: Tables, facts: list[Fact]) -> None:
    entries = kit.entries(facts)
    for start in range(0, len(entries), 500):
        db.execute("BEGIN")
        tables.append([Append(1, tuple(entries[start : start + 500]), kit.EPOCHS)])
        db.execute("COMMIT")


def ended(task: TaskId, dice: random.Random) -> list[Fact]:
    """Return what was said of a task after it was submitted."""
    node = dice.choice(NODES)
    done = Finished(task, kit.attempt_id(), node, kit.finished(1).outcome)
    assigned = Assigned(task, kit.attempt_id(), node)
    choices: list[list[Fact]] = [[], [assigned], [assigned, done]]
    choices.append([CancelAsked(task, "ada")])
    return dice.choices(choices, (1, 1, 6, 1))[0]


FILTERS: list[Mapping[str, Any]] = [
    {"state": state, "node": node, "array": array}
    for state in (None, TaskState.QUEUED, TaskState.COMPLETED, TaskState.CANCELLED)
    for node in (None, NODES[0])
    for array in (None, ARRAY)
]


def matching(db: sqlite3.Connection, asked: Mapping[str, Any]) -> list[str]:
    """Return the ids of all that match, by reading every row."""
    found = db.execute("SELECT id, state, node FROM tasks ORDER BY key").fetchall()
    return [
        id_
        for id_, state, node in found
        if id_.startswith(f"{ARRAY}.") == (asked["array"] is not None)
        and asked["state"] in (None, rows.STATES[state])
        and asked["node"] in (None, node)
    ]


@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_a_page_is_where_its_offset_says(
    db: sqlite3.Connection, asked: Mapping[str, Any]
) -> None:
    """Totals are exact; a list read in sequence shows each task once."""
    wanted = matching(db, asked)
    shown: list[str] = []

    while True:
        page = reader.page(db, TaskQuery(limit=97, offset=len(shown), **asked))
        assert page.total == len(wanted)
        if not page.records:
            break
        shown += [record.id for record in page.records]

    assert shown == wanted
    beyond = reader.page(db, TaskQuery(limit=5, offset=len(wanted) - 2, **asked))
    assert [record.id for record in beyond.records] == wanted[-2:]


@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_a_page_takes_few_steps_however_deep(
    db: sqlite3.Connection, asked: Mapping[str, Any]
) -> None:
    """Not more at the end than at the beginning, but for one block of rows."""
    total = reader.page(db, TaskQuery(**asked)).total

    first = steps(db, TaskQuery(limit=10, **asked))
    deep = [
        steps(db, TaskQuery(limit=10, offset=total * n // 9, **asked)) for n in range(9)
    ]

    assert max(deep) <= first + 3 * (1 << blocks.BITS)


def steps(db: sqlite3.Connection, query: TaskQuery) -> int:
    """Return how many steps of SQLite a page takes, roughly."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 50
        return 0

    db.set_progress_handler(tick, 50)
    reader.page(db, query)
    db.set_progress_handler(None, 0)
    return count


def test_blocks_count_what_is_there_and_go_with_it(db: sqlite3.Connection) -> None:
    """Of old tasks nothing is left to be read for ever."""
    counted = (
        "SELECT node, state, block, n FROM blocks WHERE state >= 0 ORDER BY 1, 2, 3"
    )
    rows_of = (
        "SELECT node, state, key >> ?, count(*) FROM tasks WHERE node NOT NULL"
        " GROUP BY 1, 2, 3 UNION ALL SELECT '', state, key >> ?, count(*) FROM tasks"
        " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )

    found = db.execute(rows_of, [blocks.BITS] * 2).fetchall()
    assert db.execute(counted).fetchall() == found
