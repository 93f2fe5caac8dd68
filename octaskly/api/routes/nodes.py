"""Routes of nodes, health and statistics."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Final

from aiohttp import web

from octaskly import __version__
from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.problems import FORBIDDEN, WORKER_NOT_FOUND, Problem, timestamp
from octaskly.api.schemas import mesh_response, task_response
from octaskly.api.security import route_cost
from octaskly.core.model.ids import VISITOR_PREFIX, NodeId, is_visitor
from octaskly.core.model.nodes import AvailabilityCommand, NodeState, RosterEntry
from octaskly.rest import mesh as rest
from octaskly.rest.mesh import History, HistoryPoint, VisitorDemand
from octaskly.system.build import build_id

_VISITOR_ID: Final = re.compile(rf"{VISITOR_PREFIX}[a-z2-7]{{16}}")


async def show_health(request: Request) -> web.StreamResponse:
    """Return the health of this node."""
    state = request.gateway.health()
    now_ms = request.services.clock.now().wall_ms
    status = HTTPStatus.OK if state.is_healthy else HTTPStatus.SERVICE_UNAVAILABLE
    body = task_response.encode(
        mesh_response.health(state, __version__, build_id(), now_ms)
    )
    return json_response(body, status)


async def show_stats(request: Request) -> web.StreamResponse:
    """Return statistics of the mesh and of the dispatcher's machine."""
    gateway = request.gateway
    shown = mesh_response.stats(await gateway.mesh_stats(), gateway.node_names())
    return json_response(task_response.encode(shown))


async def list_nodes(request: Request) -> web.StreamResponse:
    """Return all members."""
    gateway, members = request.gateway, _members(request)
    request.info.row_count = len(members)
    shown = mesh_response.nodes(
        members,
        gateway.last_heard_ms,
        await gateway.audit.join_times(member.id for member in members),
        gateway.replication_state(),
        gateway.node_names(),
    )
    return json_response(task_response.encode(shown))


async def show_node(request: Request) -> web.StreamResponse:
    """Return one member, by name or id."""
    return await _node_response(request, _member(request, request.path_params["name"]))


async def set_availability(request: Request) -> web.StreamResponse:
    """Set the availability of a node; that node itself answers."""
    command = AvailabilityCommand(request.http_request.path.rpartition("/")[2])
    name, gateway = request.path_params["name"], request.gateway
    if gateway.find_node_id(name) == gateway.node_id:
        return await _node_response(
            request,
            await gateway.set_availability(
                command, principal=request.authenticated_principal
            ),
        )
    return await _forward(request, name, command.value)


async def end_visit(request: Request) -> web.StreamResponse:
    """End the visit of one visitor, which may be away; the secret stays as it is."""
    name = request.path_params["name"]
    node = request.gateway.find_node_id(name)
    if node is None and _VISITOR_ID.fullmatch(name):
        node = NodeId(name)
    if node is None or not is_visitor(node):
        raise Problem(404, WORKER_NOT_FOUND, hint=f"no visitor is called {name[:80]!r}")
    await request.gateway.end_visit(node)
    shown = rest.EndedVisit(id=node, name=request.gateway.node_names().get(node, node))
    return json_response(task_response.encode(shown))


async def show_storage(request: Request) -> web.StreamResponse:
    """Return what takes up space on a node; that node itself answers.

    Files of a tree are one item. A content of several trees counts for the one that was
    used last.
    """
    name, gateway = request.path_params["name"], request.gateway
    limit, offset = request.query.limit(), request.query.offset()
    if gateway.find_node_id(name) != gateway.node_id:
        return await _forward(request, name, f"storage?limit={limit}&offset={offset}")
    usage = await asyncio.to_thread(request.files.storage.read_usage)
    own = gateway.node_names().get(gateway.node_id, gateway.node_id)
    uptime_s = gateway.health().uptime_s
    shown = mesh_response.storage(own, usage, uptime_s, offset, limit)
    return json_response(task_response.encode(shown))


