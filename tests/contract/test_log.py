"""The contract of `ports.Log`, for every implementation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import astuple, replace

from octaskly.core.change_feed import StreamExtent
from octaskly.core.effects import LoadLive, LoadQueued, LoadTasks, LoadUnblocked, Save
from octaskly.core.events import SavedState
from octaskly.core.log import merge
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Fact,
    Finished,
    Floor,
    Notified,
    StreamFloor,
    Submitted,
    TaskCancelled,
    TaskFact,
    Unblocked,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import lane_key_of, member_id
from octaskly.core.model.hlc import HLC_EPOCH_MS, HLC_MAX, wall_ms_of
from octaskly.core.model.ids import Address, Epoch, NodeId, StreamId, TaskId
from octaskly.core.model.nodes import OperatorHold
from octaskly.core.model.task_options import (
    After,
    ArraySpec,
    BlobRef,
    End,
    InputTree,
    Requirements,
    TaskLimits,
    TaskOptions,
    is_stdin_freed,
)
from octaskly.core.model.tasks import (
    MEMBERS_LANE,
    AttemptState,
    EndReason,
    LaneKey,
    OutputFile,
    TaskState,
)
from octaskly.core.protocol.messages import Entries, Report
from octaskly.errors import StoreError
from octaskly.ports.store import NeededFiles, TaskListPage, TaskParts, TaskQuery
from octaskly.store import Store
from octaskly.store.reading import change_feed
from tests.contract import log_kit as kit
from tests.contract.disk_log import DiskLog
from tests.simulation.store.disk import Disk

OTHER_WORKER = NodeId("v" * 16)


class Bench:
    """A log under test, its reported commits, and a way to open it again."""

    def __init__(self, make: Callable[[Callable[[int], None]], Store]) -> None:
        self._make = make
        self._number = 0
        self._seqs: dict[StreamId, int] = {}
        self._changed = asyncio.Event()
        self.committed: list[int] = []
        self.log = make(self._hear)
        self.saved = SavedState()

    async def open(self) -> None:
        self.saved = await asyncio.to_thread(self.log.open)

    async def reopen(self) -> None:
        await self.log.close()
        self.log = self._make(self._hear)
        await self.open()

    def next(self) -> int:
        self._number += 1
        return self._number

    async def add(self, *facts: Fact, stream: StreamId = kit.STREAM) -> None:
        """Append facts to the end of a stream and wait until they are durable."""
        seq = self._seqs.get(stream, 0)
        self._seqs[stream] = seq + len(facts)
        number = self.next()
        found = kit.entries(facts, stream=stream, after=seq)
        self.log.append_entries(number, found, kit.EPOCHS)
        await self.durable(number)

    async def durable(self, number: int) -> None:
        async with asyncio.timeout(60):
            while not self.committed or self.committed[-1] < number:
                self._changed.clear()
                await self._changed.wait()

    def _hear(self, number: int) -> None:
        self.committed.append(number)
        self._changed.set()


for_the_core = pytest.mark.parametrize(
    "bench", ["store", "simulated disk"], indirect=True
)
"""The core asks for this, so the disk of the simulation does it, too."""


@pytest.fixture(params=["store"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    disk, clock = Disk(), kit.HandClock(HLC_EPOCH_MS)

    def make(hear: Callable[[int], None]) -> Store:
        if request.param == "simulated disk":
            return cast("Store", DiskLog(disk, hear, clock))
        path = tmp_path / "state" / "octaskly.db"
        return Store(path, kit.PicklePacker(), hear, clock)

    bench = Bench(make)
    await bench.open()
    yield bench
    await bench.log.close()


@for_the_core
async def test_a_new_log_is_empty(bench: Bench) -> None:
    """The first start needs no set-up."""
    assert bench.saved == SavedState()
    assert await bench.log.read_vector() == ()
    assert await bench.log.read_task_page(TaskQuery()) == TaskListPage((), 0)


@pytest.mark.parametrize(
    "envelope",
    [
        {"timeout_s": 9, "inputs": ("in put",), "outputs": ("ö", "b")},
        {"timeout_s": None, "inputs": ("in put",)},
        {"timeout_s": None},
    ],
)
async def test_a_submitted_task_can_be_read_once_it_is_durable(
    bench: Bench, envelope: dict[str, Any]
) -> None:
    """Every field of the envelope comes back."""
    fact = kit.submitted(1, command="echo ü", **envelope)

    await bench.add(fact)

    record = merge.apply_fact(None, fact)
    assert await bench.log.read_task(fact.task) == record
    assert await bench.log.read_tasks_by_name([fact.task, kit.task_id(2)]) == {
        fact.task: (record,)
    }
    assert await bench.log.read_task(kit.task_id(2)) is None


async def test_the_requirements_of_a_task_are_restored(bench: Bench) -> None:
    """Runs and views get all of them; lists and lookups omit what may be large."""
    options = TaskOptions(
        name="ü",
        labels=(("a", "b"),),
        env=(("A", "1"),),
        stdin=bytes(range(256)),
        is_scratch=True,
        requires=Requirements(cpus=2, labels=(("disk", "ssd"),)),
        limits=TaskLimits(processes=9),
    )
    fact = kit.submitted(1, options=options)

    await bench.add(fact)

    record = merge.apply_fact(None, fact)
    assert await bench.log.read_task(fact.task) == record
    front = await bench.log.load_queued_tasks(LoadQueued(1, -1, 9))
    lane = lane_key_of(fact.spec)
    assert front.other_lanes == ((lane, options.requires),)
    assert (await bench.log.load_queued_tasks(LoadQueued(1, -1, 9, lane))).records == (
        record,
    )
    (listed,) = (await bench.log.read_task_page(TaskQuery())).records
    assert listed.spec is not None
    assert listed.spec.options == replace(options, stdin=b"", env=())
    assert await bench.log.read_task(fact.task, TaskParts.SPEC) == record
    brief = await bench.log.read_task(fact.task, TaskParts.BRIEF)
    assert brief is not None
    assert brief.spec == listed.spec


def later(number: int, *parents: int, end: End = "success") -> Submitted:
    """A task with a parent."""
    after = After(tasks=tuple(kit.task_id(n) for n in parents), end=end)
    return kit.submitted(number, options=TaskOptions(after=after))


async def ripe(log: Store) -> tuple[list[tuple[TaskId, TaskId | None]], bool]:
    """Return the ready children, with failed parents, and whether others wait."""
    found = await log.load_unblocked_tasks(LoadUnblocked(7, 100))
    assert found.query_number == 7
    return [
        (item.record.id, item.failed_dependency) for item in found.tasks
    ], found.has_more


async def test_a_child_is_outside_the_queue_until_all_parents_ended(
    bench: Bench,
) -> None:
    """It is reported only once no parent is open."""
    await bench.add(kit.submitted(1), kit.submitted(2), later(3, 1, 2))
    await bench.add(kit.finished(1))
    assert await ripe(bench.log) == ([], True)

    await bench.add(kit.finished(2))

    assert await ripe(bench.log) == ([(kit.task_id(3), None)], True)
    assert (
        await bench.log.load_queued_tasks(LoadQueued(1, -1, 9, kit.LANE))
    ).records == ()
    await bench.add(Unblocked(kit.task_id(3)))
    (queued,) = (
        await bench.log.load_queued_tasks(LoadQueued(1, -1, 9, kit.LANE))
    ).records
    assert (queued.id, queued.is_unblocked) == (kit.task_id(3), True)
    assert await ripe(bench.log) == ([], False)


@pytest.mark.parametrize(
    ("end", "state", "is_broken"),
    [
        ("success", AttemptState.OK, False),
        ("success", AttemptState.FAILED, True),
        ("failure", AttemptState.OK, True),
        ("failure", AttemptState.FAILED, False),
        ("any", AttemptState.OK, False),
        ("any", AttemptState.FAILED, False),
    ],
)
@pytest.mark.parametrize("is_ended", [True, False])
async def test_the_end_of_a_parent_decides(
    bench: Bench, end: End, state: AttemptState, is_broken: bool, is_ended: bool
) -> None:
    """Before or after its child arrived."""
    facts: list[Fact] = [kit.finished(1, state=state), later(2, 1, end=end)]

    await bench.add(kit.submitted(1), *(facts if is_ended else facts[::-1]))

    broken = kit.task_id(1) if is_broken else None
    assert await ripe(bench.log) == ([(kit.task_id(2), broken)], True)


async def test_one_failed_parent_is_enough(bench: Bench) -> None:
    """The other parent may take hours."""
    await bench.add(kit.submitted(1), kit.submitted(2), later(3, 1, 2))

    await bench.add(kit.cancelled(2))

    assert await ripe(bench.log) == ([(kit.task_id(3), kit.task_id(2))], True)


async def test_a_cancelled_child_does_not_wait(bench: Bench) -> None:
    """Its parent's end does not matter."""
    await bench.add(kit.submitted(1), later(2, 1), kit.cancelled(2), kit.finished(1))

    assert await ripe(bench.log) == ([], False)


