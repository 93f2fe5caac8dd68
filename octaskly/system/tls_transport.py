"""A TLS connection that reads and writes its socket without buffers in between.

asyncio's own TLS passes every byte through two buffers in memory, which each connection
keeps. For a file of a gigabyte, that takes several times the processor time of the
encryption itself; for a stranger that connects and is silent, 300 kB of memory.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final, Protocol

from octaskly.system.long_bodies import (
    LONG_READ_BYTES,
    NextData,
    RelayedBody,
    SentBody,
    StoredBody,
    TakeData,
)
from octaskly.system.tls_errors import call_tls, clear_tls_errors

RECORD_BYTES: Final = 16 << 10  #: a TLS record, which is decrypted as a whole
WRITE_BUFFER_BYTES: Final = 64 << 10
SHUTDOWN_S: Final = 1.0  #: for the other end to close its side

# All connections are read by the event loop, one after the other.
_read_buffer = memoryview(bytearray(LONG_READ_BYTES))

OnHandshake = Callable[[Exception | None], None]
"""Called once the handshake has ended, with the error if it failed."""


AwaitData = Callable[[], Awaitable[None]]
"""Waits for the next data of a body."""


class ReadEvents(Protocol):
    """Calls back what can be read; an event loop does so."""

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Call a function while a descriptor is readable; it replaces another."""

    def remove_reader(self, fd: int) -> bool:
        """Call no function for a descriptor; return True if there was one."""


