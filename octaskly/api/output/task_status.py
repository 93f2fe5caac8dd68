"""Where a task stands, as a node must know that shows its output.

The dispatcher says it; the node that the client is connected to asks, also a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from http import HTTPStatus
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web
from msgspec.structs import astuple

from octaskly.api.http.node_client import (
    NodeNotResponding,
    no_dispatcher_problem,
    request_from_node,
)
from octaskly.api.http.request import Access, Request, Route, json_response
from octaskly.api.problems import NO_DISPATCHER, REFUSED_HEADER, Problem
from octaskly.api.schemas import query, task_response
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, StreamId
from octaskly.core.model.tasks import Attempt, AttemptState
from octaskly.errors import CatchingUp, DispatcherUnknown, NotDispatcher, OutputNotFound
from octaskly.rest.tasks import TaskEnd

_INTERNAL = "/internal/v1/tasks/{id}/status"
_PAUSE_S = 0.05
_BUSY_S = 1.0  #: until a dispatcher is asked again that has no room
_BYTES_MAX = 8 << 20


class TaskStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What decides where its output is."""

    task: str  #: as the log knows it
    name: str  #: as clients know it
    status: str
    attempt: tuple[int, int, int] | None = None  #: the one that counts so far
    node: str = ""  #: that runs or ran it
    node_name: str = ""
    previous_reason: str | None = (
        None  #: why the attempt before that one does not count
    )
    output_bytes: tuple[int, int] = (0, 0)  #: what it wrote, once it has ended
    is_end_unseen: bool = False  #: its end was not seen: its node may know more
    logged_bytes: tuple[int, int] = (0, 0)  #: what the log has of it
    logged_output: tuple[bytes, bytes] | None = None  #: the very bytes, where asked for
    end_event: TaskEnd | None = None  #: what is said at the end, once it has come
    is_ending: bool = False  #: cancelled, and its processes are not gone yet

    @property
    def version(self) -> str:
        """Changes when anything does that a reader must act on."""
        attempt = self.attempt_id
        ending = "*" if self.is_ending else ""
        return f"{self.status}{ending}:{format_attempt_id(attempt) if attempt else ''}"

    @property
    def attempt_id(self) -> AttemptId | None:
        """The attempt as nodes name it."""
        if self.attempt is None:
            return None
        term, stream, n = self.attempt
        return AttemptId(term, StreamId(stream), n)

    @property
    def last_event(self) -> TaskEnd | dict[str, str]:
        """What is said of it at the end of a stream."""
        return self.end_event or {"id": self.name, "status": self.status}

    @property
    def is_final(self) -> bool:
        """Whether nothing more will be written."""
        return self.end_event is not None and not self.is_ending


class _ErrorBody(msgspec.Struct, frozen=True):
    error: str
    hint: str | None = None
    field: str | None = None


def format_attempt_id(attempt: AttemptId) -> str:
    """Return an attempt as a word."""
    return f"{attempt.term}-{attempt.stream}-{attempt.n}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusQuery:
    """What the dispatcher is asked."""

    ref: str  #: the task, as the client calls it
    attempt_number: int = 0  #: of the attempt; 0: the one that counts
    known_version: str = (
        ""  #: version that is known already: answer once there is another
    )
    wait_s: float = 0.0  #: at most so long
    with_output: bool = False  #: with what the log has of its output

    @property
    def path(self) -> str:
        """The question as another node is asked it."""
        place = _INTERNAL.replace("{id}", quote(self.ref, safe=""))
        kept = "true" if self.with_output else "false"
        return (
            f"{place}?attempt={self.attempt_number}&known={quote(self.known_version)}"
            f"&wait={self.wait_s:g}&kept={kept}"
        )


async def get_task_status(request: Request, status_query: StatusQuery) -> TaskStatus:
    """Return where a task stands.

    Who knows a version already is somebody who waits: for him a dispatcher that cannot
    say anything at the moment is asked again.

    Raises:
        Problem: the dispatcher refuses, or none is found in time.
    """
    clock = asyncio.get_running_loop().time
    hold_s = request.services.timeouts.dispatcher_wait_s
    give_up_s = clock() + hold_s
    can_wait = bool(status_query.known_version)
    while True:
        began_s = clock()
        with contextlib.suppress(
            NotDispatcher, DispatcherUnknown, NodeNotResponding, TimeoutError
        ):
            try:
                return await _query_once(request, status_query)
            except (Problem, CatchingUp) as error:
                if not (can_wait and _is_temporary(error)):
                    raise
            status_query = replace(
                status_query, known_version=""
            )  # Not to wait there once more.
            await asyncio.sleep(_BUSY_S)
            give_up_s = clock() + hold_s  # A dispatcher is there.
            continue
        if clock() - began_s > hold_s:
            give_up_s = clock() + hold_s  # It went well until now.
        if clock() > give_up_s or request.services.long_polls.is_closing:
            raise no_dispatcher_problem()
        await asyncio.sleep(_PAUSE_S)


