"""Connection limits, and limits on unfinished TLS handshakes.

Clients with a token, nodes, users of the local socket and connections without
authentication have separate pools, so none can take the connections of another. A new
connection belongs to the last pool until it shows a valid token. Within a pool, each
owner (a subject, a node, a local user or a LAN address) has a limit of its own. A full
pool closes the oldest connection without a complete request of the owner that has the
most.

A TLS connection costs buffers and a descriptor from its first byte, so the number of
unfinished handshakes is bounded, too. The check happens on the TCP connection, before
any TLS object exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Final, Protocol

from octaskly.api.http.slow_clients import WRITE_BUFFER_BYTES
from octaskly.api.problems import (
    Problem,
    too_many_connections,
    too_many_connections_of,
)
from octaskly.config.settings import LimitOptions
from octaskly.system.error_frames import clear_error_frames
from octaskly.system.pending_handshakes import (
    HandshakeLimiter,
    MemberAddresses,
    accept_connections,
)

CONNECTIONS_MIN: Final = 4
EXCESS_ANSWERED_MAX: Final = 16
"""Connections above a limit that get an error response; others are closed at once."""

DESCRIPTORS_RESERVED: Final = 48
"""Descriptors for files, launchers and peers; connections get the rest."""


class ConnectionKind(Enum):
    """The pool of a connection."""

    CLIENT = auto()  #: it showed a valid token
    NODE = auto()  #: it showed the certificate of a member
    LOCAL = auto()  #: it came over the local socket
    UNAUTHENTICATED = auto()


POOL_SHARES: Final = {
    ConnectionKind.CLIENT: 1.0,
    ConnectionKind.NODE: 0.375,
    ConnectionKind.LOCAL: 0.25,
    ConnectionKind.UNAUTHENTICATED: 0.25,
}
"""Size of each pool as a share of `connections_max`."""


class PooledConnection(Protocol):
    """A connection that a full pool may close."""

    def abort(self) -> None:
        """Close the connection at once."""


class _OwnerConnections:
    """The connections of one owner in one pool, oldest first."""

    __slots__ = ("receiving", "serving")

    def __init__(self) -> None:
        self.receiving: dict[PooledConnection, None] = {}
        """Those without a complete request."""
        self.serving: dict[PooledConnection, None] = {}

    @property
    def count(self) -> int:
        """Number of connections."""
        return len(self.receiving) + len(self.serving)


class ConnectionPool:
    """The connections of one kind.

    Args:
        connections_max: Returns the size of the pool.
        per_owner_max: Number of connections of one owner.
        aborts_serving: Also closes connections with a complete request. Otherwise,
            clients that do not read their responses could keep the pool full.
    """

    def __init__(
        self,
        connections_max: Callable[[], int],
        per_owner_max: int,
        *,
        aborts_serving: bool,
    ) -> None:
        self._connections_max = connections_max
        self._per_owner_max = per_owner_max
        self._aborts_serving = aborts_serving
        self._by_owner: dict[str, _OwnerConnections] = {}
        self._owners: dict[PooledConnection, str] = {}

    def has_room_for_owner(self, owner: str, forwarded_count: int = 0) -> bool:
        """Make room for one more connection of an owner; return False if none is free.

        Args:
            owner: The owner.
            forwarded_count: Number of its requests that other nodes forwarded.
        """
        own = self._by_owner.get(owner)
        count = forwarded_count + (0 if own is None else own.count)
        if count < self._per_owner_max:
            return True
        if own is None or not own.receiving:
            return False
        self._evict(next(iter(own.receiving)))
        return True

    def has_room(self) -> bool:
        """Make room for one more connection; return False if none may be closed."""
        if len(self._owners) < self._connections_max():
            return True
        victims = (
            each
            for each in self._by_owner.values()
            if self._aborts_serving or each.receiving
        )
        # With equal counts, close no connection with a complete request.
        largest = max(victims, key=lambda o: (o.count, bool(o.receiving)), default=None)
        if largest is None:
            return False
        self._evict(next(iter(largest.receiving or largest.serving)))
        return True

    def add(self, connection: PooledConnection, owner: str) -> None:
        """Add a connection that has not sent a complete request."""
        self._owners[connection] = owner
        own = self._by_owner.setdefault(owner, _OwnerConnections())
        own.receiving[connection] = None

    def remove(self, connection: PooledConnection) -> None:
        """Remove a connection, if it was not evicted before."""
        owner = self._owners.pop(connection, None)
        if owner is None:
            return
        own = self._by_owner[owner]
        own.receiving.pop(connection, None)
        own.serving.pop(connection, None)
        if not own.count:
            del self._by_owner[owner]

    def set_serving(self, connection: PooledConnection, *, is_serving: bool) -> None:
        """Record that a request is complete, or that its response is."""
        owner = self._owners.get(connection)
        if owner is None:
            return
        own = self._by_owner[owner]
        own.receiving.pop(connection, None)
        own.serving.pop(connection, None)
        (own.serving if is_serving else own.receiving)[connection] = None

    def owner_of(self, connection: PooledConnection) -> str | None:
        """Return the owner of a connection in this pool; None if it is not here."""
        return self._owners.get(connection)

    def owner_problem(self, owner: str) -> Problem:
        """Return the 429 response for an owner that has too many connections."""
        return too_many_connections_of(owner, self._per_owner_max)

    def _evict(self, connection: PooledConnection) -> None:
        self.remove(connection)
        connection.abort()


class ConnectionLimits:
    """The pools of all connections of one API."""

    def __init__(self, limits: LimitOptions) -> None:
        self._limits = limits
        self._forwarded_counts: Counter[str] = Counter()
        self._pools = {kind: self._build_pool(kind) for kind in ConnectionKind}
        self._kinds: dict[PooledConnection, ConnectionKind] = {}

    def _build_pool(self, kind: ConnectionKind) -> ConnectionPool:
        limits = self._limits
        per_owner_max = {
            ConnectionKind.UNAUTHENTICATED: limits.connections_per_address,
            ConnectionKind.NODE: limits.connections_max,  # Only the pool is limited.
        }.get(kind, limits.connections_per_subject)
        return ConnectionPool(
            lambda: self._pool_size(kind),
            per_owner_max,
            aborts_serving=kind is ConnectionKind.UNAUTHENTICATED,
        )

    @property
    def count(self) -> int:
        """Number of connections in all pools."""
        return len(self._kinds)

    def add_connection(
        self, connection: PooledConnection, kind: ConnectionKind, owner: str
    ) -> Problem | None:
        """Add a new connection to its pool; return why it is refused, or None."""
        pool = self._pools[kind]
        if not pool.has_room_for_owner(owner):
            return pool.owner_problem(owner)
        if not pool.has_room():
            return too_many_connections()
        pool.add(connection, owner)
        self._kinds[connection] = kind
        return None

    def remove_connection(self, connection: PooledConnection) -> None:
        """Remove a connection that is lost."""
        kind = self._kinds.pop(connection, None)
        if kind is not None:
            self._pools[kind].remove(connection)

    def set_serving(self, connection: PooledConnection, *, is_serving: bool) -> None:
        """Record that a request is complete, or that its response is."""
        kind = self._kinds.get(connection)
        if kind is not None:
            self._pools[kind].set_serving(connection, is_serving=is_serving)

    def authenticate(self, connection: PooledConnection, subject: str) -> None:
        """Move a connection to the clients, because it showed a valid token.

        Raises:
            Problem: 429, the subject has too many; 503, all clients have.
        """
        kind = self._kinds.get(connection)
        pool = self._pools[ConnectionKind.CLIENT]
        is_moved = (
            kind is ConnectionKind.CLIENT and pool.owner_of(connection) == subject
        )
        if kind is None or kind is ConnectionKind.NODE or is_moved:
            return
        self._pools[kind].remove(connection)
        problem = self.add_connection(connection, ConnectionKind.CLIENT, subject)
        if problem is not None:
            del self._kinds[connection]
            raise problem

    @contextlib.contextmanager
    def count_forwarded(self, subject: str) -> Iterator[None]:
        """Count a request that another node forwarded as a connection of its subject.

        Raises:
            Problem: 429, the subject has too many.
        """
        pool = self._pools[ConnectionKind.CLIENT]
        if not pool.has_room_for_owner(subject, self._forwarded_counts[subject]):
            raise pool.owner_problem(subject)
        self._forwarded_counts[subject] += 1
        try:
            yield
        finally:
            self._forwarded_counts[subject] -= 1
            if not self._forwarded_counts[subject]:
                del self._forwarded_counts[subject]

    def _pool_size(self, kind: ConnectionKind) -> int:
        """Return the share of a pool, smaller if there are too few descriptors."""
        most = float(self._limits.connections_max)
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors != resource.RLIM_INFINITY:
            available = (descriptors - DESCRIPTORS_RESERVED) / sum(POOL_SHARES.values())
            most = max(CONNECTIONS_MIN, min(most, available))
        return max(1, int(most * POOL_SHARES[kind]))


TLS_SHUTDOWN_S = 1.0


class TlsListener:
    """Accepts TLS connections at one port.

    Args:
        listener: The port; it listens and does not block.
        context_for_address: Returns the TLS context for an address of this machine.
        protocol_factory: Returns the protocol of a connection.
        limits: Limits on pending handshakes.
        members: Addresses of members of the mesh.
    """

    def __init__(
        self,
        listener: socket.socket,
        context_for_address: Callable[[str], ssl.SSLContext],
        protocol_factory: Callable[[], asyncio.Protocol],
        limits: LimitOptions,
        members: MemberAddresses,
    ) -> None:
        self._listener = listener
        self._context_for_address = context_for_address
        self._timeout_s = limits.handshake_s
        self._protocol_factory = protocol_factory
        self._limiter = HandshakeLimiter(
            total_max=limits.lan_handshakes_max,
            per_address_max=limits.lan_handshakes_per_address,
            local_max=limits.lan_handshakes_per_address,
            members=members,
        )

    async def serve(self) -> None:
        """Accept connections until cancelled, then close the port."""
        try:
            async with asyncio.TaskGroup() as tasks:

                def start(connection: socket.socket, _host: str) -> None:
                    tasks.create_task(self._start_handshake(connection))

                await accept_connections(self._listener, self._limiter, start)
        finally:
            self._listener.close()

    async def _start_handshake(self, connection: socket.socket) -> None:
        """Start a handshake; it ends in the background."""
        loop = asyncio.get_running_loop()
        own_address = str(connection.getsockname()[0])
        settled: asyncio.Future[None] = loop.create_future()
        settled.add_done_callback(lambda done: self._handshake_done(connection, done))
        # With `ssl`, this would wait for the handshake, and its exceptions would refer
        # to frames that keep the TLS state in memory.
        tls = SSLProtocol(
            loop,
            self._protocol_factory(),
            self._context_for_address(own_address),
            settled,
            server_side=True,
            ssl_handshake_timeout=self._timeout_s,
            ssl_shutdown_timeout=TLS_SHUTDOWN_S,
        )
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: tls, connection)
        except OSError as error:  # For lack of memory, for example.
            connection.close()
            settled.set_exception(error)
            return
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def _handshake_done(
        self, connection: socket.socket, done: asyncio.Future[None]
    ) -> None:
        # Retrieve the exception; otherwise asyncio logs each failed handshake.
        error = done.exception()
        if error is not None:
            clear_error_frames(error)  # Only Python 3.11 makes a cycle here.
        self._limiter.release(connection, is_finished=error is None)
