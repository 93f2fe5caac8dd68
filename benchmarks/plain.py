"""What TLS and tokens cost: the same mesh of two without them, in this process alone.

An agent started as `python -m benchmarks.plain agent ...` talks to its one peer over
bare TCP; the shipped package has no switch for that. Its client comes by the local
socket, while that of the other mesh comes by HTTPS, with a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import statistics
import sys
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.measure import BATCH, Row, occupy, throughput
from octaskly.cli import main
from octaskly.core.model.ids import NodeId
from octaskly.mesh.links.link import Link
from octaskly.trust import MeshTls, NodeKey, create_secret_file
from octaskly.trust.certificates import PeerIdentity
from octaskly.trust.tls import ALPN
from tests.support.agents import Agent, launch, until_nodes

PEER = "BENCHMARK_PEER"  #: in the environment: the id of the only other node
SHARE = 0.95


class _Bare:
    """Stands for the TLS of a connection that has none."""

    def selected_alpn_protocol(self) -> str:
        """Return what the peer would have chosen."""
        return ALPN


def undress() -> None:
    """Have this process talk to its peer without TLS."""
    peer = PeerIdentity(NodeId(os.environ[PEER]))
    MeshTls.peer_identity = lambda *_: peer  # type: ignore[method-assign]
    MeshTls.is_generation_accepted = lambda *_: True  # type: ignore[method-assign]
    made = Link.connection_made

    def connection_made(self: Link, transport: asyncio.BaseTransport) -> None:
        transport._extra["ssl_object"] = _Bare()  # type: ignore[attr-defined]  # noqa: SLF001
        made(self, transport)

    Link.connection_made = connection_made  # type: ignore[method-assign]
    for name in ("create_connection", "connect_accepted_socket"):
        _strip(name)


def _strip(name: str) -> None:
    method = getattr(asyncio.BaseEventLoop, name)

    async def stripped(
        loop: asyncio.BaseEventLoop, factory: Any, *given: Any, **named: Any
    ) -> Any:
        # Nodes still reach each other's API by HTTPS, as the API probe does.
        if not getattr(factory, "__module__", "").startswith("octaskly.mesh"):
            return await method(loop, factory, *given, **named)
        kept = {key: named[key] for key in named if not key.startswith("ssl")}
        kept.pop("server_hostname", None)
        return await method(loop, factory, *given, **kept)

    setattr(asyncio.BaseEventLoop, name, stripped)


class _Secured(Agent):
    """An agent to which clients come by HTTPS, with a token."""

    token = ""

    def connection(self) -> Any:
        """Return a connection to its LAN port."""
        place = urlsplit(self.ready()["lan_url"])
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        assert place.hostname is not None
        connection = _WithToken(
            place.hostname, place.port, timeout=120, context=context
        )
        connection.token = self.token
        return connection


class _WithToken(HTTPSConnection):
    token = ""

    def putrequest(self, *given: Any, **named: Any) -> None:
        """Begin a request, with the token."""
        super().putrequest(*given, **named)
        self.putheader("Authorization", f"Bearer {self.token}")


@contextlib.contextmanager
def _pair(folder: Path, program: str) -> Iterator[Agent]:
    """Run a dispatcher whose only slot is taken, and a worker."""
    folder.mkdir(parents=True)
    create_secret_file(folder / "mesh.key")
    ids = {}
    for name in ("head", "hand"):
        (folder / name).mkdir(parents=True)
        ids[name] = NodeKey.load_or_create(folder / name).node_id
    agents: list[Agent] = []
    try:
        for name, peer, slots in (("head", "hand", 1), ("hand", "head", 2)):
            os.environ[PEER] = ids[peer]
            extra = ("--name", name, "--slots", str(slots))
            key = folder / "mesh.key"
            agents.append(launch(folder / name, key, *extra, program=program))
            if name == "head":
                until_nodes(agents[0], 1)
                occupy(agents[0], 1)
        until_nodes(agents[0], 2)
        yield agents[0]
    finally:
        for agent in agents:
            agent.stop()


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Run tasks on both meshes, in turns."""
    runs, tasks = (3, BATCH) if quick else (7, 3 * BATCH)
    rates: tuple[list[float], list[float]] = [], []
    with (
        _pair(folder / "tls", "octaskly") as head,
        _pair(folder / "bare", __name__) as bare,
    ):
        status, made = head.call("POST", "/api/v1/tokens", {"role": "client"})
        assert status == 201, made
        tls = _Secured(head.process, head.state, head.started)
        tls.token = made["token"]
        for agent in (tls, bare):
            throughput(agent, "true", BATCH)  # Launchers start with the first task.
        for _ in range(runs):
            for agent, those in zip((tls, bare), rates, strict=True):
                those.append(throughput(agent, "true", tasks))
    ratio = statistics.median(a / b for a, b in zip(*rates, strict=True))
    yield (
        "true on another node by TLS, HTTPS, token",
        f"{statistics.median(rates[0]):.0f}/s",
        f"{ratio:.2f}",
        f">= {SHARE} plaintext",
        "yes" if ratio >= SHARE else "no",
    )


if __name__ == "__main__":
    undress()
    sys.exit(main())
