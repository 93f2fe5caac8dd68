"""A log stays below its size limit, and the disk gets freed space back."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from octaskly.core.effects import PlanFloor
from octaskly.core.events import FloorPlanned
from octaskly.core.log.facts import Fact, Recorded
from octaskly.core.log.merge import facts_of
from octaskly.core.log.mesh_records import AUDIT, TOKEN_REVOKED
from octaskly.core.model.tasks import TaskState
from octaskly.store import Store
from octaskly.store.reading.compaction_plan import ENTRIES_MIN, SPARE_DIVISOR
from octaskly.store.tables.database import VACUUM_PAGES, open_writer
from tests.contract import log_kit as kit
from tests.integration.store.test_store import until

BOUND = 8 << 20
ROOM = BOUND // SPARE_DIVISOR  #: reserved for new tasks
OUTPUT = b"x" * 9000
DEADLINE_S = 60.0
ASK = PlanFloor(before_hlc=0, tasks_max=1 << 40)  #: neither age nor number counts


class Fed:
    """A store that gets facts, and its floor as a dispatcher writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.committed: list[int] = []
        self.store = kit.open_store(path, self.committed, bytes_max=BOUND)
        self.seq = 0

    async def add(self, facts: Iterable[Fact]) -> None:
        found = kit.entries(facts, after=self.seq)
        self.seq += len(found)
        self.store.append_entries(self.seq, found, kit.EPOCHS)
        await until(lambda: self.committed[-1:] == [self.seq], DEADLINE_S)

    async def run_tasks(self, numbers: Iterable[int]) -> None:
        todo = list(numbers)
        for start in range(0, len(todo), 100):
            some = todo[start : start + 100]
            await self.add(fact for n in some for fact in run(n))

    async def settle(self) -> FloorPlanned:
        """Raise the floor until nothing is left to do."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                planned = await self.store.plan_compaction(ASK)
                if planned.floor is not None:
                    facts = [f for r in planned.carried for f in facts_of(r)]
                    await self.add([*facts, planned.floor])
                elif self.used() <= BOUND - ROOM or planned.is_log_too_large:
                    return planned
                else:
                    await asyncio.sleep(0.005)

    def used(self) -> int:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as db:
            pages, free, size = (
                db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * size)


def run(n: int) -> tuple[Fact, ...]:
    return kit.submitted(n), kit.assigned(n), kit.finished(n, stdout=OUTPUT)


@asynccontextmanager
async def fed(path: Path) -> AsyncIterator[Fed]:
    found = Fed(path)
    await asyncio.to_thread(found.store.open)
    yield found
    await found.store.close()


async def shown(store: Store) -> int:
    return sum((await store.read_stats()).counts.values())


async def test_a_log_above_its_limit_forgets_the_oldest_tasks(tmp_path: Path) -> None:
    """Waiting tasks stay, and as many of the others as fit."""
    async with fed(tmp_path / "log.db") as one:
        await one.add([kit.submitted(1)])
        await one.run_tasks(range(2, 1200))
        assert one.used() > BOUND

        await one.settle()

        counts = (await one.store.read_stats()).counts
        assert one.used() <= BOUND
        assert counts[TaskState.QUEUED] == 1
        assert 400 < counts[TaskState.COMPLETED] < 1000
        assert await one.store.read_task(kit.task_id(2)) is None
        assert await one.store.read_task(kit.task_id(1199)) is not None


async def test_a_log_stays_below_its_limit_while_tasks_arrive(tmp_path: Path) -> None:
    """The oldest go early enough, so new tasks have room."""
    async with fed(tmp_path / "log.db") as one:
        most = 0
        for start in range(1, 1500, 30):
            before = one.used()
            await one.run_tasks(range(start, start + 30))
            most = max(most, one.used())
            assert one.used() - before < ROOM
            await one.settle()

        assert BOUND - ROOM < most <= BOUND
        assert await one.store.read_task(kit.task_id(1)) is None
        assert await one.store.read_task(kit.task_id(1500)) is not None


async def test_a_log_below_its_limit_forgets_nothing(tmp_path: Path) -> None:
    """Neither age nor number require it, and a sixteenth is still free."""
    async with fed(tmp_path / "log.db") as one:
        await one.run_tasks(range(1, 100))

        planned = await one.store.plan_compaction(ASK)

        assert planned == FloorPlanned(None)


async def test_a_waiting_task_is_never_forgotten(tmp_path: Path) -> None:
    """However large; the dispatcher learns it, and tries again when more has ended."""
    async with fed(tmp_path / "log.db") as one:
        await one.add(kit.submitted(n, command="x" * 60_000) for n in range(1, 200))

        planned = await one.settle()

        assert planned.is_log_too_large
        assert planned.floor is None
        assert await shown(one.store) == 199


async def test_the_disk_gets_freed_space_back(tmp_path: Path) -> None:
    """While the writer is idle; some pages stay for reuse."""
    path = tmp_path / "log.db"
    async with fed(path) as one:
        await one.run_tasks(range(1, 3000))
        await one.settle()
        await until(lambda: pages_free(path) <= 1024, DEADLINE_S)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    assert path.stat().st_size < BOUND + (5 << 20)


async def test_vacuuming_takes_small_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write waits for one of them at most."""
    path = tmp_path / "log.db"
    free: list[int] = []
    async with fed(path) as one:
        await one.run_tasks(range(1, 3000))
        writer = one.store._writer
        assert writer is not None
        transact = writer._run_transaction

        def traced(write: Callable[[], None]) -> None:
            transact(write)
            free.append(pages_free(path))

        monkeypatch.setattr(writer, "_run_transaction", traced)
        await one.settle()
        await until(lambda: pages_free(path) <= 1024, DEADLINE_S)

    falls = [a - b for a, b in itertools.pairwise(free) if a > b]
    assert len(falls) > 3
    assert max(falls) <= VACUUM_PAGES


async def test_a_file_of_an_earlier_version_keeps_its_size(tmp_path: Path) -> None:
    """Its pages are reused; only a VACUUM by hand could shrink it."""
    path = tmp_path / "log.db"
    await asyncio.to_thread(make_old, path)
    async with fed(path) as one:
        await one.run_tasks(range(1, 2000))
        await one.settle()
        await one.run_tasks(range(2000, 2200))

    assert pages_free(path) > 1024


def make_old(path: Path) -> None:
    """Create a log whose file cannot shrink, like those of earlier versions."""
    open_writer(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum=NONE")
        db.execute("VACUUM")


def pages_free(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return int(db.execute("PRAGMA freelist_count").fetchone()[0])


async def test_a_log_without_tasks_is_compacted_as_well(tmp_path: Path) -> None:
    """Years of an audit log alone; valid records are written again before."""
    fed = Fed(tmp_path / "log.db")
    await asyncio.to_thread(fed.store.open)
    over = [Recorded(AUDIT, str(n), b"", 1, n) for n in range(ENTRIES_MIN)]
    lasting = Recorded(TOKEN_REVOKED, "a", b"", 0, 1)
    await fed.add([lasting, *over[:-2]])
    ask = PlanFloor(before_hlc=1 << 60, tasks_max=1 << 40, wall_ms=kit.WALL_MS)

    early = await fed.store.plan_compaction(ask)
    await fed.add([*over[-2:], kit.submitted(1)])
    born = 1000 + fed.seq
    planned = await fed.store.plan_compaction(replace(ask, before_hlc=born))
    await fed.store.close()

    assert early.floor is None
    assert planned.floor is not None
    assert planned.records == (lasting,)
    assert planned.floor.ends == ((kit.STREAM, fed.seq - 1),)
