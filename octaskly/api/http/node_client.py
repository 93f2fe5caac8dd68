"""HTTP client for other nodes: forwards requests to the dispatcher by mutual TLS.

The node that receives a request authenticates the client and states the principal; the
node certificate authenticates only the hop. A failed request is sent again if the
dispatcher cannot have received it, or if the request is repeatable.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from math import inf
from typing import TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from octaskly.api.http import sse
from octaskly.api.http.authentication import PRINCIPAL_HEADER, format_principal_header
from octaskly.api.http.file_sender import LONG_BODY_BYTES, StreamBroken, read_parsed
from octaskly.api.http.handler_types import Handler, HttpTimeouts, NotSent, Request
from octaskly.api.http.node_connector import ConfigureSocket, NodeConnector
from octaskly.api.http.open_long_polls import LongPolls
from octaskly.api.http.slow_clients import (
    READ_BYTES,
    long_reads,
)
from octaskly.api.problems import (
    CONNECTION_LOST,
    NO_DISPATCHER,
    REFUSED_HEADER,
    TASK_NOT_FOUND,
    WORKER_NOT_FOUND,
    Problem,
)
from octaskly.api.security.rate_limit import RATE_LIMIT_HEADERS
from octaskly.core.model.ids import NodeId
from octaskly.errors import CatchingUp, DispatcherUnknown, NotDispatcher
from octaskly.ports.gateway import DispatcherView, Gateway
from octaskly.system.clock import loop_time
from octaskly.system.long_bodies import LONG_READ_BYTES
from octaskly.system.tls_transport import TlsTransport

ADDRESS_LISTS_MAX = 256  #: of other nodes, in memory


class NodeNotResponding(Exception):
    """The other node did not answer, or stopped in the middle of its response."""


@asynccontextmanager
async def request_from_node(
    request: Request,
    lan_urls: Sequence[str],
    path: str,
    *,
    extra_wait_s: float = 0.0,
    response_timeout_s: float | None = None,
    is_relayed: bool = False,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Request an internal path from another node; the block reads the response.

    Args:
        request: The client's request; its principal and some headers are sent.
        lan_urls: URLs of the node, best first.
        path: The internal path with its query.
        extra_wait_s: Seconds added to the timeout, for example for a long poll.
        response_timeout_s: Seconds until the response starts; None means `stall_s`.
        is_relayed: The node relays the request to the dispatcher.

    Raises:
        NodeNotResponding: the node did not answer, or stopped while the block read.
    """
    stall_s = (
        request.services.timeouts.stall_s
        if response_timeout_s is None
        else response_timeout_s
    )
    node_client = request.services.node_client

    async def get(lan_url: str) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(stall_s + extra_wait_s):
                return await node_client.session().get(
                    URL(lan_url + path, encoded=True),
                    headers=node_client.forwarding_headers(
                        request, is_relayed=is_relayed
                    ),
                    allow_redirects=False,
                )
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            # A GET is repeatable, so any failure leads to the next address.
            raise NotSent(str(error) or type(error).__name__) from None

    try:
        async with await node_client.try_each(lan_urls, get) as response:
            yield response
    except (aiohttp.ClientError, OSError) as error:
        raise NodeNotResponding(str(error) or type(error).__name__) from None


HOP_HEADER = "Octaskly-Hop"
RELAY_HEADER = "Octaskly-Relay"
"""Asks the receiver to forward the request once more, to the dispatcher."""
SOURCE_HEADER = "Octaskly-Source"
DISPATCHER_HEADER = "Octaskly-Dispatcher"
EPOCH_HEADER = "Octaskly-Epoch"

