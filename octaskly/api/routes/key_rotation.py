"""The routes that tell of the mesh secret, renew it, and revoke a node."""

from __future__ import annotations

from http import HTTPStatus
from typing import TypedDict

from aiohttp import web

from octaskly.api.http.request import Access, Call, Route, json_response
from octaskly.api.problems import NO_DISPATCHER, WORKER_NOT_FOUND, Problem
from octaskly.api.schemas import task_response
from octaskly.core.model.keys import RotationPhase
from octaskly.ports import Rotations, RotationView
from octaskly.rest.tasks import At


class Rotation(TypedDict):
    """How far the newest generation of the mesh secret has come."""

    generation: int
    newest: int
    oldest: int
    phase: RotationPhase
    since: At | None
    due: At | None
    confirmed: list[str]
    awaited: list[str]
    revoked: list[str]


async def show(call: Call) -> web.StreamResponse:
    """Return how far the newest generation of the secret has come."""
    return _shown(call, _rotations(call).view())


async def rotate(call: Call) -> web.StreamResponse:
    """Begin to renew the secret, on all nodes."""
    is_urgent = call.query.flag("now")
    view = await _rotations(call).rotate(principal=call.who, is_urgent=is_urgent)
    return _shown(call, view, HTTPStatus.ACCEPTED)


async def revoke(call: Call) -> web.StreamResponse:
    """Renew the secret at once, without a node; the node that is asked does it."""
    name = call.named["name"]
    node = call.gateway.node_named(name)
    if node is None:
        raise Problem(404, WORKER_NOT_FOUND, hint=f"no node is called {name[:80]!r}")
    if node == call.gateway.node_id:
        raise Problem(
            409,
            "Node cannot revoke itself",
            hint=f"{name} is the node that was asked; another node can revoke it",
        )
    view = await _rotations(call).revoke(node, principal=call.who)
    return _shown(call, view, HTTPStatus.ACCEPTED)


def _rotations(call: Call) -> Rotations:
    rotations = call.parts.rotations
    if rotations is None:
        raise Problem(503, NO_DISPATCHER, hint="this node is in no mesh yet")
    return rotations


def _shown(call: Call, view: RotationView, status: int = 200) -> web.StreamResponse:
    keys, names = view.keys, call.gateway.names()
    body = {
        "generation": keys.generation,
        "newest": keys.newest,
        "oldest": keys.oldest,
        "phase": keys.phase.value,
        "since": task_response.at(keys.phase_since_ms or None),
        "due": task_response.at(view.due_ms),
        "confirmed": [names.get(node, node) for node in view.confirmed],
        "awaited": [names.get(node, node) for node in view.awaited],
        "revoked": [names.get(node, node) for node in keys.revoked],
    }
    return json_response(task_response.encode(body), status)


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/rotation",
        perform=show,
        access=Access.READ,
        answers={200: Rotation},
    ),
    Route(
        method="POST",
        path="/api/v1/rotation",
        perform=rotate,
        query=("now",),
        access=Access.ADMIN,
        answers={202: Rotation},
        refuses=(409,),
    ),
    Route(
        method="POST",
        path="/api/v1/nodes/{name}/revoke",
        perform=revoke,
        access=Access.ADMIN,
        is_local=True,
        answers={202: Rotation},
        refuses=(409,),
    ),
)
