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
from octaskly.mesh.links.limits import Place, Strangers
from octaskly.mesh.links.tcp import connect, tune

EXCHANGE_S: Final = 10.0  #: for all messages between two programs
ACCEPT_PAUSE_S: Final = 0.1  #: after an accept that failed, for want of descriptors


class Conversation:
    """One connection of a pairing."""

    def __init__(self, connection: socket.socket, host: str) -> None:
        self.host = host  #: address of the other side
        self._connection = connection
        self._is_kept = False

    async def say(self, message: bytes) -> None:
        """Send a message.

        Raises:
            OSError: the connection is lost.
        """
        await asyncio.get_running_loop().sock_sendall(self._connection, message)

    async def hear(self, size_bytes: int) -> bytes:
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

    def is_over(self) -> bool:
        """Whether the other side has hung up."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def keep(self) -> None:
        """Go on once the welcome is over; whoever has it then closes it."""
        self._is_kept = True

    def end(self) -> None:
        """Hang up unless it was kept."""
        if not self._is_kept:
            self.close()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


Welcome = Callable[[Conversation], Awaitable[None]]
"""Leads a conversation with a stranger; may raise OSError and OctasklyError."""


async def listen(sockets: Iterable[socket.socket], welcome: Welcome) -> None:
    """Welcome who connects to these bound sockets, until cancelled; then close them."""
    strangers = Strangers()
    listeners = list(sockets)
    try:
        async with asyncio.TaskGroup() as tasks:
            for listener in listeners:
                tasks.create_task(_accept(tasks, listener, strangers, welcome))
    finally:
        for listener in listeners:
            listener.close()


async def call(addresses: Sequence[Address]) -> Conversation:
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
    strangers: Strangers,
    welcome: Welcome,
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, name = await loop.sock_accept(listener)
        except OSError:
            await asyncio.sleep(ACCEPT_PAUSE_S)
            continue
        host = str(name[0])
        place = strangers.enter(connection, host)
        if place is None:
            connection.close()
            continue
        tune(connection)
        connection.setblocking(False)  # noqa: FBT003  no keyword there
        talk = _talk(Conversation(connection, host), welcome)
        tasks.create_task(talk).add_done_callback(
            partial(_left, strangers=strangers, place=place)
        )


async def _talk(conversation: Conversation, welcome: Welcome) -> None:
    try:
        with contextlib.suppress(OSError, OctasklyError):
            async with asyncio.timeout(EXCHANGE_S):
                await welcome(conversation)
    finally:
        conversation.end()


def _left(_: asyncio.Task[None], *, strangers: Strangers, place: Place) -> None:
    strangers.leave(place)
