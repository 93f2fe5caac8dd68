"""The list of members that a dispatcher gives out, and unique names for them.

A name that is taken becomes `<name>-<first 4 of the node id>`, for good. Members stand
in the order in which they would succeed; those that were lost stay for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from itertools import chain
from operator import attrgetter

from octaskly.core.membership.membership import Membership
from octaskly.core.membership.peer import PeerView
from octaskly.core.model.ids import Epoch, Moment, NodeId
from octaskly.core.model.nodes import NO_LOAD, NodeState, Role, Stance
from octaskly.core.protocol.messages import Roster, RosterLine

LOST_S = 600.0  #: for how long a lost member is listed
CHANGE_S = 0.1  #: between rosters when members come and go, and between looks
LOAD_S = 1.0  #: between rosters when only loads change
PLAIN_MEMBERS = 16  #: these times grow with the mesh beyond this
SAID_BYTES = 3 << 20
"""Of the labels and GPUs of all members: a roster travels in one frame, of which what
else is said of 1,024 of them takes 4 MiB at most."""
WORD_OVERHEAD = 4  #: bytes beside each of these words
NAME_SUFFIX = 4  #: characters of the node id; more where that is taken, too

_SHAPE = attrgetter(
    *(
        field.name
        for field in fields(RosterLine)
        if field.name not in ("running", "load")
    )
)
"""What followers must know at once when it changes."""


class Registry:
    """Who is in the mesh: as dispatcher the author of the roster, else its reader."""

    def __init__(
        self, names: Iterable[tuple[NodeId, str]], members: Membership
    ) -> None:
        self.roster: Roster | None = None
        self._members = members
        self._names = dict(names)
        self._lost: dict[NodeId, tuple[RosterLine, float]] = {}
        self._seen: tuple[object, ...] = ()
        """What tells cheaply, at every step, that the members have changed."""
        self._look_s = 0.0  #: when they are looked at though they have not
        self._changes_s = 0.0  #: a roster of members that changed comes no earlier
        self._loads_s = 0.0  #: and one of loads that did

    # Names

    def name_of(self, node: NodeId, wanted: str) -> str:
        """Return the node's name in the mesh, and give it one if it has none."""
        given = self._names.get(node)
        if given is not None and (given == wanted or _is_variant(given, wanted, node)):
            return given
        taken = {name for other, name in self._names.items() if other != node}
        name = wanted if wanted not in taken else ""
        for variant in _variants(wanted, node):
            name = name or (variant if variant not in taken else "")
        self._names[node] = name or node
        return self._names[node]

    def given(self, node: NodeId) -> str | None:
        """Return the name that the mesh knows a node by."""
        return self._names.get(node)

    def named(self) -> frozenset[NodeId]:
        """Return the nodes that rosters have shown, or an earlier process has met."""
        return frozenset(self._names)

    def learn(self, roster: Roster) -> None:
        """Take over a dispatcher's roster."""
        self.roster = roster
        for member in roster.members:
            self._names[member.id] = member.name

    def needed(
        self, dispatcher: NodeId | None, me: NodeId, most: int
    ) -> frozenset[NodeId]:
        """Return whom a follower needs a link to; empty: up to `most` are no burden."""
        roster = self.roster
        if roster is None or dispatcher is None or len(roster.members) <= most:
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

    def begin(self, now: Moment) -> None:
        """This node reigns: who was in the last roster is lost until it comes."""
        self._changes_s = 0.0
        if self.roster is None:
            return
        for member in self.roster.members:
            if member.state is NodeState.LOST:
                continue
            self._lost[member.id] = (_lost(member), now.mono_s)

    def on_lost(self, peer: NodeId, now: Moment, *, is_leaving: bool) -> None:
        """A follower's link ended."""
        if is_leaving or self.roster is None:
            self._lost.pop(peer, None)
            return
        for member in self.roster.members:
            if member.id == peer:
                self._lost[peer] = (_lost(member), now.mono_s)

    def lost_s(self, node: NodeId) -> float | None:
        """Return since when a member is lost."""
        lost = self._lost.get(node)
        return None if lost is None else lost[1]

    def is_due(self, epoch: Epoch, own: Stance, now: Moment) -> bool:
        """Return whether `build` would look at the members; asked at each step."""
        if now.mono_s < self._changes_s:
            return False
        seen = (epoch, self._members.changes, own)
        return seen != self._seen or now.mono_s >= self._look_s

    def build(
        self,
        epoch: Epoch,
        own_line: Callable[[], RosterLine],
        own_stance: Stance,
        standbys: Sequence[NodeId],
        running: Callable[[NodeId], int],
        now: Moment,
    ) -> Roster | None:
        """Return a new roster if one is due and differs from the last.

        Args:
            epoch: The reign of this node.
            own_line: Returns this node's line, except its name; not asked at each step.
            own_stance: Of this node, as in its line.
            standbys: Followers that keep copies, best first.
            running: Returns how many attempts a node has.
            now: Both clocks.
        """
        if not self.is_due(epoch, own_stance, now):
            return None
        self._seen = (epoch, self._members.changes, own_stance)
        self._look_s = now.mono_s + self._pause_s(CHANGE_S)
        own = own_line()
        name = self.name_of(own.id, own.name)
        own = own if name == own.name else replace(own, name=name)
        listed = [own, *self._followers(epoch, standbys, running, now)]
        new = _fitting(listed[: self._members.most] + self._still_lost(listed, now))
        last = self.roster
        is_same_reign = last is not None and last.epoch == epoch
        if last is not None and is_same_reign and self._is_stale(new, last, now):
            return None
        version = last.version + 1 if last is not None and is_same_reign else 1
        self.roster = Roster(epoch, version, new)
        self._changes_s = now.mono_s + self._pause_s(CHANGE_S)
        self._loads_s = now.mono_s + self._pause_s(LOAD_S)
        return self.roster

    def _still_lost(self, present: list[RosterLine], now: Moment) -> list[RosterLine]:
        """Return who was lost lately, as many as there is room for, and forget others.

        A member may call itself another one each time: no follower reads such a roster.
        """
        here = {member.id for member in present}
        lost = [
            (node, (member, since_s))
            for node, (member, since_s) in self._lost.items()
            if node not in here and now.mono_s - since_s <= LOST_S
        ]
        room = max(0, self._members.most - len(present))
        self._lost = dict(lost[max(0, len(lost) - room) :])
        return [member for member, _ in self._lost.values()]

    def _is_stale(self, new: tuple[RosterLine, ...], last: Roster, now: Moment) -> bool:
        """Whether `new` says nothing that is worth sending yet."""
        if [*map(_SHAPE, new)] != [*map(_SHAPE, last.members)]:
            return False
        if now.mono_s < self._loads_s:
            return True
        return _loads(new) == _loads(last.members)

    def _pause_s(self, period_s: float) -> float:
        size = 0 if self.roster is None else len(self.roster.members)
        return period_s * max(1.0, size / PLAIN_MEMBERS)

    def _followers(
        self,
        epoch: Epoch,
        standbys: Sequence[NodeId],
        running: Callable[[NodeId], int],
        now: Moment,
    ) -> list[RosterLine]:
        place = {node: index for index, node in enumerate(standbys)}
        views = sorted(
            (place.get(node, len(place)), view.standing(now), node, view)
            for node, view in self._members.followers(epoch)
        )
        lines = []
        for _, _, node, view in views:
            role = Role.STANDBY if node in place else Role.WORKER
            name = self.name_of(node, view.info.name)
            lines.append(_line(node, name, view, role, running(node)))
        return lines