async def test_an_unknown_parent_is_awaited_for_a_while(bench: Bench) -> None:
    """Its submission may come from another node, or it was forgotten."""
    await bench.add(later(2, 1))
    assert await ripe(bench.log) == ([], True)

    early = await bench.log.load_unblocked_tasks(LoadUnblocked(1, 9, before_hlc=2))
    found = await bench.log.load_unblocked_tasks(LoadUnblocked(2, 9, before_hlc=3))

    assert early.tasks == ()
    assert [item.record.id for item in found.tasks] == [kit.task_id(2)]


async def test_waiting_children_survive_a_restart(bench: Bench) -> None:
    """The parent ends after the restart."""
    await bench.add(kit.submitted(1), later(2, 1))
    await bench.reopen()

    await bench.add(kit.finished(1))

    assert await ripe(bench.log) == ([(kit.task_id(2), None)], True)


async def test_a_finished_task_comes_back_with_its_exact_output(bench: Bench) -> None:
    """Bytes are unchanged, and only `task` returns them."""
    end = kit.finished(
        1,
        stdout=bytes(range(256)),
        stderr=b"\0",
        stdout_bytes=5000,
        stderr_bytes=1,
        outputs=(OutputFile("a", 3), OutputFile("b", None)),
        detail="as it was",
        cpu_ms=1750,
        memory_max_kb=20_480,
    )

    await bench.add(kit.submitted(1), kit.assigned(1), end)

    record = await bench.log.read_task(kit.task_id(1))
    assert record is not None
    assert record.state is TaskState.COMPLETED
    assert record.attempts[0].outcome == end.outcome
    brief = await bench.log.read_task(kit.task_id(1), TaskParts.BRIEF)
    assert brief is not None
    assert brief.attempts[0].outcome == replace(end.outcome, stdout=b"", stderr=b"")
    listed = (
        (await bench.log.read_task_page(TaskQuery())).records[0].attempts[0].outcome
    )
    assert listed is not None
    assert (listed.stdout, listed.stderr, listed.stdout_bytes) == (b"", b"", 5000)
    assert listed.outputs == end.outcome.outputs


@for_the_core
async def test_commits_are_reported_in_order(bench: Bench) -> None:
    """A number covers all before it, so some may be skipped, none repeated."""
    last = 0
    for number in range(1, 40):
        last = bench.next()
        bench.log.append_entries(
            last, kit.entries([kit.submitted(number)], after=number - 1), kit.EPOCHS
        )

    await bench.durable(last)

    assert bench.committed == sorted(set(bench.committed))
    assert bench.committed[-1] == last
    assert await bench.log.read_vector() == ((kit.STREAM, 39),)


@for_the_core
async def test_node_state_survives_a_restart(bench: Bench) -> None:
    """Unnamed fields keep their values."""
    epoch = Epoch(4, NodeId("a" * 16))
    hold = OperatorHold(is_drained=True)
    bench.log.save_node_state(
        Save(number=bench.next(), term=4, name="pi-ab12", hold=hold)
    )
    bench.log.save_node_state(Save(number=bench.next(), log_version=2))
    number = bench.next()
    bench.log.save_node_state(
        Save(number=number, epoch=epoch, stream=(kit.STREAM, epoch))
    )
    await bench.durable(number)

    await bench.reopen()

    assert (bench.saved.term, bench.saved.epoch) == (4, epoch)
    assert (bench.saved.name, bench.saved.hold) == ("pi-ab12", hold)
    assert bench.saved.log_version == 2


@for_the_core
async def test_log_position_survives_a_restart(bench: Bench) -> None:
    """The next start needs vector, clock and sequence."""
    await bench.add(kit.submitted(1), kit.submitted(12), kit.submitted(7))
    await bench.add(kit.assigned(1))
    await bench.add(kit.submitted(40), stream=kit.OTHER)

    await bench.reopen()

    assert bench.saved.vector == ((kit.STREAM, 4), (kit.OTHER, 1))
    assert bench.saved.hlc == 1004
    assert bench.saved.sequence == 40


async def test_an_id_derived_from_a_key_does_not_move_the_sequence(
    bench: Bench,
) -> None:
    """Such ids have 12 random digits; counting from there would never end."""
    await bench.add(
        kit.submitted(1, id="task-999999999999-00000000"),
        kit.submitted(2, id="mine"),
        kit.submitted(3),
    )

    await bench.reopen()

    assert bench.saved.sequence == 3
    assert await bench.log.names_with_sequence(999999999999) == (
        "task-999999999999-00000000",
    )


