"""Announcements of a node: HELLO, heartbeat answers, the roster and the mesh state."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Effect, PublishMeshState, Relay, Send
from octaskly.core.election.candidacy import Candidacy
from octaskly.core.election.election import Election
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.ids import Address, Epoch, Moment, NodeId
from octaskly.core.model.nodes import (
    NO_LOAD,
    Availability,
    LoadSample,
    Role,
    RosterEntry,
)
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.node.visitors import Visitors
from octaskly.core.protocol.messages import HeartbeatOk, Hello
from octaskly.core.replication.journal import Journal
from octaskly.core.worker.worker import Worker


class SelfDescription:
    """Describes this node to other nodes."""

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
        ] = ()  #: set once the addresses have changed

    def set_addresses(self, addresses: tuple[str, ...]) -> None:
        """Announce changed addresses of this machine.

        Links may survive the change, over another interface or a link-local address.
        """
        self._changed_addresses = addresses
        self._info = replace(self._info, addresses=addresses)

    @property
    def availability(self) -> Availability:
        """The availability of this node's worker."""
        return self._worker.availability

    def set_load(self, load: LoadSample) -> None:
        """Announce this load."""
        self._load = load

    def hello(self, now: Moment) -> Hello:
        """Return the HELLO for a new link."""
        election = self._election
        return Hello(
            node=self._info,
            epoch=election.epoch,
            dispatcher=election.reachable_dispatcher,
            followers=election.follower_count,
            vector=self._journal.vector_items(),
            retired=self._journal.retired_summary(),
            uptime_s=self._candidacy.uptime_s(now),
            wall_ms=now.wall_ms,
            readable_log_version=self._readable_log_version,
            log_version=self._journal.log_version,
        )

    def heartbeat_ok(self, now: Moment) -> HeartbeatOk:
        """Return this node's state, with its own epoch and time.

        In an answer to a dispatcher, the caller replaces `epoch` and `sent_s`.
        """
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
            self._journal.is_merging,
            self._candidacy.is_api_failing,
        )

    def roster_entry(self) -> RosterEntry:
        """Return this node's entry of the roster that it sends as dispatcher."""
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
            pythons=info.pythons,
            pressure=worker.availability.pressure,
        )


class RosterSender:
    """Sends the roster from a dispatcher to its followers."""

    def __init__(
        self,
        self_description: SelfDescription,
        peer_table: PeerTable,
        roster_builder: RosterBuilder,
        dispatcher: Dispatcher,
        visitors: Visitors,
        timers: TimerHeap,
    ) -> None:
        self._visitors = visitors
        self._timers = timers
        self._self_description = self_description
        self._peer_table = peer_table
        self._roster_builder = roster_builder
        self._dispatcher = dispatcher
        self._sent_peer_changes = -1  #: change count at the latest send

    def send_roster(
        self, epoch: Epoch, standbys: Sequence[NodeId], now: Moment
    ) -> list[Effect]:
        """Send a changed roster to all followers, or the latest one to new followers.

        Args:
            epoch: The epoch of this dispatcher.
            standbys: The standbys, best first.
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
                self._visitors.roster_entries,
            )
        elif now.mono_s < self._roster_builder.next_change_s:
            # Otherwise only loads may have changed, and the next heartbeat is early
            # enough.
            self._timers.set(Timer.ROSTER, self._roster_builder.next_change_s)
        if new is None and self._peer_table.change_count == self._sent_peer_changes:
            return []
        self._sent_peer_changes = self._peer_table.change_count
        roster = self._roster_builder.roster
        assert roster is not None, "the first build of an epoch is never delayed"
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
        self._given_name = given_name  #: this node's name in the mesh
        self._journal = journal
        self._roster_builder = roster_builder
        self._published: tuple[object, ...] = ()

    def publish(
        self,
        epoch: Epoch,
        dispatcher: NodeId | None,
        relay: Relay | None,
        *,
        is_serving: bool,
    ) -> list[Effect]:
        """Publish the state if it differs from the latest published one."""
        roster = self._roster_builder.roster
        version = None if roster is None else (roster.epoch, roster.version)
        state = (epoch, dispatcher, is_serving, version, relay)
        if state == self._published:
            return []
        self._published = state
        return [
            *self._save_given_name(),  # Only a roster or an own epoch sets a name.
            PublishMeshState(epoch, dispatcher, is_serving, roster, relay),
        ]

    def _save_given_name(self) -> list[Effect]:
        """Save this node's name in the mesh."""
        given = self._roster_builder.given_name(self._me)
        if given is None or given == self._given_name:
            return []
        self._given_name = given
        return [self._journal.save(name=given)]
