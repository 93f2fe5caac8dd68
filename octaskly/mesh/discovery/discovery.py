"""mDNS discovery: finds the nodes on this LAN and advertises this one.

It reports hints for dialling, not facts: the advert of a dead node remains for an
hour, and any host on the LAN can send any advert. If port 5353 is not available,
discovery logs a warning and does nothing; remembered peers and `--join` still work.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import replace

from octaskly.core.effects import LogLine
from octaskly.core.events import PeerHint, PeersDiscovered
from octaskly.core.model.ids import Address, NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.mesh.discovery.adverts import (
    DiscoveredNodes,
    MalformedAdvert,
    ServiceRecord,
    build_txt,
    node_id_of_name,
    printable,
)
from octaskly.mesh.discovery.interfaces import LocalAddress, local_addresses
from octaskly.mesh.discovery.mdns import Mdns, open_mdns, reachable_addresses
from octaskly.ports.store import Clock

LARGE_MESH_PEERS = 50  #: above this, a starting node delays its announcement
LARGE_MESH_DELAY_S = 2.0  #: longest delay of the announcement
WARNING_PERIOD_S = 60.0  #: minimum time between two equal warnings
#: Minimum time between two dials to an advert of this node's own id, which any host on
#: the LAN can send.
CLONE_CHECK_PERIOD_S = 30.0
STOP_S = 2.0  #: time for the tasks to end
RETRY_POLLS = 6  #: while port 5353 is taken, every sixth poll tries to open it
CHANGES_PER_TURN = 64  #: changes handled in one turn of the event loop
CHANGES_MAX = 10_000  #: changes queued; also the limit of zeroconf's cache
MESHES_MAX = 64  #: other meshes that are reported
UNRESOLVED_MAX = 256  #: nodes queued for a query because the cache lacks records
RESOLVERS = 4


class LocalAddresses:
    """The addresses of the interfaces that discovery uses."""

    def __init__(self, interfaces: Sequence[str], debounce_s: float) -> None:
        self._interfaces = tuple(interfaces)
        self._debounce_s = debounce_s
        self.current: tuple[LocalAddress, ...] = ()

    async def read(self) -> None:
        """Read the addresses.

        Raises:
            ConfigError: A named interface does not exist.
        """
        self.current = await asyncio.to_thread(local_addresses, self._interfaces)

    async def poll(self) -> bool:
        """Return True if the addresses have changed for at least `debounce_s`."""
        seen = await self._read_present()
        if not seen or seen == self.current:
            return False
        await asyncio.sleep(self._debounce_s)
        if await self._read_present() != seen:
            return False
        self.current = seen
        return True

    async def _read_present(self) -> tuple[LocalAddress, ...]:
        return await asyncio.to_thread(
            local_addresses, self._interfaces, must_exist=False
        )


class Discovery:
    """mDNS of one agent: its service, an optional browser, and its interfaces.

    Call all methods on the event loop. Only `start` and `close` wait for the network.
    While port 5353 is not available, calls have no effect.
    """

    def __init__(
        self,
        *,
        node: NodeInfo,
        mesh_id: str | None,
        clock: Clock,
        on_event: Callable[[PeersDiscovered], None],
        on_note: Callable[[LogLine], None],
        interfaces: Sequence[str] = (),
        on_other_mesh: Callable[[str], None] | None = None,
        on_addresses: Callable[[tuple[LocalAddress, ...]], None] | None = None,
        on_clone: Callable[[tuple[Address, ...]], None] | None = None,
        on_retired: Callable[[Sequence[str]], None] | None = None,
        poll_s: float = 5.0,
        debounce_s: float = 2.0,
    ) -> None:
        """Prepare discovery; `start` opens the sockets.

        Args:
            node: The node to advertise: id, boot id, peer port and LAN API port.
            mesh_id: The mesh to report nodes of; None while unpaired.
            clock: For rate limits and jitter.
            on_event: Called with nodes of our mesh that appeared, changed or left.
            on_note: Called with lines for the log.
            interfaces: Names of the interfaces to use; empty for the default choice.
            on_other_mesh: Called once with the id of each other mesh.
            on_addresses: Called with this machine's addresses when they have changed.
            on_clone: Called with the addresses of a process that uses this node's id.
            on_retired: Called with the proofs of retired secret generations that a
                node of our mesh advertises.
            poll_s: Time between two polls of the addresses.
            debounce_s: Time for which a change of the addresses must last.
        """
        self._node, self._mesh_id, self._clock = node, mesh_id, clock
        self._on_event, self._on_note = on_event, on_note
        self._on_other_mesh, self._on_addresses = on_other_mesh, on_addresses
        self._on_clone, self._on_retired = on_clone, on_retired
        self._retired: tuple[str, ...] = ()  #: proofs that this node advertises
        self._poll_s = poll_s
        self._local_addresses = LocalAddresses(interfaces, debounce_s)
        self._mdns: Mdns | None = None
        self._is_browsing, self._role = False, (False, 0)
        self._needs_announce = asyncio.Event()  #: the advert has changed
        self._nodes, self._reported_meshes = DiscoveredNodes(), set[str]()
        self._changes: dict[str, bool] = {}  #: changed service names; True: left
        self._report_handle: asyncio.Handle | None = None
        self._unresolved = asyncio.Queue[NodeId](UNRESOLVED_MAX)
        self._warned_s, self._clone_due_s = dict[str, float](), 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, tasks: asyncio.TaskGroup, *, peers_known: int = 0) -> None:
        """Open mDNS, announce this node and watch the interfaces.

        Args:
            tasks: Owns the tasks, which end with `close`.
            peers_known: Number of remembered peers; above 50, the announcement has a
                random delay.

        Raises:
            ConfigError: A named interface does not exist.
        """
        await self._local_addresses.read()
        await self._open()
        self._needs_announce.set()
        is_crowd = peers_known > LARGE_MESH_PEERS
        delay_s = LARGE_MESH_DELAY_S * self._clock.draw() if is_crowd else 0.0
        work = [self._publish(delay_s), self._watch_addresses()]
        work += [self._resolve_names() for _ in range(RESOLVERS)]
        self._tasks = [tasks.create_task(each) for each in work]
        if self._is_browsing:
            self.set_browsing(is_wanted=True)

    def set_browsing(self, *, is_wanted: bool) -> None:
        """Start or stop browsing; each start reports all visible nodes again."""
        self._is_browsing = is_wanted
        if self._mdns is None:
            return
        if not is_wanted:
            self._mdns.stop_browsing()
            return
        self._nodes.clear()
        self._mdns.browse(self._on_browser_change)

    def advertise(self, *, is_dispatcher: bool, term: int) -> None:
        """Advertise this node's role; a call that changes nothing sends nothing."""
        if self._role != (is_dispatcher, term):
            self._role = (is_dispatcher, term)
            self._needs_announce.set()

    def advertise_retired(self, retired: Sequence[tuple[int, str]]) -> None:
        """Advertise which generations of the secret are retired."""
        proofs = tuple(proof for _, proof in retired)
        if self._retired != proofs:
            self._retired = proofs
            self._needs_announce.set()

    async def close(self) -> None:
        """Send the mDNS goodbye and close the sockets."""
        self._is_browsing = False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_S)
        self._tasks = []
        if self._report_handle is not None:
            self._report_handle.cancel()
        mdns, self._mdns = self._mdns, None
        if mdns is not None:
            await mdns.close()

    async def _open(self) -> bool:
        """Open the sockets; log a warning and return False if that fails."""
        try:
            self._mdns = await open_mdns(self._local_addresses.current)
        except OSError as error:
            hint = "only --join HOST finds other machines"
            if error.errno == errno.EADDRINUSE:
                hint += "; UDP port 5353 is held (avahi: disallow-other-stacks=no)"
            hint += "; octaskly doctor shows details"
            self._warn("discovery unavailable", cause=str(error), hint=hint)
        return self._mdns is not None

    async def _publish(self, delay_s: float) -> None:
        """Announce this node whenever its advert has changed."""
        await asyncio.sleep(delay_s)
        while True:
            await self._needs_announce.wait()
            self._needs_announce.clear()
            if self._mdns is None:
                continue
            is_dispatcher, term = self._role
            txt = build_txt(
                self._node,
                mesh_id=self._mesh_id,
                is_dispatcher=is_dispatcher,
                term=term,
                retired=self._retired,
            )
            addresses = self._local_addresses.current
            hosts = dict.fromkeys(one.host.partition("%")[0] for one in addresses)
            await self._mdns.announce(
                self._node.id, port=self._node.peer_port, hosts=tuple(hosts), txt=txt
            )

    async def _watch_addresses(self) -> None:
        """Poll the addresses of this machine; zeroconf does not watch them."""
        polls = 0
        while True:
            await asyncio.sleep(self._poll_s)
            polls += 1
            # No file descriptor is free: the next poll tries again.
            with contextlib.suppress(OSError):
                await self._poll_addresses()
            is_due = self._mdns is None and polls % RETRY_POLLS == 0
            if is_due and await self._open():
                self._on_note(LogLine("info", "discovery available"))
                self._reannounce()

    async def _poll_addresses(self) -> None:
        """Apply a change of the addresses.

        All sockets are opened anew. A new device may have the address of an old one,
        and what the sockets had joined went with the old device.
        """
        if not await self._local_addresses.poll():
            return
        mdns, self._mdns = self._mdns, None
        if mdns is not None:
            await mdns.close(has_goodbye=False)
        await self._open()
        self._reannounce()
        if self._on_addresses is not None:
            self._on_addresses(self._local_addresses.current)

    def _reannounce(self) -> None:
        """Announce again, and restart the browser if it was running."""
        self._needs_announce.set()
        if self._is_browsing:
            self.set_browsing(is_wanted=True)

    def _on_browser_change(self, name: str, has_left: bool) -> None:  # noqa: FBT001  a callback
        """Collect the changes; one packet may contain many names."""
        if len(self._changes) < CHANGES_MAX:
            self._changes[name] = has_left
        if self._report_handle is None:
            self._report_handle = asyncio.get_running_loop().call_soon(
                self._report_changes
            )

    def _report_changes(self) -> None:
        """Report the next names as one event."""
        self._report_handle = None
        adverts = []
        names = list(self._changes)
        if len(names) > CHANGES_PER_TURN:
            # A random start keeps a host that floods the LAN from choosing which nodes
            # get the free places in the table.
            start = int(self._clock.draw() * len(names))
            names = names[start : start + CHANGES_PER_TURN]
        for name in names[:CHANGES_PER_TURN]:
            advert = self._read_change(name, has_left=self._changes.pop(name))
            if advert is not None:
                adverts.append(advert)
        if self._changes:
            self._report_handle = asyncio.get_running_loop().call_soon(
                self._report_changes
            )
        if adverts:
            self._on_event(PeersDiscovered(tuple(adverts)))

    def _read_change(self, name: str, *, has_left: bool) -> PeerHint | None:
        """Return the hint for a node of our mesh that changed, or None."""
        node = node_id_of_name(name)
        if node is None:
            self._warn("advert ignored", name=printable(name), cause="no node id")
            return None
        if has_left:
            gone = self._nodes.remove_node(node)
            if gone is None or gone.mesh is None or gone.mesh != self._mesh_id:
                return None
            # The node may still be alive: the core dials it to find out.
            gone = replace(gone, is_dispatcher=False, term=0)
            return self._build_peer_hint(
                gone, reachable_addresses(gone, self._local_addresses.current)
            )
        if not self._has_room(node) or self._mdns is None:
            return None
        try:
            sighting = self._mdns.read_cached(node)
        except MalformedAdvert as error:
            self._warn("advert ignored", node=node, cause=str(error))
            return None
        if sighting is not None:
            return self._record_sighting(sighting)
        if self._unresolved.full():
            self._warn("too many unresolved mDNS names", kept=UNRESOLVED_MAX)
        else:
            self._unresolved.put_nowait(node)
        return None

    async def _resolve_names(self) -> None:
        """Query the records of nodes whose name alone is in the cache."""
        while True:
            node = await self._unresolved.get()
            if self._mdns is None:
                continue
            try:
                sighting = await self._mdns.resolve_node(node)
            except MalformedAdvert as error:
                self._warn("advert ignored", node=node, cause=str(error))
                continue
            if sighting is None or not self._is_browsing or not self._has_room(node):
                continue
            advert = self._record_sighting(sighting)
            if advert is not None:
                self._on_event(PeersDiscovered((advert,)))

    def _has_room(self, node: NodeId) -> bool:
        has_room = self._nodes.has_room(node)
        if not has_room:
            self._warn("too many nodes discovered", kept=len(self._nodes))
        return has_room

    def _record_sighting(self, sighting: ServiceRecord) -> PeerHint | None:
        """Store a record, and return a hint if the node belongs to our mesh."""
        if sighting.node == self._node.id:
            if sighting.boot != self._node.boot:
                self._report_clone(sighting)
            return None
        sighting = self._nodes.update_node(sighting)
        addresses = reachable_addresses(sighting, self._local_addresses.current)
        if not addresses:
            # A node that cannot be dialled must not fill the table.
            self._nodes.remove_node(sighting.node)
        if sighting.mesh is not None and sighting.mesh == self._mesh_id:
            if sighting.retired and self._on_retired is not None:
                self._on_retired(sighting.retired)
            return self._build_peer_hint(sighting, addresses)
        if addresses:
            self._report_other_mesh(sighting.mesh)
        return None

    def _report_clone(self, sighting: ServiceRecord) -> None:
        """Request a dial to a node that advertises this node's id.

        The dial tells a copy of this node from an advert of its previous run.
        """
        self._warn("duplicate node id", node=sighting.node)
        addresses = reachable_addresses(sighting, self._local_addresses.current)
        now_s = self._clock.now().mono_s
        if now_s < self._clone_due_s or sighting.mesh != self._mesh_id:
            return
        if self._on_clone is not None and addresses:
            self._clone_due_s = now_s + CLONE_CHECK_PERIOD_S
            self._on_clone(addresses)

    def _report_other_mesh(self, mesh: str | None) -> None:
        if (
            mesh is None
            or mesh in self._reported_meshes
            or len(self._reported_meshes) >= MESHES_MAX
        ):
            return
        self._reported_meshes.add(mesh)
        if self._on_other_mesh is not None:
            self._on_other_mesh(mesh)

    def _build_peer_hint(
        self, sighting: ServiceRecord, addresses: tuple[Address, ...]
    ) -> PeerHint | None:
        """Return a hint for dialling, or None if no address is on our networks."""
        if not addresses:
            self._warn("advert ignored", node=sighting.node, cause="no address to dial")
            return None
        return PeerHint(
            sighting.node,
            addresses,
            is_dispatcher=sighting.is_dispatcher,
            term=sighting.term,
        )

    def _warn(self, event: str, **fields: str | int) -> None:
        """Log a warning, unless the same event was logged within the last minute."""
        now_s = self._clock.now().mono_s
        last_s = self._warned_s.get(event)
        if last_s is None or now_s - last_s >= WARNING_PERIOD_S:
            self._warned_s[event] = now_s
            self._on_note(LogLine("warning", event, tuple(fields.items())))
