"""Role changes: start and stop dispatching, and attach the worker to a dispatcher.

The election decides the role of this node. The changes apply it to the other
components: to the dispatcher and its log, and to the worker.
"""

from __future__ import annotations

from dataclasses import dataclass

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Advertise, Effect
from octaskly.core.election.election import Election
from octaskly.core.election.phases import Attachment
from octaskly.core.membership.mdns_schedule import MdnsSchedule
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.ids import DispatcherEpoch, Moment
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.node.connections import LinkPolicy
from octaskly.core.node.worker_messages import WorkerMessages
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.not_found_rule import NotFoundRule
from octaskly.core.replication.replication import Replication
from octaskly.core.worker.worker import Worker


@dataclass(slots=True, kw_only=True)
class DispatcherRole:
    """Starts and stops dispatching on this node."""

    own_info: NodeInfo
    journal: Journal
    peer_table: PeerTable
    roster_builder: RosterBuilder
    election: Election
    replication: Replication
    not_found_rule: NotFoundRule
    dispatcher: Dispatcher
    worker_messages: WorkerMessages
    link_policy: LinkPolicy
    dispatcher_epoch: DispatcherEpoch | None = None
    """The epoch in which this node dispatches; the election may be ahead of it."""

    def apply(self, now: Moment) -> list[Effect]:
        """Start or stop dispatching, if the election has decided so."""
        dispatcher_epoch = self.election.dispatcher_epoch
        if dispatcher_epoch is self.dispatcher_epoch:
            return []
        effects: list[Effect] = []
        if self.dispatcher_epoch is not None:
            effects = self.dispatcher.stop_dispatching()
            self.replication.stop_replicating(now)
            self.journal.close_stream()
        self.dispatcher_epoch = dispatcher_epoch
        if dispatcher_epoch is None:
            return [*effects, Advertise(is_dispatcher=False, term=0)]
        return effects + self._start_dispatching(dispatcher_epoch, now)

    def _start_dispatching(
        self, dispatcher_epoch: DispatcherEpoch, now: Moment
    ) -> list[Effect]:
        epoch, stream = dispatcher_epoch.epoch, dispatcher_epoch.stream
        self.roster_builder.mark_members_lost(now)
        self.journal.open_stream(stream)
        expects_standbys = bool(
            self.peer_table.peers
        ) or self.roster_builder.expects_others(
            self.own_info.id, self.election.loss.dispatcher
        )
        self.replication.start_replicating(
            dispatcher_epoch,
            now,
            expects_standbys=expects_standbys,
            alone_since_s=self.peer_table.alone_since_s,
        )
        self.not_found_rule.start_catch_up(
            epoch,
            self.roster_builder.roster,
            now.mono_s,
            self.election.loss.dispatcher,
        )
        if not self.not_found_rule.has_read_all:
            self.dispatcher.reconciler.await_logs(now)
        effects = self.dispatcher.start_dispatching(epoch, stream, now)
        # Register connected nodes before their `Reattach` arrives. Otherwise a task
        # that must fail fast would be refused at first.
        for info in (
            self.own_info,
            *(view.info for view in self.peer_table.peers.values()),
        ):
            effects += self.worker_messages.register_worker(info, now)
        if self.election.is_withdrawn:
            self.dispatcher.pause_accepting()
        effects.append(Advertise(is_dispatcher=True, term=epoch.term))
        return effects + self.link_policy.dial_absent_members(now)


class WorkerAttachment:
    """Attaches this node's worker to a dispatcher, and browses while there is none."""

    def __init__(
        self, election: Election, worker: Worker, mdns_schedule: MdnsSchedule
    ) -> None:
        self._election = election
        self._worker = worker
        self._mdns_schedule = mdns_schedule
        self._attachment: Attachment | None = None
        """The dispatcher that the worker serves; the election may be ahead of it."""

    def apply(self, now: Moment) -> list[Effect]:
        """Attach the worker to another dispatcher, or detach it and browse."""
        attachment = self._election.attachment
        if attachment == self._attachment:
            return []
        effects: list[Effect] = []
        if self._attachment is not None:
            effects += self._worker.detach(now)
        self._attachment = attachment
        if self._election.dispatcher_epoch is None and attachment is not None:
            effects += self._mdns_schedule.stop()
        elif not self._mdns_schedule.is_browsing:
            effects += self._mdns_schedule.start(
                now, is_delayed=self._election.is_mass_succession
            )
        if attachment is not None:
            effects += self._worker.attach(attachment.dispatcher, attachment.epoch, now)
        return effects
