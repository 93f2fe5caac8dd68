"""HTTP server: listeners, connections, and corrections of aiohttp's defaults.

Three kinds of listeners share one router: plain HTTP on loopback, HTTPS on the LAN, and
a UNIX socket whose clients are known by their kernel credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from octaskly.api.http import authentication
from octaskly.api.http.audit_trail import Auditor
from octaskly.api.http.handler_types import (
    HttpTimeouts,
    MemberFiles,
    OpenStreams,
    RequestInfo,
    Services,
    empty_metrics,
    no_checkup,
)
from octaskly.api.http.local_socket import (
    address_without_scope,
    bind_local_socket,
)
from octaskly.api.http.node_client import HttpNodeClient
from octaskly.api.http.node_connector import ConfigureSocket
from octaskly.api.http.open_long_polls import LongPolls
from octaskly.api.http.slow_clients import StallTimer
from octaskly.api.problems import TOO_MANY_CONNECTIONS, Problem, status_problem
from octaskly.api.routes import dashboard
from octaskly.api.routes.table import ROUTES
from octaskly.api.security.origin_checks import AllowList
from octaskly.api.security.quotas import Quotas
from octaskly.api.security.rate_limit import RateLimiter
from octaskly.api.security.request_turns import RequestTurns
from octaskly.api.server.connection_limits import ConnectionKind, ConnectionLimits
from octaskly.api.server.listeners import (
    Place,
    PlainListener,
    TlsListener,
    identify_client,
    identify_user,
)
from octaskly.api.server.pipeline import RequestPipeline
from octaskly.api.server.request_bodies import BodyReader
from octaskly.api.server.request_lifecycle import (
    OnResponse,
    OnUnexpectedError,
    RequestLifecycle,
    RequestMetrics,
)
from octaskly.config.defaults import LOOPBACK
from octaskly.config.settings import LimitOptions
from octaskly.core.model.ids import NodeId, is_visitor
from octaskly.errors import TrustError
from octaskly.ports.gateway import Gateway
from octaskly.ports.join_service import JoinService
from octaskly.ports.key_rotation import KeyRotationControl
from octaskly.ports.store import Clock
from octaskly.ports.tokens import Principal
from octaskly.rest.mesh import Checkup
from octaskly.system.accepting import BACKLOG, stop_accepting
from octaskly.system.build import build_id
from octaskly.system.pending_handshakes import MemberAddresses
from octaskly.system.tcp_table import local_client
from octaskly.trust.certificates import PeerIdentity

IdentifyPeer = Callable[[ssl.SSLSocket], PeerIdentity | None]
"""Returns the member or the visitor that a TLS connection authenticated.

