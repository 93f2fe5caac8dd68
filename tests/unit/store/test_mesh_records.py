"""Rows of records: how much work the writer has with a further one."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from octaskly.core.effects import Append
from octaskly.core.log.facts import Recorded
from octaskly.core.log.mesh_records import AUDIT, TOKEN_REVOKED
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit

STORED = 1000
LATER_MS = kit.WALL_MS + 1_000_000


def record(kind: str, number: int) -> Recorded:
    return Recorded(kind, f"key-{number}", b"", LATER_MS, number)


def count_steps(db: sqlite3.Connection, tables: TableWriter, append: Append) -> int:
    """Return the number of SQLite's instructions that an append takes, in tens."""
    steps: list[None] = []
    db.set_progress_handler(lambda: steps.append(None), 10)
    tables.append_entries([append])
    db.set_progress_handler(None, 0)
    return len(steps)


@pytest.mark.parametrize(
    ("kind", "added", "steps_max"),
    [(TOKEN_REVOKED, 1, 100), (AUDIT, 32, STORED)],
    ids=["one", "a batch"],
)
def test_a_further_record_does_not_read_all_others_of_its_kind(
    kind: str, added: int, steps_max: int
) -> None:
    """The writer commits nothing else meanwhile, and a kind may have 180 MB."""
    facts = [record(kind, number) for number in range(STORED + added)]
    entries = kit.entries(facts)
    with closing(kit.database()) as db:
        tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
        tables.append_entries([Append(1, tuple(entries[:STORED]), kit.EPOCHS)])

        steps = count_steps(db, tables, Append(2, tuple(entries[STORED:])))

    assert steps < steps_max