@for_the_core
async def test_known_entries_change_nothing(bench: Bench) -> None:
    """A peer may send entries again."""
    facts: list[Fact] = [kit.submitted(1), kit.assigned(1)]
    await bench.add(*facts)

    number = bench.next()
    again = kit.entries([*facts, kit.finished(1)])
    bench.log.append_entries(number, again, kit.EPOCHS)
    await bench.durable(number)

    assert await bench.log.read_vector() == ((kit.STREAM, 3),)
    assert (await bench.log.read_stats()).counts[TaskState.COMPLETED] == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_gap_is_refused(bench: Bench) -> None:
    """A hole in a stream would look filled for ever, so nothing of it is committed."""
    number = bench.next()
    entries = kit.entries([kit.submitted(1)], after=1)

    async def append_gap() -> None:
        bench.log.append_entries(number, entries, kit.EPOCHS)
        await bench.log.close()  # It commits what is queued.

    with pytest.raises((AssertionError, StoreError)):
        await append_gap()
    assert bench.committed == []


@for_the_core
async def test_facts_may_come_before_the_envelope(bench: Bench) -> None:
    """The task appears once its submission arrives, with all its facts."""
    await bench.add(kit.assigned(1), kit.finished(1, stdout=b"out"))
    await bench.add(kit.cancelled(1))
    assert await bench.log.read_task(kit.task_id(1)) is None
    assert (await bench.log.read_task_page(TaskQuery())).total == 0

    await bench.add(kit.submitted(1), stream=kit.OTHER)

    record = await bench.log.read_task(kit.task_id(1))
    assert record is not None
    assert (record.state, record.cancelled_by) == (TaskState.COMPLETED, "ada")
    assert record.attempts[0].outcome == kit.finished(1, stdout=b"out").outcome
    assert (await bench.log.read_task_page(TaskQuery())).total == 1


@for_the_core
async def test_the_queue_is_read_in_order_and_in_windows(bench: Bench) -> None:
    """`ord` alone decides; running and ended tasks are not in it."""
    await bench.add(*(kit.submitted(n) for n in (5, 3, 9, 1, 7)))
    await bench.add(kit.assigned(3), kit.cancelled(9))

    first = await bench.log.load_queued_tasks(LoadQueued(7, 0, 2, kit.LANE))
    second = await bench.log.load_queued_tasks(LoadQueued(8, 5, 2, kit.LANE))

    assert [r.id for r in first.records] == [kit.task_id(1), kit.task_id(5)]
    assert (first.term, first.has_more) == (7, True)
    assert [r.id for r in second.records] == [kit.task_id(7)]
    assert (second.term, second.has_more) == (8, False)


@for_the_core
async def test_tasks_with_one_position_in_the_queue_are_loaded_together(
    bench: Bench,
) -> None:
    """Two epochs may use the same `ord`; a read after it must lose no task."""
    await bench.add(*(kit.submitted(n, ord=min(n, 2)) for n in (1, 2, 3, 4)))

    window = await bench.log.load_queued_tasks(LoadQueued(1, 0, 2, kit.LANE))

    assert [r.id for r in window.records] == [kit.task_id(n) for n in (1, 2, 3, 4)]
    assert not window.has_more


@for_the_core
async def test_a_returned_task_is_loaded_with_its_attempts(bench: Bench) -> None:
    """The next attempt takes the next number."""
    back = kit.finished(1, state=AttemptState.RELEASED, reason=EndReason.RETURNED)
    await bench.add(kit.submitted(1), kit.assigned(1), back)

    (record,) = (
        await bench.log.load_queued_tasks(LoadQueued(1, 0, 10, kit.LANE))
    ).records

    assert [a.id for a in record.attempts] == [kit.attempt_id(1)]
    assert record.state is TaskState.QUEUED


@for_the_core
async def test_tasks_with_a_possibly_running_attempt_are_live(
    bench: Bench,
) -> None:
    """Also a cancelled one: its process may still run."""
    await bench.add(*(kit.submitted(n) for n in range(1, 6)))
    await bench.add(kit.assigned(2), kit.assigned(3), kit.assigned(4), kit.assigned(5))
    await bench.add(kit.finished(3), kit.cancelled(4), kit.cancelled(1))
    await bench.add(
        kit.finished(5, state=AttemptState.RELEASED, reason=EndReason.LOST),
        kit.assigned(5, 2),
    )

    await bench.add(
        kit.submitted(6),
        kit.assigned(6),
        kit.finished(6, 2, state=AttemptState.CANCELLED, reason=EndReason.CANCELLED),
    )

    first = await bench.log.load_live_tasks(LoadLive(7, 0, 3))
    assert first.next_key is not None
    rest = await bench.log.load_live_tasks(LoadLive(7, first.next_key, 3))

    assert [r.id for r in first.records] == [kit.task_id(n) for n in (2, 4, 5)]
    assert [r.id for r in rest.records] == [kit.task_id(6)]
    assert (first.term, rest.term, rest.next_key) == (7, 7, None)


@pytest.mark.parametrize("is_cancel_first", [False, True])
@pytest.mark.parametrize(
    ("success_term", "cancel_term", "state"),
    [
        (1, 2, TaskState.CANCELLED),
        (2, 2, TaskState.COMPLETED),
        (3, 2, TaskState.COMPLETED),
    ],
)
@for_the_core
async def test_the_later_epoch_has_the_last_word_on_a_cancel(
    bench: Bench,
    success_term: int,
    cancel_term: int,
    state: TaskState,
    is_cancel_first: bool,
) -> None:
    """Whichever fact arrives first, and after a new start of the store."""
    success = replace(kit.finished(1), decided_term=success_term)
    cancel = replace(kit.cancelled(1), term=cancel_term)
    facts: list[TaskFact] = [success, cancel]
    if is_cancel_first:
        facts.reverse()
    await bench.add(kit.submitted(1), kit.assigned(1))

    for fact in facts:
        await bench.add(fact)

    record = await bench.log.read_task(kit.task_id(1))
    assert record is not None
    assert (record.state, record.cancelled_by) == (state, kit.cancelled(1).by)
    (found,) = (await bench.log.read_task_page(TaskQuery())).records
    assert found.state is state


@for_the_core
async def test_tasks_are_read_by_id_in_several_answers(bench: Bench) -> None:
    """Each answer says which tasks it is about, of which some may not exist."""
    await bench.add(*(kit.submitted(n) for n in range(1, 4)), kit.cancelled(1))
    left = tuple(kit.task_id(n) for n in (1, 2, 3, 9))
    found = dict[TaskId, TaskRecord]()
    while left:
        answer = await bench.log.load_tasks(LoadTasks(7, left))
        assert answer.tasks
        assert answer.tasks == left[: len(answer.tasks)]
        left = left[len(answer.tasks) :]
        assert {record.id for record in answer.records} <= {*answer.tasks}
        found |= {record.id: record for record in answer.records}

    assert {*found} == {kit.task_id(n) for n in (1, 2, 3)}
    assert found[kit.task_id(1)].cancelled_by


ARRAY = kit.submitted(
    1, command="run {}", options=TaskOptions(array=ArraySpec(count=4, first=7))
)


