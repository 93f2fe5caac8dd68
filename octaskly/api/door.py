"""The door to the HTTPS listener: bounds the strangers that have not said hello.

A TLS connection costs buffers from its first byte, and a descriptor, so whoever opens
many and says nothing must not get many. Done on the plain connection, before there is
any TLS. Where all places are taken, who has waited longest makes room, of the address
that has most: a machine with many addresses is to keep no node out.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import Callable

from octaskly.api.buffers import BACKLOG_BYTES
from octaskly.config.bounds import LimitOptions

SHUTDOWN_S = 1.0


class Door:
    """Handshakes under way on one listener; called for each connection."""

    def __init__(
        self,
        context: ssl.SSLContext,
        behind: Callable[[], asyncio.Protocol],
        bounds: LimitOptions,
    ) -> None:
        self._context = context
        self._bounds = bounds
        self._behind = behind
        self._pending: dict[asyncio.Transport, str] = {}  #: who came first is first

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a connection that was just accepted."""
        return _Visitor(self)

    def open(self, transport: asyncio.Transport) -> None:
        """Begin the handshake, or hang up."""
        host = str((transport.get_extra_info("peername") or ("",))[0])
        pending, bounds = self._pending, self._bounds
        counts = Counter(pending.values())
        if counts[host] >= bounds.lan_handshakes_per_address:
            transport.abort()
            return
        if len(pending) >= bounds.lan_handshakes_max:
            longest = max(pending, key=lambda one: counts[pending[one]])
            del pending[longest]
            longest.abort()
        pending[transport] = host
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[None] = loop.create_future()
        settled.add_done_callback(lambda done: self._settled(transport, done))
        # As `loop.start_tls` does it, which would need a task to wait in.
        tls = SSLProtocol(
            loop,
            self._behind(),
            self._context,
            settled,
            server_side=True,
            ssl_handshake_timeout=self._bounds.handshake_s,
            ssl_shutdown_timeout=SHUTDOWN_S,
        )
        transport.set_write_buffer_limits(high=BACKLOG_BYTES)
        transport.set_protocol(tls)
        tls.connection_made(transport)

    def _settled(
        self, transport: asyncio.Transport, done: asyncio.Future[None]
    ) -> None:
        done.exception()  # Of a stranger's handshake, which is no news.
        self._pending.pop(transport, None)


class _Visitor(asyncio.Protocol):
    """A connection on which nothing was said yet."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._door.open(transport)
