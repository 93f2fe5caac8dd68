"""Unauthenticated connections from the LAN to an agent."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest

from tests.support.agents import Agent, running, until_nodes

PLACEHOLDER = "a" * 8
ATTEMPTS = 5


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent that these tests do not change."""
    with running(tmp_path_factory.mktemp("strangers"), "solo") as (agent,):
        until_nodes(agent, 1)
        yield agent


def first_bytes_of_tls(name: bytes) -> bytes:
    """Return the first bytes of a TLS client that requests this host name."""
    context = ssl.create_default_context()
    said = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), said, server_hostname=PLACEHOLDER)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return said.read().replace(PLACEHOLDER.encode(), name)


@pytest.mark.parametrize("port", ["peer_port", "lan_url"])
def test_an_invalid_name_in_tls_writes_no_traceback(solo: Agent, port: str) -> None:
    """Python cannot raise the error there, and logs it at length each time."""
    number = int(str(solo.ready()[port]).rpartition(":")[2])
    hello = first_bytes_of_tls(b"\xff" * len(PLACEHOLDER))

    for _ in range(ATTEMPTS):
        with socket.create_connection(("127.0.0.1", number)) as connection:
            connection.sendall(hello)
            with contextlib.suppress(ConnectionError):
                while connection.recv(64):
                    pass  # An alert, until the agent has closed the connection.

    logged = [line for line in solo.log().splitlines() if "UnicodeDecodeError" in line]
    assert 1 <= len(logged) < ATTEMPTS, solo.log()
    assert "unraisable error" in logged[0]
    assert "Traceback" not in solo.log()
