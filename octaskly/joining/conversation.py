"""Connections of pairings: messages of fixed sizes between machines that are strangers.

Who connects is bounded in number and time, in all and for each address, and not a byte
more is read than the next message has.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final

from octaskly.core.model.ids import Address
from octaskly.errors import OctasklyError
from octaskly.mesh.links.limits import HandshakeLimiter, PendingHandshake
from octaskly.mesh.links.tcp import connect, tune_socket

EXCHANGE_S: Final = 10.0  #: for all messages between two programs
ACCEPT_PAUSE_S: Final = 0.1  #: after an accept that failed, for want of descriptors


class Conversation:
    """One connection of a pairing."""

    def __init__(self, connection: socket.socket, host: str) -> None:
        self.host = host  #: address of the other side
        self._connection = connection
        self._is_detached = False

    async def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            OSError: the connection is lost.
        """
        await asyncio.get_running_loop().sock_sendall(self._connection, message)

    async def receive(self, size_bytes: int) -> bytes:
        """Return the next message, which has that size.

        Raises:
            OSError: the connection is lost.
        """
        loop = asyncio.get_running_loop()
        message = bytearray()
        while len(message) < size_bytes:
            missing = size_bytes - len(message)
            chunk = await loop.sock_recv(self._connection, missing)
            if not chunk:
                raise ConnectionResetError("the other side hung up")
            message += chunk
        return bytes(message)

    def is_closed_by_peer(self) -> bool:
        """Whether the other side has hung up."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def detach(self) -> None:
        """Go on once the welcome is over; whoever has it then closes it."""
        self._is_detached = True

    def close_unless_detached(self) -> None:
        """Hang up unless it was kept."""
        if not self._is_detached:
            self.close()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


ConnectionHandler = Callable[[Conversation], Awaitable[None]]
"""Leads a conversation with a stranger; may raise OSError and OctasklyError."""


async def serve_connections(
    sockets: Iterable[socket.socket], handler: ConnectionHandler
) -> None:
    """Welcome who connects to these bound sockets, until cancelled; then close them."""
    strangers = HandshakeLimiter()
    listeners = list(sockets)
    try:
        async with asyncio.TaskGroup() as tasks:
            for listener in listeners:
                tasks.create_task(_accept(tasks, listener, strangers, handler))
    finally:
        for listener in listeners:
            listener.close()


async def connect_first(addresses: Sequence[Address]) -> Conversation:
    """Return a connection to the first of these addresses that answers.

    Raises:
        OSError: none does.
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
    limiter: HandshakeLimiter,
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
        place = limiter.admit_connection(connection, host)
        if place is None:
            connection.close()
            continue
        tune_socket(connection)
        connection.setblocking(False)  # noqa: FBT003  no keyword there
        talk = _run_handler(Conversation(connection, host), handler)
        tasks.create_task(talk).add_done_callback(
            partial(_release_handshake, limiter=limiter, handshake=place)
        )


async def _run_handler(conversation: Conversation, handler: ConnectionHandler) -> None:
    try:
        with contextlib.suppress(OSError, OctasklyError):
            async with asyncio.timeout(EXCHANGE_S):
                await handler(conversation)
    finally:
        conversation.close_unless_detached()


def _release_handshake(
    _: asyncio.Task[None], *, limiter: HandshakeLimiter, handshake: PendingHandshake
) -> None:
    limiter.release_handshake(handshake)