def of_member(fact: Assigned | Finished, number: int) -> Assigned | Finished:
    """Return the record of a task as that of a member of the array."""
    return replace(fact, task=member_id(ARRAY.task, number))


def counts_of(record: TaskRecord | None) -> tuple[int, ...]:
    """Return the number of members in each state."""
    assert record is not None
    assert record.progress is not None
    how: tuple[int, ...] = astuple(record.progress)[:5]
    return how


def left_of(record: TaskRecord) -> list[int]:
    """Return the indexes of the members without facts."""
    assert record.progress is not None
    return [at for a, b in record.progress.remaining_runs for at in range(a, b + 1)]


@for_the_core
async def test_an_array_waits_as_one_task_and_runs_as_members(bench: Bench) -> None:
    """The answer lists the members that were not assigned."""
    await bench.add(ARRAY)
    (waiting,) = (
        await bench.log.load_queued_tasks(LoadQueued(1, 0, 9, kit.ARRAYS))
    ).records
    assert (counts_of(waiting), left_of(waiting)) == ((4, 0, 0, 0, 0), [0, 1, 2, 3])

    await bench.add(of_member(kit.assigned(1), 8))

    assert (
        await bench.log.load_queued_tasks(LoadQueued(1, 0, 9, kit.ARRAYS))
    ).records == ()
    array, member = (await bench.log.load_live_tasks(LoadLive(1, 0, 9))).records
    assert array.state is TaskState.RUNNING
    assert (counts_of(array), left_of(array)) == ((3, 1, 0, 0, 0), [0, 2, 3])
    assert member.spec is not None
    assert (member.id, member.spec.command) == (
        member_id(ARRAY.task, 8),
        "run 8",
    )


@for_the_core
async def test_a_returned_member_waits_beside_its_array(
    bench: Bench,
) -> None:
    """It was assigned, so the array does not assign it again."""
    back = kit.finished(1, state=AttemptState.RELEASED, reason=EndReason.LOST)
    await bench.add(ARRAY, of_member(kit.assigned(1), 7), of_member(back, 7))

    (array,) = (
        await bench.log.load_queued_tasks(LoadQueued(1, 0, 9, kit.ARRAYS))
    ).records
    (member,) = (await bench.log.load_queued_tasks(LoadQueued(1, 0, 9))).records

    assert (counts_of(array), left_of(array)) == ((4, 0, 0, 0, 0), [1, 2, 3])
    assert member.id == member_id(ARRAY.task, 7)
    assert len(member.attempts) == 1


@for_the_core
async def test_the_cancel_of_an_array_ends_its_waiting_members(bench: Bench) -> None:
    """Running members go on, and are not retried."""
    back = kit.finished(1, state=AttemptState.RELEASED, reason=EndReason.LOST)
    await bench.add(ARRAY, *(of_member(kit.assigned(1), n) for n in (7, 8, 9)))
    await bench.add(of_member(back, 7), TaskCancelled(ARRAY.task, "ada"))

    assert counts_of(await bench.log.read_task(ARRAY.task)) == (0, 2, 0, 0, 2)
    for lane in (MEMBERS_LANE, kit.ARRAYS):
        assert (
            await bench.log.load_queued_tasks(LoadQueued(1, 0, 9, lane))
        ).records == ()
    array, *members = (await bench.log.load_live_tasks(LoadLive(1, 0, 9))).records
    assert array.state is TaskState.RUNNING
    assert [m.id for m in members] == [member_id(ARRAY.task, n) for n in (8, 9)]
    await bench.add(of_member(back, 8), of_member(kit.finished(1), 9))
    ended = await bench.log.read_task(ARRAY.task)
    assert counts_of(ended) == (0, 0, 1, 0, 3)
    assert ended is not None
    assert ended.state is TaskState.CANCELLED
    lost = await bench.log.read_task(member_id(ARRAY.task, 8))
    assert lost is not None
    assert lost.state is TaskState.CANCELLED


async def test_members_ended_by_the_cancel_of_their_array_are_cancelled(
    bench: Bench,
) -> None:
    """Also in its results, if their last attempt had not decided them."""
    back = kit.finished(1, state=AttemptState.RELEASED, reason=EndReason.LOST)
    assigned = kit.assigned(1)
    await bench.add(ARRAY, of_member(assigned, 8), of_member(back, 8))
    assert await bench.log.read_ended_members(ARRAY.task, 0, 3, 9) == ()

    await bench.add(TaskCancelled(ARRAY.task, "ada"))

    ((position, member),) = await bench.log.read_ended_members(ARRAY.task, 0, 3, 9)
    assert (position, member.state) == (1, TaskState.CANCELLED)
    assert [attempt.id for attempt in member.attempts] == [assigned.attempt]


@for_the_core
async def test_members_and_arrays_are_read_by_their_ids(bench: Bench) -> None:
    """Members with facts only, live or not."""
    member = member_id(ARRAY.task, 7)
    await bench.add(ARRAY, TaskCancelled(member, "ada"))

    array, none = (
        await bench.log.load_tasks(LoadTasks(1, (ARRAY.task,))),
        await bench.log.load_tasks(LoadTasks(1, (member_id(ARRAY.task, 8),))),
    )
    (found,) = (await bench.log.load_tasks(LoadTasks(1, (member,)))).records

    assert [record.id for record in array.records] == [ARRAY.task]
    assert left_of(array.records[0]) == [1, 2, 3]
    assert none.records == ()
    assert found.state is TaskState.CANCELLED


@for_the_core
async def test_facts_of_members_may_precede_their_array(
    bench: Bench,
) -> None:
    """They count as soon as the array is here."""
    failed = kit.finished(1, state=AttemptState.FAILED, exit_code=1)
    await bench.add(of_member(kit.assigned(1), 8), of_member(failed, 8))
    assert await bench.log.read_task(member_id(ARRAY.task, 8)) is None

    await bench.add(ARRAY)

    array = await bench.log.read_task(ARRAY.task)
    assert counts_of(array) == (3, 0, 0, 1, 0)
    assert array is not None
    assert array.state is TaskState.RUNNING


@for_the_core
async def test_entries_are_restored_exactly(bench: Bench) -> None:
    """Outputs are stored separately, and peers must not notice."""
    facts: Sequence[Fact] = [
        kit.submitted(1),
        kit.assigned(1),
        kit.finished(1, stdout=b"a" * 3000, stderr=b"b"),
        kit.cancelled(1),
        kit.finished(1, stdout=b"other", stderr=b""),
        kit.finished(1, stdout=b"a" * 3000, stderr=b"b"),
    ]
    await bench.add(*facts)
    await bench.add(kit.submitted(2), stream=kit.OTHER)

    got = await kit.entries_of(bench.log, {})
    rest = await kit.entries_of(bench.log, {kit.STREAM: 5, kit.OTHER: 1})

    mine = kit.entries(facts)
    theirs = kit.entries([kit.submitted(2)], stream=kit.OTHER)
    vector = await bench.log.read_vector()
    assert got == Entries(
        tuple(mine + theirs), kit.EPOCHS, has_more=False, vector=vector
    )
    assert rest == replace(got, entries=tuple(mine[5:]), epochs=kit.EPOCHS[:1])


