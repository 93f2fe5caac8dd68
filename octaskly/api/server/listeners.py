"""Listeners of the API: plain ones on this machine, and those of the LAN with TLS.

A plain listener takes a place for a connection before a transport exists, and lets one
without a place wait. So a client that connects again as soon as it is refused costs
little. A TLS connection costs the state of its handshake and a descriptor
from its first byte, so the number of unfinished handshakes is bounded. This check, too,
happens on the TCP connection, before any TLS object exists.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

from octaskly.api.http.local_socket import peer_credentials
from octaskly.api.server.connection_limits import IDLE_S_MIN, ConnectionKind
from octaskly.config.settings import LimitOptions
from octaskly.config.users import user_name
from octaskly.system.accepting import accept_connections
from octaskly.system.pending_handshakes import (
    HandshakeLimiter,
    MemberAddresses,
    accept_within_limits,
)
from octaskly.system.tcp_table import client_user
from octaskly.system.tls_transport import TlsTransport

WAIT_S: Final = 4 * IDLE_S_MIN
"""Longest wait for a place: an owner that left many connections open is served again
before it ends, once they have made room for each other."""
PLACE_CHECK_S: Final = 0.05  #: between two checks for a place

PLAIN_ACCEPTS_PER_TURN: Final = 8
"""Few, because others of this machine wait for the event loop meanwhile."""

Place = tuple[ConnectionKind, str]
"""The pool of a connection, and its owner."""


def identify_client(connection: socket.socket, address: Any) -> Place:
    """Return the place of a connection to a loopback port.

    It is that of the client's user, whatever address it chose.
    """
    return ConnectionKind.UNAUTHENTICATED, client_user(
        address, connection.getsockname()
    )


def identify_user(connection: socket.socket, _address: Any) -> Place:
    """Return the place of a connection to the UNIX socket: that of its user."""
    uid, _ = peer_credentials(connection)
    return ConnectionKind.LOCAL, f"user {user_name(uid)}"


class PlainListener:
    """Accepts connections of this machine at one port or UNIX socket.

    Args:
        listener: The socket; it listens and does not block.
        identify: Returns the place of a connection, which has this remote address.
        admit: Takes a place and returns the protocol of the connection that has it, or
            None if no place is free.
        refuse: Returns a protocol that says why a place was not free, or None.
        waiting_max: Number of connections that may wait for a place.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        identify: Callable[[socket.socket, Any], Place],
        admit: Callable[[Place], asyncio.Protocol | None],
        refuse: Callable[[Place], asyncio.Protocol | None],
        waiting_max: Callable[[], int],
    ) -> None:
        self._listener = listener
        self._identify = identify
        self._admit = admit
        self._refuse = refuse
        self._waiting_max = waiting_max
        self._waiting: dict[Place, deque[tuple[socket.socket, float]]] = {}
        """Connections without a place, and until when they wait for one."""

    async def serve(self) -> None:
        """Accept connections until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:

                def on_connection(connection: socket.socket, address: Any) -> None:
                    place = self._identify(connection, address)
                    is_first = place not in self._waiting
                    protocol = self._admit(place) if is_first else None
                    if protocol is None:
                        self._add_waiting(connection, place, tasks)
                    else:
                        tasks.create_task(_open_transport(connection, protocol))

                await accept_connections(
                    self._listener, on_connection, per_turn_max=PLAIN_ACCEPTS_PER_TURN
                )
        finally:
            for waiting in self._waiting.values():
                for connection, _ in waiting:
                    connection.close()
            self._waiting.clear()

    def _add_waiting(
        self, connection: socket.socket, place: Place, tasks: asyncio.TaskGroup
    ) -> None:
        """Let a connection wait for a place, before it is refused.

        A refused client may connect again at once, thousands of times a second.
        """
        until_s = asyncio.get_running_loop().time() + WAIT_S
        if place in self._waiting:
            self._waiting[place].append((connection, until_s))
        else:
            self._waiting[place] = deque([(connection, until_s)])
            tasks.create_task(self._serve_waiting(place))
        if sum(map(len, self._waiting.values())) > self._waiting_max():
            longest = max(self._waiting.values(), key=len)
            longest.popleft()[0].close()

    async def _serve_waiting(self, place: Place) -> None:
        """Open connections in order of arrival, one in each turn of the event loop."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting[place]
        while waiting:
            protocol = self._admit(place)
            if protocol is None and loop.time() < waiting[0][1]:
                await asyncio.sleep(PLACE_CHECK_S)
                continue
            connection, _ = waiting.popleft()
            protocol = protocol or self._refuse(place)
            if protocol is None:
                connection.close()
            else:
                await _open_transport(connection, protocol)
            await asyncio.sleep(0)
        del self._waiting[place]


async def _open_transport(
    connection: socket.socket, protocol: asyncio.Protocol
) -> None:
    loop = asyncio.get_running_loop()
    try:
        await loop.connect_accepted_socket(lambda: protocol, connection)
    except OSError as error:  # For lack of memory, for example.
        connection.close()
        protocol.connection_lost(error)


class TlsListener:
    """Accepts TLS connections at one port.

    Args:
        listener: The port; it listens and does not block.
        context_for_address: Returns the TLS context for an address of this machine.
        protocol_factory: Returns the protocol of a connection.
        body_threads: They send and receive long bodies.
        limits: Limits on pending handshakes.
        members: Addresses of members of the mesh.
    """

    def __init__(
        self,
        listener: socket.socket,
        context_for_address: Callable[[str], ssl.SSLContext],
        protocol_factory: Callable[[], asyncio.Protocol],
        body_threads: Executor,
        limits: LimitOptions,
        members: MemberAddresses,
    ) -> None:
        self._listener = listener
        self._context_for_address = context_for_address
        self._body_threads = body_threads
        self._timeout_s = limits.handshake_s
        self._protocol_factory = protocol_factory
        self._pending: set[TlsTransport] = set()
        self._limiter = HandshakeLimiter(
            total_max=limits.lan_handshakes_max,
            per_address_max=limits.lan_handshakes_per_address,
            local_max=limits.lan_handshakes_per_address,
            members=members,
        )

    async def serve(self) -> None:
        """Accept connections until cancelled."""
        try:
            await accept_within_limits(
                self._listener, self._limiter, self._start_handshake
            )
        finally:
            for transport in tuple(self._pending):
                transport.abort()

    def _start_handshake(self, connection: socket.socket, _host: str) -> None:
        """Start a handshake; it ends in the background."""
        own_address = str(connection.getsockname()[0])

        def on_handshake(error: Exception | None) -> None:
            self._pending.discard(transport)
            self._limiter.release(transport.connection, is_finished=error is None)

        try:
            transport = TlsTransport(
                connection,
                self._context_for_address(own_address),
                self._protocol_factory(),
                body_threads=self._body_threads,
                handshake_s=self._timeout_s,
                on_handshake=on_handshake,
            )
        except OSError:  # For lack of memory, or the client is gone.
            self._limiter.release(connection, is_finished=False)
            connection.close()
            return
        self._pending.add(transport)
        self._limiter.replace(connection, transport.connection)
