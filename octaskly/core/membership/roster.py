"""The list of members that a dispatcher gives out, and unique names for them.

A name that is taken becomes `<name>-<first 4 of the node id>`, for good. Members stand
in the order in which they would succeed; those that were lost stay for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter

from msgspec.structs import replace

from octaskly.core.membership.membership import PeerTable
from octaskly.core.membership.peer import PeerView
from octaskly.core.model.ids import Epoch, Moment, NodeId
from octaskly.core.model.nodes import NO_LOAD, Availability, NodeState, Role
from octaskly.core.protocol.messages import Roster, RosterEntry

LOST_MEMBER_S = 600.0  #: for how long a lost member is listed
CHANGE_INTERVAL_S = 0.1  #: between rosters when members come and go, and between looks
LOAD_INTERVAL_S = 1.0  #: between rosters when only loads change
FULL_RATE_MEMBERS = 16  #: these times grow with the mesh beyond this
LABELS_BYTES_MAX = 3 << 20
"""Of the labels and GPUs of all members: a roster travels in one frame, of which what
else is said of 1,024 of them takes 4 MiB at most."""
WORD_OVERHEAD = 4  #: bytes beside each of these words
NAME_SUFFIX_CHARS = 4  #: characters of the node id; more where that is taken, too

_URGENT_FIELDS = attrgetter(
    *(name for name in RosterEntry.__struct_fields__ if name not in ("running", "load"))
)
"""What followers must know at once when it changes."""


class RosterBuilder:
    """Who is in the mesh: as dispatcher the author of the roster, else its reader."""

    def __init__(
        self, names: Iterable[tuple[NodeId, str]], peer_table: PeerTable
    ) -> None:
        self.roster: Roster | None = None
        self._peer_table = peer_table
        self._names = dict(names)
        self._lost: dict[NodeId, tuple[RosterEntry, float]] = {}
        self._built_from: tuple[object, ...] = ()
        """What tells cheaply, at every step, that the members have changed."""
        self._next_build_s = 0.0  #: when they are looked at though they have not
        self.next_change_s = 0.0  #: a roster of members that changed comes no earlier
        self._next_loads_s = 0.0  #: and one of loads that did

    # Names

    def assign_name(self, node: NodeId, wanted: str) -> str:
        """Return the node's name in the mesh, and give it one if it has none."""
        given = self._names.get(node)
        if given is not None and (
            given == wanted or _is_name_variant(given, wanted, node)
        ):
            return given
        taken = {name for other, name in self._names.items() if other != node}
        name = wanted if wanted not in taken else ""
        for variant in _name_variants(wanted, node):
            name = name or (variant if variant not in taken else "")
        self._names[node] = name or node
        return self._names[node]

    def given_name(self, node: NodeId) -> str | None:
        """Return the name that the mesh knows a node by."""
        return self._names.get(node)

    def named_nodes(self) -> frozenset[NodeId]:
        """Return the nodes that rosters have shown, or an earlier process has met."""
        return frozenset(self._names)

    def set_roster(self, roster: Roster) -> None:
        """Take over a dispatcher's roster."""
        self.roster = roster
        for member in roster.members:
            self._names[member.id] = member.name

    def needed_links(
        self, dispatcher: NodeId | None, me: NodeId, full_mesh_max: int
    ) -> frozenset[NodeId]:
        """Return whom a follower needs a link to; empty: up to `most` are no burden."""
        roster = self.roster
        if roster is None or dispatcher is None or len(roster.members) <= full_mesh_max:
            return frozenset()
        standbys = {m.id for m in roster.members if m.role is Role.STANDBY}
        return frozenset() if me in standbys else frozenset({dispatcher}) | standbys

    def role_of(self, node: NodeId) -> Role | None:
        """Return what a node is by the last roster, None if it is not in there."""
        members = () if self.roster is None else self.roster.members
        return next((m.role for m in members if m.id == node), None)

    def expects_others(self, me: NodeId, deposed: NodeId | None) -> bool:
        """Return whether others than these were in the mesh when last heard."""
        roster = self.roster
        return roster is not None and any(
            member.id not in (me, deposed) and member.state is not NodeState.LOST
            for member in roster.members
        )

    # Building

    def mark_members_lost(self, now: Moment) -> None:
        """This node reigns: who was in the last roster is lost until it comes."""
        self.next_change_s = 0.0
        if self.roster is None:
            return
        for member in self.roster.members:
            if member.state is NodeState.LOST:
                continue
            self._lost[member.id] = (_as_lost(member), now.mono_s)

    def on_follower_lost(self, peer: NodeId, now: Moment, *, is_leaving: bool) -> None:
        """A follower's link ended."""
        if is_leaving or self.roster is None:
            self._lost.pop(peer, None)
            return
        for member in self.roster.members:
            if member.id == peer:
                self._lost[peer] = (_as_lost(member), now.mono_s)

    def lost_since_s(self, node: NodeId) -> float | None:
        """Return since when a member is lost."""
        lost = self._lost.get(node)
        return None if lost is None else lost[1]

    def is_build_due(
        self, epoch: Epoch, own_availability: Availability, now: Moment
    ) -> bool:
        """Return whether `build_roster` would look at the members; asked at each step."""
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
    ) -> Roster | None:
        """Return a new roster if one is due and differs from the last.

        Args:
            epoch: The reign of this node.
            own_entry: Returns this node's line, except its name; not asked at each step.
            own_availability: Of this node, as in its line.
            standbys: Followers that keep copies, best first.
            running: Returns how many attempts a node has.
            now: Both clocks.
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
        last = self.roster
        is_same_epoch = last is not None and last.epoch == epoch
        if (
            last is not None
            and is_same_epoch
            and self._is_not_worth_sending(new, last, now)
        ):
            return None
        version = last.version + 1 if last is not None and is_same_epoch else 1
        self.roster = Roster(epoch, version, new)
        self.next_change_s = now.mono_s + self._scaled_interval_s(CHANGE_INTERVAL_S)
        self._next_loads_s = now.mono_s + self._scaled_interval_s(LOAD_INTERVAL_S)
        return self.roster

    def _recently_lost(
        self, present: list[RosterEntry], now: Moment
    ) -> list[RosterEntry]:
        """Return who was lost lately, as many as there is room for, and forget others.

        A member may call itself another one each time: no follower reads such a roster.
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
        self, new: tuple[RosterEntry, ...], last: Roster, now: Moment
    ) -> bool:
        """Whether `new` says nothing that is worth sending yet."""
        if [*map(_URGENT_FIELDS, new)] != [*map(_URGENT_FIELDS, last.members)]:
            return False
        if now.mono_s < self._next_loads_s:
            return True
        return _rounded_loads(new) == _rounded_loads(last.members)

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
        pressure=None if health is None else health.pressure,
    )


def _fit_in_frame(listed: Iterable[RosterEntry]) -> tuple[RosterEntry, ...]:
    """Leave out the labels and GPUs of those for which a frame may have no room."""
    fitting = []
    room = LABELS_BYTES_MAX
    for line in listed:
        words = (*line.gpus, *chain.from_iterable(line.labels))
        room -= sum(len(word.encode()) + WORD_OVERHEAD for word in words)
        fitting.append(line if room >= 0 else replace(line, labels=(), gpus=()))
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


def _rounded_loads(members: tuple[RosterEntry, ...]) -> list[tuple[int, int, int, int]]:
    """Return the loads as coarsely as people care, so that idle nodes stay quiet."""
    return [
        (
            member.running,
            round(member.load.cpu_percent / 10),
            round(member.load.load1 * 2),
            member.load.memory_used_mb // 256,
        )
        for member in members
    ]
