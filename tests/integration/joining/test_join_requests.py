"""Requests to join without a code, some of them forged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from octaskly.core.model.ids import Address, NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.joining.conversation import Conversation, serve_connections
from octaskly.joining.fingerprint import COMMITMENT_BYTES, KEY_SHARE_BYTES, KeyShare
from octaskly.joining.greeting import GREETING_BYTES, Greeting
from octaskly.joining.join_requests import (
    WAITING_MAX,
    WAITING_PER_ADDRESS_MAX,
    WaitingMachines,
)
from octaskly.mesh.discovery.mdns_scan import FoundNode
from octaskly.system.clock import SystemClock
from octaskly.system.listening_sockets import bind_port, port_of
from octaskly.system.log import configure
from octaskly.trust.node_key import NodeKey

LIARS = [
    f"127.0.0.{number}"
    for number in range(2, 2 + WAITING_MAX // WAITING_PER_ADDRESS_MAX)
]


def machine(tasks: asyncio.TaskGroup, name: str, host: str) -> FoundNode:
    """Start a machine that answers as `octaskly join` does; return its sighting."""
    key = NodeKey.generate()
    (listener,) = bind_port("--port", requested=0, default=0, addresses=[host])

    async def welcome(conversation: Conversation) -> None:
        own = Greeting(name=name, key=key.public_bytes(), wall_ms=0)
        await conversation.receive(GREETING_BYTES + COMMITMENT_BYTES)
        await conversation.send(own.pack() + KeyShare.generate().public())
        await conversation.receive(KEY_SHARE_BYTES)
        await conversation.receive(1)  # It waits until people have compared.

    tasks.create_task(serve_connections([listener], welcome))
    return FoundNode(key.node_id, None, (Address(host, port_of([listener])),))


@asynccontextmanager
async def member() -> AsyncIterator[WaitingMachines]:
    node = NodeInfo(
        id=NodeId("a" * 16),
        boot="0" * 16,
        name="ash",
        slots=1,
        version="0",
        peer_port=7878,
        lan_port=3443,
        addresses=("127.0.0.1",),
    )
    requests = WaitingMachines(
        node=node,
        node_key=NodeKey.generate().public_bytes(),
        secret_text=lambda: "",
        interfaces=["lo"],
        clock=SystemClock(),
        log=configure("json", "error", {}),
    )
    yield requests
    requests.close()


async def test_forged_requests_do_not_displace_a_real_one() -> None:
    """However many a stranger forges, and however early."""
    async with member() as ash, asyncio.TaskGroup() as tasks:
        lies = [
            machine(tasks, "lie", host)
            for host in LIARS
            for _ in range(WAITING_PER_ADDRESS_MAX + 2)
        ]
        before = await ash.contact_machines(lies)
        bay = machine(tasks, "bay", "127.0.0.1")
        (first,) = [
            one for one in await ash.contact_machines([*lies, bay]) if one.name == "bay"
        ]
        after = await ash.contact_machines([*lies, bay])
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    assert len(before) == len(after) == WAITING_MAX
    assert first in after  # The words are the same: it was met once.
