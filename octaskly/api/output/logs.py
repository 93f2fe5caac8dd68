"""Routes of task output, live and afterwards: as events, and as raw bytes."""

from __future__ import annotations

import re
from contextlib import aclosing

from aiohttp import web

from octaskly.api.http import sse
from octaskly.api.http.handler_types import BYTES, Access, Request, Route
from octaskly.api.output.follower import (
    AttemptStarted,
    NotRunning,
    OutputEvent,
    OutputFollower,
    OutputGap,
    OutputPosition,
)
from octaskly.api.output.task_status_query import StatusQuery, get_task_status
from octaskly.api.schemas import query
from octaskly.api.security import route_cost
from octaskly.core.model.ids import ATTEMPT_PATTERN, parse_attempt_id
from octaskly.ports.output import STREAMS, OutputChunk

EVENT_BYTES_MAX = 64 << 10  #: output bytes in one event, before decoding
_CHARACTER_BYTES_MAX = 4
_CONTINUATION, _CONTINUATION_MASK = 0x80, 0xC0
_LEADING_BYTES = ((0xC0, 0xE0, 2), (0xE0, 0xF0, 3), (0xF0, 0xF8, 4))
"""Bits, mask and character length of each leading byte in UTF-8: RFC 3629."""
TOTAL_HEADER = "Octaskly-Output-Bytes"
_ID = re.compile(rf"({ATTEMPT_PATTERN})?:(\d{{1,16}}):(\d{{1,16}})")


async def stream_logs(request: Request) -> web.StreamResponse:
    """Send the output of a task as server-sent events."""
    question = _status_query(request)
    wanted, follow = request.query.streams(), request.query.flag("follow")
    start = request.query.offset()
    place = sse.parse_last_event_id(request, parse_event_id) or OutputPosition(
        None, [start, start]
    )
    begin = await get_task_status(request, question)
    follower = OutputFollower(request, question, begin, place, wanted)

    async def send_all(stream: sse.EventStream) -> None:
        writer = _OutputEventWriter(stream, place)
        async with aclosing(follower.events(follow=follow)) as steps:
            async for step in steps:
                await writer.write(step)
        await writer.write_end(follower)

    return await sse.serve_events(request, send_all)


async def download_stdout(request: Request) -> web.StreamResponse:
    """Send the bytes of a task's stdout."""
    return await _send_raw(request, 0)


async def download_stderr(request: Request) -> web.StreamResponse:
    """Send the bytes of a task's stderr."""
    return await _send_raw(request, 1)


def _status_query(request: Request) -> StatusQuery:
    ref = query.task_ref(request.path_params["id"])
    return StatusQuery(ref=ref, attempt_number=request.query.attempt())


def parse_event_id(text: str) -> OutputPosition:
    """Return the position in an event id; raise ValueError if it is invalid."""
    match = _ID.fullmatch(text)
    if match is None:
        raise ValueError(text)
    attempt, *offsets = match.groups()
    return OutputPosition(
        parse_attempt_id(attempt) if attempt else None, list(map(int, offsets))
    )


