"""Short mDNS scans for meshes, nodes and open invites, and the pairing advert.

Each opens its own mDNS sockets and closes them again. Results are hints for dialling.
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

#: How long a machine without a secret scans for a mesh. A node that has sent a record
#: within the last second may not repeat it at once (RFC 6762, section 6): zeroconf then
#: answers after 1.02 to 1.12 s. With a shorter scan, machines created meshes of their
#: own beside the existing one.
FIRST_SCAN_S = 1.2
SETTLE_S = 0.1  #: time after the first match to collect further ones


@dataclass(frozen=True, slots=True)
class FoundNode:
    """A node that a scan has found."""

    node: NodeId
    mesh: str | None  #: None: it is in no mesh yet
    addresses: tuple[Address, ...]  #: to dial, best first
    lan_port: int = 0  #: of its HTTPS API; 0: none advertised


async def scan_meshes(
    timeout_s: float,
    interfaces: Sequence[str] = (),
    *,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> frozenset[str]:
    """Return the ids of the meshes on this LAN, as soon as one is found.

    A machine without a secret calls this before it creates a mesh. Returns an empty
    set if mDNS is not available.

    Args:
        timeout_s: Duration of the scan if no mesh is found.
        interfaces: Names of the interfaces to use; empty for the default choice.
        meanwhile: Work to await while the scan runs.

    Raises:
        ConfigError: A named interface does not exist.
    """
    found = await _scan(
        timeout_s, interfaces, SERVICE, lambda one: bool(one.mesh), meanwhile=meanwhile
    )
    return frozenset(one.mesh for one in found if one.mesh)


async def scan_nodes(
    timeout_s: float, interfaces: Sequence[str] = ()
) -> list[FoundNode]:
    """Return all nodes on this LAN, of any mesh.

    Args:
        timeout_s: Duration of the scan if no node is found. After the first node the
            scan continues for at most half of this time.
        interfaces: Names of the interfaces to use; empty for the default choice.

    Raises:
        ConfigError: A named interface does not exist.
    """
    return await _scan(
        timeout_s, interfaces, SERVICE, lambda _: True, settle_s=timeout_s / 2
    )


async def scan_waiting_machines(
    timeout_s: float, interfaces: Sequence[str] = ()
) -> list[FoundNode]:
    """Return machines that ask to join.

    After the first match, the scan continues for `SETTLE_S`.
    """
    return await _scan(
        timeout_s,
        interfaces,
        PAIRING_SERVICE,
        lambda one: one.mesh is None,
        settle_s=SETTLE_S,
    )


async def scan_inviting_members(
    timeout_s: float, interfaces: Sequence[str] = ()
) -> AsyncGenerator[FoundNode]:
    """Yield members with an open invite as they are found, until the timeout.

    Close the generator if you stop early, because it holds sockets.
    """
    ends_s = asyncio.get_running_loop().time() + timeout_s
    async with _open_scan(
        interfaces, PAIRING_SERVICE, lambda one: bool(one.mesh)
    ) as results:
        yielded: set[NodeId] = set()
        while True:
            new = [one for one in results.found.values() if one.node not in yielded]
            for one in new:
                yielded.add(one.node)
                yield one
            results.has_changed.clear()
            is_complete = yielded == results.found.keys()
            if is_complete and not await results.wait_for_node(ends_s):
                return


@contextlib.asynccontextmanager
async def advertise_pairing(
    node: NodeInfo, *, mesh_id: str | None, interfaces: Sequence[str]
) -> AsyncIterator[bool]:
    """Advertise the pairing address of a node over mDNS while the block runs.

    Args:
        node: The node to advertise; its peer port must be the pairing port.
        mesh_id: The mesh that has an open invite; None: the node asks to join.
        interfaces: Names of the interfaces to use; empty for the default choice.

    Yields False if mDNS is not available.
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
    """The nodes that a running scan has found."""

    def __init__(self) -> None:
        self.found: dict[NodeId, FoundNode] = {}
        self.has_changed = asyncio.Event()

    async def wait_for_node(self, ends_s: float) -> bool:
        """Wait for the next node; return False at the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(ends_s):
                await self.has_changed.wait()
                return True
        return False


@contextlib.asynccontextmanager
async def _open_scan(
    interfaces: Sequence[str], service: str, is_wanted: Callable[[ServiceRecord], bool]
) -> AsyncIterator[_ScanResults]:
    """Scan while the block runs; forged adverts are bounded as in `Discovery`."""
    local = await asyncio.to_thread(local_addresses, interfaces)
    results, candidates = _ScanResults(), DiscoveredNodes()

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
                results.found[node] = found
                results.has_changed.set()

    async with contextlib.AsyncExitStack() as opened:
        for is_guest in (True, False):
            with contextlib.suppress(OSError):
                mdns = await open_mdns(local, is_guest=is_guest, service=service)
                opened.push_async_callback(mdns.close)
                mdns.browse(partial(look, mdns))
        yield results


async def _scan(
    timeout_s: float,
    interfaces: Sequence[str],
    service: str,
    is_wanted: Callable[[ServiceRecord], bool],
    *,
    settle_s: float = 0.0,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> list[FoundNode]:
    async with _open_scan(interfaces, service, is_wanted) as results:
        clock = asyncio.get_running_loop().time
        ends_s = clock() + timeout_s
        if meanwhile is not None:
            await meanwhile()
            # Packets that arrived while this process was busy are not read yet.
            ends_s = max(ends_s, clock() + SETTLE_S)
        if await results.wait_for_node(ends_s):
            await asyncio.sleep(min(settle_s, max(0.0, ends_s - clock())))
    return list(results.found.values())
