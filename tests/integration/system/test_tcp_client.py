"""The user of the client of one TCP connection, as the kernel knows it."""

from __future__ import annotations

import os
import socket

import pytest

from octaskly.system.tcp_table import local_client, tcp_client_uid


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


@pytest.mark.parametrize(
    ("client", "server", "owner"),
    [
        ("192.0.2.7", "192.0.2.1", None),
        ("2001:db8::7", "2001:db8::1", None),
        ("127.9.9.9", "192.0.2.1", "an unknown user"),
        ("::ffff:127.9.9.9", "::ffff:192.0.2.1", "an unknown user"),
        ("::1", "2001:db8::1", "an unknown user"),
        ("192.0.2.1", "192.0.2.1", "an unknown user"),
    ],
)
def test_a_client_of_this_machine_counts_as_its_user(
    client: str, server: str, owner: str | None
) -> None:
    """Also with one of sixteen million loopback addresses as its source."""
    assert local_client((client, 9), (server, 3443)) == owner
