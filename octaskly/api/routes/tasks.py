"""The routes of tasks."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus

from aiohttp import web

from octaskly.api.http.request import Access, Call, Route, json_response
from octaskly.api.problems import TASK_NOT_FOUND, Problem
from octaskly.api.schemas import query, task_request, task_response
from octaskly.core.log.merge import TaskRecord
from octaskly.ports import TaskPage, TaskQuery
from octaskly.rest import tasks
from octaskly.system.cooperative import in_turns

SUBMISSION_BYTES_MAX = 32 << 20
REPLICAS_HEADER = "Octaskly-Replicas"


async def create(call: Call) -> web.StreamResponse:
    """Accept one task or an array of tasks, all or none."""
    asked = await task_request.parse_tasks(call.body)
    is_strict = call.query.is_strict() or asked.is_strict
    drafts = asked.drafts
    if call.query.flag("fail_fast"):
        drafts = [replace(draft, is_fail_fast=True) for draft in drafts]
    key = query.idempotency_key(call.request.headers.get("Idempotency-Key"))
    records, replicas = await call.gateway.submit(
        drafts, principal=call.who, idempotency_key=key, is_strict=is_strict
    )
    call.note_tasks(records)
    shown = await in_turns(
        records, lambda record: task_response.created(record, replicas)
    )
    body = task_response.encode(shown if asked.is_array else shown[0])
    response = json_response(body, HTTPStatus.CREATED)
    response.headers[REPLICAS_HEADER] = str(replicas)
    return response


async def index(call: Call) -> web.StreamResponse:
    """Return a page of tasks, oldest first unless told.

    With `name`, `label` or `text` it is a search: it looks at as many tasks as a short
    time allows. `total` is null unless that were all, `left` is how many were not
    looked at yet, and `next`, where it is not null, is the `after` to go on with.
    """
    gateway, given = call.gateway, call.query
    asked = TaskQuery(
        state=given.status(),
        limit=given.limit(),
        offset=given.offset(),
        is_newest_first=given.flag("newest"),
        search=given.search(),
    )
    if asked.search is not None and (after := given.after()) is not None:
        task = (await gateway.task(after)).id
        asked = replace(asked, search=replace(asked.search, after=task))
    if (array := given.array()) is not None:
        asked = replace(asked, array=an_array(await gateway.task(array), "array").id)
    page = TaskPage((), 0)
    worker = given.worker_id()
    node = None if worker is None else gateway.node_named(worker)
    if worker is None or node is not None:
        asked = replace(asked, node=node)
        page = await gateway.page(asked)
    return json_response(
        task_response.encode(task_response.page(page, asked, gateway.names()))
    )


async def show(call: Call) -> web.StreamResponse:
    """Return one task, on request only when it is final or the wait is over."""
    wait_s, is_exact = call.query.wait_s(), call.query.is_exact()
    record = await found(call, wait_s)
    shown = task_response.task(record, call.gateway.names(), is_exact=is_exact)
    return json_response(task_response.encode(shown))


async def found(call: Call, wait_s: float) -> TaskRecord:
    """Return the task that the path names, when it is final or the wait is over."""
    ref = query.task_ref(call.named["id"])
    if wait_s:
        return await _wait(call, ref, wait_s)
    return await call.gateway.task(ref)


def an_array(record: TaskRecord, field: str = "id") -> TaskRecord:
    """Return a record that is an array's.

    Args:
        record: Of any task.
        field: What names it in the request.

    Raises:
        Problem: 404, it is another task's.
    """
    if record.spec is None or record.spec.array is None:
        hint = f"{record.name} is a task, no array"
        raise Problem(HTTPStatus.NOT_FOUND, TASK_NOT_FOUND, hint=hint, field=field)
    return record


async def explain(call: Call) -> web.StreamResponse:
    """Return why a task is where it is, for each node."""
    ref = query.task_ref(call.named["id"])
    record, told = await call.gateway.explain(ref)
    return json_response(task_response.encode(task_response.explanation(record, told)))


async def cancel(call: Call) -> web.StreamResponse:
    """Cancel a task that is queued, or with `force` one that runs."""
    ref = query.task_ref(call.named["id"])
    record = await call.gateway.cancel(
        ref, force=call.query.force(), principal=call.who
    )
    return json_response(task_response.encode(task_response.cancelled(record)))


async def retry(call: Call) -> web.StreamResponse:
    """Accept a task that repeats an ended one."""
    ref = query.task_ref(call.named["id"])
    record, replicas = await call.gateway.retry(ref, principal=call.who)
    call.note_tasks([record])
    spec = record.spec
    assert spec is not None
    assert spec.options is not None
    shown = {
        **task_response.created(record, replicas),
        "retry_of": spec.options.retry_of,
    }
    response = json_response(task_response.encode(shown), HTTPStatus.CREATED)
    response.headers[REPLICAS_HEADER] = str(replicas)
    return response


async def forget(call: Call) -> web.StreamResponse:
    """Forget tasks that have ended, on all nodes, instead of waiting for their age."""
    asked = task_request.parse_forget(call.body)
    forgotten = await call.gateway.forget(asked.older_than_s)
    status = HTTPStatus.ACCEPTED if forgotten is None else HTTPStatus.OK
    return json_response(task_response.encode({"forgotten": forgotten}), status)


async def _wait(call: Call, ref: str, wait_s: float) -> TaskRecord:
    # As on an idle node a task often has, when its client asks for its end.
    if (ended := call.gateway.at_hand(ref)) is not None:
        return ended
    # A handler that runs again after a change of dispatcher waits for the rest only.
    left_s = max(0.0, wait_s - call.elapsed_s())
    try:
        async with call.parts.waits.bounded():
            return await call.gateway.wait(ref, left_s)
    except TimeoutError:
        return await call.gateway.task(ref)


ROUTES = (
    Route(
        method="POST",
        path="/api/v1/tasks",
        perform=create,
        access=Access.SUBMIT,
        body_bytes_max=SUBMISSION_BYTES_MAX,
        query=("durability", "fail_fast"),
        takes=task_request.TaskIn | task_request.Tasks,
        answers={201: tasks.Created | list[tasks.Created]},
        heeds=("Idempotency-Key",),
        tells=(REPLICAS_HEADER,),
        refuses=(409, 422, 429, 507),
    ),
    Route(
        method="GET",
        path="/api/v1/tasks",
        perform=index,
        access=Access.READ,
        query=(
            *("status", "worker_id", "array", "limit", "offset", "newest"),
            *("name", "label", "text", "after"),
        ),
        answers={200: tasks.TaskPage},
        refuses=(404, 409),
    ),
    Route(
        method="GET",
        path="/api/v1/tasks/{id}",
        perform=show,
        access=Access.READ,
        query=("wait", "encoding"),
        answers={200: tasks.Task},
        refuses=(409,),
    ),
    Route(
        method="GET",
        path="/api/v1/tasks/{id}/explain",
        perform=explain,
        access=Access.READ,
        answers={200: tasks.Explanation},
        refuses=(409,),
    ),
    Route(
        method="DELETE",
        path="/api/v1/tasks/{id}",
        perform=cancel,
        access=Access.SUBMIT,
        query=("force",),
        answers={200: tasks.Cancelled},
        refuses=(409, 507),
    ),
    Route(
        method="POST",
        path="/api/v1/tasks/{id}/retry",
        perform=retry,
        access=Access.SUBMIT,
        answers={201: tasks.Repeated},
        tells=(REPLICAS_HEADER,),
        refuses=(409, 429, 507),
    ),
    Route(
        method="POST",
        path="/api/v1/forget",
        perform=forget,
        access=Access.ADMIN,
        takes=task_request.ForgetIn,
        answers={200: tasks.Forgotten, 202: tasks.Forgotten},
    ),
)
