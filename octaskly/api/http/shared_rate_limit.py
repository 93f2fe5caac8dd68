"""Counts at the dispatcher what another node answers by itself.

So a client has one account for all nodes. Where the dispatcher cannot be asked, the
node counts alone, and a client has as many accounts as there are such nodes.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus

from aiohttp import web

from octaskly.api.http import authentication
from octaskly.api.http.node_client import Unanswered, asked
from octaskly.api.http.request import Access, Call, Route
from octaskly.api.problems import status_problem
from octaskly.api.security.rate_limit import HEADERS, too_fast
from octaskly.ports import DispatcherView

_INTERNAL = "/internal/v1/toll"


async def pay(call: Call) -> None:
    """Count a request that this node answers by itself.

    Raises:
        Problem: 429, it is one too many.
    """
    view = call.gateway.dispatcher()
    if view is None or view.is_self or not await _paid(call, view):
        call.seen.allowance = call.parts.meter.charge(call.who)


async def _paid(call: Call, view: DispatcherView) -> bool:
    """Whether the dispatcher has counted it."""
    limit = asyncio.timeout(call.parts.deadlines.connect_s)
    with suppress(Unanswered, TimeoutError):
        async with limit, asked(call, view.lan_urls, _INTERNAL) as response:
            told = {
                name: response.headers[name]
                for name in HEADERS
                if name in response.headers
            }
            if response.status == HTTPStatus.TOO_MANY_REQUESTS and told:
                raise too_fast(told)
            if response.status == HTTPStatus.NO_CONTENT:
                call.seen.allowance = told
                return True
    return False


async def take(call: Call) -> web.StreamResponse:
    """Count a request that another node answers."""
    statement = call.request.headers.get(authentication.PRINCIPAL_HEADER)
    if statement is None or call.hop is None:
        raise status_problem(400, "who asks was not stated")
    call.seen.allowance = call.parts.meter.charge(
        authentication.stated(statement, call.hop)
    )
    return web.Response(status=HTTPStatus.NO_CONTENT)


ROUTES = (
    Route(
        method="GET",
        path=_INTERNAL,
        perform=take,
        access=Access.NODE,
        answers={204: None},
    ),
)
