"""Connections to holders: one handshake for many requests, while the holder lives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar, cast

import pytest

from octaskly.ports.store import Clock
from octaskly.runner.blobs.holder_connection import (
    AGE_S_MAX,
    IDLE_S_MAX,
    Holder,
    HolderConnections,
    HolderRefused,
    HolderUnreachable,
    OpenSockets,
)
from octaskly.trust import MeshTls, NodeKey, generate_secret
from tests.support.agents import until
from tests.support.set_clock import SetClock

TLS = MeshTls(generate_secret(), NodeKey.generate())


class _Handler(BaseHTTPRequestHandler):
    """Answers each request with an empty object, and counts connections."""

    protocol_version = "HTTP/1.1"
    answers_max: ClassVar[int]  #: after which it closes a connection
    connections: ClassVar[int]

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1
        self._answers = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
        self._answers += 1
        # It closes without saying so, as a holder that stops does.
        self.close_connection = self._answers == self.answers_max

    def log_message(self, *args: object) -> None:
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    """Counts the connections that it has closed."""

    closed = 0

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.closed += 1


@contextmanager
def serving(answers_max: int) -> Iterator[tuple[Holder, _Server]]:
    """Run a holder that closes each connection after so many answers."""
    _Handler.connections, _Handler.answers_max = 0, answers_max
    server = _Server(("127.0.0.1", 0), _Handler)
    contexts = TLS.lan_server_contexts([], ["127.0.0.1"])
    server.socket = contexts("127.0.0.1").wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Holder("a", (f"https://127.0.0.1:{server.server_port}",)), server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def ask(clock: SetClock) -> Iterator[Callable[[Holder], None]]:
    """Send one request."""
    connections = HolderConnections(
        TLS.lan_client_context, OpenSockets(), clock=cast("Clock", clock)
    )

    def ask(holder: Holder) -> None:
        with connections.connect_to(holder) as connection:
            assert connection.post_json("/", {}, timeout_s=20) == {}

    yield ask
    connections.close()


def test_requests_share_a_connection(ask: Callable[[Holder], None]) -> None:
    """A handshake costs both nodes more than a small request."""
    with serving(answers_max=9) as (holder, _):
        for _ in range(5):
            ask(holder)

    assert _Handler.connections == 1


@pytest.mark.parametrize("is_unknown", [False, True])
def test_only_a_node_that_was_never_met_is_not_asked_again(*, is_unknown: bool) -> None:
    """Any other one that is not in the mesh may be starting again."""
    connections = HolderConnections(
        TLS.lan_client_context, OpenSockets(), clock=cast("Clock", SetClock())
    )
    absent = Holder("elm", (), is_named=True, is_unknown=is_unknown)

    with pytest.raises(HolderUnreachable) as caught, connections.connect_to(absent):
        pass

    assert isinstance(caught.value, HolderRefused) == is_unknown


def test_connection_that_the_holder_closed_is_not_used(
    ask: Callable[[Holder], None],
) -> None:
    """A node that started anew is asked as if it had never been."""
    with serving(answers_max=1) as (holder, server):
        for count in range(1, 4):
            ask(holder)
            until(partial(_has_closed, server, count), "it is closed")

    assert _Handler.connections == 3


def _has_closed(server: _Server, count: int) -> bool:
    return server.closed == count


@pytest.mark.parametrize(
    ("pause_s", "requests", "opened"),
    [
        (IDLE_S_MAX + 0.1, 3, 3),
        (IDLE_S_MAX - 0.1, 3, 1),
        (IDLE_S_MAX - 0.1, int(AGE_S_MAX / IDLE_S_MAX) + 3, 2),
    ],
)
def test_connection_has_an_end(
    ask: Callable[[Holder], None],
    clock: SetClock,
    pause_s: float,
    requests: int,
    opened: int,
) -> None:
    """The holder closes an idle one, and an old one has an old certificate."""
    with serving(answers_max=99) as (holder, _):
        for _ in range(requests):
            ask(holder)
            clock.now_s += pause_s

    assert _Handler.connections == opened
