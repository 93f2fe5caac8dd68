"""Routes for visitors alone: the outputs of their attempts, which they send here."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.problems import FORBIDDEN, NO_DISPATCHER, Problem
from octaskly.api.routes.files import announced_size, receive_body, upload_errors
from octaskly.api.schemas import query, task_response
from octaskly.api.security import route_cost
from octaskly.core.model.ids import TaskId
from octaskly.errors import OutputNotFound
from octaskly.rest.tasks import HeldTrees
from octaskly.runner.files.output_copies import PushedArchive
from octaskly.system.blocking_calls import opened_in_thread, run_to_end


async def store_outputs(request: Request) -> web.StreamResponse:
    """Store the captured outputs of an attempt that its visitor sends, as a tar."""
    task, attempt = query.attempt_in(request.path_params)
    size_bytes, visitor = announced_size(request), request.visitor

    def open_outputs() -> PushedArchive:
        outputs = None
        if visitor is not None:
            outputs = request.files.visitors.open_outputs(
                visitor, TaskId(task), attempt, size_bytes
            )
        if outputs is None:
            hint = "this is not a live attempt of this visitor, or it was sent before"
            raise Problem(
                HTTPStatus.FORBIDDEN, FORBIDDEN, hint=hint, closes_connection=True
            )
        return outputs

    with upload_errors(field="outputs"):
        async with opened_in_thread(open_outputs, PushedArchive.abort) as outputs:
            try:
                await receive_body(request, outputs.write, outputs.wait_s)
                await run_to_end(outputs.finish)
            except OutputNotFound as error:
                # It may be the visitor's at a new dispatcher, which it asks then.
                raise Problem(503, NO_DISPATCHER, hint=error.message) from None
    return json_response(task_response.encode(HeldTrees(failures=[])))


ROUTES = (
    Route(
        method="POST",
        path="/internal/v1/visits/outputs" + query.ATTEMPT_PATH,
        handler=store_outputs,
        cost=route_cost.UPLOAD,
        access=Access.NODE,
        allows_visitors=True,
        is_local=True,
        is_body_streamed=True,
        responses={200: HeldTrees},
        error_statuses=(400, 411, 507),
    ),
)
