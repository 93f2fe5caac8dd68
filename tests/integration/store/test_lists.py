"""Lists take little memory, whatever is in the tasks, and delay nobody else."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from octaskly.core.effects import LoadQueued
from octaskly.core.log.facts import Assigned, Fact
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import member_id
from octaskly.core.model.ids import Moment, TaskId
from octaskly.core.model.task_options import (
    After,
    ArraySpec,
    TaskOptions,
)
from octaskly.ports.store import LISTED_COMMAND_CHARS, TaskQuery, TaskSearch
from octaskly.store import Store
from octaskly.store.tables import rows
from tests.contract import log_kit as kit
from tests.integration.store.test_store import opened, until

LONG = "x" * 65_536
PATHS = tuple(f"{n:04}" for n in range(250))
SIZE_MAX = 8192  #: of one record, as a message
OPTIONS = TaskOptions(
    name="long",
    labels=(("team", "red"),),
    env=(("A", LONG),),
    stdin=LONG.encode(),
    after=After(tasks=tuple(kit.task_id(n) for n in range(500)), end="any"),
)


async def listed(store: Store, *facts: Fact, query: TaskQuery) -> TaskRecord:
    """Write facts, and return the one task that a list has then."""
    store.append_entries(1, kit.entries(facts), kit.EPOCHS)
    await store.close()
    await asyncio.to_thread(store.open)
    (record,) = (await store.read_task_page(query)).records
    return record


@pytest.mark.parametrize("command", [LONG, "x" * (LISTED_COMMAND_CHARS + 1)])
async def test_a_listed_task_is_small_whatever_it_has(
    tmp_path: Path, command: str
) -> None:
    """What no list shows is not read: a page may have 1000 such tasks."""
    fact = kit.submitted(
        1, command=command, inputs=PATHS, outputs=PATHS, options=OPTIONS
    )
    async with opened(tmp_path / "log.db") as store:
        record = await listed(store, fact, query=TaskQuery())
        whole = await store.read_task(fact.task)

    assert record.spec is not None
    assert record.spec.command == "x" * (LISTED_COMMAND_CHARS + 1)
    assert record.spec.options is not None
    assert record.spec.options.name == "long"
    assert record.spec.options.labels == (("team", "red"),)
    assert rows.size_of(record) < SIZE_MAX
    assert whole is not None
    assert whole.spec == fact.spec


async def test_a_listed_command_of_the_limit_is_whole(tmp_path: Path) -> None:
    """One character more would show that it is cut."""
    command = "x" * LISTED_COMMAND_CHARS
    async with opened(tmp_path / "log.db") as store:
        fact = kit.submitted(1, command=command)
        record = await listed(store, fact, query=TaskQuery())

    assert record.spec is not None
    assert record.spec.command == command


async def test_a_listed_member_is_small_whatever_its_array_has(tmp_path: Path) -> None:
    """Its envelope is built of that of the array, one member at a time."""
    array = ArraySpec(count=2, has_items=True, items=("a", "b"))
    options = TaskOptions(env=OPTIONS.env, array=array)
    name = TaskId("task-001-00000001")
    fact = kit.submitted(
        1, id=name, command=f"{LONG} {{}}", inputs=PATHS, outputs=PATHS, options=options
    )
    begun = Assigned(member_id(name, 1), kit.attempt_id(), kit.WORKER)
    async with opened(tmp_path / "log.db") as store:
        record = await listed(store, fact, begun, query=TaskQuery(array=name))

    assert record.id == member_id(name, 1)
    assert record.spec is not None
    assert record.spec.command == "x" * (LISTED_COMMAND_CHARS + 1)
    assert rows.size_of(record) < SIZE_MAX


class HeldClock(kit.HandClock):
    """A clock that stops who asks for the time in a thread for lists, until freed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = threading.Event()
        self.freed = threading.Event()

    def now(self) -> Moment:
        if "list" in threading.current_thread().name:
            self.is_asked.set()
            assert self.freed.wait(20)
        return super().now()


async def test_lists_delay_neither_submissions_nor_the_dispatcher(
    tmp_path: Path,
) -> None:
    """Lists that wait for each other leave connections to both."""
    clock = HeldClock()
    store = Store(tmp_path / "log.db", kit.PicklePacker(), lambda _: None, clock)
    await asyncio.to_thread(store.open)
    query = TaskQuery(search=TaskSearch(text="x"))
    lists = [asyncio.create_task(store.read_task_page(query)) for _ in range(8)]
    try:
        await until(clock.is_asked.is_set)

        async with asyncio.timeout(20):
            assert await store.read_tasks_by_name(["a"]) == {}
            assert await store.count_queued_tasks() == 0
            assert (await store.load_queued_tasks(LoadQueued(1, -1, 9))).records == ()
        assert not any(each.done() for each in lists)
    finally:
        clock.freed.set()
        await asyncio.gather(*lists)
        await store.close()
