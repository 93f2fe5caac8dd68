"""Server-sent events on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from aiohttp import web

from octaskly.api import HttpTimeouts
from octaskly.api.http import sse
from octaskly.api.http.handler_types import Access, Request, Route
from octaskly.api.routes.table import ROUTES
from octaskly.api.security import route_cost
from octaskly.config.defaults import CONNECTIONS_MAX, STREAMS_MAX
from octaskly.config.settings import LimitOptions
from octaskly.errors import NotDispatcher
from tests.support.agents import WAIT_S_MAX
from tests.support.api_node import (
    CLIENT,
    VIEWER,
    Answer,
    ApiNode,
    api_node,
    assert_hardened,
    assert_problem,
    exchange,
    parse,
    until,
)

PATH = "/api/v1/test-stream"
FAST = HttpTimeouts(shutdown_s=1.0, keepalive_s=0.02, stall_s=0.2)
RETRY = b"retry: 1000\n\n"


def serve_stream(
    monkeypatch: pytest.MonkeyPatch, produce: sse.Produce, *, is_local: bool = True
) -> None:
    """Make all APIs of this test serve the events of `produce` at `PATH`."""

    async def perform(call: Request) -> web.StreamResponse:
        after = sse.parse_last_event_id(call, int)

        async def send_all(stream: sse.EventStream) -> None:
            if after is not None:
                await stream.send({"after": after})
            await produce(stream)

        return await sse.serve_events(
            call, send_all, dispatcher=call.gateway.dispatcher()
        )

    route = Route(
        method="GET",
        path=PATH,
        handler=perform,
        cost=route_cost.STREAM,
        access=Access.READ,
        is_local=is_local,
        responses={200: None},
        media_type=sse.CONTENT_TYPE,
    )
    monkeypatch.setattr("octaskly.api.server.server.ROUTES", (*ROUTES, route))


async def _nothing(stream: sse.EventStream) -> None:
    """End at once."""


class Open:
    """Produces nothing until it is ended; shows whether it runs."""

    def __init__(self) -> None:
        self.running = 0
        self.started = 0
        self.over = asyncio.Event()

    async def __call__(self, stream: sse.EventStream) -> None:
        self.running += 1
        self.started += 1
        try:
            await self.over.wait()
        finally:
            self.running -= 1


async def connect(
    node: ApiNode, as_whom: Mapping[str, str] = VIEWER
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Request the stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(_request(node, as_whom=as_whom))
    return reader, writer


async def _resumed(node: ApiNode, *ids: str) -> Answer:
    """Request the events after these ids, one header each."""
    given = [f"Last-Event-ID: {each}" for each in ids]
    return parse(await exchange(node.port, _request(node, "Connection: close", *given)))


def _request(node: ApiNode, *more: str, as_whom: Mapping[str, str] = VIEWER) -> bytes:
    lines = [
        f"GET {PATH} HTTP/1.1",
        f"Host: localhost:{node.port}",
        *(f"{name}: {value}" for name, value in as_whom.items()),
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def assert_stream(answer: Answer) -> None:
    """Check status and headers of a stream."""
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache, no-store, must-revalidate"
    assert_hardened(answer)
    assert answer.headers["x-request-id"]


async def test_events_have_name_id_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line has the retry time; line ends stay inside JSON."""

    async def produce(stream: sse.EventStream) -> None:
        await stream.send({"text": "a\nb\r\0ü"}, event="task", event_id="7")
        await stream.send([1])

    serve_stream(monkeypatch, produce)
    async with api_node() as node:
        answer = await node.ask("GET", PATH, headers=VIEWER)

    assert_stream(answer)
    first = 'event: task\nid: 7\ndata: {"text":"a\\nb\\r\\u0000ü"}\n\n'
    assert answer.body == RETRY + first.encode() + b"data: [1]\n\n"


async def test_head_gets_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at once, though the stream would not."""
    serve_stream(monkeypatch, Open())
    async with api_node() as node:
        answer = await node.ask("HEAD", PATH, headers=VIEWER)

    assert_stream(answer)
    assert answer.body == b""


async def test_a_quiet_stream_sends_keepalives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A comment now and then; client and proxies could not see a dead one otherwise."""
    serve_stream(monkeypatch, Open())
    async with api_node(timeouts=FAST) as node:
        reader, writer = await connect(node)
        await reader.readuntil(RETRY)
        for _ in range(3):
            assert b":\n\n" in await reader.readuntil(b":\n\n")
        writer.close()


