"""The routes of files that clients leave at a node for tasks.

They stay at that node; the workers whose tasks name them fetch them from there. What is
left is never given back to clients, so a file tells nobody more than a task does.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from aiohttp import StreamReader, web

from octaskly.api.http.request import BYTES, Access, Call, Route, json_response
from octaskly.api.output.downloads import send_file
from octaskly.api.problems import INVALID_VALUE, Problem
from octaskly.api.schemas import query, task_response
from octaskly.ports import Files, Intake, NoRoom, WrongBytes
from octaskly.rest.tasks import FileLeft

PATH: Final = "/api/v1/files/{sha256}"
PIECE_BYTES: Final = 256 << 10  #: written at a time, and what memory holds of one file


async def leave(call: Call) -> web.StreamResponse:
    """Take a file in, for tasks to name; what is here already is not read again."""
    name, files = _asked(call)
    size = call.request.content_length
    if size is None:
        hint = "send Content-Length: a file is not taken in chunks"
        raise Problem(411, "Length required", hint=hint, closes=True)
    kept = await asyncio.to_thread(files.size_bytes, name)
    if kept is not None:
        response = json_response(_shown(call, name, kept))
        response.force_close()  # Its body is still on the way.
        return response
    with call.parts.streams.one_more():
        await _take_in(call, files, name, size)
    return json_response(_shown(call, name, size), HTTPStatus.CREATED)


async def show(call: Call) -> web.StreamResponse:
    """Return whether a file is at this node; it stays for an hour from now."""
    name, files = _asked(call)
    kept = await asyncio.to_thread(files.size_bytes, name)
    if kept is None:
        raise Problem(404, "File not found", hint="it is left by POST to the same path")
    return json_response(_shown(call, name, kept))


async def let_go(call: Call) -> web.StreamResponse:
    """Note that no task will name a file any more; it goes where room is needed."""
    name, files = _asked(call)
    await asyncio.to_thread(files.let_go, name)
    return web.Response(status=HTTPStatus.NO_CONTENT)


async def hand_over(call: Call) -> web.StreamResponse:
    """Send a file of this node to another node."""
    name, files = _asked(call)
    return await send_file(call, await asyncio.to_thread(files.path, name))


def _asked(call: Call) -> tuple[str, Files]:
    assert call.parts.files is not None  # As on each member of a mesh.
    return query.sha256(call.named["sha256"]), call.parts.files


def _shown(call: Call, name: str, size_bytes: int) -> bytes:
    shown = FileLeft(sha256=name, bytes=size_bytes, node=call.gateway.node_id)
    return task_response.encode(shown)


async def _take_in(call: Call, files: Files, name: str, size_bytes: int) -> None:
    try:
        intake = await asyncio.to_thread(files.begin, name, size_bytes)
        try:
            await _copy(call, call.request.content, intake)
            await asyncio.to_thread(intake.finish)
        finally:
            # Also where the client is gone, which cancels this.
            await asyncio.shield(asyncio.to_thread(intake.drop))
    except NoRoom as error:
        raise Problem(
            507, "No room for the file", hint=f"{error}; {error.hint}", closes=True
        ) from None
    except OSError as error:
        hint = f"the disk of the node takes no more: {error.strerror}"
        raise Problem(507, "No room for the file", hint=hint, closes=True) from None
    except WrongBytes as error:
        raise Problem(
            400, INVALID_VALUE, hint=str(error), field="sha256", closes=True
        ) from None
    except TimeoutError:
        hint = "nothing came of it for too long"
        raise Problem(408, "Request timeout", hint=hint, closes=True) from None


async def _copy(call: Call, content: StreamReader, intake: Intake) -> None:
    stall_s = call.parts.deadlines.stall_s
    while True:
        try:
            async with asyncio.timeout(stall_s):
                data = await content.readexactly(PIECE_BYTES)
        except asyncio.IncompleteReadError as end:
            await asyncio.to_thread(intake.write, end.partial)
            return
        await asyncio.to_thread(intake.write, data)


ROUTES = (
    Route(
        method="POST",
        path=PATH,
        perform=leave,
        access=Access.SUBMIT,
        is_local=True,
        reads_body=True,
        answers={200: FileLeft, 201: FileLeft},
        refuses=(411, 507),
    ),
    Route(
        method="GET",
        path=PATH,
        perform=show,
        access=Access.SUBMIT,
        is_local=True,
        answers={200: FileLeft},
    ),
    Route(
        method="DELETE",
        path=PATH,
        perform=let_go,
        access=Access.SUBMIT,
        is_local=True,
        answers={204: None},
    ),
    Route(
        method="GET",
        path="/internal/v1/files/{sha256}",
        perform=hand_over,
        access=Access.NODE,
        is_local=True,
        answers={200: None, 206: None},
        media=BYTES,
        heeds=("Range", "If-Range"),
        refuses=(416,),
    ),
)
