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

from octaskly.core.model.ids import NO_EPOCH, Epoch
from octaskly.core.model.nodes import NO_LOAD, NodeInfo, NodeState
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import (
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Leave,
    Message,
    Reattach,
)
from octaskly.mesh import wire
from octaskly.trust import MeshTls, NodeKey, load_secret
from octaskly.trust.mesh_secret import MeshSecret
from octaskly.trust.node_key import visitor_id_of
from octaskly.trust.tls import VisitorTls
from tests.support.agents import Agent

VISIT_S = 3600
SLOTS = 2


class HostileLink:
    """A link to a member, whose handshake this side has completed."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.heard: list[Message] = []  #: that `hear` did not wait for
        self._tls = tls
        self._decoder = wire.Decoder(Limits())

    def send(self, *messages: Message) -> None:
        """Send messages in one frame."""
        self.send_bytes(wire.encode(list(messages)))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes, which may be no frame."""
        self._tls.sendall(data)

    def hear(self, kind: type[Message]) -> Message:
        """Return the first message of a kind, or the Leave that came instead."""
        while True:
            for message in self.heard:
                if isinstance(message, kind | Leave):
                    self.heard.remove(message)
                    return message
            if not self._receive():
                return Leave("closed")

    def expect(self, kind: type[Message]) -> None:
        """Wait for a message of a kind; the member must not close the link."""
        found = self.hear(kind)
        assert isinstance(found, kind), found

    def hear_all(self) -> list[Message]:
        """Return what the member sends until it closes the link."""
        while self._receive():
            pass
        return self.heard

    def farewell(self) -> str:
        """Return why the member closed the link; "" if it did not say."""
        found = self.hear(Leave)
        assert isinstance(found, Leave)
        return "" if found == Leave("closed") else found.reason

    def attach(self) -> Epoch:
        """Become a worker, and return the dispatcher's epoch."""
        beat = self.hear(Heartbeat)
        assert isinstance(beat, Heartbeat), beat
        ok = HeartbeatOk(beat.epoch, beat.sent_s, NodeState.READY, SLOTS, NO_LOAD)
        self.send(Reattach((), SLOTS, NodeState.READY), ok)
        return beat.epoch

    def _receive(self) -> bool:
        """Read some messages; return False at the end of the link."""
        try:
            data = self._tls.recv(65536)
        except (ConnectionError, ssl.SSLError):
            return False
        self.heard += self._decoder.receive_data(data) if data else ()
        return bool(data)


class HostileVisitor:
    """A visitor's key and certificate for the mesh of an agent.

    Args:
        folder: It has the secret of the mesh.
        agent: The member that it dials.
        begins_ms: Wall clock at which its certificate begins; None: now.
        stay_s: Length of the visit.
        secret: Another secret that signs its certificate.
    """

    def __init__(
        self,
        folder: Path,
        agent: Agent,
        *,
        begins_ms: int | None = None,
        stay_s: int = VISIT_S,
        secret: MeshSecret | None = None,
    ) -> None:
        key = NodeKey.generate()
        secret = secret or load_secret(folder / "mesh.key")
        member = MeshTls(secret, NodeKey.generate())
        now_ms = int(time.time() * 1000) if begins_ms is None else begins_ms
        grant = member.grant_visit(key.public_bytes(), now_ms, stay_s)
        self.trust = VisitorTls(grant, key)
        self.node_id = visitor_id_of(key.public_bytes())
        self.agent = agent

    def hello(self, **lies: object) -> Hello:
        """Return a HELLO, with lies about the node."""
        info = NodeInfo(
            id=self.node_id,
            boot="boot",
            name="stranger",
            slots=SLOTS,
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
    def linked(self, hello: Hello | None = None) -> Iterator[HostileLink]:
        """Connect, and complete this side of the handshake."""
        context = self._careless(self.trust.client_contexts()[0])
        place = ("127.0.0.1", self.agent.ready()["peer_port"])
        with (
            socket.create_connection(place, timeout=10) as plain,
            context.wrap_socket(plain) as tls,
        ):
            link = HostileLink(tls)
            link.send(hello or self.hello(), HelloOk())
            yield link

    @contextlib.contextmanager
    def connection(
        self, context: ssl.SSLContext | None = None
    ) -> Iterator[http.client.HTTPSConnection]:
        """Return a connection to the HTTPS port, with the visitor's certificate."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1",
            int(self.agent.ready()["lan_url"].rpartition(":")[2]),
            timeout=30,
            context=self._careless(context or self.trust.lan_client_context()),
        )
        with contextlib.closing(connection):
            yield connection

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        connection: http.client.HTTPSConnection | None = None,
    ) -> tuple[int, bytes]:
        """Return status and body of an answer, on a new connection by default."""
        if connection is None:
            with self.connection() as own:
                return self.ask(method, path, headers, body, connection=own)
        sent = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, body, {**sent, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()
