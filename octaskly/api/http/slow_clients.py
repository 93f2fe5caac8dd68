"""Buffer limits and stall timeouts of connections.

A client may stop reading, so both its unsent bytes and the wait for it are bounded. The
limits on headers are options of aiohttp, which `api.server.server` sets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio import constants
from asyncio.sslproto import SSLProtocol
from collections.abc import Iterator
from typing import Final

from octaskly.system.tls_transport import LONG_READ_BYTES, RECORD_BYTES, TlsTransport

WRITE_BUFFER_BYTES: Final = 16 << 10  #: unsent bytes for one client, at each layer
KERNEL_UNSENT_BYTES: Final = 128 << 10  #: in the kernel, beyond bytes in flight
READ_BYTES: Final = RECORD_BYTES // 2  #: aiohttp's client pauses at twice this size


def shrink_tls_buffers() -> None:
    """Limit the receive buffers of TLS connections in this process to one record.

    By default, asyncio keeps a buffer of 256 KiB for each connection, and as much again
    while the application does not read. asyncio has no option for it, and aiohttp's
    client offers no place to set one on its connections.
    """
    SSLProtocol.max_size = RECORD_BYTES
    vars(constants)["FLOW_CONTROL_HIGH_WATER_SSL_READ"] = RECORD_BYTES >> 10


@contextlib.contextmanager
def long_reads(transport: asyncio.BaseTransport | None) -> Iterator[None]:
    """Read a connection in large parts while a long body arrives.

    Each read costs the same in Python. Connections to the LAN API have a setting for
    it. For those to other nodes, asyncio's TLS has none, but uses a longer buffer if it
    gets one. `max_size` stays as it is: asyncio allocates so many bytes for each
    record.
    """
    if isinstance(transport, TlsTransport):
        transport.read_bytes = LONG_READ_BYTES
        try:
            yield
        finally:
            transport.read_bytes = RECORD_BYTES
        return
    protocol: SSLProtocol | None = getattr(transport, "_ssl_protocol", None)
    if protocol is None:
        yield
        return
    _set_buffer(protocol, LONG_READ_BYTES)
    try:
        yield
    finally:
        _set_buffer(protocol, RECORD_BYTES)


def _set_buffer(protocol: SSLProtocol, size_bytes: int) -> None:
    buffer = bytearray(size_bytes)
    vars(protocol).update(_ssl_buffer=buffer, _ssl_buffer_view=memoryview(buffer))


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
