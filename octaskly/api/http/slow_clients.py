"""Buffer limits and stall timeouts of connections.

A client may stop reading, so both its unsent bytes and the wait for it are bounded. The
limits on headers are options of aiohttp, which `api.server.server` sets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final

from octaskly.system.long_bodies import LONG_READ_BYTES
from octaskly.system.tls_transport import RECORD_BYTES, TlsTransport

WRITE_BUFFER_BYTES: Final = 16 << 10  #: unsent bytes for one client, at each layer
KERNEL_UNSENT_BYTES: Final = 128 << 10  #: in the kernel, beyond bytes in flight
READ_BYTES: Final = RECORD_BYTES // 2  #: aiohttp's client pauses at twice this size


@contextlib.contextmanager
def long_reads(transport: asyncio.BaseTransport | None) -> Iterator[None]:
    """Read a connection in large parts while a long body arrives.

    Each read costs the same in Python. Only TLS connections have a setting for it.
    """
    if not isinstance(transport, TlsTransport):
        yield
        return
    transport.read_bytes = LONG_READ_BYTES
    try:
        yield
    finally:
        transport.read_bytes = RECORD_BYTES


class StallTimer:
    """Aborts a connection whose other end reads nothing for the timeout."""

    __slots__ = ("_handle", "_timeout_s", "_transport")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._handle: asyncio.TimerHandle | None = None

    def attach(self, transport: asyncio.BaseTransport) -> None:
        """Set the buffer limits and TCP timeouts of a connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            # The kernel sends files by itself, so their bytes do not wait in this
            # process. TCP_USER_TIMEOUT covers a closed window, too: tcp(7). Without the
            # limit on unsent bytes, the kernel would hold up to 4 MB for a client that
            # reads nothing.
            timeout_ms = int(self._timeout_s * 1000)
            with contextlib.suppress(OSError):
                connection.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms
                )
                connection.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_UNSENT_BYTES
                )

    def start(self) -> None:
        """Start the timer: the buffers are full."""
        if self._transport is not None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(self._timeout_s, self._transport.abort)

    def stop(self) -> None:
        """Stop the timer: the other end reads, or the connection is gone."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