Without a certificate it returns None or raises TrustError.
"""

ContextForAddress = Callable[[str], ssl.SSLContext]
"""Returns the TLS context for a connection to this address of the machine."""

_DEFAULT_LIMITS = LimitOptions()
_DEFAULT_TIMEOUTS = HttpTimeouts()
_NOTHING_ALLOWED = AllowList(names=(), origins=())
BODY_THREADS = 4  #: they send and receive files
_LINGER_S = 1.0
_DRAIN_S = 0.2
PROBE_TIMEOUT_S = 1.0
HEADER_FIELDS_FULL = 8  #: fields of the largest size that a header may have


class ListenerKind(Enum):
    """The kind of listener that accepted a connection."""

    LOOPBACK = auto()
    LAN = auto()
    SOCKET = auto()


class ServerConnection(web.RequestHandler):
    """One HTTP connection."""

    __slots__ = (
        "_connection_limits",
        "_header_bytes",
        "_identify_certificate",
        "_last_body",
        "_lifecycle",
        "_local_user",
        "_place",
        "_rotations",
        "_stall_timer",
        "_turns",
        "_unanswered",
        "certificate",
        "is_lan",
        "is_socket",
        "own_addresses",
        "owner",
        "refusal",
        "request_info",
        "visitor",
    )

    def __init__(
        self,
        manager: web.Server,
        *,
        lifecycle: RequestLifecycle,
        connection_limits: ConnectionLimits,
        turns: RequestTurns,
        listener: ListenerKind,
        identify_peer: IdentifyPeer,
        rotations: KeyRotationControl | None,
        stall_s: float,
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._stall_timer = StallTimer(stall_s)
        self._header_bytes = 0  #: received of the next header
        self._last_body: aiohttp.StreamReader | None = None  #: of the last request
        self._lifecycle = lifecycle
        self._connection_limits = connection_limits
        self._turns = turns
        self._unanswered = 0  #: requests whose headers have arrived
        self._identify_certificate, self._rotations = identify_peer, rotations
        #: The member or visitor whose certificate the client showed.
        self.certificate: PeerIdentity | None = None
        self.visitor: PeerIdentity | None = None  #: the same; its time may be up
        self._local_user: Principal | None = None
        #: The client is a user of this machine, known by kernel credentials.
        self.is_socket = listener is ListenerKind.SOCKET
        self.is_lan = listener is ListenerKind.LAN  #: from the LAN, over TLS
        #: The error response of a connection above a limit.
        self.refusal: Problem | None = None
        self.request_info: RequestInfo | None = None  #: the current request
        self.own_addresses: frozenset[str] = frozenset()
        #: The node, the user of this machine or the LAN address at the other end.
        self.owner = ""
        self._place: Place | None = None  #: in the limits

    @property
    def certificate_node(self) -> NodeId | None:
        """The node whose certificate the client showed, member or visitor."""
        return None if self.certificate is None else self.certificate.node

    @property
    def peer(self) -> NodeId | None:
        """The node at the other end, if it is a member and not revoked."""
        if self.certificate is None:
            return None
        node = self.certificate.node
        return None if is_visitor(node) or self._is_refused(node) else node

    def _is_refused(self, node: NodeId) -> bool:
        return self._rotations is not None and self._rotations.is_node_refused(node)

    def local_principal(self, node_name: str) -> Principal:
        """Return the user at the other end of the UNIX socket."""
        if self._local_user is None:
            assert self.transport is not None
            connection = self.transport.get_extra_info("socket")
            self._local_user = authentication.authenticate_local_user(
                connection, node_name
            )
        return self._local_user

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection, unless there are too many."""
        manager = self._manager
        assert manager is not None
        is_excess = self._force_close  # Its place was given to another one.
        if self._place is None:
            self._identify_peer(transport)
            place = self._pool_and_owner(transport)
            self.take_place(place)
            is_excess = self.refusal is not None and self._connection_limits.is_excess(
                *place, len(manager.connections)
            )
        if is_excess:
            self.close()
            transport.abort()  # type: ignore[attr-defined]  # all ours are transports
            return
        super().connection_made(transport)
        self._stall_timer.attach(transport)

    def take_place(self, place: Place) -> None:
        """Take a place in the limits, or set the response that says why not."""
        self._place = place
        kind, self.owner = place
        self.refusal = self._connection_limits.add_connection(self, kind, self.owner)

    def data_received(self, data: bytes) -> None:
        """Parse data; close the connection if one header is too long in all.

        aiohttp bounds each field of a header, and their number. Together they could
        have a megabyte, on each connection, before a token was shown.
        """
        is_header = self._last_body is None or self._last_body.is_eof()
        before = self._request_count
        super().data_received(data)
        if (count := self._request_count - before) > 0:
            self._unanswered += count
            self._turns.add_unanswered(self.owner, count)
            self._header_bytes = 0
            if self._messages:
                self._last_body = self._messages[-1][1]
        elif is_header:
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_FIELDS_FULL * self.max_field_size:
                self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Remove the connection from its pool."""
        super().connection_lost(exc)
        if self._unanswered:
            self._count_answers(self._unanswered)
        self._stall_timer.stop()
        self._connection_limits.remove_connection(self)

    def abort(self) -> None:
        """Close the connection at once, because its pool is full."""
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    def authenticate_as(self, subject: str) -> None:
        """Count the connection as one of a subject that showed a valid token.

        Raises:
            Problem: 429 or 503, there are too many.
        """
        self._connection_limits.authenticate(self, subject)

    def count_forwarded(self, subject: str) -> AbstractContextManager[None]:
        """Count the current request, which a node forwarded for a subject.

        Raises:
            Problem: 429, there are too many.
        """
        return self._connection_limits.count_forwarded(subject)

    def mark_request_complete(self) -> None:
        """Record that header and body of a request arrived."""
        self._connection_limits.set_serving(self, is_serving=True)

    def pause_writing(self) -> None:
        """Start the stall timer, so that a client that never reads is disconnected."""
        super().pause_writing()
        self._stall_timer.start()

    def resume_writing(self) -> None:
        """Stop the stall timer: the client reads again."""
        super().resume_writing()
        self._stall_timer.stop()

    def _identify_peer(self, transport: asyncio.BaseTransport) -> None:
        """Identify the node by its certificate."""
        # A missing certificate is no error: a client without one shows a token.
        with contextlib.suppress(TrustError):
            self.certificate = self._identify_certificate(
                transport.get_extra_info("ssl_object")
            )
        if self.certificate is not None and self.certificate.visit_ends_ms is not None:
            self.visitor = self.certificate
        self.own_addresses = address_without_scope(transport.get_extra_info("sockname"))

    def _pool_and_owner(
        self, transport: asyncio.BaseTransport
    ) -> tuple[ConnectionKind, str]:
        """Return the pool of a new connection, and who counts as its owner."""
        if self.peer is not None:
            return ConnectionKind.NODE, self.peer
        if self.visitor is not None:  # It has the bounds of a stranger.
            return ConnectionKind.UNAUTHENTICATED, self.visitor.node
        own, client = (
            transport.get_extra_info(end) or ("", 0) for end in ("sockname", "peername")
        )
        owner = local_client(client, own) or f"address {client[0]}"
        return ConnectionKind.UNAUTHENTICATED, owner

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer in JSON a request that aiohttp refuses before the pipeline runs."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has already started")
        first = (message or "").strip().partition("\n")[0].rstrip(":")
        if isinstance(exc, LineTooLong):
            first = f"the request line or a header field is over {exc.args[1]} bytes"
        problem = status_problem(status, ascii(first[:200])[1:-1] or None)
        problem.closes_connection = True
        return self._lifecycle.problem_response(problem)

    async def finish_response(
        self,
        request: web.BaseRequest,
        resp: web.StreamResponse,
        start_time: float | None,
    ) -> tuple[web.StreamResponse, bool]:
        """Add headers to every response, also to those that bypassed the pipeline."""
        is_usual = type(resp) is web.Response  # A cheap check, unlike the next one.
        if not is_usual and isinstance(resp, web.HTTPException):
            resp = self._lifecycle.problem_response(status_problem(resp.status))
        if not resp.prepared:
            self._lifecycle.add_headers(self, resp)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._lifecycle.finish_request(self, request, resp)
            self._connection_limits.set_serving(self, is_serving=False)
            if self._unanswered:
                self._count_answers(1)

    def _count_answers(self, count: int) -> None:
        self._unanswered -= count
        self._turns.remove_unanswered(self.owner, count)


class ApiServer:
    """The REST API of one node."""

    _server: web.Server | None = None  #: shared by all connections
    _lan_sockets: tuple[socket.socket, ...] = ()  #: those of the LAN port
    _socket_path: Path | None = None
    _lan_url: str | None = None  #: as this machine reaches the LAN port

    def __init__(
        self,
        gateway: Gateway,
        *,
        verify_token: authentication.VerifyToken,
        node_name: str,
        clock: Clock,
        identify_peer: IdentifyPeer,
        lan_ssl: ContextForAddress | None = None,
        forward_ssl: ssl.SSLContext | None = None,
        allowed: AllowList = _NOTHING_ALLOWED,
        on_response: OnResponse | None = None,
        on_unexpected_error: OnUnexpectedError | None = None,
        timeouts: HttpTimeouts = _DEFAULT_TIMEOUTS,
        configure_socket: ConfigureSocket | None = None,
        limits_per_minute: Mapping[str, int] | None = None,
        admissions: JoinService | None = None,
        describe_agent: Callable[[], Checkup] = no_checkup,
        rotations: KeyRotationControl | None = None,
        files: MemberFiles | None = None,
        render_metrics: Callable[[], Awaitable[bytes]] = empty_metrics,
        limits: LimitOptions = _DEFAULT_LIMITS,
    ) -> None:
        self._limits, self._connection_limits = limits, ConnectionLimits(limits, clock)
        self._listening: dict[socket.socket, asyncio.Task[None]] = {}
        self._lan_ssl, self._identify_peer = lan_ssl, identify_peer
        # Of their own: clients that move files must not delay what the store does.
        self._body_threads = threads = ThreadPoolExecutor(BODY_THREADS, "octaskly-body")
        self._long_polls = polls = LongPolls(gateway.dispatcher)
        self._node_client = HttpNodeClient(
            gateway, polls, forward_ssl, timeouts, configure_socket, threads
        )
        self._services = services = Services(
            gateway,
            clock,
            self._node_client,
            polls,
            timeouts,
            RateLimiter(limits_per_minute or {}, clock),
            admissions,
            describe_agent,
            OpenStreams(limits.streams_max, limits.streams_per_subject),
            rotations,
            files,
            render_metrics=render_metrics,
        )
        self._lifecycle = RequestLifecycle(services, on_response, on_unexpected_error)
        self._pipeline = self._build_pipeline(verify_token, node_name, allowed)
        self.router = self._build_router()  #: public for tests that walk its routes

    def _build_pipeline(
        self,
        verify_token: authentication.VerifyToken,
        node_name: str,
        allow_list: AllowList,
    ) -> RequestPipeline:
        return RequestPipeline(
            services=self._services,
            allow_list=allow_list,
            verify_token=verify_token,
            node_name=node_name,
            lifecycle=self._lifecycle,
            body_reader=BodyReader(
                self._services.timeouts.body_s, self._limits.bodies_bytes
            ),
            quotas=Quotas(self._limits),
        )

    @property
    def rate_limiter(self) -> RateLimiter:
        """The rate limiter of this node."""
        return self._services.rate_limiter

    @property
    def streams(self) -> OpenStreams:
        """The open event streams."""
        return self._services.streams

    @property
    def request_metrics(self) -> RequestMetrics:
        """Counts and durations of requests."""
        return self._lifecycle.request_metrics

    @property
    def auditor(self) -> Auditor:
        """The audit recorder of this node; the caller runs it."""
        return self._lifecycle.auditor

    @property
    def connection_count(self) -> int:
        """Number of open connections."""
        return 0 if self._server is None else len(self._server.connections)

    def set_client_tls(self, tls: ssl.SSLContext) -> None:
        """Use another certificate for new connections to other nodes."""
        self._node_client.set_tls_context(tls)

    def close_connections_of(
        self, nodes: Collection[NodeId], *, is_settled: bool
    ) -> None:
        """Close the connections of these nodes, which may no longer act for users.

        If `is_settled`, the connections of all other nodes close after a grace period:
        they may use a certificate of an earlier generation.
        """
        loop, server = asyncio.get_running_loop(), self._server
        for handler in () if server is None else server.connections:
            if (
                isinstance(handler, ServerConnection)
                and handler.certificate_node in nodes
            ):
                handler.force_close()
            elif (
                isinstance(handler, ServerConnection)
                and handler.certificate_node
                and is_settled
            ):
                loop.call_later(
                    self._services.timeouts.old_certificate_grace_s, handler.force_close
                )

    async def serve_loopback(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on sockets that are already bound; the API owns them from now on.

        Raises:
            OSError: a socket cannot listen.
        """
        for listener in sockets:
            self._serve_plain(listener, ListenerKind.LOOPBACK)

    def _serve_plain(self, listener: socket.socket, kind: ListenerKind) -> None:
        """Accept connections of this machine from now on."""
        factory = self._protocol_factory(kind)
        limits = self._connection_limits

        def open_connection(place: Place) -> ServerConnection:
            connection = factory()
            connection.take_place(place)
            return connection

        def admit(place: Place) -> ServerConnection | None:
            return open_connection(place) if limits.has_place(*place) else None

        def refuse(place: Place) -> ServerConnection | None:
            is_excess = limits.is_excess(*place, self.connection_count)
            return None if is_excess else open_connection(place)

        port = PlainListener(
            listener,
            identify=(
                identify_user if kind is ListenerKind.SOCKET else identify_client
            ),
            admit=admit,
            refuse=refuse,
            waiting_max=limits.waiting_max,
        )
        self._listen(listener, port.serve())

    def _listen(
        self, listener: socket.socket, serve: Coroutine[None, None, None]
    ) -> None:
        listener.setblocking(False)  # noqa: FBT003  no keyword there
        listener.listen(BACKLOG)
        task = asyncio.get_running_loop().create_task(serve)
        self._listening[listener] = task

    def serve_lan(
        self, sockets: Sequence[socket.socket], members: MemberAddresses
    ) -> None:
        """Serve TLS on bound sockets, which the API owns, and on no others any more.

        Args:
            sockets: The sockets.
            members: Addresses whose handshakes have places of their own.

        Raises:
            OSError: a socket cannot listen.
        """
        assert self._lan_ssl is not None, "a LAN listener needs TLS"
        if sockets:
            self._lan_url = _url_of(sockets[0])
        for gone in set(self._lan_sockets) - set(sockets):
            stop_accepting(self._listening.pop(gone), gone)
        factory = self._protocol_factory(ListenerKind.LAN)
        for listener in set(sockets) - set(self._lan_sockets):
            port = TlsListener(
                listener,
                self._lan_ssl,
                factory,
                self._body_threads,
                self._limits,
                members,
            )
            self._listen(listener, port.serve())
        self._lan_sockets = tuple(sockets)

    async def probe_lan(self) -> str | None:
        """Send a request to the LAN port as another node would; return why it failed.

        Returns:
            None if this node answers, or has no LAN port.
        """
        if self._lan_url is None:
            return None
        try:
            async with (
                asyncio.timeout(PROBE_TIMEOUT_S),
                self._node_client.session().get(
                    self._lan_url + "/health", headers={"Connection": "close"}
                ) as response,
            ):
                body = await response.json()
        except (OSError, ValueError, aiohttp.ClientError, TimeoutError) as error:
            return str(error) or "the API does not answer"
        is_refused = body.get("error") == TOO_MANY_CONNECTIONS
        return TOO_MANY_CONNECTIONS if is_refused else None

    async def serve_unix(self, path: Path, group: str | None = None) -> None:
        """Serve local users on a UNIX socket that this user and `group` may open.

        Raises:
            OSError: another process serves the path, or it cannot be used.
        """
        connection = bind_local_socket(path, group)
        self._serve_plain(connection, ListenerKind.SOCKET)
        self._socket_path = path

    async def close(self) -> None:
        """Stop accepting connections; give running requests a few seconds."""
        for task in self._listening.values():
            task.cancel()
        if self._listening:
            await asyncio.wait(self._listening.values())
        for listener in self._listening:
            listener.close()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)
        self._long_polls.close()
        # Responses now carry `Connection: close`. Closing kept-alive connections at
        # once would lose a request that a client is sending.
        await asyncio.sleep(_DRAIN_S if self.connection_count else 0)
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(self._services.timeouts.shutdown_s)
            self._server = None
        self._body_threads.shutdown(wait=False)
        await self._node_client.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        # An aiohttp `Application` would add layers that only pass requests on.
        assert isinstance(request, web.Request)
        found = await self.router.resolve(request)
        if expected := request.headers.get("Expect"):
            if not expected.isascii():  # aiohttp could not quote it in its answer.
                raise web.HTTPExpectationFailed
            # The client may wait for 100 Continue.
            await found.expect_handler(request)
            await request.writer.drain()
        return await self._pipeline.handle(request, found)

    def _protocol_factory(self, site: ListenerKind) -> Callable[..., ServerConnection]:
        if self._server is None:
            self._server = web.Server(
                self._handle,
                # The router needs `web.Request`; here it belongs to no application.
                request_factory=partial(web.Request, loop=asyncio.get_running_loop()),
                handler_cancellation=True,
            )
        return partial(
            ServerConnection,
            self._server,
            lifecycle=self._lifecycle,
            connection_limits=self._connection_limits,
            turns=self._pipeline.turns,
            listener=site,
            identify_peer=self._identify_peer,
            rotations=self._services.rotations,
            stall_s=self._services.timeouts.stall_s,
            loop=asyncio.get_running_loop(),
            # --header-timeout and --header-max: see `config.settings`.
            keepalive_timeout=self._services.timeouts.header_s,
            max_line_size=self._limits.header_bytes,
            max_field_size=self._limits.header_bytes,
            lingering_time=_LINGER_S,
            access_log=None,
            logger=_silent_logger(),
        )

    def _build_router(self) -> web.UrlDispatcher:
        # Read the files at the start; requests never read the disk.
        dashboard.assets()
        build_id()
        router = web.UrlDispatcher()
        for route in ROUTES:
            handle = self._pipeline.register_route(route)
            resource = router.add_resource(route.path)
            resource.add_route(route.method, handle)
            if route.method == "GET":
                resource.add_route("HEAD", handle)
        return router


def _url_of(listener: socket.socket) -> str:
    """Return the URL at which this machine reaches a listener of the LAN port."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        host = LOOPBACK[listener.family == socket.AF_INET6]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _silent_logger() -> logging.Logger:
    """Return a logger that drops everything.

    aiohttp logs a traceback for each malformed request, so any client could fill the
    log. `RequestLifecycle` reports the errors that matter.
    """
    logger = logging.getLogger("octaskly.api.http")
    logger.disabled = True
    logger.propagate = False
    return logger
