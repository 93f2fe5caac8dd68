"""What a node says of itself: on a new link, in answer to a heartbeat, in the roster.

Owns the words alone. Whom they are told, and when, is for `inbound` and `herald`.
"""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Effect, LogLine, PublishMeshState, Send
from octaskly.core.model.ids import Address, Moment
from octaskly.core.model.nodes import NO_LOAD, LoadSample, Role
from octaskly.core.node.components import Components
from octaskly.core.protocol.messages import HeartbeatOk, Hello, RosterEntry


class SelfDescription:
    """This node, as other nodes are told of it."""

    def __init__(self, components: Components) -> None:
        self._info = components.settings.node
        self._readable_log_version = components.settings.log_version
        self._journal = components.journal
        self._peer_table = components.peer_table
        self._candidacy = components.candidacy
        self._election = components.election
        self._worker = components.worker
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

    def set_load(self, load: LoadSample) -> None:
        """Name this load from now on."""
        self._load = load

    def hello(self, now: Moment) -> Hello:
        """Return what is said first on a new link."""
        election = self._election
        followers = 0
        if election.dispatcher_epoch is not None:
            followers = sum(1 for _ in self._peer_table.followers(election.epoch))
        return Hello(
            node=self._info,
            epoch=election.epoch,
            dispatcher=election.reachable_dispatcher,
            followers=followers,
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


class Announcements:
    """The outgoing side of the roster, and the last thing published."""

    def __init__(
        self, components: Components, self_description: SelfDescription, name: str
    ) -> None:
        self._me = components.settings.node.id
        self._self_description = self_description
        self._journal = components.journal
        self._peer_table = components.peer_table
        self._roster_builder = components.roster_builder
        self._election = components.election
        self._replication = components.replication
        self._dispatcher = components.dispatcher
        self._worker = components.worker
        self._given_name = name  #: by which the mesh knows this node
        self._published: tuple[object, ...] = ()
        self._was_in_sync = False  #: a standby of this reign, at the last step
        self._sent_peer_changes = -1  #: of the members, when all had the roster

    def announce_changes(self, now: Moment) -> list[Effect]:
        """Tell what is new since the last call, if anything is."""
        election = self._election
        effects = [] if election.dispatcher_epoch is None else self._send_roster(now)
        effects += self._warn_single_copy()
        roster = self._roster_builder.roster
        version = None if roster is None else (roster.epoch, roster.version)
        is_serving = (
            election.dispatcher_epoch is not None and self._dispatcher.is_accepting
        )
        dispatcher = election.reachable_dispatcher
        state = (election.epoch, dispatcher, is_serving, version)
        if state == self._published:
            return effects
        self._published = state
        effects += self._save_given_name()  # Which only a reign or a roster gives.
        return [
            *effects,
            PublishMeshState(election.epoch, dispatcher, is_serving, roster),
        ]

    def _warn_single_copy(self) -> list[Effect]:
        """Say it when tasks that are accepted from now on have one copy only."""
        was_in_sync, is_dispatching = (
            self._was_in_sync,
            self._election.dispatcher_epoch is not None,
        )
        self._was_in_sync = is_dispatching and self._replication.has_in_sync_standby
        if not is_dispatching or self._was_in_sync or not was_in_sync:
            return []
        joining = len(self._replication.standby_nodes)
        return [LogLine("warning", "one copy only", (("joining", joining),))]

    def _send_roster(self, now: Moment) -> list[Effect]:
        """Send followers a roster that changed, and newcomers the last one."""
        epoch, availability = self._election.epoch, self._worker.availability
        new = None
        if self._roster_builder.is_build_due(epoch, availability, now):
            new = self._roster_builder.build_roster(
                epoch,
                self._self_description.roster_entry,
                availability,
                self._replication.standby_nodes,
                self._dispatcher.outstanding,
                now,
            )
        if new is None and self._peer_table.change_count == self._sent_peer_changes:
            return []
        self._sent_peer_changes = self._peer_table.change_count
        roster = self._roster_builder.roster
        assert roster is not None, "the first build of a reign is never put off"
        effects: list[Effect] = []
        for peer, view in self._peer_table.followers(epoch):
            if new is not None or not view.has_roster:
                view.has_roster = True
                effects.append(Send(peer, (roster,)))
        return effects

    def _save_given_name(self) -> list[Effect]:
        """Keep the name that the mesh has given this node."""
        given = self._roster_builder.given_name(self._me)
        if given is None or given == self._given_name:
            return []
        self._given_name = given
        return [self._journal.save(name=given)]
