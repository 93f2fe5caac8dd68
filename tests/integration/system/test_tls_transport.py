"""TLS connections over real sockets, as seen by a client with asyncio's own TLS."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

from octaskly.api.http.file_sender import READ_BYTES, _FilePart
from octaskly.system.long_bodies import LONG_READ_BYTES, PART_BYTES, WINDOW_BYTES
from octaskly.system.pending_handshakes import HandshakeLimiter, MemberAddresses
from octaskly.system.tls_transport import (
    RECORD_BYTES,
    TlsTransport,
    open_tls,
)
from octaskly.trust import MeshTls, NodeKey, generate_secret
from tests.support.agents import WAIT_S_MAX
from tests.support.api_node import until

SECRET = generate_secret()
LONG_BYTES = 3 * READ_BYTES + 5


class Server(asyncio.Protocol):
    """A protocol that records what happens to it."""

    def __init__(self) -> None:
        self.transport: TlsTransport | None = None
        self.data = b""
        self.events: list[str] = []
        self.error: BaseException | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsTransport)
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data

    def pause_writing(self) -> None:
        self.events.append("paused")

    def resume_writing(self) -> None:
        self.events.append("resumed")

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.events.append("lost")


class Pair:
    """Both ends of a connection; the client's end is a plain socket."""

    def __init__(self, handshake_s: float = WAIT_S_MAX) -> None:
        tls = MeshTls(SECRET, NodeKey.generate())
        contexts = tls.lan_server_contexts(["node.test"], ["127.0.0.1"])
        self.server = Server()
        self.outcomes: list[Exception | None] = []
        self.senders = ThreadPoolExecutor(1)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.plain = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        accepted.setblocking(False)
        self.transport = TlsTransport(
            accepted,
            contexts("127.0.0.1"),
            self.server,
            body_threads=self.senders,
            handshake_s=handshake_s,
            on_handshake=self.outcomes.append,
        )

    async def connect(
        self, *, limit: int = 1 << 16
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Finish the handshake as a client."""
        context = MeshTls(SECRET, NodeKey.generate()).lan_probe_context()
        streams = await asyncio.open_connection(
            sock=self.plain, ssl=context, server_hostname="", limit=limit
        )
        await until(lambda: self.server.transport is not None)
        return streams

    async def lost(self) -> None:
        await until(lambda: "lost" in self.server.events)
        assert self.server.events.count("lost") == 1
        await until(lambda: self.transport.connection.fileno() == -1)
        self.senders.shutdown()


@asynccontextmanager
async def connected(
    limit: int = 1 << 16,
) -> AsyncIterator[tuple[Pair, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yield a connection; at the end of the block, both ends are closed."""
    pair = Pair()
    reader, writer = await pair.connect(limit=limit)
    yield pair, reader, writer
    writer.transport.abort()
    pair.transport.abort()
    await pair.lost()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(LONG_BYTES))
    return path


async def test_data_goes_both_ways_and_is_whole() -> None:
    """In as many records as it takes."""
    data = os.urandom(20 * RECORD_BYTES + 1)
    async with connected() as (pair, reader, writer):
        assert pair.outcomes == [None]
        writer.write(data)
        await until(lambda: len(pair.server.data) == len(data))
        assert pair.server.data == data

        pair.transport.writelines([data[:5], data[5:]])
        pair.transport.write(b"")
        pair.transport.write(b"!")
        assert await reader.readexactly(len(data) + 1) == data + b"!"


async def test_details_are_those_of_the_connection() -> None:
    """The limits on connections read them, and aiohttp does."""
    async with connected() as (pair, _, writer):
        info = pair.transport.get_extra_info
        assert info("peername") == writer.get_extra_info("sockname")
        assert info("sockname") == writer.get_extra_info("peername")
        assert info("ssl_object").version() == "TLSv1.3"
        assert info("nothing", 3) == 3
        assert pair.transport.get_protocol() is pair.server


async def test_nothing_is_read_while_paused() -> None:
    """Data that arrives meanwhile is passed on later."""
    async with connected() as (pair, _, writer):
        pair.transport.pause_reading()
        writer.write(b"waits")
        await writer.drain()
        await asyncio.sleep(0)
        assert not pair.transport.is_reading()
        assert pair.server.data == b""
        pair.transport.resume_reading()
        await until(lambda: pair.server.data == b"waits")