class _OutputEventWriter:
    """Writes output events to a stream of server-sent events.

    It joins characters that are split between two chunks. It sends bytes that are not
    UTF-8 in base64, so no byte is lost.
    """

    def __init__(self, stream: sse.EventStream, position: OutputPosition) -> None:
        self._stream = stream
        self._position = position
        self._sent_offsets = list(position.offsets)
        self._incomplete = [b"", b""]  #: bytes of an incomplete character, by stream

    async def write(self, event: OutputEvent) -> None:
        match event:
            case OutputChunk():
                data = self._incomplete[event.stream] + event.data
                self._incomplete[event.stream] = await self._send_text(
                    event.stream, data
                )
            case OutputGap():
                await self._flush()
                self._sent_offsets[event.stream] = event.end
                said: dict[str, object] = {
                    "stream": STREAMS[event.stream],
                    "offset": event.offset,
                    "bytes": event.end - event.offset,
                    "reason": event.reason,
                }
                await self._send("gap", said)
            case AttemptStarted():
                await self._flush()
                self._sent_offsets[:] = self._position.offsets
                said = {
                    "attempt": event.attempt,
                    "node": event.node,
                    "previous": event.previous_reason,
                }
                await self._send("attempt", said)
            case NotRunning():
                await self._send("state", {"status": event.status})

    async def write_end(self, follower: OutputFollower) -> None:
        """Send the last event, with the final status."""
        await self._flush()
        await self._send("end", follower.status.last_event)

    async def _send_text(self, stream: int, data: bytes) -> bytes:
        """Send whole characters; return the bytes of an incomplete last one."""
        while data:
            part = data[:EVENT_BYTES_MAX]
            part = part[: len(part) - _incomplete_bytes(part)]
            if not part:
                break
            await self._send_bytes(stream, part)
            data = data[len(part) :]
        return data

    async def _send_bytes(self, stream: int, data: bytes) -> None:
        said: dict[str, object] = {"offset": self._sent_offsets[stream]}
        try:
            said["data"] = data.decode()
        except UnicodeDecodeError:
            said |= {"data": data, "encoding": "base64"}
        self._sent_offsets[stream] += len(data)
        await self._send(STREAMS[stream], said)

    async def _flush(self) -> None:
        for stream, data in enumerate(self._incomplete):
            if data:
                self._incomplete[stream] = b""
                await self._send_bytes(stream, data)

    async def _send(self, event: str, said: object) -> None:
        attempt = self._position.attempt
        out, err = self._sent_offsets
        event_id = f"{attempt or ''}:{out}:{err}"
        await self._stream.send(said, event=event, event_id=event_id)


def _incomplete_bytes(data: bytes) -> int:
    """Return the number of bytes of an incomplete character at the end."""
    for back in range(1, min(_CHARACTER_BYTES_MAX, len(data) + 1)):
        byte = data[-back]
        if byte & _CONTINUATION_MASK != _CONTINUATION:
            lengths = (n for first, mask, n in _LEADING_BYTES if byte & mask == first)
            return back if next(lengths, 0) > back else 0
    return 0


async def _send_raw(request: Request, stream: int) -> web.StreamResponse:
    """Send the kept bytes of one stream."""
    question = _status_query(request)
    follow = request.query.flag("follow")
    place = OutputPosition(None, [request.query.offset()] * len(STREAMS))
    begin = await get_task_status(request, question)
    follower = OutputFollower(
        request, question, begin, place, (stream == 0, stream == 1)
    )

    async def send_all(answer: sse.EventStream) -> None:
        try:
            await _write_all(answer, follower, follow=follow)
        except BaseException:
            answer.abort()  # A partial stream must not look complete.
            raise

    file = f"{question.ref}.{STREAMS[stream]}"
    headers = {
        "Content-Type": BYTES,
        # Bytes from a task are data, never a page of this origin.
        "Content-Disposition": f'attachment; filename="{file}"',
    }
    if begin.is_final and not begin.is_end_unseen:
        headers[TOTAL_HEADER] = str(begin.output_bytes[stream])
    return await sse.serve_stream(request, send_all, headers=headers)


async def _write_all(
    answer: sse.EventStream, follower: OutputFollower, *, follow: bool
) -> None:
    attempts = 0
    async with aclosing(follower.events(follow=follow)) as steps:
        async for step in steps:
            attempts += isinstance(step, AttemptStarted)
            if attempts > 1:
                raise ConnectionError(
                    "the output sent so far is invalid, because the task runs again"
                )
            if isinstance(step, OutputChunk):
                await answer.write(step.data)


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/tasks/{id}/logs",
        handler=stream_logs,
        cost=route_cost.STREAM,
        access=Access.READ,
        is_local=True,
        query=("stream", "offset", "follow", "attempt"),
        responses={200: None},
        media_type=sse.CONTENT_TYPE,
        request_headers=(sse.RESUME_HEADER,),
        error_statuses=(409,),
    ),
    *(
        Route(
            method="GET",
            path=f"/api/v1/tasks/{{id}}/{name}",
            handler=perform,
            cost=route_cost.STREAM,
            access=Access.READ,
            is_local=True,
            query=("offset", "follow", "attempt"),
            responses={200: None},
            media_type=BYTES,
            response_headers=(TOTAL_HEADER,),
            error_statuses=(409,),
        )
        for name, perform in zip(
            STREAMS, (download_stdout, download_stderr), strict=True
        )
    ),
)
