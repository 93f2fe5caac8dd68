"""Retention: a million tasks pass through a log that has room for a fifth of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, bound_row
from octaskly.core.dispatcher.compaction import FLOOR_STEP_S, SHORT_INTERVAL_S
from octaskly.core.effects import PlanFloor
from octaskly.core.events import FloorPlanned
from octaskly.core.log.facts import Fact
from octaskly.core.log.merge import facts_of
from octaskly.mesh.wire import WirePacker
from octaskly.ports.store import TaskQuery
from octaskly.store import Store
from tests.contract import log_kit as kit

TASKS, TASKS_QUICK = 1_000_000, 300_000
BOUND = 128 << 20
WAL = 64 << 20  #: and what waits to be moved into the file
BATCH = 500


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Feed the store itself, as fast as it takes them."""
    yield from asyncio.run(_soak(folder, TASKS_QUICK if quick else TASKS))


async def _soak(folder: Path, tasks: int) -> list[Row]:
    feed = Feed(folder / "log.db")
    await asyncio.to_thread(feed.store.open)
    began_s = time.perf_counter()
    floor = asyncio.create_task(feed.keep_floor())
    await feed.run(tasks)
    took_s = time.perf_counter() - began_s
    floor.cancel()
    await asyncio.wait([floor])
    largest_mb, wal_mb = feed.largest / (1 << 20), feed.largest_wal / (1 << 20)
    left = (await feed.store.read_task_page(TaskQuery(limit=1))).total
    await feed.store.close()
    end_mb = feed.path.stat().st_size / (1 << 20)
    return [
        (f"{tasks} tasks through the store", f"{tasks / took_s:.0f}/s", "", "", ""),
        ("tasks that are left of them", f"{left}", "", "", ""),
        bound_row("database, largest", largest_mb, "MB", BOUND / (1 << 20)),
        bound_row("database, at the end", end_mb, "MB", BOUND / (1 << 20)),
        bound_row("write-ahead log, largest", wal_mb, "MB", WAL / (1 << 20)),
        ("commit, longest wait", f"{feed.longest_s * 1000:.0f} ms", "", "", ""),
        ("page of a list, slowest", f"{feed.slowest_s * 1000:.0f} ms", "", "", ""),
    ]


class Feed:
    """Tasks that end at once, and the floor that a dispatcher would write."""

    def __init__(
        self, path: Path, *, bytes_max: int = BOUND, commit_tasks: int = BATCH
    ) -> None:
        self.path = path
        self.store = Store(
            path, WirePacker(), self._hear, kit.HandClock(), bytes_max=bytes_max
        )
        self._commit_tasks = commit_tasks
        self.largest = self.largest_wal = 0
        self.longest_s = self.slowest_s = 0.0
        self._seq = 0
        self._durable = asyncio.Condition()
        self._told = 0

    async def run(self, tasks: int) -> None:
        """Submit, assign and finish so many tasks."""
        for start in range(0, tasks, self._commit_tasks):
            facts: list[Fact] = []
            for n in range(start, start + self._commit_tasks):
                facts += kit.submitted(n), kit.assigned(n)
                facts.append(kit.finished(n, stdout=b"hello\n"))
            began_s = time.perf_counter()
            await self._add(facts)
            self.longest_s = max(self.longest_s, time.perf_counter() - began_s)
            self._look()

    async def keep_floor(self) -> None:
        """Look at the size as a dispatcher does while there is little room."""
        plan = FloorPlanned(None)
        while True:
            await asyncio.sleep(FLOOR_STEP_S if plan.has_more else SHORT_INTERVAL_S)
            plan = await self.store.plan_compaction(PlanFloor(0, 1 << 40))
            if plan.floor is not None:
                facts = [fact for record in plan.carried for fact in facts_of(record)]
                await self._add([*facts, plan.floor])
            began_s = time.perf_counter()
            await self.store.read_task_page(TaskQuery(offset=20_000))
            self.slowest_s = max(self.slowest_s, time.perf_counter() - began_s)

    async def _add(self, facts: list[Fact]) -> None:
        entries = kit.entries(facts, after=self._seq)
        self._seq = wanted = entries[-1].seq
        self.store.append_entries(wanted, entries, kit.EPOCHS)
        async with self._durable:
            await self._durable.wait_for(lambda: self._told >= wanted)

    def _look(self) -> None:
        self.largest = max(self.largest, self.path.stat().st_size)
        wal = self.path.with_name(f"{self.path.name}-wal")
        self.largest_wal = max(self.largest_wal, wal.stat().st_size)

    def _hear(self, number: int) -> None:
        self._told = number
        self._wake = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        async with self._durable:
            self._durable.notify_all()
