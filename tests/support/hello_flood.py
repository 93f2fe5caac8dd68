"""Strangers that start TLS handshakes by the thousand, and finish none.

Each connection sends a ClientHello from one of 150 addresses of this machine. It is
left open while 400 newer ones arrive, and then ends in one of three ways: junk, the end
of the stream, or a reset.

usage: python -m tests.support.hello_flood RATE SECONDS NETWORK HOST PORT...
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import sys
import time
from collections import deque
from typing import Final

from tests.support.abandoned import client_hello

ADDRESSES: Final = 150
FIRST_ADDRESS: Final = 100
OPEN_MAX: Final = 400
TICK_S: Final = 0.005
_RESET: Final = struct.pack("ii", 1, 0)
_BIND_ADDRESS_NO_PORT: Final = 24  #: ip(7)


def main() -> None:
    """Flood the ports, and print how many connections were opened."""
    rate, seconds, network, host = (
        int(sys.argv[1]),
        float(sys.argv[2]),
        *sys.argv[3:5],
    )
    targets = itertools.cycle((host, int(port)) for port in sys.argv[5:])
    hello = client_hello()
    opened, connections = 0, deque[socket.socket]()
    began_s = time.monotonic()
    while (elapsed_s := time.monotonic() - began_s) < seconds:
        while opened < elapsed_s * rate:
            source = f"{network}.{FIRST_ADDRESS + opened % ADDRESSES}"
            connections.append(_begin(source, next(targets), hello))
            opened += 1
            if len(connections) > OPEN_MAX:
                _end(connections.popleft(), opened % 3)
        time.sleep(TICK_S)
    print(opened)


def _begin(source: str, target: tuple[str, int], hello: bytes) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    connection.bind((source, 0))
    with contextlib.suppress(BlockingIOError):
        connection.connect(target)
    with contextlib.suppress(OSError):  # Not connected yet: it stays silent.
        connection.send(hello)
    return connection


def _end(connection: socket.socket, how: int) -> None:
    with connection, contextlib.suppress(OSError):
        if how == 0:
            connection.send(b"x" * 64)
        elif how == 1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


if __name__ == "__main__":
    main()
