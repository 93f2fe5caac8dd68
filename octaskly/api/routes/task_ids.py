"""The route of names for tasks that are to be submitted."""

from __future__ import annotations

from typing import TypedDict

from aiohttp import web

from octaskly.api.http.request import Access, Request, Route, json_response
from octaskly.api.schemas import task_response


class NewIds(TypedDict):
    """Names for tasks that are to be submitted."""

    ids: list[str]


async def create_ids(request: Request) -> web.StreamResponse:
    """Return ids for tasks that are to be submitted, which no other task has.

    With such ids and an `Idempotency-Key` a submission may be repeated, as with the key
    alone, and its tasks are counted as those without one.
    """
    ids = await request.gateway.reserve_task_ids(request.query.count())
    return json_response(task_response.encode({"ids": ids}))


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