async def test_a_client_that_does_not_read_pauses_the_protocol() -> None:
    """Otherwise a response would pile up in memory."""
    data = os.urandom(1 << 20)
    async with connected(limit=1024) as (pair, reader, _):
        pair.transport.set_write_buffer_limits(high=1000)
        written = 0
        while "paused" not in pair.server.events:
            pair.transport.write(data)
            written += len(data)
        assert pair.transport.get_write_buffer_size() > 1000
        for _ in range(written >> 20):
            assert await reader.readexactly(len(data)) == data
        assert pair.server.events[-1] == "resumed"
        assert pair.transport.get_write_buffer_size() == 0


async def test_close_sends_what_was_written() -> None:
    """As with any transport of asyncio."""
    data = os.urandom(4 << 20)
    async with connected(limit=1024) as (pair, reader, writer):
        pair.transport.write(data)
        pair.transport.close()
        pair.transport.write(b"too late")
        assert pair.transport.is_closing()
        assert hashlib.sha256(await reader.read()).digest() == (
            hashlib.sha256(data).digest()
        )
        writer.close()
        await pair.lost()
        assert pair.server.error is None


async def test_close_waits_for_a_client_that_still_sends() -> None:
    """A socket with unread data would be reset, and the response lost."""
    async with connected() as (pair, reader, writer):
        pair.transport.pause_reading()
        writer.write(os.urandom(1 << 18))
        pair.transport.write(b"refused")
        pair.transport.close()
        assert await reader.read() == b"refused"
        writer.transport.abort()
        await pair.lost()


async def test_the_end_of_the_client_closes_the_connection() -> None:
    """What it sent last arrives before."""
    async with connected() as (pair, _, writer):
        writer.write(b"last")
        writer.close()
        await pair.lost()
        assert pair.server.data == b"last"
        assert pair.server.error is None


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_failed_handshake_is_reported_once(first: bytes) -> None:
    """Its place is counted until then, which is at once: also by a client of HTTP."""
    pair = Pair()
    pair.plain.sendall(first)
    if not first:
        pair.plain.shutdown(socket.SHUT_WR)
    await until(lambda: pair.outcomes)
    pair.plain.close()
    assert len(pair.outcomes) == 1
    assert isinstance(pair.outcomes[0], OSError)
    assert pair.server.events == []
    assert pair.transport.is_closing()


@pytest.mark.parametrize("ending", ["timeout", "abort"])
async def test_a_handshake_that_does_not_end_is_ended(ending: str) -> None:
    """By the timeout, or with the listener."""
    pair = Pair(handshake_s=0.01 if ending == "timeout" else WAIT_S_MAX)
    if ending == "abort":
        pair.transport.abort()
    await until(lambda: pair.outcomes)
    assert isinstance(pair.outcomes[0], OSError)
    with pair.plain:
        pair.plain.settimeout(WAIT_S_MAX)
        assert pair.plain.recv(1) == b""


# -- long bodies ------------------------------------------------------------------


async def send(pair: Pair, opened: IO[bytes], start: int, end: int) -> None:
    """Send a part of a file from the server."""
    await pair.transport.send_from(_FilePart(opened.fileno(), start, end).read_next)


async def test_a_file_follows_what_was_written(file: Path) -> None:
    """And precedes what is written meanwhile."""
    content = file.read_bytes()
    async with connected() as (pair, reader, writer):
        pair.transport.write(b"head")
        with file.open("rb") as opened:
            sending = asyncio.create_task(send(pair, opened, 1, len(content) - 1))
            await asyncio.sleep(0)
            pair.transport.write(b"tail")  # It must not get into the file.
            writer.write(b"next")
            body = await reader.readexactly(4 + len(content) - 2 + 4)
            await sending
        assert body == b"head" + content[1:-1] + b"tail"
        await until(lambda: pair.server.data == b"next")


async def test_a_client_that_reads_slowly_gets_all_of_a_file(file: Path) -> None:
    """The thread is left between two turns."""
    content = file.read_bytes()
    async with connected(limit=1024) as (pair, reader, _):
        pair.transport.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with file.open("rb") as opened:
            sending = asyncio.create_task(
                pair.transport.send_from(
                    _FilePart(opened.fileno(), 0, len(content)).read_next
                )
            )
            await until(lambda: "paused" in pair.server.events)
            pair.transport.close()  # Once all is sent.
            assert await reader.read() == content
            await sending
        assert "resumed" in pair.server.events


