"""Responses that are streams of server-sent events.

A stream may end at any time: the agent stops, the dispatcher changes, or the client
reads too slowly. Clients reconnect by themselves and send `Last-Event-ID`, so that the
stream continues after the last event that they received.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from aiohttp import web

from octaskly.api.http.handler_types import Request
from octaskly.api.problems import INVALID_VALUE, Problem
from octaskly.api.schemas.task_response import encode
from octaskly.errors import DispatcherUnknown, NotDispatcher
from octaskly.ports.gateway import DispatcherView

CONTENT_TYPE = "text/event-stream"
RESUME_HEADER = "Last-Event-ID"

_RETRY_MS = 1000

Id = TypeVar("Id")


def encode_event(
    data: object, *, event: str | None = None, event_id: str | None = None
) -> bytes:
    """Return the bytes of one event with `data` as JSON."""
    fields = [f"event: {event}\n"] if event else []
    if event_id is not None:
        fields.append(f"id: {event_id}\n")
    return b"%sdata: %s\n\n" % ("".join(fields).encode(), encode(data))


def encode_event_id(event_id: str) -> bytes:
    """Return the bytes that set the client's last event id, without an event."""
    return f"id: {event_id}\n\n".encode()


class EventStream:
    """The server's end of one stream."""

    def __init__(self, request: Request, headers: Mapping[str, str]) -> None:
        self.response = web.StreamResponse(headers=headers)
        self._request = request
        self._clock = asyncio.get_running_loop().time
        self._last_write_s = self._clock()
        self._write_lock = asyncio.Lock()

    async def send(
        self, data: object, *, event: str | None = None, event_id: str | None = None
    ) -> None:
        """Send one event with `data` as JSON; return when the next one fits.

        Raises:
            ConnectionError: the client is gone, or read nothing for `stall_s`.
        """
        await self.write(encode_event(data, event=event, event_id=event_id))

    async def write(self, part: bytes) -> None:
        """Send raw bytes of the stream; otherwise as `send`."""
        await self._request.work.turn()
        try:
            # Only the transport buffers bytes; this class keeps none.
            async with (
                self._write_lock,
                asyncio.timeout(self._request.services.timeouts.stall_s),
            ):
                await self.response.write(part)
                await self._request.http_request.writer.drain()
        except TimeoutError:
            self.abort()
            raise ConnectionError("the client of a stream does not read") from None
        self._last_write_s = self._clock()

    async def start(self) -> None:
        """Send the headers."""
        self._request.add_headers(self.response)
        await self.response.prepare(self._request.http_request)

    async def send_keepalives(self, keepalive: bytes) -> None:
        """Send `keepalive` whenever nothing else was sent for `keepalive_s`."""
        quiet_s = self._request.services.timeouts.keepalive_s
        with contextlib.suppress(ConnectionError):  # The handler gets the same error.
            while True:
                left_s = self._last_write_s + quiet_s - self._clock()
                if left_s <= 0:
                    await self.write(keepalive)
                else:
                    await asyncio.sleep(left_s)

    async def finish(self) -> None:
        """End the stream in order, so that the client sees a complete response."""
        try:
            async with asyncio.timeout(self._request.services.timeouts.shutdown_s):
                await self.response.write_eof()
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Abort the connection, so that a partial stream does not look complete."""
        if self._request.http_request.transport is not None:
            self._request.http_request.transport.abort()


Produce = Callable[[EventStream], Awaitable[None]]
"""Sends all events; it is cancelled if the stream ends earlier."""


async def serve_events(
    request: Request, produce: Produce, *, dispatcher: DispatcherView | None = None
) -> web.StreamResponse:
    """Answer with the events of `produce`, at most until `dispatcher` is deposed.

    Raises:
        Problem: 429 or 503, a limit of streams is reached.
    """

    async def send_all(stream: EventStream) -> None:
        await stream.write(b"retry: %d\n\n" % _RETRY_MS)
        await produce(stream)

    headers = {"Content-Type": CONTENT_TYPE}
    return await serve_stream(
        request, send_all, headers=headers, dispatcher=dispatcher, keepalive=b":\n\n"
    )


async def serve_stream(
    request: Request,
    produce: Produce,
    *,
    headers: Mapping[str, str],
    dispatcher: DispatcherView | None = None,
    keepalive: bytes = b"",
) -> web.StreamResponse:
    """Answer with the bytes of `produce` and with these headers.

    Otherwise as `serve_events`. `keepalive` is sent while the stream is idle.
    """
    stream = EventStream(request, headers)
    with request.services.streams.count_stream(request.principal):
        await stream.start()
        if request.http_request.method != "HEAD":
            with contextlib.suppress(TimeoutError, NotDispatcher, DispatcherUnknown):
                async with request.services.long_polls.cancel_when_dispatcher_ends(
                    dispatcher, is_repeatable=True
                ):
                    await _produce_with_keepalives(stream, produce, keepalive)
        await stream.finish()
    return stream.response


async def _produce_with_keepalives(
    stream: EventStream, produce: Produce, keepalive: bytes
) -> None:
    if not keepalive:
        await produce(stream)
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            keepalives = tasks.create_task(stream.send_keepalives(keepalive))
            await produce(stream)
            keepalives.cancel()
    except ExceptionGroup as group:  # Only `produce` can fail.
        raise group.exceptions[0] from None


def parse_last_event_id(request: Request, parse: Callable[[str], Id]) -> Id | None:
    """Return the position in `Last-Event-ID`, or None for a new stream.

    Args:
        request: The request.
        parse: Parses an id; raises ValueError if it is not valid.

    Raises:
        Problem: 400, the id does not belong to this stream.
    """
    given = request.http_request.headers.getall(RESUME_HEADER, [])
    if not any(given):
        return None
    try:
        (text,) = given
        return parse(text)
    except ValueError:
        hint = "send the id of the last event from this path, or omit the header"
        raise Problem(400, INVALID_VALUE, hint=hint, field=RESUME_HEADER) from None
