"""Pairing connections: fixed-size messages between machines without mutual trust.

Connections are bounded in number and time, in total and per address. A read never takes
more bytes than the next message has.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from octaskly.config.settings import LimitOptions
from octaskly.core.model.ids import Address
from octaskly.errors import OctasklyError
from octaskly.mesh.links.handshake_limits import build_handshake_limiter
from octaskly.mesh.links.tcp import connect, tune_socket
from octaskly.system.pending_handshakes import MemberAddresses, accept_within_limits

EXCHANGE_S: Final = 10.0  #: timeout for all messages between two programs


class Conversation:
    """One connection of a pairing."""

    def __init__(self, connection: socket.socket, host: str) -> None:
        self.host = host  #: address of the other side
        self._connection = connection
        self._is_detached = False

    async def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            OSError: The connection is lost.
        """
        await asyncio.get_running_loop().sock_sendall(self._connection, message)

    async def receive(self, size_bytes: int) -> bytes:
        """Return the next message, which has exactly this size.

        Raises:
            OSError: The connection is lost.
        """
        loop = asyncio.get_running_loop()
        message = bytearray()
        while len(message) < size_bytes:
            missing = size_bytes - len(message)
            chunk = await loop.sock_recv(self._connection, missing)
            if not chunk:
                raise ConnectionResetError("the other machine closed the connection")
            message += chunk
        return bytes(message)

    def is_closed_by_peer(self) -> bool:
        """Return True if the other side has closed the connection."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def detach(self) -> None:
        """Keep the connection open after its handler; the new owner closes it."""
        self._is_detached = True

    def close_unless_detached(self) -> None:
        """Close the connection unless `detach` was called."""
        if not self._is_detached:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


ConnectionHandler = Callable[[Conversation], Awaitable[None]]
"""Handles one connection; may raise OSError and OctasklyError."""


async def serve_connections(
    sockets: Iterable[socket.socket],
    handler: ConnectionHandler,
    handlers: asyncio.TaskGroup | None = None,
) -> None:
    """Accept connections on bound sockets until cancelled, then close the sockets.

    Args:
        sockets: Sockets that listen.
        handler: Handles each connection.
        handlers: Owns the handlers; None: they are cancelled with the listener.
    """
    limiter = build_handshake_limiter(LimitOptions(), MemberAddresses())
    listeners = list(sockets)

    def converse(connection: socket.socket, host: str) -> None:
        tune_socket(connection)
        run = _run_handler(Conversation(connection, host), handler)
        owner.create_task(run).add_done_callback(
            lambda _: limiter.release(connection, is_finished=False)
        )

    try:
        async with asyncio.TaskGroup() as tasks:
            owner = handlers or tasks
            for listener in listeners:
                tasks.create_task(accept_within_limits(listener, limiter, converse))
    finally:
        for listener in listeners:
            listener.close()


async def connect_first(addresses: Sequence[Address]) -> Conversation:
    """Return a connection to the first of these addresses that answers.

    Raises:
        OSError: None of them answers.
    """
    failure: OSError | None = None
    for address in addresses:
        try:
            return Conversation(await connect(address), address.host)
        except OSError as error:
            failure = error
    raise failure or OSError("no address")


async def _run_handler(conversation: Conversation, handler: ConnectionHandler) -> None:
    try:
        with contextlib.suppress(OSError, OctasklyError):
            async with asyncio.timeout(EXCHANGE_S):
                await handler(conversation)
    finally:
        conversation.close_unless_detached()
