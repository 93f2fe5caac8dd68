"""Accepts connections at one port, a bounded number in each turn of the event loop.

During a flood, connections are accepted and refused by the dozen: if they filled the
queue of the kernel, it would drop connections of others, too. Between two dozens the
event loop serves the connections that are open.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

BACKLOG: Final = 4096  #: what a flood brings while the event loop is busy for a while
ACCEPT_PAUSE_S: Final = 0.1  #: after a failed accept, usually for lack of descriptors

OnConnection = Callable[[socket.socket, Any], None]
"""Takes a new connection and the address of its other end, and owns the connection."""


async def accept_connections(
    listener: socket.socket, on_connection: OnConnection, *, per_turn_max: int
) -> None:
    """Accept connections on a listener that does not block, until cancelled.

    Args:
        listener: The listener.
        on_connection: Called with each connection.
        per_turn_max: Number of connections in one turn of the event loop.
    """
    loop = asyncio.get_running_loop()
    while True:
        # While connections wait, `sock_accept` returns without a turn of the loop.
        for _ in range(per_turn_max):
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            on_connection(connection, address)
        await asyncio.sleep(0)


def stop_accepting(task: asyncio.Task[None], listener: socket.socket) -> None:
    """End a task that accepts connections; its listener is closed after that.

    Until then, the event loop watches the descriptor, which a new socket could get.
    """
    task.add_done_callback(lambda _: listener.close())
    task.cancel()
