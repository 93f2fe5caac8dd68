"""The user of the client of one TCP connection, as the kernel knows it."""

from __future__ import annotations

import os
import socket

import pytest

from octaskly.system.tcp_table import tcp_client_uid


@pytest.mark.parametrize(
    ("host", "other"), [("127.0.0.1", "127.0.0.2"), ("::1", "::2")]
)
def test_the_client_of_exactly_one_connection_has_a_user(host: str, other: str) -> None:
    """Another connection between the same ports must not lend its user."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]),
        listener.accept()[0] as served,
    ):
        client, own = served.getpeername(), served.getsockname()

        assert tcp_client_uid(client, own) == os.getuid()
        assert tcp_client_uid((other, client[1]), own) is None
