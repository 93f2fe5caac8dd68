"""Brings a request to the dispatcher, by mutual TLS, and survives its change.

The front authenticates, then states the principal; a node certificate authenticates
only the hop. Whether a failed request may be sent again depends on whether the
dispatcher may have got it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import quote

import aiohttp
from aiohttp import AddrInfoType, web
from yarl import URL

from octaskly.api.http import sse
from octaskly.api.http.authentication import PRINCIPAL_HEADER, statement
from octaskly.api.http.buffers import READ_BYTES
from octaskly.api.http.long_polls import Waits
from octaskly.api.http.peer_addresses import Ways
from octaskly.api.http.request import Call, Deadlines, Perform
from octaskly.api.problems import (
    CONNECTION_LOST,
    NO_DISPATCHER,
    REFUSED_HEADER,
    WORKER_NOT_FOUND,
    Problem,
)
from octaskly.api.security.rate_limit import HEADERS
from octaskly.core.model.ids import NodeId
from octaskly.errors import NoDispatcher, NotDispatcher
from octaskly.ports import DispatcherView, Gateway


class Unanswered(Exception):
    """The other node did not answer, or stopped doing so."""


@asynccontextmanager
async def asked(
    call: Call,
    lan_urls: Sequence[str],
    path: str,
    *,
    wait_s: float = 0.0,
    begin_s: float | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Ask another node for an internal path; the block reads the answer.

    Args:
        call: The request on whose behalf it is.
        lan_urls: Where the node serves, best first.
        path: What to ask for.
        wait_s: How long the node may take longer than usual to begin.
        begin_s: How long that is usually; None: as long as a stream may stall.

    Raises:
        Unanswered: it is not there, or broke off while the block read.
    """
    stall_s = call.parts.deadlines.stall_s if begin_s is None else begin_s
    response = await _first(call, lan_urls, path, stall_s + wait_s)
    try:
        async with response:
            yield response
    except (aiohttp.ClientError, OSError) as error:
        raise Unanswered(str(error) or type(error).__name__) from None


async def _first(
    call: Call, lan_urls: Sequence[str], path: str, within_s: float
) -> aiohttp.ClientResponse:
    forwarder = call.parts.forwarder
    last = "it has no address"
    for lan_url in forwarder.ways.to(lan_urls):
        try:
            async with asyncio.timeout(within_s):
                return await forwarder.session().get(
                    URL(lan_url + path, encoded=True),
                    headers=forwarder.headers(call),
                    allow_redirects=False,
                )
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            last = str(error) or type(error).__name__
    raise Unanswered(last)


HOP_HEADER = "Octaskly-Hop"
SOURCE_HEADER = "Octaskly-Source"
DISPATCHER_HEADER = "Octaskly-Dispatcher"
EPOCH_HEADER = "Octaskly-Epoch"

_WHOLE_BYTES_MAX = 64 << 10
_PAUSE_S = 0.02
_PAUSE_S_MAX = 0.25
# Below the header deadline of the other side, which would close an idle connection
# just as the next request goes out.
_IDLE_S_MAX = 5.0
_UP = ("Content-Type", "Idempotency-Key", "If-Range", "Last-Event-ID", "Range")
_DOWN = (
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
    *HEADERS,
)


Tune = Callable[[socket.socket], None]
"""Makes a connection notice that the other end went silent."""


class NotSent(ConnectionError):
    """The other node did not get the request, or refused to act on it."""


class MaybeSent(Exception):
    """The connection broke after the request may have arrived."""


class StreamBroken(ConnectionError):
    """A body ended early; the client must see a broken connection, not an end."""


