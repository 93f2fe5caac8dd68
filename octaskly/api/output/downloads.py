"""Downloads of declared outputs from any node.

The dispatcher knows the node that has the file. It sends a file of its own, or relays
the file of another node, which sends it only to members.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from octaskly.api.http.file_sender import part_bytes, send_chunks, send_open_file
from octaskly.api.http.handler_types import (
    BYTES,
    TAR,
    Access,
    Request,
    Route,
    json_response,
)
from octaskly.api.problems import INVALID_VALUE, Problem
from octaskly.api.schemas import query, request_bodies, task_response
from octaskly.api.schemas.files import BlobIn, render_tree_page
from octaskly.api.security import route_cost
from octaskly.core.model.ids import AttemptId
from octaskly.errors import OutputNotFound
from octaskly.files.captured_tree import CapturedTree
from octaskly.files.manifest import Manifest
from octaskly.ports.gateway import OutputLocation
from octaskly.rest.tasks import HeldTrees, TreePage
from octaskly.system.blocking_calls import opened_in_thread

_INTERNAL = "/internal/v1/outputs"
_INTERNAL_LIST = "/internal/v1/output-lists"
# A suffix of zero bytes, which no file can satisfy.
_EMPTY_SUFFIX_RANGE = re.compile(r"bytes=-0+", re.IGNORECASE)


async def download_output(request: Request) -> web.StreamResponse:
    """Send a file that a declared output of a task covers."""
    path = query.output_path(request_bodies.clean_path, request.path_params["path"])
    place = await _locate(request, path)
    return await _send_from_holder(
        request,
        place,
        f"{_internal_path(place)}/{quote(path)}",
        lambda: _send_output(request, place.task, place.attempt, path),
    )


async def download_outputs(request: Request) -> web.StreamResponse:
    """Send all captured outputs of a task as one tar."""
    place = await _locate(request, None)
    is_verified = request.query.flag("verify")
    return await _send_from_holder(
        request,
        place,
        _internal_path(place) + ("?verify=true" if is_verified else ""),
        lambda: send_outputs_tar(request, place.task, place.attempt),
    )


async def _send_from_holder(
    request: Request,
    place: OutputLocation,
    internal_path: str,
    send_own: Callable[[], Awaitable[web.StreamResponse]],
) -> web.StreamResponse:
    """Send outputs of the first node that has them: of their worker, or of a copy.

    Args:
        request: The request.
        place: The nodes.
        internal_path: The path of the outputs at another node.
        send_own: Sends what this node has; raises OutputNotFound.
    """
    first: web.StreamResponse | Exception | None = None  #: the worker's own answer
    for holder in place.holders:
        answer: web.StreamResponse | Exception
        try:
            if holder.is_local:
                return await send_own()
            answer = await request.services.node_client.forward_to_node(
                request, holder.lan_urls, internal_path
            )
            if answer.status != HTTPStatus.NOT_FOUND:
                return answer
        except OutputNotFound as error:
            answer = error
        except Problem as problem:
            if problem.status != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            answer = problem
        first = answer if first is None else first
    if place.lost:
        raise Problem(
            503,
            "Worker not found",
            hint=f"node {place.lost}, which has this output, is not in the mesh",
            headers={"Retry-After": "5"},
        )
    assert first is not None
    if isinstance(first, Exception):
        raise first
    return first


async def list_outputs(request: Request) -> web.StreamResponse:
    """Return a part of the captured outputs of a task, with their sizes."""
    limit, offset = request.query.limit(), request.query.offset()
    place = await _locate(request, None)
    path = _internal_path(place, _INTERNAL_LIST)
    return await _send_from_holder(
        request,
        place,
        f"{path}?limit={limit}&offset={offset}",
        lambda: _list_local(request, place.task, place.attempt),
    )


async def list_outputs_for_node(request: Request) -> web.StreamResponse:
    """Return a part of the captured outputs of this node to another node."""
    return await _list_local(request, *query.attempt_in(request.path_params))


async def _list_local(
    request: Request, task: str, attempt: AttemptId
) -> web.StreamResponse:
    tree = await request.gateway.captured_outputs(task, attempt)
    return await list_manifest(request, tree.manifest)


async def list_manifest(request: Request, manifest: Manifest) -> web.StreamResponse:
    """Return the part of a tree that a request asks for."""
    limit, offset = request.query.limit(), request.query.offset()
    page = await asyncio.to_thread(render_tree_page, manifest, offset, limit)
    return json_response(task_response.encode(page))


async def send_output_to_node(request: Request) -> web.StreamResponse:
    """Send a captured output of this node to another node."""
    parts = request.path_params
    path = query.output_path(request_bodies.clean_path, parts["path"])
    return await _send_output(request, *query.attempt_in(parts), path)


async def send_outputs_to_node(request: Request) -> web.StreamResponse:
    """Send the captured outputs of this node to another node, as a tar."""
    return await send_outputs_tar(
        request,
        *query.attempt_in(request.path_params),
        is_fetch=not request.query.flag("copy"),
    )


async def copy_outputs(request: Request) -> web.StreamResponse:
    """Copy the captured outputs of another node to this one."""
    task, attempt = query.attempt_in(request.path_params)
    tree = request_bodies.parse_blob(request.body)
    why = await request.files.trees.copy_outputs(task, attempt, tree)
    return json_response(task_response.encode(HeldTrees(failures=[why] if why else [])))


async def _locate(request: Request, path: str | None) -> OutputLocation:
    ref = query.task_ref(request.path_params["id"])
    return await request.gateway.locate_output(ref, path)


async def _send_output(
    request: Request, task: str, attempt: AttemptId, path: str
) -> web.StreamResponse:
    tree = await request.gateway.captured_outputs(task, attempt)
    file = await asyncio.to_thread(tree.file_path, path)
    if file is None:
        raise OutputNotFound(
            "Output not found",
            field="path",
            hint=f"{path!r} is a folder or a link; `outputs.tar` has all outputs"
            if tree.has_path(path)
            else "no declared output contained it when the attempt ended",
        )
    answer = await send_file(
        request, file, path.rpartition("/")[2], etag=tree.file_etag(path)
    )
    if request.http_request.method == "GET" and len(tree.manifest.files) == 1:
        await asyncio.to_thread(tree.mark_fetched)
    return answer


async def send_file(
    request: Request, file: Path, name: str, *, etag: str
) -> web.StreamResponse:
    """Send a file as an attachment with a name, or the requested range of it."""

    def open_file() -> int:
        try:
            return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise OutputNotFound(f"{name} no longer exists") from None

    async with opened_in_thread(open_file, os.close) as fd:
        status = os.fstat(fd)
        answer = _attachment(name, BYTES, etag)
        answer.last_modified = status.st_mtime
        start, end = _requested_part(request.http_request, answer, status.st_size)
        answer.content_length = end - start
        request.add_headers(answer)
        await answer.prepare(request.http_request)
        if request.http_request.method != "HEAD":
            await send_open_file(request.http_request, answer, fd, start, end)
    return answer


def _attachment(name: str, content_type: str, etag: str) -> web.StreamResponse:
    return web.StreamResponse(
        headers={
            "Accept-Ranges": "bytes",
            "Content-Disposition": disposition(name),
            "Content-Type": content_type,
            "ETag": f'"{etag}"',
        }
    )


def disposition(name: str) -> str:
    """Return the header by which bytes of a task are never a page of this origin."""
    return f"attachment; filename*=UTF-8''{quote(name)}"


def _matches_if_range(request: web.BaseRequest, answer: web.StreamResponse) -> bool:
    """Return True if `If-Range` is absent or matches this answer.

    Source: RFC 9110, section 13.1.5.
    """
    wanted = request.headers.get("If-Range")
    return wanted in (None, answer.headers["ETag"], answer.headers.get("Last-Modified"))


def requested_range(request: web.BaseRequest, size_bytes: int) -> slice | None:
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


async def send_outputs_tar(
    request: Request, task: str, attempt: AttemptId, *, is_fetch: bool = True
) -> web.StreamResponse:
    """Stream the captured outputs of this node as a tar, or a range of it.

    Args:
        request: The request.
        task: The task.
        attempt: The attempt that left them.
        is_fetch: Somebody fetches them, so that they may make room for others.
    """
    # A manifest of many files is in memory until its archive has been sent.
    with request.services.streams.count_stream(request.principal):
        tree = await request.gateway.captured_outputs(task, attempt)
        if await asyncio.to_thread(tree.is_damaged):
            raise OutputNotFound("outputs were damaged on the disk of this node")
        if request.query.flag("verify"):
            tree.distrust()
        name = f"{task}-outputs.tar"
        return await send_tar(request, tree, name, is_fetch=is_fetch)


async def send_tar(
    request: Request, tree: CapturedTree, name: str, *, is_fetch: bool = False
) -> web.StreamResponse:
    """Stream a tree of this node as a tar with a name, or a range of it."""
    layout = await asyncio.to_thread(lambda: tree.tar)
    answer = _attachment(name, TAR, tree.etag)
    start, end = _requested_part(request.http_request, answer, layout.size_bytes)
    answer.content_length = end - start
    request.add_headers(answer)
    await answer.prepare(request.http_request)
    if request.http_request.method != "HEAD":
        part_max = part_bytes(request.http_request)
        chunks = tree.tar_chunks(start, end, part_max)
        if is_fetch and end == layout.size_bytes:
            chunks = _and_then(chunks, tree.mark_fetched)
        turn = request.work.turn
        await send_chunks(request.http_request, answer, chunks, turn)
    return answer


def _and_then(chunks: Iterator[bytes], on_sent: Callable[[], None]) -> Iterator[bytes]:
    """Yield chunks; call a function once the last one was sent.

    The thread that reads the chunks calls it. The handler may be cancelled by then:
    many clients leave with the last byte.
    """
    yield from filter(None, chunks)
    on_sent()


def _requested_part(
    request: web.BaseRequest, answer: web.StreamResponse, size_bytes: int
) -> tuple[int, int]:
    """Return the bytes to send; announce them in the answer if they are a part."""
    part = None
    if _matches_if_range(request, answer):
        part = requested_range(request, size_bytes)
    if part is None:
        return 0, size_bytes
    start, end, _ = part.indices(size_bytes)
    answer.set_status(206)
    answer.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    return start, end


def _internal_path(place: OutputLocation, under: str = _INTERNAL) -> str:
    attempt = place.attempt
    return f"{under}/{quote(place.task, safe='')}/{attempt}"


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/tasks/{id}/outputs",
        handler=list_outputs,
        cost=route_cost.TREE,
        access=Access.READ,
        query=("limit", "offset"),
        responses={200: TreePage},
        error_statuses=(409,),
    ),
    Route(
        method="GET",
        path="/api/v1/tasks/{id}/outputs.tar",
        handler=download_outputs,
        cost=route_cost.STREAM,
        access=Access.READ,
        query=("verify",),
        responses={200: None, 206: None},
        media_type=TAR,
        request_headers=("Range", "If-Range"),
        error_statuses=(409, 416),
    ),
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
        path=_INTERNAL_LIST + query.ATTEMPT_PATH,
        handler=list_outputs_for_node,
        cost=route_cost.NODE_TREE,
        access=Access.NODE,
        is_local=True,
        query=("limit", "offset"),
        responses={200: TreePage},
    ),
    Route(
        method="GET",
        path=_INTERNAL + query.ATTEMPT_PATH,
        handler=send_outputs_to_node,
        cost=route_cost.STREAM,
        access=Access.NODE,
        is_local=True,
        query=("copy", "verify"),
        responses={200: None, 206: None},
        media_type=TAR,
        request_headers=("Range", "If-Range"),
        error_statuses=(416,),
    ),
    Route(
        method="POST",
        path=_INTERNAL + query.ATTEMPT_PATH + "/copy",
        handler=copy_outputs,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        is_local=True,
        body_type=BlobIn,
        responses={200: HeldTrees},
    ),
    Route(
        method="GET",
        path=_INTERNAL + query.ATTEMPT_PATH + "/{path:(?s:.+)}",
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
