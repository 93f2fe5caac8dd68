"""Which connections of this machine get a place, and how long the others wait."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from octaskly.api.server import listeners
from octaskly.api.server.connection_limits import ConnectionKind
from octaskly.api.server.listeners import Place, PlainListener
from octaskly.system.accepting import BACKLOG

EVE = (ConnectionKind.UNAUTHENTICATED, "user eve")
ANA = (ConnectionKind.UNAUTHENTICATED, "user ana")
WAITING_MAX = 4


class Opened(asyncio.Protocol):
    """A connection that says so."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"opened")


@dataclass
class Port:
    """A port with so many places."""

    places: int
    owner: Place = EVE  #: of the next connections
    refused: list[Place] = field(default_factory=list)
    name: Any = None
    _accepted: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def identify(self, _connection: socket.socket, _address: Any) -> Place:
        """Return the owner, whoever it is."""
        self._accepted.set()
        return self.owner

    def admit(self, _place: Place) -> Opened | None:
        """Give away a place."""
        if not self.places:
            return None
        self.places -= 1
        return Opened()

    def refuse(self, place: Place) -> None:
        """Answer nothing."""
        self.refused.append(place)

    async def connect(self) -> asyncio.StreamReader:
        """Return a new connection, once it is accepted."""
        self._accepted.clear()
        reader, writer = await asyncio.open_connection(*self.name)
        self._writers.append(writer)
        await self._accepted.wait()
        return reader

    def close(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def listening(places: int) -> AsyncIterator[Port]:
    """Serve a port with so many places."""
    port = Port(places)
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        listener.setblocking(False)
        port.name = listener.getsockname()
        serving = asyncio.create_task(
            PlainListener(
                listener,
                identify=port.identify,
                admit=port.admit,
                refuse=port.refuse,
                waiting_max=lambda: WAITING_MAX,
            ).serve()
        )
        try:
            async with asyncio.timeout(60):
                yield port
        finally:
            port.close()
            serving.cancel()
            await asyncio.wait([serving])


async def test_a_connection_without_a_place_waits_before_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that then connects again costs little: it waits for each refusal."""
    monkeypatch.setattr(listeners, "WAIT_S", 0.3)
    loop = asyncio.get_running_loop()
    async with listening(places=1) as port:
        first = await port.connect()
        began_s = loop.time()
        second = await port.connect()

        assert await first.readexactly(6) == b"opened"
        assert await second.read() == b""
        assert loop.time() - began_s >= 0.3
    assert port.refused == [EVE]


async def test_a_connection_that_waits_gets_the_next_free_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In order of arrival: one that comes later is behind it."""
    monkeypatch.setattr(listeners, "WAIT_S", 60.0)
    monkeypatch.setattr(listeners, "PLACE_CHECK_S", 0.01)
    async with listening(places=0) as port:
        waiting = await port.connect()
        port.places = 1
        later = await port.connect()

        assert await waiting.readexactly(6) == b"opened"
        assert not port.places
        port.places = 1
        assert await later.readexactly(6) == b"opened"
    assert not port.refused


async def test_those_that_wait_do_not_delay_another_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each owner waits for itself."""
    monkeypatch.setattr(listeners, "WAIT_S", 60.0)
    monkeypatch.setattr(listeners, "PLACE_CHECK_S", 60.0)
    async with listening(places=0) as port:
        await port.connect()
        port.places, port.owner = 1, ANA
        other = await port.connect()
        assert await other.readexactly(6) == b"opened"


async def test_if_too_many_wait_the_owner_with_the_most_loses_its_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They cost a descriptor each."""
    monkeypatch.setattr(listeners, "WAIT_S", 60.0)
    async with listening(places=0) as port:
        port.owner = ANA
        ana = await port.connect()
        port.owner = EVE
        eve = [await port.connect() for _ in range(WAITING_MAX)]

        assert await eve[0].read() == b""
        assert not any(reader.at_eof() for reader in (ana, *eve[1:]))
