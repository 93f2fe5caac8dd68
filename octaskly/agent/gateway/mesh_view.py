"""The mesh as this node sees it: dispatcher, members, names, addresses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from hashlib import sha256

from msgspec.structs import replace

from octaskly.config.units import host_and_port
from octaskly.core.effects import LogLine, PublishMeshState
from octaskly.core.model.ids import NO_EPOCH, AttemptId, Epoch, Moment, NodeId
from octaskly.core.model.nodes import NodeState, Role, RosterEntry, Takeover
from octaskly.core.protocol.messages import Roster
from octaskly.ports.gateway import DispatcherView


class MeshView:
    """The latest mesh state that the core has published, for the API."""

    def __init__(self, node_id: NodeId, names: Mapping[NodeId, str]) -> None:
        self.names = dict(names)  #: of every node that was ever in a roster
        self._peer_names: dict[NodeId, str] = {}
        self.node_id = node_id
        self._published: PublishMeshState | None = None
        self._dispatcher: DispatcherView | None = None
        self._changed = asyncio.Event()
        self._epoch_start: tuple[Epoch, Moment] | None = None  #: and its start
        self.on_epoch_start: Callable[[], None] = lambda: None
        """Called when this node has become dispatcher."""
        self.takeovers = 0  #: times that this node replaced another dispatcher
        self._takeover: Takeover | None = None  #: the latest one that is counted
        self._broken_links = 0  #: links closed because the peer sent an invalid frame

    def on_published(self, news: PublishMeshState) -> None:
        """Store the dispatcher and the roster, and wake waiting requests."""
        self._published = news
        if news.roster is not None:
            self.names.update((m.id, m.name) for m in news.roster.nodes)
        self._dispatcher = self._view_of_dispatcher(news)
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def roster(self) -> Roster | None:
        """The members of the mesh."""
        return self._published.roster if self._published else None

    @property
    def has_visitors(self) -> bool:
        """Return True if visitors are in the roster."""
        roster = self.roster
        return roster is not None and bool(roster.visitors)

    @property
    def live_members(self) -> list[RosterEntry]:
        """The members that are not lost."""
        members = self.roster.members if self.roster else ()
        return [m for m in members if m.state is not NodeState.LOST]

    @property
    def epoch(self) -> Epoch:
        """The epoch in force."""
        return self._published.epoch if self._published else NO_EPOCH

    @property
    def is_serving(self) -> bool:
        """Return True if this node is dispatcher and accepts tasks."""
        news = self._published
        return news is not None and news.is_serving and news.dispatcher == self.node_id

    def record_epoch_start(self, now: Moment, takeover: Takeover | None) -> None:
        """Store the start of this node's epoch if a new one has begun.

        Args:
            now: The current time.
            takeover: This node's latest takeover. It stays the same when a
                dispatcher claims a further epoch.
        """
        if self.is_serving and (
            self._epoch_start is None or self._epoch_start[0] != self.epoch
        ):
            self._epoch_start = self.epoch, now
            self.takeovers += takeover not in (None, self._takeover)
            self._takeover = takeover
            self.on_epoch_start()

    def count_broken_link(self) -> None:
        """Count a link that was closed because of an invalid frame."""
        self._broken_links += 1

    def refused_counts(self, messages: Mapping[str, int]) -> Mapping[str, int]:
        """Return the number of refused messages and frames, by reason code.

        Args:
            messages: The counts of messages that the core has refused.
        """
        return (
            {**messages, "frame": self._broken_links}
            if self._broken_links
            else messages
        )

    @property
    def dispatching_since(self) -> Moment | None:
        """The start of this node's epoch, or None if it is not dispatcher."""
        return self._epoch_start[1] if self._epoch_start and self.is_serving else None

    def dispatching_s(self, now_s: float) -> float:
        """Return the seconds for which this node has been dispatcher, or 0."""
        return now_s - self.dispatching_since.mono_s if self.dispatching_since else 0.0

    @property
    def role(self) -> Role | None:
        """The role of this node; None while there is no dispatcher."""
        if self.is_serving:
            return Role.DISPATCHER
        own, view = self._own_line(), self.dispatcher()
        return own.role if own and view and view.relay is None else None

    def dispatcher(self) -> DispatcherView | None:
        """Return the dispatcher, or None while none is known or it is not ready."""
        return self._dispatcher

    def _view_of_dispatcher(self, news: PublishMeshState) -> DispatcherView | None:
        if news.dispatcher is None:
            return self._view_through_relay(news)
        if news.dispatcher == self.node_id:
            if not news.is_serving:
                return None
            return DispatcherView(is_self=True, node=self.node_id, epoch=news.epoch)
        urls = self.lan_urls_of(news.dispatcher)
        if not urls:
            return None
        return DispatcherView(
            is_self=False, node=news.dispatcher, epoch=news.epoch, lan_urls=urls
        )

    def _view_through_relay(self, news: PublishMeshState) -> DispatcherView | None:
        relay = news.relay
        if relay is None:
            return None
        hosts = dict.fromkeys(address.host for address in relay.addresses)
        return DispatcherView(
            is_self=False,
            node=relay.dispatcher,
            epoch=news.epoch,
            lan_urls=tuple(lan_url(host, relay.lan_port) for host in hosts),
            relay=relay.node,
        )

    async def wait_for_dispatcher(self, timeout_s: float) -> DispatcherView | None:
        """Wait up to `timeout_s` until a dispatcher is known."""
        try:
            async with asyncio.timeout(timeout_s):
                while (view := self.dispatcher()) is None:
                    await self._changed.wait()
                return view
        except TimeoutError:
            return None

    async def wait_until_member(self, timeout_s: float) -> DispatcherView | None:
        """Wait up to `timeout_s` until this node is in the roster of a dispatcher.

        A node that joins knows the dispatcher, and a roster, before it is counted.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.dispatcher() is None or self._own_line() is None:
                    await self._changed.wait()
        return self.dispatcher()

    async def wait_for_own_state(
        self, state: NodeState, timeout_s: float
    ) -> RosterEntry | None:
        """Return this node's roster entry once it has `state`, or at the timeout.

        None: this node is in no roster.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (own := self._own_line()) is None or own.state is not state:
                    await self._changed.wait()
        return self._own_line()

    def _own_line(self) -> RosterEntry | None:
        members = self.roster.members if self.roster else ()
        return next((m for m in members if m.id == self.node_id), None)

    def name_of(self, node: NodeId) -> str:
        """Return the name of a node, or its id if the name is unknown."""
        return self.names.get(node) or self._peer_names.get(node, node)

    def rename_node(self, node: NodeId, name: str) -> None:
        """Show a node that is no member any more by another name."""
        self.names[node] = name

    def learn_peer_name(self, node: NodeId, name: str) -> None:
        """Store a peer's own name, used until a roster gives its name in the mesh."""
        self._peer_names[node] = name

    def with_node_names(self, note: LogLine) -> LogLine:
        """Return a log line with node names in place of node ids."""
        fields = tuple(
            (key, self.name_of(NodeId(str(value))) if key == "peer" else value)
            for key, value in note.fields
        )
        return replace(note, fields=fields)

    def lan_urls_of(self, name: str) -> tuple[str, ...]:
        """Return the LAN API URLs of a live member, by name or id."""
        for member in self.live_members:
            if name in (member.id, member.name):
                port = member.lan_port
                return tuple(lan_url(each.host, port) for each in member.addresses)
        return ()

    def other_members(self) -> list[RosterEntry]:
        """Return the live members without this node."""
        return [one for one in self.live_members if one.id != self.node_id]

    def copy_holders(self, task: str, attempt: AttemptId) -> list[RosterEntry]:
        """Return the live members in the order in which copies of outputs go to them.

        Each node finds the same order without being told, and few places change when
        a node comes or goes.

        Source: rendezvous hashing, D. Thaler and C. Ravishankar, 1998.
        """

        def weight(member: RosterEntry) -> bytes:
            return sha256(f"{task} {attempt} {member.id}".encode()).digest()

        return sorted(self.live_members, key=weight)

    def find_node_id(self, name: str) -> NodeId | None:
        """Return the id of a node by name or id; a member before an earlier one."""
        if name in self.names:
            return NodeId(name)
        members = self.roster.members if self.roster else ()
        member = next((one.id for one in members if one.name == name), None)
        if member is not None:
            return member
        return next((id_ for id_, known in self.names.items() if known == name), None)

    def status_line(self) -> str:
        """Return the line about this node for `systemctl status`."""
        news = self._published
        running = sum(member.running for member in self.live_members)
        if news is None or news.dispatcher is None:
            role = "looking for a dispatcher"
        elif news.dispatcher == self.node_id:
            role = str(Role.DISPATCHER)
        else:
            own = (m.role for m in self.live_members if m.id == self.node_id)
            role = f"{next(own, Role.WORKER)} of {self.name_of(news.dispatcher)}"
        return f"{role}, {len(self.live_members)} nodes, {running} running"


def lan_url(host: str, port: int) -> str:
    """Return the URL of a node's LAN API.

    An IPv6 scope is not escaped as %25 (RFC 6874): programs pass the host to the system
    as it is, and the escaped scope names no interface.
    """
    return f"https://{host_and_port(host, port)}"
