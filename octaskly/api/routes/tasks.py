"""Routes of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus

from aiohttp import web
from msgspec import structs

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.problems import TASK_NOT_FOUND, Problem
from octaskly.api.routes.attempts import find_input_bytes
from octaskly.api.schemas import list_rows, query, request_bodies, task_response
from octaskly.api.schemas.long_json import json_pieces
from octaskly.api.schemas.request_bodies import decode_body
from octaskly.api.schemas.task_response import LiveFacts
from octaskly.api.security import route_cost
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NodeId
from octaskly.core.model.tasks import TaskState
from octaskly.errors import OctasklyError
from octaskly.ports.store import TaskListPage, TaskParts, TaskQuery
from octaskly.rest import tasks as rest
from octaskly.rest.tasks import NewIds
from octaskly.system.cooperative import join_in_turns, map_in_batches

SUBMISSION_BYTES_MAX = 32 << 20
SUBMISSION_WAIT_S_MAX = 0.05
"""Longest time that a submission waits for the end of its task.

Many tasks end earlier, and then one request does for all. A client that follows the
output of a longer task starts to do so after the wait, so it asks for a shorter one.
"""
LONG_TASK_BYTES = 1 << 20  #: encoding more may take milliseconds
REPLICAS_HEADER = "Octaskly-Replicas"


async def submit_tasks(request: Request) -> web.StreamResponse:
    """Accept one task or a list of tasks, all or none.

    With `wait`, a single task is returned as by `GET /api/v1/tasks/{id}`, once it has
    ended or after 0.05 s at the latest. Output is included if it is at most 32 KiB.
    """
    asked = await request_bodies.parse_tasks(request.body)
    wait_s = request.query.submission_wait_s(is_list=asked.is_array)
    is_exact = request.query.is_base64()
    is_strict = request.query.is_strict() or asked.is_strict
    drafts = asked.drafts
    if request.query.flag("fail_fast"):
        drafts = [structs.replace(draft, is_fail_fast=True) for draft in drafts]
    key = query.idempotency_key(request.http_request.headers.get("Idempotency-Key"))
    request.audit_commands(draft.command for draft in drafts)
    records, replicas = await request.gateway.submit_tasks(
        drafts,
        principal=request.authenticated_principal,
        idempotency_key=key,
        is_strict=is_strict,
    )
    request.audit_tasks(records)
    if wait_s is not None:
        record, live = await _await_submitted(request, records[0], wait_s)
        names = request.gateway.node_names()
        body = task_response.encode(
            task_response.submitted(record, names, live, replicas, is_exact=is_exact)
        )
    else:
        shown = await map_in_batches(
            records, lambda record: task_response.created(record, replicas)
        )
        body = task_response.encode(shown if asked.is_array else shown[0])
    response = json_response(body, HTTPStatus.CREATED)
    response.headers[REPLICAS_HEADER] = str(replicas)
    return response


async def _await_submitted(
    request: Request, record: TaskRecord, wait_s: float
) -> tuple[TaskRecord, LiveFacts]:
    """Return an accepted task once it has ended, or as it is after `wait_s`."""
    try:
        now = await _wait_until_final(
            request, record.name, min(wait_s, SUBMISSION_WAIT_S_MAX)
        )
        return now, await _live_facts_of(request, now)
    except OctasklyError:
        # The task is accepted, and any error would say that it may not be.
        return record, LiveFacts()


async def list_tasks(request: Request) -> web.StreamResponse:
    """Return a page of tasks, oldest first unless `newest` is true.

    With `name`, `label` or `text` the request is a search, which examines as many tasks
    as a short time allows. `left` is the number of tasks that later responses will
    examine. `next` is the `after` of the next request, or null at the end. `total` is
    null unless the first response examined all tasks; then `left` is 0.

    With `ref` it returns the tasks that a short id may mean, at most four: a number
    alone, or the first 4 to 8 hexadecimal digits of an id.
    """
    gateway, given = request.gateway, request.query
    if (short := given.short_id()) is not None:
        candidates = tuple(await gateway.find_by_short_id(short))
        rows = await encode_rows(request, candidates, list_rows.encode_record)
        page = TaskListPage(candidates, len(candidates))
        return json_response(list_rows.encode_page(page, rows, TaskQuery()))
    asked = TaskQuery(
        state=given.status(),
        limit=given.limit(),
        offset=given.offset(),
        is_newest_first=given.flag("newest"),
        search=given.search(
            request.authenticated_principal.subject,
            request.services.clock.now().wall_ms,
        ),
    )
    if (after := given.after()) is not None:
        task = (await gateway.find_task(after, TaskParts.BRIEF)).id
        asked = replace(asked, after=task)
    if (array := given.array()) is not None:
        found = await gateway.find_task(array, TaskParts.BRIEF)
        asked = replace(asked, array=require_array(found, "array").id)
    page = TaskListPage((), 0)
    worker = given.worker_id()
    node = None if worker is None else gateway.find_node_id(worker)
    if worker is None or node is not None:
        asked = replace(asked, node=node)
        page = await gateway.list_tasks(asked)
    rows = await encode_rows(request, page.records, list_rows.encode_record)
    return json_response(list_rows.encode_page(page, rows, asked))


EncodeRow = Callable[[TaskRecord, Mapping[NodeId, str], LiveFacts], bytes]


async def encode_rows(
    request: Request, records: Sequence[TaskRecord], encode_row: EncodeRow
) -> list[bytes]:
    """Encode the rows of a list, in several turns of the event loop if it is long."""
    names = request.gateway.node_names()
    live = await read_live_facts(request, records)
    request.info.row_count = len(records)
    return await map_in_batches(
        records, lambda record: encode_row(record, names, live), list_rows.ROWS_PER_TURN
    )


async def read_live_facts(request: Request, records: Sequence[TaskRecord]) -> LiveFacts:
    """Read what people see of these tasks besides their records."""
    facts = await request.gateway.read_display_facts(records) if records else {}
    return LiveFacts(request.services.clock.now().wall_ms, facts)


async def show_task(request: Request) -> web.StreamResponse:
    """Return one task; with `wait`, wait at most that long for its end."""
    wait_s, is_exact = request.query.wait_s(), request.query.is_base64()
    record = await find_task(request, wait_s)
    live = await _live_facts_of(request, record)
    names = request.gateway.node_names()
    visible = task_response.visible_of(record)
    size_bytes = task_response.size_bytes_max(record, visible, is_exact=is_exact)
    show = partial(task_response.task, record, names, live, visible, is_exact=is_exact)
    if size_bytes <= LONG_TASK_BYTES:
        return json_response(task_response.encode(show()))
    # Before it waits, as many may, and is encoded only to be refused.
    request.quota.resize(size_bytes)
    async with request.work.heavy():
        pieces = json_pieces(show())
        return json_response(await join_in_turns(pieces, request.work.turn))


async def _live_facts_of(request: Request, record: TaskRecord) -> LiveFacts:
    """Read what people see of one task besides its record, if it can have any."""
    if record.state is TaskState.RUNNING or record.progress is not None:
        return await read_live_facts(request, [record])
    return LiveFacts()


async def find_task(request: Request, wait_s: float) -> TaskRecord:
    """Return the task in the path, after at most `wait_s` for its end."""
    ref = query.task_ref(request.path_params["id"])
    if wait_s:
        return await _wait_until_final(request, ref, wait_s)
    return await request.gateway.find_task(ref)


def require_array(record: TaskRecord, field: str = "id") -> TaskRecord:
    """Return `record` if it is an array.

    Args:
        record: The record of any task.
        field: The field of the request that names it.

    Raises:
        Problem: 404, the task is not an array.
    """
    if record.spec is None or record.spec.array is None:
        hint = f"{record.name} is not an array"
        raise Problem(HTTPStatus.NOT_FOUND, TASK_NOT_FOUND, hint=hint, field=field)
    return record


async def explain_task(request: Request) -> web.StreamResponse:
    """Explain the state of a task, for each node."""
    ref = query.task_ref(request.path_params["id"])
    record, found = await request.gateway.explain_task(ref)
    inputs = await find_input_bytes(request, record)
    live = await _live_facts_of(request, record)
    shown = task_response.explanation(record, found, inputs, live)
    return json_response(task_response.encode(shown))


async def cancel_task(request: Request) -> web.StreamResponse:
    """Cancel a queued task, or with `force` a running one."""
    ref = query.task_ref(request.path_params["id"])
    record = await request.gateway.cancel_task(
        ref, force=request.query.force(), principal=request.authenticated_principal
    )
    return json_response(task_response.encode(task_response.cancelled(record)))


async def reprioritize_task(request: Request) -> web.StreamResponse:
    """Change the priority of a task or an array that waits."""
    ref = query.task_ref(request.path_params["id"])
    priority = decode_body(request_bodies.PriorityIn, request.body).priority
    record = await request.gateway.reprioritize_task(
        ref, priority, principal=request.authenticated_principal
    )
    shown = rest.Reprioritized(id=record.name, priority=priority)
    return json_response(task_response.encode(shown))


async def retry_task(request: Request) -> web.StreamResponse:
    """Accept a task that repeats an ended one."""
    ref = query.task_ref(request.path_params["id"])
    record, replicas = await request.gateway.retry_task(
        ref, principal=request.authenticated_principal
    )
    request.audit_tasks([record])
    if record.spec is not None:
        request.audit_commands([record.spec.command])
    body = task_response.encode(task_response.repeated(record, replicas))
    response = json_response(body, HTTPStatus.CREATED)
    response.headers[REPLICAS_HEADER] = str(replicas)
    return response


async def find_retry(request: Request) -> web.StreamResponse:
    """Return the task that repeats a task, if it was retried."""
    ref = query.task_ref(request.path_params["id"])
    retry = await request.gateway.find_retry(ref)
    shown = rest.FoundRetry(retried_as=None if retry is None else retry.name)
    return json_response(task_response.encode(shown))


async def forget_tasks(request: Request) -> web.StreamResponse:
    """Delete ended tasks on all nodes before their retention ends."""
    asked = decode_body(request_bodies.ForgetIn, request.body)
    forgotten = await request.gateway.purge_ended_tasks(asked.older_than_s)
    status = HTTPStatus.ACCEPTED if forgotten is None else HTTPStatus.OK
    return json_response(
        task_response.encode(rest.Forgotten(forgotten=forgotten)), status
    )


async def _wait_until_final(request: Request, ref: str, wait_s: float) -> TaskRecord:
    # On an idle node, a task has often ended when its client asks for the end.
    if (ended := request.gateway.at_hand(ref)) is not None:
        return ended
    # After a change of dispatcher the handler runs again, and waits only for the rest.
    left_s = max(0.0, wait_s - request.elapsed_s())
    request.work.end()
    try:
        async with request.quota.pause(), request.services.long_polls.limit(left_s):
            return await request.gateway.wait_for_end(ref)
    except TimeoutError:
        return await request.gateway.find_task(ref)


async def create_ids(request: Request) -> web.StreamResponse:
    """Return unused ids for tasks that the client is going to submit.

    A submission with these ids and an `Idempotency-Key` can be repeated, like one with
    only the key. The ids contain numbers of the same sequence as all task ids.
    """
    ids = await request.gateway.reserve_task_ids(request.query.count())
    return json_response(task_response.encode(NewIds(ids=list(ids))))


ROUTES = (
    Route(
        method="POST",
        path="/api/v1/tasks",
        handler=submit_tasks,
        cost=route_cost.UPLOAD,
        access=Access.SUBMIT,
        body_bytes_max=SUBMISSION_BYTES_MAX,
        query=("durability", "fail_fast", "wait", "encoding"),
        body_type=request_bodies.TaskIn | request_bodies.Tasks,
        responses={201: rest.Created | rest.Submitted | list[rest.Created]},
        request_headers=("Idempotency-Key",),
        response_headers=(REPLICAS_HEADER,),
        error_statuses=(409, 422, 429, 507),
    ),
    Route(
        method="GET",
        path="/api/v1/tasks",
        handler=list_tasks,
        cost=route_cost.LIST,
        access=Access.READ,
        query=(
            *("status", "worker_id", "array", "limit", "offset", "newest"),
            *("name", "label", "text", "mine", "ended_within_s", "after", "ref"),
        ),
        responses={200: rest.TaskLines},
        error_statuses=(404, 409),
    ),
    Route(
        method="GET",
        path="/api/v1/tasks/{id}",
        handler=show_task,
        cost=route_cost.CHEAP,
        access=Access.READ,
        query=("wait", "encoding"),
        responses={200: rest.TaskDetail},
        error_statuses=(409,),
    ),
    Route(
        method="GET",
        path="/api/v1/tasks/{id}/explain",
        handler=explain_task,
        cost=route_cost.EXPENSIVE,
        access=Access.READ,
        responses={200: rest.Explanation},
        error_statuses=(409,),
    ),
    Route(
        method="DELETE",
        path="/api/v1/tasks/{id}",
        handler=cancel_task,
        cost=route_cost.CHEAP,
        access=Access.SUBMIT,
        query=("force",),
        responses={200: rest.Cancelled},
        error_statuses=(409, 507),
    ),
    Route(
        method="POST",
        path="/api/v1/tasks/{id}/reprioritize",
        handler=reprioritize_task,
        cost=route_cost.CHEAP,
        access=Access.SUBMIT,
        body_type=request_bodies.PriorityIn,
        responses={200: rest.Reprioritized},
        error_statuses=(409, 507),
    ),
    Route(
        method="GET",
        path="/api/v1/tasks/{id}/retry",
        handler=find_retry,
        cost=route_cost.CHEAP,
        access=Access.READ,
        responses={200: rest.FoundRetry},
        error_statuses=(409,),
    ),
    Route(
        method="POST",
        path="/api/v1/tasks/{id}/retry",
        handler=retry_task,
        cost=route_cost.CHEAP,
        access=Access.SUBMIT,
        responses={201: rest.Repeated},
        response_headers=(REPLICAS_HEADER,),
        error_statuses=(409, 429, 507),
    ),
    Route(
        method="POST",
        path="/api/v1/forget",
        handler=forget_tasks,
        cost=route_cost.EXPENSIVE,
        access=Access.ADMIN,
        body_type=request_bodies.ForgetIn,
        responses={200: rest.Forgotten, 202: rest.Forgotten},
    ),
    Route(
        method="GET",
        path="/api/v1/ids",
        handler=create_ids,
        cost=route_cost.IDS,
        access=Access.SUBMIT,
        query=("count",),
        responses={200: NewIds},
    ),
)
