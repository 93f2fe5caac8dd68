"""Captured outputs as trees, for the folders of tasks that run after others.

A worker asks the dispatcher for the outputs of a task. The dispatcher knows the node
that captured them, and asks it to make them available as a tree: a manifest and its
contents, which the worker fetches like those that a client sent.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

import msgspec
from aiohttp import web
from msgspec import structs

from octaskly.api.http.handler_types import (
    Access,
    NotSent,
    Request,
    Route,
    json_response,
)
from octaskly.api.http.node_client import NodeNotResponding, request_from_node
from octaskly.api.problems import FORBIDDEN, WORKER_NOT_FOUND, Problem
from octaskly.api.schemas import query, request_bodies, task_response
from octaskly.api.schemas.files import OutputsIn
from octaskly.api.security import route_cost
from octaskly.core.model import task_options
from octaskly.core.model.ids import AttemptId, TaskId, task_name
from octaskly.core.protocol.visitor_rules import DISPATCHER
from octaskly.errors import OutputNotFound
from octaskly.ports.gateway import OutputHolder, OutputLocation
from octaskly.rest.tasks import BlobRef, HeldIndices, OutputTree, OutputTrees

HOLD_PATH: Final = "/internal/v1/outputs/hold"
_INTERNAL: Final = "/internal/v1/output-trees"
_CONCURRENT_MAX: Final = 8  #: requests to other nodes, for the members of one array


async def find_output_trees(request: Request) -> web.StreamResponse:
    """Return the outputs of a task to the worker of another one, as trees."""
    task = query.logged_id(request.path_params["task"])
    visitors = request.files.visitors
    if request.visitor is not None and not visitors.may_read_outputs(
        request.visitor, task
    ):
        hint = "no task that the visitor runs gets these outputs"
        raise Problem(HTTPStatus.FORBIDDEN, FORBIDDEN, hint=hint)
    places = await request.gateway.locate_outputs(task)
    limit = asyncio.Semaphore(_CONCURRENT_MAX)

    async def find_tree(place: OutputLocation) -> OutputTree:
        async with limit:
            found = await _find_tree(request, place)
        name = task_name(place.task)
        return OutputTree(sha256=found.sha256, node=found.node, task=name)

    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(find_tree(place)) for place in places]
    except* (OutputNotFound, Problem) as errors:
        raise _first_of(errors) from None
    trees = [one.result() for one in asked]
    if request.visitor is not None:
        refs = [task_options.BlobRef(sha256=t.sha256, node=t.node) for t in trees]
        visitors.grant_trees(request.visitor, refs)
        trees = [structs.replace(tree, node=DISPATCHER) for tree in trees]
    return json_response(task_response.encode(OutputTrees(trees=trees)))


async def show_output_tree(request: Request) -> web.StreamResponse:
    """Make captured outputs of this node available as a tree; return its manifest."""
    tree = await _make_tree(request, *query.attempt_in(request.path_params))
    return json_response(task_response.encode(tree))


async def hold_outputs(request: Request) -> web.StreamResponse:
    """Keep captured outputs for an hour, because unfinished tasks need them."""
    outputs = request_bodies.decode_body(OutputsIn, request.body).outputs
    held = await request.files.trees.hold_outputs(outputs)
    return json_response(task_response.encode(HeldIndices(held=held)))


async def _find_tree(request: Request, place: OutputLocation) -> BlobRef:
    """Return the outputs at the first node that has them: its worker, or a copy."""
    why: Exception | None = None
    for holder in place.holders:
        try:
            if holder.is_local:
                return await _make_tree(request, place.task, place.attempt)
            return await _ask_holder(request, holder, place)
        except (OutputNotFound, Problem) as error:
            why = why or error
    if place.lost or why is None:
        raise _unavailable(f"{place.lost}, which has them, is not in the mesh")
    raise why


async def _ask_holder(
    request: Request, holder: OutputHolder, place: OutputLocation
) -> BlobRef:
    path = f"{_INTERNAL}/{quote(place.task, safe='')}/{place.attempt}"
    name = request.gateway.node_names().get(holder.node, holder.node)
    try:
        async with request_from_node(request, holder.lan_urls, path) as response:
            body = await response.read()
            if response.status == HTTPStatus.NOT_FOUND:
                raise OutputNotFound(f"{name} no longer has them")
            if response.status != HTTPStatus.OK:
                raise _unavailable(f"{name} answered with status {response.status}")
            return msgspec.json.decode(body, type=BlobRef)
    except (NodeNotResponding, NotSent, msgspec.MsgspecError) as error:
        raise _unavailable(f"{name} does not answer: {error}") from None


async def _make_tree(request: Request, task: str, attempt: AttemptId) -> BlobRef:
    sha256 = await request.gateway.make_output_tree(TaskId(task), attempt)
    return BlobRef(sha256=sha256, node=request.gateway.node_id)


def _first_of(errors: BaseExceptionGroup[OutputNotFound | Problem]) -> Exception:
    first = errors.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


def _unavailable(hint: str) -> Problem:
    return Problem(503, WORKER_NOT_FOUND, hint=hint, headers={"Retry-After": "5"})


ROUTES = (
    Route(
        method="GET",
        path=_INTERNAL + "/{task}",
        handler=find_output_trees,
        allows_visitors=True,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        responses={200: OutputTrees},
        error_statuses=(404,),
    ),
    Route(
        method="GET",
        path=_INTERNAL + query.ATTEMPT_PATH,
        handler=show_output_tree,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        is_local=True,
        responses={200: BlobRef},
        error_statuses=(507,),
    ),
    Route(
        method="POST",
        path=HOLD_PATH,
        handler=hold_outputs,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        is_local=True,
        body_type=OutputsIn,
        responses={200: HeldIndices},
    ),
)
