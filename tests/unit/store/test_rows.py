"""Rows of the store, and their sizes in messages."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import pytest
from msgspec.structs import replace

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import Attempt, Outcome, OutputFile
from octaskly.mesh import wire
from octaskly.store.tables import rows
from octaskly.store.tables.schema import MIGRATIONS
from tests.support.builders import attempt, node_id, outcome


@pytest.mark.parametrize(
    "end",
    [
        replace(outcome(), stdout=b"x" * 10_000),
        replace(outcome(), detail="é" * 4096),
        replace(outcome(), outputs=(OutputFile("x" * 50, 1 << 40),) * 200),
    ],
)
def test_the_size_of_a_record_is_not_below_its_size_in_a_message(end: Outcome) -> None:
    """A peer refuses a snapshot above 1 MiB that could have been split."""
    ended = Attempt(id=attempt(), node=node_id("b"), state=end.state, outcome=end)
    record = TaskRecord(id=TaskId("task-001-deadbeef.7"), attempts=(ended,))

    assert rows.size_of(record) >= len(wire.WirePacker().pack(record))


def test_lists_read_no_large_column_and_none_that_comes_after_one() -> None:
    """SQLite reads a row up to the last column that it needs, megabytes included."""
    with closing(sqlite3.connect(":memory:")) as db:
        for step in MIGRATIONS:
            db.executescript(step)
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(tasks)")]

    listed = set(re.findall(r"\w+", rows.LIST_COLUMNS)) & set(columns)

    large = {"env", "inputs", "outputs", "stdin", "items"}
    assert set(columns[-len(large) :]) == large
    assert listed
    assert listed.isdisjoint(large)
