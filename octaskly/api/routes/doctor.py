"""Routes of `octaskly doctor`: setup of an agent, and reachability of members."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from aiohttp import web

from octaskly.api.http.handler_types import Request, Route, json_response
from octaskly.api.problems import WORKER_NOT_FOUND, Problem
from octaskly.api.schemas import task_response
from octaskly.api.security import route_cost
from octaskly.core.model.nodes import NodeState, RosterEntry
from octaskly.rest.mesh import Checkup, Reach

CONNECT_S_MAX: Final = 1.0  #: a LAN answers within milliseconds
ADDRESSES_MAX: Final = 4  #: addresses of a member that are tried
BEST_FIRST: Final = ("reached", "refused", "silent")


async def show_agent_setup(request: Request) -> web.StreamResponse:
    """Return the setup of this agent."""
    return json_response(task_response.encode(request.services.describe_agent()))


async def check_reachability(request: Request) -> web.StreamResponse:
    """Return the result of connecting from one member to another."""
    gateway, path = request.gateway, request.path_params
    source, target = _member(request, path["name"]), _member(request, path["other"])
    if source.id == gateway.node_id:
        # One probe of a client at a time: each is up to eight connections.
        async with request.work.heavy():
            found = await _probe_member(target)
        return json_response(task_response.encode(found))
    if source.state is NodeState.LOST or request.forwarded_by is not None:
        raise _missing(source.name)
    where = f"/api/v1/nodes/{source.id}/reach/{target.id}"
    return await request.services.node_client.forward_to_node(
        request, gateway.api_urls_of(source.id), where
    )


async def _probe_member(target: RosterEntry) -> Reach:
    """Connect to both ports of a member, at addresses from the roster."""
    hosts = [address.host for address in target.addresses[:ADDRESSES_MAX]]
    port = target.addresses[0].port if target.addresses else 0
    async with asyncio.TaskGroup() as tasks:
        dials = [
            [tasks.create_task(_try_connect(host, each)) for host in hosts]
            for each in (port, target.lan_port)
        ]
    peer, lan = (_best([dial.result() for dial in tried]) for tried in dials)
    return Reach(node=target.id, peer_port=peer, lan_port=lan)


def _best(answers: list[str]) -> str:
    """Return the best result of several addresses."""
    return min(answers, key=BEST_FIRST.index, default="silent")


async def _try_connect(host: str, port: int) -> str:
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return "refused"
    except OSError:  # TimeoutError is an OSError, too.
        return "silent"
    writer.close()
    return "reached"


def _member(request: Request, name: str) -> RosterEntry:
    roster = request.gateway.roster()
    for member in roster.members if roster else ():
        if name in (member.name, member.id):
            return member
    raise _missing(name)


def _missing(name: str) -> Problem:
    return Problem(
        HTTPStatus.NOT_FOUND,
        WORKER_NOT_FOUND,
        hint=f"no node is called {name[:80]!r}, or that node is lost",
    )


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/doctor",
        handler=show_agent_setup,
        cost=route_cost.CHEAP,
        is_local=True,
        is_for_unpaired=True,
        responses={200: Checkup},
    ),
    Route(
        method="GET",
        path="/api/v1/nodes/{name}/reach/{other}",
        handler=check_reachability,
        cost=route_cost.CHEAP,
        is_local=True,
        responses={200: Reach},
        error_statuses=(404,),
    ),
)
