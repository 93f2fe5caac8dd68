"""The door to the HTTPS listener: bounds the strangers that have not said hello.

A TLS connection costs buffers from its first byte, and a descriptor, so whoever opens
many and says nothing must not get many. Done on the plain connection, before there is
any TLS. Where all places are taken, who has waited longest makes room, of the address
that has most: a machine with many addresses is to keep no node out.
"""

from __future__ import annotations

import asyncio
import resource
import ssl
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import Callable
from typing import Final

from octaskly.api.http.buffers import WRITE_BUFFER_BYTES
from octaskly.config.limits import LimitOptions

CONNECTIONS_MIN: Final = 4
EXCESS_ANSWERED_MAX: Final = 16
"""Connections beyond the bound that are told so; others are cut."""

DESCRIPTORS_RESERVED: Final = 48
"""For files, launchers and peers; connections get the rest."""

NON_MEMBERS_SHARE: Final = 0.75
"""Of the connections, for strangers of the LAN together; this machine and nodes of the
mesh have the rest, however many addresses a stranger has."""

SOCKET_CONNECTIONS_RESERVED: Final = (
    64  #: more connections that only the UNIX socket may have
)


class ConnectionLimits:
    """Judges connections, and knows those from each address of strangers."""

    def __init__(self, limits: LimitOptions) -> None:
        self._limits = limits
        self._count_by_address: Counter[str] = Counter()

    def excess_connections(self, count: int, *, is_socket: bool) -> int:
        """Return how many connections are too many, with one more than `count`."""
        reserve = SOCKET_CONNECTIONS_RESERVED if is_socket else 0
        return count + 1 - self._connections_max() - reserve

    def add_connection(self, host: str) -> bool:
        """Note a stranger's connection; False: it is one more than may be had.

        Its address has its share already, or all strangers together have theirs.
        """
        self._count_by_address[host] += 1
        most = self._connections_max() * NON_MEMBERS_SHARE
        is_crowd = self._count_by_address[host] > self._limits.connections_per_address
        return not is_crowd and self._count_by_address.total() <= most

    def remove_connection(self, host: str) -> None:
        """Forget a connection that entered."""
        self._count_by_address[host] -= 1
        if not self._count_by_address[host]:
            del self._count_by_address[host]

    def _connections_max(self) -> int:
        """Return how many this process has descriptors for, within bounds."""
        most = self._limits.connections_max
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors == resource.RLIM_INFINITY:
            return most
        return max(CONNECTIONS_MIN, min(most, descriptors - DESCRIPTORS_RESERVED))


TLS_SHUTDOWN_S = 1.0


class TlsHandshakeLimiter:
    """Handshakes under way on one listener; called for each connection."""

    def __init__(
        self,
        context: ssl.SSLContext,
        protocol_factory: Callable[[], asyncio.Protocol],
        limits: LimitOptions,
    ) -> None:
        self._context = context
        self._limits = limits
        self._protocol_factory = protocol_factory
        self._pending: dict[asyncio.Transport, str] = {}  #: who came first is first

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a connection that was just accepted."""
        return _AcceptedConnection(self)

    def start_handshake(self, transport: asyncio.Transport) -> None:
        """Begin the handshake, or hang up."""
        host = str((transport.get_extra_info("peername") or ("",))[0])
        pending, bounds = self._pending, self._limits
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
        settled.add_done_callback(lambda done: self._handshake_done(transport, done))
        # As `loop.start_tls` does it, which would need a task to wait in.
        tls = SSLProtocol(
            loop,
            self._protocol_factory(),
            self._context,
            settled,
            server_side=True,
            ssl_handshake_timeout=self._limits.handshake_s,
            ssl_shutdown_timeout=TLS_SHUTDOWN_S,
        )
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        transport.set_protocol(tls)
        tls.connection_made(transport)

    def _handshake_done(
        self, transport: asyncio.Transport, done: asyncio.Future[None]
    ) -> None:
        done.exception()  # Of a stranger's handshake, which is no news.
        self._pending.pop(transport, None)


class _AcceptedConnection(asyncio.Protocol):
    """A connection on which nothing was said yet."""

    def __init__(self, limiter: TlsHandshakeLimiter) -> None:
        self._limiter = limiter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._limiter.start_handshake(transport)
