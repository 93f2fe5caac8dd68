"""The one middleware: everything passes here, in this order, before a handler runs.

Host, Origin, preflight, membership, route, who asks, rights, how often, body. Whatever
fails, and whatever a handler raises, leaves as JSON with the headers of every answer.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from octaskly.api import auditing, auth, guards, schema, toll
from octaskly.api.bodies import Bodies
from octaskly.api.forward import HOP_HEADER
from octaskly.api.holding import Holding, TokenEnded
from octaskly.api.problems import (
    FORBIDDEN,
    UNAUTHENTICATED,
    UNPAIRED,
    Problem,
    encode_problem,
    problem_of,
    status_problem,
    too_many,
)
from octaskly.api.query import Query
from octaskly.api.routing import (
    Access,
    Call,
    Connection,
    Parts,
    Route,
    Seen,
    json_response,
)
from octaskly.api.traffic import Traffic
from octaskly.ports import Principal

JOIN_HINT = "run `octaskly invite` on a member, then `octaskly join CODE` here"
READING = ("GET", "HEAD")  #: they may last, and change nothing
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNCACHED = {
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
    "Expires": "0",
}
_SERVER_NAME = "octaskly"
_HARDENED = {
    # Whatever an answer holds, a browser shows it as what it says that it is, runs
    # nothing of it, tells no other site of it, and lets no page frame it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request that was answered, for the log."""

    request_id: str
    method: str  #: empty when the request could not be parsed
    path: str
    status: int
    duration_ms: float
    subject: str | None
    remote: str | None


Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]
OnServed = Callable[[Served], None]
OnFault = Callable[[str, BaseException], None]
"""Gets the request id and an exception that nobody expected."""