_BUFFERED_BYTES_MAX = 64 << 10
_PAUSE_S = 0.02
_PAUSE_S_MAX = 0.25
# This is shorter than the header timeout of the other node. Otherwise, that node could
# close an idle connection while the next request is on its way.
_IDLE_S_MAX = 5.0
_FORWARDED_REQUEST_HEADERS = (
    "Content-Type",
    "Idempotency-Key",
    "If-Range",
    "Last-Event-ID",
    "Range",
)
_FORWARDED_RESPONSE_HEADERS = (
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Range",
    "Content-Type",
    "ETag",
    "Last-Modified",
    DISPATCHER_HEADER,
    EPOCH_HEADER,
    "Octaskly-Replicas",
    "Retry-After",
    *RATE_LIMIT_HEADERS,
)


_T = TypeVar("_T")


class MaybeSent(Exception):
    """The connection broke, and the other node may have received the request."""


class HttpNodeClient:
    """The HTTP client session of this node to the other nodes."""

    def __init__(
        self,
        gateway: Gateway,
        long_polls: LongPolls,
        tls: ssl.SSLContext | None,
        timeouts: HttpTimeouts,
        configure_socket: ConfigureSocket | None,
        body_threads: Executor,
    ) -> None:
        self._gateway = gateway
        self._long_polls = long_polls
        self._tls = tls
        self._timeouts = timeouts
        self._configure_socket = configure_socket
        self._body_threads = body_threads
        self._peer_addresses = _PeerAddresses()
        self._session: aiohttp.ClientSession | None = None
        #: Sessions with an old certificate; their responses may still arrive.
        self._retired_sessions: list[aiohttp.ClientSession] = []
        self._cached_view: DispatcherView | None = None
        self._cached_headers: Mapping[str, str] = {}  #: headers for `_cached_view`

    def set_tls_context(self, tls: ssl.SSLContext) -> None:
        """Use this certificate for new connections."""
        self._tls = tls
        if self._session is not None:
            self._retired_sessions.append(self._session)
            self._session = None

    async def close(self) -> None:
        """Close idle connections to other nodes."""
        for session in (*self._retired_sessions, self._session):
            if session is not None:
                await session.close()

    async def forward_to_dispatcher(
        self, request: Request, handle_locally: Handler
    ) -> web.StreamResponse:
        """Handle a request locally or at the dispatcher; wait if none is elected.

        Raises:
            Problem: 503, no dispatcher was found in time, or the outcome is unknown.
        """
        # A long poll may fail after minutes, so its time budget restarts. The budget of
        # a submission does not.
        is_renewed = request.http_request.method in ("GET", "HEAD")
        budget = _RetryBudget(
            self._timeouts.dispatcher_wait_s, restarts_after_long_attempt=is_renewed
        )
        while True:
            view = self._gateway.dispatcher()
            if view is None or not view.is_self:
                view = await self._wait_for_dispatcher(request, view, budget)
                budget.start_attempt()
            try:
                if view.is_self:
                    request.info.dispatcher_headers = self._dispatcher_headers(view)
                    # Another node may have begun an answer that never came whole.
                    request.info.is_decided_elsewhere = False
                    return await handle_locally(request)
                path = request.http_request.rel_url.raw_path_qs
                return await self.try_each(
                    view.lan_urls, partial(self._send, request, view, path)
                )
            except (NotDispatcher, DispatcherUnknown, NotSent):
                request.info.dispatcher_headers = {}
                if view.is_self:
                    budget.exclude_attempt()
            except MaybeSent as error:
                if not _is_repeatable(request.http_request):
                    raise _unknown_outcome_problem(str(error)) from None
            if request.forwarded_by is not None:
                raise _not_dispatcher_problem()
            await budget.wait_before_retry()

    async def forward_to_node(
        self, request: Request, lan_urls: Sequence[str], path: str
    ) -> web.StreamResponse:
        """Forward a request to a path of another node, and relay the response."""
        try:
            return await self.try_each(
                lan_urls, partial(self._send, request, None, path)
            )
        except (NotSent, MaybeSent) as error:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                WORKER_NOT_FOUND,
                hint=f"the node cannot be reached: {error}",
                headers={"Retry-After": "5"},
            ) from None

    async def _wait_for_dispatcher(
        self, request: Request, view: DispatcherView | None, retries: _RetryBudget
    ) -> DispatcherView:
        """Return `view` if another node may be asked, or the next dispatcher."""
        if request.forwarded_by is not None and not _may_handle(request, view):
            # Two nodes that each consider the other dispatcher would forward forever.
            raise _not_dispatcher_problem()
        if view is None:
            with contextlib.suppress(TimeoutError):
                async with self._long_polls.limit(inf):
                    view = await self._gateway.wait_for_dispatcher(
                        retries.remaining_s()
                    )
        if view is None or (self._long_polls.is_closing and not view.is_self):
            raise no_dispatcher_problem(self._gateway.health().message)
        return view

    async def try_each(
        self, lan_urls: Sequence[str], send: Callable[[str], Awaitable[_T]]
    ) -> _T:
        """Return what `send` returns for the first address that works."""
        last = NotSent("the node has no address")
        for lan_url in self._peer_addresses.urls_to_try(lan_urls):
            try:
                return await send(lan_url)
            except NotSent as error:
                last = error
        raise last

    async def _send(
        self, request: Request, view: DispatcherView | None, path: str, lan_url: str
    ) -> web.StreamResponse:
        try:
            # A dispatcher may answer a long poll late, so only its epoch limits the
            # wait. Any other node that is silent for `stall_s` counts as lost.
            limit_s = None if view else self._timeouts.stall_s
            wait = self._long_polls.cancel_when_dispatcher_ends(
                view, is_repeatable=_is_repeatable(request.http_request)
            )
            async with wait, asyncio.timeout(limit_s):
                is_relayed = view is not None and view.relay is not None
                response = await self.session().request(
                    request.http_request.method,
                    URL(lan_url + path, encoded=True),
                    data=request.body or None,
                    headers=self.forwarding_headers(request, is_relayed=is_relayed),
                    allow_redirects=False,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSent(str(error) or "the connection timed out") from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise MaybeSent(str(error) or type(error).__name__) from None
        async with response:
            if REFUSED_HEADER in response.headers:
                raise NotDispatcher("the node is no longer the dispatcher")
            request.info.is_decided_elsewhere = True
            return await self._relay_response(request, response, view)

    async def _relay_response(
        self,
        request: Request,
        response: aiohttp.ClientResponse,
        view: DispatcherView | None,
    ) -> web.StreamResponse:
        headers = {
            name: response.headers[name]
            for name in _FORWARDED_RESPONSE_HEADERS
            if name in response.headers
        }
        if response.content_type == sse.CONTENT_TYPE:
            return await self._relay_events(request, response, headers, view)
        length = response.content_length
        if request.http_request.method == "HEAD":
            if length is not None:
                headers["Content-Length"] = str(length)
            return web.Response(status=response.status, headers=headers)
        if length is None or length > _BUFFERED_BYTES_MAX:
            return await self._relay_stream(request, response, headers)
        try:
            async with asyncio.timeout(self._timeouts.stall_s):
                body = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise MaybeSent(str(error) or type(error).__name__) from None
        if (
            view is not None
            and view.relay is not None
            and _is_unknown_task(response, body)
        ):
            raise CatchingUp(
                "the dispatcher does not know this task, but a node that it cannot "
                "connect to may know it",
                hint="try again when all nodes can connect to each other",
            )
        return web.Response(status=response.status, headers=headers, body=body)

    async def _relay_events(
        self,
        request: Request,
        response: aiohttp.ClientResponse,
        headers: dict[str, str],
        view: DispatcherView | None,
    ) -> web.StreamResponse:
        async def copy(stream: sse.EventStream) -> None:
            # The client resumes from its last whole event, so an early end does no
            # harm.
            with contextlib.suppress(aiohttp.ClientError):
                while chunk := await self._chunk(response):
                    await stream.write(chunk)

        return await sse.serve_stream(request, copy, headers=headers, dispatcher=view)

    async def _chunk(self, response: aiohttp.ClientResponse) -> bytes:
        async with asyncio.timeout(self._timeouts.stall_s):
            return await response.content.readany()

    async def _relay_stream(
        self,
        request: Request,
        response: aiohttp.ClientResponse,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        answer = web.StreamResponse(status=response.status, headers=headers)
        answer.content_length = response.content_length
        request.add_headers(answer)
        await answer.prepare(request.http_request)
        try:
            await self._relay_body(request, response, answer)
            await answer.write_eof()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if request.http_request.transport is not None:
                request.http_request.transport.abort()
            raise StreamBroken(str(error)) from None
        return answer

    async def _relay_body(
        self,
        request: Request,
        response: aiohttp.ClientResponse,
        answer: web.StreamResponse,
    ) -> None:
        content, stall_s = response.content, self._timeouts.stall_s
        source = response.connection.transport if response.connection else None
        receiver = request.http_request.transport
        length = response.content_length or 0
        if (
            length - content.total_bytes > LONG_BODY_BYTES
            and isinstance(source, TlsTransport)
            and isinstance(receiver, TlsTransport)
            and not answer.compression
        ):
            parsed = read_parsed(content)
            left_bytes = length - content.total_bytes
            # aiohttp closes the connection: to its parser, the response has no end.
            await source.relay_to(receiver, parsed, left_bytes, stall_s=stall_s)
            return
        content.set_read_chunk_size(LONG_READ_BYTES)
        with long_reads(source):
            while chunk := await self._chunk(response):
                await request.work.turn()
                await answer.write(chunk)

    def forwarding_headers(
        self, request: Request, *, is_relayed: bool = False
    ) -> dict[str, str]:
        """Return the headers that forward a request to another node."""
        given = request.http_request.headers
        headers = {
            name: given[name] for name in _FORWARDED_REQUEST_HEADERS if name in given
        }
        headers[HOP_HEADER] = self._gateway.node_id
        if is_relayed:
            headers[RELAY_HEADER] = "1"
        headers["X-Request-ID"] = request.info.id
        headers[SOURCE_HEADER] = quote(request.info.source, safe=":. ")
        if request.principal is not None:
            headers[PRINCIPAL_HEADER] = format_principal_header(request.principal)
        return headers

    def session(self) -> aiohttp.ClientSession:
        """Return the session to other nodes; raise NotSent without a certificate."""
        if self._tls is None:
            raise NotSent("this node has no certificate")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=NodeConnector(
                    self._tls,
                    self._configure_socket,
                    self._body_threads,
                    idle_s_max=_IDLE_S_MAX,
                ),
                auto_decompress=False,
                read_bufsize=READ_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Accept-Encoding", "User-Agent"),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._timeouts.connect_s
                ),
            )
        return self._session

    def _dispatcher_headers(self, view: DispatcherView) -> Mapping[str, str]:
        """Return the headers with the name and the epoch of the dispatcher."""
        if view is not self._cached_view:  # A change in the mesh creates a new view.
            self._cached_view, epoch = view, view.epoch
            self._cached_headers = {
                DISPATCHER_HEADER: dispatcher_name(self._gateway, view.node),
                EPOCH_HEADER: f"{epoch.term}/{epoch.node}",
            }
        return self._cached_headers


