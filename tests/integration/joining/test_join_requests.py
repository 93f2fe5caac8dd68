"""Machines that want in without a code, of which some are made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from octaskly.core.model.ids import Address, NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.joining.conversation import Conversation, listen
from octaskly.joining.fingerprint import COMMITMENT_BYTES, HALF_BYTES, Half
from octaskly.joining.greeting import GREETING_BYTES, Greeting
from octaskly.joining.join_requests import MET_MAX, MET_PER_ADDRESS, Requests
from octaskly.mesh.discovery.scan import Found
from octaskly.system.clock import SystemClock
from octaskly.system.listeners import bind, port_of
from octaskly.system.log import configure
from octaskly.trust.node_key import NodeKey

LIARS = [f"127.0.0.{number}" for number in range(2, 2 + MET_MAX // MET_PER_ADDRESS)]


def machine(tasks: asyncio.TaskGroup, name: str, host: str) -> Found:
    """Start a machine that answers as `octaskly join` does; return how it is seen."""
    key = NodeKey.generate()
    (listener,) = bind(
        "--port", asked=0, default=0, addresses=[host], holder=lambda _: None
    )

    async def welcome(conversation: Conversation) -> None:
        own = Greeting(name=name, key=key.public_bytes(), wall_ms=0)
        await conversation.hear(GREETING_BYTES + COMMITMENT_BYTES)
        await conversation.say(own.pack() + Half.fresh().public())
        await conversation.hear(HALF_BYTES)
        await conversation.hear(1)  # It waits until people have compared.

    tasks.create_task(listen([listener], welcome))
    return Found(key.node_id, None, (Address(host, port_of([listener])),))


@asynccontextmanager
async def member() -> AsyncIterator[Requests]:
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
    requests = Requests(
        node=node,
        node_key=NodeKey.generate().public_bytes(),
        keyring=lambda: "",
        interfaces=["lo"],
        clock=SystemClock(),
        log=configure("json", "error", {}),
    )
    yield requests
    requests.close()


async def test_made_up_machines_keep_no_place_from_a_real_one() -> None:
    """However many a stranger makes up, and though they were there before."""
    async with member() as ash, asyncio.TaskGroup() as tasks:
        lies = [
            machine(tasks, "lie", host)
            for host in LIARS
            for _ in range(MET_PER_ADDRESS + 2)
        ]
        before = await ash.meet(lies)
        bay = machine(tasks, "bay", "127.0.0.1")
        (first,) = [one for one in await ash.meet([*lies, bay]) if one.name == "bay"]
        after = await ash.meet([*lies, bay])
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    assert len(before) == len(after) == MET_MAX
    assert first in after  # The words are the same: it was met once.
