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

from octaskly.api.http.buffers import BACKLOG_BYTES
from octaskly.config.limits import LimitOptions

CONNECTIONS_MIN: Final = 4
SURPLUS_MAX: Final = 16
"""Connections beyond the bound that are told so; others are cut."""

DESCRIPTORS_KEPT: Final = 48
"""For files, launchers and peers; connections get the rest."""

STRANGERS_SHARE: Final = 0.75
"""Of the connections, for strangers of the LAN together; this machine and nodes of the
mesh have the rest, however many addresses a stranger has."""

SOCKET_RESERVE: Final = 64  #: more connections that only the UNIX socket may have


class Crowd:
    """Judges connections, and knows those from each address of strangers."""

    def __init__(self, bounds: LimitOptions) -> None:
        self._bounds = bounds
        self._strangers: Counter[str] = Counter()

    def surplus(self, count: int, *, is_socket: bool) -> int:
        """Return how many connections are too many, with one more than `count`."""
        reserve = SOCKET_RESERVE if is_socket else 0
        return count + 1 - self._connections_max() - reserve

    def enter(self, host: str) -> bool:
        """Note a stranger's connection; False: it is one more than may be had.

        Its address has its share already, or all strangers together have theirs.
        """
        self._strangers[host] += 1
        most = self._connections_max() * STRANGERS_SHARE
        is_crowd = self._strangers[host] > self._bounds.connections_per_address
        return not is_crowd and self._strangers.total() <= most

    def leave(self, host: str) -> None:
        """Forget a connection that entered."""
        self._strangers[host] -= 1
        if not self._strangers[host]:
            del self._strangers[host]

    def _connections_max(self) -> int:
        """Return how many this process has descriptors for, within bounds."""
        most = self._bounds.connections_max
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors == resource.RLIM_INFINITY:
            return most
        return max(CONNECTIONS_MIN, min(most, descriptors - DESCRIPTORS_KEPT))


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
