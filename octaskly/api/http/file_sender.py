"""Files and other long bodies: in large parts, to few nodes at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Final

from aiohttp import StreamReader, web

from octaskly.api.problems import Problem
from octaskly.core.model.ids import NodeId
from octaskly.errors import OutputNotFound
from octaskly.system.tls_transport import TlsTransport

READ_BYTES: Final = 256 << 10  #: of a file at a time; it stays in the processor's cache
SENT_BYTES: Final = 1 << 20
"""Bytes per write. Each write costs the same in Python, and a TLS record has 16 KiB."""

LONG_BODY_BYTES: Final = 8 << 20
"""Of a longer rest of a body, the parser sees nothing; the connection closes."""

FETCHERS_MAX: Final = 4  #: other members that this node sends files at a time
VISITOR_FETCHES_MAX: Final = 16  #: the same for visitors
FETCHES_PER_VISITOR_MAX: Final = 2
WAITING_MAX: Final = 64
WAIT_S: Final = 10.0  #: shorter than the fetcher's timeout


class StreamBroken(ConnectionError):
    """A body ended early; the client sees a broken connection."""


class TransferSlots:
    """Lets few fetch files at a time; others wait for their turn, in order."""

    def __init__(self, count: int, wait_s: float = WAIT_S) -> None:
        self._free = asyncio.Semaphore(count)
        self._wait_s = wait_s
        self._waiting_count = 0
        self.user_count = 0  #: that have a slot or wait for one

    @contextlib.asynccontextmanager
    async def use_slot(self) -> AsyncIterator[None]:
        """Use a slot for the length of the block.

        Raises:
            Problem: 503, there was none in time.
        """
        if self._waiting_count >= WAITING_MAX:
            raise busy_problem()
        self.user_count += 1
        try:
            await self._acquire()
            try:
                yield
            finally:
                self._free.release()
        finally:
            self.user_count -= 1

    async def _acquire(self) -> None:
        self._waiting_count += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise busy_problem() from None
        finally:
            self._waiting_count -= 1


class Transfers:
    """The slots of members, and others of visitors, which may read slowly on purpose.

    However slowly visitors read, they take no slot of a member. One visitor has few of
    those of all visitors.
    """

    def __init__(self) -> None:
        self._of_members = TransferSlots(FETCHERS_MAX)
        # A visitor waits twice: for one of its own slots, and for one of all visitors.
        self._of_visitors = TransferSlots(VISITOR_FETCHES_MAX, WAIT_S / 2)
        self._of_one: dict[NodeId, TransferSlots] = {}  #: while it uses or awaits one

    @contextlib.asynccontextmanager
    async def use_slot(self, visitor: NodeId | None = None) -> AsyncIterator[None]:
        """Use a slot for the length of the block.

        Raises:
            Problem: 503, there was none in time.
        """
        if visitor is None:
            async with self._of_members.use_slot():
                yield
            return
        new = TransferSlots(FETCHES_PER_VISITOR_MAX, WAIT_S / 2)
        own = self._of_one.setdefault(visitor, new)
        try:
            async with own.use_slot(), self._of_visitors.use_slot():
                yield
        finally:
            if not own.user_count:
                self._of_one.pop(visitor, None)


def busy_problem() -> Problem:
    """Return the response by which a node asks later, or another node."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Busy",
        hint="this node cannot send this file now; try again, or ask another node",
        headers={"Retry-After": "1"},
    )


async def send_open_file(
    request: web.BaseRequest, answer: web.StreamResponse, fd: int, start: int, end: int
) -> None:
    """Send a part of an open file as the body of a response that was prepared.

    Raises:
        StreamBroken: the client is gone, or the file cannot be read.
    """
    transport = _transport_of(request)
    with _breaking(transport):
        if isinstance(transport, TlsTransport):
            await transport.send_from(_FilePart(fd, start, end).read_next)
        else:
            loop = asyncio.get_running_loop()
            with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
                await loop.sendfile(transport, file, start, end - start)
        await answer.write_eof()


def part_bytes(request: web.BaseRequest) -> int:
    """Return the length of the parts in which a body should be read for `send_chunks`.

    Without TLS, each connection that is read slowly holds one of them in memory.
    """
    return SENT_BYTES if isinstance(request.transport, TlsTransport) else READ_BYTES


async def send_chunks(
    request: web.BaseRequest,
    answer: web.StreamResponse,
    chunks: Iterator[bytes],
    wait_for_turn: Callable[[], Awaitable[None]],
) -> None:
    """Send the body of a response that was prepared; `chunks` is read in threads.

    Raises:
        StreamBroken: the client is gone, or the bytes cannot be read.
    """
    transport = _transport_of(request)
    with _breaking(transport):
        is_plain = answer.content_length is not None and not answer.compression
        if is_plain and isinstance(transport, TlsTransport):
            await transport.send_from(partial(next, chunks, b""))
        else:
            loop = asyncio.get_running_loop()
            # A client may leave with the last byte, which cancels this. `chunks` is
            # read to its end even so, for what it does there.
            while chunk := await asyncio.shield(
                loop.run_in_executor(None, next, chunks, b"")
            ):
                await wait_for_turn()
                await answer.write(chunk)
        await answer.write_eof()


def read_parsed(content: StreamReader) -> list[bytes]:
    """Return what the HTTP parser has passed on of a body, without waiting.

    If nothing is awaited afterwards, the rest can be taken from the connection: the
    parser takes more time for it than TLS, and the event loop does the work.
    """
    parsed = []
    while data := content.read_nowait():
        parsed.append(data)
    return parsed


def _transport_of(request: web.BaseRequest) -> asyncio.Transport:
    if request.transport is None:
        raise StreamBroken("the client is gone")
    return request.transport


@contextlib.contextmanager
def _breaking(transport: asyncio.Transport) -> Iterator[None]:
    """Break the connection if the block cannot send all of a body."""
    try:
        yield
    except (OSError, OutputNotFound) as error:
        transport.abort()
        raise StreamBroken(str(error)) from None


class _FilePart:
    """A part of an open file.

    Args:
        fd: The file.
        start: Where the part begins.
        end: Where it ends.
    """

    def __init__(self, fd: int, start: int, end: int) -> None:
        self._fd, self._next, self._end = fd, start, end
        self._buffer = memoryview(bytearray(min(READ_BYTES, end - start)))

    def read_next(self) -> memoryview:
        """Return the next bytes, which are valid until the next call."""
        wanted = self._buffer[: self._end - self._next]
        count = os.preadv(self._fd, [wanted], self._next) if wanted else 0
        if wanted and not count:
            raise OSError("the file became shorter")
        self._next += count
        return self._buffer[:count]
