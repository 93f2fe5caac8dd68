"""Route that reserves task ids."""

from __future__ import annotations

from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.schemas import task_response
from octaskly.api.security import route_cost
from octaskly.rest.tasks import NewIds


async def create_ids(request: Request) -> web.StreamResponse:
    """Return unused ids for tasks that the client is going to submit.

    A submission with these ids and an `Idempotency-Key` can be repeated, like one with
    only the key. The ids contain numbers of the same sequence as all task ids.
    """
    ids = await request.gateway.reserve_task_ids(request.query.count())
    return json_response(task_response.encode(NewIds(ids=list(ids))))


ROUTES = (
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
