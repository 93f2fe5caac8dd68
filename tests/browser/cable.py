"""A cable between a browser and an agent, which a test can cut and repair."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

PIECE_BYTES = 1 << 16


class Cable:
    """Relays connections from a port of its own to another one."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._ends: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0

    async def mend(self) -> None:
        """Let connections through, at the same port as before."""
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """End every connection, and accept no new one."""
        assert self._server is not None
        self._server.close()
        for end in self._ends:
            end.transport.abort()
        await asyncio.sleep(0)

    def hold(self) -> None:
        """Relay nothing from now on, and close nothing, so neither end notices."""
        self._flows.clear()

    def let_go(self) -> None:
        """Relay the held data, and all that arrives."""
        self._flows.set()

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            far = await asyncio.open_connection("127.0.0.1", self._target)
            ends = {writer, far[1]}
            self._ends |= ends
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._relay(reader, far[1]))
                    tasks.create_task(self._relay(far[0], writer))
            finally:
                self._ends -= ends
        writer.transport.abort()

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def cable(port: int) -> AsyncIterator[Cable]:
    """Open a relay to a port for the length of a block."""
    laid = Cable(port)
    await laid.mend()
    try:
        yield laid
    finally:
        await laid.cut()