def _line(
    node: NodeId, name: str, view: PeerView, role: Role, running: int
) -> RosterLine:
    health = view.health
    return RosterLine(
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
        strain=None if health is None else health.strain,
    )


def _fitting(listed: Iterable[RosterLine]) -> tuple[RosterLine, ...]:
    """Leave out the labels and GPUs of those for which a frame may have no room."""
    fitting = []
    room = SAID_BYTES
    for line in listed:
        words = (*line.gpus, *chain.from_iterable(line.labels))
        room -= sum(len(word.encode()) + WORD_OVERHEAD for word in words)
        fitting.append(line if room >= 0 else replace(line, labels=(), gpus=()))
    return tuple(fitting)


def _lost(member: RosterLine) -> RosterLine:
    return replace(
        member, role=Role.WORKER, state=NodeState.LOST, running=0, load=NO_LOAD
    )


def _variants(wanted: str, node: NodeId) -> tuple[str, ...]:
    sizes = range(NAME_SUFFIX, len(node) + 1)
    return tuple(f"{wanted}-{node[:size]}" for size in sizes)


def _is_variant(name: str, wanted: str, node: NodeId) -> bool:
    size = len(name) - len(wanted) - 1
    return size >= NAME_SUFFIX and name == f"{wanted}-{node[:size]}"


def _loads(members: tuple[RosterLine, ...]) -> list[tuple[int, int, int, int]]:
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