class Forwarder:
    """One client session to the other nodes."""

    def __init__(
        self,
        gateway: Gateway,
        waits: Waits,
        tls: ssl.SSLContext | None,
        deadlines: Deadlines,
        tune: Tune | None = None,
    ) -> None:
        self._gateway = gateway
        self._waits = waits
        self._tls = tls
        self._deadlines = deadlines
        self._tune = tune
        self.ways = Ways()
        self._session: aiohttp.ClientSession | None = None
        self._retired: list[aiohttp.ClientSession] = []  #: answers may still come
        self._signed_as: DispatcherView | None = None
        self._signed: Mapping[str, str] = {}  #: what its answers say of it

    def renew(self, tls: ssl.SSLContext) -> None:
        """Show this certificate on connections that are made from now on."""
        self._tls = tls
        if self._session is not None:
            self._retired.append(self._session)
            self._session = None

    async def close(self) -> None:
        """Close idle connections to other nodes."""
        for session in (*self._retired, self._session):
            if session is not None:
                await session.close()

    async def perform(self, call: Call, local: Perform) -> web.StreamResponse:
        """Answer `call` here or at the dispatcher, waiting for one if need be.

        Raises:
            Problem: 503, none came in time, or nobody knows whether it arrived.
        """
        # A long poll may go well for minutes before its trouble; a submission may not.
        is_renewed = call.request.method in ("GET", "HEAD")
        hold = _Hold(self._deadlines.hold_s, is_renewed=is_renewed)
        while True:
            view = await self._dispatcher(call, hold)
            hold.begin()
            try:
                if view.is_self:
                    call.seen.signature = self._signature(view)
                    return await local(call)
                return await self._forward(call, view)
            except (NotDispatcher, NoDispatcher, NotSent):
                call.seen.signature = {}
            except MaybeSent as error:
                if not _is_repeatable(call.request):
                    raise _unsure(str(error)) from None
            if call.hop is not None:
                raise _refused()
            await hold.pause()

    async def fetch(
        self, call: Call, lan_urls: Sequence[str], path: str
    ) -> web.StreamResponse:
        """Pass on what another node sends for an internal path."""
        try:
            return await self._try_each(call, lan_urls, path, None)
        except (NotSent, MaybeSent) as error:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                WORKER_NOT_FOUND,
                hint=f"that node cannot be reached: {error}",
                headers={"Retry-After": "5"},
            ) from None

    async def _dispatcher(self, call: Call, hold: _Hold) -> DispatcherView:
        view = self._gateway.dispatcher()
        if call.hop is not None and (view is None or not view.is_self):
            # Two nodes that each take the other for dispatcher would play ping-pong.
            raise _refused()
        if view is None:
            with contextlib.suppress(TimeoutError):
                async with self._waits.bounded():
                    view = await self._gateway.dispatcher_known(hold.left_s())
        if view is None or (self._waits.is_closing and not view.is_self):
            raise none_elected(self._gateway.health().message)
        return view

    async def _forward(self, call: Call, view: DispatcherView) -> web.StreamResponse:
        path = call.request.rel_url.raw_path_qs
        return await self._try_each(call, view.lan_urls, path, view)

    async def _try_each(
        self,
        call: Call,
        lan_urls: Sequence[str],
        path: str,
        view: DispatcherView | None,
    ) -> web.StreamResponse:
        last = NotSent("it has no address")
        for lan_url in self.ways.to(lan_urls):
            try:
                return await self._send(call, URL(lan_url + path, encoded=True), view)
            except NotSent as error:
                last = error
        raise last

    async def _send(
        self, call: Call, url: URL, view: DispatcherView | None
    ) -> web.StreamResponse:
        try:
            # A long poll at the dispatcher lasts as long as its reign; else a node
            # that is silent is as good as gone.
            limit_s = None if view else self._deadlines.stall_s
            wait = self._waits.bounded(view, is_repeatable=_is_repeatable(call.request))
            async with wait, asyncio.timeout(limit_s):
                response = await self.session().request(
                    call.request.method,
                    url,
                    data=call.body or None,
                    headers=self.headers(call),
                    allow_redirects=False,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSent(str(error) or "no answer to a connect") from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise MaybeSent(str(error) or type(error).__name__) from None
        async with response:
            if REFUSED_HEADER in response.headers:
                raise NotDispatcher("it is not dispatcher any more")
            call.seen.is_decided_elsewhere = True
            return await self._pass_on(call, response, view)

    async def _pass_on(
        self,
        call: Call,
        response: aiohttp.ClientResponse,
        view: DispatcherView | None,
    ) -> web.StreamResponse:
        headers = {
            name: response.headers[name] for name in _DOWN if name in response.headers
        }
        if response.content_type == sse.CONTENT_TYPE:
            return await self._relay(call, response, headers, view)
        length = response.content_length
        if call.request.method == "HEAD":
            if length is not None:
                headers["Content-Length"] = str(length)
            return web.Response(status=response.status, headers=headers)
        if length is None or length > _WHOLE_BYTES_MAX:
            return await self._stream(call, response, headers)
        try:
            async with asyncio.timeout(self._deadlines.stall_s):
                body = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise MaybeSent(str(error) or type(error).__name__) from None
        return web.Response(status=response.status, headers=headers, body=body)

    async def _relay(
        self,
        call: Call,
        response: aiohttp.ClientResponse,
        headers: dict[str, str],
        view: DispatcherView | None,
    ) -> web.StreamResponse:
        async def copy(stream: sse.EventStream) -> None:
            # The client resumes from its last whole event, so that any end is as good
            # as another.
            with contextlib.suppress(aiohttp.ClientError):
                while chunk := await self._chunk(response):
                    await stream.write(chunk)

        return await sse.relay(call, copy, headers=headers, reign=view)

    async def _chunk(self, response: aiohttp.ClientResponse) -> bytes:
        async with asyncio.timeout(self._deadlines.stall_s):
            return await response.content.readany()

    async def _stream(
        self,
        call: Call,
        response: aiohttp.ClientResponse,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        answer = web.StreamResponse(status=response.status, headers=headers)
        answer.content_length = response.content_length
        call.stamp(answer)
        await answer.prepare(call.request)
        try:
            while chunk := await self._chunk(response):
                await answer.write(chunk)
            await answer.write_eof()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if call.request.transport is not None:
                call.request.transport.abort()
            raise StreamBroken(str(error)) from None
        return answer

    def headers(self, call: Call) -> dict[str, str]:
        """Return what another node must know of a request."""
        given = call.request.headers
        headers = {name: given[name] for name in _UP if name in given}
        headers[HOP_HEADER] = self._gateway.node_id
        headers["X-Request-ID"] = call.seen.id
        headers[SOURCE_HEADER] = quote(call.seen.source, safe=":. ")
        if call.principal is not None:
            headers[PRINCIPAL_HEADER] = statement(call.principal)
        return headers

    def session(self) -> aiohttp.ClientSession:
        """Return the session to other nodes; raise NotSent where there is none."""
        if self._tls is None:
            raise NotSent("this node has no certificate to show")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=self._tls,
                    limit=0,
                    keepalive_timeout=_IDLE_S_MAX,
                    socket_factory=self._socket,
                ),
                auto_decompress=False,
                read_bufsize=READ_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Accept-Encoding", "User-Agent"),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._deadlines.connect_s
                ),
            )
        return self._session

    def _socket(self, address: AddrInfoType) -> socket.socket:
        connection = socket.socket(*address[:3])
        if self._tune is not None:
            self._tune(connection)
        return connection

    def _signature(self, view: DispatcherView) -> Mapping[str, str]:
        """Return the headers that say which dispatcher answers, and in which reign."""
        if view is not self._signed_as:  # News of the mesh come with another one.
            self._signed_as, epoch = view, view.epoch
            self._signed = {
                DISPATCHER_HEADER: dispatcher_name(self._gateway, view.node),
                EPOCH_HEADER: f"{epoch.term}/{epoch.node}",
            }
        return self._signed


