"""Status of a task for nodes that show its output.

The node of the client asks the dispatcher, and asks again after a change of dispatcher.
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

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.http.node_client import (
    NodeNotResponding,
    no_dispatcher_problem,
    request_from_node,
)
from octaskly.api.problems import NO_DISPATCHER, REFUSED_HEADER, Problem
from octaskly.api.schemas import query, task_response
from octaskly.api.security import route_cost
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId
from octaskly.core.model.tasks import Attempt, AttemptState
from octaskly.errors import CatchingUp, DispatcherUnknown, NotDispatcher, OutputNotFound
from octaskly.ports.store import TaskParts
from octaskly.rest.base import ErrorBody
from octaskly.rest.tasks import TaskEnd

_INTERNAL = "/internal/v1/tasks/{id}/status"
_PAUSE_S = 0.05
_BUSY_S = 1.0  #: before asking a busy dispatcher again
_BYTES_MAX = 8 << 20


class TaskStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of a task, and the location of its output."""

    task: str  #: id in the log
    name: str  #: id for clients
    status: str
    attempt: AttemptId | None = None  #: the attempt that counts so far
    node: str = ""  #: the node of the attempt
    node_name: str = ""
    #: reason why the previous attempt does not count
    previous_reason: str | None = None
    output_bytes: tuple[int, int] = (0, 0)  #: bytes written, once it has ended
    is_end_unseen: bool = False  #: no node saw its end
    logged_bytes: tuple[int, int] = (0, 0)  #: bytes of it in the log
    logged_output: tuple[bytes, bytes] | None = None  #: only if requested
    end_event: TaskEnd | None = None  #: the last event, once it has ended
    is_ending: bool = False  #: cancelled, but its processes still run

    @property
    def version(self) -> str:
        """A text that changes with every change that concerns a reader."""
        ending = "*" if self.is_ending else ""
        return f"{self.status}{ending}:{self.attempt or ''}"

    @property
    def last_event(self) -> TaskEnd | dict[str, str]:
        """The last event of a stream."""
        return self.end_event or {"id": self.name, "status": self.status}

    @property
    def is_final(self) -> bool:
        """Return True if the task cannot write further output."""
        return self.end_event is not None and not self.is_ending


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusQuery:
    """A query to the dispatcher for the status of a task."""

    ref: str  #: the task's id for clients
    attempt_number: int = 0  #: 0: the attempt that counts
    known_version: str = ""  #: if set, wait for another version
    wait_s: float = 0.0  #: maximal wait
    with_output: bool = False  #: include the logged bytes

    @property
    def path(self) -> str:
        """The internal path of this query."""
        place = _INTERNAL.replace("{id}", quote(self.ref, safe=""))
        kept = "true" if self.with_output else "false"
        return (
            f"{place}?attempt={self.attempt_number}&known={quote(self.known_version)}"
            f"&wait={self.wait_s:g}&kept={kept}"
        )


async def get_task_status(request: Request, status_query: StatusQuery) -> TaskStatus:
    """Return the status of a task.

    A query with a known version waits for a change. It is repeated while the dispatcher
    is temporarily unable to answer.

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
            # The next query returns at once: the change may have happened already.
            status_query = replace(status_query, known_version="")
            await asyncio.sleep(_BUSY_S)
            give_up_s = clock() + hold_s  # A dispatcher answered.
            continue
        if clock() - began_s > hold_s:
            give_up_s = clock() + hold_s  # A dispatcher held the query for long.
        if clock() > give_up_s or request.services.long_polls.is_closing:
            raise no_dispatcher_problem()
        await asyncio.sleep(_PAUSE_S)


def _is_temporary(error: Problem | CatchingUp) -> bool:
    """Return True if the node is only full, or still catching up."""
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
            request,
            view.lan_urls,
            status_query.path,
            extra_wait_s=status_query.wait_s,
            is_relayed=view.relay is not None,
        ) as response:
            if REFUSED_HEADER in response.headers:
                raise NotDispatcher("the node is no longer the dispatcher")
            return await _decode_status(request, response)


async def _decode_status(
    request: Request, response: aiohttp.ClientResponse
) -> TaskStatus:
    if (response.content_length or 0) > _BYTES_MAX:
        raise NodeNotResponding("the response is too large")
    async with asyncio.timeout(request.services.timeouts.stall_s):
        body = await response.read()
    try:
        if response.status == HTTPStatus.OK:
            return msgspec.json.decode(body, type=TaskStatus)
        failure = msgspec.json.decode(body, type=ErrorBody)
    except msgspec.DecodeError as error:
        raise NodeNotResponding(f"the response is invalid: {error}") from None
    headers = {n: v for n, v in response.headers.items() if n == "Retry-After"}
    raise Problem(
        response.status,
        failure.error,
        hint=failure.hint or None,
        field=failure.field or None,
        headers=headers,
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
        record = await request.gateway.find_task(status_query.ref, TaskParts.OUTPUT)
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
        # Without an outcome, the task was cancelled before it ran.
        attempt = None if is_final and not is_ending and outcome is None else counts
    gone = [
        other.outcome.reason.value
        for other in record.attempts
        if other.state in (AttemptState.RELEASED, AttemptState.FAILED)
        if other.outcome and (attempt is None or other.id != attempt.id)
    ]
    kept = (outcome.stdout, outcome.stderr) if outcome else (b"", b"")
    return TaskStatus(
        task=record.id,
        name=record.name,
        status=state.value,
        attempt=attempt.id if attempt else None,
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
    """Return the last attempt with this number; a partition may produce several."""
    found = [attempt for attempt in record.attempts if attempt.id.n == number]
    if not found:
        raise OutputNotFound(
            "Output not found",
            field="attempt",
            hint=f"attempts of {record.name} so far: {len(record.attempts)}",
        )
    return found[-1]


async def show_task_status(request: Request) -> web.StreamResponse:
    """Return the status of a task to another node."""
    given = request.query
    question = StatusQuery(
        ref=query.task_ref(request.path_params["id"]),
        attempt_number=given.attempt(),
        known_version=given.text("known"),
        wait_s=given.wait_s(),
        with_output=given.flag("kept"),
    )
    # A waiting query occupies a connection like a stream, so it counts as one.
    is_long = bool(question.known_version)
    with (
        request.services.streams.count_stream(request.principal)
        if is_long
        else contextlib.nullcontext()
    ):
        found = await _local_status(request, question)
    return json_response(task_response.encode(found))


ROUTES = (
    Route(
        method="GET",
        path=_INTERNAL,
        handler=show_task_status,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        query=("attempt", "known", "wait", "kept"),
        responses={200: TaskStatus},
        error_statuses=(409,),
    ),
)
