"""Databases of every version that was ever written open, migrate and read."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from octaskly.core.effects import PlanFloor
from octaskly.core.events import FloorPlanned
from octaskly.core.model import NodeId, TaskState
from octaskly.mesh.wire import WirePacker
from octaskly.ports import TaskQuery
from octaskly.store import Store
from octaskly.store.schema import VERSION
from tests.contract import log_kit as kit

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("version", range(1, VERSION))
async def test_a_database_of_an_older_version_is_read_and_goes_on(
    tmp_path: Path, version: int
) -> None:
    """The file holds all states, an entry that came early, a result and a peer."""
    path = tmp_path / "log.db"
    with sqlite3.connect(path) as old:
        old.executescript((GOLDEN / f"database-{version}.sql").read_text())
    old.close()
    store = Store(path, WirePacker(), lambda _: None, kit.HandClock())
    saved = await asyncio.to_thread(store.open)

    page = await store.page(TaskQuery())
    states = [record.state for record in page.records]
    done, failed = TaskState.COMPLETED, TaskState.FAILED
    cancelled, queued = TaskState.CANCELLED, TaskState.QUEUED
    assert states == [done, failed, cancelled, done, queued]
    first = await store.task(kit.task_id(1))
    assert first is not None
    assert first.attempts[0].outcome is not None
    assert first.attempts[0].outcome.stdout == b"hello\n\xff"
    assert saved.vector == ((kit.STREAM, 10), (kit.OTHER, 3))
    assert [report.task for report in saved.reports] == [kit.task_id(4)]
    assert saved.peers[0].node == NodeId("b" * 16)
    packed = await store.answer({}, None, 1 << 20)
    answer = WirePacker().unpack(packed.data)
    assert len(answer.entries) == 13
    planned = await store.plan_floor(PlanFloor(1 << 60, 1))
    await store.close()

    assert isinstance(planned, FloorPlanned)
    assert planned.floor is not None
    assert [mark[:2] for mark in planned.floor.marks] == [
        (kit.STREAM, 10),
        (kit.OTHER, 2),
    ]
    assert [record.id for record in planned.carried] == [kit.task_id(5)]
