"""The route of events, on a gateway with prepared events."""

from __future__ import annotations

import asyncio

import pytest

from octaskly.core.change_feed import (
    FeedGap,
    FeedItem,
    FeedPosition,
    NodeEvent,
    TaskEvent,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import StreamId
from tests.support.agents import WAIT_S_MAX
from tests.support.api_node import CLIENT, VIEWER, ApiNode, api_node, assert_problem
from tests.support.fake_gateway import NOW_MS

PATH = "/api/v1/events"
PLACES = [FeedPosition(n, StreamId(7), n, "0" * 16) for n in range(20)]


def task_news(node: ApiNode, task: str, place: FeedPosition | None) -> FeedItem:
    """Publish the current state of a task of the gateway."""
    record: TaskRecord = node.gateway.records[task]  # type: ignore[index]
    about = TaskEvent(record, record.state, NOW_MS, record.deciding_attempt)
    return FeedItem(about, place)


def node_news(node: ApiNode, *, is_gone: bool = False) -> FeedItem:
    roster = node.gateway.roster()
    assert roster is not None
    return FeedItem(NodeEvent(roster.members[0], is_gone))


async def streamed(
    node: ApiNode, *news: FeedItem, query: str = "", last_id: str = ""
) -> str:
    """Request events, and end the stream once all of `news` are sent."""
    node.gateway.news.put_nowait(news)
    headers = {**VIEWER, **({"Last-Event-ID": last_id} if last_id else {})}
    asked = asyncio.create_task(node.ask("GET", PATH + query, headers=headers))
    async with asyncio.timeout(WAIT_S_MAX):
        while not node.gateway.news.empty():  # noqa: ASYNC110  the stream takes it
            await asyncio.sleep(0.001)
    node.gateway.elect(node.gateway.view_of("other", term=2))
    answer = await asked
    assert answer.status == 200, answer
    return answer.body.decode().removeprefix("retry: 1000\n\n")


async def test_a_task_event_omits_command_and_output() -> None:
    """It has all times and reasons of a list, and the id to resume from."""
    async with api_node() as node:
        task = await node.submit("echo secret")
        node.gateway.start(task)
        node.gateway.finish(task)
        body = await streamed(node, task_news(node, task, PLACES[10]))

    assert body == (
        "event: task\n"
        "id: a-7-a-0000000000000000\n"
        f'data: {{"id":"{task}","status":"completed","at":"2026-02-06T12:00:00Z",'
        '"worker_id":"laptop-01","attempt":1,"exit_code":0,"signal":null,'
        '"reason":"exit","duration_ms":1500,"created_at":"2026-02-06T12:00:00Z",'
        '"started_at":"2026-02-06T12:00:00Z","completed_at":"2026-02-06T12:00:01Z","array":null}\n\n'
    )


async def test_a_node_event_has_the_state_of_the_node() -> None:
    """It has no id, because the position in the log does not change."""
    async with api_node() as node:
        body = await streamed(node, node_news(node), node_news(node, is_gone=True))

    shown = (
        '{"name":"laptop-01","id":"node-a","role":"dispatcher",'
        '"state":"%s","slots":2,"version":"0.0.0"}'
    )
    assert body == "".join(
        f"event: node\ndata: {shown % state}\n\n" for state in ("ready", "gone")
    )


async def test_filtered_events_move_the_position() -> None:
    """A client of one quiet task would otherwise get the whole log on its return."""
    async with api_node() as node:
        mine, other = await node.submit(), await node.submit()
        news = [
            task_news(node, mine, PLACES[1]),
            node_news(node),
            task_news(node, other, PLACES[2]),
            task_news(node, other, PLACES[3]),
        ]
        body = await streamed(node, *news, query=f"?task={mine}")

    first, rest, end = body.split("\n\n")
    assert first.startswith(f'event: task\nid: {PLACES[1]}\ndata: {{"id":"{mine}"')
    assert rest == f"id: {PLACES[3]}"
    assert end == ""


@pytest.mark.parametrize(("types", "names"), [("task", {"task"}), ("node", {"node"})])
async def test_types_filter_events(types: str, names: set[str]) -> None:
    """A reset is sent to all."""
    async with api_node() as node:
        task = await node.submit()
        news = [
            FeedItem(FeedGap(), PLACES[1]),
            task_news(node, task, PLACES[2]),
            node_news(node),
        ]
        body = await streamed(node, *news, query=f"?types={types}")

    lines = body.splitlines()
    assert {line for line in lines if line.startswith("event: ")} == {
        "event: reset",
        *(f"event: {name}" for name in names),
    }


async def test_a_position_without_events_is_sent() -> None:
    """A client that disconnects before the first event resumes from there."""
    async with api_node() as node:
        body = await streamed(node, FeedItem(None, PLACES[4]), last_id=str(PLACES[3]))

        assert body == f"id: {PLACES[4]}\n\n"
        assert node.gateway.heard_from == [PLACES[3]]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?types=", "types"),
        ("?types=task,", "types"),
        ("?types=tasks", "types"),
        ("?task=a/b", "task"),
        ("?since=1", "since"),
    ],
)
async def test_invalid_queries_are_refused(query: str, field: str) -> None:
    """Before the stream starts."""
    async with api_node() as node:
        answer = await node.ask("GET", PATH + query, headers=CLIENT)

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == field


async def test_an_invalid_id_is_refused() -> None:
    """A guess would skip or repeat events silently."""
    async with api_node() as node:
        headers = {**VIEWER, "Last-Event-ID": "12"}
        answer = await node.ask("GET", PATH, headers=headers)

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == "Last-Event-ID"


async def test_events_of_an_unknown_task_are_not_found() -> None:
    """The stream would stay silent for ever."""
    async with api_node() as node:
        answer = await node.ask("GET", PATH + "?task=nothing", headers=VIEWER)

    assert_problem(answer, 404, "Task not found")


async def test_events_need_a_token() -> None:
    """As everything that shows tasks."""
    async with api_node() as node:
        assert_problem(await node.ask("GET", PATH), 401)