async def test_a_client_that_does_not_read_is_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B42: it costs the buffers of transport and kernel, and not for long."""
    sent, ended = [0], asyncio.Event()

    async def produce(stream: sse.EventStream) -> None:
        try:
            while True:
                await stream.send("x" * (64 << 10))
                sent[0] += 64 << 10
        except ConnectionError:
            ended.set()
            raise

    serve_stream(monkeypatch, produce)
    async with api_node(timeouts=FAST) as node:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", node.port, limit=1 << 10
        )
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(_request(node))
        async with asyncio.timeout(WAIT_S_MAX):
            await ended.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1 << 30)
        writer.close()
        assert node.faults == []
        assert (await node.ask("GET", "/health")).status == 200

    assert sent[0] < 64 << 20  # The most that sockets on loopback may hold.


async def test_a_failure_during_a_stream_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client sees a broken connection; the operator sees the cause."""

    async def produce(stream: sse.EventStream) -> None:
        await stream.send([1])
        raise ZeroDivisionError("secret")

    serve_stream(monkeypatch, produce)
    async with api_node() as node:
        raw = await exchange(node.port, _request(node))

    assert b"data: [1]" in raw
    assert not raw.endswith(b"0\r\n\r\n")
    assert b"secret" not in raw
    assert [type(fault) for fault in node.faults] == [ZeroDivisionError]


async def test_streams_of_one_subject_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One more is 429 and says whose they are; another subject gets one."""
    produce = Open()
    serve_stream(monkeypatch, produce)
    async with api_node(limits=LimitOptions(streams_per_subject=2)) as node:
        clients = [await connect(node) for _ in range(2)]
        await until(lambda: produce.running == 2)

        refused = await node.ask("GET", PATH, headers=VIEWER)
        clients.append(await connect(node, CLIENT))
        await until(lambda: produce.running == 3)

        for _, writer in clients:
            writer.transport.abort()

    assert_problem(refused, 429, "Too many event streams")
    assert "dee may have 2 open" in refused.json["hint"]
    assert refused.headers["retry-after"] == "5"


async def test_streams_of_a_node_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """B42: one more is 503 with `Retry-After`, and is accepted after another ended."""
    produce = Open()
    serve_stream(monkeypatch, produce)
    most = {
        "streams_per_subject": STREAMS_MAX,
        "connections_per_subject": CONNECTIONS_MAX,
    }
    async with api_node(limits=LimitOptions(**most)) as node:
        clients = [await connect(node) for _ in range(STREAMS_MAX)]
        await until(lambda: produce.running == STREAMS_MAX)

        refused = await node.ask("GET", PATH, headers=CLIENT)
        other = await node.ask("GET", "/api/v1/tasks", headers=CLIENT)
        clients[0][1].transport.abort()
        await until(lambda: produce.running == STREAMS_MAX - 1)
        late = await connect(node)
        await until(lambda: produce.running == STREAMS_MAX)

        for _, writer in (*clients[1:], late):
            writer.transport.abort()

    assert_problem(refused, 503, "Too many event streams")
    assert refused.headers["retry-after"] == "5"
    assert refused.headers["connection"] == "close"
    assert other.status == 200


async def test_a_stream_ends_properly_when_the_agent_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client sees an end, and reconnects by itself."""
    produce = Open()
    serve_stream(monkeypatch, produce)
    async with api_node() as node:
        asked = asyncio.create_task(exchange(node.port, _request(node)))
        await until(lambda: produce.running)
        await node.server.close()
        raw = await asked

    assert parse(raw).body == RETRY
    assert raw.endswith(b"0\r\n\r\n")
    assert produce.running == 0


async def test_a_stream_ends_with_its_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its node answers the next request by forwarding it."""
    produce = Open()
    serve_stream(monkeypatch, produce)
    async with api_node() as node:
        reader, writer = await connect(node)
        await until(lambda: produce.running)
        node.gateway.elect(node.gateway.view_of("other", term=2))
        await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.close()

    assert produce.running == 0


async def test_the_loss_of_the_role_ends_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has started, so it cannot be forwarded."""

    async def produce(stream: sse.EventStream) -> None:
        raise NotDispatcher("deposed")

    serve_stream(monkeypatch, produce, is_local=False)
    async with api_node() as node:
        answer = await node.ask("GET", PATH, headers=VIEWER)

    assert answer.body == RETRY


async def test_a_client_that_leaves_ends_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is left running."""
    produce = Open()
    serve_stream(monkeypatch, produce)
    async with api_node() as node:
        _, writer = await connect(node)
        await until(lambda: produce.running)
        writer.transport.abort()
        await until(lambda: not produce.running)

        assert node.faults == []


async def test_a_stream_resumes_at_the_client_s_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty header counts as none, as from a new client."""
    serve_stream(monkeypatch, _nothing)
    async with api_node() as node:
        bodies = [await _resumed(node, "12"), await _resumed(node, "")]
        refused = [await _resumed(node, "nonsense"), await _resumed(node, "1", "2")]

    assert bodies[0].body == RETRY + b'data: {"after":12}\n\n'
    assert bodies[1].body == RETRY
    for answer in refused:
        assert_problem(answer, 400, "Invalid parameter value")
        assert answer.json["field"] == "Last-Event-ID"
