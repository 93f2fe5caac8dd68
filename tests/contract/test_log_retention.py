"""The contract of `ports.Log` for compaction and snapshots."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import Struct
from msgspec.structs import replace

from octaskly.core.effects import (
    LoadLive,
    LoadQueued,
    MergeRows,
    PlanFloor,
    ServePull,
    StageRows,
)
from octaskly.core.events import FloorPlanned
from octaskly.core.log.facts import (
    NO_FLOOR,
    Entry,
    Fact,
    Finished,
    Floor,
    StreamFloor,
    Submitted,
)
from octaskly.core.log.merge import facts_of
from octaskly.core.model.arrays import member_id
from octaskly.core.model.hlc import HLC_EPOCH_MS, hlc_of
from octaskly.core.model.ids import Epoch, NodeId, StreamId
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import (
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.ports.store import TaskQuery
from octaskly.store import Store
from tests.contract import log_kit as kit
from tests.contract.disk_log import DiskLog
from tests.simulation.store.disk import Disk

AGES = 1 << 60
MANY = 1_000_000
DEADLINE_S = 60.0


class Bench:
    """A log under test that writes one stream."""

    def __init__(
        self,
        make: Callable[[Callable[[int], None]], Store],
        clock: kit.HandClock,
        back_up: Callable[[], Callable[[], None]] | None = None,
    ) -> None:
        self._make = make
        self._back_up = back_up
        self.clock = clock
        self.number = 0
        self.snapshots = 0
        self.seq = 0
        self._committed = 0
        self._changed = asyncio.Event()
        self.log = make(self._hear)

    async def open(self) -> None:
        self.saved = await asyncio.to_thread(self.log.open)

    async def reopen(self, wall_ms: int | None = None) -> None:
        """Close and open the log; the clock may be set meanwhile."""
        await self.log.close()
        self.clock.wall_ms = wall_ms or self.clock.wall_ms
        self.log = self._make(self._hear)
        await self.open()

    async def lose_commit(self, commit: Awaitable[None]) -> None:
        """Do what makes one commit, and open the disk without it."""
        assert self._back_up is not None
        restore = self._back_up()
        await commit
        await self.log.close()
        restore()
        self.log = self._make(self._hear)
        await self.open()

    async def add(self, *facts: Fact) -> None:
        """Append facts and wait until they are durable."""
        await self.take(kit.entries(facts, after=self.seq))
        self.seq += len(facts)

    async def take(self, entries: list[Entry]) -> None:
        self.number += 1
        self.log.append_entries(self.number, entries, kit.EPOCHS)
        await self.durable()

    async def durable(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self._committed < self.number:
                self._changed.clear()
                await self._changed.wait()

    async def raise_floor(self, before_hlc: int = AGES, tasks_max: int = MANY) -> bool:
        """Act on a plan as a dispatcher does; return whether the floor rose."""
        planned = await self.log.plan_compaction(PlanFloor(before_hlc, tasks_max))
        if planned.floor is not None:
            await self._act_on(planned)
        return planned.floor is not None

    async def carry_step(self, before_hlc: int, tasks_max: int) -> int:
        """Act on a plan, even without a floor; return how many tasks it carried."""
        planned = await self.log.plan_compaction(PlanFloor(before_hlc, tasks_max))
        await self._act_on(planned)
        return len(planned.carried)

    async def _act_on(self, planned: FloorPlanned) -> None:
        facts: list[Fact] = []
        for record in planned.carried:
            facts += facts_of(record)
        facts += planned.records
        if planned.floor is not None:
            facts.append(planned.floor)
        await self.add(*facts)

    async def shows(self, *numbers: int) -> None:
        """Wait until exactly these tasks are left."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                page = await self.log.read_task_page(TaskQuery())
                ids = [record.id for record in page.records]
                if sorted(ids) == [kit.task_id(n) for n in numbers]:
                    break
                await asyncio.sleep(0.005)
        assert page.total == len(numbers)

    async def pull(self, server: Store) -> None:
        """Pull the entries that another log has beyond this one."""
        held = dict(await self.log.read_vector())
        await self.take(list((await kit.entries_of(server, held)).entries))

    async def stage(self, server: Store, most: int = MANY) -> list[Snapshot]:
        """Stage this many parts of a snapshot of another log; return all so far."""
        parts: list[Snapshot] = []
        held = dict(await self.log.read_vector())
        self.snapshots += 1
        while len(parts) < most and (not parts or parts[-1].has_more):
            part = await rows_of(server, held, parts[-1].cursor if parts else None)
            if part is None:
                break
            parts.append(part)
            await self.stage_part(part)
        return parts

    async def stage_parts(self, parts: list[Snapshot]) -> None:
        """Stage parts of a new snapshot."""
        self.snapshots += 1
        for part in parts:
            await self.stage_part(part)

    async def stage_part(self, part: Snapshot) -> None:
        self.number += 1
        self.log.stage_rows(StageRows(self.number, self.snapshots, kit.PEER, part))
        await self.durable()

    async def merge(
        self, parts: list[Snapshot], most: int = MANY, *, merged: int = 0
    ) -> None:
        """Merge this many of the staged parts, after some that are merged."""
        head = parts[0].head
        assert head is not None
        retired = tuple(pair for part in parts for pair in part.retired)
        for part in parts[merged:][:most]:
            self.number += 1
            self.log.merge_rows(
                MergeRows(
                    *(self.number, self.snapshots, head, retired),
                    is_last=not part.has_more,
                )
            )
            await self.durable()

    async def join(self, server: Store) -> SnapshotHead | None:
        """Stage and merge a snapshot of another log, if any; return its head."""
        parts = await self.stage(server)
        if parts:
            await self.merge(parts)
        return parts[0].head if parts else None

    def _hear(self, number: int) -> None:
        self._committed = number
        self._changed.set()


