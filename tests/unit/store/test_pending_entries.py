"""Facts that a snapshot brings for tasks that its sender does not know."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from octaskly.core.effects import Append, MergeRows, StageRows
from octaskly.core.log.facts import NO_FLOOR, Assigned, Entry, Fact, Finished, Floor
from octaskly.core.model.ids import AttemptId, Epoch, NodeId, StreamId
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Snapshot, SnapshotCursor, SnapshotHead
from octaskly.store.reading.queries import read_task
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit

THEIRS = StreamId(500)
HEAD = SnapshotHead(
    vector=((THEIRS, 2),),
    epochs=((THEIRS, Epoch(1, NodeId("t" * 16))),),
    floor=NO_FLOOR,
    hlc=100,
)


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(kit.database()) as connection:
        yield connection


def stage(db: sqlite3.Connection) -> TableWriter:
    """Stage a snapshot with the end of an unknown task; its last part is empty."""
    attempt = AttemptId(1, THEIRS, 1, 1)
    end = kit.finished(1).outcome
    waiting = (
        Entry(THEIRS, 1, 50, Assigned(kit.task_id(1), attempt, kit.WORKER)),
        Entry(THEIRS, 2, 51, Finished(kit.task_id(1), attempt, kit.WORKER, end, 1)),
    )
    first, last = SnapshotCursor(1, 1), SnapshotCursor(1, 2)
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    for part in (
        Snapshot(rows=(), cursor=first, has_more=True, head=HEAD, pending=waiting),
        Snapshot(rows=(), cursor=last, has_more=False, after=first),
    ):
        tables.stage_rows(StageRows(1, 1, NodeId("p"), part))
    return tables


def merge(tables: TableWriter, *, is_last: bool) -> None:
    tables.merge_rows(MergeRows(2, 1, HEAD, (), is_last))


def append(tables: TableWriter, fact: Fact) -> None:
    tables.append_entries([Append(3, (Entry(kit.STREAM, 1, 40, fact),), kit.EPOCHS)])


def test_a_task_that_arrives_during_a_merge_gets_its_facts(
    db: sqlite3.Connection,
) -> None:
    """Its end would never be applied, and the task would run again."""
    tables = stage(db)

    merge(tables, is_last=False)
    append(tables, kit.submitted(1))
    merge(tables, is_last=True)

    found = read_task(db, kit.task_id(1))
    assert found is not None
    assert found.state is TaskState.COMPLETED


def test_facts_of_a_retired_stream_are_purged_although_the_log_lacks_them(
    db: sqlite3.Connection,
) -> None:
    """Files of these attempts would be kept for ever."""
    tables = stage(db)
    merge(tables, is_last=False)
    merge(tables, is_last=True)

    append(tables, Floor(60, (), retired=((THEIRS, 2),)))
    while not tables.is_purged:
        tables.purge_some()

    assert db.execute("SELECT count(*) FROM pending_entries").fetchone() == (0,)
