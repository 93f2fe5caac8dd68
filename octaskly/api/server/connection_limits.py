"""Connection limits, and limits on unfinished TLS handshakes.

A TLS connection costs buffers and a descriptor from its first byte, so the number of
unfinished handshakes is bounded. The check happens on the TCP connection, before any
TLS object exists. At the limit, a new handshake aborts the oldest one of the address
that has the most. So a client with many addresses cannot block nodes. Once half of the
places are taken, an address is admitted once every two seconds: a flood costs little,
and a client has the time to finish.
"""

from __future__ import annotations

import asyncio
import resource
import ssl
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import Callable
from typing import Final

from octaskly.api.http.slow_clients import WRITE_BUFFER_BYTES
from octaskly.config.settings import LimitOptions
from octaskly.system.address_intervals import AddressIntervals
from octaskly.system.error_frames import clear_error_frames

CONNECTIONS_MIN: Final = 4
EXCESS_ANSWERED_MAX: Final = 16
"""Connections above the limit that get an error response; others are closed at once."""

DESCRIPTORS_RESERVED: Final = 48
"""Descriptors for files, launchers and peers; connections get the rest."""

NON_MEMBERS_SHARE: Final = 0.75
"""Share of the connections for all LAN clients that are not members.

This machine and the nodes of the mesh get the rest, regardless of the number of
addresses that other clients have.
"""

SOCKET_CONNECTIONS_RESERVED: Final = 64
"""Additional connections that only the UNIX socket may use."""


class ConnectionLimits:
    """Checks new connections, and counts those of LAN clients by address."""

    def __init__(self, limits: LimitOptions) -> None:
        self._limits = limits
        self._count_by_address: Counter[str] = Counter()

    def excess_connections(self, count: int, *, is_socket: bool) -> int:
        """Return `count`, plus one for the new connection, minus the limit."""
        reserve = SOCKET_CONNECTIONS_RESERVED if is_socket else 0
        return count + 1 - self._connections_max() - reserve

    def add_connection(self, host: str) -> bool:
        """Return True if a connection of a client that is not a member is allowed.

        It is counted in either case. Both the number of connections of one address and
        the number of connections of all clients that are not members are limited.
        """
        self._count_by_address[host] += 1
        most = self._connections_max() * NON_MEMBERS_SHARE
        is_over_limit = (
            self._count_by_address[host] > self._limits.connections_per_address
        )
        return not is_over_limit and self._count_by_address.total() <= most

    def remove_connection(self, host: str) -> None:
        """Remove a connection that `add_connection` counted."""
        self._count_by_address[host] -= 1
        if not self._count_by_address[host]:
            del self._count_by_address[host]

    def _connections_max(self) -> int:
        """Return the configured limit, or less if there are too few descriptors."""
        most = self._limits.connections_max
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors == resource.RLIM_INFINITY:
            return most
        return max(CONNECTIONS_MIN, min(most, descriptors - DESCRIPTORS_RESERVED))


TLS_SHUTDOWN_S = 1.0


class TlsHandshakeLimiter:
    """Unfinished handshakes of one listener; called for each new connection."""

    def __init__(
        self,
        context_for_address: Callable[[str], ssl.SSLContext],
        protocol_factory: Callable[[], asyncio.Protocol],
        limits: LimitOptions,
    ) -> None:
        self._context_for_address = context_for_address
        self._limits = limits
        self._protocol_factory = protocol_factory
        self._pending: dict[asyncio.Transport, str] = {}  #: in order of arrival
        self._intervals = AddressIntervals()

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a connection that was just accepted."""
        return _AcceptedConnection(self)

    def start_handshake(self, transport: asyncio.Transport) -> None:
        """Start the handshake, or abort the connection if its address has too many."""
        host = str((transport.get_extra_info("peername") or ("",))[0])
        pending, bounds = self._pending, self._limits
        own_address = str((transport.get_extra_info("sockname") or ("",))[0])
        counts = Counter(pending.values())
        loop = asyncio.get_running_loop()
        if counts[host] >= bounds.lan_handshakes_per_address or (
            host != own_address
            and len(pending) >= bounds.lan_handshakes_max // 2
            and not self._intervals.admit(host, loop.time())
        ):
            transport.abort()
            return
        if len(pending) >= bounds.lan_handshakes_max:
            displaced = max(pending, key=lambda one: counts[pending[one]])
            del pending[displaced]
            displaced.abort()
        pending[transport] = host
        settled: asyncio.Future[None] = loop.create_future()
        settled.add_done_callback(lambda done: self._handshake_done(transport, done))
        # `loop.start_tls` does the same, but needs a task that waits.
        tls = SSLProtocol(
            loop,
            self._protocol_factory(),
            self._context_for_address(own_address),
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
        # Retrieve the exception; otherwise asyncio logs each failed handshake.
        error = done.exception()
        if error is not None:
            clear_error_frames(error)  # Only Python 3.11 makes a cycle here.
        self._pending.pop(transport, None)


class _AcceptedConnection(asyncio.Protocol):
    """A connection before its first byte."""

    def __init__(self, limiter: TlsHandshakeLimiter) -> None:
        self._limiter = limiter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._limiter.start_handshake(transport)
