"""Roster: the dispatcher's list of members, with their unique names.

If a name is taken, the node is permanently named `<name>-<first 4 of the node id>`. A
node that left the mesh or was revoked keeps no name: what it ran is shown under another
one, so the same machine may come back under its name and a new node id.
Members are in the order of succession. Lost members stay in the list for
`LOST_MEMBER_S`. Their number decides nothing: there is no quorum (`core.election`).

`peer` ranks the candidates. `core.replication.replication` chooses the standbys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter

from msgspec.structs import replace

from octaskly.core.effects import Effect, RenameNode
from octaskly.core.membership.peer import PeerView
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.ids import Epoch, Moment, NodeId, is_visitor
from octaskly.core.model.nodes import (
    NO_LOAD,
    Availability,
    NodeState,
    Role,
    RosterEntry,
)
from octaskly.core.protocol.messages import Roster

LOST_MEMBER_S = 600.0  #: a lost member is listed for this long
CHANGE_INTERVAL_S = 0.1  #: interval of rosters after changes of members, and of checks
LOAD_INTERVAL_S = 1.0  #: interval of rosters if only loads change
FULL_RATE_MEMBERS = 16  #: the intervals grow with the mesh above this size
LABELS_BYTES_MAX = 3 << 20
"""Limit of the labels and GPUs of all members.

