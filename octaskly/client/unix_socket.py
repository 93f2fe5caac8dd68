"""Connections to the UNIX socket of an agent, also by a path that is too long."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

CONNECT_S_MAX = 5.0  #: to any node, also over TCP
CONNECT_RETRY_S = 0.01  #: delay between attempts while the accept queue is full
SOCKET_PATH_BYTES_MAX = 107  #: sizeof(sun_path) - 1


def connect_unix(path: Path, timeout_s: float = CONNECT_S_MAX) -> socket.socket:
    """Connect to a socket file, even if its path exceeds `sun_path`.

    Raises:
        OSError: no process listens, this user may not use the socket, or the
            connection was not accepted within `timeout_s`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            _connect_with_retries(sock, str(path), timeout_s)
            return sock
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            address = f"/proc/self/fd/{folder}/{path.name}"
            _connect_with_retries(sock, address, timeout_s)
        finally:
            os.close(folder)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_with_retries(sock: socket.socket, address: str, timeout_s: float) -> None:
    """Connect, and retry while the accept queue of a busy node is full.

    TCP retries in the kernel; a Unix socket returns EAGAIN.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return sock.connect(address)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(CONNECT_RETRY_S)
