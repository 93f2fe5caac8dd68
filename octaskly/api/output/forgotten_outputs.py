"""Routes by which nodes learn which of the outputs that they keep are forgotten.

A node asks the dispatcher, and deletes what it says. After `octaskly forget`, the
dispatcher tells all nodes to ask at once.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.schemas import request_bodies, task_response
from octaskly.api.schemas.files import ForgottenNewsIn, KeptOutputsIn
from octaskly.api.security import route_cost
from octaskly.rest.tasks import ForgottenIndices

PATH: Final = "/internal/v1/forgotten-outputs"
WAKE_PATH: Final = "/internal/v1/forgotten-outputs/wake"


async def list_forgotten(request: Request) -> web.StreamResponse:
    """Return which outputs that a node keeps are of forgotten tasks."""
    kept = request_bodies.decode_body(KeptOutputsIn, request.body).kept
    indices, before_ms = await request.gateway.find_forgotten(kept)
    shown = ForgottenIndices(forgotten=list(indices), before_ms=before_ms)
    return json_response(task_response.encode(shown))


async def wake(request: Request) -> web.StreamResponse:
    """Have this node ask the dispatcher soon."""
    asked = request_bodies.decode_body(ForgottenNewsIn, request.body)
    request.files.forgotten.wake(may_release_inputs=asked.may_release_inputs)
    return json_response(b"{}", HTTPStatus.OK)


ROUTES = (
    Route(
        method="POST",
        path=PATH,
        handler=list_forgotten,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        body_type=KeptOutputsIn,
        responses={200: ForgottenIndices},
    ),
    Route(
        method="POST",
        path=WAKE_PATH,
        handler=wake,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        is_local=True,
        body_type=ForgottenNewsIn,
        responses={200: None},
    ),
)
