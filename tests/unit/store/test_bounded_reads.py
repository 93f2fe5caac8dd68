"""Reads for the dispatcher: bounded in work, whatever clients submit."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import pytest

from octaskly.core.effects import PlanFloor
from octaskly.core.log.task_ages import TaskAges
from octaskly.store.reading.compaction_plan import plan_compaction
from octaskly.store.reading.queries import read_stats
from octaskly.store.reading.short_ids import names_with_sequence
from tests.contract import log_kit as kit

STEPS_MAX = 200_000  #: of SQLite's machine
TASK_INSERT = (
    "INSERT INTO tasks (key, id, state, ord, first_submitted_hlc, shape, command,"
    " timeout_s, submitter, created_ms, options)"
    " VALUES (?1, ?2, 0, ?1, ?1, ?1, 'true', 0, 'ada', 0, '[]')"
)


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(kit.database()) as connection:
        yield connection


def add_tasks(db: sqlite3.Connection, ids: Iterable[str]) -> None:
    """Add queued tasks, each with requirements of its own."""
    db.executemany(TASK_INSERT, enumerate(ids, 1))


def count_steps(db: sqlite3.Connection, read: Callable[[], object]) -> int:
    """Return the number of SQLite's instructions that a read takes."""
    steps: list[None] = []
    db.set_progress_handler(lambda: steps.append(None), 100)
    read()
    db.set_progress_handler(None, 0)
    return 100 * len(steps)


def test_the_oldest_task_of_many_lanes_is_not_looked_for_in_all(
    db: sqlite3.Connection,
) -> None:
    """The dispatcher counts its tasks every few seconds."""
    add_tasks(db, (f"t{n}" for n in range(20_000)))

    assert count_steps(db, lambda: read_stats(db)) < STEPS_MAX


def test_many_chosen_names_do_not_slow_down_the_look_for_a_number(
    db: sqlite3.Connection,
) -> None:
    """Any client may ask for `task-1`, and choose ids that begin like it."""
    add_tasks(db, (f"task-000000000001-y{n}~{n:015x}" for n in range(20_000)))

    assert count_steps(db, lambda: names_with_sequence(db, 1)) < STEPS_MAX


def test_a_plan_does_not_read_the_tasks_that_wait(db: sqlite3.Connection) -> None:
    """Their options count only for an old task that has left files."""
    tasks = [f"t{n}" for n in range(20_000)]
    add_tasks(db, tasks)
    ask = PlanFloor(0, 2_000_000, kit.STREAM, 0, kit.WALL_MS, is_log_complete=True)
    ages, bytes_max = TaskAges(kit.WALL_MS), 8 << 30

    steps = count_steps(
        db, lambda: plan_compaction(db, kit.PicklePacker(), ask, bytes_max, ages)
    )

    assert steps < len(tasks)
