"""Pages of a list match their offset, and need few steps at any depth."""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from octaskly.core.effects import Append
from octaskly.core.log.facts import Assigned, Fact, Finished, TaskCancelled
from octaskly.core.model.arrays import member_id
from octaskly.core.model.hlc import hlc_of
from octaskly.core.model.ids import NodeId, TaskId, task_name
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import AttemptState, TaskState
from octaskly.ports.store import TaskQuery, TaskSearch
from octaskly.store.reading import pages
from octaskly.store.tables import list_counts, rows
from octaskly.store.tables.database import open_writer
from octaskly.store.writing import purge
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit

TASKS = 12_000
ARRAY = TaskId("array-1")
MEMBERS = 9000
NODES = [NodeId(f"{n:016x}") for n in range(1, 4)]


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A log with holes: forgotten tasks, and members that did not start."""
    db = open_writer(Path(tmp_path_factory.mktemp("pages")) / "log.db")
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    draws = random.Random(4)
    array = TaskOptions(array=ArraySpec(count=MEMBERS))
    facts: list[Fact] = [kit.submitted(9999, id=ARRAY, options=array)]
    for n in range(1, TASKS):
        facts.append(kit.submitted(n))
        facts += ended(kit.task_id(n), draws)
    for n in draws.sample(range(MEMBERS), MEMBERS // 2):
        facts += ended(member_id(ARRAY, n), draws)
    append(db, tables, facts)
    gone = draws.sample(range(2, TASKS), TASKS // 3)
    db.execute("BEGIN")
    purge.delete_tasks(db, [*gone, *range(1000, 2100)])
    db.execute("COMMIT")
    yield db
    db.close()


def append(db: sqlite3.Connection, tables: TableWriter, facts: list[Fact]) -> None:
    entries = kit.entries(facts)
    for start in range(0, len(entries), 500):
        db.execute("BEGIN")
        tables.append_entries(
            [Append(1, tuple(entries[start : start + 500]), kit.EPOCHS)]
        )
        db.execute("COMMIT")


def ended(task: TaskId, draws: random.Random) -> list[Fact]:
    """Return the facts of a task after its submission."""
    node = draws.choice(NODES)
    done = Finished(task, kit.attempt_id(), node, kit.finished(1).outcome, 1)
    assigned = Assigned(task, kit.attempt_id(), node)
    choices: list[list[Fact]] = [[], [assigned], [assigned, done]]
    choices.append([TaskCancelled(task, "ada")])
    return draws.choices(choices, (1, 1, 6, 1))[0]


FILTERS: list[Mapping[str, Any]] = [
    {"state": state, "node": node, "array": array}
    for state in (None, TaskState.QUEUED, TaskState.COMPLETED, TaskState.CANCELLED)
    for node in (None, NODES[0])
    for array in (None, ARRAY)
]


def matching(db: sqlite3.Connection, asked: Mapping[str, Any]) -> list[str]:
    """Return the ids of all matches, by reading every row."""
    found = db.execute("SELECT id, state, node FROM tasks ORDER BY key").fetchall()
    return [
        id_
        for id_, state, node in found
        if id_.startswith(f"{ARRAY}.") == (asked["array"] is not None)
        and asked["state"] in (None, rows.STATES[state])
        and asked["node"] in (None, node)
    ]


@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_a_page_matches_its_offset(
    db: sqlite3.Connection, asked: Mapping[str, Any]
) -> None:
    """Totals are exact; a list read in sequence shows each task once."""
    wanted = matching(db, asked)
    shown: list[str] = []

    while True:
        page = pages.read_task_page(db, TaskQuery(limit=97, offset=len(shown), **asked))
        assert page.total == len(wanted)
        if not page.records:
            break
        shown += [record.id for record in page.records]

    assert shown == wanted
    beyond = pages.read_task_page(
        db, TaskQuery(limit=5, offset=len(wanted) - 2, **asked)
    )
    assert [record.id for record in beyond.records] == wanted[-2:]


@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_newest_first_is_the_same_list_reversed(
    db: sqlite3.Connection, asked: Mapping[str, Any]
) -> None:
    """Offsets count from the newest, too."""
    wanted = matching(db, asked)[::-1]
    shown: list[str] = []

    while len(shown) < len(wanted):
        query = TaskQuery(limit=97, offset=len(shown), is_newest_first=True, **asked)
        shown += [record.id for record in pages.read_task_page(db, query).records]

    assert shown == wanted


@pytest.mark.parametrize("is_newest_first", [False, True], ids=["oldest", "newest"])
@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_a_page_after_the_last_one_shows_each_task_once(
    db: sqlite3.Connection, asked: Mapping[str, Any], *, is_newest_first: bool
) -> None:
    """The total stays that of the whole list."""
    wanted = matching(db, asked)
    query = TaskQuery(limit=97, is_newest_first=is_newest_first, **asked)
    shown: list[TaskId] = []

    while (page := pages.read_task_page(db, query)).records:
        shown += [record.id for record in page.records]
        query = replace(query, after=shown[-1])
        assert page.total == len(wanted)

    assert shown == (wanted[::-1] if is_newest_first else wanted)


@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_a_page_takes_few_steps_at_any_depth(
    db: sqlite3.Connection, asked: Mapping[str, Any]
) -> None:
    """Not more at the end than at the start, except for one block of rows."""
    total = pages.read_task_page(db, TaskQuery(**asked)).total or 0

    first = steps(db, TaskQuery(limit=10, **asked))
    deep = [
        steps(db, TaskQuery(limit=10, offset=total * n // 9, **asked)) for n in range(9)
    ]

    assert max(deep) <= first + 3 * (1 << list_counts.BLOCK_BITS)


def test_arrays_are_listed_with_their_member_counts(
    db: sqlite3.Connection,
) -> None:
    """However many other tasks there are."""
    page = pages.read_task_page(
        db, TaskQuery(is_arrays_only=True, is_newest_first=True)
    )

    (array,) = page.records
    assert array.progress is not None
    assert (array.id, page.total) == (ARRAY, 1)
    assert array.progress.total == MEMBERS


NAMED: list[tuple[TaskSearch, Callable[[int], bool]]] = [
    (TaskSearch(name='run "7"'), lambda n: n % 7 == 0),
    (TaskSearch(labels=(("team", "red"),)), lambda n: n % 7 == 0 and n % 2 == 0),
    (TaskSearch(labels=(("team", None),)), lambda n: n % 7 == 0),
    (TaskSearch(labels=(("team", "red"), ("n", "0"))), lambda n: n % 70 == 0),
    (TaskSearch(labels=(("home", "/"),)), lambda _: False),  # That is a variable.
    (TaskSearch(text="ECHO 11"), lambda n: str(n).startswith("11")),
    (TaskSearch(text="%"), lambda _: False),
    (TaskSearch(text="SEED=7"), lambda n: n % 7 == 0),
    (TaskSearch(text="RUN", name='run "7"'), lambda n: n % 7 == 0),
    (TaskSearch(submitter="ana"), lambda n: n % 3 == 0),
    (TaskSearch(submitter="ana", name='run "7"'), lambda n: n % 21 == 0),
]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A log of 5000 tasks; each seventh has a name and labels."""
    db = open_writer(Path(tmp_path_factory.mktemp("names")) / "log.db")
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    colours = ("red", "blue")
    append(
        db,
        tables,
        [
            kit.submitted(
                n,
                command=f"echo {n}",
                options=options_of(n, colours[n % 2]),
                submitter="bob" if n % 3 else "ana",
            )
            for n in range(5000)
        ],
    )
    yield db
    db.close()