async def test_a_long_log_is_read_in_parts(bench: Bench) -> None:
    """Each part is bounded by bytes, and each entry comes once."""
    facts = [kit.finished(n, stdout=b"x" * 1000) for n in range(1, 21)]
    await bench.add(*facts[:10])
    await bench.add(*facts[10:], stream=kit.OTHER)

    got: list[Entry] = []
    vector: dict[StreamId, int] = {}
    parts, more = 0, True
    while more:
        some = await kit.entries_of(bench.log, vector, 4000)
        more = some.has_more
        assert 0 < len(some.entries) <= 5
        got += some.entries
        vector.update((entry.stream, entry.seq) for entry in some.entries)
        parts += 1

    assert got == kit.entries(facts[:10]) + kit.entries(facts[10:], stream=kit.OTHER)
    assert parts > 3


async def test_pages_are_oldest_first_with_exact_totals(bench: Bench) -> None:
    """Filters and offsets work together."""
    await bench.add(*(kit.submitted(n) for n in range(1, 31)))
    await bench.add(*(kit.assigned(n) for n in range(1, 11)))
    await bench.add(*(kit.assigned(n, node=OTHER_WORKER) for n in range(11, 16)))
    await bench.add(*(kit.finished(n) for n in range(1, 6)))

    async def numbers(**query: object) -> tuple[list[int], int | None]:
        page = await bench.log.read_task_page(TaskQuery(**query))  # type: ignore[arg-type]
        return [r.spec.ord for r in page.records if r.spec], page.total

    running, done = TaskState.RUNNING, TaskState.COMPLETED
    assert await numbers(limit=3) == ([1, 2, 3], 30)
    assert await numbers(limit=3, offset=28) == ([29, 30], 30)
    assert await numbers(limit=3, offset=30) == ([], 30)
    assert await numbers(state=running, limit=2, offset=4) == ([10, 11], 10)
    assert await numbers(state=running, limit=2, offset=9) == ([15], 10)
    assert await numbers(node=kit.WORKER, limit=2, offset=4) == ([5, 6], 10)
    assert await numbers(node=kit.WORKER, state=done) == ([1, 2, 3, 4, 5], 5)
    assert await numbers(node=OTHER_WORKER, state=running, limit=1) == ([11], 5)
    assert await numbers(node=OTHER_WORKER, state=done) == ([], 0)
    assert await numbers(node=NodeId("x" * 16)) == ([], 0)


async def test_recently_ended_tasks_come_newest_first(bench: Bench) -> None:
    """Running ones come with the time of their assignment."""
    await bench.add(*(kit.submitted(n) for n in range(1, 9)))
    await bench.add(*(kit.assigned(n) for n in range(1, 7)))
    ends = [(n, kit.finished(number)) for n, number in enumerate((3, 1, 2))]
    await bench.add(
        *(replace(e, outcome=replace(e.outcome, ended_ms=100 * n)) for n, e in ends)
    )

    lately = await bench.log.read_recent_attempts(100, 10)
    few = await bench.log.read_recent_attempts(0, 2)

    running = [kit.task_id(n) for n in (4, 5, 6)]
    assert [run.record.id for run in lately.running] == running
    assert all(run.assigned_ms for run in lately.running)
    assert [run.record.id for run in lately.ended] == [kit.task_id(2), kit.task_id(1)]
    assert (len(few.running), len(few.ended)) == (2, 2)
    assert (lately.is_truncated, few.is_truncated) == (False, True)


async def test_running_members_of_an_array_show_their_command(bench: Bench) -> None:
    """It is derived from the array."""
    options = TaskOptions(array=ArraySpec(count=3, first=7))
    await bench.add(kit.submitted(1, command="run {}", options=options))
    member = member_id(kit.task_id(1), 8)
    await bench.add(replace(kit.assigned(1), task=member))

    (run,) = (await bench.log.read_recent_attempts(0, 10)).running

    assert run.record.spec is not None
    assert (run.record.id, run.record.spec.command) == (member, "run 8")


async def test_a_short_id_is_resolved_if_it_is_unique(bench: Bench) -> None:
    """Two matches are enough to know that it is ambiguous."""
    await bench.add(
        kit.submitted(7),
        *(kit.submitted(8 + n, id=f"task-008-{n:08x}") for n in range(3)),
        kit.submitted(20, id="task-9"),
    )

    assert await bench.log.names_with_sequence(7) == (kit.task_id(7),)
    assert await bench.log.names_with_sequence(8) == (
        "task-008-00000000",
        "task-008-00000001",
    )
    assert await bench.log.names_with_sequence(9) == ()
    assert await bench.log.names_with_sequence(1 << 70) == ()


async def test_tasks_with_one_name_are_distinguished(bench: Bench) -> None:
    """Two halves of a split used it; the task accepted first keeps it."""
    late = kit.submitted(5, id="deploy~aaa", command="late")
    other = kit.submitted(6, id="deploy-2~aaa")
    first = kit.submitted(4, id="deploy~bbb", command="first")
    end = replace(kit.finished(1), task=late.task)
    await bench.add(late, end, other, first)

    records = {ref: await bench.log.read_task(ref) for ref in ("deploy", "deploy~2")}
    named = [
        (record.name, record.id, record.state) for record in records.values() if record
    ]
    assert named == [
        ("deploy", first.task, TaskState.QUEUED),
        ("deploy~2", late.task, TaskState.COMPLETED),
    ]
    for unknown in ("deploy~0", "deploy~1", "deploy~02", "deploy~3", "deploy~2~2", "~"):
        assert await bench.log.read_task(unknown) is None
    assert await bench.log.read_task(late.task) == records["deploy~2"]
    assert await bench.log.read_tasks_by_name(["deploy", "nothing"]) == {
        "deploy": tuple(records.values())
    }
    page = await bench.log.read_task_page(TaskQuery())
    names = [record.name for record in page.records]
    assert names == ["deploy~2", "deploy-2", "deploy"]


async def test_a_short_id_of_several_tasks_with_one_name_is_ambiguous(
    bench: Bench,
) -> None:
    """The hint lists the full ids."""
    await bench.add(
        kit.submitted(1, id="task-777777777777-00000000~b"),
        kit.submitted(2, id="task-777777777777-00000000~a"),
    )

    name = "task-777777777777-00000000"
    assert await bench.log.names_with_sequence(777777777777) == (name, f"{name}~2")


