"""The routes that tell of the mesh and of this node."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from octaskly import __version__
from octaskly.api.http.request import Access, Call, Route, json_response
from octaskly.api.problems import WORKER_NOT_FOUND, Problem
from octaskly.api.schemas import mesh_response, task_response
from octaskly.core.model.nodes import AvailabilityCommand, NodeState
from octaskly.core.protocol.messages import RosterEntry
from octaskly.rest import mesh


async def health(call: Call) -> web.StreamResponse:
    """Return whether this node can serve."""
    state = call.gateway.health()
    now_ms = call.parts.clock.now().wall_ms
    status = HTTPStatus.OK if state.is_healthy else HTTPStatus.SERVICE_UNAVAILABLE
    body = task_response.encode(mesh_response.health(state, __version__, now_ms))
    return json_response(body, status)


async def stats(call: Call) -> web.StreamResponse:
    """Return counts of the mesh and the state of the dispatcher's machine."""
    gateway = call.gateway
    shown = mesh_response.stats(await gateway.stats(), gateway.names())
    return json_response(task_response.encode(shown))


async def index(call: Call) -> web.StreamResponse:
    """Return all members."""
    gateway, members = call.gateway, _members(call)
    shown = mesh_response.nodes(
        members,
        gateway.seen_ms,
        await gateway.joined_ms(member.id for member in members),
        gateway.mesh(),
        gateway.names(),
    )
    return json_response(task_response.encode(shown))


async def show(call: Call) -> web.StreamResponse:
    """Return one member, by name or id."""
    return await _shown(call, _member(call, call.named["name"]))


async def steer(call: Call) -> web.StreamResponse:
    """Tell a node to take no more work, or the opposite; that node itself answers."""
    steering = AvailabilityCommand(call.request.path.rpartition("/")[2])
    name, gateway = call.named["name"], call.gateway
    if gateway.node_named(name) == gateway.node_id:
        return await _shown(call, await gateway.steer(steering, principal=call.who))
    member = _member(call, name)
    if member.state is NodeState.LOST or call.hop is not None:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            WORKER_NOT_FOUND,
            hint=f"{member.name} is not in the mesh at this moment",
            headers={"Retry-After": "5"},
        )
    path = f"/api/v1/nodes/{member.id}/{steering.value}"
    return await call.parts.forwarder.fetch(call, gateway.urls_of(member.id), path)


async def _shown(call: Call, member: RosterEntry) -> web.StreamResponse:
    gateway, node = call.gateway, member.id
    joined_ms = (await gateway.joined_ms([node])).get(node)
    shown = mesh_response.node(member, gateway.seen_ms(node), joined_ms)
    return json_response(task_response.encode(shown))


def _member(call: Call, name: str) -> RosterEntry:
    for member in _members(call):
        if name in (member.name, member.id):
            return member
    raise Problem(404, WORKER_NOT_FOUND, hint=f"no member is called {name[:80]!r}")


def _members(call: Call) -> tuple[RosterEntry, ...]:
    roster = call.gateway.roster()
    return roster.members if roster else ()


ROUTES = (
    Route(
        method="GET",
        path="/health",
        perform=health,
        access=Access.OPEN,
        is_local=True,
        query=None,  # Probes add parameters against caches.
        answers={200: mesh.Healthy, 503: mesh.Unhealthy},
    ),
    Route(
        method="GET",
        path="/api/v1/stats",
        perform=stats,
        access=Access.READ,
        answers={200: mesh.Stats},
    ),
    Route(
        method="GET",
        path="/api/v1/nodes",
        perform=index,
        access=Access.READ,
        answers={200: mesh.Nodes},
    ),
    Route(
        method="GET",
        path="/api/v1/nodes/{name}",
        perform=show,
        access=Access.READ,
        answers={200: mesh.Node},
    ),
    *(
        Route(
            method="POST",
            path=f"/api/v1/nodes/{{name}}/{steering.value}",
            perform=steer,
            access=Access.ADMIN,
            is_local=True,
            answers={200: mesh.Node},
            refuses=(507,),
        )
        for steering in AvailabilityCommand
    ),
)
