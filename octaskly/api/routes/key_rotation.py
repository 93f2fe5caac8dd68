"""Routes that show and rotate the mesh secret, and revoke a node."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.problems import NO_DISPATCHER, WORKER_NOT_FOUND, Problem
from octaskly.api.schemas import task_response
from octaskly.api.security import route_cost
from octaskly.core.model.ids import is_visitor
from octaskly.ports.key_rotation import KeyRotationControl, RotationProgress
from octaskly.rest.access import RotationStatus


async def show_rotation(request: Request) -> web.StreamResponse:
    """Return the progress of the newest generation of the mesh secret."""
    return _rotation_response(request, _rotations(request).rotation_progress())


async def start_rotation(request: Request) -> web.StreamResponse:
    """Start a rotation of the mesh secret on all nodes."""
    is_urgent = request.query.flag("now")
    view = await _rotations(request).start_rotation(
        principal=request.authenticated_principal, is_urgent=is_urgent
    )
    return _rotation_response(request, view, HTTPStatus.ACCEPTED)


async def revoke_node(request: Request) -> web.StreamResponse:
    """Revoke a node: exclude it from an immediate rotation of the mesh secret.

    The node that receives the request starts the rotation.
    """
    name = request.path_params["name"]
    node = request.gateway.find_node_id(name)
    if node is None:
        raise Problem(404, WORKER_NOT_FOUND, hint=f"no node is called {name[:80]!r}")
    if node == request.gateway.node_id:
        raise Problem(
            409,
            "Node cannot revoke itself",
            hint=f"{name} received this request; another node can revoke it",
        )
    if is_visitor(node):
        raise Problem(
            409,
            "Visitor has no secret",
            hint=f"POST /api/v1/nodes/{node}/end-visit    ends its visit",
        )
    view = await _rotations(request).revoke_node(
        node, principal=request.authenticated_principal
    )
    return _rotation_response(request, view, HTTPStatus.ACCEPTED)


def _rotations(request: Request) -> KeyRotationControl:
    rotations = request.services.rotations
    if rotations is None:
        raise Problem(503, NO_DISPATCHER, hint="this node is not in a mesh yet")
    return rotations


def _rotation_response(
    request: Request, view: RotationProgress, status: int = 200
) -> web.StreamResponse:
    keys, names = view.keys, request.gateway.node_names()
    body = RotationStatus(
        generation=keys.generation,
        newest=keys.newest,
        oldest=keys.oldest,
        phase=keys.phase,
        since=task_response.at(keys.phase_since_ms or None),
        due=task_response.at(view.due_ms),
        confirmed=[names.get(node, node) for node in view.confirmed],
        awaited=[names.get(node, node) for node in view.unconfirmed],
        revoked=[names.get(node, node) for node in keys.revoked],
    )
    return json_response(task_response.encode(body), status)


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/rotation",
        handler=show_rotation,
        cost=route_cost.CHEAP,
        access=Access.READ,
        responses={200: RotationStatus},
    ),
    Route(
        method="POST",
        path="/api/v1/rotation",
        handler=start_rotation,
        cost=route_cost.SECRET_CHANGE,
        query=("now",),
        access=Access.ADMIN,
        responses={202: RotationStatus},
        error_statuses=(409,),
    ),
    Route(
        method="POST",
        path="/api/v1/nodes/{name}/revoke",
        handler=revoke_node,
        cost=route_cost.SECRET_CHANGE,
        access=Access.ADMIN,
        is_local=True,
        responses={202: RotationStatus},
        error_statuses=(409,),
    ),
)
