"""Request pipeline: every request passes these checks before its handler runs.

The order is: Host, Origin, preflight, membership, route, authentication, permissions,
rate limit, quotas, body. `RequestLifecycle` turns each failure, of a check or a
handler, into a JSON error response.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final

from aiohttp import web

from octaskly.api.http import audit_trail, authentication, mesh_rate_limit
from octaskly.api.http.handler_types import (
    Access,
    Connection,
    Request,
    RequestInfo,
    Route,
    Services,
)
from octaskly.api.http.node_client import HOP_HEADER
from octaskly.api.problems import (
    FORBIDDEN,
    NO_DISPATCHER,
    UNAUTHENTICATED,
    UNPAIRED,
    Problem,
    status_problem,
)
from octaskly.api.schemas import request_bodies
from octaskly.api.schemas.query import Query
from octaskly.api.security import origin_checks, route_cost
from octaskly.api.security.ended_tokens import TokenEnded, TokenMonitor
from octaskly.api.security.quotas import SMALL_RESPONSE_BYTES, Admission, Quotas
from octaskly.api.security.request_turns import RequestTurns, RequestWork
from octaskly.api.server.request_bodies import BodyReader
from octaskly.api.server.request_lifecycle import RequestLifecycle, connection_of
from octaskly.ports.tokens import Principal
from octaskly.trust.certificates import PeerIdentity

JOIN_HINT = (
    "it sees a mesh, and waits for `octaskly join` with a code from `octaskly invite`"
)
READING = ("GET", "HEAD")  #: requests that may take long and change nothing

PART_BYTES: Final = 64 << 10  #: of a large response that is written at once
_NOTHING: Final = contextlib.nullcontext()

AiohttpHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _RoutedRequest:
    """A request with its route, before its checks."""

    request: web.BaseRequest
    match_info: web.UrlMappingMatchInfo  #: the router's result
    info: RequestInfo
    connection: Connection


class RequestPipeline:
    """Checks requests, and runs their handlers."""

    def __init__(
        self,
        *,
        services: Services,
        allow_list: origin_checks.AllowList,
        verify_token: authentication.VerifyToken,
        node_name: str,
        lifecycle: RequestLifecycle,
        body_reader: BodyReader,
        quotas: Quotas,
    ) -> None:
        self._services = services
        self._allow_list = allow_list
        self._verify_token = verify_token
        self._node_name = node_name
        name = node_name.lower()
        self._own_names = frozenset((name, f"{name}.local"))
        self._lifecycle = lifecycle
        self._body_reader = body_reader
        self._quotas = quotas
        self.turns = RequestTurns()
        """Lets requests start; connections tell it of them."""
        self._token_monitor = TokenMonitor(services.gateway.tokens.is_valid)
        self._routes: dict[object, Route] = {}

    def register_route(self, route: Route) -> AiohttpHandler:
        """Return the aiohttp handler that identifies a route; nothing calls it."""

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            raise AssertionError(f"{request.path} was handled outside the pipeline")

        self._routes[handle] = route
        return handle

    async def handle(
        self, request: web.BaseRequest, match_info: web.UrlMappingMatchInfo
    ) -> web.StreamResponse:
        """Answer a request; raises only when the connection is lost."""
        connection = connection_of(request)
        seen = self._lifecycle.start_request(request, connection)
        try:
            if not self.turns.is_only_request(connection.owner):
                await self.turns.wait(connection.owner)
            asked = _RoutedRequest(request, match_info, seen, connection)
            return await self._handle(asked)
        except asyncio.CancelledError:
            # The client gets no answer, but its change may have been made.
            self._lifecycle.auditor.record_departure(seen, request.method)
            raise
        except Exception as error:  # `problem_of` maps it to a status; default 500.
            if request.writer.output_size > 0:
                # Headers are sent already, so only a broken connection can report the
                # failure.
                if not isinstance(error, ConnectionError):
                    self._lifecycle.to_problem(error, seen)
                raise ConnectionError(
                    "failure after the start of the response"
                ) from error
            if isinstance(error, web.HTTPException):
                problem = status_problem(error.status)
            else:
                problem = self._lifecycle.to_problem(error, seen)
        finally:
            self._body_reader.release(seen)
        # The traceback refers to all that the handler has read, and to this frame.
        problem.__traceback__ = problem.__context__ = None
        if problem.is_delayed:
            await asyncio.sleep(self._services.timeouts.refusal_delay_s)
        return self._lifecycle.problem_response(problem)

    async def _handle(self, routed: _RoutedRequest) -> web.StreamResponse:
        request, seen = routed.request, routed.info
        if routed.connection.refusal is not None:
            raise routed.connection.refusal
        audit_trail.record_source(seen, request, routed.connection.peer)
        principal = None
        try:
            route = self._find_route(routed)
            if route is not None:
                principal = self._authenticate(routed, route)
        except Problem:
            self._charge_anonymous(routed)
            raise
        if principal is None:
            self._charge_anonymous(routed)
        if route is None:
            allowed = _allowed(routed.match_info.http_exception)
            headers = origin_checks.preflight_headers(seen.origin, allowed)
            return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)
        query = request.query if "?" in request.raw_path else {}
        seen.rate_units = route.cost.rate_units(query)
        with _counted_connection(routed.connection, principal):
            self._authorize(routed, route, principal)
            return await self._answer_while_valid(routed, route, principal, query)

    async def _answer_while_valid(
        self,
        routed: _RoutedRequest,
        route: Route,
        principal: Principal | None,
        query: Mapping[str, str],
    ) -> web.StreamResponse:
        """Answer a request; one that may take long ends with the token of its client.

        Other requests do not: their clients must learn what has changed.
        """
        may_be_long = (
            routed.request.method in READING
            or route.cost.kind is route_cost.CostKind.STREAM
            or route.is_body_streamed
        )
        if not may_be_long or principal is None or not principal.token:
            return await self._answer(routed, route, principal, query)
        try:
            async with self._token_monitor.cancel_when_token_ends(principal):
                return await self._answer(routed, route, principal, query)
        except TokenEnded:
            raise authentication.token_ended_problem() from None

    async def _answer(
        self,
        routed: _RoutedRequest,
        route: Route,
        principal: Principal | None,
        query: Mapping[str, str],
    ) -> web.StreamResponse:
        """Read, handle and answer a request within the quotas of its client."""
        # Responses of the other routes are small, or files that are in memory anyway.
        is_metered = route.access not in (Access.PUBLIC, Access.NODE)
        cost = route.cost if is_metered else route_cost.CHEAP
        is_expensive = cost.is_expensive(query)
        is_heavy = is_expensive or routed.info.rate_units >= route_cost.HEAVY_UNITS
        async with Admission(
            self._quotas,
            principal,
            expected_bytes=cost.response_bytes(query),
            needs_slot=is_expensive,
        ) as quota:
            async with RequestWork(self.turns, routed.connection.owner) as work:
                call = await self._read(routed, route, principal, quota, work)
                if is_heavy and is_metered:
                    async with work.heavy():
                        response = await self._run_handler(call, route)
                else:
                    response = await self._run_handler(call, route)
            if is_metered and type(response) is web.Response:
                return await _send(call, response, quota)
            return response

    async def _run_handler(self, request: Request, route: Route) -> web.StreamResponse:
        """Run the handler here or at the dispatcher, and count it in the rate limit."""
        if route.is_local:
            if route.access is Access.READ_OR_LOCAL:
                # Each node answers this for itself, even when no dispatcher is elected.
                self._charge(request.principal, request.info)
            elif request.principal is not None and request.forwarded_by is None:
                await mesh_rate_limit.charge(request)
            return await route.handler(request)

        async def perform(call: Request) -> web.StreamResponse:
            self._charge(call.principal, call.info)
            response = await route.handler(call)
            self._correct_charge(call, route, response)
            return response

        return await self._services.node_client.forward_to_dispatcher(request, perform)

    def _charge(self, principal: Principal | None, info: RequestInfo) -> None:
        """Count a request in the rate limit, at most once."""
        if principal is not None and info.rate_limit_headers is None:
            charge = self._services.rate_limiter.charge
            info.rate_limit_headers = charge(principal, info.rate_units)

    def _correct_charge(
        self, call: Request, route: Route, response: web.StreamResponse
    ) -> None:
        """Charge a request for what it read, which is known only now.

        The rows that a list might have had count from the start, so that a client that
        leaves early pays for them.
        """
        info, principal, http_request = call.info, call.principal, call.http_request
        if principal is None or http_request.method not in READING:
            return
        body = response.body if isinstance(response, web.Response) else None
        size_bytes = len(body) if isinstance(body, bytes) else 0
        if info.row_count is None and size_bytes < route_cost.BYTES_PER_UNIT:
            return  # It was charged for as much.
        used = route.cost.rate_units(http_request.query, info.row_count, size_bytes)
        if used != info.rate_units:
            info.rate_limit_headers = self._services.rate_limiter.correct_charge(
                principal, info.rate_units, used
            )

    def _charge_anonymous(self, routed: _RoutedRequest) -> None:
        """Count a request from the LAN that is a visitor's, or not authenticated."""
        connection, limiter = routed.connection, self._services.rate_limiter
        if connection.visitor is not None:
            headers = limiter.charge_visitor(connection.visitor.node)
        elif connection.is_lan and connection.peer is None:
            headers = limiter.charge_anonymous(connection.owner)
        else:
            return
        routed.info.rate_limit_headers = headers

    def _find_route(self, routed: _RoutedRequest) -> Route | None:
        """Return the route of a request, None for a preflight; or raise `Problem`."""
        request, found = routed.request, routed.match_info
        self._check_host_and_origin(routed)
        if request.version.major != 1:  # aiohttp would treat it as version 1.
            raise _unsupported_version_problem()
        if request.method == "OPTIONS":
            return None
        failure = found.http_exception
        route = self._routes.get(found.handler)
        is_open = route is not None and (
            route.access is Access.PUBLIC or route.is_for_unpaired
        )
        if not is_open and self._services.gateway.mesh_id is None:
            raise Problem(503, UNPAIRED, hint=JOIN_HINT)
        if failure is not None:
            raise _unroutable(request, failure)
        if route is None:
            raise Problem(403, FORBIDDEN, hint="this path has no access rule")
        audit_trail.record_route(routed.info, found, route)
        return route

    def _check_host_and_origin(self, routed: _RoutedRequest) -> None:
        """Refuse requests that a foreign web page makes a browser send."""
        request, connection = routed.request, routed.connection
        if not connection.is_socket and connection.peer is None:
            own = connection.own_addresses
            if connection.is_lan:
                own = own | self._own_names
            hosts = request.headers.getall("Host", [])
            self._allow_list.check_host(hosts, _target_host(request), own)
        scheme = "https" if connection.is_lan else "http"
        routed.info.origin = self._allow_list.allowed_origin(request.headers, scheme)

    def _authorize(
        self, routed: _RoutedRequest, route: Route, principal: Principal | None
    ) -> None:
        """Check the rights of a request, and count it if this node is dispatcher."""
        if principal is None:
            return
        audit_trail.record_principal(routed.info, principal)
        is_local = self._is_local(routed.connection, principal, route)
        authentication.check_rights(principal, route, is_local=is_local)
        view = self._services.gateway.dispatcher()
        if not route.is_local and view is not None and view.is_self:
            self._charge(principal, routed.info)  # Before the body is read.

    async def _read(
        self,
        routed: _RoutedRequest,
        route: Route,
        principal: Principal | None,
        quota: Admission,
        work: RequestWork,
    ) -> Request:
        request, seen, connection = routed.request, routed.info, routed.connection
        has_query = route.query is not None and "?" in request.raw_path
        given = request.query.items() if has_query else ()
        call_query = Query(given, route.query or ())
        hop = connection.peer if HOP_HEADER in request.headers else None
        body = await self._body_reader.read(request, seen, route)
        connection.mark_request_complete()
        if body and route.body_type is None:
            request_bodies.require_empty_body(body)
        return Request(
            http_request=request,
            info=seen,
            add_headers=partial(self._lifecycle.add_headers, connection),
            services=self._services,
            path_params=routed.match_info,
            query=call_query,
            body=body,
            principal=principal,
            forwarded_by=hop,
            quota=quota,
            work=work,
            visitor=None if connection.visitor is None else connection.visitor.node,
        )

    def _is_local(
        self, connection: Connection, principal: Principal, route: Route
    ) -> bool:
        """Return True if the client is a user of the local socket.

        For `Access.LOCAL_PAGE`, a dashboard session of this node counts, too, except
        over the LAN.
        """
        if route.access is not Access.LOCAL_PAGE or connection.is_lan:
            return connection.is_socket
        own = self._services.gateway.node_id
        return connection.is_socket or principal.session_node == own

    def _authenticate(self, routed: _RoutedRequest, route: Route) -> Principal | None:
        """Return the principal of a request; raise `Problem` (401, 403) if unknown."""
        if routed.connection.visitor is not None:
            self._check_visitor(routed.connection.visitor, route)
            return None
        if route.access is Access.PUBLIC:
            return None
        request, connection = routed.request, routed.connection
        is_local_without_token = (
            not connection.is_lan and "Authorization" not in request.headers
        )
        if route.access is Access.NODE:
            if connection.peer is None:
                raise Problem(
                    401,
                    UNAUTHENTICATED,
                    hint="only nodes of the mesh may use this path",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return None
        if connection.is_socket:
            return connection.local_principal(self._node_name)
        if route.access is Access.READ_OR_LOCAL and is_local_without_token:
            return None
        if connection.peer is not None:
            statement = request.headers.get(authentication.PRINCIPAL_HEADER)
            if statement is not None:
                return self._require_valid_token(
                    authentication.parse_principal_header(statement, connection.peer)
                )
        return authentication.authenticate_bearer(
            request.headers.get("Authorization"), self._verify_token
        )

    def _check_visitor(self, visitor: PeerIdentity, route: Route) -> None:
        """Refuse a visitor whatever is not declared for visitors, with any token."""
        assert visitor.visit_ends_ms is not None
        rotations = self._services.rotations
        if visitor.visit_ends_ms <= self._services.clock.now().wall_ms:
            raise Problem(403, FORBIDDEN, hint="the time of this visitor is up")
        if rotations is not None and rotations.is_node_refused(visitor.node):
            raise Problem(403, FORBIDDEN, hint="the visit was ended")
        view = self._services.gateway.dispatcher()
        if route.allows_visitors and (view is None or not view.is_self):
            # Only the dispatcher knows what the visitor runs.
            hint = "this node is not the dispatcher"
            raise Problem(503, NO_DISPATCHER, hint=hint)
        if not route.allows_visitors:
            hint = "a visitor may only ask for the files of its own tasks"
            raise Problem(403, FORBIDDEN, hint=hint)

    def _require_valid_token(self, principal: Principal) -> Principal:
        """Return the principal; raise `Problem` if its token has ended.

        The forwarding node may not know yet that the token was revoked.
        """
        if not self._services.gateway.tokens.is_valid(principal):
            raise authentication.token_ended_problem()
        return principal


def _counted_connection(
    connection: Connection, principal: Principal | None
) -> contextlib.AbstractContextManager[None]:
    """Count the connection, or the forwarded request, for its subject.

    Raises:
        Problem: 429 or 503, there are too many.
    """
    if principal is None or connection.is_socket:
        return _NOTHING
    if principal.node is not None:
        return connection.count_forwarded(principal.subject)
    connection.authenticate_as(principal.subject)
    return _NOTHING


def _target_host(request: web.BaseRequest) -> str | None:
    """Return the authority of an absolute request target, which counts as a Host."""
    target = request.raw_path
    if target.startswith(("/", "*")):
        return None
    return target.partition("://")[2].partition("/")[0] or target


def _allowed(failure: web.HTTPException | None) -> str:
    if isinstance(failure, web.HTTPMethodNotAllowed):
        return ", ".join(sorted({*failure.allowed_methods, "OPTIONS"}))
    return origin_checks.METHODS


def _unsupported_version_problem() -> Problem:
    problem = status_problem(
        HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "use HTTP/1.1 or HTTP/1.0"
    )
    problem.closes_connection = True
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


async def _send(
    request: Request, response: web.Response, admission: Admission
) -> web.StreamResponse:
    """Write a response if it is large; return the response to finish.

    A body that is written at once waits in the buffers of its connection, encrypted as
    a whole. In parts, only the next one does, and a client that reads slowly is not
    taken for one that reads nothing.

    Raises:
        Problem: the quota of the client for responses is used up, or that of the node.
    """
    body = response.body
    if not isinstance(body, bytes):
        return response
    admission.resize(len(body))
    is_small = len(body) <= SMALL_RESPONSE_BYTES
    if is_small or request.http_request.method == "HEAD":
        return response
    answer = web.StreamResponse(status=response.status, headers=response.headers)
    answer.content_length = len(body)
    request.add_headers(answer)
    await answer.prepare(request.http_request)
    parts = memoryview(body)
    for start in range(0, len(body), PART_BYTES):
        await request.work.turn()
        await answer.write(parts[start : start + PART_BYTES])
    await answer.write_eof()
    return answer
