"""Messages of workers to the dispatcher: heartbeat answers, results, attempts."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Effect
from octaskly.core.election.election import Election
from octaskly.core.election.transfer import DispatcherTransfer
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.ids import Epoch, Moment, NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.node.availability import PauseFencing
from octaskly.core.protocol.messages import (
    HeartbeatOk,
    HeldBlobs,
    RangeResults,
    Reattach,
    Results,
)
from octaskly.core.replication.not_found_rule import NotFoundRule


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMessages:
    """Passes messages of workers that confirmed this epoch to the dispatcher."""

    own_info: NodeInfo
    peer_table: PeerTable
    roster_builder: RosterBuilder
    election: Election
    dispatcher_transfer: DispatcherTransfer
    not_found_rule: NotFoundRule
    dispatcher: Dispatcher
    pause_fencing: PauseFencing

    def on_worker_message(
        self,
        peer: NodeId,
        message: HeartbeatOk | Results | RangeResults | Reattach | HeldBlobs,
        now: Moment,
    ) -> list[Effect]:
        """Handle a message of a peer, or of this node's own worker."""
        dispatcher, view = self.dispatcher, self.peer_table.peers.get(peer)
        dispatcher_epoch = self.election.dispatcher_epoch
        if not dispatcher.is_active or dispatcher_epoch is None:
            return []  # The worker keeps its results until there is a dispatcher.
        if view is not None and view.followed_epoch != self.election.epoch:
            return []  # It was sent in an earlier epoch; the worker repeats it.
        if isinstance(message, HeldBlobs):
            dispatcher.on_held_blobs(peer, message)
            return []
        state = None if isinstance(message, RangeResults) else message.state
        if view is not None and state is not None:
            self.peer_table.record_state(view, state)
        match message:
            case HeartbeatOk():
                return self._on_heartbeat_ok(peer, message, dispatcher_epoch.epoch, now)
            case Results() | RangeResults():
                if self.dispatcher_transfer.is_in_progress:
                    return []  # The log must not grow while a successor catches up.
                dispatcher.record_results(peer, message, now)
                return []  # All reports of a step are committed at its end.
            case Reattach():
                return self._on_reattach(peer, message, now)

    def _on_heartbeat_ok(
        self, peer: NodeId, message: HeartbeatOk, own_epoch: Epoch, now: Moment
    ) -> list[Effect]:
        view = self.peer_table.peers.get(peer)
        if view is not None:
            self.peer_table.record_heartbeat_ok(view, message)
        effects = self.peer_table.on_addresses_changed(peer, message.addresses, now)
        effects += self.pause_fencing.on_heartbeat_ok(message, now)
        effects += self.not_found_rule.on_heartbeat_ok(peer, own_epoch, now)
        return effects + self.dispatcher.on_heartbeat_ok(peer, message, now)

    def _on_reattach(
        self, peer: NodeId, message: Reattach, now: Moment
    ) -> list[Effect]:
        """Register a worker once all parts of its `Reattach` are here."""
        view = self.peer_table.peers.get(peer)
        info = self.own_info if view is None else view.info
        if view is not None:
            message = view.join_reattach_parts(message)
            if message.has_more:
                return []  # Attempts in the next parts are not lost.
        effects = self.register_worker(info, now)
        if view is not None:
            view.is_worker = True
            if not self.not_found_rule.has_read_log_of(view):
                self.dispatcher.reconciler.await_logs(now)
        return effects + self.dispatcher.on_reattach(peer, message, now)

    def register_worker(self, info: NodeInfo, now: Moment) -> list[Effect]:
        """Register a worker, under its name in the mesh."""
        name = self.roster_builder.assign_name(info.id, info.name)
        return self.dispatcher.on_worker_up(replace(info, name=name), now)
