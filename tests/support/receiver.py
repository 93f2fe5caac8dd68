"""A receiver of webhooks on loopback, with good or hostile behaviour."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.agents import WAIT_S_MAX

Behave = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    """The requests posted to it, and its answers."""

    port: int = 0
    answer: bytes = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    behave: Behave | None = None  #: called instead of an answer
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.got]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S_MAX):
            while len(self.got) < count:  # noqa: ASYNC110  another task adds to it
                await asyncio.sleep(0.005)

    async def handle(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.rstrip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (x.partition(": ") for x in lines)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.got.append((first, headers, body))
            if self.behave is not None:
                await self.behave(writer)
            writer.write(self.answer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiver(
    listener: socket.socket | None = None, **options: Any
) -> AsyncIterator[Receiver]:
    """Listen until the block ends, on the given socket if there is one."""
    made = Receiver(**options)
    if listener is None:
        server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    else:
        server = await asyncio.start_server(made.handle, sock=listener)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def is_signed(headers: dict[str, str], body: bytes, key: bytes) -> bool:
    """Return True if a receiver would accept a message's signature."""
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return headers["webhook-signature"] == f"v1,{mac}"
