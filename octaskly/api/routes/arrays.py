"""The routes of arrays."""

from __future__ import annotations

from aiohttp import web

from octaskly.api.http.request import Access, Call, Route, json_response
from octaskly.api.routes import tasks
from octaskly.api.schemas import arrays, query, task_response
from octaskly.core.model.tasks import TaskState
from octaskly.ports import TaskQuery
from octaskly.rest import tasks as answers


async def index(call: Call) -> web.StreamResponse:
    """Return a page of arrays with their members counted, oldest first unless told."""
    given = call.query
    asked = TaskQuery(
        is_of_arrays=True,
        limit=given.limit(),
        offset=given.offset(),
        is_newest_first=given.flag("newest"),
    )
    page = await call.gateway.page(asked)
    return json_response(
        task_response.encode(task_response.page(page, asked, call.gateway.names()))
    )


async def show(call: Call) -> web.StreamResponse:
    """Return an array with its members counted, and those that failed."""
    limit, offset = call.query.limit(), call.query.offset()
    record = tasks.an_array(await tasks.found(call, call.query.wait_s()))
    names = call.gateway.names()
    failed = await call.gateway.page(
        TaskQuery(array=record.id, state=TaskState.FAILED, limit=limit, offset=offset)
    )
    body = task_response.listed(record, names)
    body["failed_members"] = [
        {**task_response.listed(member, names), **arrays.shown_member(member)}
        for member in failed.records
    ]
    return json_response(task_response.encode(body))


async def cancel(call: Call) -> web.StreamResponse:
    """Cancel the members that have not begun, with `force` those that run, too."""
    ref = query.task_ref(call.named["id"])
    tasks.an_array(await call.gateway.task(ref))
    return await tasks.cancel(call)


async def retry(call: Call) -> web.StreamResponse:
    """Accept an array that repeats the members that did not succeed."""
    ref = query.task_ref(call.named["id"])
    tasks.an_array(await call.gateway.task(ref))
    return await tasks.retry(call)


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/arrays",
        perform=index,
        access=Access.READ,
        query=("limit", "offset", "newest"),
        answers={200: answers.TaskPage},
    ),
    Route(
        method="GET",
        path="/api/v1/arrays/{id}",
        perform=show,
        access=Access.READ,
        query=("wait", "limit", "offset"),
        answers={200: answers.TaskArray},
        refuses=(409,),
    ),
    Route(
        method="DELETE",
        path="/api/v1/arrays/{id}",
        perform=cancel,
        access=Access.SUBMIT,
        query=("force",),
        answers={200: answers.Cancelled},
        refuses=(409, 507),
    ),
    Route(
        method="POST",
        path="/api/v1/arrays/{id}/retry",
        perform=retry,
        access=Access.SUBMIT,
        answers={201: answers.Repeated},
        tells=(tasks.REPLICAS_HEADER,),
        refuses=(409, 429, 507),
    ),
)
