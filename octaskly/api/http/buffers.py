"""How much waits in memory for a connection, and for how long.

Little, and not for ever, since clients need not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio import constants
from asyncio.sslproto import SSLProtocol
from typing import Final

WRITE_BUFFER_BYTES: Final = 16 << 10  #: that may wait for one client, at each layer
KERNEL_UNSENT_BYTES: Final = (
    128 << 10
)  #: that the kernel may hold beyond what is on its way
RECORD_BYTES: Final = 16 << 10  #: a record of TLS, which comes whole or not at all
READ_BYTES: Final = RECORD_BYTES // 2  #: the HTTP client stops reading at the double


def shrink_tls_buffers() -> None:
    """Have TLS connections of this process receive no more than a record at a time.

    By itself asyncio keeps a buffer of a quarter of a megabyte for each, and as much
    again for who does not read. There is no option for it, and for a connection that
    the HTTP client makes there is no place to give one either.
    """
    SSLProtocol.max_size = RECORD_BYTES
    vars(constants)["FLOW_CONTROL_HIGH_WATER_SSL_READ"] = RECORD_BYTES >> 10


class StallTimer:
    """Cuts a connection whose other end takes nothing for so long."""

    __slots__ = ("_handle", "_timeout_s", "_transport")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._handle: asyncio.TimerHandle | None = None

    def attach(self, transport: asyncio.BaseTransport) -> None:
        """Bound what waits for this connection, and for how long."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            # Of files, which the kernel sends by itself, nothing waits here. It counts
            # a closed window, too: tcp(7). Without a bound it would take up to 4 MB
            # for who reads nothing.
            timeout_ms = int(self._timeout_s * 1000)
            with contextlib.suppress(OSError):
                connection.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms
                )
                connection.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_UNSENT_BYTES
                )

    def start(self) -> None:
        """Note that what waits is more than may wait."""
        if self._transport is not None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(self._timeout_s, self._transport.abort)

    def stop(self) -> None:
        """Note that something was read, or that the connection is gone."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
