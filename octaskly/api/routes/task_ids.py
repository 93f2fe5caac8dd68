"""The route of names for tasks that are to be submitted."""

from __future__ import annotations

from aiohttp import web

from octaskly.api.http.request import Access, Request, Route, json_response
from octaskly.api.schemas import task_response
from octaskly.rest.tasks import NewIds


async def create_ids(request: Request) -> web.StreamResponse:
    """Return ids for tasks that are to be submitted, which no other task has.

    With such ids and an `Idempotency-Key` a submission may be repeated, as with the key
    alone, and its tasks are counted as those without one.
    """
    ids = await request.gateway.reserve_task_ids(request.query.count())
    return json_response(task_response.encode(NewIds(ids=list(ids))))


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/ids",
        handler=create_ids,
        access=Access.SUBMIT,
        query=("count",),
        responses={200: NewIds},
    ),
)