async def rows_of(
    log: Store,
    vector: Mapping[StreamId, int],
    cursor: SnapshotCursor | None = None,
    bytes_max: int = 1,
) -> Snapshot | None:
    """Pull part of a snapshot, None where entries are given."""
    pull = ServePull(kit.PEER, tuple(vector.items()), cursor)
    packed = await log.read_pull_reply(pull, bytes_max)
    answer = kit.PicklePacker().unpack(packed.data, Struct)
    return answer if isinstance(answer, Snapshot) else None


def result_from_elsewhere(number: int, **fields: Any) -> Finished:
    """The end of an attempt that a dispatcher unknown here placed."""
    attempt = kit.attempt_id(number, stream=kit.OTHER)
    return replace(kit.finished(number, stdout=b"late", **fields), attempt=attempt)


def back_up_file(path: Path) -> Callable[[], None]:
    """Copy a database, and return what brings the copy back."""
    copied = path.with_suffix(".copy")
    copied.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as now, closing(sqlite3.connect(copied)) as to:
        now.backup(to)

    def restore() -> None:
        for end in ("-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        copied.replace(path)

    return restore


@pytest.fixture(params=["store", "simulated disk"])
async def benches(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[list[Bench]]:
    def bench(name: str) -> Bench:
        clock = kit.HandClock(HLC_EPOCH_MS)
        if request.param == "store":
            path = tmp_path / name / "octaskly.db"
            return Bench(
                lambda hear: Store(path, kit.PicklePacker(), hear, clock),
                clock,
                lambda: back_up_file(path),
            )
        disks = [Disk()]
        return Bench(
            lambda hear: cast("Store", DiskLog(disks[-1], hear, clock)),
            clock,
            lambda: partial(disks.append, disks[-1].copy()),
        )

    monkeypatch.setattr("tests.simulation.store.snapshot.PART_ROWS", 1)
    found = [bench(name) for name in ("one", "two")]
    for each in found:
        await each.open()
    yield found
    for each in found:
        await each.log.close()


async def test_old_ended_tasks_are_forgotten(benches: list[Bench]) -> None:
    """Rows, attempts, outputs, counts and entries go; the vector stays."""
    one, _ = benches
    await one.add(kit.submitted(1), kit.submitted(2), kit.assigned(1))
    await one.add(kit.finished(1, stdout=b"x" * 5000), kit.cancelled(2))

    assert await one.raise_floor()
    await one.shows()

    stats = await one.log.read_stats()
    assert not any(stats.counts.values())
    assert await one.log.read_task(kit.task_id(1)) is None
    assert await one.log.read_vector() == ((kit.STREAM, one.seq),)
    assert not await one.raise_floor()


async def test_a_request_to_forget_carries_only_needed_tasks(
    benches: list[Bench],
) -> None:
    """Waiting tasks submitted after the last forgotten one stay in place."""
    one, _ = benches
    await one.add(kit.submitted(1), kit.submitted(2), kit.assigned(2), kit.finished(2))
    await one.add(kit.submitted(3), kit.submitted(4))

    planned = await one.log.plan_compaction(PlanFloor(0, MANY, purge_hlc=AGES))

    assert planned.floor is not None
    assert [record.id for record in planned.carried] == [kit.task_id(1)]
    assert planned.purged_count == 1
    assert not planned.has_more
    await one.add(*facts_of(planned.carried[0]), planned.floor)
    await one.shows(1, 3, 4)


async def test_a_task_that_began_before_the_end_of_a_forgotten_one_is_carried(
    benches: list[Bench],
) -> None:
    """Else the fact of that end held the floor below it, and nothing was forgotten."""
    one, _ = benches
    await one.add(kit.submitted(1), kit.submitted(2), kit.submitted(3))
    await one.add(kit.finished(1), kit.submitted(4))

    planned = await one.log.plan_compaction(PlanFloor(0, MANY, purge_hlc=AGES))

    assert planned.floor is not None
    assert [record.id for record in planned.carried] == [kit.task_id(2), kit.task_id(3)]
    assert planned.purged_count == 1
    facts = [fact for record in planned.carried for fact in facts_of(record)]
    await one.add(*facts, planned.floor)
    await one.shows(2, 3, 4)


async def test_a_task_whose_outputs_another_one_gets_is_not_forgotten(
    benches: list[Bench],
) -> None:
    """Else a task that waited for a slot failed, because its parent was forgotten."""
    one, _ = benches
    parent = kit.submitted(1, outputs=("data",))
    child = kit.submitted(3, options=TaskOptions(outputs_of=(kit.task_id(1),)))
    await one.add(parent, kit.submitted(2), kit.finished(1), kit.finished(2), child)

    assert await one.raise_floor()
    await one.shows(1, 3)

    await one.add(kit.assigned(3, 2))
    assert await one.raise_floor()
    await one.shows(1, 3)

    await one.add(kit.finished(3, 2))
    assert await one.raise_floor()
    await one.shows()


async def test_live_tasks_are_carried(benches: list[Bench]) -> None:
    """Old tasks that wait or run keep their state, above the floor."""
    one, _ = benches
    await one.add(kit.submitted(1), kit.assigned(1), kit.submitted(2), kit.submitted(3))
    await one.add(kit.finished(3))
    live = [await one.log.read_task(kit.task_id(n)) for n in (1, 2)]

    assert await one.raise_floor()
    await one.shows(1, 2)

    assert [await one.log.read_task(kit.task_id(n)) for n in (1, 2)] == live
    assert (
        len((await one.log.load_queued_tasks(LoadQueued(1, 0, 9, kit.LANE))).records)
        == 1
    )
    assert len((await one.log.load_live_tasks(LoadLive(1, 0, 9))).records) == 1


async def test_a_task_taken_over_by_a_later_epoch_is_forgotten_with_younger_ones(
    benches: list[Bench],
) -> None:
    """It was submitted again before other forgotten tasks, so it is not carried."""
    one, _ = benches
    await one.add(kit.submitted(1))
    again = kit.entries([kit.submitted(1), kit.finished(1)], stream=kit.OTHER)
    await one.take([replace(entry, hlc=entry.hlc + 1) for entry in again])
    await one.add(kit.submitted(2), kit.submitted(3), kit.finished(3), kit.finished(2))

    planned = await one.log.plan_compaction(PlanFloor(AGES, MANY))
    assert (planned.carried, planned.purged_count) == ((), 3)
    assert await one.raise_floor()
    await one.shows()


async def test_a_recent_end_holds_the_floor_where_it_is(benches: list[Bench]) -> None:
    """Later submissions wait, too: the floor is a cut through time."""
    one, _ = benches
    await one.add(kit.submitted(1), kit.finished(1), kit.submitted(2))
    await one.add(kit.submitted(3), kit.finished(3), kit.finished(2))

    # The last facts of the three are entries 2, 6 and 5.
    assert await one.raise_floor(before_hlc=1006)
    await one.shows(2, 3)


async def test_a_task_is_forgotten_with_its_last_fact(
    benches: list[Bench],
) -> None:
    """The log would otherwise contain facts of forgotten tasks."""
    one, _ = benches
    await one.add(kit.submitted(1), kit.submitted(2), kit.finished(1))
    await one.raise_floor(before_hlc=1002)
    await one.shows(1, 2)

    await one.add(kit.finished(2))
    await one.raise_floor()
    await one.shows()


async def test_above_a_maximum_count_the_oldest_tasks_are_forgotten(
    benches: list[Bench],
) -> None:
    """Whatever their age: a busy week must not fill the disk."""
    one, _ = benches
    for n in range(1, 5):
        await one.add(kit.submitted(n), kit.finished(n))
    await one.add(kit.submitted(5))

    assert await one.raise_floor(before_hlc=0, tasks_max=1)

    await one.shows(4, 5)


async def test_numbers_are_not_reused(benches: list[Bench]) -> None:
    """Neither the sequence of tasks nor the clock goes back when all is gone."""
    one, _ = benches
    await one.add(kit.submitted(41), kit.finished(41, stdout=b"a"))
    await one.raise_floor()
    await one.shows()

    await one.reopen()

    assert one.saved.sequence == 41
    assert one.saved.hlc == 1000 + one.seq
    assert one.saved.floor.ends[0] == (kit.STREAM, 2)
    assert one.saved.vector == ((kit.STREAM, one.seq),)


async def test_an_absent_node_restores_no_forgotten_task(benches: list[Bench]) -> None:
    """Its own old entries are ignored, and its rows go when it learns the floor."""
    one, two = benches
    facts: list[Fact] = [kit.submitted(1), kit.submitted(2), kit.finished(1)]
    await one.add(*facts)
    await two.take(kit.entries(facts))
    unseen = kit.entries([kit.submitted(3)], stream=kit.OTHER)
    await two.take(unseen)
    await one.add(kit.finished(2))
    await one.raise_floor()
    await one.shows()

    assert await two.join(one.log) is not None
    await two.shows(3)
    await one.take([*kit.entries(facts), *unseen])

    await one.shows(3)
    assert await two.log.read_vector() == await one.log.read_vector()


async def test_a_late_result_of_a_forgotten_task_shows_nothing(
    benches: list[Bench],
) -> None:
    """It is an entry without a task, also over a restart, until the next floor."""
    one, _ = benches
    await one.add(kit.submitted(1), kit.finished(1))
    await one.raise_floor()
    await one.shows()

    await one.add(kit.finished(1, 2, stdout=b"late"))
    await one.reopen()
    assert await one.log.read_task(kit.task_id(1)) is None

    await one.add(kit.submitted(2), kit.finished(2))
    await one.raise_floor()
    await one.shows()
    await one.add(kit.submitted(1, command="anew"))
    record = await one.log.read_task(kit.task_id(1))
    assert record is not None
    assert (record.state, record.attempts) == (TaskState.QUEUED, ())


async def test_a_result_of_a_task_that_is_elsewhere_is_carried(
    benches: list[Bench],
) -> None:
    """No entry of the stream in which its attempt was assigned is here yet."""
    one, _ = benches
    result = result_from_elsewhere(2)
    await one.add(result, kit.submitted(1), kit.finished(1))

    assert await one.raise_floor(before_hlc=0, tasks_max=0)
    assert await one.raise_floor(before_hlc=0, tasks_max=0) is False
    await one.shows()
    await one.take(kit.entries([kit.submitted(2)], stream=kit.OTHER))

    record = await one.log.read_task(kit.task_id(2))
    assert record is not None
    assert [attempt.outcome for attempt in record.attempts] == [result.outcome]


async def test_a_result_is_carried_until_its_assignment_is_here(
    benches: list[Bench],
) -> None:
    """The dispatcher knows only earlier entries of the stream that assigned it."""
    one, _ = benches
    await one.take(kit.entries([kit.submitted(3)], stream=kit.OTHER))
    result = result_from_elsewhere(2)
    await one.add(result, kit.submitted(1), kit.finished(1))

    assert await one.raise_floor(before_hlc=0, tasks_max=0)
    await one.shows(3)
    await one.take(kit.entries([kit.submitted(2)], stream=kit.OTHER, after=1))

    record = await one.log.read_task(kit.task_id(2))
    assert record is not None
    assert [attempt.outcome for attempt in record.attempts] == [result.outcome]


async def test_results_of_tasks_that_are_elsewhere_are_carried_in_steps(
    benches: list[Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step rewrites no more than one commit should write, and each result once."""
    one, _ = benches
    monkeypatch.setattr("octaskly.store.reading.compaction_plan.CARRIED_MAX", 2)
    monkeypatch.setattr("tests.simulation.store.plan.STEP_TASKS", 2)
    numbers = (2, 3, 4, 5, 6)
    results = map(result_from_elsewhere, numbers)
    await one.add(*results, kit.submitted(1), kit.finished(1))

    steps = [await one.carry_step(before_hlc=0, tasks_max=0) for _ in range(3)]

    assert steps == [2, 2, 1]
    await one.shows()
    await one.take(kit.entries(map(kit.submitted, numbers), stream=kit.OTHER))
    page = await one.log.read_task_page(TaskQuery(state=TaskState.COMPLETED))
    assert [record.id for record in page.records] == [*map(kit.task_id, numbers)]


async def test_results_are_not_carried_for_ever(benches: list[Bench]) -> None:
    """The disk with the task may be lost for good, unless it is still awaited."""
    one, _ = benches
    ended_ms = HLC_EPOCH_MS + 1000
    await one.add(
        result_from_elsewhere(2, ended_ms=ended_ms), kit.submitted(1), kit.finished(1)
    )

    later = hlc_of(ended_ms + 1)
    ask = PlanFloor(later, 0, is_log_complete=False)
    carried = (await one.log.plan_compaction(ask)).carried
    assert [record.id for record in carried] == [kit.task_id(2)]
    assert await one.carry_step(before_hlc=later, tasks_max=0) == 0
    await one.take(kit.entries([kit.submitted(2)], stream=kit.OTHER))

    record = await one.log.read_task(kit.task_id(2))
    assert record is not None
    assert record.attempts == ()


async def test_a_snapshot_brings_everything_and_then_the_tail(
    benches: list[Bench],
) -> None:
    """The receiver continues from the vector that was read before the first row."""
    one, two = benches
    await one.add(kit.submitted(1), kit.finished(1))
    await one.add(*(kit.submitted(n) for n in range(2, 5)), kit.assigned(4))
    await one.add(kit.finished(2, stdout=b"kept"), kit.cancelled(3))
    await one.raise_floor(before_hlc=1003)
    await one.shows(2, 3, 4)

    head = await two.join(one.log)
    await one.add(kit.submitted(5), kit.finished(4))
    await two.pull(one.log)

    assert head is not None
    await two.shows(2, 3, 4, 5)
    for n in (1, 2, 3, 4, 5):
        task = kit.task_id(n)
        assert await two.log.read_task(task) == await one.log.read_task(task)
    assert await two.log.read_vector() == await one.log.read_vector()
    assert (await two.log.read_stats()).counts == (await one.log.read_stats()).counts


ARRAY = kit.submitted(9, options=TaskOptions(array=ArraySpec(count=3)))


def run_of_array(number: int) -> list[Fact]:
    """Return the facts of a member that ran."""
    member = member_id(ARRAY.task, number)
    facts = (kit.assigned(9), kit.finished(9, stdout=b"kept"))
    return [replace(fact, task=member) for fact in facts]


async def test_a_snapshot_includes_the_members_of_arrays(benches: list[Bench]) -> None:
    """Members with facts only, after all tasks."""
    one, two = benches
    await one.add(kit.submitted(1), kit.finished(1), ARRAY, *run_of_array(0))
    await one.add(*run_of_array(2)[:1], kit.submitted(10))
    await one.raise_floor(before_hlc=1003)
    await one.shows(9, 10)

    assert await two.join(one.log) is not None

    await two.shows(9, 10)
    ids = [ARRAY.task, *(member_id(ARRAY.task, n) for n in range(3))]
    for task in ids:
        assert await two.log.read_task(task) == await one.log.read_task(task)
    assert (await two.log.read_stats()).counts == (await one.log.read_stats()).counts


async def test_an_array_is_carried_and_forgotten_with_its_members(
    benches: list[Bench],
) -> None:
    """Until it has ended it keeps its state, above the floor."""
    one, _ = benches
    await one.add(ARRAY, *run_of_array(0), kit.submitted(10), kit.finished(10))
    ids = [ARRAY.task, *(member_id(ARRAY.task, n) for n in range(2))]
    before = [await one.log.read_task(task) for task in ids]

    planned = await one.log.plan_compaction(PlanFloor(AGES, MANY))
    assert [record.id for record in planned.carried] == [ids[1], ids[0]]
    assert await one.raise_floor()
    await one.shows(9)

    assert [await one.log.read_task(task) for task in ids] == before
    await one.add(*run_of_array(1), *run_of_array(2))
    planned = await one.log.plan_compaction(PlanFloor(AGES, MANY))
    assert (planned.carried, planned.purged_count) == ((), 4)
    assert await one.raise_floor()
    await one.shows()
    assert await one.log.read_task(ids[1]) is None


async def test_a_snapshot_has_the_state_of_its_start(benches: list[Bench]) -> None:
    """Whatever is written, purged or retired while it is sent."""
    one, two = benches
    await one.add(kit.submitted(1), kit.finished(1), kit.submitted(2), kit.submitted(3))
    await one.raise_floor(before_hlc=1003)
    await one.shows(2, 3)
    vector = await one.log.read_vector()
    before = [await one.log.read_task(kit.task_id(n)) for n in (2, 3)]
    first = await rows_of(one.log, {})
    assert first is not None
    assert first.head is not None

    await one.add(kit.finished(2), kit.finished(3), kit.submitted(4))
    await one.raise_floor()
    await one.shows(4)
    two.snapshots += 1
    parts = [first]
    await two.stage_part(first)
    while parts[-1].has_more:
        part = await rows_of(one.log, {}, parts[-1].cursor)
        assert part is not None
        assert (part.head, part.after) == (None, parts[-1].cursor)
        parts.append(part)
        await two.stage_part(part)
    await two.merge(parts)

    await two.shows(2, 3)
    assert await two.log.read_vector() == first.head.vector == vector
    assert [await two.log.read_task(kit.task_id(n)) for n in (2, 3)] == before


async def test_a_snapshot_that_has_ended_is_followed_by_another(
    benches: list[Bench],
) -> None:
    """Its transaction ended with the last part, or with the process."""
    (one, _) = benches
    await one.add(kit.submitted(1), kit.finished(1))
    first = await rows_of(one.log, {}, SnapshotCursor(0))
    assert first is not None
    assert not first.has_more

    again = await rows_of(one.log, {}, first.cursor)

    assert again is not None
    assert again.head == first.head
    assert again.cursor.snapshot_id > first.cursor.snapshot_id


async def _parts_of_different_logs(one: Bench, two: Bench) -> list[Snapshot]:
    """Return all parts of a snapshot of `one`, which retires a stream of `two`."""
    await _retire_other(one)
    await one.add(kit.submitted(3), kit.finished(3, stdout=b"out"), ARRAY)
    await one.add(*run_of_array(0))
    await two.take(kit.entries([kit.submitted(1)], stream=kit.OTHER))
    parts: list[Snapshot] = []
    while not parts or parts[-1].has_more:
        part = await rows_of(one.log, {}, parts[-1].cursor if parts else None)
        assert part is not None
        parts.append(part)
    return parts


async def _assert_has_nothing_of_it(two: Bench) -> None:
    assert await two.log.read_vector() == ((kit.OTHER, 1),)
    await two.shows(1)


async def _assert_has_all_of_it(two: Bench, one: Bench) -> None:
    assert dict(await two.log.read_vector()) == dict(await one.log.read_vector())
    await two.shows(3, 9)
    for ref in (kit.task_id(3), kit.task_id(9), member_id(kit.task_id(9), 0)):
        assert await two.log.read_task(ref) == await one.log.read_task(ref)


@pytest.mark.parametrize("is_reopened", [False, True])
async def test_an_incomplete_snapshot_has_no_effect(
    benches: list[Bench], *, is_reopened: bool
) -> None:
    """Wherever it is cut, it starts again: its peer sends another, or after a start."""
    one, two = benches
    parts = await _parts_of_different_logs(one, two)

    for most in range(1, len(parts)):
        await two.stage_parts(parts[:most])
        if is_reopened:
            await two.reopen()
        await _assert_has_nothing_of_it(two)
    await two.stage_parts(parts)
    await two.merge(parts)

    await _assert_has_all_of_it(two, one)


async def test_a_disk_that_loses_the_commit_of_a_part_has_nothing_of_a_snapshot(
    benches: list[Bench],
) -> None:
    """It starts again, even if the lost part was the last one."""
    one, two = benches
    parts = await _parts_of_different_logs(one, two)

    for lost, part in enumerate(parts):
        await two.stage_parts(parts[:lost])
        await two.lose_commit(two.stage_part(part))
        await _assert_has_nothing_of_it(two)
    await two.stage_parts(parts)
    await two.merge(parts)

    await _assert_has_all_of_it(two, one)


@pytest.mark.parametrize("is_commit_lost", [False, True])
@pytest.mark.parametrize("left", [3, 2, 1])
async def test_a_complete_snapshot_is_merged_after_a_crash(
    benches: list[Bench], left: int, *, is_commit_lost: bool
) -> None:
    """Its sender may never return, so the node goes on before it starts."""
    one, two = benches
    parts = await _parts_of_different_logs(one, two)
    merged = len(parts) - left
    await two.stage_parts(parts)
    await two.merge(parts, merged)
    assert await two.log.read_vector() == ((kit.OTHER, 1),)

    if is_commit_lost:
        await two.lose_commit(two.merge(parts, 1, merged=merged))
    else:
        await two.reopen()

    assert dict(two.saved.vector) == dict(await one.log.read_vector())
    assert kit.OTHER in two.saved.retired
    await _assert_has_all_of_it(two, one)


async def test_while_rows_are_merged_no_floor_and_no_snapshot_is_read(
    benches: list[Bench],
) -> None:
    """The rows exceed the vector by then."""
    one, two = benches
    await one.add(kit.submitted(1), kit.finished(1), kit.submitted(2), kit.submitted(3))
    await one.raise_floor(before_hlc=1003)
    await one.shows(2, 3)
    parts = await two.stage(one.log)
    await two.merge(parts, 1)

    assert await two.log.plan_compaction(PlanFloor(AGES, MANY)) == FloorPlanned(
        None, has_more=True
    )
    if isinstance(two.log, Store):
        reply = asyncio.ensure_future(rows_of(two.log, {}, SnapshotCursor(0)))
        # A later answer, which needs no row.
        assert (await kit.entries_of(two.log, {})).entries == ()
        assert not reply.done()
        await two.merge(parts, merged=1)
        part = await reply
        assert part is not None
        assert part.head is not None
        assert part.head.vector == await one.log.read_vector()


async def test_entries_from_below_the_horizon_are_carried_in_their_order(
    benches: list[Bench],
) -> None:
    """An absent node accepted the task, and the floor rose twice during its merge."""
    one, _ = benches
    await one.add(kit.submitted(1), kit.finished(1))
    late = kit.entries([kit.submitted(2), kit.submitted(3)], stream=kit.OTHER)
    late = [replace(entry, hlc=entry.hlc - 500) for entry in late]
    await one.take(late[:1])
    await one.add(
        Floor(1002, (StreamFloor(kit.STREAM, 2, dict(kit.EPOCHS)[kit.STREAM]),))
    )
    await one.shows(2)
    await one.take(late[1:])

    assert await one.raise_floor(before_hlc=late[1].hlc + 1)

    await one.shows(2, 3)
    assert await one.raise_floor()
    await one.shows(2, 3)


async def test_a_floor_may_forget_nothing(benches: list[Bench]) -> None:
    """It ends a series of rewritten facts, and is an entry like any other."""
    one, two = benches
    await one.add(kit.submitted(1), kit.finished(1), NO_FLOOR, kit.submitted(2))
    await two.pull(one.log)

    assert await two.log.read_vector() == await one.log.read_vector()
    assert (await two.log.plan_compaction(PlanFloor(0, MANY))).floor is None
    for bench in benches:
        await bench.reopen()
        await bench.shows(1, 2)


async def test_a_void_row_adds_its_facts_to_a_live_task(benches: list[Bench]) -> None:
    """Both halves of a long split ran it, and one of them ended it long ago."""
    one, two = benches
    await one.add(kit.submitted(1), kit.finished(1))
    await two.pull(one.log)
    await one.add(kit.finished(1, 2))
    floor = Floor(4000, (StreamFloor(kit.STREAM, 2, dict(kit.EPOCHS)[kit.STREAM]),))
    later = kit.entries([kit.finished(1, 3), floor], stream=kit.OTHER)
    await two.take([replace(entry, hlc=entry.hlc + 4000) for entry in later])
    part = await rows_of(one.log, {}, SnapshotCursor(0, 0))
    assert part is not None

    head = SnapshotHead(vector=(), epochs=kit.EPOCHS, floor=NO_FLOOR, hlc=1003)
    part = replace(part, head=head)
    await two.stage_part(part)
    await two.merge([part])

    record = await two.log.read_task(kit.task_id(1))
    assert record is not None
    assert [attempt.id.n for attempt in record.attempts] == [1, 2, 3]


async def test_a_node_that_joined_by_snapshot_sends_a_snapshot(
    benches: list[Bench],
) -> None:
    """It lacks the entries, and never sends a stream with a hole."""
    one, two = benches
    await one.add(kit.submitted(1), kit.finished(1), kit.submitted(2))
    await one.raise_floor(before_hlc=1003)
    await one.shows(2)
    await two.join(one.log)
    held = dict(await two.log.read_vector())

    assert await rows_of(two.log, {}) is not None
    part = await rows_of(two.log, {}, bytes_max=1 << 20)
    assert part is not None
    assert [row.record.id for row in part.rows] == [kit.task_id(2)]
    assert await rows_of(two.log, held) is None


async def test_a_snapshot_has_the_facts_whose_task_is_unknown(
    benches: list[Bench],
) -> None:
    """Otherwise its rows would be ahead of what the receiver can say that it holds."""
    one, two = benches
    await one.add(kit.submitted(1), kit.finished(1), kit.submitted(2))
    await one.raise_floor(before_hlc=1003)
    await one.shows(2)
    early: list[Fact] = [kit.assigned(8), kit.assigned(9), kit.finished(9)]
    await one.take(kit.entries([kit.submitted(3), *early], stream=kit.OTHER))

    await two.join(one.log)

    assert await two.log.read_vector() == await one.log.read_vector()
    assert await two.log.read_task(kit.task_id(9)) is None
    await two.take(kit.entries([kit.submitted(9)], after=4, stream=kit.OTHER))
    await two.shows(2, 3, 9)
    record = await two.log.read_task(kit.task_id(9))
    assert record is not None
    assert record.state is TaskState.COMPLETED


async def test_a_floor_may_name_unknown_streams(benches: list[Bench]) -> None:
    """Their entries are void, so they count as held."""
    one, _ = benches
    gone = StreamId(5)
    floor = Floor(999, (StreamFloor(gone, 7, Epoch(1, NodeId("c" * 16))),))

    await one.add(floor, kit.submitted(1))

    assert dict(await one.log.read_vector()) == {gone: 7, kit.STREAM: 2}
    await one.take([Entry(gone, 8, 998, Submitted(kit.submitted(2).spec))])
    await one.shows(1, 2)


DAY_MS = 86_400_000


def at(clock: kit.HandClock, *facts: Fact, after: int, late_ms: int = 0) -> list[Entry]:
    """Return entries that a node writes now, whose clock is so late."""
    hlc = hlc_of(clock.wall_ms - late_ms)
    return [replace(e, hlc=hlc + 1000 + e.seq) for e in kit.entries(facts, after=after)]


async def forgets(bench: Bench, age_ms: int = DAY_MS) -> bool:
    """Return True if the store plans to forget what is as old as that."""
    before_hlc = hlc_of(bench.clock.wall_ms - age_ms)
    planned = await bench.log.plan_compaction(PlanFloor(before_hlc, MANY))
    return planned.purged_count > 0


ENDED = (kit.submitted(1), kit.assigned(1), kit.finished(1))


@pytest.mark.parametrize("late_days", [0, 30, -30])
async def test_age_counts_from_storing_whatever_the_clock_of_the_writer(
    benches: list[Bench], late_days: int
) -> None:
    """The dispatcher of the task was a board without a clock battery."""
    one, _ = benches
    await one.reopen(kit.WALL_MS)
    await one.take(at(one.clock, *ENDED, after=0, late_ms=late_days * DAY_MS))

    one.clock.pass_time(DAY_MS - 1)
    is_early = await forgets(one)
    one.clock.pass_time(2)

    assert not is_early
    if late_days >= 0:  # A timestamp in the future is waited for.
        assert await forgets(one)


async def test_a_late_end_of_a_member_counts_for_its_array(
    benches: list[Bench],
) -> None:
    """Members are forgotten with their arrays."""
    one, _ = benches
    await one.reopen(kit.WALL_MS)
    array = kit.submitted(1, options=TaskOptions(array=ArraySpec(count=1, first=1)))
    end = replace(kit.finished(1), task=member_id(kit.task_id(1), 1))
    await one.take(at(one.clock, array, after=0, late_ms=30 * DAY_MS))
    one.clock.pass_time(2 * DAY_MS)
    await one.take(at(one.clock, end, after=1, late_ms=30 * DAY_MS))

    is_early = await forgets(one)
    one.clock.pass_time(DAY_MS + 1)

    assert not is_early
    assert await forgets(one)


@pytest.mark.parametrize("written", [(), (kit.submitted(2),)])
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_clock_that_is_set_ahead_makes_nothing_older(
    benches: list[Bench], is_restarted: bool, written: tuple[Fact, ...]
) -> None:
    """Not even after a restart, when only the disk knows of the step."""
    one, _ = benches
    await one.take(at(one.clock, *ENDED, after=0))
    one.clock.wall_ms += 30 * DAY_MS
    if written:
        await one.take(at(one.clock, *written, after=3))
    if is_restarted:
        await one.reopen()

    is_early = await forgets(one)
    one.clock.pass_time(DAY_MS + 1)

    assert not is_early
    assert await forgets(one)


async def test_a_snapshot_keeps_ages_whatever_the_clock_of_its_sender(
    benches: list[Bench],
) -> None:
    """A joiner neither starts the ages again nor takes tasks for older."""
    one, two = benches
    await two.reopen(kit.WALL_MS)
    await one.add(kit.submitted(9), kit.cancelled(9))
    await one.raise_floor()  # So another node needs a snapshot.
    await one.take(at(one.clock, *ENDED, after=one.seq))
    one.clock.pass_time(DAY_MS // 2)

    assert await two.join(one.log)

    assert not await forgets(two, DAY_MS // 2 + 1000)
    assert await forgets(two, DAY_MS // 2 - 1000)


async def _retire_other(bench: Bench) -> None:
    """Let the other stream have two entries, forget them, and retire it."""
    facts: list[Fact] = [kit.submitted(1), kit.finished(1)]
    await bench.take(kit.entries(facts, stream=kit.OTHER))
    assert await bench.raise_floor()
    await bench.shows()
    planned = await bench.log.plan_compaction(PlanFloor(AGES, MANY, kit.STREAM))
    assert planned.floor is not None
    assert planned.floor.retired == ((kit.OTHER, 2),)
    await bench.add(planned.floor)


async def test_a_stream_of_which_all_is_void_is_retired(benches: list[Bench]) -> None:
    """The vector leaves it out, also after a restart, and nothing else changes."""
    one, _ = benches

    await _retire_other(one)

    assert await one.log.read_vector() == ((kit.STREAM, one.seq),)
    assert not await one.raise_floor()
    await one.reopen()
    assert await one.log.read_vector() == ((kit.STREAM, one.seq),)
    assert one.saved.vector == ((kit.STREAM, one.seq),)
    assert [stream for stream, _ in one.saved.epochs] == [kit.STREAM]
    assert one.saved.floor.ends == ()
    pairs = [row[:2] for row in one.saved.retired.rows_after(0)]
    assert pairs == [(kit.OTHER, 2)]


async def test_a_late_entry_of_a_retired_stream_counts(benches: list[Bench]) -> None:
    """Its writer may go on in another half of a split, or its end was lost here."""
    one, _ = benches
    await _retire_other(one)
    void = kit.entries([kit.submitted(1), kit.finished(1)], stream=kit.OTHER)
    late = kit.entries([kit.submitted(2)], stream=kit.OTHER, after=2)
    one.saved.retired.add(kit.OTHER, 2)  # As the journal does.

    await one.take([*void, *late])

    await one.shows(2)
    assert (kit.OTHER, 3) in await one.log.read_vector()


async def test_a_floor_of_who_knows_less_brings_no_stream_back(
    benches: list[Bench],
) -> None:
    """It is below the end that is known here."""
    one, _ = benches
    await _retire_other(one)
    mark = StreamFloor(kit.OTHER, 1, kit.EPOCHS[1][1])

    await one.add(Floor(5, (mark,)))

    assert await one.log.read_vector() == ((kit.STREAM, one.seq),)


async def test_who_may_lack_the_end_of_a_retired_stream_gets_rows(
    benches: list[Bench],
) -> None:
    """Who holds it, or has retired it, gets entries."""
    one, _ = benches
    await _retire_other(one)
    rest = {kit.STREAM: one.seq}

    async def gets_rows(vector: dict[StreamId, int], known: int | None) -> bool:
        pull = ServePull(kit.PEER, tuple(vector.items()), retired_count=known)
        packed = await one.log.read_pull_reply(pull, 1 << 20)
        answer = kit.PicklePacker().unpack(packed.data, Struct)
        return isinstance(answer, Snapshot)

    assert await gets_rows(rest, 0)
    assert await gets_rows(rest | {kit.OTHER: 1}, 0)
    assert await gets_rows(rest | {kit.OTHER: 2}, None)
    assert not await gets_rows(rest | {kit.OTHER: 2}, 0)
    assert not await gets_rows(rest, 1)


async def test_a_snapshot_brings_the_retired_streams(benches: list[Bench]) -> None:
    """So what another node still holds of them does not come back."""
    one, two = benches
    await _retire_other(one)
    await one.add(kit.submitted(3))
    await two.take(kit.entries([kit.submitted(1)], stream=kit.OTHER))

    await two.join(one.log)

    await two.shows(3)
    assert await two.log.read_vector() == await one.log.read_vector()
    assert (await rows_of(one.log, {}, None, 1 << 20)) is not None