class _PeerAddresses:
    """The last address of each node that worked.

    An unreachable address costs each request about a second until its timeout, so later
    requests start with the address that worked.
    """

    def __init__(self) -> None:
        self._first_index: dict[tuple[str, ...], int] = {}  #: start index; default 0

    def urls_to_try(self, lan_urls: Sequence[str]) -> Iterator[str]:
        """Yield the addresses of a node; take the next one if one fails."""
        urls = tuple(lan_urls)
        begin = self._first_index.get(urls, 0)
        for place in (*range(begin, len(urls)), *range(begin)):
            if place != begin:
                self._remember_first(urls, place)
            yield urls[place]

    def _remember_first(self, urls: tuple[str, ...], index: int) -> None:
        if len(self._first_index) >= ADDRESS_LISTS_MAX:
            self._first_index.clear()
        self._first_index[urls] = index


def _is_unknown_task(response: aiohttp.ClientResponse, body: bytes) -> bool:
    """Return True if the response says that there is no such task."""
    if response.status != HTTPStatus.NOT_FOUND:
        return False
    try:
        return msgspec.json.decode(body, type=_Refusal).error == TASK_NOT_FOUND
    except msgspec.MsgspecError:
        return False


class _Refusal(msgspec.Struct):
    error: str = ""


class _RetryBudget:
    """The time that one request may still wait for a dispatcher."""

    def __init__(self, budget_s: float, *, restarts_after_long_attempt: bool) -> None:
        self._budget_s = budget_s
        #: An attempt that lasted longer than the budget renews it.
        self._restarts_after_long_attempt = restarts_after_long_attempt
        self._delay_s = _PAUSE_S
        self._attempt_started_s = loop_time()
        self._deadline_s = self._attempt_started_s + budget_s

    def remaining_s(self) -> float:
        return max(0.0, self._deadline_s - loop_time())

    def start_attempt(self) -> None:
        """Record the start of an attempt."""
        self._attempt_started_s = loop_time()

    def exclude_attempt(self) -> None:
        """Let the last attempt use up no time, as this node was dispatcher itself."""
        if self._restarts_after_long_attempt:
            self._deadline_s += loop_time() - self._attempt_started_s

    async def wait_before_retry(self) -> None:
        """Wait before the next attempt; raise `Problem` after the deadline."""
        now_s = loop_time()
        if (
            self._restarts_after_long_attempt
            and now_s - self._attempt_started_s > self._budget_s
        ):
            self._deadline_s, self._delay_s = now_s + self._budget_s, _PAUSE_S
        if now_s >= self._deadline_s:
            raise no_dispatcher_problem()
        await asyncio.sleep(min(self._delay_s, self._deadline_s - now_s))
        self._delay_s = min(self._delay_s * 2, _PAUSE_S_MAX)
        self.start_attempt()