A roster is one frame; the other fields of 1,024 members take at most 4 MiB of it.
"""
WORD_OVERHEAD = 4  #: bytes of encoding per label or GPU
NAME_SUFFIX_CHARS = 4  #: characters of the node id; more if that name is taken too

_URGENT_FIELDS = attrgetter(
    *(name for name in RosterEntry.__struct_fields__ if name not in ("running", "load"))
)
"""Fields whose changes followers must get at once."""


class RosterBuilder:
    """Builds the roster on the dispatcher, and holds the latest one on every node."""

    def __init__(
        self, names: Iterable[tuple[NodeId, str]], peer_table: PeerTable
    ) -> None:
        self.roster: Roster | None = None
        self._peer_table = peer_table
        self._names = {node: name for node, name in names if not is_visitor(node)}
        self._released: set[NodeId] = set()  #: nodes whose ids never come back
        self._lost: dict[NodeId, tuple[RosterEntry, float]] = {}
        self._built_from: tuple[object, ...] = ()
        """Inputs of the latest build, for a cheap check at every step."""
        self._next_build_s = 0.0  #: next check without a change
        self.next_change_s = 0.0  #: earliest roster after a change of members
        self._next_loads_s = 0.0  #: earliest roster after a change of loads

    # Names

    def assign_name(self, node: NodeId, wanted: str) -> str:
        """Return the node's name in the mesh; assign one if it has none.

        The name or id of a member is never that of a visitor, who could otherwise get
        what is meant for that member. A member takes no account of visitors.
        """
        given, taken = self._names.get(node), set[str]()
        if is_visitor(node):
            taken = self.member_names()
        if (
            given is not None
            and given not in taken
            and (given == wanted or _is_name_variant(given, wanted, node))
        ):
            return given
        taken |= {
            name
            for other, name in self._names.items()
            if other != node and (is_visitor(node) or not is_visitor(other))
        }
        name = wanted if wanted not in taken else ""
        for variant in _name_variants(wanted, node):
            name = name or (variant if variant not in taken else "")
        self._names[node] = name or node
        return self._names[node]

    def release_name(self, node: NodeId, why: str) -> list[Effect]:
        """Let others have the name of a node whose id never comes back."""
        name = self._names.get(node)
        if name is None or node in self._released:
            return []
        self._released.add(node)
        self._names[node] = f"{name} ({why})"
        return [RenameNode(node, self._names[node])]

    def forget_name(self, node: NodeId) -> None:
        """Let others have the name of a visitor that left."""
        self._names.pop(node, None)

    def member_names(self) -> set[str]:
        """Return the names and ids of members."""
        members = ((n, name) for n, name in self._names.items() if not is_visitor(n))
        return set(chain.from_iterable(members))

    def given_name(self, node: NodeId) -> str | None:
        """Return the name of a node in the mesh, or None."""
        return self._names.get(node)

    def named_nodes(self) -> frozenset[NodeId]:
        """Return the nodes named in rosters or saved by an earlier process."""
        return frozenset(self._names)

    def set_roster(self, roster: Roster, now: Moment) -> None:
        """Store a dispatcher's roster."""
        self.roster = roster
        known, self._lost = self._lost, {}
        for member in roster.members:
            if member.state is NodeState.LOST:
                self._lost[member.id] = known.get(member.id, (member, now.mono_s))
            # The dispatcher may not know yet that a node has left.
            if member.id not in self._released:
                self._names[member.id] = member.name

    def needed_links(
        self, dispatcher: NodeId | None, me: NodeId, full_mesh_max: int
    ) -> frozenset[NodeId]:
        """Return the nodes that a follower must be linked to; empty: no restriction."""
        roster = self.roster
        if roster is None or dispatcher is None or len(roster.members) <= full_mesh_max:
            return frozenset()
        standbys = {m.id for m in roster.members if m.role is Role.STANDBY}
        return frozenset() if me in standbys else frozenset({dispatcher}) | standbys

    def role_of(self, node: NodeId) -> Role | None:
        """Return the role of a node in the latest roster, or None."""
        members = () if self.roster is None else self.roster.members
        return next((m.role for m in members if m.id == node), None)

    def is_present(self, node: NodeId) -> bool:
        """Return True if the latest roster has a node, and not as lost."""
        members = () if self.roster is None else self.roster.members
        return any(m.id == node and m.state is not NodeState.LOST for m in members)

    def expects_others(self, me: NodeId, deposed: NodeId | None) -> bool:
        """Return True if the latest roster has other members that are not lost."""
        roster = self.roster
        return roster is not None and any(
            member.id not in (me, deposed) and member.state is not NodeState.LOST
            for member in roster.members
        )

    # Building

    def mark_members_lost(self, now: Moment) -> None:
        """Mark all members of the latest roster lost at the start of an epoch.

        Each stays lost until it follows this node. Those that were lost before keep
        their times.
        """
        self.next_change_s = 0.0
        if self.roster is None:
            return
        for member in self.roster.members:
            if member.state is NodeState.LOST:
                continue
            self._lost[member.id] = (_as_lost(member), now.mono_s)

    def on_follower_lost(self, peer: NodeId, now: Moment, *, is_leaving: bool) -> None:
        """Mark a follower lost, or remove it if it left on purpose."""
        if is_leaving or self.roster is None:
            self._lost.pop(peer, None)
            return
        for member in self.roster.members:
            if member.id == peer:
                self._lost[peer] = (_as_lost(member), now.mono_s)

    def lost_since_s(self, node: NodeId) -> float | None:
        """Return the time at which a member was lost, or None."""
        lost = self._lost.get(node)
        return None if lost is None else lost[1]

    def is_build_due(
        self, epoch: Epoch, own_availability: Availability, now: Moment
    ) -> bool:
        """Return True if `build_roster` would build; called at every step."""
        if now.mono_s < self.next_change_s:
            return False
        seen = (epoch, self._peer_table.change_count, own_availability)
        return seen != self._built_from or now.mono_s >= self._next_build_s

    def build_roster(
        self,
        epoch: Epoch,
        own_entry: Callable[[], RosterEntry],
        own_availability: Availability,
        standbys: Sequence[NodeId],
        running: Callable[[NodeId], int],
        now: Moment,
        visitors: Callable[[], tuple[RosterEntry, ...]] = tuple,
    ) -> Roster | None:
        """Return a new roster if one is due and differs from the latest.

        Args:
            epoch: The epoch of this dispatcher.
            own_entry: Returns this node's entry; called only if a build is due.
            own_availability: Availability of this node.
            standbys: The standbys, best first.
            running: Returns the number of attempts of a node.
            now: Both clocks.
            visitors: Returns the entries of the visitors.
        """
        if not self.is_build_due(epoch, own_availability, now):
            return None
        self._built_from = (epoch, self._peer_table.change_count, own_availability)
        self._next_build_s = now.mono_s + self._scaled_interval_s(CHANGE_INTERVAL_S)
        own = own_entry()
        name = self.assign_name(own.id, own.name)
        own = own if name == own.name else replace(own, name=name)
        listed = [own, *self._follower_entries(epoch, standbys, running, now)]
        new = _fit_in_frame(
            listed[: self._peer_table.members_max] + self._recently_lost(listed, now)
        )
        guests = _fit_in_frame(visitors())
        last = self.roster
        is_same_epoch = last is not None and last.epoch == epoch
        if (
            last is not None
            and is_same_epoch
            and self._is_not_worth_sending(
                (*new, *guests), (*last.members, *last.visitors), now
            )
        ):
            return None
        version = last.version + 1 if last is not None and is_same_epoch else 1
        self.roster = Roster(epoch, version, new, guests)
        self.next_change_s = now.mono_s + self._scaled_interval_s(CHANGE_INTERVAL_S)
        self._next_loads_s = now.mono_s + self._scaled_interval_s(LOAD_INTERVAL_S)
        return self.roster

    def _recently_lost(
        self, present: list[RosterEntry], now: Moment
    ) -> list[RosterEntry]:
        """Return the latest lost members that fit, and forget the others.

        A member may reconnect under ever new ids, and followers reject a roster above
        the limit.
        """
        here = {member.id for member in present}
        lost = [
            (node, (member, since_s))
            for node, (member, since_s) in self._lost.items()
            if node not in here and now.mono_s - since_s <= LOST_MEMBER_S
        ]
        room = max(0, self._peer_table.members_max - len(present))
        self._lost = dict(lost[max(0, len(lost) - room) :])
        return [member for member, _ in self._lost.values()]

    def _is_not_worth_sending(
        self,
        new: tuple[RosterEntry, ...],
        last: tuple[RosterEntry, ...],
        now: Moment,
    ) -> bool:
        """Return True if `new` need not be sent yet."""
        if [*map(_URGENT_FIELDS, new)] != [*map(_URGENT_FIELDS, last)]:
            return False
        if now.mono_s < self._next_loads_s:
            return True
        return _rounded_loads(new) == _rounded_loads(last)

    def _scaled_interval_s(self, period_s: float) -> float:
        size = 0 if self.roster is None else len(self.roster.members)
        return period_s * max(1.0, size / FULL_RATE_MEMBERS)

    def _follower_entries(
        self,
        epoch: Epoch,
        standbys: Sequence[NodeId],
        running: Callable[[NodeId], int],
        now: Moment,
    ) -> list[RosterEntry]:
        index_of = {node: index for index, node in enumerate(standbys)}
        views = sorted(
            (index_of.get(node, len(index_of)), view.rank(now), node, view)
            for node, view in self._peer_table.followers(epoch)
        )
        lines = []
        for _, _, node, view in views:
            role = Role.STANDBY if node in index_of else Role.WORKER
            name = self.assign_name(node, view.info.name)
            lines.append(_follower_entry(node, name, view, role, running(node)))
        return lines


