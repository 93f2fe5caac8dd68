"""Requests to join without a code, some of them forged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from octaskly.core.model.ids import Address, NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.errors import PairingFailed
from octaskly.joining.conversation import (
    Conversation,
    connect_first,
    serve_connections,
)
from octaskly.joining.fingerprint import COMMITMENT_BYTES, KEY_SHARE_BYTES, KeyShare
from octaskly.joining.greeting import GREETING_BYTES, Greeting
from octaskly.joining.join_by_words import COMPARISONS_MAX, wait_for_member
from octaskly.joining.join_requests import (
    WAITING_MAX,
    WAITING_PER_ADDRESS_MAX,
    WaitingMachines,
)
from octaskly.mesh.discovery.mdns_scan import FoundNode, scan_waiting_machines
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


async def try_words(machine: FoundNode) -> bool:
    """Take the share of a machine, which fixes its words, and leave; False: refused."""
    conversation = await connect_first(machine.addresses)
    clock = SystemClock()
    greeting = Greeting(name="ash", key=bytes(32), wall_ms=clock.now().wall_ms)
    try:
        await conversation.send(greeting.pack() + bytes(COMMITMENT_BYTES))
        await conversation.receive(GREETING_BYTES + KEY_SHARE_BYTES)
    except ConnectionError:
        return False
    finally:
        conversation.close()
    return True


async def test_words_that_were_not_shown_count_as_tries() -> None:
    """Whoever knows the words of a member could search for the same ones unseen."""
    key = NodeKey.generate()
    waiting = asyncio.create_task(wait_for_member("bay", key.public_bytes(), ["lo"]))
    found: list[FoundNode] = []
    while not found:
        seen = await scan_waiting_machines(1.0, ["lo"])
        found = [one for one in seen if one.node == key.node_id]

    tries = [await try_words(found[0]) for _ in range(COMPARISONS_MAX + 1)]

    assert tries == [True] * COMPARISONS_MAX + [False]
    with pytest.raises(PairingFailed, match="before the words could be compared"):
        await waiting
