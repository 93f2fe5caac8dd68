"""APIs of one mesh on real sockets, which forward to each other over mutual TLS."""

from __future__ import annotations

import socket
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from octaskly.api import HttpTimeouts, ListenerKind
from octaskly.trust import mesh_secret as secrets_of
from octaskly.trust.node_key import NodeKey
from octaskly.trust.tls import MeshTls
from tests.support.api_node import ApiNode, api_node, serve_free
from tests.support.fake_gateway import FakeGateway

#: A machine that stalls must not make a node seem to be gone, or a hold seem over.
PATIENT = HttpTimeouts(
    dispatcher_wait_s=30.0, connect_s=30.0, shutdown_s=1.0, refusal_delay_s=0.0
)
SECRET = secrets_of.generate_secret()


@dataclass
class Member:
    """A node with both listeners."""

    api: ApiNode
    trust: MeshTls
    lan_port: int

    @property
    def gateway(self) -> FakeGateway:
        return self.api.gateway

    @property
    def lan_url(self) -> str:
        return f"https://127.0.0.1:{self.lan_port}"

    def follow(self, other: Member, term: int = 1) -> None:
        """Set `other` as its dispatcher."""
        view = self.gateway.view_of(
            other.gateway.node_id, term=term, lan_urls=[other.lan_url]
        )
        self.gateway.elect(view)

    def reach_through(self, relay: Member, dispatcher: Member) -> None:
        """Set a dispatcher that this member reaches only through another one."""
        view = self.gateway.view_of(
            dispatcher.gateway.node_id, lan_urls=[relay.lan_url]
        )
        self.gateway.elect(replace(view, relay=relay.gateway.node_id))

    def become_dispatcher(self, term: int = 1) -> None:
        """Become dispatcher itself."""
        view = self.gateway.view_of(self.gateway.node_id, term=term)
        self.gateway.elect(view)


class ApiMesh(AsyncExitStack):
    """Members that share one secret."""

    def __init__(self) -> None:
        super().__init__()
        self.tuned: list[socket.socket] = []  #: connections to other members

    async def member(
        self, name: str, deadlines: HttpTimeouts = PATIENT, **options: Any
    ) -> Member:
        trust = MeshTls(SECRET, NodeKey.generate())
        api = await self.enter_async_context(
            api_node(
                FakeGateway(trust.node_id, name=name),
                node_name=name,
                lan_ssl=trust.lan_server_contexts([name], ["127.0.0.1"]),
                forward_ssl=trust.lan_client_context(),
                identify_peer=trust.peer_identity,
                timeouts=deadlines,
                configure_socket=self.tuned.append,
                **options,
            )
        )
        return Member(
            api, trust, await serve_free(api.server, ListenerKind.LAN, ["127.0.0.1"])
        )


def stranger_context() -> ssl.SSLContext:
    """Return the context of a client that trusts the mesh, without a certificate."""
    return MeshTls(SECRET, NodeKey.generate()).lan_probe_context()
