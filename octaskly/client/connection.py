"""One HTTP connection to a node: its timeouts, its retries, its errors.

The standard library's `http.client` only: a command has to start in a tenth of a
second, and the big HTTP libraries alone take longer.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode, urlsplit

from octaskly.client import errors
from octaskly.client.calls import Call, Reply
from octaskly.client.errors import Refused, ReplyLost
from octaskly.errors import ConfigError

if TYPE_CHECKING:
    import ssl

REPLY_S_MAX = 30.0  #: a node holds a request up to 5 s, then answers in any case
CONNECT_S_MAX = 5.0
IDLE_S_MAX = 10.0  #: nodes close connections that were idle for longer than this
TURN_S = 0.01  #: between calls at the door of a busy node
SOCKET_PATH_BYTES_MAX = 107  #: sizeof(sun_path) - 1
OPEN_ERRORS = ("Connection to the dispatcher was lost", "No standby keeps a copy")
"""Refusals, as the node words them, after which a submission may be in the log."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket of a local agent."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CONNECT_S_MAX)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(CONNECT_S_MAX)
        try:
            connect_unix(sock, self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


def connect_unix(sock: socket.socket, path: Path) -> None:
    """Connect to a socket file, also where its path is longer than an address.

    Raises:
        OSError: nobody listens there, this user may not use it, or nobody took the
            call within the timeout of the socket.
    """
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        _connect_in_turn(sock, str(path))
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _connect_in_turn(sock, f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _connect_in_turn(sock: socket.socket, address: str) -> None:
    """Connect; wait while a busy node has yet to take as many calls as may wait.

    Over TCP the kernel asks again by itself, here it says EAGAIN.
    """
    give_up_at = time.monotonic() + (sock.gettimeout() or 0)
    while True:
        try:
            return sock.connect(address)
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(TURN_S)


class Connection:
    """A connection to one node. Use as a context manager; not for several threads.

    A 503 that carries `Retry-After` (no dispatcher is elected at this moment) is
    asked again for `patience_s`; `on_wait` is told once why.
    """

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        *,
        place: str,
        token: str | None = None,
        patience_s: float = 10.0,
        on_wait: Callable[[Refused], None] | None = None,
    ) -> None:
        self.place = place
        self._connection = connection
        self._patience_s = patience_s
        self._on_wait = on_wait
        self._used_at: float | None = None
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    @classmethod
    def at_socket(cls, path: Path | str, **settings: Any) -> Self:
        """Return a connection to the local agent with this socket file."""
        return cls(_UnixConnection(Path(path)), place=str(path), **settings)

    @classmethod
    def at_url(
        cls,
        url: str,
        *,
        token: str | None = None,
        ca_file: Path | str | None = None,
        **settings: Any,
    ) -> Self:
        """Return a connection to the node at `http://HOST[:PORT]` or `https://...`.

        Raises:
            ConfigError: `url` or `ca_file` is unusable.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"the port of {url!r} is not a number") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"{url!r} is not an http:// or https:// URL",
                hint="octaskly --url http://localhost:3000 ls",
            )
        connection = (
            http.client.HTTPConnection(parts.hostname, port, timeout=CONNECT_S_MAX)
            if parts.scheme == "http"
            else http.client.HTTPSConnection(
                parts.hostname,
                port,
                timeout=CONNECT_S_MAX,
                context=tls_context(ca_file),
            )
        )
        return cls(connection, place=url, token=token, **settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()
        self._used_at = None

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> Reply:
        """Send one request and return its answer; None in `query` is left out.

        Raises:
            Refused: the node refused.
            Unreachable: nobody answers there.
            ReplyLost: the connection ended before the answer.
        """
        response = self.begin(
            method, path, query=query, body=body, headers=headers, wait_s=wait_s
        )
        return self.finish(response)

    def begin(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> http.client.HTTPResponse:
        """As `request`, but leave it to the caller to read the body to its end."""
        wanted = {
            key: value for key, value in (query or {}).items() if value is not None
        }
        target = f"{path}?{urlencode(wanted, doseq=True)}" if wanted else path
        give_up_at = time.monotonic() + self._patience_s
        has_waited = False
        while True:
            response = self.exchange(
                method, target, body, headers or {}, REPLY_S_MAX + wait_s
            )
            if response.status < http.HTTPStatus.BAD_REQUEST:
                return response
            refused = refusal(response, self._read(response))
            pause_s = refused.retry_after_s
            if refused.status != http.HTTPStatus.SERVICE_UNAVAILABLE or pause_s is None:
                raise refused
            is_open = method == "POST" and str(refused) in OPEN_ERRORS
            if is_open and "Idempotency-Key" not in (headers or {}):
                raise refused
            if time.monotonic() + pause_s > give_up_at:
                raise refused
            if self._on_wait and not has_waited:
                self._on_wait(refused)
            has_waited = True
            time.sleep(pause_s)

    def exchange(
        self,
        method: str,
        target: str,
        body: bytes | memoryview | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> http.client.HTTPResponse:
        """Send a request; a reading one is sent again over a connection gone stale."""
        used_at = self._used_at
        if used_at is not None and time.monotonic() - used_at > IDLE_S_MAX:
            self.close()
            used_at = None
        everything = {**self._headers, **headers}
        if body is not None:
            everything.setdefault("Content-Type", "application/json")
        self._open()
        try:
            self._connection.sock.settimeout(timeout_s)
            self._connection.request(method, target, body=body, headers=everything)
            response = self._connection.getresponse()
        except TimeoutError as error:
            self.close()
            raise ReplyLost(
                f"{self.place} did not answer within {timeout_s:.0f} s"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if used_at is not None and method == "GET":
                return self.exchange(method, target, body, headers, timeout_s)
            raise ReplyLost(
                f"{self.place} closed the connection before it answered",
                hint="octaskly ls    shows whether it was accepted",
            ) from error
        except BaseException:
            # Interrupted half-way: what comes next must not read this answer.
            self.close()
            raise
        self._used_at = time.monotonic()
        return response

    def ask(self, call: Call, timeout_s: float) -> Reply:
        """Send one request; return its answer, good or bad."""
        response = self.exchange(
            call.method, call.target, call.body, call.headers, timeout_s
        )
        return self.finish(response)

    def finish(self, response: http.client.HTTPResponse) -> Reply:
        """Read an answer to its end."""
        data = self._read(response)
        return Reply(response.status, headers_of(response), data)

    def piece(
        self, response: http.client.HTTPResponse, size: int, timeout_s: float
    ) -> bytes:
        """Return the next bytes of an answer that is a stream, none at its end."""
        try:
            if (sock := self._connection.sock) is not None:
                sock.settimeout(timeout_s)
            return response.read1(size)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ReplyLost(
                f"{self.place} stopped in the middle of a stream"
            ) from error

    def abort(self) -> None:
        """End what another thread reads or writes at this moment."""
        if (sock := self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _open(self) -> None:
        if self._connection.sock is not None:
            return
        try:
            self._connection.connect()
        except OSError as error:
            self.close()
            raise errors.not_connected(self.place, error) from error

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ReplyLost(
                f"{self.place} stopped in the middle of its answer"
            ) from error
        except BaseException:
            self.close()
            raise


def tls_context(ca_file: Path | str | None) -> ssl.SSLContext:
    """Return what checks who a node is, by the CA of the mesh or those of the system.

    Raises:
        ConfigError: the file is no CA.
    """
    import ssl  # noqa: PLC0415 - costs 10 ms that the local socket need not pay

    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:
        raise ConfigError(
            f"{ca_file} is not a readable CA certificate",
            hint="octaskly ca > mesh-ca.pem    on a node of the mesh",
        ) from error


def headers_of(response: http.client.HTTPResponse) -> dict[str, str]:
    """Return the headers of an answer, their names in small letters."""
    return {name.lower(): value for name, value in response.getheaders()}


def refusal(response: http.client.HTTPResponse, body: bytes) -> Refused:
    """Return the error that a refusing answer means, whatever its form."""
    return errors.refusal(response.status, headers_of(response), body) or Refused(
        f"the node answered {response.status} {response.reason}",
        status=response.status,
    )
