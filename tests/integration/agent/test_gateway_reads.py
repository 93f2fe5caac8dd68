"""Reads of the real gateway that race with entries of other nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, cast

import pytest

from octaskly.agent.gateway import pending_requests
from octaskly.agent.gateway.gateway import AgentGateway
from octaskly.agent.gateway.submissions import QueueLimits
from octaskly.agent.gateway.task_lookup import LocalFiles
from octaskly.agent.health import HealthChecks
from octaskly.core.effects import PublishMeshState
from octaskly.core.events import CatchUpRequested, CopiesRequested, Event, SavedState
from octaskly.core.log.facts import Fact
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, Epoch, Moment, StreamId, TaskId
from octaskly.core.model.nodes import NO_LOAD
from octaskly.core.model.tasks import TaskState
from octaskly.core.node.node import Node
from octaskly.core.replies import CatchUpStatus, Copied
from octaskly.errors import CatchingUp, NotAMember, TaskNotFound
from octaskly.ports.files import KeptOutput
from octaskly.ports.store import TaskListPage, TaskParts, TaskQuery
from octaskly.store import Store
from octaskly.system.clock import SystemClock
from tests.contract import log_kit as kit
from tests.support.agents import WAIT_S_MAX
from tests.support.builders import settings

NODE = settings("a").node
EPOCH = Epoch(1, NODE.id)
STREAM = StreamId(7)


class LateStore(Store):
    """A store that gets an entry just after it was read."""

    reads = 0

    def __init__(self, path: Path) -> None:
        self.is_durable = asyncio.Event()
        super().__init__(
            path, kit.PicklePacker(), lambda _: self.is_durable.set(), kit.HandClock()
        )

    async def read_task(
        self, ref: str, detail: TaskParts = TaskParts.ALL
    ) -> TaskRecord | None:
        found = await super().read_task(ref, detail)
        self.reads += 1
        if self.reads == 1:
            facts = [kit.submitted(1, id="late")]
            entries = kit.entries(facts, stream=STREAM)
            self.append_entries(1, entries, ((STREAM, EPOCH),))
            await self.is_durable.wait()
        return found


class AheadNode(Node):
    """A node whose standby always lags behind."""

    def has_copies_of_all(self, now: Moment) -> bool:
        return False


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[AgentGateway]:
    clock = SystemClock()
    store = LateStore(tmp_path / "log.db")
    await asyncio.to_thread(store.open)

    def nothing(*_: object) -> NoReturn:
        raise AssertionError

    def answer(event: Event) -> None:
        assert isinstance(event, CatchUpRequested)
        made.pending_requests.set_reply(event.ticket, CatchUpStatus(is_complete=True))

    made = AgentGateway(
        node_id=NODE.id,
        mesh_id="mesh",
        store=store,
        clock=clock,
        post=answer,
        files=LocalFiles(*[nothing] * len(LocalFiles._fields)),
        stream_output=nothing,
        last_load=lambda: NO_LOAD,
        health_checks=HealthChecks(
            write_failure=lambda: None, has_disk_room=lambda: True
        ),
        signer=None,
        names={},
        node=AheadNode(settings("a"), SavedState()),
        queue_limits=QueueLimits(9),
    )
    made.view.on_published(
        PublishMeshState(EPOCH, NODE.id, is_serving=True, roster=None)
    )
    yield made
    await store.close()


async def test_a_task_that_arrives_during_the_read_is_found(
    gateway: AgentGateway,
) -> None:
    """G7: the log was incomplete at the read, and complete at the check."""
    assert (await gateway.find_task("late")).id == "late"


async def test_a_node_that_left_does_not_wait_for_a_dispatcher(
    gateway: AgentGateway,
) -> None:
    """Its own epoch goes on, though: its log may still be read."""
    why, current = "this node was revoked", gateway.dispatcher()
    gateway._health_checks = replace(
        gateway._health_checks, lost_membership_reason=lambda: why
    )

    assert await gateway.wait_for_dispatcher(0) == current
    gateway.view.on_published(
        PublishMeshState(EPOCH, None, is_serving=False, roster=None)
    )
    with pytest.raises(NotAMember, match=why):
        await gateway.wait_for_dispatcher(0)


async def test_an_unknown_task_is_not_found(gateway: AgentGateway) -> None:
    """Also after the second read."""
    with pytest.raises(TaskNotFound):
        await gateway.find_task("nothing")


async def test_no_outputs_are_forgotten_during_catch_up(gateway: AgentGateway) -> None:
    """A missing node may know tasks that are unknown here."""
    kept = [KeptOutput(TaskId("old"), AttemptId(1, STREAM, 1, 1), 0)]
    assert await gateway.find_forgotten(kept) == ([], 0)
    requests = gateway.pending_requests
    requests._post = lambda event: requests.set_reply(
        cast("CatchUpRequested", event).ticket, CatchUpStatus(is_complete=False)
    )

    with pytest.raises(CatchingUp):
        await gateway.find_forgotten(kept)


async def test_an_end_is_shown_once_no_failover_can_take_it_back(
    gateway: AgentGateway,
) -> None:
    """G4: a GET, a list and an array's results wait as an event does."""
    asked: list[CopiesRequested] = []
    all_asked = asyncio.Event()

    def post(event: Event) -> None:
        assert isinstance(event, CopiesRequested)
        asked.append(event)
        if len(asked) == len(reads):
            all_asked.set()

    gateway.pending_requests._post = post
    store = cast("LateStore", gateway._store)
    facts: list[Fact] = [kit.submitted(2), kit.assigned(2), kit.finished(2)]
    entries = kit.entries(facts, stream=STREAM)
    store.append_entries(1, entries, ((STREAM, EPOCH),))
    await store.is_durable.wait()
    store.reads = 1

    reads: list[Coroutine[None, None, TaskRecord | TaskListPage]] = [
        gateway.find_task(kit.task_id(2)),
        gateway.wait_for_end(kit.task_id(2)),
        gateway.list_tasks(TaskQuery()),
    ]
    waiting = [asyncio.ensure_future(read) for read in reads]
    await all_asked.wait()
    assert not any(read.done() for read in waiting)
    for request in asked:
        gateway.pending_requests.set_reply(request.ticket, Copied(2))

    for answer in await asyncio.gather(*waiting):
        shown = answer if isinstance(answer, TaskRecord) else answer.records[0]
        assert shown.state is TaskState.COMPLETED


@pytest.mark.parametrize("fails_first", [True, False])
async def test_an_end_is_shown_without_standbys_while_the_disk_is_full(
    gateway: AgentGateway, monkeypatch: pytest.MonkeyPatch, *, fails_first: bool
) -> None:
    """No commit can follow, and no failover can take back what is on this disk."""
    monkeypatch.setattr(pending_requests, "REPLY_CHECK_S", 0.01)
    failures = ["the disk is full"] if fails_first else []
    gateway._health_checks = replace(
        gateway._health_checks, write_failure=lambda: failures[0] if failures else None
    )
    gateway.pending_requests._post = lambda _: failures.append("the disk is full")
    store = cast("LateStore", gateway._store)
    facts: list[Fact] = [kit.submitted(2), kit.assigned(2), kit.finished(2)]
    entries = kit.entries(facts, stream=STREAM)
    store.append_entries(1, entries, ((STREAM, EPOCH),))
    await store.is_durable.wait()
    store.reads = 1

    async with asyncio.timeout(WAIT_S_MAX):
        (shown,) = (await gateway.list_tasks(TaskQuery())).records

    assert shown.state is TaskState.COMPLETED
