"""The names of `--join`, which may have no address when an agent starts."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from octaskly.agent import node_setup
from octaskly.agent.node_setup import resolve_seed
from octaskly.core.model.ids import Address
from octaskly.system.log import Logger


class Warnings:
    """Keeps the warnings of a log."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def warning(self, event: str, **_: object) -> None:
        self.events.append(event)


async def test_a_name_is_looked_up_until_it_has_an_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent of a laptop starts before its network."""
    failures = [socket.gaierror(-3, "Temporary failure in name resolution")] * 2

    async def look_up(_host: str, port: int, **_: object) -> list[Any]:
        if failures:
            raise failures.pop()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    monkeypatch.setattr(node_setup, "SEED_RETRY_S", 0.0)
    log = Warnings()

    found = await resolve_seed("desk.local", 7878, cast("Logger", log))

    assert found == (Address("10.1.2.3", 7878),)
    assert log.events == ["cannot resolve --join"]
