"""Whom a client trusts with a token on a port of its own machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from octaskly.client.errors import Unreachable
from octaskly.client.listener_check import require_trusted_listener
from octaskly.errors import ConfigError
from octaskly.system.tcp_table import Listener, listeners_on

HOST = "127.0.0.1"


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a listener of this user."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]


def test_a_listener_of_the_own_user_is_trusted(port: int) -> None:
    """It was there before the connection, and still is."""
    require_trusted_listener(listeners_on(port), HOST, port)


@pytest.mark.parametrize(
    "before",
    [frozenset(), frozenset({Listener(HOST, os.geteuid(), 1)})],
    ids=["none", "another"],
)
def test_a_listener_that_came_meanwhile_is_not_trusted(
    before: frozenset[Listener], port: int
) -> None:
    """The connection may be to one that has gone; it can be made again."""
    with pytest.raises(Unreachable, match="was replaced just now"):
        require_trusted_listener(before, HOST, port)


def test_a_stranger_who_has_gone_since_is_not_trusted(port: int) -> None:
    """The connection is most likely to the stranger."""
    stranger = Listener(HOST, 64_420, 1)

    with pytest.raises(ConfigError, match="belongs to user 64420; no token was sent"):
        require_trusted_listener({stranger}, HOST, port)


def test_a_stranger_on_another_address_does_not_matter(port: int) -> None:
    """Nothing that is sent to this address arrives there."""
    before = listeners_on(port) | {Listener("192.168.1.20", 64_420, 1)}

    require_trusted_listener(before, HOST, port)


def test_a_port_without_a_visible_listener_is_not_trusted() -> None:
    """For example one that a firewall rule leads elsewhere."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        port = bound.getsockname()[1]

        with pytest.raises(ConfigError, match="the user that listens on port"):
            require_trusted_listener(frozenset(), HOST, port)