async def test_a_file_that_became_shorter_breaks_the_connection(file: Path) -> None:
    """The client must not take the part for the whole."""
    async with connected() as (pair, reader, _):
        with file.open("rb") as opened, pytest.raises(OSError, match="shorter"):
            await pair.transport.send_from(
                _FilePart(opened.fileno(), 0, LONG_BYTES + 1).read_next
            )
        with suppress(OSError):
            assert len(await reader.read()) <= LONG_BYTES
        await pair.lost()


@pytest.mark.parametrize("ending", ["client", "abort", "cancel"])
async def test_a_broken_transfer_ends(file: Path, ending: str) -> None:
    """Neither its thread nor its descriptor stays."""
    with file.open("r+b") as opened:
        opened.truncate(1 << 30)  # More than the kernel takes.
        async with connected(limit=1024) as (pair, _, writer):
            sending = asyncio.create_task(
                pair.transport.send_from(
                    _FilePart(opened.fileno(), 0, 1 << 30).read_next
                )
            )
            await until(lambda: "paused" in pair.server.events)
            match ending:
                case "client":
                    writer.transport.abort()
                case "abort":
                    pair.transport.abort()
                case _:
                    sending.cancel()
            kind = asyncio.CancelledError if ending == "cancel" else OSError
            with pytest.raises(kind):
                await sending
            await pair.lost()


async def test_a_transfer_that_ends_in_its_thread_ends(file: Path) -> None:
    """The descriptor is free only when the thread is done with it."""
    with file.open("r+b") as opened:
        opened.truncate(1 << 30)
        async with connected() as (pair, _, writer):
            sending = asyncio.create_task(
                pair.transport.send_from(
                    _FilePart(opened.fileno(), 0, 1 << 30).read_next
                )
            )
            await asyncio.sleep(0)
            pair.transport.abort()
            assert pair.transport.connection.fileno() != -1
            with pytest.raises(OSError):
                await sending
            await pair.lost()
            writer.transport.abort()


async def test_a_transfer_ends_if_the_client_has_ended_before() -> None:
    """The node aborts a connection that its client has reset meanwhile."""
    may_read = threading.Event()  #: until then, the file is on a slow disk

    def read_next() -> bytes:
        may_read.wait(WAIT_S_MAX)
        return b"x"

    async with connected() as (pair, _, writer):
        sending = asyncio.create_task(pair.transport.send_from(read_next))
        await asyncio.sleep(0)
        no_time = struct.pack("ii", 1, 0)
        client = writer.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_time)
        writer.transport.abort()
        await until(lambda: client.fileno() == -1)

        pair.transport.abort()
        may_read.set()
        with pytest.raises(OSError):
            await sending
        await pair.lost()


async def test_a_body_goes_past_the_protocol() -> None:
    """Data before and after it reaches the protocol; writes wait for its end."""
    body = os.urandom(2 * PART_BYTES + 3)
    taken: list[bytes] = []
    async with connected() as (pair, reader, writer):
        writer.write(b"head")
        await until(lambda: pair.server.data == b"head")
        receiving = asyncio.create_task(
            pair.transport.receive_to(
                lambda data: taken.append(bytes(data)), len(body), stall_s=WAIT_S_MAX
            )
        )
        await asyncio.sleep(0)
        pair.transport.write(b"meanwhile")
        writer.write(body)
        writer.write(b"tail")
        await receiving
        assert b"".join(taken) == body
        assert max(map(len, taken)) == PART_BYTES
        await until(lambda: pair.server.data == b"headtail")
        assert await reader.readexactly(9) == b"meanwhile"


async def test_much_of_a_body_may_arrive_before_it_is_read() -> None:
    """A reader that waits for a processor does not stop the sender."""
    async with connected() as (pair, _, writer):
        receiving = asyncio.create_task(
            pair.transport.receive_to(
                lambda _: None, 2 * PART_BYTES, stall_s=WAIT_S_MAX
            )
        )
        await asyncio.sleep(0)
        connection = pair.transport.connection
        room = connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert room >= WINDOW_BYTES
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        writer.write(bytes(2 * PART_BYTES))
        await receiving


async def test_a_part_stays_as_it_is_until_the_next() -> None:
    """It may be hashed in another thread meanwhile."""
    parts: list[tuple[memoryview, bytes]] = []
    body = os.urandom(3 * PART_BYTES)

    def take(data: memoryview) -> None:
        assert all(bytes(view) == copy for view, copy in parts[-1:])
        parts.append((data, bytes(data)))

    async with connected() as (pair, _, writer):
        writer.write(body)
        await pair.transport.receive_to(take, len(body), stall_s=WAIT_S_MAX)
    assert b"".join(copy for _, copy in parts) == body


