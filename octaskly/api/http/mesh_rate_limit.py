"""Rate limit at the dispatcher for requests that another node answers by itself.

So one limit covers all nodes. If the dispatcher cannot be reached, the node counts
alone, and the limit applies per node.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus

from aiohttp import web

from octaskly.api.http import authentication
from octaskly.api.http.handler_types import Access, Request, Route
from octaskly.api.http.node_client import NodeNotResponding, request_from_node
from octaskly.api.problems import Problem, status_problem
from octaskly.api.security import route_cost
from octaskly.api.security.rate_limit import RATE_LIMIT_HEADERS, too_many_requests
from octaskly.ports.gateway import DispatcherView

_INTERNAL = "/internal/v1/rate-limit"


async def charge(request: Request) -> None:
    """Count a request that this node answers by itself.

    Raises:
        Problem: 429, the limit is reached.
    """
    view = request.gateway.dispatcher()
    is_near = view is not None and view.relay is None and not view.is_self
    if not (view and is_near and await _charge_at_dispatcher(request, view)):
        request.info.rate_limit_headers = request.services.rate_limiter.charge(
            request.authenticated_principal, request.info.rate_units
        )


async def _charge_at_dispatcher(request: Request, view: DispatcherView) -> bool:
    """Return True if the dispatcher counted the request."""
    limit = asyncio.timeout(request.services.timeouts.connect_s)
    path = f"{_INTERNAL}?units={request.info.rate_units}"
    with suppress(NodeNotResponding, TimeoutError):
        async with (
            limit,
            request_from_node(request, view.lan_urls, path) as response,
        ):
            headers = {
                name: response.headers[name]
                for name in RATE_LIMIT_HEADERS
                if name in response.headers
            }
            if response.status == HTTPStatus.TOO_MANY_REQUESTS and headers:
                raise too_many_requests(headers)
            if response.status == HTTPStatus.NO_CONTENT:
                request.info.rate_limit_headers = headers
                return True
    return False


async def charge_for_node(request: Request) -> web.StreamResponse:
    """Count a request that another node answers."""
    statement = request.http_request.headers.get(authentication.PRINCIPAL_HEADER)
    if statement is None or request.forwarded_by is None:
        raise status_problem(400, "the request states no principal")
    principal = authentication.parse_principal_header(statement, request.forwarded_by)
    rate_limiter = request.services.rate_limiter
    try:
        request.info.rate_limit_headers = rate_limiter.charge(
            principal, request.query.units()
        )
    except Problem as problem:
        problem.is_delayed = False  # The node that asks delays its own response.
        raise
    return web.Response(status=HTTPStatus.NO_CONTENT)


ROUTES = (
    Route(
        method="GET",
        path=_INTERNAL,
        handler=charge_for_node,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        query=("units",),
        responses={204: None},
    ),
)