class TlsTransport(asyncio.Transport):
    """One end of a TLS connection.

    Args:
        connection: A connection that does not block.
        context: The TLS context of this end.
        protocol: The protocol; it is connected once the handshake has succeeded.
        server_hostname: The name to ask a server for; None at the server's end.
        body_threads: They send and receive long bodies; None: those of the event loop.
        handshake_s: Timeout for the handshake; None if the caller has one.
        on_handshake: Called when the handshake has ended.
        reads: Tells when the connection can be read; None: the event loop.
    """

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        protocol: asyncio.Protocol,
        *,
        server_hostname: str | None = None,
        body_threads: Executor | None = None,
        handshake_s: float | None,
        on_handshake: OnHandshake,
        reads: ReadEvents | None = None,
    ) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._reads: ReadEvents = self._loop if reads is None else reads
        self._context = context
        self._body_threads = body_threads
        self._protocol: asyncio.BaseProtocol = protocol
        self._on_handshake: OnHandshake | None = on_handshake
        self.read_bytes = RECORD_BYTES  #: at most so many are passed on at a time
        self._names = connection.getsockname(), connection.getpeername()
        self._tls = context.wrap_socket(
            connection,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
        )
        self._fd = self._tls.fileno()
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._high_bytes, self._low_bytes = WRITE_BUFFER_BYTES, WRITE_BUFFER_BYTES // 4
        self._is_writing_paused = False
        self._awaits_writable = False  #: the event loop calls `_write_unsent`
        self._is_reading = False
        self._is_reading_paused = False
        self._is_closing = False
        self._is_lost = False
        self._moves_body = False  #: until its end, nothing else is read or written
        self._in_thread = False  #: a thread uses the connection
        self._ready: asyncio.Future[None] | None = None  #: the next turn of a body
        self._timer: asyncio.TimerHandle | None = None
        if handshake_s is not None:
            self._timer = self._loop.call_later(
                handshake_s,
                self._end_handshake,
                TimeoutError("the handshake is too slow"),
            )
        self._shake_hands()

    @property
    def connection(self) -> socket.socket:
        """The socket; the one that was passed in is detached."""
        return self._tls

    # -- handshake -----------------------------------------------------------------

    def _shake_hands(self) -> None:
        self._loop.remove_writer(self._fd)
        # Not `call_tls`: tried again after "this is HTTP, not TLS", it would wait.
        clear_tls_errors()
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._reads.add_reader(self._fd, self._shake_hands)
        except ssl.SSLWantWriteError:
            self._reads.remove_reader(self._fd)
            self._loop.add_writer(self._fd, self._shake_hands)
        except OSError as error:
            clear_tls_errors()
            self._end_handshake(error)
        else:
            self._end_handshake(None)

    def _end_handshake(self, error: OSError | None) -> None:
        self._stop_timer()
        self._reads.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        # The caller learns of it after `__init__`.
        assert self._on_handshake is not None
        self._loop.call_soon(self._on_handshake, error)
        self._on_handshake = None  # It may refer to this object.
        if error is not None:
            self._is_lost = self._is_closing = True
            self._tls.close()
            return
        self._loop.call_soon(self._connect_protocol)

    def _connect_protocol(self) -> None:
        self._protocol.connection_made(self)
        self._update_reader()

    # -- what asyncio asks of a transport ------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a detail of the connection; see `asyncio.BaseTransport`."""
        details: Mapping[str, Any] = {
            "socket": self._tls,
            "ssl_object": self._tls,
            "sslcontext": self._context,
            "sockname": self._names[0],
            "peername": self._names[1],
        }
        return details.get(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replace the protocol."""
        self._protocol = protocol

    def is_closing(self) -> bool:
        """Return True if the connection is closing or closed."""
        return self._is_closing

    def close(self) -> None:
        """Close the connection once what was written is sent."""
        if not self._is_closing:
            self._is_closing = True
            self._update_reader()
            if not self._unsent and not self._moves_body:
                self._start_shutdown()

    def abort(self) -> None:
        """Close the connection at once; this also ends the handshake."""
        if self._on_handshake is None:
            self._lose(None)
        else:
            self._end_handshake(ConnectionAbortedError("the handshake was aborted"))

    # -- reading -------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Return True if data is passed to the protocol."""
        return self._is_reading

    def pause_reading(self) -> None:
        """Pass no data to the protocol until `resume_reading`."""
        self._is_reading_paused = True
        self._update_reader()

    def resume_reading(self) -> None:
        """Pass data to the protocol again."""
        self._is_reading_paused = False
        self._update_reader()

    def _update_reader(self) -> None:
        is_reading = not (
            self._is_reading_paused or self._is_closing or self._moves_body
        )
        if is_reading and not self._is_reading:
            self._reads.add_reader(self._fd, self._read)
            if self._tls.pending():  # The rest of a record: no event tells of it.
                self._loop.call_soon(self._read)
        elif self._is_reading and not is_reading and not self._is_lost:
            self._reads.remove_reader(self._fd)
        self._is_reading = is_reading

    def _read(self) -> None:
        """Pass on what has arrived.

        Records are decrypted as a whole, so nothing waits inside of the TLS library,
        where the event loop would not see it.
        """
        if not self._is_reading:
            return
        filled, is_end = 0, False
        try:
            while filled + RECORD_BYTES <= self.read_bytes and not is_end:
                count = call_tls(self._tls.recv_into, _read_buffer[filled:])
                filled += count
                is_end = not count
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._lose(error)
            return
        protocol = self._protocol
        assert isinstance(protocol, asyncio.Protocol)
        if filled:
            protocol.data_received(bytes(_read_buffer[:filled]))
        if is_end and not self._is_closing and not protocol.eof_received():
            self.close()

    # -- writing -------------------------------------------------------------------

    def set_write_buffer_limits(
        self, high: int | None = None, low: int | None = None
    ) -> None:
        """Set how many unsent bytes pause the protocol, and how few resume it."""
        self._high_bytes = WRITE_BUFFER_BYTES if high is None else high
        self._low_bytes = self._high_bytes // 4 if low is None else low
        self._pause_or_resume_writing()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return how few unsent bytes resume the protocol, and how many pause it."""
        return self._low_bytes, self._high_bytes

    def get_write_buffer_size(self) -> int:
        """Return the number of unsent bytes."""
        return self._unsent_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data; what the network does not take now is sent later."""
        if self._is_closing or not data:
            return
        self._unsent.append(memoryview(data).cast("B"))
        self._unsent_bytes += len(data)
        if len(self._unsent) == 1 and not self._moves_body:
            self._write_unsent()
        else:
            self._pause_or_resume_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Send several pieces of data, in as few records as possible."""
        self.write(b"".join(list_of_data))

    def _write_unsent(self) -> None:
        try:
            while self._unsent:
                data = self._unsent[0]
                count = call_tls(self._tls.send, data)
                self._unsent_bytes -= count
                if count < len(data):
                    self._unsent[0] = data[count:]
                else:
                    self._unsent.popleft()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._awaits_writable = True
            self._loop.add_writer(self._fd, self._write_unsent)
        except OSError as error:
            self._lose(error)
            return
        else:
            if self._awaits_writable:  # To ask the event loop takes longer.
                self._awaits_writable = False
                self._loop.remove_writer(self._fd)
            self._start_turn()
            if self._is_closing:
                self._start_shutdown()
        self._pause_or_resume_writing()

    def _pause_or_resume_writing(self) -> None:
        if self._unsent_bytes > self._high_bytes:
            self._set_writing_paused(is_paused=True)
        elif self._unsent_bytes <= self._low_bytes:
            self._set_writing_paused(is_paused=False)

    def _set_writing_paused(self, *, is_paused: bool) -> None:
        if is_paused != self._is_writing_paused:
            self._is_writing_paused = is_paused
            if is_paused:
                self._protocol.pause_writing()
            else:
                self._protocol.resume_writing()

    # -- long bodies ---------------------------------------------------------------

    async def send_from(
        self, next_data: NextData, await_data: AwaitData | None = None
    ) -> None:
        """Send all that a function returns, after what was written.

        A thread calls it and encrypts what it returns, so the event loop serves others
        meanwhile.

        Args:
            next_data: Returns the data. It may raise SSLWantReadError.
            await_data: Waits until `next_data` may have more, after such an error.

        Raises:
            OSError: the connection ended. What the functions raise is passed on. In
                both cases, the connection is closed.
        """
        while self._unsent and not self._is_lost:
            await self._become_writable()
        body = SentBody(self._tls, next_data, self._loop.time)
        self._moves_body = True  # What is written meanwhile waits.
        self._update_reader()
        try:
            while not self._is_lost and not body.is_sent:
                if body.is_blocked:
                    body.is_blocked = False
                    await self._become_writable()
                elif body.is_starved and await_data is not None:
                    body.is_starved = False
                    await await_data()
                else:
                    await self._run_in_thread(body.send_some)
        except BaseException:
            self.abort()  # A client must not take a part for the whole.
            raise
        finally:
            self._moves_body = False
        self._check_connected()
        self._resume()

    async def relay_to(
        self,
        receiver: TlsTransport,
        first: Iterable[bytes],
        size_bytes: int,
        *,
        stall_s: float,
    ) -> None:
        """Send the next data that arrives here by another connection.

        A thread does it, so the event loop serves others meanwhile.

        Args:
            receiver: The other connection; what was written there is sent before.
            first: Data that has arrived already.
            size_bytes: Size of the data that follows.
            stall_s: Timeout for some data.

        Raises:
            OSError: no data arrived in time, or a connection ended. The receiver's is
                closed in any case.
        """

        async def await_data() -> None:
            self._check_connected()
            async with asyncio.timeout(stall_s):
                await self._become_readable()

        body = RelayedBody(self._tls, first, size_bytes)
        # The thread of the receiver uses this connection, too, until the end.
        self._moves_body = self._in_thread = True
        self._update_reader()
        try:
            await receiver.send_from(body.read_some, await_data)
        finally:
            self._moves_body = False
            self._end_thread()
            self._resume()

    async def receive_to(
        self,
        take: TakeData,
        size_bytes: int,
        *,
        stall_s: float,
        wait_s: Callable[[], float] | None = None,
    ) -> None:
        """Pass the next data that arrives to a function instead of the protocol.

        A thread decrypts it and calls the function, so the event loop serves others
        meanwhile.

        Args:
            take: Takes the data, in parts of `PART_BYTES`.
            size_bytes: Size of all the data.
            stall_s: Timeout for each part.
            wait_s: Returns how long to read nothing after a part; None: read on.

        Raises:
            TimeoutError: a part did not arrive in time.
            ConnectionError: the connection ended. What `take` raises is passed on.
        """
        body = StoredBody(self._tls, take, size_bytes, self._loop.time)
        self._moves_body = True
        self._update_reader()
        try:
            while not body.is_whole:
                part_count = body.part_count
                async with asyncio.timeout(stall_s):
                    while body.part_count == part_count:
                        await self._receive_some(body)
                if wait_s is not None:
                    await asyncio.sleep(wait_s())
        except ConnectionError as error:
            self._lose(error)
            raise
        finally:
            self._moves_body = False
            self._resume()

    async def _receive_some(self, body: StoredBody) -> None:
        self._check_connected()
        if body.is_blocked:
            body.is_blocked = False
            await self._become_readable()
        else:
            await self._run_in_thread(body.receive_some)

    def _check_connected(self) -> None:
        if self._is_lost:
            raise ConnectionResetError("the connection is gone")

    def _resume(self) -> None:
        """Read and write as usual, after a body."""
        if not self._is_lost:
            self._update_reader()
            self._write_unsent()

    async def _run_in_thread(self, work: Callable[[], None]) -> None:
        self._in_thread = True
        done = self._loop.run_in_executor(self._body_threads, work)
        done.add_done_callback(self._leave_thread)
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait((done,))  # It may use a file of the caller.
            raise

    def _leave_thread(self, done: asyncio.Future[None]) -> None:
        done.exception()  # Nobody may be waiting for it any more.
        self._end_thread()

    def _end_thread(self) -> None:
        self._in_thread = False
        if self._is_lost:
            self._tls.close()

    async def _become_writable(self) -> None:
        """Wait until the client has read some of what was sent, or is gone."""
        if self._moves_body:
            self._loop.add_writer(self._fd, self._start_turn)
            self._set_writing_paused(is_paused=True)
        try:
            await self._become_ready()
        finally:
            if self._moves_body and not self._is_lost:
                self._loop.remove_writer(self._fd)
                self._set_writing_paused(is_paused=False)

    async def _become_readable(self) -> None:
        """Wait until the client has sent something, or is gone."""
        self._reads.add_reader(self._fd, self._start_turn)
        try:
            await self._become_ready()
        finally:
            if not self._is_lost:
                self._reads.remove_reader(self._fd)

    async def _become_ready(self) -> None:
        self._ready = self._loop.create_future()
        try:
            await self._ready
        finally:
            self._ready = None

    def _start_turn(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    # -- the end -------------------------------------------------------------------

    def _start_shutdown(self) -> None:
        """Tell the client that this is all, and wait a moment for it to close.

        A socket that is closed while data still arrives is reset, and the client may
        lose what was sent last.
        """
        if self._is_lost or self._timer is not None:
            return
        try:
            call_tls(self._tls.unwrap)
        except ConnectionError as error:
            self._lose(error)
            return
        except OSError:
            pass  # The client has not closed its side, and may still send data.
        else:
            self._lose(None)
            return
        self._timer = self._loop.call_later(SHUTDOWN_S, self._lose, None)
        self._reads.add_reader(self._fd, self._discard_arrived)

    def _discard_arrived(self) -> None:
        try:
            # Encrypted, and of no interest.
            count = socket.socket.recv_into(self._tls, _read_buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        self._stop_timer()
        self._reads.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._unsent.clear()
        self._unsent_bytes = 0
        self._start_turn()
        if self._in_thread:
            # Its descriptor could be another connection's before the thread is done.
            with suppress(OSError):  # The client has reset it.
                socket.socket.shutdown(self._tls, socket.SHUT_RDWR)
        else:
            self._tls.close()
        self._loop.call_soon(self._disconnect_protocol, error)

    def _disconnect_protocol(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def open_tls(
    connection: socket.socket,
    context: ssl.SSLContext,
    protocol: asyncio.Protocol,
    *,
    server_hostname: str | None,
    body_threads: Executor | None = None,
    reads: ReadEvents | None = None,
    on_wrapped: Callable[[socket.socket], None] = lambda _: None,
) -> None:
    """Connect a protocol by TLS; `TlsTransport` explains most arguments.

    `on_wrapped` is called with the socket that takes the place of `connection`.

    Raises:
        OSError: the handshake failed; the connection is closed.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_handshake(error: Exception | None) -> None:
        if ended.cancelled():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    transport = TlsTransport(
        connection,
        context,
        protocol,
        server_hostname=server_hostname,
        body_threads=body_threads,
        handshake_s=None,
        on_handshake=on_handshake,
        reads=reads,
    )
    on_wrapped(transport.connection)
    try:
        await ended
    except asyncio.CancelledError:
        transport.abort()
        raise
