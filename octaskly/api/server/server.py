"""The HTTP server: its listeners, its connections, and what the library gets wrong.

Three kinds of listeners share one application: plain HTTP on loopback, HTTPS on the
LAN, and a UNIX socket whose peers are known by their credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from octaskly.api.http import authentication
from octaskly.api.http.audit_trail import Auditor
from octaskly.api.http.buffers import Stall, narrow_tls
from octaskly.api.http.long_polls import Waits
from octaskly.api.http.node_client import Forwarder, Tune
from octaskly.api.http.request import Deadlines, Parts, Seen, Streams, no_metrics
from octaskly.api.http.sockets import bare_address, local_socket
from octaskly.api.problems import status_problem
from octaskly.api.routes import dashboard
from octaskly.api.routes.table import ROUTES
from octaskly.api.security.origin_checks import Guard
from octaskly.api.security.rate_limit import Meter
from octaskly.api.server.connection_limits import SURPLUS_MAX, Crowd, Door
from octaskly.api.server.pipeline import Gate
from octaskly.api.server.request_bodies import Bodies
from octaskly.api.server.responses import Answering, OnFault, OnServed
from octaskly.config.limits import LimitOptions
from octaskly.core.model.ids import NodeId
from octaskly.errors import TrustError
from octaskly.ports import Admissions, Clock, Files, Gateway, Principal, Rotations

PeerNodeId = Callable[[ssl.SSLObject], NodeId | None]
"""Returns the node that a TLS connection authenticated.

