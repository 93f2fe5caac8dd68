"""Rows that the dispatcher has read: the writer uses them only while they are true."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from octaskly.core.effects import Append, LoadQueued
from octaskly.core.log.facts import Fact
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import AttemptState
from octaskly.store.reading.queue import load_queued_tasks
from octaskly.store.writing.queue_rows import ROW_BYTES_MAX
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit

TASKS = 3
ASK = LoadQueued(1, -1, 9, kit.LANE)


class Tables:
    """The writer's tables, with what the dispatcher does between commits."""

    def __init__(self) -> None:
        self.db: sqlite3.Connection = kit.database()
        self.writer = TableWriter(self.db, kit.PicklePacker(), kit.HandClock())
        self._written = 0
        self._reads: list[tuple[ExitStack, Any, Any]] = []

    def write(self, *facts: Fact, fails: bool = False) -> None:
        """Write facts in a commit, which may fail at first."""
        written = self._written
        for ends in ["ROLLBACK", "COMMIT"] if fails else ["COMMIT"]:
            self._written = written
            self.db.execute("BEGIN")
            self.append(*facts)
            self.db.execute(ends)
            if ends == "ROLLBACK":
                self.writer.reload()
        self.writer.queue_rows.note_commit()

    def append(self, *facts: Fact) -> None:
        """Write facts in the current transaction."""
        entries = kit.entries(facts, after=self._written)
        self.writer.append_entries([Append(1, tuple(entries), kit.EPOCHS)])
        self._written += len(facts)

    def begin_read(self) -> None:
        stack = ExitStack()
        keep = stack.enter_context(self.writer.queue_rows.reading())
        self._reads.append((stack, keep, load_queued_tasks(self.db, ASK)[1]))

    def end_read(self) -> None:
        if self._reads:
            stack, keep, stored = self._reads.pop(0)
            with stack:
                keep(stored)

    def forget(self) -> None:
        """Drop what the writer remembers of its own writes."""
        self.writer._cache.clear()

    def rows(self) -> list[Any]:
        return self.db.execute("SELECT * FROM tasks ORDER BY key").fetchall()


def _facts(number: int, attempt: int) -> Sequence[Fact]:
    return (
        kit.assigned(number, attempt),
        kit.finished(number, attempt, state=AttemptState.RELEASED),
        kit.finished(number, attempt),
        kit.cancelled(number),
    )


WRITES = st.builds(
    lambda number, attempt, kind, fails: (_facts(number, attempt)[kind], fails),
    *(st.integers(1, TASKS), st.integers(1, 2), st.integers(0, 3), st.booleans()),
)
STEPS = st.lists(
    WRITES | st.sampled_from(["begin_read", "end_read", "forget"]), max_size=12
)


ASSIGNED, FINISHED = (kit.assigned(1, 1), False), (kit.finished(1, 2), False)
READ_THEN_WRITTEN = ["begin_read", "end_read", ASSIGNED, "forget", FINISHED]
WRITTEN_MEANWHILE = ["begin_read", ASSIGNED, "end_read", "forget", FINISHED]


@settings(max_examples=30)  # Each has two databases.
@example(steps=READ_THEN_WRITTEN)
@example(steps=WRITTEN_MEANWHILE)
@given(steps=STEPS)
def test_rows_are_written_as_if_each_had_been_read_again(
    steps: list[str | tuple[Fact, bool]],
) -> None:
    """Commits may fail at first, and reads begin and end between them."""
    tables, plain = Tables(), Tables()
    for each in (tables, plain):
        each.write(*(kit.submitted(number) for number in range(1, TASKS + 1)))
    for step in steps:
        if isinstance(step, str):
            getattr(tables, step)()
        else:
            fact, fails = step
            tables.write(fact, fails=fails)
            plain.write(fact)

    assert tables.rows() == plain.rows()


def test_a_row_that_was_read_is_not_read_again() -> None:
    """Neither is it converted again, which takes longer."""
    tables = Tables()
    tables.write(kit.submitted(1), kit.submitted(2))
    tables.forget()
    tables.begin_read()
    tables.end_read()
    statements: list[str] = []
    tables.db.set_trace_callback(statements.append)

    tables.write(kit.assigned(1), kit.assigned(2))

    assert not [text for text in statements if "FROM tasks WHERE id IN" in text]
    assert [row["state"] for row in _named(tables)] == [1, 1]


def test_a_read_that_ends_within_a_commit_brings_nothing_that_it_changed() -> None:
    """A task may change twice in one commit, and leave the cache between."""
    shown = []
    for reads in (True, False):
        tables = Tables()
        tables.write(kit.submitted(1))
        tables.begin_read()
        tables.db.execute("BEGIN")
        tables.append(kit.finished(1, 1))
        if reads:
            tables.end_read()
        tables.forget()
        tables.append(kit.assigned(1, 2))
        tables.db.execute("COMMIT")
        shown.append(tables.rows())

    assert shown[0] == shown[1]


def test_large_tasks_and_those_with_options_are_not_kept() -> None:
    """Their content would stay in memory as long as they wait."""
    tables = Tables()
    large = kit.submitted(1, command="x" * (ROW_BYTES_MAX + 1))
    tables.write(large, kit.submitted(2, options=TaskOptions(name="b")))
    tables.begin_read()
    tables.end_read()

    assert tables.writer.queue_rows.take(kit.task_id(1)) is None
    assert tables.writer.queue_rows.take(kit.task_id(2)) is None


def _named(tables: Tables) -> list[sqlite3.Row]:
    tables.db.row_factory = sqlite3.Row
    return tables.rows()
