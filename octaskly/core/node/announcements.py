"""What a node says of itself: on a new link, in answer to a heartbeat, in the roster.

Owns the words alone. Whom they are told, and when, is for `inbound` and `herald`.
"""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.effects import Effect, Note, Publish, Send
from octaskly.core.model.ids import Address, Moment
from octaskly.core.model.nodes import NO_LOAD, LoadSample, Role
from octaskly.core.node.components import Machines
from octaskly.core.protocol.messages import HeartbeatOk, Hello, RosterLine


class Profile:
    """This node, as other nodes are told of it."""

    def __init__(self, machines: Machines) -> None:
        self._info = machines.settings.node
        self._reads = machines.settings.log_version
        self._journal = machines.journal
        self._members = machines.members
        self._candidacy = machines.candidacy
        self._election = machines.election
        self._worker = machines.worker
        self._load = NO_LOAD
        self._moved: tuple[str, ...] = ()  #: its addresses, once they have changed

    def move(self, addresses: tuple[str, ...]) -> None:
        """Name these addresses from now on: the machine has others than before.

        A link may outlive that, over another interface or a link-local address.
        """
        self._moved = addresses
        self._info = replace(self._info, addresses=addresses)

    def take_load(self, load: LoadSample) -> None:
        """Name this load from now on."""
        self._load = load

    def hello(self, now: Moment) -> Hello:
        """Return what is said first on a new link."""
        election = self._election
        followers = 0
        if election.reign is not None:
            followers = sum(1 for _ in self._members.followers(election.epoch))
        return Hello(
            node=self._info,
            epoch=election.epoch,
            dispatcher=election.known_dispatcher,
            followers=followers,
            vector=self._journal.vector_items(),
            uptime_s=self._candidacy.uptime_s(now),
            wall_ms=now.wall_ms,
            reads=self._reads,
            log_version=self._journal.version,
        )

    def health(self, now: Moment) -> HeartbeatOk:
        """Return how this node is: `epoch` and `sent_s` are its own."""
        worker = self._worker
        return HeartbeatOk(
            self._election.epoch,
            now.mono_s,
            worker.stance.state,
            worker.credit_at(now),
            self._load,
            self._candidacy.is_disk_failing,
            worker.stance.strain,
            self._moved,
        )

    def line(self) -> RosterLine:
        """Return this node's line of the roster that it sends as dispatcher."""
        info, worker = self._info, self._worker
        return RosterLine(
            id=info.id,
            name=info.name,
            role=Role.DISPATCHER,
            state=worker.stance.state,
            addresses=tuple(Address(h, info.peer_port) for h in info.addresses),
            lan_port=info.lan_port,
            slots=info.slots,
            running=min(worker.running, info.slots),
            version=info.version,
            load=self._load,
            memory_mb=info.memory_mb,
            labels=info.labels,
            os=info.os,
            arch=info.arch,
            cpus=info.cpus,
            gpus=info.gpus,
            strain=worker.stance.strain,
        )


class Herald:
    """The outgoing side of the roster, and the last thing published."""

    def __init__(self, machines: Machines, profile: Profile, name: str) -> None:
        self._me = machines.settings.node.id
        self._profile = profile
        self._journal = machines.journal
        self._members = machines.members
        self._registry = machines.registry
        self._election = machines.election
        self._replication = machines.replication
        self._dispatch = machines.dispatch
        self._worker = machines.worker
        self._name = name  #: by which the mesh knows this node
        self._published: tuple[object, ...] = ()
        self._was_level = False  #: a standby of this reign, at the last step
        self._spread_changes = -1  #: of the members, when all had the roster

    def on_change(self, now: Moment) -> list[Effect]:
        """Tell what is new since the last call, if anything is."""
        election = self._election
        effects = [] if election.reign is None else self._spread(now)
        effects += self._note_copies()
        roster = self._registry.roster
        version = None if roster is None else (roster.epoch, roster.version)
        is_serving = election.reign is not None and self._dispatch.is_accepting
        dispatcher = election.known_dispatcher
        state = (election.epoch, dispatcher, is_serving, version)
        if state == self._published:
            return effects
        self._published = state
        effects += self._take_name()  # Which only a reign or a roster gives.
        return [*effects, Publish(election.epoch, dispatcher, is_serving, roster)]

    def _note_copies(self) -> list[Effect]:
        """Say it when tasks that are accepted from now on have one copy only."""
        was_level, is_reigning = self._was_level, self._election.reign is not None
        self._was_level = is_reigning and self._replication.is_level
        if not is_reigning or self._was_level or not was_level:
            return []
        joining = len(self._replication.nodes)
        return [Note("warning", "one copy only", (("joining", joining),))]

    def _spread(self, now: Moment) -> list[Effect]:
        """Send followers a roster that changed, and newcomers the last one."""
        epoch, stance = self._election.epoch, self._worker.stance
        new = None
        if self._registry.is_due(epoch, stance, now):
            new = self._registry.build(
                epoch,
                self._profile.line,
                stance,
                self._replication.nodes,
                self._dispatch.outstanding,
                now,
            )
        if new is None and self._members.changes == self._spread_changes:
            return []
        self._spread_changes = self._members.changes
        roster = self._registry.roster
        assert roster is not None, "the first build of a reign is never put off"
        effects: list[Effect] = []
        for peer, view in self._members.followers(epoch):
            if new is not None or not view.has_roster:
                view.has_roster = True
                effects.append(Send(peer, (roster,)))
        return effects

    def _take_name(self) -> list[Effect]:
        """Keep the name that the mesh has given this node."""
        given = self._registry.given(self._me)
        if given is None or given == self._name:
            return []
        self._name = given
        return [self._journal.save(name=given)]
