"""Long bodies that a thread moves by TLS connections which do not block.

A thread moves them until the other end makes it wait, or for the length of a turn.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from octaskly.system.tls_errors import call_tls

LONG_READ_BYTES: Final = 256 << 10  #: for a connection by which a long body arrives
WINDOW_BYTES: Final = 2 << 20  #: that may arrive before it is read
PART_BYTES: Final = 1 << 20  #: of a body that arrives; so much is in memory
TURN_S: Final = 0.05  #: of a body, until the thread is free for others
WAIT_MS: Final = 1  #: for the other end, in a thread; longer waits take none

NextData = Callable[[], bytes | memoryview]
"""Returns the next data of a body, empty at its end. It may block.

The data must not change until the next call.
"""

TakeData = Callable[[memoryview], None]
"""Takes the next data of a body, which stays as it is until the next call.

It may block.
"""


class SentBody:
    """A body on its way to a connection that does not block.

    Args:
        tls: The connection.
        next_data: Returns the next data of the body.
        clock: Returns a monotonic time.
    """

    def __init__(
        self, tls: ssl.SSLSocket, next_data: NextData, clock: Callable[[], float]
    ) -> None:
        self._tls, self._next_data, self._clock = tls, next_data, clock
        #: Not sent yet; the TLS library insists on the same bytes again.
        self._unsent = memoryview(b"")
        self.is_sent = False
        self.is_blocked = False  #: the other end reads slowly
        self.is_starved = False  #: the body has no data yet

    def send_some(self) -> None:
        """Send what the other end takes until a turn is over. Blocks."""
        end_s = self._clock() + TURN_S
        while self._clock() < end_s:
            try:
                if not self._unsent:
                    self._unsent = memoryview(self._next_data())
                    self.is_sent = not self._unsent
                    if self.is_sent:
                        return
                count = call_tls(self._tls.send, self._unsent)
            except ssl.SSLWantReadError:
                self.is_starved = True
                return
            except ssl.SSLWantWriteError:
                if not _is_writable_soon(self._tls):
                    self.is_blocked = True
                    return
            else:
                self._unsent = self._unsent[count:]


class RelayedBody:
    """A body that arrives by a connection that does not block, and leaves by another.

    Args:
        tls: The connection by which it arrives.
        first: What has arrived already.
        size_bytes: Size of the rest.
    """

    def __init__(
        self, tls: ssl.SSLSocket, first: Iterable[bytes], size_bytes: int
    ) -> None:
        self._tls = tls
        self._first = deque(first)
        self._left_bytes = size_bytes  #: not read
        widen_window(tls)
        self._buffer = memoryview(bytearray(LONG_READ_BYTES))

    def read_some(self) -> memoryview:
        """Return the next data, which is valid until the next call. Blocks a moment.

        Raises:
            SSLWantReadError: no data has arrived.
            ConnectionError: the connection ended.
        """
        if self._first:
            return memoryview(self._first.popleft())
        wanted = self._buffer[: self._left_bytes]
        if not wanted:
            return wanted
        try:
            count = _receive(self._tls, wanted)
        except ssl.SSLWantReadError:
            if not _is_readable_soon(self._tls):
                raise
            count = _receive(self._tls, wanted)
        self._left_bytes -= count
        return wanted[:count]


class StoredBody:
    """A body that arrives by a connection that does not block, and is stored.

    Args:
        tls: The connection.
        take: Takes the data of the body.
        size_bytes: Size of the body.
        clock: Returns a monotonic time.
    """

    def __init__(
        self,
        tls: ssl.SSLSocket,
        take: TakeData,
        size_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._tls, self._take, self._clock = tls, take, clock
        self._left_bytes = size_bytes  #: not taken
        widen_window(tls)
        # What was taken stays as it is while the next part arrives.
        self._buffer, self._other_buffer = (
            memoryview(bytearray(min(PART_BYTES, size_bytes))) for _ in range(2)
        )
        self._filled_bytes = 0
        self.part_count = 0  #: parts that were taken
        self.is_blocked = False  #: the other end sends slowly

    @property
    def is_whole(self) -> bool:
        """Return True if all of it was taken."""
        return not self._left_bytes

    def receive_some(self) -> None:
        """Take what arrives until a turn is over. Blocks.

        Raises:
            ConnectionError: the connection ended.
        """
        end_s = self._clock() + TURN_S
        while self._clock() < end_s:
            part = self._buffer[: self._left_bytes]
            while self._filled_bytes < len(part):
                rest = part[self._filled_bytes :][:LONG_READ_BYTES]
                try:
                    self._filled_bytes += _receive(self._tls, rest)
                except ssl.SSLWantReadError:
                    if self._clock() >= end_s or not _is_readable_soon(self._tls):
                        self.is_blocked = True
                        return
            self._take(part)
            self._buffer, self._other_buffer = self._other_buffer, self._buffer
            self._left_bytes -= len(part)
            self._filled_bytes = 0
            self.part_count += 1
            if self.is_whole:
                return


def _receive(tls: ssl.SSLSocket, buffer: memoryview) -> int:
    """Fill a buffer with what has arrived, one byte at least; return its size.

    Raises:
        SSLWantReadError: nothing has arrived.
        ConnectionError: the connection ended.
    """
    filled = 0

    def read_records() -> None:
        # Each call reads one record, so this loop has few calls of Python functions.
        nonlocal filled
        while filled < len(buffer):
            count = tls.recv_into(buffer[filled:], len(buffer) - filled)
            if not count:
                return
            filled += count

    try:
        call_tls(read_records)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        if not filled:
            raise ssl.SSLWantReadError from None
    except OSError as error:
        raise ConnectionResetError(str(error)) from None
    if not filled:
        raise ConnectionResetError("the other end is gone")
    return filled


def widen_window(connection: socket.socket) -> None:
    """Let the other end send `WINDOW_BYTES` before this one has read any of it.

    Linux makes the buffer of a connection large enough for what is read in a round
    trip. In a LAN, that is much less than arrives while a reader waits for a processor,
    so the sender would wait, too.

    Source: a buffer has room for SO_RCVLOWAT, see `tcp_set_rcvlowat` in Linux; that of
    SO_RCVBUF has no more than `net.core.rmem_max`, which is a tenth of this.
    """
    for size_bytes in (WINDOW_BYTES, 1):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)


def _is_readable_soon(tls: ssl.SSLSocket) -> bool:
    """Return True if the other end sends in a moment; blocks until then."""
    readable = select.poll()
    readable.register(tls, select.POLLIN)
    return bool(readable.poll(WAIT_MS))


def _is_writable_soon(tls: ssl.SSLSocket) -> bool:
    """Return True if the other end reads in a moment; blocks until then."""
    writable = select.poll()
    writable.register(tls, select.POLLOUT)
    return bool(writable.poll(WAIT_MS))