def dispatcher_name(gateway: Gateway, node: NodeId) -> str:
    """Return a node's name if a header can carry it, else its id."""
    name = gateway.node_names().get(node, node)
    return name if name.isascii() and name.isprintable() else node


def _may_handle(request: Request, view: DispatcherView | None) -> bool:
    """Return True if this node may handle or relay a forwarded request."""
    if view is None or view.is_self:
        return view is not None
    is_relayed = RELAY_HEADER in request.http_request.headers
    return is_relayed and view.relay is None


def _is_repeatable(request: web.BaseRequest) -> bool:
    """Return True if the request can be carried out twice without harm."""
    return request.method in ("GET", "HEAD", "DELETE") or (
        "Idempotency-Key" in request.headers
    )


def no_dispatcher_problem(hint: str | None = None) -> Problem:
    """Return the 503 response for a request that found no dispatcher in time."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        NO_DISPATCHER,
        hint=hint or "an election takes a few seconds; try again",
        headers={"Retry-After": "1"},
    )


def _not_dispatcher_problem() -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        NO_DISPATCHER,
        hint="this node is not the dispatcher, and the request was already "
        "forwarded once",
        headers={"Retry-After": "1", REFUSED_HEADER: "not-dispatcher"},
    )


def _unknown_outcome_problem(reason: str) -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        CONNECTION_LOST,
        hint=f"the request may have been carried out ({reason}); check before "
        "you retry it, or send an Idempotency-Key so that a retry is safe",
        headers={"Retry-After": "1"},
    )
