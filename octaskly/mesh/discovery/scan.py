"""A short look at who is in sight, and a beacon for those who take one.

Both open mDNS for themselves and close it again; what they say is a hint for dialling.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Sequence,
)
from dataclasses import dataclass
from functools import partial

from octaskly.core.model.ids import Address, NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.mesh.discovery.adverts import (
    PAIRING_SERVICE,
    SERVICE,
    DiscoveredNodes,
    MalformedAdvert,
    ServiceRecord,
    build_txt,
    node_id_of_name,
)
from octaskly.mesh.discovery.interfaces import local_addresses
from octaskly.mesh.discovery.mdns import Mdns, open_mdns, reachable_addresses

#: How long a machine without a secret looks for a mesh. A member that has spoken over
#: mDNS within the last second may not repeat it at once (RFC 6762, 6): the library then
#: answers after 1.02 to 1.12 s. Whoever looked for less made a mesh of its own.
FIRST_SCAN_S = 1.2
SETTLE_S = 0.1  #: after the first that is wanted, for others to be heard


@dataclass(frozen=True, slots=True)
class FoundNode:
    """A node in sight."""

    node: NodeId
    mesh: str | None  #: None: it is in none yet
    addresses: tuple[Address, ...]  #: where to dial it, best first
    lan_port: int = 0  #: of its HTTPS API; 0: it says none


async def scan_meshes(
    timeout_s: float,
    interfaces: Sequence[str] = (),
    *,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> frozenset[str]:
    """Return the ids of the meshes in sight, as soon as there is one.

    A machine without a secret asks this before it makes one. Where mDNS cannot be
    used, nothing is in sight.

    Args:
        timeout_s: How long to look when there is none.
        interfaces: Names that restrict the choice.
        meanwhile: What this process does meanwhile; it is awaited, too.

    Raises:
        ConfigError: an interface that was named does not exist.
    """
    found = await _scan(
        timeout_s, interfaces, SERVICE, lambda one: bool(one.mesh), meanwhile=meanwhile
    )
    return frozenset(one.mesh for one in found if one.mesh)


async def scan_nodes(
    timeout_s: float, interfaces: Sequence[str] = ()
) -> list[FoundNode]:
    """Return all nodes in sight, of whatever mesh.

    Args:
        timeout_s: How long to look when there is none; half of it once there is one.
        interfaces: Names that restrict the choice.

    Raises:
        ConfigError: as `scan_meshes`.
    """
    return await _scan(
        timeout_s, interfaces, SERVICE, lambda _: True, settle_s=timeout_s / 2
    )


async def scan_pairing_beacons(
    timeout_s: float,
    interfaces: Sequence[str] = (),
    *,
    of_members: bool,
) -> list[FoundNode]:
    """Return who lets machines in, or who wants to be let in.

    As `scan_meshes`, but those are awaited too that answer a little later.
    """
    return await _scan(
        timeout_s,
        interfaces,
        PAIRING_SERVICE,
        lambda one: (one.mesh is not None) is of_members,
        settle_s=SETTLE_S,
    )


async def scan_inviting_members(
    timeout_s: float, interfaces: Sequence[str] = ()
) -> AsyncGenerator[FoundNode]:
    """Yield who lets machines in, each as soon as it is heard of, until time is up.

    Whoever ends this early should close it, as it holds sockets.
    """
    ends_s = asyncio.get_running_loop().time() + timeout_s
    async with _open_scan(
        interfaces, PAIRING_SERVICE, lambda one: bool(one.mesh)
    ) as sky:
        told: set[NodeId] = set()
        while True:
            news = [one for one in sky.found.values() if one.node not in told]
            for one in news:
                told.add(one.node)
                yield one
            sky.has_changed.clear()
            if told == sky.found.keys() and not await sky.wait_for_node(ends_s):
                return


@contextlib.asynccontextmanager
async def advertise_pairing(
    node: NodeInfo, *, mesh_id: str | None, interfaces: Sequence[str]
) -> AsyncIterator[bool]:
    """Say over mDNS, for the length of the block, where a pairing can be begun.

    Args:
        node: Who it is; its peer port stands for that of the pairing.
        mesh_id: The mesh that lets in; None: the node wants to be let in.
        interfaces: Names that restrict the choice.

    Yields whether it could be said.
    """
    local = await asyncio.to_thread(local_addresses, interfaces, must_exist=False)
    try:
        mdns = await open_mdns(local, service=PAIRING_SERVICE)
    except OSError:
        yield False
        return
    try:
        await mdns.announce(
            node.id,
            port=node.peer_port,
            hosts=tuple(dict.fromkeys(one.host.partition("%")[0] for one in local)),
            txt=build_txt(node, mesh_id=mesh_id, is_dispatcher=False, term=0),
        )
        yield True
    finally:
        await mdns.close()


class _ScanResults:
    """Who is in sight."""

    def __init__(self) -> None:
        self.found: dict[NodeId, FoundNode] = {}
        self.has_changed = asyncio.Event()

    async def wait_for_node(self, ends_s: float) -> bool:
        """Wait for the next that is found; return False when time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(ends_s):
                await self.has_changed.wait()
                return True
        return False


@contextlib.asynccontextmanager
async def _open_scan(
    interfaces: Sequence[str], service: str, is_wanted: Callable[[ServiceRecord], bool]
) -> AsyncIterator[_ScanResults]:
    """Look for the length of the block; what is forged has the bounds of an agent."""
    local = await asyncio.to_thread(local_addresses, interfaces)
    sky, candidates = _ScanResults(), DiscoveredNodes()

    def look(mdns: Mdns, name: str, has_left: bool) -> None:  # noqa: FBT001  a callback
        node = node_id_of_name(name, service)
        if node is None or has_left or not candidates.has_room(node):
            return
        with contextlib.suppress(MalformedAdvert):
            sighting = mdns.read_cached(node)
            if sighting is None or not is_wanted(sighting):
                return
            sighting = candidates.update_node(sighting)
            if addresses := reachable_addresses(sighting, local):
                found = FoundNode(node, sighting.mesh, addresses, sighting.lan_port)
                sky.found[node] = found
                sky.has_changed.set()

    async with contextlib.AsyncExitStack() as opened:
        for is_guest in (True, False):
            with contextlib.suppress(OSError):
                mdns = await open_mdns(local, is_guest=is_guest, service=service)
                opened.push_async_callback(mdns.close)
                mdns.browse(partial(look, mdns))
        yield sky


async def _scan(
    timeout_s: float,
    interfaces: Sequence[str],
    service: str,
    is_wanted: Callable[[ServiceRecord], bool],
    *,
    settle_s: float = 0.0,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> list[FoundNode]:
    async with _open_scan(interfaces, service, is_wanted) as sky:
        clock = asyncio.get_running_loop().time
        ends_s = clock() + timeout_s
        if meanwhile is not None:
            await meanwhile()
            # What came while this process was busy has yet to be read.
            ends_s = max(ends_s, clock() + SETTLE_S)
        if await sky.wait_for_node(ends_s):
            await asyncio.sleep(min(settle_s, max(0.0, ends_s - clock())))
    return list(sky.found.values())