async def test_a_body_that_cannot_be_stored_leaves_the_connection() -> None:
    """The client gets the reason as a response."""

    def take(_data: memoryview) -> None:
        raise OSError("the disk is full")

    async with connected() as (pair, reader, writer):
        writer.write(os.urandom(PART_BYTES))
        with pytest.raises(OSError, match="full"):
            await pair.transport.receive_to(take, 2 * PART_BYTES, stall_s=WAIT_S_MAX)
        pair.transport.write(b"refused")
        assert await reader.readexactly(7) == b"refused"
        writer.write(b"rest")
        await until(lambda: pair.server.data == b"rest")


async def test_a_body_is_read_no_faster_than_its_rate() -> None:
    """The sender has to wait; a pause counts as no stall."""
    pauses_s = [0.3, 0.0]
    taken: list[int] = []
    async with connected() as (pair, _, writer):
        writer.write(os.urandom(2 * PART_BYTES))
        begin_s = asyncio.get_running_loop().time()
        await pair.transport.receive_to(
            lambda data: taken.append(len(data)),
            2 * PART_BYTES,
            stall_s=WAIT_S_MAX,
            wait_s=lambda: pauses_s.pop(0) if pauses_s else 0.0,
        )
        took_s = asyncio.get_running_loop().time() - begin_s

    assert sum(taken) == 2 * PART_BYTES
    assert took_s >= 0.3


async def test_a_body_that_stops_is_given_up() -> None:
    """The client gets the reason as a response."""
    async with connected() as (pair, reader, writer):
        writer.write(b"a part")
        with pytest.raises(TimeoutError):
            await pair.transport.receive_to(lambda _: None, PART_BYTES, stall_s=0.01)
        pair.transport.write(b"too slow")
        assert await reader.readexactly(8) == b"too slow"


@pytest.mark.parametrize("ending", ["client", "abort", "cancel"])
async def test_a_body_that_breaks_off_ends(ending: str) -> None:
    """The caller may close its file then: no thread uses it."""
    taken: list[int] = []
    async with connected() as (pair, _, writer):
        receiving = asyncio.create_task(
            pair.transport.receive_to(
                lambda data: taken.append(len(data)), 1 << 30, stall_s=WAIT_S_MAX
            )
        )
        writer.write(os.urandom(PART_BYTES))
        await until(lambda: taken == [PART_BYTES])
        match ending:
            case "client":
                writer.transport.abort()
            case "abort":
                pair.transport.abort()
            case _:
                receiving.cancel()
        kind = asyncio.CancelledError if ending == "cancel" else ConnectionError
        with pytest.raises(kind):
            await receiving
        assert taken == [PART_BYTES]


# -- the client's end -------------------------------------------------------------


@asynccontextmanager
async def dialled() -> AsyncIterator[tuple[Pair, Server]]:
    """Yield a connection whose client has this transport, too, and its protocol."""
    pair, client = Pair(), Server()
    pair.plain.setblocking(False)
    await open_tls(
        pair.plain,
        MeshTls(SECRET, NodeKey.generate()).lan_probe_context(),
        client,
        server_hostname="127.0.0.1",
        body_threads=pair.senders,
    )
    await until(lambda: client.transport is not None)
    await until(lambda: pair.server.transport is not None)
    yield pair, client
    assert client.transport is not None
    client.transport.abort()
    pair.transport.abort()
    await until(lambda: "lost" in client.events)
    await pair.lost()


async def test_a_client_has_the_same_transport() -> None:
    """Data goes both ways, and its end arrives."""
    data = os.urandom(1 << 20)
    async with dialled() as (pair, client):
        assert client.transport is not None
        client.transport.write(data)
        pair.transport.write(data)
        await until(lambda: len(pair.server.data) == len(client.data) == len(data))
        assert pair.server.data == client.data == data
        pair.transport.close()
        await until(lambda: "lost" in client.events)
        assert client.error is None


