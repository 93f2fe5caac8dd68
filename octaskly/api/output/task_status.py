"""Where a task stands, as a node must know that shows its output.

The dispatcher says it; the node that the client is connected to asks, also a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web

from octaskly.api.http.node_client import Unanswered, asked, none_elected
from octaskly.api.http.request import Access, Call, Route, json_response
from octaskly.api.problems import NO_DISPATCHER, REFUSED_HEADER, Problem
from octaskly.api.schemas import query, task_response
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, StreamId
from octaskly.core.model.tasks import Attempt, AttemptState
from octaskly.errors import CatchingUp, NoDispatcher, NotDispatcher, OutputNotFound

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
    is_torn: bool = False  #: its end was not seen: its node may know more
    logged: tuple[int, int] = (0, 0)  #: what the log has of it
    kept: tuple[bytes, bytes] | None = None  #: the very bytes, where asked for
    end: dict[str, Any] | None = None  #: what is said at the end, once it has come
    is_ending: bool = False  #: cancelled, and its processes are not gone yet

    @property
    def version(self) -> str:
        """Changes when anything does that a reader must act on."""
        attempt = self.attempt_id
        ending = "*" if self.is_ending else ""
        return f"{self.status}{ending}:{name_of(attempt) if attempt else ''}"

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
        return self.end is not None and not self.is_ending


class _Refusal(msgspec.Struct, frozen=True):
    error: str
    hint: str | None = None
    field: str | None = None


def name_of(attempt: AttemptId) -> str:
    """Return an attempt as a word."""
    return "-".join(map(str, attempt))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the dispatcher is asked."""

    ref: str  #: the task, as the client calls it
    number: int = 0  #: of the attempt; 0: the one that counts
    known: str = ""  #: version that is known already: answer once there is another
    wait_s: float = 0.0  #: at most so long
    with_kept: bool = False  #: with what the log has of its output

    @property
    def path(self) -> str:
        """The question as another node is asked it."""
        place = _INTERNAL.replace("{id}", quote(self.ref, safe=""))
        kept = "true" if self.with_kept else "false"
        return (
            f"{place}?attempt={self.number}&known={quote(self.known)}"
            f"&wait={self.wait_s:g}&kept={kept}"
        )


async def standing(call: Call, question: Question) -> Standing:
    """Return where a task stands.

    Who knows a version already is somebody who waits: for him a dispatcher that cannot
    say anything at the moment is asked again.

    Raises:
        Problem: the dispatcher refuses, or none is found in time.
    """
    clock = asyncio.get_running_loop().time
    hold_s = call.parts.deadlines.hold_s
    give_up_s = clock() + hold_s
    can_wait = bool(question.known)
    while True:
        began_s = clock()
        with contextlib.suppress(NotDispatcher, NoDispatcher, Unanswered, TimeoutError):
            try:
                return await _asked_once(call, question)
            except (Problem, CatchingUp) as error:
                if not (can_wait and _is_passing(error)):
                    raise
            question = replace(question, known="")  # Not to wait there once more.
            await asyncio.sleep(_BUSY_S)
            give_up_s = clock() + hold_s  # A dispatcher is there.
            continue
        if clock() - began_s > hold_s:
            give_up_s = clock() + hold_s  # It went well until now.
        if clock() > give_up_s or call.parts.waits.is_closing:
            raise none_elected()
        await asyncio.sleep(_PAUSE_S)


def _is_passing(error: Problem | CatchingUp) -> bool:
    """Whether another node is only full, or still learns what there is."""
    if isinstance(error, CatchingUp):
        return True
    return error.status == HTTPStatus.SERVICE_UNAVAILABLE and error.error != (
        NO_DISPATCHER
    )


async def _asked_once(call: Call, question: Question) -> Standing:
    view = await call.gateway.dispatcher_known(call.parts.deadlines.hold_s)
    if view is None:
        raise none_elected()
    async with call.parts.waits.bounded(view, is_repeatable=True):
        if view.is_self:
            return await _here(call, question)
        async with asked(
            call, view.lan_urls, question.path, wait_s=question.wait_s
        ) as response:
            if REFUSED_HEADER in response.headers:
                raise NotDispatcher("it is not dispatcher any more")
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


async def _here(call: Call, question: Question) -> Standing:
    def is_news(record: TaskRecord) -> bool:
        return _standing_of(call, record, question).version != question.known

    if question.known:
        record = await call.gateway.until(question.ref, is_news, question.wait_s)
    else:
        record = await call.gateway.task(question.ref)
    return _standing_of(call, record, question)


def _standing_of(call: Call, record: TaskRecord, question: Question) -> Standing:
    state, names = record.state, call.gateway.names()
    attempt: Attempt | None
    is_ending = False
    if question.number:
        attempt = numbered = _numbered(record, question.number)
        outcome, is_final = numbered.outcome, not numbered.state.is_live
    else:
        counts = task_response.visible_attempt(record, state)
        outcome, is_final = task_response.visible_outcome(counts, state), state.is_final
        is_ending = is_final and counts is not None and counts.state.is_live
        # Where nothing that ran decided, it was cancelled before.
        attempt = None if is_final and not is_ending and outcome is None else counts
    gone = [
        other.outcome.reason.value
        for other in record.attempts
        if other.state is AttemptState.RELEASED and other.outcome
    ]
    kept = (outcome.stdout, outcome.stderr) if outcome else (b"", b"")
    return Standing(
        task=record.id,
        name=record.name,
        status=state.value,
        attempt=attempt.id if attempt else None,
        node=attempt.node if attempt else "",
        node_name=names.get(attempt.node, attempt.node) if attempt else "",
        before=gone[-1] if gone and not question.number else None,
        sizes=(outcome.stdout_bytes, outcome.stderr_bytes) if outcome else (0, 0),
        is_torn=outcome is not None and not outcome.was_observed,
        logged=(len(kept[0]), len(kept[1])),
        kept=kept if question.with_kept else None,
        end=task_response.ended(record, attempt, names) if is_final else None,
        is_ending=is_ending,
    )


def _numbered(record: TaskRecord, number: int) -> Attempt:
    """Return the attempt of this number; of several, both sides of a split, one."""
    found = [attempt for attempt in record.attempts if attempt.id.n == number]
    if not found:
        raise OutputNotFound(
            "Output not found",
            field="attempt",
            hint=f"attempts of {record.name} so far: {len(record.attempts)}",
        )
    return found[-1]


async def tell(call: Call) -> web.StreamResponse:
    """Tell another node where a task stands."""
    given = call.query
    question = Question(
        ref=query.task_ref(call.named["id"]),
        number=given.attempt(),
        known=given.text("known"),
        wait_s=given.wait_s(),
        with_kept=given.flag("kept"),
    )
    # Who waits holds a connection for long, as a stream does.
    is_long = bool(question.known)
    with call.parts.streams.one_more() if is_long else contextlib.nullcontext():
        found = await _here(call, question)
    return json_response(task_response.encode(found))


ROUTES = (
    Route(
        method="GET",
        path=_INTERNAL,
        perform=tell,
        access=Access.NODE,
        query=("attempt", "known", "wait", "kept"),
        answers={200: Standing},
        refuses=(409,),
    ),
)