def test_a_search_finds_what_ended_after_a_time(tmp_path: Path) -> None:
    """In any way, but nothing that still waits or runs."""
    db = open_writer(tmp_path / "log.db")
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    before, after = hlc_of(kit.WALL_MS - 1), hlc_of(kit.WALL_MS)
    failed = AttemptState.FAILED
    facts: list[tuple[int, Fact]] = [
        *((before, kit.submitted(n)) for n in range(6)),
        (before, kit.finished(0, state=failed)),
        (after, kit.finished(1, state=failed)),
        (after, kit.finished(2)),
        (after, TaskCancelled(kit.task_id(3), "ada")),
        (after, Assigned(kit.task_id(4), kit.attempt_id(), NODES[0])),
    ]
    entries = tuple(
        structs.replace(entry, hlc=hlc + entry.seq)
        for entry, (hlc, _) in zip(
            kit.entries(fact for _, fact in facts), facts, strict=True
        )
    )
    db.execute("BEGIN")
    tables.append_entries([Append(1, entries, kit.EPOCHS)])
    db.execute("COMMIT")
    search = TaskSearch(ended_after_ms=kit.WALL_MS)

    ended = pages.read_task_page(db, TaskQuery(search=search))
    failures = pages.read_task_page(
        db, TaskQuery(search=search, state=TaskState.FAILED, is_newest_first=True)
    )
    db.close()

    assert [record.id for record in ended.records] == [*map(kit.task_id, (1, 2, 3))]
    assert [record.id for record in failures.records] == [kit.task_id(1)]


def options_of(n: int, team: str) -> TaskOptions | None:
    labels = (("n", str(n % 10)), ("team", team))
    env = (("home", "/"),)
    return (
        None
        if n % 7
        else TaskOptions(
            name='run "7"', labels=labels, env=env, call="simulate(3, seed=7)"
        )
    )


