"""Routes of arrays."""

from __future__ import annotations

from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.routes import tasks
from octaskly.api.schemas import list_rows, query
from octaskly.api.security import route_cost
from octaskly.core.model.tasks import TaskState
from octaskly.ports.store import TaskParts, TaskQuery
from octaskly.rest import tasks as rest


async def list_arrays(request: Request) -> web.StreamResponse:
    """Return a page of arrays with counts of their members.

    The oldest array comes first unless `newest` is true.
    """
    given = request.query
    asked = TaskQuery(
        is_arrays_only=True,
        limit=given.limit(),
        offset=given.offset(),
        is_newest_first=given.flag("newest"),
    )
    page = await request.gateway.list_tasks(asked)
    rows = await tasks.encode_rows(request, page.records, list_rows.encode_record)
    return json_response(list_rows.encode_page(page, rows, asked))


async def show_array(request: Request) -> web.StreamResponse:
    """Return an array with counts of its members, and a page of its failed members."""
    limit, offset = request.query.limit(), request.query.offset()
    record = tasks.require_array(await tasks.find_task(request, request.query.wait_s()))
    failed = await request.gateway.list_tasks(
        TaskQuery(array=record.id, state=TaskState.FAILED, limit=limit, offset=offset)
    )
    rows = await tasks.encode_rows(request, failed.records, list_rows.encode_member)
    names = request.gateway.node_names()
    live = await tasks.read_live_facts(request, [record])
    return json_response(list_rows.encode_array(record, rows, names, live))


async def cancel_array(request: Request) -> web.StreamResponse:
    """Cancel the queued members of an array, and with `force` the running ones, too."""
    ref = query.task_ref(request.path_params["id"])
    tasks.require_array(await request.gateway.find_task(ref, TaskParts.BRIEF))
    return await tasks.cancel_task(request)


async def retry_array(request: Request) -> web.StreamResponse:
    """Accept an array that repeats the members that did not succeed."""
    ref = query.task_ref(request.path_params["id"])
    tasks.require_array(await request.gateway.find_task(ref, TaskParts.BRIEF))
    return await tasks.retry_task(request)


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/arrays",
        handler=list_arrays,
        cost=route_cost.LIST,
        access=Access.READ,
        query=("limit", "offset", "newest"),
        responses={200: rest.TaskLines},
    ),
    Route(
        method="GET",
        path="/api/v1/arrays/{id}",
        handler=show_array,
        cost=route_cost.LIST,
        access=Access.READ,
        query=("wait", "limit", "offset"),
        responses={200: rest.TaskArray},
        error_statuses=(409,),
    ),
    Route(
        method="DELETE",
        path="/api/v1/arrays/{id}",
        handler=cancel_array,
        cost=route_cost.CHEAP,
        access=Access.SUBMIT,
        query=("force",),
        responses={200: rest.Cancelled},
        error_statuses=(409, 507),
    ),
    Route(
        method="POST",
        path="/api/v1/arrays/{id}/retry",
        handler=retry_array,
        cost=route_cost.EXPENSIVE,
        access=Access.SUBMIT,
        responses={201: rest.Repeated},
        response_headers=(tasks.REPLICAS_HEADER,),
        error_statuses=(409, 429, 507),
    ),
)