def _is_temporary(error: Problem | CatchingUp) -> bool:
    """Whether another node is only full, or still learns what there is."""
    if isinstance(error, CatchingUp):
        return True
    return error.status == HTTPStatus.SERVICE_UNAVAILABLE and error.error != (
        NO_DISPATCHER
    )


async def _query_once(request: Request, status_query: StatusQuery) -> TaskStatus:
    view = await request.gateway.wait_for_dispatcher(
        request.services.timeouts.dispatcher_wait_s
    )
    if view is None:
        raise no_dispatcher_problem()
    async with request.services.long_polls.cancel_when_dispatcher_ends(
        view, is_repeatable=True
    ):
        if view.is_self:
            return await _local_status(request, status_query)
        async with request_from_node(
            request, view.lan_urls, status_query.path, extra_wait_s=status_query.wait_s
        ) as response:
            if REFUSED_HEADER in response.headers:
                raise NotDispatcher("it is not dispatcher any more")
            return await _decode_status(request, response)


async def _decode_status(
    request: Request, response: aiohttp.ClientResponse
) -> TaskStatus:
    if (response.content_length or 0) > _BYTES_MAX:
        raise NodeNotResponding("an answer that is too large")
    async with asyncio.timeout(request.services.timeouts.stall_s):
        body = await response.read()
    try:
        if response.status == HTTPStatus.OK:
            return msgspec.json.decode(body, type=TaskStatus)
        told = msgspec.json.decode(body, type=_ErrorBody)
    except msgspec.DecodeError as error:
        raise NodeNotResponding(f"an answer that makes no sense: {error}") from None
    headers = {n: v for n, v in response.headers.items() if n == "Retry-After"}
    raise Problem(
        response.status, told.error, hint=told.hint, field=told.field, headers=headers
    )


async def _local_status(request: Request, status_query: StatusQuery) -> TaskStatus:
    def is_news(record: TaskRecord) -> bool:
        return (
            _status_of_record(request, record, status_query).version
            != status_query.known_version
        )

    if status_query.known_version:
        record = await request.gateway.wait_until(
            status_query.ref, is_news, status_query.wait_s
        )
    else:
        record = await request.gateway.find_task(status_query.ref)
    return _status_of_record(request, record, status_query)


def _status_of_record(
    request: Request, record: TaskRecord, status_query: StatusQuery
) -> TaskStatus:
    state, names = record.state, request.gateway.node_names()
    attempt: Attempt | None
    is_ending = False
    if status_query.attempt_number:
        attempt = numbered = _find_attempt(record, status_query.attempt_number)
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
    return TaskStatus(
        task=record.id,
        name=record.name,
        status=state.value,
        attempt=astuple(attempt.id) if attempt else None,
        node=attempt.node if attempt else "",
        node_name=names.get(attempt.node, attempt.node) if attempt else "",
        previous_reason=gone[-1] if gone and not status_query.attempt_number else None,
        output_bytes=(outcome.stdout_bytes, outcome.stderr_bytes)
        if outcome
        else (0, 0),
        is_end_unseen=outcome is not None and not outcome.was_observed,
        logged_bytes=(len(kept[0]), len(kept[1])),
        logged_output=kept if status_query.with_output else None,
        end_event=task_response.ended(record, attempt, names) if is_final else None,
        is_ending=is_ending,
    )


def _find_attempt(record: TaskRecord, number: int) -> Attempt:
    """Return the attempt of this number; of several, both sides of a split, one."""
    found = [attempt for attempt in record.attempts if attempt.id.n == number]
    if not found:
        raise OutputNotFound(
            "Output not found",
            field="attempt",
            hint=f"attempts of {record.name} so far: {len(record.attempts)}",
        )
    return found[-1]


async def show_task_status(request: Request) -> web.StreamResponse:
    """Tell another node where a task stands."""
    given = request.query
    question = StatusQuery(
        ref=query.task_ref(request.path_params["id"]),
        attempt_number=given.attempt(),
        known_version=given.text("known"),
        wait_s=given.wait_s(),
        with_output=given.flag("kept"),
    )
    # Who waits holds a connection for long, as a stream does.
    is_long = bool(question.known_version)
    with (
        request.services.streams.count_stream() if is_long else contextlib.nullcontext()
    ):
        found = await _local_status(request, question)
    return json_response(task_response.encode(found))


ROUTES = (
    Route(
        method="GET",
        path=_INTERNAL,
        handler=show_task_status,
        access=Access.NODE,
        query=("attempt", "known", "wait", "kept"),
        responses={200: TaskStatus},
        error_statuses=(409,),
    ),
)