@pytest.mark.parametrize("is_newest_first", [False, True], ids=["oldest", "newest"])
@pytest.mark.parametrize(
    ("search", "is_like"), NAMED, ids=[repr(search) for search, _ in NAMED]
)
def test_a_search_finds_each_task_once_over_all_pages(
    named: sqlite3.Connection,
    search: TaskSearch,
    is_like: Callable[[int], bool],
    is_newest_first: bool,
) -> None:
    """Each answer has a cursor, and nothing repeats or is missing."""
    wanted = [kit.task_id(n) for n in range(5000) if is_like(n)]
    shown: list[TaskId] = []
    parts = 0
    hurry = itertools.count(step=pages.SEARCH_S_MAX)
    query = TaskQuery(limit=30, search=search, is_newest_first=is_newest_first)

    while True:
        page = pages.read_task_page(named, query, lambda: next(hurry))
        shown += [record.id for record in page.records]
        parts += 1
        if page.next_name is None:
            break
        query = replace(query, after=TaskId(page.next_name))

    assert shown == (wanted[::-1] if is_newest_first else wanted)
    assert parts >= 5000 >> list_counts.BLOCK_BITS
    assert page.unsearched == 0


def test_a_search_has_a_total_only_after_the_last_page(
    named: sqlite3.Connection,
) -> None:
    """An unknown total is not guessed."""
    search = TaskSearch(labels=(("team", None),))
    query = TaskQuery(limit=10, search=search)
    hurry = itertools.count(step=pages.SEARCH_S_MAX)

    whole = pages.read_task_page(named, query)
    part = pages.read_task_page(named, query, lambda: next(hurry))
    rest = replace(query, after=whole.records[-1].id)
    second = pages.read_task_page(named, rest)

    assert (whole.total, len(whole.records), whole.unsearched) == (715, 10, 0)
    assert whole.next_name == whole.records[-1].name
    assert (part.total, part.unsearched) == (None, 5000 - pages.SEARCH_ROWS)
    assert second.total is None


@pytest.mark.parametrize("is_newest_first", [False, True], ids=["oldest", "newest"])
def test_a_search_counts_all_tasks_after_its_page_as_unsearched(
    named: sqlite3.Connection, *, is_newest_first: bool
) -> None:
    """Also those that it has scanned, and will scan again for the next page."""
    wanted = range(0, 5000, 7)[:: -1 if is_newest_first else 1]
    search = TaskSearch(name='run "7"')
    hurry = itertools.count(step=pages.SEARCH_S_MAX)
    query = TaskQuery(limit=2, search=search, is_newest_first=is_newest_first)

    first = pages.read_task_page(named, query, lambda: next(hurry))
    rest = replace(query, after=kit.task_id(wanted[1]))
    second = pages.read_task_page(named, rest)

    assert [first.next_name, second.next_name] == [
        task_name(kit.task_id(wanted[n])) for n in (1, 3)
    ]
    assert [first.unsearched, second.unsearched] == [
        wanted[n] if is_newest_first else 4999 - wanted[n] for n in (1, 3)
    ]


def test_a_search_filters_by_state_and_node_as_well(db: sqlite3.Connection) -> None:
    """It examines only rows that pass the other filters."""
    some: dict[str, Any] = {"state": TaskState.COMPLETED, "node": NODES[0]}
    query = TaskQuery(limit=1000, search=TaskSearch(text="echo"), **some)

    page = pages.read_task_page(db, query)

    assert page.total == len(matching(db, {**some, "array": None}))


def steps(db: sqlite3.Connection, query: TaskQuery) -> int:
    """Return the approximate number of SQLite steps for a page."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 50
        return 0

    db.set_progress_handler(tick, 50)
    pages.read_task_page(db, query)
    db.set_progress_handler(None, 0)
    return count


def test_blocks_are_deleted_with_their_rows(db: sqlite3.Connection) -> None:
    """Old tasks leave nothing to be read for ever."""
    of_nodes = "".join(
        f"SELECT node, {number}, block, {state} FROM node_block_counts"  # noqa: S608
        f" WHERE {state} > 0 UNION ALL "
        for number, state in enumerate(rows.STATES)
        if state is not TaskState.QUEUED
    )
    counted = (
        f"{of_nodes}SELECT '', state, block, n FROM block_counts WHERE state >= 0"  # noqa: S608
        " ORDER BY 1, 2, 3"
    )
    rows_of = (
        "SELECT node, state, key >> ?, count(*) FROM tasks WHERE node NOT NULL"
        " GROUP BY 1, 2, 3 UNION ALL SELECT '', state, key >> ?, count(*) FROM tasks"
        " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )

    found = db.execute(rows_of, [list_counts.BLOCK_BITS] * 2).fetchall()
    assert db.execute(counted).fetchall() == found
