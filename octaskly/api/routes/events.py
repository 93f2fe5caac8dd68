"""The route of events: what happens to tasks and nodes, as it happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aiohttp import web

from octaskly.api.http import sse
from octaskly.api.http.request import Access, Call, Route
from octaskly.api.schemas import mesh_response, task_response
from octaskly.core.change_feed import (
    FeedContent,
    FeedGap,
    FeedItem,
    FeedPosition,
    NodeEvent,
    TaskEvent,
    array_id_of,
)
from octaskly.core.model.ids import TaskId
from octaskly.ports.events import Listening

_WRITE_BYTES = 64 << 10  #: at once
TYPES = ("task", "node")
LOST = "events may be missing here; read tasks and nodes again"


async def events(call: Call) -> web.StreamResponse:
    """Send what happens from now on, or since an earlier stream ended."""
    types = call.query.types(TYPES)
    after = sse.resume_id(call, FeedPosition.parse)
    ref = call.query.task()
    task = None if ref is None else (await call.gateway.task(ref)).id

    async def send_all(stream: sse.EventStream) -> None:
        async with call.gateway.listen(after) as listening:
            await _Sender(call, stream, types, task).send_all(listening)

    return await sse.serve(call, send_all, reign=call.gateway.dispatcher())


class _Sender:
    """Puts news into one stream."""

    def __init__(
        self,
        call: Call,
        stream: sse.EventStream,
        types: tuple[str, ...],
        task: TaskId | None,
    ) -> None:
        self._gateway = call.gateway
        self._stream = stream
        self._types = types
        self._task = task

    async def send_all(self, listening: Listening) -> None:
        """Send news for ever."""
        while True:
            parts: list[bytes] = []
            size_bytes = 0
            for part in self._frames(await listening.more()):
                parts.append(part)
                size_bytes += len(part)
                if size_bytes > _WRITE_BYTES:
                    await self._stream.write(b"".join(parts))
                    parts, size_bytes = [], 0
            if parts:
                await self._stream.write(b"".join(parts))

    def _frames(self, some: Sequence[FeedItem]) -> Iterator[bytes]:
        """Yield what the client wants of some news, and where it is behind them."""
        passed: FeedPosition | None = None
        for news in some:
            if news.content is None:
                yield sse.id_frame(str(news.position))
            elif self._wants(news.content):
                name, data = self._shown(news.content)
                place = None if news.position is None else str(news.position)
                yield sse.frame(data, event=name, event_id=place)
                passed = passed if place is None else None
            elif news.position is not None:
                passed = news.position
        if passed is not None:
            # It need not hear again what it did not want.
            yield sse.id_frame(str(passed))

    def _wants(self, about: FeedContent) -> bool:
        match about:
            case TaskEvent(record):
                is_it = self._task in (None, record.id, array_id_of(record.id))
                return "task" in self._types and is_it
            case NodeEvent():
                return "node" in self._types and self._task is None
            case FeedGap():
                return True

    def _shown(self, about: FeedContent) -> tuple[str, task_response.Json]:
        match about:
            case TaskEvent():
                return "task", task_response.task_news(about, self._gateway.names())
            case NodeEvent():
                return "node", mesh_response.node_news(about)
            case FeedGap():
                return "reset", {"message": LOST}


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/events",
        perform=events,
        access=Access.READ,
        query=("types", "task"),
        answers={200: None},
        media=sse.CONTENT_TYPE,
        heeds=(sse.RESUME_HEADER,),
        refuses=(404, 409),
    ),
)
