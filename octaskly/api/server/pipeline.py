"""The one way in: everything passes here, in this order, before a handler runs.

Host, Origin, preflight, membership, route, who asks, rights, how often, body. Whatever
fails, and whatever a handler raises, leaves as JSON: `answering` gives it its shape.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from octaskly.api.http import audit_trail, authentication, shared_rate_limit
from octaskly.api.http.node_client import HOP_HEADER
from octaskly.api.http.request import Access, Call, Connection, Parts, Route, Seen
from octaskly.api.problems import (
    FORBIDDEN,
    UNAUTHENTICATED,
    UNPAIRED,
    Problem,
    status_problem,
    too_many,
)
from octaskly.api.schemas import task_request
from octaskly.api.schemas.query import Query
from octaskly.api.security import origin_checks
from octaskly.api.security.sessions import Holding, TokenEnded
from octaskly.api.server.request_bodies import Bodies
from octaskly.api.server.responses import Answering, connection_of
from octaskly.ports import Principal

JOIN_HINT = "run `octaskly invite` on a member, then `octaskly join CODE` here"
READING = ("GET", "HEAD")  #: they may last, and change nothing

Endpoint = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _Asked:
    """One request at the gate."""

    request: web.BaseRequest
    found: web.UrlMappingMatchInfo  #: by the router
    seen: Seen
    connection: Connection


class Gate:
    """Admits requests, and performs them."""

    def __init__(
        self,
        *,
        parts: Parts,
        guard: origin_checks.Guard,
        verify: authentication.Verify,
        node_name: str,
        answering: Answering,
        bodies: Bodies,
    ) -> None:
        self._parts = parts
        self._guard = guard
        self._verify = verify
        self._node_name = node_name
        name = node_name.lower()
        self._own_names = frozenset((name, f"{name}.local"))
        self._answering = answering
        self._bodies = bodies
        self._holding = Holding(parts.gateway.tokens.is_good)
        self._routes: dict[object, Route] = {}

    def endpoint(self, route: Route) -> Endpoint:
        """Return the aiohttp handler of a route; only the gate may call it."""

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            raise AssertionError(f"{request.path} was reached around the gate")

        self._routes[handle] = route
        return handle

    async def answer(
        self, request: web.BaseRequest, found: web.UrlMappingMatchInfo
    ) -> web.StreamResponse:
        """Answer a request for a route; raises only when the connection is lost."""
        connection = connection_of(request)
        seen = self._answering.see(request, connection)
        try:
            asked = _Asked(request, found, seen, connection)
            return await self._answer(asked)
        except Exception as error:  # The table decides; what is unknown is a 500.
            if request.writer.output_size > 0:
                # The answer has begun: only a broken connection can tell the client.
                if not isinstance(error, ConnectionError):
                    self._answering.explain(error, seen)
                raise ConnectionError("failed in mid-answer") from error
            if isinstance(error, web.HTTPException):
                return self._answering.refuse(status_problem(error.status))
            return self._answering.refuse(self._answering.explain(error, seen))
        finally:
            self._bodies.let_go(seen)

    async def _answer(self, asked: _Asked) -> web.StreamResponse:
        request, seen = asked.request, asked.seen
        if asked.connection.is_surplus:
            raise too_many()
        audit_trail.note_origin(seen, request, asked.connection.peer)
        principal = None
        try:
            route = self._route(asked)
            if route is not None:
                principal = self._principal(asked, route)
        except Problem:
            self._charge_stranger(asked)
            raise
        if principal is None:
            self._charge_stranger(asked)
        if route is None:
            allowed = _allowed(asked.found.http_exception)
            headers = origin_checks.preflight_headers(seen.origin, allowed)
            return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)
        call = await self._admit(asked, route, principal)
        if request.method not in READING or principal is None or not principal.token:
            return await self._perform(call, route)
        try:
            async with self._holding.held(principal):
                return await self._perform(call, route)
        except TokenEnded:
            raise authentication.ended() from None

    async def _perform(self, call: Call, route: Route) -> web.StreamResponse:
        """Answer here or at the dispatcher; a request is counted where that is done."""
        if route.is_local:
            if route.access is Access.MACHINE:
                # Each node is asked by itself, and answers while none reigns.
                self._charge(call.principal, call.seen)
            elif call.principal is not None and call.hop is None:
                await shared_rate_limit.pay(call)
            return await route.perform(call)

        async def perform(call: Call) -> web.StreamResponse:
            self._charge(call.principal, call.seen)
            return await route.perform(call)

        return await self._parts.forwarder.perform(call, perform)

    def _charge(self, principal: Principal | None, seen: Seen) -> None:
        """Count a request, once."""
        if principal is not None and seen.allowance is None:
            seen.allowance = self._parts.meter.charge(principal)

    def _charge_stranger(self, asked: _Asked) -> None:
        """Count a request from the network that did not show who asks."""
        connection, address = asked.connection, asked.request.remote
        if connection.is_lan and connection.peer is None and address:
            asked.seen.allowance = self._parts.meter.charge_stranger(address)

    def _route(self, asked: _Asked) -> Route | None:
        """Return what is asked for, None for what browsers ask before; or `Problem`."""
        request, found = asked.request, asked.found
        self._check_sender(asked)
        if request.version.major != 1:  # The library would answer as if it were.
            raise _other_version()
        if request.method == "OPTIONS":
            return None
        failure = found.http_exception
        route = self._routes.get(found.handler)
        is_open = route is not None and (
            route.access is Access.OPEN or route.is_for_unpaired
        )
        if not is_open and self._parts.gateway.mesh_id is None:
            raise Problem(503, UNPAIRED, hint=JOIN_HINT)
        if failure is not None:
            raise _unroutable(request, failure)
        if route is None:
            raise Problem(403, FORBIDDEN, hint="this path has no access rule")
        audit_trail.note_route(asked.seen, found, route)
        return route

    def _check_sender(self, asked: _Asked) -> None:
        """Keep out browsers that a foreign page sent."""
        request, connection = asked.request, asked.connection
        if not connection.is_socket and connection.peer is None:
            own = connection.own_addresses
            if connection.is_lan:
                own = own | self._own_names
            hosts = request.headers.getall("Host", [])
            self._guard.check_host(hosts, _target_host(request), own)
        scheme = "https" if connection.is_lan else "http"
        asked.seen.origin = self._guard.allowed_origin(request.headers, scheme)

    async def _admit(
        self, asked: _Asked, route: Route, principal: Principal | None
    ) -> Call:
        request, seen, connection = asked.request, asked.seen, asked.connection
        if principal is not None:
            audit_trail.note_principal(seen, principal)
            is_local = self._is_local(connection, principal, route)
            authentication.check_rights(principal, route, is_local=is_local)
            view = self._parts.gateway.dispatcher()
            if not route.is_local and view is not None and view.is_self:
                self._charge(principal, seen)  # Before its body is read.
        has_query = route.query is not None and "?" in request.raw_path
        given = request.query.items() if has_query else ()
        call_query = Query(given, route.query or ())
        hop = connection.peer if HOP_HEADER in request.headers else None
        body = await self._bodies.read(request, seen, route)
        if body and route.takes is None:
            task_request.require_nothing(body)
        return Call(
            request=request,
            seen=seen,
            stamp=lambda response: self._answering.stamp(request, response),
            parts=self._parts,
            named=asked.found,
            query=call_query,
            body=body,
            principal=principal,
            hop=hop,
        )

    def _is_local(
        self, connection: Connection, principal: Principal, route: Route
    ) -> bool:
        """Whether a user of this machine's socket asks, maybe through a page."""
        if route.access is not Access.OPENED or connection.is_lan:
            return connection.is_socket
        own = self._parts.gateway.node_id
        return connection.is_socket or principal.opened_on == own

    def _principal(self, asked: _Asked, route: Route) -> Principal | None:
        """Return who asks; raise `Problem` (401, 403) unless that is known."""
        if route.access is Access.OPEN:
            return None
        request, connection = asked.request, asked.connection
        is_bare = not connection.is_lan and "Authorization" not in request.headers
        if route.access is Access.NODE:
            if connection.peer is None:
                raise Problem(
                    401,
                    UNAUTHENTICATED,
                    hint="only nodes of the mesh may ask this",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return None
        if connection.is_socket:
            return connection.local_principal(self._node_name)
        if route.access is Access.MACHINE and is_bare:
            return None
        if connection.peer is not None:
            statement = request.headers.get(authentication.PRINCIPAL_HEADER)
            if statement is not None:
                return self._still_good(
                    authentication.stated(statement, connection.peer)
                )
        return authentication.bearer(request.headers.get("Authorization"), self._verify)

    def _still_good(self, principal: Principal) -> Principal:
        """Refuse a token that the node which forwards does not know to be revoked."""
        if not self._parts.gateway.tokens.is_good(principal):
            raise authentication.ended()
        return principal


def _target_host(request: web.BaseRequest) -> str | None:
    """Return the authority of a target in absolute form, which counts as a Host."""
    target = request.raw_path
    if target.startswith(("/", "*")):
        return None
    return target.partition("://")[2].partition("/")[0] or target


def _allowed(failure: web.HTTPException | None) -> str:
    if isinstance(failure, web.HTTPMethodNotAllowed):
        return ", ".join(sorted({*failure.allowed_methods, "OPTIONS"}))
    return origin_checks.METHODS


def _other_version() -> Problem:
    problem = status_problem(
        HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "this is HTTP/1.1, and takes HTTP/1.0"
    )
    problem.closes = True
    return problem


def _unroutable(request: web.BaseRequest, failure: web.HTTPException) -> Problem:
    known = ("GET", "HEAD", "POST", "DELETE")
    is_method = isinstance(failure, web.HTTPMethodNotAllowed)
    if not is_method and request.method in known:
        return status_problem(failure.status, f"there is no {request.path[:80]!a}")
    allow = _allowed(failure)
    problem = status_problem(405, f"allowed: {allow}")
    problem.headers["Allow"] = allow
    return problem
