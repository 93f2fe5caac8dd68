"""One node of the mesh: composes all components into `step`.

A step runs the timers that are due, then the event, then the signals that components
have for each other, until none is left. `message_handlers` handles the messages of
peers. A dispatcher is also its own worker; their messages never leave the node.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from msgspec.structs import replace

from octaskly.core.effects import (
    Answer,
    Disconnect,
    Effect,
    LogWrite,
    Relay,
    Send,
)
from octaskly.core.election.phases import Phase
from octaskly.core.events import (
    AddressesChanged,
    ApiChanged,
    AttemptsEnded,
    AvailabilityRequested,
    CancelRequested,
    CatchUpRequested,
    CopiesRequested,
    DialFailed,
    DiskChanged,
    Event,
    ExplainRequested,
    FloorPlanned,
    HeldBlobsChanged,
    LiveLoaded,
    LoadSampled,
    OutputRequested,
    PeerDown,
    PeersDiscovered,
    PeerUp,
    Persisted,
    PurgeRequested,
    QueuedLoaded,
    Received,
    RecordRequested,
    ReprioritizeRequested,
    SavedState,
    StopRequested,
    TaskIdsRequested,
    TasksLoaded,
    TasksNotified,
    TasksSubmitted,
    TimerFired,
    TreeSized,
    UnblockedLoaded,
    VisitorDemandRequested,
)
from octaskly.core.key_rotation.rotation import KeyRotation
from octaskly.core.membership.peer import PeerView
from octaskly.core.model.component_signals import (
    AdmissionChanged,
    ComponentSignal,
    FloorRaised,
    LinksClosed,
    MembershipChanged,
    RecordsAdded,
    RelayChanged,
    RoleChanged,
    RosterChanged,
    SyncProgressed,
    WorkerAvailabilityChanged,
)
from octaskly.core.model.ids import (
    AttemptId,
    Epoch,
    Moment,
    NodeId,
    StreamId,
    is_visitor,
)
from octaskly.core.model.keyring_state import (
    KeyringChanged,
    RotateRequested,
)
from octaskly.core.model.nodes import StandbyView, Takeover
from octaskly.core.model.settings import Settings
from octaskly.core.model.tasks import TaskSpec, TaskState
from octaskly.core.model.timer_heap import Timer
from octaskly.core.node.availability import FENCING_PAUSE_S
from octaskly.core.node.components import build_components, build_handlers
from octaskly.core.node.gathering import (
    GATHERED_EFFECTS,
    GatheredEffect,
    Gathering,
)
from octaskly.core.node.message_handlers import MessageHandlers
from octaskly.core.protocol.messages import (
    LEFT_REASON,
    STOPPING_REASON,
    Hello,
    Roster,
)
from octaskly.core.replies import NotDispatching, TaskExplanation

LATE_STEP_S = 0.05  #: a step later than `tick_s` by more than this counts as a pause
EVENTS_THAT_WAIT = (AttemptsEnded, Received)  #: if they say nothing but reports
EVENTS_WITH_DRAW = (TimerFired, Received, PeerUp, PeerDown)  #: carry a random number


class Node:
    """All decisions of one agent."""

    def __init__(self, settings: Settings, saved: SavedState) -> None:
        self._settings = settings
        self._me = settings.node.id
        components = build_components(settings, saved)
        self._timers = components.timers
        self._outbox = components.outbox
        self._journal = components.journal
        self._peer_table = components.peer_table
        self._address_book = components.peer_table.address_book
        self._mdns_schedule = components.mdns_schedule
        self._roster_builder = components.roster_builder
        self._gathering = Gathering(
            settings.limits,
            components.timers,
            components.dispatcher.has_unended_members,
        )
        self._candidacy = components.candidacy
        self._election = components.election
        self._timeouts = components.timeouts
        self._replication = components.replication
        self._not_found_rule = components.not_found_rule
        self._dispatcher = components.dispatcher
        self._worker = components.worker
        self.rotation: KeyRotation = components.rotation
        """The key rotation, with the generations of the mesh secret."""
        self.refused_counts: Mapping[str, int] = (
            components.message_validator.refused_counts
        )
        """Number of refused messages by code."""
        self.ended_counts: Mapping[TaskState, int] = components.dispatcher.ended_counts
        """Number of tasks that ended while this node was dispatcher, by state."""
        given_name = saved.name or settings.node.name
        self._handlers = build_handlers(settings, components, given_name)
        self._message_handlers = MessageHandlers(settings, components, self._handlers)
        self._last_step_s: float | None = None
        self._next_own_heartbeat_s = 0.0
        self._handlers.revocation_enforcer.block_dials()
        if self.rotation.is_revoked:
            self._election.withdraw()

    @property
    def progress(self) -> tuple[int, int]:
        """The numbers of the latest write and of the latest durable write."""
        return self._journal.last_number, self._journal.persisted

    @property
    def phase(self) -> Phase:
        """The phase of the election."""
        return self._election.phase

    @property
    def is_dispatcher(self) -> bool:
        """Return True if this node is dispatcher: its claim is durable."""
        return self._election.dispatcher_epoch is not None

    @property
    def dispatcher(self) -> NodeId | None:
        """The dispatcher, if this node can reach it."""
        return self._election.reachable_dispatcher

    @property
    def relay(self) -> Relay | None:
        """The peer that relays requests to a dispatcher out of this node's reach."""
        return None if self.dispatcher else self._election.relay

    @property
    def epoch(self) -> Epoch:
        """The highest epoch that this node has followed or owned."""
        return self._election.epoch

    @property
    def roster(self) -> Roster | None:
        """The latest roster."""
        return self._roster_builder.roster

    @property
    def standbys(self) -> tuple[StandbyView, ...]:
        """The standbys of this dispatcher; empty on other nodes."""
        return self._replication.standby_views()

    def has_copies_of_all(self, now: Moment) -> bool:
        """Return True if `CopiesRequested` would be answered at once."""
        is_repeating = self._dispatcher.reconciler.is_repeating
        return not is_repeating and self._replication.has_copies_of_all(now)

    @property
    def is_merging(self) -> bool:
        """Return True if rows of a snapshot are still to be merged."""
        return self._journal.is_merging

    @property
    def stream_count(self) -> int:
        """Number of streams that this node's log names."""
        return len(self._journal.vector)

    @property
    def last_takeover(self) -> Takeover | None:
        """This node's latest takeover from another dispatcher, or None."""
        return self._election.last_takeover

    @property
    def stream(self) -> StreamId | None:
        """This dispatcher's own stream; None on other nodes."""
        return self._journal.stream

    @property
    def peers(self) -> Mapping[NodeId, PeerView]:
        """The connected peers."""
        return self._peer_table.peers

    @property
    def has_in_sync_standby(self) -> bool:
        """Return True if a standby is in sync, so that answers wait for it."""
        return self._replication.has_in_sync_standby

    def visitor_attempts(self, visitor: NodeId) -> list[tuple[AttemptId, TaskSpec]]:
        """Return the live attempts of a visitor, if this node is dispatcher."""
        if visitor not in self._handlers.visitors:
            return []
        return self._dispatcher.assigned_attempts(visitor)

    def last_heard_s(self, node: NodeId) -> float | None:
        """Return the time of a peer's last frame, or of its loss, or None."""
        view = self._peer_table.peers.get(node)
        return (
            self._roster_builder.lost_since_s(node)
            if view is None
            else view.last_frame_s
        )

    def hello(self, now: Moment) -> Hello:
        """Return the HELLO for a new link."""
        return self._handlers.self_description.hello(now)

    def deadline(self) -> float:
        """Return the monotonic time of the next step without an event."""
        if self._last_step_s is None:
            return -math.inf
        tick_s = self._last_step_s + self._settings.timing.tick_s
        return min(self._timers.next_at(), tick_s)

    def step(self, event: Event, now: Moment) -> list[Effect]:
        """Run the timers due at `now`, then handle `event`; return ordered effects."""
        if isinstance(event, EVENTS_THAT_WAIT) and self._holds(event, now):
            return []
        if isinstance(event, EVENTS_WITH_DRAW):
            self._election.draw = event.draw
        effects = self._check_clock_gap(now)
        for timer in self._timers.pop_due(now.mono_s):
            effects += self._on_timer(timer, now)
        if self._gathering.reports:
            for report in self._gathering.take_reports():
                effects += self._on_event(report, now)
        effects += self._on_event(event, now)
        if self._handlers.shutdown.is_requested:
            effects += self._handlers.shutdown.on_time(now)
        if self._candidacy.is_failing:
            effects += self._handlers.failure_handler.on_time(now)
        return self._deliver(effects, now)

    def _holds(self, event: Event, now: Moment) -> bool:
        """Return True if the event waits for others, while many reports arrive."""
        return self._gathering.hold_report(
            event,
            now,
            lambda: self._dispatcher.is_accepting and now.mono_s < self.deadline(),
        )

    # --- Time.

    def _check_clock_gap(self, now: Moment) -> list[Effect]:
        """Start at the first step; later, detect pauses of this process."""
        last_s, self._last_step_s = self._last_step_s, now.mono_s
        timing = self._settings.timing
        if last_s is None:
            return self._start(now)
        gap_s = now.mono_s - last_s
        if gap_s > timing.suspend_gap_s:
            return self._on_resume(now)
        if gap_s <= timing.tick_s + LATE_STEP_S:
            return []
        self._timeouts.on_pause(gap_s, now)
        effects = self._handlers.pause_fencing.on_pause(gap_s, now)
        return effects + (
            self._worker.on_pause(now) if gap_s >= FENCING_PAUSE_S else []
        )

    def _start(self, now: Moment) -> list[Effect]:
        """Look for a mesh, with mDNS and dials to saved peers."""
        effects = self._election.start_election(now)
        self._not_found_rule.expect_nodes(
            self._address_book.remembered_nodes(), now.mono_s
        )
        effects += self._mdns_schedule.start(now)
        return effects + self._address_book.dial_remembered(now)

    def _on_resume(self, now: Moment) -> list[Effect]:
        """End all roles and links after the machine was suspended."""
        effects = self._election.start_discovering("woke", now)
        for peer in tuple(self._peer_table.peers):
            effects += self._handlers.connections.close_link(peer, "woke", now)
        effects += self._handlers.visitors.close_all("woke", now)
        effects += self._apply_role(now)  # Accept no tasks meanwhile.
        effects += self._mdns_schedule.start(now)
        return effects + self._address_book.redial_all(now)

    def _on_timer(  # noqa: C901, PLR0911  # A flat table.
        self, timer: Timer, now: Moment
    ) -> list[Effect]:
        if self._handlers.shutdown.is_done:
            return []
        match timer:
            case Timer.DIAL:
                effects = self._address_book.on_time(now)
                effects += self._handlers.link_policy.dial_delayed(now)
                self._timeouts.set_timer(now)
                return effects
            case Timer.HEARTBEAT:
                return self._on_heartbeat_due(now)
            case Timer.ELECTION:
                return self._timeouts.on_time(now)
            case Timer.OUTDATED_LINKS:
                return self._handlers.revocation_enforcer.on_time(now)
            case Timer.BROWSE:
                effects = self._mdns_schedule.on_time(
                    now, draw=self._election.draw, is_dispatching=self.is_dispatcher
                )
                return effects and [*effects, *self._address_book.redial_all(now)]
            case Timer.FENCING:
                return self._handlers.pause_fencing.on_time(now)
            case Timer.REATTACH | Timer.RETENTION | Timer.DEPENDENCIES | Timer.BACKOFF:
                # First wait longer for nodes that are not silent and hold more entries:
                # each of these timers may be the one that finds the wait over.
                return self._handlers.queue_reader.reread_after_sync(
                    now
                ) + self._dispatcher.on_time(now)
            case Timer.RESULTS:
                return self._worker.on_time(now)
            case Timer.REPLICATION:
                return self._replication.on_time(now)
            case Timer.VISITORS:
                return self._handlers.visitors.on_time(now)
            case Timer.ROSTER:
                return self._announce_changes(now)
            case Timer.SHUTDOWN | Timer.TRANSFER | Timer.GATHERING:
                return []  # `step` calls their handlers each time.

    def _on_heartbeat_due(self, now: Moment) -> list[Effect]:
        """Send heartbeats, and check the followers and this node's own worker."""
        heartbeats = self._election.heartbeats
        dispatcher_epoch = self._election.dispatcher_epoch
        if dispatcher_epoch is None or not heartbeats.is_due(now):
            return []
        effects = heartbeats.on_time(dispatcher_epoch, now)
        if now.mono_s < self._next_own_heartbeat_s or not self._dispatcher.is_active:
            return effects
        self._next_own_heartbeat_s = now.mono_s + self._settings.timing.heartbeat_s
        health = self._handlers.self_description.heartbeat_ok(now)
        effects += self._dispatcher.on_heartbeat_ok(self._me, health, now)
        effects += self._dispatcher.on_own_heartbeat(now)
        if self._dispatcher.has_missing_ends and self._not_found_rule.is_complete(
            now.mono_s
        ):
            effects += self._dispatcher.give_up_missing_ends(now)
        for peer in self._election.silent_followers(now):
            effects += self._handlers.connections.close_link(peer, "silent", now)
        effects += self.rotation.on_time(now)
        if self._dispatcher.is_accepting:
            effects += self._dispatcher.record_writer.write_drafts(
                self.rotation.unwritten_confirmations(), now
            )
        effects += self._answer_catch_up_requests(now)
        return effects + self._announce_changes(now)

    # --- Events.

    def _on_event(  # noqa: C901, PLR0911, PLR0912, PLR0915  # A flat table.
        self, event: Event, now: Moment
    ) -> list[Effect]:
        dispatcher = self._dispatcher
        match event:  # Frequent events come first, as each case takes time.
            case TimerFired():
                return []
            case Received(peer, messages):
                return self._message_handlers.on_received(peer, messages, now)
            case Persisted(number):
                self._journal.on_persisted(number)
                # Clients are waiting for these answers, so they come first.
                effects = self._replication.release_acks(now)
                return effects + self._journal.run_deferred(now)
            case AttemptsEnded(reports):
                return self._worker.on_attempts_ended(reports, now)
            case PeerUp():
                return self._on_peer_up(event, now)
            case PeerDown(peer, reason) if is_visitor(peer):
                return self._handlers.visitors.on_visitor_down(peer, reason, now)
            case PeerDown(peer, reason):
                return self._handlers.connections.on_peer_down(peer, reason, now)
            case PeersDiscovered(hints):
                needed = self._handlers.link_policy.needed_peers()
                effects = self._address_book.on_peers_discovered(hints, now, needed)
                self._timeouts.set_timer(now)
                return effects
            case DialFailed():
                self._address_book.on_dial_failed(event, now)
                effects = self._timeouts.on_dial_failed(event, now)
                self._timeouts.set_timer(now)
                return effects
            case TasksNotified():
                return dispatcher.on_tasks_notified(event, now)
            case TasksSubmitted():
                return dispatcher.on_submitted(event, now)
            case CancelRequested():
                return dispatcher.on_cancel_requested(event, now)
            case ReprioritizeRequested():
                return dispatcher.on_reprioritize_requested(event, now)
            case RecordRequested():
                may_write = dispatcher.is_accepting
                return self._dispatcher.record_writer.on_record_requested(
                    event, now, may_write=may_write
                )
            case (
                PurgeRequested(ticket)
                | CatchUpRequested(ticket)
                | CopiesRequested(ticket)
                | TaskIdsRequested(ticket)
                | ExplainRequested(ticket)
                | VisitorDemandRequested(ticket)
            ) if not dispatcher.is_active:
                return [Answer(ticket, NotDispatching())]
            case PurgeRequested():
                dispatcher.compaction.on_purge_requested(event, now)
                return []
            case CatchUpRequested(ticket):
                self._not_found_rule.add_request(ticket, now)
                self._election.heartbeats.hasten_heartbeat()
                return self._answer_catch_up_requests(now)
            case CopiesRequested(ticket):
                return dispatcher.on_copies_requested(ticket, now)
            case TaskIdsRequested(ticket, suffixes):
                return [Answer(ticket, dispatcher.reserve_task_ids(suffixes))]
            case ExplainRequested(ticket):
                return [Answer(ticket, self._explain_task(event, now))]
            case VisitorDemandRequested(ticket, label):
                return [Answer(ticket, dispatcher.count_visitor_demand(label))]
            case OutputRequested():
                return self._handlers.visitors.on_output_requested(event)
            case (
                QueuedLoaded()
                | LiveLoaded()
                | TasksLoaded()
                | UnblockedLoaded()
                | FloorPlanned()
            ):
                return dispatcher.on_store_answer(event, now)
            case HeldBlobsChanged():
                return self._worker.on_held_blobs_changed(event)
            case TreeSized(sha256, sizes):
                dispatcher.add_tree(sha256, sizes)
                return []
            case LoadSampled(load):
                self._handlers.self_description.set_load(load)
                return self._handlers.availability_control.on_load_sampled(event, now)
            case AddressesChanged(addresses):
                self._handlers.self_description.set_addresses(addresses)
                return []
            case DiskChanged(is_failing):
                effects = self._handlers.failure_handler.on_disk_changed(event, now)
                return effects + self._handlers.availability_control.on_disk_changed(
                    now, is_failing=is_failing
                )
            case ApiChanged():
                return self._handlers.failure_handler.on_api_changed(event, now)
            case AvailabilityRequested():
                return self._handlers.availability_control.on_availability_requested(
                    event, now
                )
            case StopRequested():
                return self._on_stop_requested(event, now)
            case RotateRequested():
                return self.rotation.on_rotate_requested(event, now)
            case KeyringChanged():
                effects = self._handlers.revocation_enforcer.on_keyring_changed(
                    event, now
                )
                return effects + self._handlers.visitors.on_keyring_changed(now)

    def _explain_task(self, event: ExplainRequested, now: Moment) -> TaskExplanation:
        roster = self._roster_builder.roster
        members = () if roster is None else roster.nodes
        explainer = self._dispatcher.explainer
        names = {**dict(event.names), **{m.id: m.name for m in members}}
        explanation = explainer.explain_task(event.record, members, now, names)
        placement = explainer.explain_placement(event.record, members, now, names)
        return replace(explanation, placement_reason=placement)

    def _on_stop_requested(self, event: StopRequested, now: Moment) -> list[Effect]:
        shutdown = self._handlers.shutdown
        if self._dispatcher.is_active and not shutdown.is_requested:
            self._dispatcher.pause_accepting()
            self._outbox.put(AdmissionChanged())
        reason = LEFT_REASON if event.is_leaving else STOPPING_REASON
        return shutdown.start_shutdown(event.drain_s, now, reason)

    # --- Links.

    def _on_peer_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        if event.peer == self._me:
            return []
        if self._handlers.shutdown.is_done:  # The process ends soon.
            return [Disconnect(event.peer, STOPPING_REASON)]
        if event.visit_ends_ms is not None:
            return self._handlers.visitors.on_visitor_up(event, now)
        return self._handlers.connections.on_peer_up(event, self._election.term, now)

    # --- Consequences.

    def _deliver(self, effects: list[Effect], now: Moment) -> list[Effect]:
        """Deliver messages to this node itself and signals, until none is left."""
        done: list[Effect] = []
        waiting = deque(effects)
        has_changed, handlers = False, self._message_handlers
        gathering = self._gathering
        while True:
            while waiting:
                effect = waiting.popleft()
                if isinstance(effect, Send) and effect.peer == self._me:
                    # After the earlier effects, because appends must keep their order.
                    for message in effect.messages:
                        waiting += handlers.on_message(self._me, message, now)
                elif not isinstance(effect, GATHERED_EFFECTS):
                    done.append(effect)
                elif not gathering.hold(effect, now):
                    done += self._with_gathered(effect, waiting, now)
            waiting += self._dispatcher.commit_results(now)
            signal = self._outbox.pop()
            if signal is not None:
                has_changed = True
                waiting += self._on_signal(signal, now)
            elif not waiting:
                break
        if not gathering.is_empty:
            done += self._take_due(now)
        return done + self._announce_changes(now) if has_changed else done

    def _take_due(self, now: Moment) -> list[Effect]:
        """Return the writes and acknowledgements that have waited long enough."""
        may_wait, copies = self._dispatcher.is_accepting, deque[Effect]()
        effects: list[Effect] = []
        for due in self._gathering.take_due(now, may_wait=may_wait):
            effects += self._with_gathered(due, copies, now)
        return [*effects, *copies]

    def _with_gathered(
        self, effect: GatheredEffect, waiting: deque[Effect], now: Moment
    ) -> list[Effect]:
        """Return an effect with the writes or acknowledgements that waited for it.

        The copies of these writes for standbys are appended to `waiting`.
        """
        if isinstance(effect, Send):
            return [self._gathering.with_ack(effect)]
        writes: list[Effect] = [*self._gathering.take_writes(), effect]
        for write in writes:
            if isinstance(write, LogWrite):
                # After the earlier messages, because the numbers of copies rise.
                waiting += self._replication.on_log_write(write, now)
        return writes

    def _on_signal(self, signal: ComponentSignal, now: Moment) -> list[Effect]:
        match signal:
            case LinksClosed():
                self._handlers.connections.forget_closed()
                return []
            case RoleChanged():
                effects = self._apply_role(now)
                self._timeouts.set_timer(now)
                effects += self._handlers.visitors.on_role_changed(now)
                effects += self._replication.update_standbys(now)
                return effects + self._answer_catch_up_requests(now)
            case MembershipChanged():
                self._timeouts.set_timer(now)
                effects = self._replication.update_standbys(now)
                effects += self._broadcast_new_records(now)
                effects += self._handlers.queue_reader.reread_after_sync(now)
                return effects + self._answer_catch_up_requests(now)
            case SyncProgressed():
                effects = self._handlers.queue_reader.reread_after_sync(now)
                return effects + self._answer_catch_up_requests(now)
            case FloorRaised():
                if self._dispatcher.is_accepting:
                    self._dispatcher.compaction.set_timer(now)
                return []
            case RecordsAdded():
                return self._broadcast_new_records(now)
            case RelayChanged():
                return self._election.state_log_to_relay(now)
            case AdmissionChanged() | WorkerAvailabilityChanged() | RosterChanged():
                return []  # `_deliver` announces these changes.

    def _answer_catch_up_requests(self, now: Moment) -> list[Effect]:
        """Answer the catch-up requests that need not wait longer."""
        dispatcher_epoch = self._election.dispatcher_epoch
        epoch = None if dispatcher_epoch is None else dispatcher_epoch.epoch
        return self._not_found_rule.on_time(epoch, now)

    def _broadcast_new_records(self, now: Moment) -> list[Effect]:
        dispatcher_epoch = self._election.dispatcher_epoch
        return self._dispatcher.record_writer.broadcast_new_records(
            dispatcher_epoch, now
        )

    def _announce_changes(self, now: Moment) -> list[Effect]:
        """Send a changed roster to followers, and the mesh state to the agent."""
        election, effects = self._election, list[Effect]()
        is_dispatching = election.dispatcher_epoch is not None
        if is_dispatching:
            standbys = self._replication.standby_nodes
            effects += self._handlers.roster_sender.send_roster(
                election.epoch, standbys, now
            )
        is_serving = is_dispatching and self._dispatcher.is_accepting
        return effects + self._handlers.mesh_state_publisher.publish(
            election.epoch,
            election.reachable_dispatcher,
            self.relay,
            is_serving=is_serving,
        )

    def _apply_role(self, now: Moment) -> list[Effect]:
        """Apply the role that the election decided to the other components."""
        effects = self._handlers.dispatcher_role.apply(now)
        effects += self._handlers.worker_attachment.apply(now)
        self._handlers.link_policy.update_dial_scope()
        return effects