@pytest.mark.parametrize("ending", ["refused", "cancel"])
async def test_a_client_whose_handshake_fails_is_closed(ending: str) -> None:
    """The caller gets the reason; its protocol hears of nothing."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    client = Server()
    opening = asyncio.create_task(
        open_tls(
            ours,
            MeshTls(SECRET, NodeKey.generate()).lan_probe_context(),
            client,
            server_hostname="127.0.0.1",
            body_threads=ThreadPoolExecutor(1),
        )
    )
    await asyncio.sleep(0)
    if ending == "refused":
        theirs.close()
    else:
        opening.cancel()
    kind = OSError if ending == "refused" else asyncio.CancelledError
    with pytest.raises(kind):
        await opening
    assert client.events == []
    if ending == "cancel":
        theirs.settimeout(WAIT_S_MAX)
        while theirs.recv(1 << 16):
            pass  # Its hello, and then the end.
        theirs.close()


async def test_a_body_is_relayed_whole() -> None:
    """What was written before precedes it; what follows reaches the protocol."""
    body = os.urandom(3 * LONG_READ_BYTES + 7)
    async with dialled() as (source, client), connected() as (pair, reader, _):
        assert client.transport is not None
        pair.transport.write(b"head")
        relaying = asyncio.create_task(
            client.transport.relay_to(
                pair.transport, [b"fir", b"st"], len(body), stall_s=WAIT_S_MAX
            )
        )
        await asyncio.sleep(0)
        source.transport.write(body[:100])
        assert await reader.readexactly(9 + 100) == b"headfirst" + body[:100]
        source.transport.write(body[100:] + b"next")
        assert await reader.readexactly(len(body) - 100) == body[100:]
        await relaying
        await until(lambda: client.data == b"next")
        pair.transport.write(b"tail")
        assert await reader.readexactly(4) == b"tail"


@pytest.mark.parametrize("ending", ["source", "stall", "receiver", "abort", "cancel"])
async def test_a_broken_relay_ends_both(ending: str) -> None:
    """The receiver must not take a part for the whole; no descriptor stays."""
    async with dialled() as (source, client), connected() as (pair, reader, writer):
        assert client.transport is not None
        relaying = asyncio.create_task(
            client.transport.relay_to(
                pair.transport,
                [],
                1 << 30,
                stall_s=0.01 if ending == "stall" else WAIT_S_MAX,
            )
        )
        if ending != "stall":
            source.transport.write(b"a part")
            assert await reader.readexactly(6) == b"a part"
        match ending:
            case "source":
                source.transport.abort()
            case "receiver":
                writer.transport.abort()
                source.transport.write(os.urandom(8 << 20))
            case "abort":
                client.transport.abort()
            case "cancel":
                relaying.cancel()
            case _:
                pass  # The source is silent.
        kind = asyncio.CancelledError if ending == "cancel" else OSError
        with pytest.raises(kind):
            await relaying
        await until(lambda: "lost" in pair.server.events)
        with suppress(OSError):
            assert await reader.read() == b""


async def test_a_slow_receiver_holds_up_a_relay() -> None:
    """What it does not take stays at the source, and not in memory."""
    body = os.urandom(8 << 20)
    async with (
        dialled() as (source, client),
        connected(limit=1024) as (pair, reader, _),
    ):
        assert client.transport is not None
        pair.transport.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        relaying = asyncio.create_task(
            client.transport.relay_to(pair.transport, [], len(body), stall_s=WAIT_S_MAX)
        )
        source.transport.write(body)
        await until(lambda: "paused" in pair.server.events)
        assert pair.transport.get_write_buffer_size() <= LONG_READ_BYTES
        assert await reader.readexactly(len(body)) == body
        await relaying
        assert pair.server.events[-1] == "resumed"


def test_contexts_are_for_tls_1_3_only() -> None:
    """Renegotiation would make a read wait for a write."""
    tls = MeshTls(SECRET, NodeKey.generate())
    context = tls.lan_server_contexts(["node.test"], ["127.0.0.1"])("127.0.0.1")
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


async def test_a_handshake_that_makes_room_for_another_ends_at_once() -> None:
    """It fails as if the client had left, and costs nothing until its timeout."""
    faults: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: faults.append(context))
    limiter = HandshakeLimiter(
        total_max=1, per_address_max=1, local_max=1, members=MemberAddresses()
    )
    first, second = Pair(), Pair()

    limiter.admit(first.transport.connection, "10.0.0.1", "10.0.0.9")
    limiter.admit(second.transport.connection, "10.0.0.2", "10.0.0.9")
    await until(lambda: first.outcomes != [])

    assert isinstance(first.outcomes[0], OSError)
    assert second.outcomes == []
    assert faults == []
    second.transport.abort()
    for pair in (first, second):
        pair.plain.close()
        pair.senders.shutdown()
