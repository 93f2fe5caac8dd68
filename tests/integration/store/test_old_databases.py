"""Databases of every earlier version open, migrate and read."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from octaskly.core.effects import (
    Append,
    PlanFloor,
    ServePull,
)
from octaskly.core.events import FloorPlanned
from octaskly.core.log.facts import Fact
from octaskly.core.model.arrays import member_id
from octaskly.core.model.ids import NodeId
from octaskly.core.model.task_options import ArraySpec, TaskOptions, is_stdin_freed
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Entries
from octaskly.mesh.wire import WirePacker
from octaskly.ports import TaskQuery
from octaskly.store import Store
from octaskly.store.tables.database import open_writer
from octaskly.store.tables.schema import VERSION
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit

GOLDEN = Path(__file__).parents[2] / "golden"


def drop_version_12(db: sqlite3.Connection) -> None:
    """Drop what versions 10 to 12 added."""
    db.execute("DROP INDEX tasks_webhooks")
    db.execute("DROP INDEX tasks_with_options")
    db.execute("DROP INDEX tasks_failed")
    db.execute("ALTER TABLE tasks DROP COLUMN cancel_term")
    db.execute("ALTER TABLE attempts DROP COLUMN end_term")
    db.execute("ALTER TABLE tasks DROP COLUMN env")


async def test_the_times_of_an_array_in_an_older_database_come_from_its_members(
    tmp_path: Path,
) -> None:
    """The first start and the last end."""
    path = tmp_path / "log.db"
    array = kit.task_id(1)
    facts: list[Fact] = [
        kit.submitted(1, options=TaskOptions(array=ArraySpec(count=3, first=1))),
        *(
            replace(
                kit.finished(1, started_ms=start, ended_ms=end),
                task=member_id(array, n),
            )
            for n, start, end in ((1, 20, 90), (2, 10, 30))
        ),
    ]
    store = Store(path, WirePacker(), lambda _: None, kit.HandClock())
    await asyncio.to_thread(store.open)
    store.append_entries(1, kit.entries(facts), kit.EPOCHS)
    await store.close()
    with sqlite3.connect(path) as old:
        for column in ("started_ms", "ended_ms"):
            old.execute(f"ALTER TABLE arrays DROP COLUMN {column}")
        old.execute("DROP INDEX tasks_stdin")
        old.execute("DROP INDEX log_large")
        drop_version_12(old)
        old.execute("DROP TABLE retired_streams")
        old.execute("DROP TABLE clock_steps")
        old.execute("DROP INDEX tasks_stored")
        old.execute("ALTER TABLE tasks DROP COLUMN stored_ms")
        old.execute("PRAGMA user_version=4")
    old.close()

    store = Store(path, WirePacker(), lambda _: None, kit.HandClock())
    await asyncio.to_thread(store.open)
    record = await store.read_task(array)
    await store.close()

    assert record is not None
    assert record.progress is not None
    assert (record.progress.started_ms, record.progress.ended_ms) == (10, 90)


def write_version_7(path: Path, facts: list[Fact]) -> None:
    """Write a database of version 7, which frees nothing."""
    with closing(open_writer(path)) as old:
        tables = TableWriter(old, WirePacker(), kit.HandClock())
        tables.append_entries([Append(1, tuple(kit.entries(facts)), kit.EPOCHS)])
        old.execute("DROP INDEX tasks_stdin")
        old.execute("DROP INDEX log_large")
        drop_version_12(old)
        old.execute("PRAGMA user_version=7")


async def test_the_stdin_of_ended_tasks_in_an_older_database_is_freed(
    tmp_path: Path,
) -> None:
    """The first start frees it; a task that waits keeps its bytes."""
    path, large = tmp_path / "log.db", TaskOptions(stdin=bytes(1 << 20))
    facts: list[Fact] = [kit.submitted(n, options=large) for n in (1, 2)]
    facts.append(kit.finished(1))
    await asyncio.to_thread(write_version_7, path, facts)
    store = Store(path, WirePacker(), lambda _: None, kit.HandClock())
    await asyncio.to_thread(store.open)

    async def is_freed(number: int) -> bool:
        record = await store.read_task(kit.task_id(number))
        assert record is not None
        assert record.spec is not None
        return is_stdin_freed(record.spec.options)

    async with asyncio.timeout(60):
        while not await is_freed(1):  # noqa: ASYNC110  another thread changes it
            await asyncio.sleep(0.005)

    assert not await is_freed(2)
    await store.close()


def write_version_8(path: Path, facts: list[Fact]) -> None:
    """Write a database of version 8, which stores the number of any id."""
    with closing(open_writer(path)) as old:
        tables = TableWriter(old, WirePacker(), kit.HandClock())
        tables.append_entries([Append(1, tuple(kit.entries(facts)), kit.EPOCHS)])
        old.execute(
            "UPDATE tasks SET sequence = (1 << 62) + substr(id, 6, 12)"
            " WHERE sequence >= (1 << 62)"
        )
        drop_version_12(old)
        old.execute("PRAGMA user_version=8")


async def test_ids_in_an_older_database_are_found_by_their_digits(
    tmp_path: Path,
) -> None:
    """Version 8 stored the number of a retry, which nobody types."""
    path, name = tmp_path / "log.db", "task-792312345678-3fa2c0de"
    facts: list[Fact] = [kit.submitted(1), kit.submitted(2, id=f"{name}~a")]
    await asyncio.to_thread(write_version_8, path, facts)
    store = Store(path, WirePacker(), lambda _: None, kit.HandClock())
    await asyncio.to_thread(store.open)

    assert await store.names_with_short_id("3fa2c0de") == (name,)
    assert await store.names_with_short_id("1") == (kit.task_id(1),)
    await store.close()


def write_version_11(path: Path, facts: list[Fact]) -> None:
    """Write a database of version 11, in which `options` has the environment."""
    with closing(open_writer(path)) as old:
        tables = TableWriter(old, WirePacker(), kit.HandClock())
        tables.append_entries([Append(1, tuple(kit.entries(facts)), kit.EPOCHS)])
        old.execute(
            "UPDATE tasks SET options = json_replace(options, '$[2]', json(env))"
            " WHERE env IS NOT NULL"
        )
        old.execute("DROP INDEX tasks_webhooks")
        old.execute("DROP INDEX tasks_with_options")
        old.execute("ALTER TABLE tasks DROP COLUMN env")
        old.execute("PRAGMA user_version=11")


async def test_large_columns_of_an_older_database_are_kept(tmp_path: Path) -> None:
    """They move behind the others, and the environment gets a column of its own."""
    path = tmp_path / "log.db"
    options = TaskOptions(
        env=(("A", "1"), ("B", "")),
        stdin=b"\x00in",
        array=ArraySpec(count=2, items=("x", "y")),
    )
    full = kit.submitted(1, inputs=("in",), outputs=("out",), options=options)
    plain = kit.submitted(2)
    await asyncio.to_thread(write_version_11, path, [full, plain])
    store = Store(path, WirePacker(), lambda _: None, kit.HandClock())
    await asyncio.to_thread(store.open)

    loaded = await store.load_queued_tasks(-1, 10)
    await store.close()

    assert [record.spec for record in loaded.records] == [full.spec, plain.spec]


@pytest.mark.parametrize("version", range(1, VERSION))
async def test_a_database_of_an_older_version_is_read_and_extended(
    tmp_path: Path, version: int
) -> None:
    """The file holds all states, an early entry, a result and a peer."""
    path = tmp_path / "log.db"
    with sqlite3.connect(path) as old:
        old.executescript((GOLDEN / f"database-{version}.sql").read_text())
    old.close()
    store = Store(path, WirePacker(), lambda _: None, kit.HandClock())
    saved = await asyncio.to_thread(store.open)

    page = await store.read_task_page(TaskQuery())
    states = [record.state for record in page.records]
    done, failed = TaskState.COMPLETED, TaskState.FAILED
    cancelled, queued = TaskState.CANCELLED, TaskState.QUEUED
    assert states == [done, failed, cancelled, done, queued]
    first = await store.read_task(kit.task_id(1))
    assert first is not None
    assert first.attempts[0].outcome is not None
    assert first.attempts[0].outcome.stdout == b"hello\n\xff"
    assert saved.vector == ((kit.STREAM, 10), (kit.OTHER, 3))
    assert [report.task for report in saved.reports] == [kit.task_id(4)]
    assert saved.peers[0].node == NodeId("b" * 16)
    pull = ServePull(kit.PEER, ())
    packed = await store.read_pull_reply(pull, 1 << 20)
    answer = WirePacker().unpack(packed.data, Entries)
    assert len(answer.entries) == 13
    planned = await store.plan_compaction(PlanFloor(1 << 60, 1))
    await store.close()

    assert isinstance(planned, FloorPlanned)
    assert planned.floor is not None
    assert planned.floor.ends == ((kit.STREAM, 10), (kit.OTHER, 2))
    assert [record.id for record in planned.carried] == [kit.task_id(5)]
