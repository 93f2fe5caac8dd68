"""Names of tasks that members of a new array would also have."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec
from octaskly.store.tables import task_name_collisions
from octaskly.store.tables.task_name_collisions import find_name_collision


def test_few_of_many_similar_names_are_examined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client may have a million of them; then the array needs another name."""
    arrays = {TaskId("x"): ArraySpec(count=3)}
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE tasks (id TEXT PRIMARY KEY)")
        db.executemany("INSERT INTO tasks VALUES (?)", [(f"x.-{n}",) for n in range(5)])

        assert find_name_collision(db, arrays) is None
        monkeypatch.setattr(task_name_collisions, "SIMILAR_MAX", 3)
        assert find_name_collision(db, arrays) == "x.-3"
        db.execute("DELETE FROM tasks")
        db.execute("INSERT INTO tasks VALUES ('x.2~0123456789abcde')")
        assert find_name_collision(db, arrays) == "x.2"
