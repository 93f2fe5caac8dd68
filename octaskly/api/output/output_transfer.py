"""Transfer of an attempt's output from its node to the node of the client.

Between nodes, it is a stream of frames: kind (1 byte), offset (8), length (4), bytes.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from urllib.parse import quote

import aiohttp
from aiohttp import web

from octaskly.api.http import sse
from octaskly.api.http.handler_types import BYTES, Access, Request, Route
from octaskly.api.http.node_client import NodeNotResponding, request_from_node
from octaskly.api.schemas import query
from octaskly.api.security import route_cost
from octaskly.core.model.ids import AttemptId, NodeId, TaskId, is_visitor
from octaskly.core.protocol.messages import StartOffsets
from octaskly.errors import OutputNotFound
from octaskly.ports.output import STREAMS, OutputChunk

_INTERNAL = "/internal/v1/transcripts"
_FRAME = struct.Struct(">BQI")
_BYTES_MAX = 1 << 20
_ABSENT, _END, _KEEPALIVE = 253, 254, 255  #: frame kinds that are not stream numbers
_KEEPALIVES_MISSED_MAX = 2
_KEEPALIVE_FRAME = _FRAME.pack(_KEEPALIVE, 0, 0)


async def read_transcript(
    request: Request,
    node: NodeId,
    attempt: tuple[TaskId, AttemptId],
    starts: StartOffsets,
    *,
    follow: bool,
) -> AsyncGenerator[OutputChunk]:
    """Yield the output of an attempt from its node; see `OutputSource.stream_output`.

    That of a visitor comes from the dispatcher, to which the visitor is linked.

    Raises:
        OutputNotFound: the node kept no output except that in the result.
        NodeNotResponding: the node did not answer, or stopped in the middle.
    """
    gateway = request.gateway
    visitor = node if is_visitor(node) else None
    urls: Sequence[str] = ()
    if visitor is None:
        is_local = node == gateway.node_id
        urls = () if is_local else gateway.api_urls_of(node)
    else:
        view = gateway.dispatcher()
        if view is None:
            raise NodeNotResponding("no dispatcher is known")
        is_local, urls = view.is_self, view.lan_urls
    if is_local:
        local = _local_output(request, visitor, attempt, starts, follow=follow)
        async for piece in local:
            yield piece
        return
    path = _path(visitor, attempt, starts, follow=follow)
    silence_s = _frame_timeout_s(request, follow=follow)
    async with request_from_node(
        request, urls, path, response_timeout_s=silence_s
    ) as response:
        if response.content_type != BYTES:
            raise NodeNotResponding(f"the node answered {response.status}")
        async with aclosing(_decode_frames(response, silence_s)) as received:
            async for piece in received:
                yield piece


def _local_output(
    request: Request,
    visitor: NodeId | None,
    attempt: tuple[TaskId, AttemptId],
    starts: StartOffsets,
    *,
    follow: bool,
) -> AsyncIterator[OutputChunk]:
    """Return the output of an attempt of this node, or of one of its visitors."""
    gateway = request.gateway
    if visitor is None:
        return gateway.stream_output(*attempt, starts, follow=follow)
    return gateway.stream_visitor_output(visitor, *attempt, starts, follow=follow)


async def _decode_frames(
    response: aiohttp.ClientResponse, timeout_s: float
) -> AsyncGenerator[OutputChunk]:
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                head = await response.content.readexactly(_FRAME.size)
                kind, offset, size = _FRAME.unpack(head)
                if size > _BYTES_MAX:
                    raise NodeNotResponding(f"a frame of {size} bytes")
                data = await response.content.readexactly(size)
        except (asyncio.IncompleteReadError, TimeoutError):
            raise NodeNotResponding("the node stopped sending") from None
        if kind == _END:
            return
        if kind == _ABSENT:
            raise OutputNotFound("the node has no file with this output")
        if kind < len(STREAMS):
            yield OutputChunk(kind, offset, data)


def _frame_timeout_s(request: Request, *, follow: bool) -> float:
    """Return the seconds of silence after which a node counts as lost.

    A node sends keepalives. A follower has a short timeout, because the task may run
    elsewhere by then, and it can ask again at the same offset. Other readers do not ask
    again, so their timeout is long.
    """
    timeouts = request.services.timeouts
    return _KEEPALIVES_MISSED_MAX * timeouts.keepalive_s if follow else timeouts.stall_s


def _path(
    visitor: NodeId | None,
    attempt: tuple[TaskId, AttemptId],
    starts: StartOffsets,
    *,
    follow: bool,
) -> str:
    task, run = attempt
    given = [
        f"{name}={start}"
        for name, start in zip(STREAMS, starts, strict=True)
        if start is not None
    ]
    if visitor is not None:
        given.append(f"visitor={visitor}")
    given.append(f"follow={'true' if follow else 'false'}")
    place = f"{quote(task, safe='')}/{run}"
    return f"{_INTERNAL}/{place}?{'&'.join(given)}"


_HEADERS = {"Content-Type": BYTES}


async def send_transcript_to_node(request: Request) -> web.StreamResponse:
    """Send output of this node, or of one of its visitors, to another node."""
    task, attempt = query.attempt_in(request.path_params)
    visitor = request.query.visitor()
    starts = (
        request.query.stream_offset("stdout"),
        request.query.stream_offset("stderr"),
    )
    follow = request.query.flag("follow")

    async def send_all(stream: sse.EventStream) -> None:
        found = _local_output(
            request, visitor, (TaskId(task), attempt), starts, follow=follow
        )
        await _send(stream, found)

    return await sse.serve_stream(
        request, send_all, headers=_HEADERS, keepalive=_KEEPALIVE_FRAME
    )


async def _send(stream: sse.EventStream, found: AsyncIterator[OutputChunk]) -> None:
    kind = _END
    try:
        async for piece in found:
            head = _FRAME.pack(piece.stream, piece.offset, len(piece.data))
            await stream.write(head + piece.data)
    except OutputNotFound:
        kind = _ABSENT
    await stream.write(_FRAME.pack(kind, 0, 0))


ROUTES = (
    Route(
        method="GET",
        path=_INTERNAL + query.ATTEMPT_PATH,
        handler=send_transcript_to_node,
        cost=route_cost.STREAM,
        access=Access.NODE,
        is_local=True,
        query=(*STREAMS, "follow", "visitor"),
        responses={200: None},
        media_type=BYTES,
    ),
)