async def test_a_name_without_a_digest_comes_first(bench: Bench) -> None:
    """An older version accepted it, or a node invented it."""
    await bench.add(kit.submitted(1, id="deploy~aaa"), kit.submitted(2, id="deploy"))

    page = await bench.log.read_task_page(TaskQuery())
    assert [record.name for record in page.records] == ["deploy~2", "deploy"]
    found = [await bench.log.read_task(record.name) for record in page.records]
    assert tuple(found) == page.records


@for_the_core
async def test_spooled_results_survive_until_they_are_unspooled(bench: Bench) -> None:
    """They carry output and envelope, since a new dispatcher may know neither."""
    reports = [
        Report(
            task=kit.task_id(n),
            attempt=kit.attempt_id(n),
            outcome=kit.finished(n, stdout=b"\xff").outcome,
            spec=kit.submitted(n).spec,
        )
        for n in (1, 2, 3)
    ]
    bench.log.spool_results(reports)
    bench.log.unspool_results([(kit.task_id(2), kit.attempt_id(2))])
    bench.log.unspool_results([(kit.task_id(9), kit.attempt_id(9))])

    await bench.reopen()

    assert bench.saved.reports == (reports[0], reports[2])


async def test_peers_are_remembered_with_names_and_addresses(bench: Bench) -> None:
    """The newest record of a peer counts. Without addresses, only its name is kept."""
    address = Address("fe80::1%eth0", 7878)
    bench.log.save_peer(kit.WORKER, "old", [Address("10.0.0.1", 1)])
    bench.log.save_peer(kit.WORKER, "pi", [address, Address("10.0.0.2", 7878)])
    bench.log.save_peer(OTHER_WORKER, "nas", [])

    await bench.reopen()

    assert bench.saved.names == ((OTHER_WORKER, "nas"), (kit.WORKER, "pi"))
    assert {a.node: a.addresses for a in bench.saved.peers} == {
        kit.WORKER: (address, Address("10.0.0.2", 7878)),
    }


@for_the_core
async def test_closing_keeps_queued_writes(bench: Bench) -> None:
    """An orderly stop loses nothing, reported or not."""
    bench.log.append_entries(bench.next(), kit.entries([kit.submitted(1)]), kit.EPOCHS)

    await bench.reopen()

    assert bench.saved.vector == ((kit.STREAM, 1),)


async def test_readers_do_not_wait_for_one_another(bench: Bench) -> None:
    """Many reads at once all get their answer."""
    await bench.add(*(kit.submitted(n) for n in range(1, 101)))

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(place(bench.log, n)) for n in range(1, 101)]

    assert [one.result() for one in asked] == list(range(1, 101))


async def place(log: Store, number: int) -> int:
    record = await log.read_task(kit.task_id(number))
    assert record is not None
    assert record.spec is not None
    return record.spec.ord


def _at(stream: StreamId, seq: int, hlc: int, fact: Fact) -> Entry:
    return Entry(stream, seq, hlc, fact)


async def _add_two_streams(bench: Bench) -> None:
    """Write two concurrent epochs."""
    number = bench.next()
    found = [
        _at(kit.STREAM, 1, 100, kit.submitted(1)),
        _at(kit.STREAM, 2, 300, kit.assigned(1)),
        _at(kit.STREAM, 3, 500, kit.finished(1, stdout=b"x" * 3000)),
        _at(kit.OTHER, 1, 200, kit.submitted(2)),
        _at(kit.OTHER, 2, 400, kit.cancelled(2)),
    ]
    bench.log.append_entries(number, found, kit.EPOCHS)
    await bench.durable(number)


async def test_history_is_read_in_order_of_time(bench: Bench) -> None:
    """It comes in parts, with the current state of each task, without output."""
    await _add_two_streams(bench)

    got: list[tuple[int, TaskState]] = []
    vector: dict[StreamId, int] = {}
    has_more, parts = True, 0
    while has_more:
        part = await bench.log.read_feed_page(vector, 2)
        assert part.is_whole
        got += [(entry.hlc, record.state) for entry, record in part.items]
        vector.update(part.reached)
        has_more, parts = part.has_more, parts + 1

    first, second = TaskState.COMPLETED, TaskState.CANCELLED
    assert got == [
        (100, first),
        (200, second),
        (300, first),
        (400, second),
        (500, first),
    ]
    assert vector == {kit.STREAM: 3, kit.OTHER: 2}
    assert parts == 3
    assert (await bench.log.read_feed_page(vector, 2)).items == ()


