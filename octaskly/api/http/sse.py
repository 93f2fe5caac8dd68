"""Answers that are streams of server-sent events.

A stream may end at any time: the agent stops, the dispatcher changes, the client reads
too slowly. Clients come back by themselves and say in `Last-Event-ID` how far they got.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from aiohttp import web

from octaskly.api.http.request import Call
from octaskly.api.problems import INVALID_VALUE, Problem
from octaskly.api.schemas.task_response import encode
from octaskly.errors import NoDispatcher, NotDispatcher
from octaskly.ports import DispatcherView

CONTENT_TYPE = "text/event-stream"
RESUME_HEADER = "Last-Event-ID"

_RETRY_MS = 1000

Id = TypeVar("Id")


def frame(
    data: object, *, event: str | None = None, event_id: str | None = None
) -> bytes:
    """Return the bytes of one event with `data` as JSON."""
    fields = [f"event: {event}\n"] if event else []
    if event_id is not None:
        fields.append(f"id: {event_id}\n")
    return b"%sdata: %s\n\n" % ("".join(fields).encode(), encode(data))


def id_frame(event_id: str) -> bytes:
    """Return the bytes that tell from where to go on, without an event."""
    return f"id: {event_id}\n\n".encode()


class EventStream:
    """The sending end of one stream."""

    def __init__(self, call: Call, headers: Mapping[str, str]) -> None:
        self.response = web.StreamResponse(headers=headers)
        self._call = call
        self._clock = asyncio.get_running_loop().time
        self._wrote_s = self._clock()
        self._turn = asyncio.Lock()

    async def send(
        self, data: object, *, event: str | None = None, event_id: str | None = None
    ) -> None:
        """Send one event with `data` as JSON; return when there is room for the next.

        Raises:
            ConnectionError: the client is gone, or read nothing for too long.
        """
        await self.write(frame(data, event=event, event_id=event_id))

    async def write(self, part: bytes) -> None:
        """Send bytes of the stream; as `send`."""
        try:
            # Beyond what the transport holds back nothing is kept here.
            async with self._turn, asyncio.timeout(self._call.parts.deadlines.stall_s):
                await self.response.write(part)
                await self._call.request.writer.drain()
        except TimeoutError:
            self.cut()
            raise ConnectionError("the client of a stream does not read") from None
        self._wrote_s = self._clock()

    async def begin(self) -> None:
        """Send the headers."""
        self._call.stamp(self.response)
        await self.response.prepare(self._call.request)

    async def keep_alive(self, sign: bytes) -> None:
        """Send a sign whenever nothing else was sent for a while."""
        quiet_s = self._call.parts.deadlines.quiet_s
        with contextlib.suppress(ConnectionError):  # It ends the handler, too.
            while True:
                left_s = self._wrote_s + quiet_s - self._clock()
                if left_s <= 0:
                    await self.write(sign)
                else:
                    await asyncio.sleep(left_s)

    async def end(self) -> None:
        """End the stream so that the client sees an end, not an accident."""
        try:
            async with asyncio.timeout(self._call.parts.deadlines.shutdown_s):
                await self.response.write_eof()
        except TimeoutError:
            self.cut()

    def cut(self) -> None:
        """Break the connection, so that what came does not look complete."""
        if self._call.request.transport is not None:
            self._call.request.transport.abort()


Produce = Callable[[EventStream], Awaitable[None]]
"""Sends events until there are no more; cancelled when the stream ends earlier."""


async def serve(
    call: Call, produce: Produce, *, reign: DispatcherView | None = None
) -> web.StreamResponse:
    """Answer with the events that `produce` sends, at most while `reign` lasts.

    Raises:
        Problem: 503, this node has too many streams.
    """

    async def send_all(stream: EventStream) -> None:
        await stream.write(b"retry: %d\n\n" % _RETRY_MS)
        await produce(stream)

    headers = {"Content-Type": CONTENT_TYPE}
    return await relay(call, send_all, headers=headers, reign=reign, sign=b":\n\n")


async def relay(
    call: Call,
    produce: Produce,
    *,
    headers: Mapping[str, str],
    reign: DispatcherView | None = None,
    sign: bytes = b"",
) -> web.StreamResponse:
    """As `serve`, but every byte comes from `produce`, and all other headers.

    A `sign` is sent while nothing else is, to show that the stream lives.
    """
    stream = EventStream(call, headers)
    with call.parts.streams.one_more():
        await stream.begin()
        if call.request.method != "HEAD":
            with contextlib.suppress(TimeoutError, NotDispatcher, NoDispatcher):
                async with call.parts.waits.bounded(reign, is_repeatable=True):
                    await _kept_alive(stream, produce, sign)
        await stream.end()
    return stream.response


async def _kept_alive(stream: EventStream, produce: Produce, sign: bytes) -> None:
    if not sign:
        await produce(stream)
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(stream.keep_alive(sign))
            await produce(stream)
            keeper.cancel()
    except ExceptionGroup as group:  # Only `produce` can have failed.
        raise group.exceptions[0] from None


def resume_id(call: Call, parse: Callable[[str], Id]) -> Id | None:
    """Return how far the client got on an earlier stream, None for a new one.

    Args:
        call: The request.
        parse: Turns an id into what it means; raises ValueError if it means nothing.

    Raises:
        Problem: 400, it is no id of this stream.
    """
    given = call.request.headers.getall(RESUME_HEADER, [])
    if not any(given):
        return None
    try:
        (text,) = given
        return parse(text)
    except ValueError:
        hint = "send the id of the last event that you got from this path, or none"
        raise Problem(400, INVALID_VALUE, hint=hint, field=RESUME_HEADER) from None
