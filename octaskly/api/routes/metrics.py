"""Routes for Prometheus: metrics of this node, and service discovery of all nodes."""

from __future__ import annotations

import ipaddress

from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.schemas import task_response
from octaskly.api.security import route_cost
from octaskly.config.units import host_and_port
from octaskly.core.model.nodes import RosterEntry
from octaskly.rest.mesh import ScrapeTarget

MEDIA = "text/plain"
_HEADERS = {"Content-Type": f"{MEDIA}; version=0.0.4; charset=utf-8"}


async def show_metrics(request: Request) -> web.StreamResponse:
    """Return the metrics of this node."""
    return web.Response(body=await request.services.render_metrics(), headers=_HEADERS)


async def list_scrape_targets(request: Request) -> web.StreamResponse:
    """Return the scrape targets of all nodes, also of lost ones."""
    roster = request.gateway.roster()
    members = roster.members if roster else ()
    request.info.row_count = len(members)
    shown = [_target(m, request.gateway.mesh_id or "") for m in members if m.addresses]
    return json_response(task_response.encode(shown))


def _target(member: RosterEntry, mesh_id: str) -> ScrapeTarget:
    meta = {
        "node_id": member.id,
        "role": member.role.value,
        "state": member.state.value,
        "version": member.version,
        "os": member.os,
        "arch": member.arch,
    }
    return ScrapeTarget(
        targets=[_reachable_address(member)],
        labels={
            "__scheme__": "https",
            "__metrics_path__": "/metrics",
            "node": member.name,
            "mesh": mesh_id,
            **{f"__meta_octaskly_{name}": value for name, value in meta.items()},
        },
    )


def _reachable_address(member: RosterEntry) -> str:
    """Return the address at which others reach a node.

    A link-local address is the last choice, because its scope is valid only on this
    machine.
    """
    hosts = [address.host.partition("%")[0] for address in member.addresses]
    host = next(
        (h for h in hosts if not ipaddress.ip_address(h).is_link_local), hosts[0]
    )
    return host_and_port(host, member.lan_port)


ROUTES = (
    Route(
        method="GET",
        path="/metrics",
        handler=show_metrics,
        cost=route_cost.METRICS,
        access=Access.READ_OR_LOCAL,
        is_local=True,
        query=None,  # Prometheus can be configured to add parameters.
        responses={200: None},
        media_type=MEDIA,
    ),
    Route(
        method="GET",
        path="/api/v1/sd/prometheus",
        handler=list_scrape_targets,
        cost=route_cost.PER_NODE,
        access=Access.READ,
        responses={200: list[ScrapeTarget]},
    ),
)
