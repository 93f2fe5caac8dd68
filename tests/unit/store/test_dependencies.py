"""Dependencies in tables, and their cost with many parents and children."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from octaskly.core.effects import LoadUnblocked
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import After
from octaskly.core.model.tasks import TaskState
from octaskly.store.reading.unblocked_tasks import load_unblocked_tasks
from octaskly.store.tables.schema import MIGRATIONS
from octaskly.store.writing.dependency_index import DependencyChanges, DependencyIndex

FEW = 50
MANY = 800
STEPS_PER_PARENT_MAX = 1000  #: of SQLite's machine, for a parent of one task


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for step in MIGRATIONS:
            connection.executescript(step)
        yield connection


def ripe(db: sqlite3.Connection) -> list[int]:
    return [
        child
        for (child,) in db.execute("SELECT child FROM unblocked_tasks ORDER BY child")
    ]


@pytest.mark.parametrize("parents", [FEW, MANY])
def test_the_end_of_a_parent_has_a_constant_cost(
    db: sqlite3.Connection, parents: int
) -> None:
    """A scan of all parents for each end takes minutes for a thousand tasks."""
    names = tuple(f"p{number}" for number in range(parents))
    edges = DependencyIndex(db)
    edges.apply_changes(DependencyChanges(added=[(1, After(tasks=names))]))
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    db.set_progress_handler(count, 1)
    for name in names:
        assert ripe(db) == []
        edges.apply_changes(
            DependencyChanges(ended_parents=[(TaskId(name), TaskState.COMPLETED)])
        )
    db.set_progress_handler(None, 1)

    assert ripe(db) == [1]
    assert steps < parents * STEPS_PER_PARENT_MAX


def test_one_failed_parent_is_enough(db: sqlite3.Connection) -> None:
    """Its child need not wait for other parents; their own children still do."""
    edges = DependencyIndex(db)
    edges.apply_changes(
        DependencyChanges(
            added=[(1, After(tasks=("a", "b"))), (2, After(tasks=("b",)))]
        )
    )

    edges.apply_changes(
        DependencyChanges(ended_parents=[(TaskId("a"), TaskState.FAILED)])
    )

    assert ripe(db) == [1]


def test_a_mended_dependency_does_not_release_a_task_that_waits_for_another(
    db: sqlite3.Connection,
) -> None:
    """A parent that had failed succeeds late, while the other one still runs."""
    edges = DependencyIndex(db)
    edges.apply_changes(DependencyChanges(added=[(1, After(tasks=("p", "q")))]))

    seen = []
    for parent, state in (
        ("p", TaskState.FAILED),
        ("p", TaskState.COMPLETED),
        ("q", TaskState.COMPLETED),
    ):
        ended = [(TaskId(parent), state)]
        edges.apply_changes(DependencyChanges(ended_parents=ended))
        seen.append(ripe(db))

    assert seen == [[1], [], [1]]


def test_one_end_changes_many_children_in_few_statements(
    db: sqlite3.Connection,
) -> None:
    """While the event loop is busy, the writer waits for the GIL at each statement."""
    edges = DependencyIndex(db)
    added = [(child, After(tasks=("p",))) for child in range(1, MANY + 1)]
    edges.apply_changes(DependencyChanges(added=added))
    ended = [(TaskId("p"), TaskState.COMPLETED)]
    statements: list[str] = []

    db.set_trace_callback(statements.append)
    edges.apply_changes(DependencyChanges(ended_parents=ended))
    db.set_trace_callback(None)

    assert ripe(db) == list(range(1, MANY + 1))
    assert len(statements) < FEW


def test_an_answer_with_unblocked_tasks_has_bounded_bytes(
    db: sqlite3.Connection,
) -> None:
    """A client may queue many large tasks behind one; they come one part at a time."""
    db.executemany(
        "INSERT INTO tasks (key, id, state, ord, stdin, options, command, timeout_s,"
        " submitter, created_ms) VALUES (?1, 't' || ?1, 0, ?1, ?2, '[]', '', 0, '', 0)",
        [(key, bytes(1 << 20)) for key in range(20)],
    )
    db.execute("INSERT INTO unblocked_tasks SELECT key FROM tasks")

    first = load_unblocked_tasks(db, LoadUnblocked(1, MANY), TaskAges(0)).tasks

    assert [task.record.id for task in first] == [f"t{key}" for key in range(16)]
