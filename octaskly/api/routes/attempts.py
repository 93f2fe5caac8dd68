"""Routes of attempts: those of one task, and recent ones of all nodes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

import msgspec
from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.http.node_client import NodeNotResponding, request_from_node
from octaskly.api.problems import Problem, timestamp
from octaskly.api.schemas import query, task_response
from octaskly.api.schemas.list_rows import ROWS_PER_TURN, cut_detail, cut_text
from octaskly.api.security import route_cost
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import Attempt, AttemptState
from octaskly.errors import OutputNotFound
from octaskly.ports import events
from octaskly.ports.store import DisplayFacts, TaskParts
from octaskly.rest import tasks as rest
from octaskly.system.cooperative import map_in_batches

_INTERNAL: Final = "/internal/v1/inputs"
INPUTS_WAIT_S: Final = 1.0  #: longest wait for another node, to explain a task
COMMAND_CHARS = 200  #: of a command in a list of attempts
COMMAND_BYTES_MAX = 600  #: of it in JSON, where a control character takes six

_STATUS: Mapping[AttemptState, str] = {
    AttemptState.ASSIGNED: "running",
    AttemptState.RUNNING: "running",
    AttemptState.RELEASED: "released",
    AttemptState.CANCELLED: "cancelled",
    AttemptState.FAILED: "failed",
    AttemptState.OK: "completed",
}


async def list_recent_attempts(request: Request) -> web.StreamResponse:
    """Return running attempts and recently ended attempts, the latest first.

    The response has at most `limit` of each; `truncated` is true if more attempts ended
    in that time. Commands are cut to 200 characters, and long details are cut.
    `assigned_at` of a running attempt is the time of its assignment to its node, where
    it may still wait for a slot.
    """
    now_ms = request.services.clock.now().wall_ms
    since_s = request.query.since_s()
    since_ms = 0 if since_s is None else now_ms - since_s * 1000
    found = await request.gateway.read_recent_attempts(since_ms, request.query.limit())
    request.info.row_count = len(found.running) + len(found.ended)
    render = partial(_render_attempt_of_task, names=request.gateway.node_names())
    facts = await request.gateway.read_display_facts(
        [run.record for run in found.running]
    )
    render_running = partial(render, facts=facts)
    body = rest.Runs(
        running=await map_in_batches(found.running, render_running, ROWS_PER_TURN),
        ended=await map_in_batches(found.ended, render, ROWS_PER_TURN),
        truncated=found.is_truncated,
        now=_instant(now_ms),
    )
    return json_response(task_response.encode(body))


async def list_task_attempts(request: Request) -> web.StreamResponse:
    """Return all attempts of a task, also those that do not count."""
    ref = query.task_ref(request.path_params["id"])
    record = await request.gateway.find_task(ref, TaskParts.BRIEF)
    names = request.gateway.node_names()
    shown = [_render_attempt(attempt, names) for attempt in record.attempts]
    return json_response(
        task_response.encode(rest.Attempts(id=record.name, attempts=shown))
    )


def _render_attempt(attempt: Attempt, names: Mapping[NodeId, str]) -> rest.AttemptLine:
    end = attempt.outcome
    cpu_ms, peak_kb = (end.cpu_ms, end.memory_max_kb) if end else (None, None)
    return rest.AttemptLine(
        attempt=attempt.id.n,
        worker_id=names.get(attempt.node, attempt.node),
        status=_STATUS[attempt.state],
        reason=end.reason if end else None,
        detail=(end.detail or None) if end else None,
        exit_code=end.exit_code if end else None,
        signal=end.signal if end else None,
        started_at=_known(end.started_ms) if end else None,
        completed_at=_known(end.ended_ms) if end else None,
        duration_ms=end.duration_ms if end else None,
        cpu_seconds=None if cpu_ms is None else cpu_ms / 1000,
        memory_peak_mb=None if peak_kb is None else round(peak_kb / 1024, 1),
    )


def _render_attempt_of_task(
    run: events.AttemptWithTask,
    names: Mapping[NodeId, str],
    facts: Mapping[TaskId, DisplayFacts] = {},
) -> rest.Run:
    spec = run.record.spec
    options = spec.options if spec else None
    line = msgspec.structs.asdict(_render_attempt(run.attempt, names))
    line["detail"] = cut_detail(line["detail"])
    command = spec.command[:COMMAND_CHARS] if spec else ""
    known = facts.get(run.record.id)
    has_short_id = known is not None and known.short_id != run.record.name
    return rest.Run(
        **line,
        id=run.record.name,
        short_id=known.short_id if known and has_short_id else msgspec.UNSET,
        name=(options.name or None) if options else None,
        call=(options.call or None) if options else None,
        command=cut_text(command, COMMAND_BYTES_MAX),
        assigned_at=_known(run.assigned_ms),
        has_files=_has_files(options),
    )


async def find_input_bytes(
    request: Request, record: TaskRecord
) -> rest.InputBytes | None:
    """Return where the files of a task came from; None if that is not known.

    Only the node of the attempt knows.
    """
    attempt = record.deciding_attempt
    if attempt is None or record.spec is None or not _has_files(record.spec.options):
        return None
    name = request.gateway.node_names().get(attempt.node, attempt.node)
    if attempt.node == request.gateway.node_id:
        sources = request.gateway.read_input_sources(record.id, attempt.id)
        return None if sources is None else task_response.input_bytes(name, sources)
    path = f"{_INTERNAL}/{quote(record.id, safe='')}/{attempt.id}"
    try:
        async with request_from_node(
            request,
            request.gateway.api_urls_of(attempt.node),
            path,
            response_timeout_s=INPUTS_WAIT_S,
        ) as response:
            if response.status != HTTPStatus.OK:
                return None
            return msgspec.json.decode(await response.read(), type=rest.InputBytes)
    except (NodeNotResponding, Problem, msgspec.MsgspecError):
        return None


async def show_input_bytes(request: Request) -> web.StreamResponse:
    """Return to another node where the files of an attempt of this one came from."""
    task, attempt = query.attempt_in(request.path_params)
    sources = request.gateway.read_input_sources(task, attempt)
    if sources is None:
        raise OutputNotFound("this node no longer knows the attempt")
    node = request.gateway.node_id
    name = request.gateway.node_names().get(node, node)
    return json_response(task_response.encode(task_response.input_bytes(name, sources)))


def _has_files(options: TaskOptions | None) -> bool:
    return options is not None and bool(options.tree or options.outputs_of)


def _known(wall_ms: int | None) -> str | None:
    return _instant(wall_ms) if wall_ms else None


def _instant(wall_ms: int) -> str:
    return f"{timestamp(wall_ms)[:-1]}.{wall_ms % 1000:03}Z"


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/attempts",
        handler=list_recent_attempts,
        cost=route_cost.LIST,
        access=Access.READ,
        query=("since_s", "limit"),
        responses={200: rest.Runs},
    ),
    Route(
        method="GET",
        path="/api/v1/tasks/{id}/attempts",
        handler=list_task_attempts,
        cost=route_cost.CHEAP,
        access=Access.READ,
        responses={200: rest.Attempts},
        error_statuses=(409,),
    ),
    Route(
        method="GET",
        path=_INTERNAL + query.ATTEMPT_PATH,
        handler=show_input_bytes,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        is_local=True,
        responses={200: rest.InputBytes},
    ),
)
