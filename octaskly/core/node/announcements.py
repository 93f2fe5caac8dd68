"""What a node tells of itself: on a new link, with a heartbeat, in the roster."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Effect, PublishMeshState, Send
from octaskly.core.election.candidacy import Candidacy
from octaskly.core.election.election import Election
from octaskly.core.membership.membership import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.ids import Address, Epoch, Moment, NodeId
from octaskly.core.model.nodes import NO_LOAD, Availability, LoadSample, Role
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import HeartbeatOk, Hello, RosterEntry
from octaskly.core.replication.journal import Journal
from octaskly.core.worker.worker import Worker


class SelfDescription:
    """This node, as other nodes are told of it."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        candidacy: Candidacy,
        election: Election,
        worker: Worker,
    ) -> None:
        self._info = settings.node
        self._readable_log_version = settings.log_version
        self._journal = journal
        self._candidacy = candidacy
        self._election = election
        self._worker = worker
        self._load = NO_LOAD
        self._changed_addresses: tuple[
            str, ...
        ] = ()  #: its addresses, once they have changed

    def set_addresses(self, addresses: tuple[str, ...]) -> None:
        """Name these addresses from now on: the machine has others than before.

        A link may outlive that, over another interface or a link-local address.
        """
        self._changed_addresses = addresses
        self._info = replace(self._info, addresses=addresses)

    @property
    def availability(self) -> Availability:
        """Whether this node takes work."""
        return self._worker.availability

    def set_load(self, load: LoadSample) -> None:
        """Name this load from now on."""
        self._load = load

    def hello(self, now: Moment) -> Hello:
        """Return what is said first on a new link."""
        election = self._election
        return Hello(
            node=self._info,
            epoch=election.epoch,
            dispatcher=election.reachable_dispatcher,
            followers=election.follower_count,
            vector=self._journal.vector_items(),
            uptime_s=self._candidacy.uptime_s(now),
            wall_ms=now.wall_ms,
            readable_log_version=self._readable_log_version,
            log_version=self._journal.log_version,
        )

    def heartbeat_ok(self, now: Moment) -> HeartbeatOk:
        """Return how this node is: `epoch` and `sent_s` are its own."""
        worker = self._worker
        return HeartbeatOk(
            self._election.epoch,
            now.mono_s,
            worker.availability.state,
            worker.credit_at(now),
            self._load,
            self._candidacy.is_disk_failing,
            worker.availability.pressure,
            self._changed_addresses,
        )

    def roster_entry(self) -> RosterEntry:
        """Return this node's line of the roster that it sends as dispatcher."""
        info, worker = self._info, self._worker
        return RosterEntry(
            id=info.id,
            name=info.name,
            role=Role.DISPATCHER,
            state=worker.availability.state,
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
            pressure=worker.availability.pressure,
        )


class RosterSender:
    """Sends a dispatcher's followers the list of members."""

    def __init__(
        self,
        self_description: SelfDescription,
        peer_table: PeerTable,
        roster_builder: RosterBuilder,
        dispatcher: Dispatcher,
        timers: TimerHeap,
    ) -> None:
        self._timers = timers
        self._self_description = self_description
        self._peer_table = peer_table
        self._roster_builder = roster_builder
        self._dispatcher = dispatcher
        self._sent_peer_changes = -1  #: of the members, when all had the roster

    def send_roster(
        self, epoch: Epoch, standbys: Sequence[NodeId], now: Moment
    ) -> list[Effect]:
        """Send followers a roster that changed, and newcomers the last one.

        Args:
            epoch: Of this node as dispatcher.
            standbys: Followers that keep copies, best first.
            now: Both clocks.
        """
        availability = self._self_description.availability
        new = None
        if self._roster_builder.is_build_due(epoch, availability, now):
            new = self._roster_builder.build_roster(
                epoch,
                self._self_description.roster_entry,
                availability,
                standbys,
                self._dispatcher.outstanding,
                now,
            )
        elif now.mono_s < self._roster_builder.next_change_s:
            # Else the next heartbeat is early enough, as only loads may have changed.
            self._timers.set(Timer.ROSTER, self._roster_builder.next_change_s)
        if new is None and self._peer_table.change_count == self._sent_peer_changes:
            return []
        self._sent_peer_changes = self._peer_table.change_count
        roster = self._roster_builder.roster
        assert roster is not None, "the first build of an epoch is never put off"
        effects: list[Effect] = []
        for peer, view in self._peer_table.followers(epoch):
            if new is not None or not view.has_roster:
                view.has_roster = True
                effects.append(Send(peer, (roster,)))
        return effects


class MeshStatePublisher:
    """Publishes role, dispatcher and roster to the agent when one of them changes."""

    def __init__(
        self,
        me: NodeId,
        given_name: str,
        journal: Journal,
        roster_builder: RosterBuilder,
    ) -> None:
        self._me = me
        self._given_name = given_name  #: by which the mesh knows this node
        self._journal = journal
        self._roster_builder = roster_builder
        self._published: tuple[object, ...] = ()

    def publish(
        self, epoch: Epoch, dispatcher: NodeId | None, *, is_serving: bool
    ) -> list[Effect]:
        """Publish the state unless it is the one that was published last."""
        roster = self._roster_builder.roster
        version = None if roster is None else (roster.epoch, roster.version)
        state = (epoch, dispatcher, is_serving, version)
        if state == self._published:
            return []
        self._published = state
        return [
            *self._save_given_name(),  # Only a roster or an epoch of its own gives one.
            PublishMeshState(epoch, dispatcher, is_serving, roster),
        ]

    def _save_given_name(self) -> list[Effect]:
        """Keep the name that the mesh has given this node."""
        given = self._roster_builder.given_name(self._me)
        if given is None or given == self._given_name:
            return []
        self._given_name = given
        return [self._journal.save(name=given)]