async def _forward(request: Request, name: str, path: str) -> web.StreamResponse:
    """Forward a request to the node that it is about.

    Raises:
        Problem: 404, there is no such node; 409, it is a visitor; 503, it is not
            connected.
    """
    gateway, member = request.gateway, _member(request, name)
    if is_visitor(member.id):
        hint = f"{member.name} is a visitor, which answers no requests"
        raise Problem(HTTPStatus.CONFLICT, FORBIDDEN, hint=hint)
    if member.state is NodeState.LOST or request.forwarded_by is not None:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            WORKER_NOT_FOUND,
            hint=f"{member.name} is not connected to the mesh at the moment",
            headers={"Retry-After": "5"},
        )
    return await request.services.node_client.forward_to_node(
        request,
        gateway.api_urls_of(member.id),
        f"/api/v1/nodes/{member.id}/{path}",
    )


async def _node_response(request: Request, member: RosterEntry) -> web.StreamResponse:
    gateway, node = request.gateway, member.id
    joined_ms = (await gateway.audit.join_times([node])).get(node)
    shown = mesh_response.node(member, gateway.last_heard_ms(node), joined_ms)
    return json_response(task_response.encode(shown))


def _member(request: Request, name: str) -> RosterEntry:
    for member in _members(request):
        if name in (member.name, member.id):
            return member
    raise Problem(404, WORKER_NOT_FOUND, hint=f"no node is called {name[:80]!r}")


def _members(request: Request) -> tuple[RosterEntry, ...]:
    roster = request.gateway.roster()
    return roster.nodes if roster else ()


async def show_queue_history(request: Request) -> web.StreamResponse:
    """Return task counts of the last ten minutes, at regular intervals."""
    points = [
        HistoryPoint(
            at=timestamp(point.at_ms),
            queued=point.queued,
            running=point.running,
            ended_per_second=round(point.ended_per_s, 2),
        )
        for point in request.gateway.queue_history()
    ]
    return json_response(task_response.encode(History(points=points)))


async def show_visitor_demand(request: Request) -> web.StreamResponse:
    """Return how many queued tasks a visitor could run that is not there yet."""
    demand = await request.gateway.visitor_demand(request.query.required_label())
    shown = VisitorDemand(waiting=demand.waiting, is_exact=demand.is_exact)
    return json_response(task_response.encode(shown))


ROUTES = (
    Route(
        method="GET",
        path="/health",
        handler=show_health,
        cost=route_cost.CHEAP,
        access=Access.PUBLIC,
        is_local=True,
        query=None,  # Probes add parameters to bypass caches.
        responses={200: rest.Healthy, 503: rest.Unhealthy},
    ),
    Route(
        method="GET",
        path="/api/v1/stats",
        handler=show_stats,
        cost=route_cost.CHEAP,
        access=Access.READ,
        responses={200: rest.Stats},
    ),
    Route(
        method="GET",
        path="/api/v1/nodes",
        handler=list_nodes,
        cost=route_cost.PER_NODE,
        access=Access.READ,
        responses={200: rest.NodePage},
    ),
    Route(
        method="GET",
        path="/api/v1/nodes/{name}",
        handler=show_node,
        cost=route_cost.CHEAP,
        access=Access.READ,
        responses={200: rest.NodeInfo},
    ),
    Route(
        method="GET",
        path="/api/v1/nodes/{name}/storage",
        handler=show_storage,
        cost=route_cost.STORAGE,
        access=Access.READ,
        is_local=True,
        query=("limit", "offset"),
        responses={200: rest.Storage},
    ),
    Route(
        method="POST",
        path="/api/v1/nodes/{name}/end-visit",
        handler=end_visit,
        cost=route_cost.MESH_CHANGE,
        access=Access.ADMIN,
        responses={200: rest.EndedVisit},
        error_statuses=(409, 507),
    ),
    *(
        Route(
            method="POST",
            path=f"/api/v1/nodes/{{name}}/{command.value}",
            handler=set_availability,
            cost=route_cost.MESH_CHANGE,
            access=Access.ADMIN,
            is_local=True,
            responses={200: rest.NodeInfo},
            error_statuses=(507,),
        )
        for command in AvailabilityCommand
    ),
    Route(
        method="GET",
        path="/api/v1/stats/history",
        handler=show_queue_history,
        cost=route_cost.CHEAP,
        access=Access.READ,
        responses={200: History},
    ),
    Route(
        method="GET",
        path="/api/v1/stats/visitors",
        handler=show_visitor_demand,
        cost=route_cost.EXPENSIVE,
        access=Access.READ,
        query=("required_label",),
        responses={200: VisitorDemand},
    ),
)