Without a certificate it returns None or raises TrustError.
"""

_BOUNDS = LimitOptions()
_LINGER_S = 1.0
_BACKLOG = 256
_DRAIN_S = 0.2


class Site(Enum):
    """Where a connection came in."""

    LOOPBACK = auto()
    LAN = auto()
    SOCKET = auto()


class Handler(web.RequestHandler):
    """One connection."""

    __slots__ = (
        "_answering",
        "_crowd",
        "_local",
        "_peer_of",
        "_rotations",
        "_stall",
        "_stranger",
        "is_lan",
        "is_socket",
        "is_surplus",
        "met",
        "own_addresses",
        "seen",
    )

    def __init__(
        self,
        manager: web.Server,
        *,
        answering: Answering,
        crowd: Crowd,
        site: Site,
        peer_of: PeerNodeId,
        rotations: Rotations | None,
        stall_s: float,
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._stall = Stall(stall_s)
        self._answering = answering
        self._crowd = crowd
        self._stranger: str | None = None  #: the address that it counts for
        self._peer_of, self._rotations = peer_of, rotations
        self.met: NodeId | None = None  #: the node whose certificate it showed
        self._local: Principal | None = None
        self.is_socket = site is Site.SOCKET  #: from a user of this machine, known
        self.is_lan = site is Site.LAN  #: through TLS, from the network
        self.is_surplus = False  #: it is one too many: it gets an answer, and is closed
        self.seen: Seen | None = None  #: the request in work
        self.own_addresses: frozenset[str] = frozenset()

    @property
    def peer(self) -> NodeId | None:
        """The node at the other end, if it is one that may act for others."""
        if self.met is None or self._rotations is None:
            return self.met
        return None if self._rotations.refuses(self.met) else self.met

    def local_principal(self, node_name: str) -> Principal:
        """Return the user at the other end of the UNIX socket."""
        if self._local is None:
            assert self.transport is not None
            connection = self.transport.get_extra_info("socket")
            self._local = authentication.local_user(connection, node_name)
        return self._local

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, unless there are too many."""
        manager = self._manager
        assert manager is not None
        count = len(manager.connections)
        surplus = self._crowd.surplus(count, is_socket=self.is_socket)
        self.is_surplus = surplus > 0
        if surplus > SURPLUS_MAX:
            self.close()
            transport.abort()  # type: ignore[attr-defined]  # all ours are transports
            return
        super().connection_made(transport)
        self._stall.bound(transport)
        if self.is_lan:
            self._look_at(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give its place back."""
        super().connection_lost(exc)
        self._stall.end()
        if self._stranger is not None:
            self._crowd.leave(self._stranger)
            self._stranger = None

    def pause_writing(self) -> None:
        """Give who does not read a while; without a bound it would keep its place."""
        super().pause_writing()
        self._stall.begin()

    def resume_writing(self) -> None:
        """Go on: something was read."""
        super().resume_writing()
        self._stall.end()

    def _look_at(self, transport: asyncio.BaseTransport) -> None:
        """Learn who is at the other end, and whether too many come from there."""
        # No certificate is no error here: such a client shows a token.
        with contextlib.suppress(TrustError):
            self.met = self._peer_of(transport.get_extra_info("ssl_object"))
        here = transport.get_extra_info("sockname")
        self.own_addresses = bare_address(here)
        there = transport.get_extra_info("peername")
        if self.met is None and there and there[0] != here[0]:
            self._stranger = str(there[0])
            self.is_surplus |= not self._crowd.enter(self._stranger)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what the library refuses before a request exists, as JSON."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        first = (message or "").strip().partition("\n")[0].rstrip(":")
        if isinstance(exc, LineTooLong):
            first = (
                f"the first line or a field of the header is over {exc.args[1]} bytes"
            )
        problem = status_problem(status, ascii(first[:200])[1:-1] or None)
        problem.closes = True
        return self._answering.refuse(problem)

    async def finish_response(
        self,
        request: web.BaseRequest,
        resp: web.StreamResponse,
        start_time: float | None,
    ) -> tuple[web.StreamResponse, bool]:
        """Complete every answer, also those that never passed the gate."""
        if isinstance(resp, web.HTTPException):
            resp = self._answering.refuse(status_problem(resp.status))
        if not resp.prepared:
            self._answering.stamp(request, resp)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._answering.note(request, resp)


class ApiServer:
    """The REST API of one node."""

    _server: web.Server | None = None  #: what the connections have in common

    def __init__(
        self,
        gateway: Gateway,
        *,
        verify: authentication.Verify,
        node_name: str,
        clock: Clock,
        peer_node_id: PeerNodeId,
        lan_ssl: ssl.SSLContext | None = None,
        forward_ssl: ssl.SSLContext | None = None,
        cors_origins: Collection[str] = (),
        allow_hosts: Collection[str] = (),
        on_served: OnServed | None = None,
        on_fault: OnFault | None = None,
        deadlines: Deadlines | None = None,
        tune: Tune | None = None,
        rates: Mapping[str, int] | None = None,
        admissions: Admissions | None = None,
        describe: Callable[[], Mapping[str, Any]] = dict,
        rotations: Rotations | None = None,
        files: Files | None = None,
        report: Callable[[], Awaitable[bytes]] = no_metrics,
        bounds: LimitOptions = _BOUNDS,
    ) -> None:
        narrow_tls()
        self._bounds, self._crowd = bounds, Crowd(bounds)
        deadlines = self._deadlines = deadlines or Deadlines()
        self._lan_ssl, self._peer_of, self._rotations = lan_ssl, peer_node_id, rotations
        waits = self._waits = Waits(gateway.dispatcher)
        self._forwarder = Forwarder(gateway, self._waits, forward_ssl, deadlines, tune)
        meter, streams = Meter(rates or {}, clock), Streams(bounds.streams_max)
        way = self._forwarder
        parts = Parts(gateway, clock, way, waits, deadlines, meter, admissions)
        parts = replace(parts, describe=describe, rotations=rotations, streams=streams)
        parts = replace(parts, files=files, metrics=report)
        self.streams, self.meter = streams, meter
        self._answering = Answering(parts, on_served, on_fault)
        self._gate = Gate(
            parts=parts,
            guard=Guard(names=allow_hosts, origins=cors_origins),
            verify=verify,
            node_name=node_name,
            answering=self._answering,
            bodies=Bodies(deadlines.body_s, bounds.bodies_bytes),
        )
        self.traffic = self._answering.traffic
        self.router = self._routed()  #: public for tests that walk its routes
        self._servers: list[asyncio.Server] = []
        self._socket_path: Path | None = None

    @property
    def auditor(self) -> Auditor:
        """What writes down who changes what here; the caller runs it."""
        return self._answering.auditor

    @property
    def connections(self) -> int:
        """How many there are."""
        return 0 if self._server is None else len(self._server.connections)

    def forward_as(self, tls: ssl.SSLContext) -> None:
        """Show another certificate to other nodes from now on."""
        self._forwarder.renew(tls)

    def expel(self, nodes: Collection[NodeId], *, is_settled: bool) -> None:
        """End the connections of these nodes, which may act for users no more.

        Once a secret `is_settled`, those of all nodes end soon that are there: the
        certificate may be of a generation that is over.
        """
        loop, server = asyncio.get_running_loop(), self._server
        for handler in () if server is None else server.connections:
            if isinstance(handler, Handler) and handler.met in nodes:
                handler.force_close()
            elif isinstance(handler, Handler) and handler.met and is_settled:
                loop.call_later(self._deadlines.grace_s, handler.force_close)

    async def serve(self, site: Site, sockets: Sequence[socket.socket]) -> None:
        """Serve on sockets that are bound already; they belong to the API from now on.

        Raises:
            OSError: one of them cannot listen.
        """
        tls = self._lan_ssl if site is Site.LAN else None
        assert tls is not None or site is not Site.LAN, "a LAN listener needs TLS"
        factory = self._factory(site)
        loop = asyncio.get_running_loop()
        for connection in sockets:
            server = await loop.create_server(
                Door(tls, factory, self._bounds) if tls else factory,
                sock=connection,
                backlog=_BACKLOG,
            )
            self._servers.append(server)

    async def start_unix(self, path: Path, group: str | None = None) -> None:
        """Serve local users on a socket file that this user and `group` may open.

        Raises:
            OSError: another process serves there, or the path cannot be used.
        """
        factory = self._factory(Site.SOCKET)
        connection = local_socket(path, group)
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(
            factory, sock=connection, backlog=_BACKLOG
        )
        self._servers.append(server)
        self._socket_path = path

    async def close(self) -> None:
        """Stop accepting; let requests in flight finish within a few seconds."""
        for server in self._servers:
            server.close()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)
        self._waits.close()
        # Answers now say `Connection: close`. Cutting kept connections at once would
        # lose the request that a client is just sending on one.
        await asyncio.sleep(_DRAIN_S if self.connections else 0)
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(self._deadlines.shutdown_s)
            self._server = None
        await self._forwarder.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        # Not by an `Application`, whose middle layers would only pass requests on.
        assert isinstance(request, web.Request)
        found = await self.router.resolve(request)
        if request.headers.get("Expect"):  # The client may wait for leave to go on.
            await found.expect_handler(request)
            await request.writer.drain()
        return await self._gate.answer(request, found)

    def _factory(self, site: Site) -> Callable[[], Handler]:
        if self._server is None:
            self._server = web.Server(
                self._handle,
                # The kind that the router asks for; here it belongs to no application.
                request_factory=partial(web.Request, loop=asyncio.get_running_loop()),
                handler_cancellation=True,
            )
        return partial(
            Handler,
            self._server,
            answering=self._answering,
            crowd=self._crowd,
            site=site,
            peer_of=self._peer_of,
            rotations=self._rotations,
            stall_s=self._deadlines.stall_s,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._deadlines.header_s,
            max_line_size=self._bounds.header_bytes,
            max_field_size=self._bounds.header_bytes,
            lingering_time=_LINGER_S,
            access_log=None,
            logger=_silent_logger(),
        )

    def _routed(self) -> web.UrlDispatcher:
        dashboard.assets()  # Read at the start, and never for a request.
        router = web.UrlDispatcher()
        for route in ROUTES:
            handle = self._gate.endpoint(route)
            resource = router.add_resource(route.path)
            resource.add_route(route.method, handle)
            if route.method == "GET":
                resource.add_route("HEAD", handle)
        return router


def _silent_logger() -> logging.Logger:
    """Return a logger that drops everything.

    The library writes a traceback for each malformed request, which lets anybody fill
    the log; what matters reaches the callbacks of `answering`.
    """
    logger = logging.getLogger("octaskly.api.http")
    logger.disabled = True
    logger.propagate = False
    return logger
