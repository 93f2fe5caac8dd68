"""Pairing connections: fixed-size messages between machines without mutual trust.

Connections are bounded in number and time, in total and per address. A read never takes
more bytes than the next message has.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final

from octaskly.config.settings import LimitOptions
from octaskly.core.model.ids import Address
from octaskly.errors import OctasklyError
from octaskly.mesh.links.handshake_limits import build_handshake_limiter
from octaskly.mesh.links.tcp import connect, tune_socket
from octaskly.system.pending_handshakes import HandshakeLimiter, MemberAddresses

EXCHANGE_S: Final = 10.0  #: timeout for all messages between two programs
ACCEPT_PAUSE_S: Final = 0.1  #: after a failed accept, usually for lack of descriptors


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
                raise ConnectionResetError("the other side closed the connection")
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
    try:
        async with asyncio.TaskGroup() as tasks:
            for listener in listeners:
                accepting = _accept(handlers or tasks, listener, limiter, handler)
                tasks.create_task(accepting)
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


async def _accept(
    tasks: asyncio.TaskGroup,
    listener: socket.socket,
    limiter: HandshakeLimiter[socket.socket],
    handler: ConnectionHandler,
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, name = await loop.sock_accept(listener)
        except OSError:
            await asyncio.sleep(ACCEPT_PAUSE_S)
            continue
        host = str(name[0])
        if not limiter.admit(connection, host, str(connection.getsockname()[0])):
            connection.close()
            continue
        tune_socket(connection)
        connection.setblocking(False)  # noqa: FBT003  no keyword there
        run = _run_handler(Conversation(connection, host), handler)
        tasks.create_task(run).add_done_callback(
            partial(_release, limiter=limiter, connection=connection)
        )


async def _run_handler(conversation: Conversation, handler: ConnectionHandler) -> None:
    try:
        with contextlib.suppress(OSError, OctasklyError):
            async with asyncio.timeout(EXCHANGE_S):
                await handler(conversation)
    finally:
        conversation.close_unless_detached()


def _release(
    _: asyncio.Task[None],
    *,
    limiter: HandshakeLimiter[socket.socket],
    connection: socket.socket,
) -> None:
    limiter.release(connection)
