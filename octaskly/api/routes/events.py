"""Route of the event stream: changes of tasks and nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aiohttp import web

from octaskly.api.http import sse
from octaskly.api.http.handler_types import Access, Request, Route
from octaskly.api.schemas import mesh_response, task_response
from octaskly.api.security import route_cost
from octaskly.core.change_feed import (
    FeedContent,
    FeedGap,
    FeedItem,
    FeedPosition,
    NodeEvent,
    TaskEvent,
)
from octaskly.core.model.arrays import array_of
from octaskly.core.model.ids import TaskId
from octaskly.ports.events import EventSubscription
from octaskly.ports.store import TaskParts

_WRITE_BYTES = 64 << 10  #: bytes of one write
TYPES = ("task", "node")
GAP_MESSAGE = "events may be missing here; read tasks and nodes again"


async def stream_events(request: Request) -> web.StreamResponse:
    """Send the events from now on, or since an earlier stream ended."""
    types = request.query.types(TYPES)
    after = sse.parse_last_event_id(request, FeedPosition.parse)
    ref = request.query.task()
    task = None
    if ref is not None:
        task = (await request.gateway.find_task(ref, TaskParts.BRIEF)).id

    async def send_all(stream: sse.EventStream) -> None:
        async with request.gateway.subscribe(after) as listening:
            await _EventSender(request, stream, types, task).send_until_closed(
                listening
            )

    return await sse.serve_events(
        request, send_all, dispatcher=request.gateway.dispatcher()
    )


class _EventSender:
    """Writes feed items to one stream."""

    def __init__(
        self,
        request: Request,
        stream: sse.EventStream,
        types: tuple[str, ...],
        task: TaskId | None,
    ) -> None:
        self._gateway = request.gateway
        self._stream = stream
        self._types = types
        self._task_filter = task

    async def send_until_closed(self, listening: EventSubscription) -> None:
        """Send the items of a subscription until cancelled."""
        while True:
            parts: list[bytes] = []
            size_bytes = 0
            for part in self._frames(await listening.next_items()):
                parts.append(part)
                size_bytes += len(part)
                if size_bytes > _WRITE_BYTES:
                    await self._stream.write(b"".join(parts))
                    parts, size_bytes = [], 0
            if parts:
                await self._stream.write(b"".join(parts))

    def _frames(self, some: Sequence[FeedItem]) -> Iterator[bytes]:
        """Yield the requested events of some items, and the position after them."""
        passed: FeedPosition | None = None
        for news in some:
            if news.content is None:
                yield sse.encode_event_id(str(news.position))
            elif self._is_requested(news.content):
                name, data = self._encode(news.content)
                place = None if news.position is None else str(news.position)
                yield sse.encode_event(data, event=name, event_id=place)
                passed = passed if place is None else None
            elif news.position is not None:
                passed = news.position
        if passed is not None:
            # On resume, the client skips the items that it did not request.
            yield sse.encode_event_id(str(passed))

    def _is_requested(self, about: FeedContent) -> bool:
        match about:
            case TaskEvent(record):
                is_it = self._task_filter in (None, record.id, array_of(record.id))
                return "task" in self._types and is_it
            case NodeEvent():
                return "node" in self._types and self._task_filter is None
            case FeedGap():
                return True

    def _encode(self, about: FeedContent) -> tuple[str, object]:
        match about:
            case TaskEvent():
                return "task", task_response.task_change(
                    about, self._gateway.node_names()
                )
            case NodeEvent():
                return "node", mesh_response.node_event(about)
            case FeedGap():
                return "reset", {"message": GAP_MESSAGE}


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/events",
        handler=stream_events,
        cost=route_cost.STREAM,
        access=Access.READ,
        query=("types", "task"),
        responses={200: None},
        media_type=sse.CONTENT_TYPE,
        request_headers=(sse.RESUME_HEADER,),
        error_statuses=(404, 409),
    ),
)
