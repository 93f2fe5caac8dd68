"""The search for inviting members, over real mDNS and with forged records."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.mesh.discovery import mdns_scan
from octaskly.mesh.discovery.adverts import (
    NODES_PER_HOST_MAX,
    PAIRING_SERVICE,
    ServiceRecord,
)
from octaskly.mesh.discovery.mdns_scan import (
    FoundNode,
    advertise_pairing,
    scan_inviting_members,
)
from tests.integration.mesh.test_discovery import node_id

LOOK_S = 60.0  #: no scan here takes that long


def member(port: int) -> NodeInfo:
    return NodeInfo(
        id=NodeId(node_id()),
        boot="0" * 16,
        name="ash",
        slots=1,
        version="0",
        peer_port=port,
        lan_port=3443,
        addresses=("127.0.0.1",),
    )


async def test_a_member_that_invites_later_is_found_during_a_scan() -> None:
    """Two people may invite at once, and the first answer may be the wrong one."""
    first, second = member(1001), member(1002)
    async with contextlib.AsyncExitStack() as stack:
        await shine(stack, first)
        found = scan_inviting_members(LOOK_S, ["lo"])
        async with contextlib.aclosing(found):
            await until(found, first.id)
            await shine(stack, second)
            await until(found, second.id)


async def test_a_scan_ends_at_its_timeout() -> None:
    """Also without any answer."""
    node = member(1003)
    seen = [one.node async for one in scan_inviting_members(0.2, ["lo"])]

    assert node.id not in seen


async def test_forged_members_of_one_address_are_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As for agents: a thousand adverts of a victim lead to a few dials."""
    monkeypatch.setattr(mdns_scan, "open_mdns", Forger.open)
    monkeypatch.setattr(mdns_scan, "reachable_addresses", lambda one, _: one.hosts)

    async with contextlib.aclosing(scan_inviting_members(LOOK_S, ["lo"])) as found:
        for _ in range(NODES_PER_HOST_MAX):
            await anext(found)
    all_ = [one async for one in scan_inviting_members(0.1, ["lo"])]
    assert len(all_) <= NODES_PER_HOST_MAX


class Forger:
    """mDNS with thousands of members at one address, each on its own port."""

    def __init__(self) -> None:
        self._ports: dict[NodeId, int] = {}

    @classmethod
    async def open(cls, *_: object, **__: object) -> Forger:
        """Replace `open_mdns`."""
        return cls()

    def browse(self, on_change: Callable[[str, bool], None]) -> None:
        """Report all at once."""
        for number in range(2000):
            self._ports[NodeId(node_id())] = 1000 + number
        for node in self._ports:
            on_change(f"{node}.{PAIRING_SERVICE}", False)

    def read_cached(self, node: NodeId) -> ServiceRecord:
        """Return the records of one of them."""
        return ServiceRecord(
            node=node,
            hosts=("10.9.8.7",),
            port=self._ports[node],
            mesh="0" * 16,
            boot="0" * 16,
        )

    async def close(self) -> None:
        """Do nothing."""


async def shine(stack: contextlib.AsyncExitStack, node: NodeInfo) -> None:
    shown = advertise_pairing(node, mesh_id="0" * 16, interfaces=["lo"])
    assert await stack.enter_async_context(shown)


async def until(found: AsyncIterator[FoundNode], node: NodeId) -> None:
    """Scan until this one is found; other meshes may use this loopback, too."""
    async with asyncio.timeout(LOOK_S):
        while (await anext(found)).node != node:
            pass
