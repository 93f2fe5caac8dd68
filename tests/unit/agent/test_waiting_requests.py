"""Requests that wait for the core while a node stops."""

from __future__ import annotations

import asyncio
from functools import reduce

import pytest
from msgspec.structs import replace

from octaskly import errors
from octaskly.agent.gateway.pending_requests import PendingRequests
from octaskly.agent.gateway.task_waiters import TaskWaiters
from octaskly.core.events import Event, TasksSubmitted
from octaskly.core.log import merge
from octaskly.core.log.facts import (
    Assigned,
    Decided,
    Entry,
    Finished,
    MembersSucceeded,
    SuccessTimes,
    TaskFact,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import AttemptState, EndReason, TaskState
from octaskly.core.replies import NotDispatching, NotReplicated, Reply, TasksAccepted
from octaskly.errors import (
    DispatcherUnknown,
    NotDispatcher,
    OctasklyError,
    OutcomeUnknown,
)
from tests.support.builders import STREAM, attempt, node_id, outcome


def submission(ticket: int) -> Event:
    return TasksSubmitted(ticket, (), "ana", (), ())


async def test_a_stopping_node_does_not_call_a_request_undone() -> None:
    """It may be in the log; a client would repeat it elsewhere."""
    posted: list[Event] = []
    tickets = PendingRequests(posted.append)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(_outcome(tickets))
        while not posted:  # noqa: ASYNC110  one turn of the loop is enough
            await asyncio.sleep(0)
        tickets.close()

    assert isinstance(asked.result(), OutcomeUnknown)


async def test_a_stopped_node_accepts_no_requests() -> None:
    """Nothing is posted, so the client may send the request elsewhere."""
    posted: list[Event] = []
    tickets = PendingRequests(posted.append)
    tickets.close()

    with pytest.raises(DispatcherUnknown):
        await tickets.send_request(submission)
    assert posted == []


async def test_an_answer_reaches_its_request() -> None:
    """Each request has its own ticket."""
    accepted = TasksAccepted((), 2)
    tickets = PendingRequests(lambda event: tickets.set_reply(event.ticket, accepted))  # type: ignore[union-attr]

    assert await tickets.send_request(submission) == accepted


@pytest.mark.parametrize(
    ("reply", "error"),
    [(NotDispatching(), NotDispatcher), (NotReplicated(), errors.NotDurable)],
)
async def test_a_refusal_by_the_core_is_an_error(
    reply: Reply, error: type[OctasklyError]
) -> None:
    """The API reports it in the same way for every request."""
    tickets = PendingRequests(lambda event: tickets.set_reply(event.ticket, reply))  # type: ignore[union-attr]

    with pytest.raises(error):
        await tickets.send_request(submission)


async def test_an_event_of_a_task_with_the_same_name_does_not_end_a_wait() -> None:
    """The other half of a split used the name, too; both waits use it."""
    waiters = TaskWaiters()
    mine, other = TaskId("deploy~aaa"), TaskId("deploy~bbb")
    has_read = asyncio.Event()

    async def read() -> TaskRecord:
        has_read.set()
        return TaskRecord(id=mine, occurrence=2)

    async def tell(task: TaskId) -> None:
        await has_read.wait()
        has_read.clear()
        end = Finished(task, attempt(), node_id("a"), outcome(), 1)
        waiters.on_appended([Entry(STREAM, 1, 1, end)], 1)
        waiters.on_replicated([task])

    async with asyncio.TaskGroup() as group:
        ends = waiters.wait_until("deploy~2", read, lambda task: task.state.is_final)
        waited = group.create_task(ends)
        await tell(other)
        await tell(mine)

    ended = waited.result()
    assert (ended.name, ended.state) == ("deploy~2", TaskState.COMPLETED)


async def test_waits_end_when_another_node_is_dispatcher() -> None:
    """It hears of the end. What only this node knew may be revoked."""
    waiters, task = TaskWaiters(), TaskId("task-001-0000000a")
    end = Finished(task, attempt(), node_id("a"), outcome(), 1)
    has_read = asyncio.Event()

    async def read() -> TaskRecord:
        has_read.set()
        return TaskRecord(id=task)

    ends = waiters.wait_until(task, read, lambda record: record.state.is_final)
    asked = asyncio.create_task(ends)
    await has_read.wait()
    waiters.on_appended([Entry(STREAM, 1, 1, end)], 1)
    waiters.end_waits()

    with pytest.raises(NotDispatcher):
        await asked


async def test_an_early_answer_is_on_disk() -> None:
    """A second request must not see the older state, that the task is queued.

    The output of an ended task was requested, and not found.
    """
    waiters = TaskWaiters()
    task = TaskId("task-001-0000000a")
    start = Assigned(task, attempt(), node_id("a"))
    end = Finished(task, attempt(), node_id("a"), outcome(), 1)
    has_read = asyncio.Event()

    async def read() -> TaskRecord:
        has_read.set()
        return TaskRecord(id=task)

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(
            waiters.wait_until(
                *(task, read, lambda record: record.state is not TaskState.QUEUED),
                accepts_local_commit=True,
            )
        )
        await has_read.wait()
        waiters.on_appended([Entry(STREAM, 1, 1, start)], 1)
        waiters.on_appended([Entry(STREAM, 2, 2, end)], 2)
        await asyncio.sleep(0)
        assert not asked.done()
        waiters.on_persisted(1)

    assert asked.result().state is TaskState.RUNNING


async def test_a_wait_knows_the_end_that_was_written_when_it_began() -> None:
    """The verdict came seconds later, as others could still have run the task."""
    waiters = TaskWaiters()
    task = TaskId("task-001-0000000a")
    absent = replace(
        outcome(), state=AttemptState.RELEASED, reason=EndReason.INPUTS, exit_code=None
    )
    begun = Assigned(task, attempt(), node_id("a"))
    end = Finished(task, attempt(), node_id("a"), absent)
    verdict = Decided(task, TaskState.FAILED, 1, attempt(), node_id("a"))
    on_disk: list[TaskFact] = [begun]
    has_read = asyncio.Event()

    async def read() -> TaskRecord:
        has_read.set()
        return reduce(merge.apply_fact, on_disk, merge.record_of(begun))

    waiters.on_appended([Entry(STREAM, 2, 2, end)], 2)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(
            waiters.wait_until(task, read, lambda record: record.state.is_final)
        )
        await asyncio.sleep(0)
        on_disk.append(end)
        waiters.on_persisted(2)
        await has_read.wait()
        waiters.on_appended([Entry(STREAM, 3, 3, verdict)], 3)
        waiters.on_replicated([task])

    ended = asked.result()
    assert ended.state is TaskState.FAILED
    assert ended.deciding_attempt is not None
    assert ended.deciding_attempt.outcome is not None
    assert ended.deciding_attempt.outcome.reason is EndReason.INPUTS


async def _outcome(tickets: PendingRequests) -> object:
    try:
        return await tickets.send_request(submission)
    except OutcomeUnknown as error:
        return error


async def test_a_member_that_never_started_ends_with_its_array() -> None:
    """The log has no fact of the member, so no event carries its name."""
    array = TaskId("task-001-0000000a")
    waiting = TaskRecord(id=TaskId(f"{array}.5"))
    ended = TaskRecord(id=waiting.id, cancelled_by="ana")
    shown = [waiting, ended]
    waiters = TaskWaiters()

    async def read() -> TaskRecord:
        return shown.pop(0)

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(
            waiters.wait_until(waiting.name, read, lambda task: task.state.is_final)
        )
        while len(shown) > 1:  # noqa: ASYNC110  one turn of the loop is enough
            await asyncio.sleep(0)
        waiters.on_replicated((TaskId(f"{array}.6"),))
        await asyncio.sleep(0)
        assert len(shown) == 1
        waiters.on_replicated((array,))

    assert asked.result() == ended


async def test_a_member_that_ended_in_a_range_is_not_read_again() -> None:
    """The facts of its range are looked at, because somebody waits for a member."""
    array = TaskId("task-001-0000000a")
    member = TaskId(f"{array}.5")
    waiters = TaskWaiters()
    read_count = 0

    async def read() -> TaskRecord:
        nonlocal read_count
        read_count += 1
        return TaskRecord(id=member)

    ends = MembersSucceeded(
        *(array, attempt(), node_id("a"), 4, 1, (0, 1), 1, 1000),
        times=(SuccessTimes(0, 1, 1),) * 2,
    )
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(
            waiters.wait_until(member, read, lambda task: task.state.is_final)
        )
        while not read_count:  # noqa: ASYNC110  one turn of the loop is enough
            await asyncio.sleep(0)
        waiters.on_appended([Entry(STREAM, 1, 1, ends)], 1)
        waiters.on_replicated([TaskId(f"{array}.4"), member])

    assert asked.result().state is TaskState.COMPLETED
    assert read_count == 1
