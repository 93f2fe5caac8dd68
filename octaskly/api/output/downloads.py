"""Downloads of declared outputs from any node.

The dispatcher knows the node that has the file. It sends a file of its own, or relays
the file of another node, which sends it only to members.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from octaskly.api.http.handler_types import BYTES, Access, Request, Route
from octaskly.api.problems import INVALID_VALUE, Problem
from octaskly.api.schemas import query, request_bodies
from octaskly.api.security import route_cost
from octaskly.core.model.ids import AttemptId, StreamId
from octaskly.errors import NodeNotFound, OutputNotFound
from octaskly.ports import OutputLocation

_CHUNK_BYTES = 256 << 10
_INTERNAL = "/internal/v1/outputs"
# A suffix of zero bytes, which no file can satisfy; aiohttp would send all bytes.
_EMPTY_SUFFIX_RANGE = re.compile(r"bytes=-0+", re.IGNORECASE)
# aiohttp would send `x.gz` as an encoding of `x`, but it is another output. A stored
# output never changes, so conditional headers have no use. This module evaluates
# `If-Range` itself, because aiohttp accepts any later date as a match, and no entity
# tag.
_DROPPED = frozenset(
    (
        "accept-encoding",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
    )
)


async def download_output(request: Request) -> web.StreamResponse:
    """Send a declared output of a task."""
    ref = query.task_ref(request.path_params["id"])
    path = query.output_path(request_bodies.clean_path, request.path_params["path"])
    try:
        place = await request.gateway.locate_output(ref, path)
    except NodeNotFound as error:
        raise Problem(
            503, "Worker not found", hint=str(error), headers={"Retry-After": "5"}
        ) from None
    if place.local_path is not None:
        return await send_file(request, place.local_path)
    return await request.services.node_client.forward_to_node(
        request, place.lan_urls, _internal_path(place)
    )


async def send_output_to_node(request: Request) -> web.StreamResponse:
    """Send a captured output of this node to another node."""
    parts = request.path_params
    path = query.output_path(request_bodies.clean_path, parts["path"])
    attempt = AttemptId(
        int(parts["term"]), StreamId(int(parts["stream"])), int(parts["n"])
    )
    file = request.gateway.local_output_path(
        query.logged_id(parts["task"]), attempt, path
    )
    return await send_file(request, file)


async def send_file(request: Request, file: Path) -> web.StreamResponse:
    """Return a file as an attachment, or the requested range of it."""
    there = _stat(file)
    answer = _Attachment(file, there)
    if answer.matches_if_range(request.http_request):
        answer.is_whole = _requested_range(request.http_request, there.st_size) is None
    return answer


class _Attachment(web.FileResponse):
    """A file response that ignores compressed variants and most conditional headers."""

    def __init__(self, file: Path, stat: os.stat_result) -> None:
        # Bytes from a task are data, never a page of this origin.
        disposition = f"attachment; filename*=UTF-8''{quote(file.name)}"
        headers = {"Content-Type": BYTES, "Content-Disposition": disposition}
        super().__init__(file, chunk_size=_CHUNK_BYTES, headers=headers)
        # aiohttp sets the same values, but only after `matches_if_range` needs them.
        self.etag = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
        self.last_modified = stat.st_mtime
        self.is_whole = True

    def matches_if_range(self, request: web.BaseRequest) -> bool:
        """Return True if `If-Range` is absent or matches this file.

        Source: RFC 9110, section 13.1.5.
        """
        wanted = request.headers.get("If-Range")
        return wanted in (None, self.headers["ETag"], self.headers["Last-Modified"])

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send headers and file, once, although aiohttp calls this twice."""
        if self.prepared:
            return None
        dropped = _DROPPED | {"range"} if self.is_whole else _DROPPED
        kept = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in dropped
        ]
        return await super().prepare(request.clone(headers=kept))


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError:
        raise OutputNotFound(f"{file.name} no longer exists") from None


def _requested_range(request: web.BaseRequest, size_bytes: int) -> slice | None:
    """Return the range to send; None for the whole file.

    An invalid or unsupported range header selects the whole file. So does a suffix of
    an empty output, which no `Content-Range` can express.

    Source: RFC 9110, sections 14.1.2 and 14.2.

    Raises:
        Problem: 416, the range has no bytes; aiohttp's own 416 has no JSON.
    """
    try:
        part = request.http_range
    except ValueError:  # Another unit, several ranges, or an invalid range.
        return None
    if request.method != "GET" or part.start is None:
        return None
    is_none = _EMPTY_SUFFIX_RANGE.fullmatch(request.headers["Range"]) is not None
    if part.start < 0 and not size_bytes:
        return None
    if is_none or part.start >= size_bytes:
        raise Problem(
            416,
            INVALID_VALUE,
            hint=f"the output has {size_bytes} bytes",
            field="Range",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
    return part


def _internal_path(place: OutputLocation) -> str:
    attempt = place.attempt
    return (
        f"{_INTERNAL}/{quote(place.task, safe='')}"
        f"/{attempt.term}/{attempt.stream}/{attempt.n}/{quote(place.path)}"
    )


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/tasks/{id}/outputs/{path:(?s:.+)}",
        handler=download_output,
        cost=route_cost.STREAM,
        access=Access.READ,
        responses={200: None, 206: None},
        media_type=BYTES,
        request_headers=("Range", "If-Range"),
        error_statuses=(409, 416),
    ),
    Route(
        method="GET",
        path=_INTERNAL
        + r"/{task}/{term:\d{1,19}}/{stream:\d{1,19}}/{n:\d{1,9}}/{path:(?s:.+)}",
        handler=send_output_to_node,
        cost=route_cost.STREAM,
        access=Access.NODE,
        is_local=True,
        responses={200: None, 206: None},
        media_type=BYTES,
        request_headers=("Range", "If-Range"),
        error_statuses=(416,),
    ),
)
