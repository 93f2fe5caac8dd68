"""A dispatcher's memory of tasks, which spares reads for long polls."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from octaskly.agent.gateway.recent_tasks import (
    FEW_ENTRIES,
    OUTPUT_BYTES_MAX,
    TASKS_MAX,
    RecentTasks,
)
from octaskly.agent.gateway.task_waiters import TaskWaiters
from octaskly.core.log.facts import Assigned, Entry, Fact, Finished, Floor, Submitted
from octaskly.core.log.merge import TaskRecord, record_of
from octaskly.core.model.ids import Epoch, StreamId, TaskId
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import AttemptState, TaskState
from tests.support.builders import STREAM, attempt, node_id, outcome, spec

TASK = TaskId("task-001-00000001")
EPOCH = Epoch(1, node_id("a"))
FACTS: list[Fact] = [
    Submitted(spec(TASK)),
    Assigned(TASK, attempt(), node_id("a")),
    Finished(TASK, attempt(), node_id("a"), outcome(), 1),
]


def entries(*facts: Fact, stream: StreamId = STREAM, after: int = 0) -> list[Entry]:
    return [
        Entry(stream, after + i, after + i, fact) for i, fact in enumerate(facts, 1)
    ]


def remembering(*facts: Fact) -> RecentTasks:
    recent = RecentTasks()
    recent.start_epoch(EPOCH)
    for i, fact in enumerate(facts):
        recent.appended(entries(fact, after=i))
    return recent


def state_of(recent: RecentTasks) -> TaskState | None:
    remembered_task = recent.get(TASK)
    return None if remembered_task is None else remembered_task.record.state


def test_an_end_is_shown_once_it_is_durable() -> None:
    """Before that a crash could undo it."""
    recent = remembering(*FACTS)
    before = state_of(recent)
    recent.announced([TASK])

    assert (before, state_of(recent)) == (TaskState.QUEUED, TaskState.COMPLETED)


@pytest.mark.parametrize(
    "more",
    [
        entries(*[Assigned(TASK, attempt(), node_id("a"))] * (FEW_ENTRIES + 1)),
        entries(FACTS[2], stream=StreamId(78)),
        entries(Floor(9, ())),
        entries(
            Finished(TASK, attempt(), node_id("a"), outcome(stdout=b"x" * 16385), 1)
        ),
    ],
    ids=["busy", "another stream", "floor", "much output"],
)
def test_a_partly_known_task_is_read_from_the_store(more: list[Entry]) -> None:
    """An answer must not present a part as the whole."""
    assert len(b"x" * 16385) > OUTPUT_BYTES_MAX
    recent = remembering(*FACTS[:2])
    recent.appended(more)

    assert recent.get(TASK) is None


def test_a_new_epoch_clears_the_memory() -> None:
    """Another dispatcher may have run the task in the meantime."""
    recent = remembering(*FACTS)
    recent.start_epoch(EPOCH)
    assert recent.get(TASK) is not None

    recent.start_epoch(Epoch(2, node_id("a")))

    assert recent.get(TASK) is None


def test_a_task_with_dependencies_or_options_is_read() -> None:
    """An array or a retried task has more state than its facts here."""
    asking = Submitted(replace(spec(TASK), options=TaskOptions(name="x")))

    assert remembering(asking).get(TASK) is None


def test_the_memory_is_bounded() -> None:
    """The oldest entries go first."""
    recent = RecentTasks()
    names = [TaskId(f"task-{i:03d}-00000001") for i in range(TASKS_MAX + 1)]
    for i, name in enumerate(names):
        recent.appended(entries(Submitted(spec(name)), after=i))

    assert [name for name in names if recent.get(name) is None] == names[:1]


async def test_a_long_poll_for_an_ending_task_reads_nothing() -> None:
    """A read would only delay the write of the end."""
    waiters = TaskWaiters()
    for i, fact in enumerate(FACTS):
        waiters.on_appended(entries(fact, after=i), i)

    async def read() -> TaskRecord:
        raise AssertionError("it was read")

    async def tell() -> None:
        await asyncio.sleep(0)
        waiters.on_replicated([TASK])

    async with asyncio.TaskGroup() as group:
        group.create_task(tell())
        record = await waiters.wait_until(TASK, read, lambda r: r.state.is_final)

    assert record.state is TaskState.COMPLETED


def test_only_a_durable_end_is_available() -> None:
    """A client could otherwise see an end too early, or one that a crash undoes."""
    waiters = TaskWaiters()
    seen = []
    for i, fact in enumerate(FACTS):
        waiters.on_appended(entries(fact, after=i), i)
        seen.append(waiters.at_hand(TASK))
    waiters.on_replicated([TASK])

    assert seen == [None, None, None]
    assert waiters.at_hand(TASK) == record_of_all(FACTS)


def test_a_returned_task_is_not_available() -> None:
    """The durable announcement is not an end: the task runs again."""
    given_back = Finished(
        TASK, attempt(), node_id("a"), outcome(state=AttemptState.RELEASED)
    )
    waiters = TaskWaiters()
    for i, fact in enumerate([*FACTS[:2], given_back]):
        waiters.on_appended(entries(fact, after=i), i)
    waiters.on_replicated([TASK])

    assert waiters.at_hand(TASK) is None


def record_of_all(facts: list[Fact]) -> TaskRecord:
    recent = remembering(*facts)
    recent.announced([TASK])
    remembered_task = recent.get(TASK)
    assert remembered_task is not None
    return remembered_task.record


async def test_a_wait_sees_what_was_on_its_way_to_the_disk() -> None:
    """Else it would see the start of a task only with the next fact, or its timeout."""
    waiters = TaskWaiters()
    task = TaskId("task-001-0000000a")
    stored = [TaskRecord(id=task)]

    async def read() -> TaskRecord:
        return stored[-1]

    start = Assigned(task, attempt(), node_id("a"))
    waiters.on_appended([Entry(STREAM, 1, 1, start)], 1)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        waited = group.create_task(
            waiters.wait_until(
                *(str(task), read, lambda record: bool(record.attempts)),
                accepts_local_commit=True,
            )
        )
        await asyncio.sleep(0)
        stored.append(record_of(start))
        waiters.on_persisted(1)

    assert waited.result() == stored[-1]