async def test_parts_of_history_are_small(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with large tasks; outlines omit large fields."""
    monkeypatch.setattr(change_feed, "PART_BYTES_MAX", 5000)
    large = TaskOptions(env=(("A", "x" * 2000),), array=ArraySpec(count=3))
    command = "echo " + "x" * 2000
    await bench.add(
        *(kit.submitted(n, options=large, command=command) for n in range(1, 5))
    )

    first = await bench.log.read_feed_page({}, 100)
    rest = await bench.log.read_feed_page(dict(first.reached), 100)

    assert (len(first.items), first.has_more) == (2, True)
    assert (len(rest.items), rest.has_more) == (2, False)
    _, record = first.items[0]
    assert record.spec is not None
    assert record.spec.command == ""
    assert record.spec.array is not None
    assert record.spec.array.count == 3


async def test_history_names_tasks_as_clients_do(bench: Bench) -> None:
    """Both tasks with one name."""
    names = [f"x~{digit * 15}" for digit in "ab"]
    await bench.add(*(kit.submitted(n, id=name) for n, name in enumerate(names)))

    part = await bench.log.read_feed_page({}, 10)

    assert [record.name for _, record in part.items] == ["x", "x~2"]


@pytest.mark.parametrize(
    ("hlc", "latest", "seqs"),
    [(0, 0, (0, 0)), (99, 0, (0, 0)), (300, 300, (2, 1)), (499, 400, (2, 2))],
)
async def test_a_moment_is_found_in_every_stream(
    bench: Bench, hlc: int, latest: int, seqs: tuple[int, int]
) -> None:
    """The last earlier entry of each."""
    await _add_two_streams(bench)

    found = await bench.log.stream_extents_at(hlc)

    reaches = [
        StreamExtent(stream, epoch, seq, 0)
        for (stream, epoch), seq in zip(kit.EPOCHS, seqs, strict=True)
    ]
    assert found == (latest, tuple(reaches), 0)
    _, everything, _ = await bench.log.stream_extents_at(HLC_MAX)
    assert [reach.seq for reach in everything] == [3, 2]


async def test_history_reports_a_gap_below_the_floor(bench: Bench) -> None:
    """The entries are gone, and the reader learns that."""
    await _add_two_streams(bench)
    (mine, my_epoch), (other, other_epoch) = kit.EPOCHS
    floor = Floor(
        500, (StreamFloor(mine, 3, my_epoch), StreamFloor(other, 2, other_epoch))
    )
    number = bench.next()
    later = [_at(mine, 4, 600, floor), _at(mine, 5, 700, kit.submitted(3))]
    bench.log.append_entries(number, later)
    await bench.durable(number)

    part = await bench.log.read_feed_page({kit.STREAM: 1}, 10)
    after = await bench.log.read_feed_page({kit.STREAM: 3, kit.OTHER: 2}, 10)

    assert not part.is_whole
    assert part.items == after.items
    assert [entry.hlc for entry, _ in part.items] == [700]
    assert dict(part.reached) == {kit.STREAM: 5, kit.OTHER: 2}
    assert after.is_whole
    assert await bench.log.stream_extents_at(250) == (
        0,
        (StreamExtent(mine, my_epoch, 3, 3), StreamExtent(other, other_epoch, 2, 2)),
        0,
    )


NOTIFIED = TaskOptions(notify_url="http://a/")


async def test_ends_are_listed_until_their_notification_is_recorded(
    bench: Bench,
) -> None:
    """Only requested notifications, and one for each array."""
    asked = TaskOptions(notify_url="http://a/", array=ArraySpec(count=2))
    await bench.add(
        kit.submitted(1, options=NOTIFIED),
        kit.submitted(2, options=NOTIFIED),
        kit.submitted(3),
        kit.submitted(4, options=asked),
        kit.cancelled(1),
        kit.finished(3),
        kit.cancelled(4),
    )
    first = await bench.log.read_pending_notifications(frozenset(), 10)
    before = bench.log.notification_count
    await bench.add(kit.submitted(5), kit.finished(5))
    assert bench.log.notification_count == before
    await bench.add(kit.finished(2, stdout=b"secret"))
    assert bench.log.notification_count > before
    known = frozenset(key for key, _ in first.new_tasks)
    second = await bench.log.read_pending_notifications(known, 10)
    await bench.add(Notified(kit.task_id(1)), Notified(kit.task_id(2)))
    third = await bench.log.read_pending_notifications(frozenset(), 10)

    assert [r.id for _, r in first.new_tasks] == [kit.task_id(1), kit.task_id(4)]
    assert [r.id for _, r in second.new_tasks] == [kit.task_id(2)]
    assert [r.state for _, r in second.new_tasks] == [TaskState.COMPLETED]
    assert second.keys == known | {second.new_tasks[0][0]}
    assert [r.id for _, r in third.new_tasks] == [kit.task_id(4)]
    record = await bench.log.read_task(kit.task_id(1))
    assert record is not None
    assert record.is_notified


async def test_webhooks_of_a_subject_count_until_they_are_sent(bench: Bench) -> None:
    """From the submission on; an array has one."""
    array = TaskOptions(notify_url="http://a/", array=ArraySpec(count=2))
    await bench.add(
        kit.submitted(1, options=NOTIFIED),
        kit.submitted(2, options=array),
        kit.submitted(3),
        kit.submitted(4, options=NOTIFIED, submitter="bob"),
        kit.finished(1),
    )
    before = await bench.log.count_webhooks("local:ada@n1")
    await bench.add(Notified(kit.task_id(1)))

    assert before == 2
    assert await bench.log.count_webhooks("local:ada@n1") == 1
    assert await bench.log.count_webhooks("bob") == 1
    assert await bench.log.count_webhooks("eve") == 0


async def test_a_notification_record_may_precede_its_task(bench: Bench) -> None:
    """Like every fact: its task may still be on the way."""
    await bench.add(Notified(kit.task_id(1)), kit.finished(1))
    await bench.add(kit.submitted(1, options=NOTIFIED), stream=kit.OTHER)

    assert (
        await bench.log.read_pending_notifications(frozenset(), 10)
    ).keys == frozenset()


async def test_files_of_unfinished_tasks_are_read_in_pages(bench: Bench) -> None:
    """Each page looks at a bounded number of tasks; most of them have none."""
    digests = [f"{number:064}" for number in range(3)]
    whole = [InputTree(sha256=digest, node="ash") for digest in digests]
    lent = InputTree(sha256=digests[1], node="ash", is_lent=True)
    stdin = BlobRef(sha256="9" * 64, node="birch")
    asked = {
        1: whole[0],
        3: lent,
        4: replace(whole[0], folders=("a", "b")),
        5: whole[2],
    }
    parent = kit.task_id(5)
    await bench.add(
        *(
            kit.submitted(number, options=TaskOptions(tree=asked.get(number)))
            for number in range(1, 7)
        ),
        kit.submitted(7, options=TaskOptions(stdin_file=stdin, outputs_of=(parent,))),
        kit.finished(5),
    )
    pages: list[NeededFiles] = []
    after = 0
    while not pages or after:
        found, after = await bench.log.read_needed_files(TaskState.QUEUED, after, 2)
        pages.append(found)

    assert pages == [
        NeededFiles(trees=frozenset({whole[0]})),
        NeededFiles(trees=frozenset({lent, whole[0]})),
        NeededFiles(
            stdin_files=frozenset({stdin}),
            outputs_of=frozenset({parent}),
        ),
        NeededFiles(),
    ]
    record = await bench.log.read_task(kit.task_id(1))
    assert record is not None
    assert record.spec is not None
    assert record.spec.options == TaskOptions(tree=whole[0])


ARRAY_OF_BO = kit.submitted(
    8, submitter="bo", options=TaskOptions(array=ArraySpec(count=3))
)
BO_ARRAYS = LaneKey(0, "bo", is_array=True)


async def test_each_submitter_and_shape_of_requirements_has_its_own_queue(
    bench: Bench,
) -> None:
    """The front of the queue names the other lanes, each once."""
    pair, disk = Requirements(cpus=2), Requirements(labels=(("disk", "ssd"),))
    asked = {2: pair, 3: disk, 4: pair, 6: pair}
    await bench.add(
        *(
            kit.submitted(
                n, options=TaskOptions(requires=asked[n]) if n in asked else None
            )
            for n in range(1, 8)
        )
    )
    await bench.add(kit.cancelled(3), ARRAY_OF_BO, kit.submitted(9, submitter="bo"))

    front = await bench.log.load_queued_tasks(LoadQueued(1, -1, 9))
    plain = await bench.log.load_queued_tasks(LoadQueued(1, -1, 9, kit.LANE))
    lane = LaneKey(pair.shape, kit.LANE.submitter)
    pairs = await bench.log.load_queued_tasks(LoadQueued(1, 2, 1, lane))
    (array,) = (
        await bench.log.load_queued_tasks(LoadQueued(1, -1, 9, BO_ARRAYS))
    ).records

    assert front.records == ()
    assert dict(front.other_lanes) == {
        kit.LANE: None,
        lane: pair,
        BO_ARRAYS: None,
        LaneKey(0, "bo"): None,
    }
    assert len(front.other_lanes) == 4
    assert [r.id for r in plain.records] == [kit.task_id(n) for n in (1, 5, 7)]
    assert [r.id for r in pairs.records] == [kit.task_id(4)]
    assert (pairs.lane, pairs.has_more, pairs.other_lanes) == (lane, True, ())
    assert array.id == ARRAY_OF_BO.task
    assert (await bench.log.load_queued_tasks(LoadQueued(1, 1, 9))).other_lanes == ()


@for_the_core
async def test_the_stdin_of_a_completed_task_is_freed(bench: Bench) -> None:
    """A peer gets digest and size; a task that has not ended keeps its bytes."""
    large = TaskOptions(stdin=bytes(9000))
    waiting, ended = (kit.submitted(n, options=large) for n in (1, 2))
    await bench.add(waiting, ended, kit.finished(2))

    async def submissions() -> list[Submitted]:
        sent = await kit.entries_of(bench.log, {})
        return [e.fact for e in sent.entries if isinstance(e.fact, Submitted)]

    async with asyncio.timeout(60):
        while not is_stdin_freed(  # noqa: ASYNC110  another thread changes it
            (await submissions())[1].spec.options
        ):
            await asyncio.sleep(0.005)

    assert (await submissions())[0] == waiting
    (queued,) = (
        await bench.log.load_queued_tasks(LoadQueued(1, -1, 9, kit.LANE))
    ).records
    assert queued.spec == waiting.spec


async def test_large_tasks_are_loaded_in_parts(bench: Bench) -> None:
    """So a window of large tasks stays within its bytes."""
    large = TaskOptions(stdin=bytes(1 << 20))
    await bench.add(*(kit.submitted(n, options=large) for n in range(1, 25)))

    first = await bench.log.load_queued_tasks(LoadQueued(1, -1, 5000, kit.LANE))
    rest = await bench.log.load_queued_tasks(
        LoadQueued(1, len(first.records), 5000, kit.LANE)
    )

    assert len(first.records) < 20
    assert first.has_more
    assert len(first.records) + len(rest.records) == 24
    assert not rest.has_more


async def test_large_tasks_with_requirements_are_loaded_in_smaller_parts(
    bench: Bench,
) -> None:
    """There may be many shapes, each with its own window."""
    pair = Requirements(cpus=2)
    large = TaskOptions(stdin=bytes(1 << 19), requires=pair)
    await bench.add(*(kit.submitted(n, options=large) for n in range(1, 9)))

    some = await bench.log.load_queued_tasks(
        LoadQueued(1, -1, 5000, LaneKey(pair.shape, kit.LANE.submitter))
    )

    assert 0 < len(some.records) < 5
    assert some.has_more


async def test_a_short_id_names_the_tasks_that_it_may_mean(bench: Bench) -> None:
    """A number first, else the start of the eight digits.

    Those of ids that are not counted come first, as lists show them by their digits.
    """
    python = "task-792312345678-3fa2c0de"
    await bench.add(
        kit.submitted(1, id="task-041-3fa20000~a"),
        kit.submitted(2, id=f"{python}~b"),
        kit.submitted(3, id="task-811100000000-3fa2c0df"),
        kit.submitted(4, id="task-4100-00000000"),
        kit.submitted(5, id="task-811100000001-41001111"),
        kit.submitted(6, id="mine"),
        replace(
            kit.submitted(7, id="task-822200000000-beef0000"),
            spec=replace(
                kit.submitted(7, id="task-822200000000-beef0000").spec,
                options=TaskOptions(array=ArraySpec(count=3, first=1)),
            ),
        ),
        kit.submitted(8, id="task-833300000000-12345678"),
        kit.submitted(9, id="task-042-beef1234"),
        kit.submitted(10, id="task-027665100061-cafe0000"),
    )
    find = bench.log.names_with_short_id

    assert await find("41") == await find("041") == ("task-041-3fa20000",)
    assert await find("3fa2c0de") == (python,)
    assert await find("3fa2") == (python, "task-811100000000-3fa2c0df")
    assert await find("beef") == ("task-822200000000-beef0000",)
    assert await find("beef1") == ("task-042-beef1234",)
    assert await find("027665100061") == ("task-027665100061-cafe0000",)
    assert await find("4100") == ("task-4100-00000000",)
    assert await find("41001") == ("task-811100000001-41001111",)
    for unknown in ("3fa", "mine", "", "99", "٤١", "9" * 30):
        assert await find(unknown) == ()
    records = (await bench.log.read_task_page(TaskQuery())).records
    facts = await bench.log.read_display_facts(records)
    short = [facts[record.id].short_id for record in records]
    assert short == [
        *("41", "3fa2c0de", "3fa2c0df", "4100"),
        # It has no letter, so it could be the number of a task.
        *("task-811100000001-41001111", "mine", "beef", "task-833300000000-12345678"),
        *("42", "cafe"),
    ]
    assert await bench.log.names_with_sequence(822200000000) == (
        "task-822200000000-beef0000",
    )
    assert await bench.log.names_with_sequence(27665100061) == (
        "task-027665100061-cafe0000",
    )


async def test_people_see_when_running_work_began_and_what_failed_first(
    bench: Bench,
) -> None:
    """The first failure is the failed member with the lowest number."""
    array = kit.submitted(1, options=TaskOptions(array=ArraySpec(count=9, first=5)))
    await bench.add(
        array,
        kit.submitted(2),
        kit.assigned(2),
        kit.submitted(3),
        of_member(kit.assigned(1), 8),
    )
    records = (await bench.log.read_task_page(TaskQuery())).records
    before = await bench.log.read_display_facts(records)
    await bench.add(
        of_member(
            kit.finished(1, state=AttemptState.FAILED, exit_code=4, started_ms=9), 8
        ),
        of_member(
            kit.finished(1, state=AttemptState.FAILED, exit_code=3, started_ms=8), 7
        ),
    )
    records = (await bench.log.read_task_page(TaskQuery())).records
    after = await bench.log.read_display_facts(records)

    at_ms = {n: wall_ms_of(1000 + n) for n in range(1, 6)}
    assert [before[kit.task_id(n)].started_ms for n in (1, 2, 3)] == [
        *(at_ms[5], at_ms[3], None),
    ]
    assert before[kit.task_id(1)].first_failure is None
    assert after[kit.task_id(1)].started_ms == 8
    failure = after[kit.task_id(1)].first_failure
    assert failure is not None
    assert failure.outcome is not None
    assert (failure.number, failure.outcome.exit_code) == (7, 3)


async def test_failures_since_a_time_are_counted(bench: Bench) -> None:
    """Members count, their array does not, and nothing that ended well."""
    array = TaskOptions(array=ArraySpec(count=2, first=0))
    failed = AttemptState.FAILED
    await bench.add(
        *(kit.submitted(number) for number in (1, 2, 3)),
        kit.submitted(4, options=array),
        *(kit.finished(number, state=failed) for number in (1, 2)),
        kit.finished(3),
        *(
            replace(kit.finished(4, state=failed), task=member_id(kit.task_id(4), n))
            for n in (0, 1)
        ),
    )

    assert await bench.log.count_failures(HLC_EPOCH_MS) == 4
    assert await bench.log.count_failures(kit.WALL_MS) == 0
