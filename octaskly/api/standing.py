"""Where a task stands, as a node must know that shows its output.

The dispatcher says it; the node that the client is connected to asks, also a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web

from octaskly.api import query, render
from octaskly.api.forward import none_elected
from octaskly.api.peers import Unanswered, asked
from octaskly.api.problems import REFUSED_HEADER, Problem
from octaskly.api.routing import Access, Call, Route, json_response
from octaskly.core.merge import TaskRecord
from octaskly.core.model import AttemptId, AttemptState, StreamId
from octaskly.errors import NoDispatcher, NotDispatcher

_INTERNAL = "/internal/v1/tasks/{id}/standing"
_PAUSE_S = 0.05
_BUSY_S = 1.0  #: until a dispatcher is asked again that has no room
_BYTES_MAX = 8 << 20


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What decides where its output is."""

    task: str  #: as the log knows it
    name: str  #: as clients know it
    status: str
    attempt: tuple[int, int, int] | None = None  #: the one that counts so far
    node: str = ""  #: that runs or ran it
    node_name: str = ""
    before: str | None = None  #: why the attempt before that one does not count
    sizes: tuple[int, int] = (0, 0)  #: what it wrote, once it has ended
    logged: tuple[int, int] = (0, 0)  #: what the log has of it
    kept: tuple[bytes, bytes] | None = None  #: the very bytes, where asked for
    end: dict[str, Any] | None = None  #: what is said at the end, once it has come

    @property
    def version(self) -> str:
        """Changes when anything does that a reader must act on."""
        attempt = self.attempt_id
        return f"{self.status}:{name_of(attempt) if attempt else ''}"

    @property
    def attempt_id(self) -> AttemptId | None:
        """The attempt as nodes name it."""
        if self.attempt is None:
            return None
        term, stream, n = self.attempt
        return AttemptId(term, StreamId(stream), n)

    @property
    def said(self) -> dict[str, Any]:
        """What is said of it at the end of a stream."""
        return self.end or {"id": self.name, "status": self.status}

    @property
    def is_final(self) -> bool:
        """Whether nothing more will be written."""
        return self.end is not None


class _Refusal(msgspec.Struct, frozen=True):
    error: str
    hint: str | None = None
    field: str | None = None


def name_of(attempt: AttemptId) -> str:
    """Return an attempt as a word."""
    return "-".join(map(str, attempt))


async def standing(
    call: Call,
    ref: str,
    *,
    known: Standing | None = None,
    wait_s: float = 0.0,
    with_kept: bool = False,
) -> Standing:
    """Return where a task stands, once that is another thing than is known.

    Raises:
        Problem: the dispatcher refuses, or none is found in time.
    """
    version = known.version if known else ""
    clock = asyncio.get_running_loop().time
    hold_s = call.parts.deadlines.hold_s
    give_up_s = clock() + hold_s
    while True:
        began_s = clock()
        with contextlib.suppress(NotDispatcher, NoDispatcher, Unanswered, TimeoutError):
            found = await _asked_once(call, ref, version, wait_s, with_kept=with_kept)
            if found is not None:
                return found
            version = ""  # Then without waiting, a moment later.
            await asyncio.sleep(_BUSY_S)
            continue
        if clock() - began_s > hold_s:
            give_up_s = clock() + hold_s  # It went well until now.
        if clock() > give_up_s or call.parts.waits.is_closing:
            raise none_elected()
        await asyncio.sleep(_PAUSE_S)


async def _asked_once(
    call: Call, ref: str, version: str, wait_s: float, *, with_kept: bool
) -> Standing | None:
    """Ask the dispatcher; None means that it has no room for one more who waits."""
    gateway = call.gateway
    view = await gateway.dispatcher_known(call.parts.deadlines.hold_s)
    if view is None:
        raise none_elected()
    async with call.parts.waits.bounded(view, is_repeatable=True):
        if view.is_self:
            return await _here(call, ref, version, wait_s, with_kept=with_kept)
        path = (
            f"{_INTERNAL.replace('{id}', quote(ref, safe=''))}?known={quote(version)}"
            f"&wait={wait_s:g}&kept={'true' if with_kept else 'false'}"
        )
        async with asked(call, view.lan_urls, path, wait_s=wait_s) as response:
            if REFUSED_HEADER in response.headers:
                raise NotDispatcher("it is not dispatcher any more")
            if response.status == HTTPStatus.SERVICE_UNAVAILABLE and version:
                return None
            return await _decoded(call, response)


async def _decoded(call: Call, response: aiohttp.ClientResponse) -> Standing:
    if (response.content_length or 0) > _BYTES_MAX:
        raise Unanswered("an answer that is too large")
    async with asyncio.timeout(call.parts.deadlines.stall_s):
        body = await response.read()
    try:
        if response.status == HTTPStatus.OK:
            return msgspec.json.decode(body, type=Standing)
        told = msgspec.json.decode(body, type=_Refusal)
    except msgspec.DecodeError as error:
        raise Unanswered(f"an answer that makes no sense: {error}") from None
    headers = {n: v for n, v in response.headers.items() if n == "Retry-After"}
    raise Problem(
        response.status, told.error, hint=told.hint, field=told.field, headers=headers
    )


async def _here(
    call: Call, ref: str, version: str, wait_s: float, *, with_kept: bool
) -> Standing:
    def is_news(record: TaskRecord) -> bool:
        return _standing_of(call, record, with_kept=False).version != version

    if version:
        record = await call.gateway.until(ref, is_news, wait_s)
    else:
        record = await call.gateway.task(ref)
    return _standing_of(call, record, with_kept=with_kept)


def _standing_of(call: Call, record: TaskRecord, *, with_kept: bool) -> Standing:
    state, names = record.state, call.gateway.names()
    attempt = render.visible_attempt(record, state)
    outcome = render.visible_outcome(attempt, state)
    if state.is_final and outcome is None:
        attempt = None  # Nothing that ran decided: it was cancelled before.
    gone = [
        other.outcome.reason.value
        for other in record.attempts
        if other.state is AttemptState.RELEASED and other.outcome
    ]
    return Standing(
        task=record.id,
        name=record.name,
        status=state.value,
        attempt=attempt.id if attempt else None,
        node=attempt.node if attempt else "",
        node_name=names.get(attempt.node, attempt.node) if attempt else "",
        before=gone[-1] if gone else None,
        sizes=(outcome.stdout_bytes, outcome.stderr_bytes) if outcome else (0, 0),
        logged=(len(outcome.stdout), len(outcome.stderr)) if outcome else (0, 0),
        kept=(outcome.stdout, outcome.stderr) if outcome and with_kept else None,
        end=render.ended(record, names) if state.is_final else None,
    )


async def tell(call: Call) -> web.StreamResponse:
    """Tell another node where a task stands."""
    ref = query.task_ref(call.request.match_info["id"])
    known, wait_s = call.query.text("known"), call.query.wait_s()
    # Who waits holds a connection for long, as a stream does.
    with call.parts.streams.one_more() if known else contextlib.nullcontext():
        found = await _here(call, ref, known, wait_s, with_kept=call.query.flag("kept"))
    return json_response(render.encode(found))


ROUTES = (
    Route(
        method="GET",
        path=_INTERNAL,
        perform=tell,
        access=Access.NODE,
        query=("known", "wait", "kept"),
    ),
)
