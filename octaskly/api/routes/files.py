"""Routes of files that clients upload to a node for tasks.

A file stays at that node; workers fetch it from there for tasks that name it. Clients
cannot download files; only tasks can read them.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from aiohttp import StreamReader, web

from octaskly.api.http.handler_types import BYTES, Access, Request, Route, json_response
from octaskly.api.output.downloads import send_file
from octaskly.api.problems import INVALID_VALUE, Problem
from octaskly.api.schemas import query, task_response
from octaskly.api.security import route_cost
from octaskly.ports import ContentMismatch, FileQuotaExceeded, FileStore, FileUpload
from octaskly.rest.tasks import StoredFile

PATH: Final = "/api/v1/files/{sha256}"
CHUNK_BYTES: Final = 256 << 10  #: bytes per write, and in memory per upload


async def upload_file(request: Request) -> web.StreamResponse:
    """Store an uploaded file for tasks; a file that exists is not read again."""
    name, files = _requested_file(request)
    size = request.http_request.content_length
    if size is None:
        hint = "send Content-Length: chunked uploads are not supported"
        raise Problem(411, "Length required", hint=hint, closes_connection=True)
    kept = await asyncio.to_thread(files.touch_file, name)
    if kept is not None:
        response = json_response(_encode_file(request, name, kept))
        response.force_close()  # The rest of the body is not read.
        return response
    with request.services.streams.count_stream(request.principal):
        await _store_upload(request, files, name, size)
    return json_response(_encode_file(request, name, size), HTTPStatus.CREATED)


async def show_file(request: Request) -> web.StreamResponse:
    """Return a file's size if this node has it, and keep it for another hour."""
    name, files = _requested_file(request)
    kept = await asyncio.to_thread(files.touch_file, name)
    if kept is None:
        raise Problem(
            404, "File not found", hint="upload it with POST to the same path"
        )
    return json_response(_encode_file(request, name, kept))


async def release_file(request: Request) -> web.StreamResponse:
    """Release a file that no further task will name, so that it can be deleted."""
    name, files = _requested_file(request)
    await asyncio.to_thread(files.release_file, name)
    return web.Response(status=HTTPStatus.NO_CONTENT)


async def send_file_to_node(request: Request) -> web.StreamResponse:
    """Send a file of this node to another node."""
    name, files = _requested_file(request)
    return await send_file(request, await asyncio.to_thread(files.file_path, name))


def _requested_file(request: Request) -> tuple[str, FileStore]:
    assert request.services.files is not None  # Every member of a mesh has it.
    return query.sha256(request.path_params["sha256"]), request.services.files


def _encode_file(request: Request, name: str, size_bytes: int) -> bytes:
    shown = StoredFile(sha256=name, bytes=size_bytes, node=request.gateway.node_id)
    return task_response.encode(shown)


async def _store_upload(
    request: Request, files: FileStore, name: str, size_bytes: int
) -> None:
    try:
        intake = await asyncio.to_thread(files.start_upload, name, size_bytes)
        try:
            await _copy(request, request.http_request.content, intake)
            await asyncio.to_thread(intake.finish)
        finally:
            # A disconnect of the client cancels this handler, so shield the cleanup.
            await asyncio.shield(asyncio.to_thread(intake.abort))
    except FileQuotaExceeded as error:
        raise Problem(
            507,
            "No room for the file",
            hint=f"{error}; {error.hint}",
            closes_connection=True,
        ) from None
    except OSError as error:
        hint = f"the node cannot write to its disk: {error.strerror}"
        raise Problem(
            507, "No room for the file", hint=hint, closes_connection=True
        ) from None
    except ContentMismatch as error:
        raise Problem(
            400, INVALID_VALUE, hint=str(error), field="sha256", closes_connection=True
        ) from None
    except TimeoutError:
        hint = "no bytes of the body arrived within the stall timeout"
        raise Problem(
            408, "Request timeout", hint=hint, closes_connection=True
        ) from None


async def _copy(request: Request, content: StreamReader, intake: FileUpload) -> None:
    stall_s = request.services.timeouts.stall_s
    while True:
        try:
            async with asyncio.timeout(stall_s):
                data = await content.readexactly(CHUNK_BYTES)
        except asyncio.IncompleteReadError as end:
            await asyncio.to_thread(intake.write, end.partial)
            return
        await asyncio.to_thread(intake.write, data)


ROUTES = (
    Route(
        method="POST",
        path=PATH,
        handler=upload_file,
        cost=route_cost.UPLOAD,
        access=Access.SUBMIT,
        is_local=True,
        is_body_streamed=True,
        responses={200: StoredFile, 201: StoredFile},
        error_statuses=(411, 507),
    ),
    Route(
        method="GET",
        path=PATH,
        handler=show_file,
        cost=route_cost.CHEAP,
        access=Access.SUBMIT,
        is_local=True,
        responses={200: StoredFile},
    ),
    Route(
        method="DELETE",
        path=PATH,
        handler=release_file,
        cost=route_cost.CHEAP,
        access=Access.SUBMIT,
        is_local=True,
        responses={204: None},
    ),
    Route(
        method="GET",
        path="/internal/v1/files/{sha256}",
        handler=send_file_to_node,
        cost=route_cost.STREAM,
        access=Access.NODE,
        is_local=True,
        responses={200: None, 206: None},
        media_type=BYTES,
        request_headers=("Range", "If-Range"),
        error_statuses=(416,),
    ),
)
