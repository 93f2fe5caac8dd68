"""Finds the nodes of this LAN over mDNS, and lets them find this one.

What it reports are hints for dialling, never facts: a node that is gone stays in sight
for an hour, and anybody on the LAN may claim anything. Where port 5353 cannot be had
it says so once and does nothing; remembered peers and `--join` still work.
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
    Candidates,
    MalformedAdvert,
    Sighting,
    node_named,
    shown,
    write_txt,
)
from octaskly.mesh.discovery.interfaces import LocalAddress, local_addresses
from octaskly.mesh.discovery.mdns import Mdns, near, open_mdns
from octaskly.ports import Clock

CROWD_PEERS = 50  #: with more peers than this, a newcomer waits before it announces
CROWD_DELAY_S = 2.0
WARN_EVERY_S = 60.0  #: the same complaint about what others send is made once a minute
CLONE_EVERY_S = 30.0  #: between dials to who says to be this node: anybody can
STOP_S = 2.0  #: for the tasks, at the end
RETRY_POLLS = 6  #: a port that was taken is tried again at every sixth look
NAMES_PER_TURN = 64  #: looked up before other work of the loop gets its turn
NAMES_MAX = 10_000  #: waiting to be looked up; zeroconf keeps no more records
MESHES_MAX = 64  #: other meshes that are told of
UNRESOLVED_MAX = 256  #: nodes whose records have to be asked for
RESOLVERS = 4


class Discovery:
    """One agent's mDNS: a service, a browser that comes and goes, and the interfaces.

    All calls are made on the event loop; none of them waits for the network except
    `start` and `close`. While port 5353 cannot be had, all calls do nothing.
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
        on_ended: Callable[[Sequence[str]], None] | None = None,
        poll_s: float = 5.0,
        debounce_s: float = 2.0,
    ) -> None:
        """Prepare; nothing is opened before `start`.

        Args:
            node: Who is advertised: id, boot, peer and LAN API port.
            mesh_id: Whose adverts become events; None while unpaired.
            clock: For rates and jitter.
            on_event: Gets nodes of our mesh that came, changed or said goodbye.
            on_note: Gets lines for the log.
            interfaces: Names that restrict the choice.
            on_other_mesh: Told once of each other mesh in sight.
            on_addresses: Told when this machine's addresses have changed.
            on_clone: Told where another process seems to live with this node's id.
            on_ended: Told which generations of the secret nodes of our mesh call over.
            poll_s: Between two looks at the addresses.
            debounce_s: A change counts when it has lasted so long.
        """
        self._node, self._mesh_id, self._clock = node, mesh_id, clock
        self._names = tuple(interfaces)
        self._on_event, self._on_note = on_event, on_note
        self._on_other_mesh, self._on_addresses = on_other_mesh, on_addresses
        self._on_clone, self._on_ended = on_clone, on_ended
        self._ended: tuple[str, ...] = ()  #: what this node calls over
        self._poll_s, self._debounce_s = poll_s, debounce_s
        self._local: tuple[LocalAddress, ...] = ()
        self._mdns: Mdns | None = None
        self._is_browsing, self._role = False, (False, 0)
        self._is_stale = asyncio.Event()  #: what we advertise has changed
        self._candidates, self._told = Candidates(), set[str]()
        self._changes: dict[str, bool] = {}  #: names to look up, and whether they left
        self._sweep: asyncio.Handle | None = None
        self._unresolved = asyncio.Queue[NodeId](UNRESOLVED_MAX)
        self._warned_s, self._clone_due_s = dict[str, float](), 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, tasks: asyncio.TaskGroup, *, peers_known: int = 0) -> None:
        """Open mDNS, announce this node and watch the interfaces.

        Args:
            tasks: Owns the tasks, which end with `close`.
            peers_known: Peers met before; among many, the announcement is delayed.

        Raises:
            ConfigError: an interface that was named does not exist.
        """
        self._local = await asyncio.to_thread(local_addresses, self._names)
        await self._open()
        self._is_stale.set()
        is_crowd = peers_known > CROWD_PEERS
        delay_s = CROWD_DELAY_S * self._clock.draw() if is_crowd else 0.0
        work = [self._publish(delay_s), self._watch()]
        work += [self._resolve() for _ in range(RESOLVERS)]
        self._tasks = [tasks.create_task(each) for each in work]
        if self._is_browsing:
            self.browse(is_wanted=True)

    def browse(self, *, is_wanted: bool) -> None:
        """Ask afresh, which reports again all that is in sight; or stop asking."""
        self._is_browsing = is_wanted
        if self._mdns is None:
            return
        if not is_wanted:
            self._mdns.stop_browsing()
            return
        self._candidates.clear()
        self._mdns.browse(self._changed)

    def advertise(self, *, is_dispatcher: bool, term: int) -> None:
        """Say over mDNS what this node is now; repeated calls cost nothing."""
        if self._role != (is_dispatcher, term):
            self._role = (is_dispatcher, term)
            self._is_stale.set()

    def end(self, ended: Sequence[tuple[int, str]]) -> None:
        """Say over mDNS which generations of the secret are over."""
        proofs = tuple(proof for _, proof in ended)
        if self._ended != proofs:
            self._ended = proofs
            self._is_stale.set()

    async def close(self) -> None:
        """Say goodbye and close the sockets; takes a quarter of a second."""
        self._is_browsing = False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_S)
        self._tasks = []
        if self._sweep is not None:
            self._sweep.cancel()
        mdns, self._mdns = self._mdns, None
        if mdns is not None:
            await mdns.close()

    async def _open(self) -> bool:
        """Open the sockets, or say why not and return False."""
        try:
            self._mdns = await open_mdns(self._local)
        except OSError as error:
            hint = "other machines are found by --join HOST only"
            if error.errno == errno.EADDRINUSE:
                hint += "; UDP port 5353 is held (avahi: disallow-other-stacks=no)"
            hint += "; octaskly doctor says more"
            self._warn("discovery is off", cause=str(error), hint=hint)
        return self._mdns is not None

    async def _publish(self, delay_s: float) -> None:
        """Keep what is announced as it should be."""
        await asyncio.sleep(delay_s)
        while True:
            await self._is_stale.wait()
            self._is_stale.clear()
            if self._mdns is None:
                continue
            is_dispatcher, term = self._role
            txt = write_txt(
                self._node,
                mesh_id=self._mesh_id,
                is_dispatcher=is_dispatcher,
                term=term,
                ended=self._ended,
            )
            hosts = dict.fromkeys(one.host.partition("%")[0] for one in self._local)
            await self._mdns.announce(
                self._node.id, port=self._node.peer_port, hosts=tuple(hosts), txt=txt
            )

    async def _watch(self) -> None:
        """Follow the addresses of this machine; mDNS does not do so by itself."""
        polls = 0
        while True:
            await asyncio.sleep(self._poll_s)
            polls += 1
            with contextlib.suppress(OSError):  # Not one descriptor is left: later.
                await self._look()
            is_due = self._mdns is None and polls % RETRY_POLLS == 0
            if is_due and await self._open():
                self._on_note(LogLine("info", "discovery is on"))
                self._renew()

    async def _look(self) -> None:
        """Take over a change of the addresses that lasts."""
        seen = await asyncio.to_thread(local_addresses, self._names, must_exist=False)
        if not seen or seen == self._local:
            return
        await asyncio.sleep(self._debounce_s)
        again = await asyncio.to_thread(local_addresses, self._names, must_exist=False)
        if again != seen:
            return
        self._local = again
        if self._mdns is not None:
            await self._mdns.move(again)
        self._renew()
        if self._on_addresses is not None:
            self._on_addresses(again)

    def _renew(self) -> None:
        """Announce again, and ask again where we were asking."""
        self._is_stale.set()
        if self._is_browsing:
            self.browse(is_wanted=True)

    def _changed(self, name: str, has_left: bool) -> None:  # noqa: FBT001  a callback
        """Collect what the browser says; one packet may bring many names."""
        if len(self._changes) < NAMES_MAX:
            self._changes[name] = has_left
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_soon(self._sweep_changes)

    def _sweep_changes(self) -> None:
        """Report the next names as one event."""
        self._sweep = None
        adverts = []
        names = list(self._changes)
        if len(names) > NAMES_PER_TURN:
            # Whoever floods the LAN must not choose who finds room in the table.
            start = int(self._clock.draw() * len(names))
            names = names[start : start + NAMES_PER_TURN]
        for name in names[:NAMES_PER_TURN]:
            advert = self._read(name, has_left=self._changes.pop(name))
            if advert is not None:
                adverts.append(advert)
        if self._changes:
            self._sweep = asyncio.get_running_loop().call_soon(self._sweep_changes)
        if adverts:
            self._on_event(PeersDiscovered(tuple(adverts)))

    def _read(self, name: str, *, has_left: bool) -> PeerHint | None:
        """Return what a change means for our mesh, None where it means nothing."""
        node = node_named(name)
        if node is None:
            self._warn("advert ignored", name=shown(name), cause="no node id")
            return None
        if has_left:
            gone = self._candidates.drop(node)
            if gone is None or gone.mesh is None or gone.mesh != self._mesh_id:
                return None
            # It may well be alive: the core probes it by dialling.
            gone = replace(gone, is_dispatcher=False, term=0)
            return self._advert(gone, near(gone, self._local))
        if not self._has_room(node) or self._mdns is None:
            return None
        try:
            sighting = self._mdns.lookup(node)
        except MalformedAdvert as error:
            self._warn("advert ignored", node=node, cause=str(error))
            return None
        if sighting is not None:
            return self._sight(sighting)
        if self._unresolved.full():
            self._warn("mDNS flood", kept=UNRESOLVED_MAX)
        else:
            self._unresolved.put_nowait(node)
        return None

    async def _resolve(self) -> None:
        """Ask for the records of nodes of which only the name is known."""
        while True:
            node = await self._unresolved.get()
            if self._mdns is None:
                continue
            try:
                sighting = await self._mdns.resolve(node)
            except MalformedAdvert as error:
                self._warn("advert ignored", node=node, cause=str(error))
                continue
            if sighting is None or not self._is_browsing or not self._has_room(node):
                continue
            advert = self._sight(sighting)
            if advert is not None:
                self._on_event(PeersDiscovered((advert,)))

    def _has_room(self, node: NodeId) -> bool:
        has_room = self._candidates.has_room(node)
        if not has_room:
            self._warn("too many nodes in sight", kept=len(self._candidates))
        return has_room

    def _sight(self, sighting: Sighting) -> PeerHint | None:
        """Note a node, and return it as an advert when it belongs to our mesh."""
        if sighting.node == self._node.id:
            if sighting.boot != self._node.boot:
                self._meet_clone(sighting)
            return None
        sighting = self._candidates.put(sighting)
        addresses = near(sighting, self._local)
        if not addresses:
            self._candidates.drop(sighting.node)  # It is to take no honest node's room.
        if sighting.mesh is not None and sighting.mesh == self._mesh_id:
            if sighting.ended and self._on_ended is not None:
                self._on_ended(sighting.ended)
            return self._advert(sighting, addresses)
        if addresses:
            self._meet_other(sighting.mesh)
        return None

    def _meet_clone(self, sighting: Sighting) -> None:
        """Have it dialled, which tells a copy from what this node's last life left."""
        self._warn("duplicate node id", node=sighting.node)
        addresses, now_s = near(sighting, self._local), self._clock.now().mono_s
        if now_s < self._clone_due_s or sighting.mesh != self._mesh_id:
            return
        if self._on_clone is not None and addresses:
            self._clone_due_s = now_s + CLONE_EVERY_S
            self._on_clone(addresses)

    def _meet_other(self, mesh: str | None) -> None:
        if mesh is None or mesh in self._told or len(self._told) >= MESHES_MAX:
            return
        self._told.add(mesh)
        if self._on_other_mesh is not None:
            self._on_other_mesh(mesh)

    def _advert(
        self, sighting: Sighting, addresses: tuple[Address, ...]
    ) -> PeerHint | None:
        """Return the hint to dial a node, None if no address is on our networks."""
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
        """Note a complaint, unless the same was made within the last minute."""
        now_s = self._clock.now().mono_s
        last_s = self._warned_s.get(event)
        if last_s is None or now_s - last_s >= WARN_EVERY_S:
            self._warned_s[event] = now_s
            self._on_note(LogLine("warning", event, tuple(fields.items())))
