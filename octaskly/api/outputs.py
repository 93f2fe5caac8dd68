"""Downloads of declared outputs, wherever they lie.

The dispatcher knows which node has the file. It sends its own, and passes on that of
another node, which gives it to members only.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from octaskly.api import query, schema
from octaskly.api.problems import INVALID_VALUE, Problem
from octaskly.api.routing import BYTES, Access, Call, Route
from octaskly.core.model import AttemptId, StreamId
from octaskly.errors import NodeNotFound, OutputNotFound
from octaskly.ports import OutputPlace

_CHUNK_BYTES = 256 << 10
_INTERNAL = "/internal/v1/outputs"
# The last none, which cannot be had of any file; the library takes it for all of them.
_NO_BYTES = re.compile(r"bytes=-0+", re.IGNORECASE)
# A file beside the asked one that ends in .gz is another output, not an encoding of
# this one; and a copy that never changes needs no condition.
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


async def download(call: Call) -> web.StreamResponse:
    """Send a declared output of a task."""
    ref = query.task_ref(call.named["id"])
    path = query.path_part(schema.clean_path, call.named["path"])
    try:
        place = await call.gateway.output(ref, path)
    except NodeNotFound as error:
        raise Problem(
            503, "Worker not found", hint=str(error), headers={"Retry-After": "5"}
        ) from None
    if place.local is not None:
        return await send_file(call, place.local)
    return await call.parts.forwarder.fetch(call, place.lan_urls, _internal_path(place))


async def hand_over(call: Call) -> web.StreamResponse:
    """Send a captured output of this node to another node."""
    parts = call.named
    path = query.path_part(schema.clean_path, parts["path"])
    attempt = AttemptId(
        int(parts["term"]), StreamId(int(parts["stream"])), int(parts["n"])
    )
    file = call.gateway.local_output(query.logged_id(parts["task"]), attempt, path)
    return await send_file(call, file)


async def send_file(call: Call, file: Path) -> web.StreamResponse:
    """Return a file as an attachment; part of it where a range was asked for."""
    size_bytes = _size_bytes(file)
    _check_range(call.request, size_bytes)
    return _Attachment(
        file,
        is_whole=_part(call.request, size_bytes) is None,
        chunk_size=_CHUNK_BYTES,
        headers={
            "Content-Type": BYTES,
            # Bytes from a task are data, never a page of this origin.
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name)}",
        },
    )


class _Attachment(web.FileResponse):
    """A file as it is, whatever else lies beside it."""

    def __init__(
        self, file: Path, *, is_whole: bool, chunk_size: int, headers: dict[str, str]
    ) -> None:
        super().__init__(file, chunk_size=chunk_size, headers=headers)
        self._is_whole = is_whole

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send headers and file; once, though the library asks for it again."""
        if self.prepared:
            return None
        dropped = _DROPPED | {"range"} if self._is_whole else _DROPPED
        kept = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in dropped
        ]
        return await super().prepare(request.clone(headers=kept))


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        raise OutputNotFound(f"{file.name} is not there any more") from None


def _part(request: web.BaseRequest, size_bytes: int) -> slice | None:
    """Return which bytes to send; None: all, or nothing is asked that is understood.

    The last bytes of an empty output are all of it, which no `Content-Range` can say.

    Source: RFC 9110, sections 14.1.2 and 14.2.
    """
    try:
        part = request.http_range
    except ValueError:  # Another unit, several ranges, or no range at all.
        return None
    if request.method != "GET" or part.start is None:
        return None
    return None if part.start < 0 and not size_bytes else part


def _check_range(request: web.BaseRequest, size_bytes: int) -> None:
    """Answer a bad range ourselves, since the library's own 416 has no JSON body."""
    part = _part(request, size_bytes)
    if part is None:
        return
    is_none = _NO_BYTES.fullmatch(request.headers["Range"]) is not None
    if is_none or part.start >= size_bytes:
        raise Problem(
            416,
            INVALID_VALUE,
            hint=f"the output has {size_bytes} bytes",
            field="Range",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )


def _internal_path(place: OutputPlace) -> str:
    attempt = place.attempt
    return (
        f"{_INTERNAL}/{quote(place.task, safe='')}"
        f"/{attempt.term}/{attempt.stream}/{attempt.n}/{quote(place.path)}"
    )


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/tasks/{id}/outputs/{path:(?s:.+)}",
        perform=download,
        access=Access.READ,
        answers={200: None, 206: None},
        media=BYTES,
        heeds=("Range",),
        refuses=(409, 416),
    ),
    Route(
        method="GET",
        path=_INTERNAL
        + r"/{task}/{term:\d{1,19}}/{stream:\d{1,19}}/{n:\d{1,9}}/{path:(?s:.+)}",
        perform=hand_over,
        access=Access.NODE,
        is_local=True,
        answers={200: None, 206: None},
        media=BYTES,
        heeds=("Range",),
        refuses=(416,),
    ),
)