class Gate:
    """Admits requests, performs them, and shapes every answer."""

    def __init__(
        self,
        *,
        parts: Parts,
        guard: guards.Guard,
        verify: auth.Verify,
        node_name: str,
        on_served: OnServed | None,
        on_fault: OnFault | None,
        bodies: Bodies,
    ) -> None:
        self._bodies = bodies
        self._parts = parts
        self._holding = Holding(parts.gateway.tokens.is_good)
        self._id_prefix = secrets.token_hex(4)
        self.auditor = auditing.Auditor(parts, self._id_prefix)
        self._guard = guard
        self._verify = verify
        self._node_name = node_name
        name = node_name.lower()
        self._own_names = frozenset((name, f"{name}.local"))
        self.traffic, self._on_served = Traffic(), on_served
        self._on_fault = on_fault
        self._numbers = itertools.count(1)
        self._routes: dict[object, Route] = {}

    def endpoint(self, route: Route) -> Endpoint:
        """Return the aiohttp handler of a route; only the gate may call it."""

        async def handle(request: web.Request) -> web.StreamResponse:
            raise AssertionError(f"{request.path} was reached around the gate")

        self._routes[handle] = route
        return handle

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Endpoint
    ) -> web.StreamResponse:
        """Answer a request; never raises but when the connection is lost."""
        del handler  # It only names the route.
        seen = self.see(request)
        try:
            return await self._answer(request, seen)
        except Exception as error:  # The table decides; what is unknown is a 500.
            if request.writer.output_size > 0:
                # The answer has begun: only a broken connection can tell the client.
                if not isinstance(error, ConnectionError):
                    self._explained(error, seen)
                raise ConnectionError("failed in mid-answer") from error
            if isinstance(error, web.HTTPException):
                return self.refuse(status_problem(error.status))
            return self.refuse(self._explained(error, seen))
        finally:
            self._bodies.let_go(seen)

    def see(self, request: web.BaseRequest) -> Seen:
        """Note that a request came in."""
        given = request.headers.get("X-Request-ID", "")
        name = given if _REQUEST_ID.fullmatch(given) else self._new_id()
        seen = Seen(name, asyncio.get_running_loop().time())
        _protocol(request).seen = seen
        return seen

    def refuse(self, problem: Problem) -> web.Response:
        """Return the answer to a request that failed."""
        body = encode_problem(problem, self._parts.clock.now().wall_ms)
        response = json_response(body, problem.status)
        response.headers.update(problem.headers)
        if problem.closes:
            response.force_close()
        return response

    def stamp(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Add the headers of every answer, once."""
        headers = response.headers
        if "X-Request-ID" in headers:
            return
        seen = _protocol(request).seen or Seen(
            self._new_id(), asyncio.get_running_loop().time()
        )
        took_s = asyncio.get_running_loop().time() - seen.began_s
        headers["X-Request-ID"] = seen.id
        headers["X-Response-Time-ms"] = f"{took_s * 1000:.3f}"
        headers.update(seen.signature)
        headers.update(seen.allowance or {})
        if "Cache-Control" not in headers:
            headers.update(_UNCACHED)
        cors = guards.cors_headers(seen.origin)
        for name, value in {**_HARDENED, **cors}.items():
            headers.setdefault(name, value)
        headers["Server"] = _SERVER_NAME
        if self._parts.waits.is_closing:
            response.force_close()

    def note(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Tell the log, and forget the request."""
        handler = _protocol(request)
        seen, handler.seen = handler.seen, None
        if seen is not None:
            self.auditor.note(seen, request.method, response.status)
            self.traffic.note(seen, response)
        if self._on_served is None:
            return
        now_s = asyncio.get_running_loop().time()
        self._on_served(
            Served(
                request_id=response.headers.get("X-Request-ID", ""),
                method=request.method if seen else "",
                path=ascii(request.path)[1:-1] if seen else "",
                status=response.status,
                duration_ms=(now_s - seen.began_s) * 1000 if seen else 0.0,
                subject=seen.subject if seen else None,
                remote=request.remote,
            )
        )

    async def _answer(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        if _protocol(request).is_surplus:
            raise too_many()
        auditing.note_origin(seen, request, _protocol(request).peer)
        try:
            route = self._route(request, seen)
            principal = None if route is None else self._principal(request, route)
        except Problem:
            self._charge_stranger(request, seen)
            raise
        if principal is None:
            self._charge_stranger(request, seen)
        if route is None:
            allowed = _allowed(request.match_info.http_exception)
            headers = guards.preflight_headers(seen.origin, allowed)
            return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)
        call = await self._admit(request, seen, route, principal)
        if request.method not in READING or principal is None or not principal.token:
            return await self._perform(call, route)
        try:
            async with self._holding.held(principal):
                return await self._perform(call, route)
        except TokenEnded:
            raise auth.ended() from None

    async def _perform(self, call: Call, route: Route) -> web.StreamResponse:
        """Answer here or at the dispatcher; a request is counted where that is done."""
        if route.is_local:
            if route.access is Access.MACHINE:
                # Each node is asked by itself, and answers while none reigns.
                self._charge(call.principal, call.seen)
            elif call.principal is not None and call.hop is None:
                await toll.pay(call)
            return await route.perform(call)

        async def perform(call: Call) -> web.StreamResponse:
            self._charge(call.principal, call.seen)
            return await route.perform(call)

        return await self._parts.forwarder.perform(call, perform)

    def _charge(self, principal: Principal | None, seen: Seen) -> None:
        """Count a request, once."""
        if principal is not None and seen.allowance is None:
            seen.allowance = self._parts.meter.charge(principal)

    def _charge_stranger(self, request: web.Request, seen: Seen) -> None:
        """Count a request from the network that did not show who asks."""
        handler = _protocol(request)
        if handler.is_lan and handler.peer is None and request.remote:
            seen.allowance = self._parts.meter.charge_stranger(request.remote)

    def _route(self, request: web.Request, seen: Seen) -> Route | None:
        """Return what is asked for, None for what browsers ask before; or `Problem`."""
        self._check_sender(request, seen)
        if request.method == "OPTIONS":
            return None
        failure = request.match_info.http_exception
        route = self._routes.get(request.match_info.handler)
        is_open = route is not None and (
            route.access is Access.OPEN or route.is_for_unpaired
        )
        if not is_open and self._parts.gateway.mesh_id is None:
            raise Problem(503, UNPAIRED, hint=JOIN_HINT)
        if failure is not None:
            raise _unroutable(request, failure)
        if route is None:
            raise Problem(403, FORBIDDEN, hint="this path has no access rule")
        auditing.note_route(seen, request, route)
        return route

    def _check_sender(self, request: web.Request, seen: Seen) -> None:
        """Keep out browsers that a foreign page sent."""
        handler = _protocol(request)
        if not handler.is_socket and handler.peer is None:
            own = handler.own_addresses
            if handler.is_lan:
                own = own | self._own_names
            hosts = request.headers.getall("Host", [])
            self._guard.check_host(hosts, _target_host(request), own)
        scheme = "https" if handler.is_lan else "http"
        seen.origin = self._guard.allowed_origin(request.headers, scheme)

    async def _admit(
        self,
        request: web.Request,
        seen: Seen,
        route: Route,
        principal: Principal | None,
    ) -> Call:
        handler = _protocol(request)
        if principal is not None:
            auditing.note_principal(seen, principal)
            is_local = self._is_local(handler, principal, route)
            auth.check_rights(principal, route, is_local=is_local)
            view = self._parts.gateway.dispatcher()
            if not route.is_local and view is not None and view.is_self:
                self._charge(principal, seen)  # Before its body is read.
        given = [] if route.query is None else request.query.items()
        call_query = Query(given, route.query or ())
        hop = handler.peer if HOP_HEADER in request.headers else None
        body = await self._bodies.read(request, seen, route)
        if route.takes is None:
            schema.require_nothing(body)
        return Call(
            request=request,
            seen=seen,
            stamp=lambda response: self.stamp(request, response),
            parts=self._parts,
            query=call_query,
            body=body,
            principal=principal,
            hop=hop,
        )

    def _is_local(
        self, handler: Connection, principal: Principal, route: Route
    ) -> bool:
        """Whether a user of this machine's socket asks, maybe through a page."""
        if route.access is not Access.OPENED or handler.is_lan:
            return handler.is_socket
        return handler.is_socket or principal.opened_on == self._parts.gateway.node_id

    def _principal(self, request: web.Request, route: Route) -> Principal | None:
        """Return who asks; raise `Problem` (401, 403) unless that is known."""
        if route.access is Access.OPEN:
            return None
        handler = _protocol(request)
        is_bare = not handler.is_lan and "Authorization" not in request.headers
        if route.access is Access.NODE:
            if handler.peer is None:
                raise Problem(
                    401,
                    UNAUTHENTICATED,
                    hint="only nodes of the mesh may ask this",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return None
        if handler.is_socket:
            return handler.local_principal(self._node_name)
        if route.access is Access.MACHINE and is_bare:
            return None
        if handler.peer is not None:
            statement = request.headers.get(auth.PRINCIPAL_HEADER)
            if statement is not None:
                return self._still_good(auth.stated(statement, handler.peer))
        return auth.bearer(request.headers.get("Authorization"), self._verify)

    def _still_good(self, principal: Principal) -> Principal:
        """Refuse a token that the node which forwards does not know to be revoked."""
        if not self._parts.gateway.tokens.is_good(principal):
            raise auth.ended()
        return principal

    def _explained(self, error: Exception, seen: Seen) -> Problem:
        problem = problem_of(error)
        is_unexpected = problem.status == HTTPStatus.INTERNAL_SERVER_ERROR
        if is_unexpected and self._on_fault is not None:
            self._on_fault(seen.id, error)
        return problem

    def _new_id(self) -> str:
        return f"{self._id_prefix}-{next(self._numbers):06x}"


def _protocol(request: web.BaseRequest) -> Connection:
    return request.protocol  # type: ignore[return-value]  # made by ApiServer alone


def _target_host(request: web.Request) -> str | None:
    """Return the authority of a target in absolute form, which counts as a Host."""
    target = request.raw_path
    if target.startswith(("/", "*")):
        return None
    return target.partition("://")[2].partition("/")[0] or target


def _allowed(failure: web.HTTPException | None) -> str:
    if isinstance(failure, web.HTTPMethodNotAllowed):
        return ", ".join(sorted({*failure.allowed_methods, "OPTIONS"}))
    return guards.METHODS


def _unroutable(request: web.Request, failure: web.HTTPException) -> Problem:
    known = ("GET", "HEAD", "POST", "DELETE")
    is_method = isinstance(failure, web.HTTPMethodNotAllowed)
    if not is_method and request.method in known:
        return status_problem(failure.status, f"there is no {request.path[:80]!a}")
    allow = _allowed(failure)
    problem = status_problem(405, f"allowed: {allow}")
    problem.headers["Allow"] = allow
    return problem
