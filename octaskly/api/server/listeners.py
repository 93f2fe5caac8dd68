"""Listeners of the API: plain ones on this machine, and those of the LAN with TLS.

A plain listener asks for a place before a transport exists, so a connection that is
refused costs little. A TLS connection costs the state of its handshake and a descriptor
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

WAITING_MAX: Final = 16
"""Connections of an owner with its limit of new ones that wait for a place."""

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
        is_flooded: Returns True if an owner has its places, all by new connections.
        has_place: Returns True if a connection may be opened.
        protocol_factory: Returns the protocol of a connection.
    """

    def __init__(
        self,
        listener: socket.socket,
        identify: Callable[[socket.socket, Any], Place],
        is_flooded: Callable[[Place], bool],
        has_place: Callable[[Place], bool],
        protocol_factory: Callable[[Place], asyncio.Protocol],
    ) -> None:
        self._listener = listener
        self._identify = identify
        self._is_flooded = is_flooded
        self._has_place = has_place
        self._protocol_factory = protocol_factory
        self._waiting: dict[Place, deque[socket.socket]] = {}

    async def serve(self) -> None:
        """Accept connections until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:

                def on_connection(connection: socket.socket, address: Any) -> None:
                    place = self._identify(connection, address)
                    if self._is_flooded(place):
                        self._keep_waiting(connection, place, tasks)
                    else:
                        self._open(connection, place, tasks)

                await accept_connections(
                    self._listener, on_connection, per_turn_max=PLAIN_ACCEPTS_PER_TURN
                )
        finally:
            for connections in self._waiting.values():
                for connection in connections:
                    connection.close()
            self._waiting.clear()

    def _keep_waiting(
        self, connection: socket.socket, place: Place, tasks: asyncio.TaskGroup
    ) -> None:
        """Open a connection of an owner that floods in a moment, if not many follow.

        An owner that opened too many by mistake is served again soon, and one that goes
        on costs no transports.
        """
        waiting = self._waiting.get(place)
        if waiting is None:
            waiting = self._waiting[place] = deque()
            asyncio.get_running_loop().call_later(
                IDLE_S_MIN, self._open_waiting, place, tasks
            )
        waiting.append(connection)
        if len(waiting) > WAITING_MAX:
            waiting.popleft().close()

    def _open_waiting(self, place: Place, tasks: asyncio.TaskGroup) -> None:
        for connection in self._waiting.pop(place, ()):
            self._open(connection, place, tasks)

    def _open(
        self, connection: socket.socket, place: Place, tasks: asyncio.TaskGroup
    ) -> None:
        if self._has_place(place):
            tasks.create_task(self._open_transport(connection, place))
        else:
            connection.close()

    async def _open_transport(self, connection: socket.socket, place: Place) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: self._protocol_factory(place), connection
            )
        except OSError:  # For lack of memory, for example.
            connection.close()


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
