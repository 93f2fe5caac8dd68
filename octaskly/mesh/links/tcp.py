"""TCP connections between nodes: connecting, socket options and peer addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import suppress
from typing import Final

from octaskly.core.model.ids import Address

CONNECT_S: Final = 1.0  #: timeout per address
USER_TIMEOUT_MS: Final = 5000  #: unacknowledged bytes end the connection after this
KEEPALIVE_IDLE_S: Final = 5
KEEPALIVE_INTERVAL_S: Final = 1
KEEPALIVE_COUNT: Final = 3


async def connect(address: Address) -> socket.socket:
    """Return a TCP connection to an address, with the options of `tune_socket`.

    Raises:
        ConnectionRefusedError: No process listens there.
        OSError: The address is invalid, or there is no answer in time.
    """
    try:
        found = socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except (ValueError, OverflowError) as error:
        raise OSError(f"{address.host[:64]!r} is not an IP address") from error
    family, kind, protocol, _, place = found[0]
    if place[1] != address.port:
        raise OSError(f"{address.port} is not a port")
    connection = socket.socket(family, kind, protocol)
    try:
        connection.settimeout(0)
        tune_socket(connection)
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().sock_connect(connection, place)
    except BaseException:
        connection.close()
        raise
    return connection


def tune_socket(connection: socket.socket) -> None:
    """Send small frames at once, and detect a silent peer.

    Errors are ignored: the system may lack an option, and heartbeats also detect
    silence.
    """
    options = (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    )
    with suppress(OSError):
        for level, option, value in options:
            connection.setsockopt(level, option, value)


def dialable_peer_address(name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """Return the address of a peer in a form that can be dialled, with its scope."""
    host, port, *rest = name
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return Address(str(ip.ipv4_mapped), port)
        if ip.is_link_local and rest[1]:
            with suppress(OSError):
                return Address(f"{ip}%{socket.if_indextoname(rest[1])}", port)
    return Address(str(ip), port)
