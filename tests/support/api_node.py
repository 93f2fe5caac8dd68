"""One API on real sockets for a test, and raw clients."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from octaskly.api import AccessLogEntry, ApiServer, HttpTimeouts, ListenerKind
from octaskly.config.defaults import LOOPBACK
from octaskly.core.model.ids import Moment
from octaskly.errors import TrustError
from octaskly.ports.tokens import Principal
from octaskly.system.listening_sockets import bind_port, port_of
from octaskly.system.pending_handshakes import MemberAddresses
from octaskly.trust.certificates import PeerIdentity
from tests.support.agents import WAIT_S_MAX
from tests.support.conformance import conforms
from tests.support.fake_gateway import NOW_MS, FakeGateway

TOKENS = {
    "admin-token": Principal(subject="ana", role="admin"),
    "client-token": Principal(subject="bo", role="client"),
    "other-token": Principal(subject="cy", role="client"),
    "known-token": Principal(subject="eve", role="viewer", token="an-id"),
    "viewer-token": Principal(subject="dee", role="viewer"),
}
ADMIN = {"Authorization": "Bearer admin-token"}
CLIENT = {"Authorization": "Bearer client-token"}
VIEWER = {"Authorization": "Bearer viewer-token"}
KNOWN = {"Authorization": "Bearer known-token"}
JSON = {"Content-Type": "application/json"}


class FixedClock:
    """A clock port that stands still."""

    def now(self) -> Moment:
        return Moment(100.0, NOW_MS)

    def draw(self) -> float:
        return 0.5


class HurriedClock(FixedClock):
    """A clock port by which each reading is a second after the last."""

    def __init__(self) -> None:
        self._mono_s = 0.0

    def now(self) -> Moment:
        self._mono_s += 1.0
        return Moment(self._mono_s, NOW_MS)


def verify(token: str) -> Principal:
    try:
        return TOKENS[token]
    except KeyError:
        raise TrustError("token is not valid") from None


def no_peer(tls: ssl.SSLSocket) -> PeerIdentity | None:
    return None


@dataclass
class Answer:
    """One HTTP answer in raw form."""

    status: int
    headers: dict[str, str]  #: names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ApiNode:
    """An API with a fake agent behind it."""

    gateway: FakeGateway
    server: ApiServer
    port: int
    served: list[AccessLogEntry]
    faults: list[BaseException]

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | object | None = None,
    ) -> Answer:
        """Send one request on a connection of its own."""
        return await ask(self.port, method, path, headers=headers, body=body)

    async def submit(self, command: str = "true") -> str:
        answer = await self.ask(
            "POST", "/api/v1/tasks", headers=ADMIN, body={"command": command}
        )
        assert answer.status == 201, answer
        return str(answer.json["id"])


async def serve_free(
    server: ApiServer,
    site: ListenerKind = ListenerKind.LOOPBACK,
    addresses: Sequence[str] = LOOPBACK,
) -> int:
    """Serve on a port that is free on all these addresses; return it."""
    sockets = bind_port("--port", requested=0, default=0, addresses=addresses)
    if site is ListenerKind.LAN:
        server.serve_lan(sockets, MemberAddresses())
    else:
        await server.serve_loopback(sockets)
    return port_of(sockets)


@asynccontextmanager
async def api_node(
    gateway: FakeGateway | None = None, **options: Any
) -> AsyncIterator[ApiNode]:
    """Serve on a free loopback port until the block ends."""
    gateway = gateway or FakeGateway()
    served: list[AccessLogEntry] = []
    faults: list[BaseException] = []
    settings: dict[str, Any] = {
        "verify_token": verify,
        "node_name": "laptop-01",
        "clock": FixedClock(),
        "identify_peer": no_peer,
        "on_response": served.append,
        "on_unexpected_error": lambda _, error: faults.append(error),
        "timeouts": HttpTimeouts(shutdown_s=1.0, refusal_delay_s=0.0),
    }
    server = ApiServer(gateway, **(settings | options))
    port = await serve_free(server)
    try:
        yield ApiNode(gateway, server, port, served, faults)
    finally:
        await server.close()


async def ask(
    port: int,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | object | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send one request and read the answer, which must match the OpenAPI document."""
    given = {"Host": f"localhost:{port}", "Connection": "close", **(headers or {})}
    if body is None:
        data = b""
    else:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Length": str(len(data)), **JSON, **given}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in given.items())]
    head = "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")
    answer = parse(await exchange(port, head + data, tls=tls), method)
    media = answer.headers.get("content-type", "").partition(";")[0]
    conforms(method, path, answer.status, media, answer.body)
    return answer


async def exchange(
    port: int,
    data: bytes,
    *,
    tls: ssl.SSLContext | None = None,
    timeout_s: float = WAIT_S_MAX,
) -> bytes:
    """Send bytes and return all bytes until the other side closes."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        try:
            writer.write(data)
            received = b""
            # Bytes before a reset count.
            with suppress(ConnectionResetError):
                while chunk := await reader.read(1 << 16):
                    received += chunk
            return received
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()


@asynccontextmanager
async def unread(node: ApiNode, asked: bytes) -> AsyncIterator[None]:
    """Send requests on a connection with small buffers, and read no answer."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", node.port))
        await until(lambda: node.server.connection_count)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(1.0):
                await loop.sock_sendall(connection, asked)
        yield


def parse(raw: bytes, method: str = "GET") -> Answer:
    """Split an answer, and check its stated length."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        assert name.lower() not in headers, f"{name} twice"
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunk(body)
    elif method != "HEAD" and "content-length" in headers:
        assert len(body) == int(headers["content-length"])
    return Answer(int(first.split()[1]), headers, body)


def assert_problem(answer: Answer, status: int, error: str | None = None) -> None:
    """Check the form that every error has."""
    assert answer.status == status, answer
    body = answer.json
    assert body["status"] == status
    assert body["timestamp"] == "2026-02-06T12:00:00Z"
    assert set(body) <= {"error", "status", "timestamp", "hint", "field"}
    assert body["error"]
    if error is not None:
        assert body["error"] == error
    assert_standard_headers(answer)


def assert_standard_headers(answer: Answer) -> None:
    """Check the headers that every answer has."""
    headers = answer.headers
    assert headers["content-type"].partition(";")[0] == "application/json"
    assert headers["x-request-id"]
    assert float(headers["x-response-time-ms"]) >= 0
    assert headers["cache-control"] == "no-cache, no-store, must-revalidate"
    assert headers["pragma"] == "no-cache"
    assert headers["expires"] == "0"
    assert_hardened(answer)


def assert_hardened(answer: Answer) -> None:
    """Check the security headers that every answer has."""
    headers = answer.headers
    rules = headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= {
        *rules
    }
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


async def until(condition: Callable[[], object], timeout_s: float = WAIT_S_MAX) -> None:
    """Wait until `condition` is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  it is no event of ours
            await asyncio.sleep(0.01)


def _unchunk(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            break
        whole += body[:length]
        body = body[length + 2 :]
    return whole