def _follower_entry(
    node: NodeId, name: str, view: PeerView, role: Role, running: int
) -> RosterEntry:
    health = view.last_heartbeat_ok
    return RosterEntry(
        id=node,
        name=name,
        role=role,
        state=view.state,
        addresses=view.addresses,
        lan_port=view.info.lan_port,
        slots=view.info.slots,
        running=min(running, view.info.slots),
        version=view.info.version,
        load=NO_LOAD if health is None else health.load,
        memory_mb=view.info.memory_mb,
        labels=view.info.labels,
        os=view.info.os,
        arch=view.info.arch,
        cpus=view.info.cpus,
        gpus=view.info.gpus,
        pythons=view.info.pythons,
        pressure=None if health is None else health.pressure,
    )


def _fit_in_frame(listed: Iterable[RosterEntry]) -> tuple[RosterEntry, ...]:
    """Remove the words of the entries that exceed `LABELS_BYTES_MAX`."""
    fitting = []
    room = LABELS_BYTES_MAX
    for line in listed:
        words = (*line.gpus, *line.pythons, *chain.from_iterable(line.labels))
        room -= sum(len(word.encode()) + WORD_OVERHEAD for word in words)
        is_fitting = room >= 0
        fitting.append(
            line if is_fitting else replace(line, labels=(), gpus=(), pythons=())
        )
    return tuple(fitting)


def _as_lost(member: RosterEntry) -> RosterEntry:
    return replace(
        member, role=Role.WORKER, state=NodeState.LOST, running=0, load=NO_LOAD
    )


def _name_variants(wanted: str, node: NodeId) -> tuple[str, ...]:
    sizes = range(NAME_SUFFIX_CHARS, len(node) + 1)
    return tuple(f"{wanted}-{node[:size]}" for size in sizes)


def _is_name_variant(name: str, wanted: str, node: NodeId) -> bool:
    size = len(name) - len(wanted) - 1
    return size >= NAME_SUFFIX_CHARS and name == f"{wanted}-{node[:size]}"


def _rounded_loads(members: tuple[RosterEntry, ...]) -> list[tuple[int, ...]]:
    """Return rounded loads, so that idle nodes cause no rosters."""
    return [
        (
            member.running,
            round(member.load.cpu_percent / 10),
            round(member.load.load1 * 2),
            member.load.memory_used_mb // 256,
            (member.load.disk_free_mb or 0) // 1024,
        )
        for member in members
    ]
