"""Ways in which a stranger abandons a TLS handshake, and what is left of it."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from octaskly.system.tls_transport import TlsTransport

ENDINGS: Final = ("junk", "hello and junk", "hello and end", "reset", "no certificate")


def client_hello() -> bytes:
    """Return the first message of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = _stranger().wrap_bio(incoming, outgoing, server_hostname="node.test")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def abandon(host: str, port: int, ending: str, source: str | None = None) -> None:
    """Connect, leave the handshake in this way, and read until the end."""
    local = None if source is None else (source, 0)
    with suppress(OSError):
        if ending == "no certificate":
            reader, writer = await asyncio.open_connection(
                host, port, ssl=_stranger(), server_hostname="", local_addr=local
            )
        else:
            reader, writer = await asyncio.open_connection(host, port, local_addr=local)
            if "hello" in ending:
                writer.write(client_hello())
                await reader.readexactly(1)  # The node has answered: its state exists.
            if "junk" in ending:
                writer.write(b"x" * 64)
        if ending == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
            writer.transport.abort()
        elif ending == "hello and end":
            writer.write_eof()
        try:
            while await reader.read(65536):
                pass
        finally:
            writer.transport.abort()


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect once, then not while the block runs: cycles stay."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def tls_object_count() -> int:
    """Return how many accepted TLS connections this process has in memory."""
    return sum(isinstance(each, TlsTransport) for each in gc.get_objects())


def _stranger() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