class _Hold:
    """How long one request may still wait for a dispatcher."""

    def __init__(self, hold_s: float, *, is_renewed: bool) -> None:
        self._hold_s = hold_s
        self._is_renewed = is_renewed  #: by an attempt that lasted longer
        self._pause_s = _PAUSE_S
        self._clock = asyncio.get_running_loop().time
        self._began_s = self._clock()
        self._until_s = self._began_s + hold_s

    def left_s(self) -> float:
        return max(0.0, self._until_s - self._clock())

    def begin(self) -> None:
        """Note that an attempt starts."""
        self._began_s = self._clock()

    async def pause(self) -> None:
        """Wait a little before the next attempt; raise `Problem` when it is late."""
        now_s = self._clock()
        if self._is_renewed and now_s - self._began_s > self._hold_s:
            self._until_s, self._pause_s = now_s + self._hold_s, _PAUSE_S
        if now_s >= self._until_s:
            raise none_elected()
        await asyncio.sleep(min(self._pause_s, self._until_s - now_s))
        self._pause_s = min(self._pause_s * 2, _PAUSE_S_MAX)


def dispatcher_name(gateway: Gateway, node: NodeId) -> str:
    """Return the name of a node, fit for a header."""
    name = gateway.names().get(node, node)
    return name if name.isascii() and name.isprintable() else node


def _is_repeatable(request: web.BaseRequest) -> bool:
    """Return whether doing it twice is as good as doing it once."""
    return request.method in ("GET", "HEAD", "DELETE") or (
        "Idempotency-Key" in request.headers
    )


def none_elected(why: str | None = None) -> Problem:
    """Return the answer where no dispatcher is found in time."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        NO_DISPATCHER,
        hint=why or "an election takes a few seconds; try again",
        headers={"Retry-After": "1"},
    )


def _refused() -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        NO_DISPATCHER,
        hint="this node is not dispatcher, and the request was forwarded already",
        headers={"Retry-After": "1", REFUSED_HEADER: "not-dispatcher"},
    )


def _unsure(reason: str) -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        CONNECTION_LOST,
        hint=f"the request may have been carried out ({reason}); look before you "
        "repeat it, or send an Idempotency-Key so that repeating is safe",
        headers={"Retry-After": "1"},
    )
