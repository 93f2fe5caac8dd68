"""A hostile visitor: a program with a visitor's certificate that sends anything."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec.structs import replace

from octaskly.core.model.ids import NO_EPOCH
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import Hello, HelloOk, Leave, Message
from octaskly.mesh import wire
from octaskly.trust import MeshTls, NodeKey, load_secret
from octaskly.trust.mesh_secret import MeshSecret
from octaskly.trust.node_key import visitor_id_of
from octaskly.trust.tls import VisitorTls
from tests.support.agents import Agent

VISIT_S = 3600


class HostileVisitor:
    """A visitor's key and certificate for the mesh of an agent."""

    def __init__(
        self,
        folder: Path,
        agent: Agent,
        *,
        stay_s: int = VISIT_S,
        secret: MeshSecret | None = None,
    ) -> None:
        key = NodeKey.generate()
        secret = secret or load_secret(folder / "mesh.key")
        member = MeshTls(secret, NodeKey.generate())
        now_ms = int(time.time() * 1000)
        grant = member.grant_visit(key.public_bytes(), now_ms, stay_s)
        self.trust = VisitorTls(grant, key)
        self.node_id = visitor_id_of(key.public_bytes())
        ready = agent.ready()
        self._place = ("127.0.0.1", ready["peer_port"])
        self._lan_port = int(ready["lan_url"].rpartition(":")[2])

    def hello(self, **lies: object) -> Hello:
        """Return a HELLO, with lies about the node."""
        info = NodeInfo(
            id=self.node_id,
            boot="boot",
            name="stranger",
            slots=2,
            version="0",
            peer_port=1,
            lan_port=1,
        )
        return Hello(node=replace(info, **lies), epoch=NO_EPOCH, dispatcher=None)

    def _careless(self, context: ssl.SSLContext) -> ssl.SSLContext:
        """Return a context that does not check who is at the other end."""
        context.verify_mode = ssl.CERT_NONE
        return context

    @contextlib.contextmanager
    def linked(self, hello: Hello | None = None) -> Iterator[ssl.SSLSocket]:
        """Connect, and complete this side of the handshake."""
        context = self._careless(self.trust.client_contexts()[0])
        with (
            socket.create_connection(self._place, timeout=10) as plain,
            context.wrap_socket(plain) as tls,
        ):
            tls.sendall(wire.encode([hello or self.hello(), HelloOk()]))
            yield tls

    @contextlib.contextmanager
    def connection(self) -> Iterator[http.client.HTTPSConnection]:
        """Return a connection to the HTTPS port, with the visitor's certificate."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1",
            self._lan_port,
            timeout=30,
            context=self._careless(self.trust.lan_client_context()),
        )
        with contextlib.closing(connection):
            yield connection

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        connection: http.client.HTTPSConnection | None = None,
    ) -> tuple[int, bytes]:
        """Return status and body of an answer, on a new connection by default."""
        if connection is None:
            with self.connection() as own:
                return self.ask(method, path, headers, connection=own)
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()


def hear(tls: ssl.SSLSocket, kind: type[Message]) -> None:
    """Wait for a message of a kind."""
    decoder, heard = wire.Decoder(Limits()), list[Message]()
    while not any(isinstance(message, kind) for message in heard):
        data = tls.recv(65536)
        assert data, heard
        heard += decoder.receive_data(data)


def hear_all(tls: ssl.SSLSocket) -> list[Message]:
    """Return what a member sends until it closes the link."""
    decoder, heard = wire.Decoder(Limits()), list[Message]()
    with contextlib.suppress(ConnectionError):
        while data := tls.recv(65536):
            heard += decoder.receive_data(data)
    return heard


def farewell(tls: ssl.SSLSocket) -> str:
    """Return why a member closed the link; "" if it did not say."""
    return next((m.reason for m in hear_all(tls) if isinstance(m, Leave)), "")
