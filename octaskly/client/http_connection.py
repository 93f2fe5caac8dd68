"""A blocking HTTP connection to a node, with timeouts and client errors.

It uses the standard library's `http.client`, because a command must start within
0.1 s and the import of a large HTTP library alone takes longer.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import select
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octaskly.client import errors
from octaskly.client.errors import NoAnswer, ReplyLost
from octaskly.client.flows.rest_calls import Body, Call, Response
from octaskly.client.listener_check import require_trusted_listener
from octaskly.client.unix_socket import CONNECT_S_MAX, connect_unix
from octaskly.errors import ConfigError
from octaskly.system.tcp_table import listeners_on

if TYPE_CHECKING:
    import ssl

IDLE_S_MAX = 10.0  #: nodes close connections that were idle for longer than this
SIGNAL_CHECK_S = 0.5  #: longest wait for bytes before Python handles signals


class _InterruptibleReader(io.RawIOBase):
    """Socket reader that waits in short intervals, so that Ctrl-C works.

    Python handles signals only between two calls. A signal just before a long wait
    would be handled after that wait, up to half a minute later.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._wait_until_readable()
        return self._file.readinto(buffer)

    def close(self) -> None:
        with contextlib.suppress(AttributeError):  # Ctrl-C interrupted `__init__`.
            self._file.close()
        super().close()

    def _wait_until_readable(self) -> None:
        timeout_s = self._sock.gettimeout()
        if timeout_s is None or _has_decrypted_bytes(self._sock):
            return
        deadline = time.monotonic() + timeout_s
        while not self._poll.poll(min(timeout_s, SIGNAL_CHECK_S) * 1000):
            timeout_s = deadline - time.monotonic()
            if timeout_s <= 0:
                raise TimeoutError("timed out")


def _has_decrypted_bytes(sock: socket.socket) -> bool:
    """Return True if TLS has buffered bytes that `poll` cannot see."""
    pending = getattr(sock, "pending", None)
    return pending is not None and pending() > 0


class _InterruptibleResponse(http.client.HTTPResponse):
    """A response with reads that Ctrl-C can interrupt."""

    fp: Any = None  #: None if Ctrl-C interrupts `__init__`

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_InterruptibleReader(sock))

    def flush(self) -> None:
        """Do nothing, because a response is only read.

        The inherited method fails if Ctrl-C interrupts `close`, and Python 3.13 and
        later print that failure with a traceback.
        """


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket of a local agent."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CONNECT_S_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = connect_unix(self._path)


class _LoopbackConnection(http.client.HTTPConnection):
    """HTTP over a port of this machine, whose listener is checked before any use."""

    def connect(self) -> None:
        before = listeners_on(self.port)
        super().connect()
        try:
            require_trusted_listener(before, *self.sock.getpeername()[:2])
        except BaseException:
            self.close()
            raise


class HttpConnection:
    """A connection to one node, opened on first use; for one thread at a time."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        *,
        node_label: str,
        token: str | None = None,
    ) -> None:
        self.node_label = node_label
        self._connection = connection
        connection.response_class = _InterruptibleResponse
        self._last_used_at: float | None = None
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    @classmethod
    def at_socket(cls, path: Path) -> HttpConnection:
        """Return a connection to the local agent with this socket file."""
        return cls(_UnixConnection(path), node_label=str(path))

    @classmethod
    def at_url(
        cls, url: str, *, token: str | None, ca_file: Path | None
    ) -> HttpConnection:
        """Return a connection to the node at a URL from `resolve_endpoint`.

        Raises:
            ConfigError: `ca_file` is unusable.
        """
        scheme, _, host = url.partition("://")
        connection: http.client.HTTPConnection
        if scheme == "https":
            connection = http.client.HTTPSConnection(
                host, timeout=CONNECT_S_MAX, context=tls_context(ca_file)
            )
        elif token:
            connection = _LoopbackConnection(host, timeout=CONNECT_S_MAX)
        else:
            connection = http.client.HTTPConnection(host, timeout=CONNECT_S_MAX)
        return cls(connection, node_label=url, token=token)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()
        self._last_used_at = None
        if isinstance(self._connection, http.client.HTTPSConnection):
            from octaskly.system.tls_errors import clear_tls_errors  # noqa: PLC0415

            clear_tls_errors()

    def send_request(
        self,
        method: str,
        target: str,
        body: Body | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> http.client.HTTPResponse:
        """Send a request; the caller must read the response to its end."""
        used_at = self._last_used_at
        if used_at is not None and time.monotonic() - used_at > IDLE_S_MAX:
            self.close()
        all_headers = {**self._headers, **headers}
        if body is not None:
            all_headers.setdefault("Content-Type", "application/json")
            all_headers["Content-Length"] = str(len(body))
        self._connect()
        try:
            self._connection.sock.settimeout(timeout_s)
            # A node may refuse a large body before it has read all of it.
            with contextlib.suppress(BrokenPipeError):
                self._connection.request(method, target, body=body, headers=all_headers)
            response = self._connection.getresponse()
        except TimeoutError as error:
            self.close()
            raise NoAnswer(
                f"{self.node_label} did not answer within {timeout_s:.0f} s"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            hint = "octaskly ls    shows whether it was accepted"
            raise ReplyLost(
                f"{self.node_label} closed the connection before it answered",
                hint=None if method == "GET" else hint,
            ) from error
        except BaseException:
            # After an interrupt, the next request must not read this response.
            self.close()
            raise
        self._last_used_at = time.monotonic()
        return response

    def request(self, call: Call, timeout_s: float) -> Response:
        """Send one request; return its response, whatever its status."""
        response = self.send_request(
            call.method, call.target, call.body, call.headers, timeout_s
        )
        return self.read_response(response)

    def read_response(self, response: http.client.HTTPResponse) -> Response:
        """Read a response to its end."""
        data = self._read_body(response)
        return Response(response.status, headers_of(response), data)

    def read_chunk(
        self, response: http.client.HTTPResponse, size: int, timeout_s: float
    ) -> bytes:
        """Return the next bytes of a streamed response, b"" at its end."""
        try:
            if (sock := self._connection.sock) is not None:
                sock.settimeout(timeout_s)
            return response.read1(size)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ReplyLost(
                f"{self.node_label} stopped in the middle of a stream"
            ) from error

    def abort(self) -> None:
        """Interrupt the read or write of another thread."""
        if (sock := self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> None:
        if self._connection.sock is not None:
            return
        try:
            self._connection.connect()
        except OSError as error:
            self.close()
            raise errors.connect_error(self.node_label, error) from error

    def _read_body(self, response: http.client.HTTPResponse) -> bytes:
        try:
            data = response.read()
            # Close explicitly: a finalizer would swallow a Ctrl-C during the close.
            response.close()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ReplyLost(
                f"{self.node_label} stopped in the middle of its answer"
            ) from error
        except BaseException:
            self.close()
            raise
        return data


def tls_context(ca_file: Path | str | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the CA of the mesh, or those of the system.

    Raises:
        ConfigError: the file is not a CA certificate.
    """
    import ssl  # noqa: PLC0415 - takes 10 ms, and the local socket needs no TLS

    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:
        raise ConfigError(
            f"{ca_file} is not a readable CA certificate",
            hint="octaskly ca > mesh-ca.pem    on a node of the mesh",
        ) from error


def headers_of(response: http.client.HTTPResponse) -> dict[str, str]:
    """Return the headers of a response, with names in lower case."""
    return {name.lower(): value for name, value in response.getheaders()}
