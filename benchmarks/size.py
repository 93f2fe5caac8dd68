"""Size of the database with a million ended tasks, in one row for each.

A second file has the same content in the layout of before: each fact and each attempt
is a row of its own (`docs/decisions/0038-packed-log.md`).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec.structs import astuple

from benchmarks.measure import Row
from benchmarks.retention import Feed
from octaskly.store.tables.rows import unpack_attempts

TASKS, TASKS_QUICK = 1_000_000, 100_000
COMMIT_TASKS = 40
BYTES_MAX = 1 << 40  #: nothing is forgotten

_ROW_PER_FACT = """
CREATE TABLE single_facts (
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    hlc INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    body BLOB NOT NULL,
    output INTEGER,
    PRIMARY KEY (stream, seq)
) STRICT, WITHOUT ROWID;
INSERT INTO single_facts
    SELECT stream, seq, hlc, ifnull(about, ''), body, NULL FROM facts;
DROP VIEW facts;
DROP TABLE log;
CREATE TABLE attempts (
    task INTEGER NOT NULL,
    term INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    n INTEGER NOT NULL,
    node TEXT NOT NULL,
    state INTEGER NOT NULL,
    reason TEXT,
    exit_code INTEGER,
    signal INTEGER,
    started_ms INTEGER,
    ended_ms INTEGER,
    duration_ms INTEGER,
    stdout_bytes INTEGER,
    stderr_bytes INTEGER,
    detail TEXT,
    cpu_ms INTEGER,
    memory_max_kb INTEGER,
    decided_term INTEGER NOT NULL,
    output INTEGER,
    PRIMARY KEY (task, term, stream, seq)
) STRICT, WITHOUT ROWID;
"""


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Fill a store, and write its content again in the other layout."""
    tasks = TASKS_QUICK if quick else TASKS
    folder.mkdir(parents=True, exist_ok=True)
    made, packed, single = (folder / name for name in ("log.db", "packed", "single"))
    asyncio.run(_fill(made, tasks))
    for copy in (packed, single):
        with closing(sqlite3.connect(made)) as db:
            db.execute("VACUUM INTO ?", (str(copy),))
    with closing(sqlite3.connect(single, isolation_level=None)) as db:
        _write_single_rows(db)
    size, before = packed.stat().st_size, single.stat().st_size
    ratio = size / before
    yield f"database of {tasks} ended tasks", f"{size / 1e6:.0f} MB", "", "", ""
    yield (
        "the same, a row for each fact and attempt",
        f"{before / 1e6:.0f} MB",
        f"{ratio:.2f}",
        "< 1",
        "yes" if ratio < 1 else "no",
    )


async def _fill(path: Path, tasks: int) -> None:
    feed = Feed(path, bytes_max=BYTES_MAX, commit_tasks=COMMIT_TASKS)
    await asyncio.to_thread(feed.store.open)
    await feed.run(tasks)
    await feed.store.close()


def _write_single_rows(db: sqlite3.Connection) -> None:
    db.executescript(_ROW_PER_FACT)
    db.execute("BEGIN")
    # A second cursor: the table that is read does not change yet.
    marks = ",".join("?" * 20)
    db.executemany(f"INSERT INTO attempts VALUES ({marks})", _attempt_rows(db))  # noqa: S608
    db.execute("UPDATE tasks SET attempts = NULL")
    db.execute("COMMIT")
    db.execute("VACUUM")


def _attempt_rows(db: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """Yield the row of each attempt of an ended task."""
    for key, packed in db.execute("SELECT key, attempts FROM tasks"):
        attempts, outputs = unpack_attempts(packed)
        for each in attempts:
            end = each.outcome
            assert end is not None
            yield (
                *(key, *astuple(each.id), each.node, int(each.state)),
                *(end.reason.value, end.exit_code, end.signal, end.started_ms),
                *(end.ended_ms, end.duration_ms, end.stdout_bytes, end.stderr_bytes),
                *(end.detail or None, end.cpu_ms, end.memory_max_kb),
                *(each.decided_term, outputs.get(each.id)),
            )
