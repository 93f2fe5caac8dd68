"""One node of the mesh: joins the state machines into `step`.

Owns nothing but the order of things: first what time makes due, then the event, then
the consequences that one machine has for another, until none is left. The dispatcher
is its own worker, so what its two halves send each other never leaves this module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from octaskly.core.effects import Answer, Disconnect, Effect, LogWrite, Send
from octaskly.core.election.phases import Phase
from octaskly.core.events import (
    AddressesChanged,
    AttemptsEnded,
    AvailabilityRequested,
    CancelRequested,
    CatchUpRequested,
    DialFailed,
    DiskChanged,
    Event,
    ExplainRequested,
    FloorPlanned,
    LiveLoaded,
    LoadSampled,
    PeerDown,
    PeersDiscovered,
    PeerUp,
    Persisted,
    PurgeRequested,
    QueuedLoaded,
    Received,
    RecordRequested,
    SavedState,
    StopRequested,
    TaskIdsRequested,
    TasksNotified,
    TasksSubmitted,
    TimerFired,
    UnblockedLoaded,
)
from octaskly.core.key_rotation.rotation import KeyRotation
from octaskly.core.membership.peer import PeerView
from octaskly.core.model.ids import Epoch, Moment, NodeId, StreamId
from octaskly.core.model.keys import KeyringChanged, RotateRequested
from octaskly.core.model.nodes import StandbyView, Takeover
from octaskly.core.model.settings import Settings
from octaskly.core.model.tasks import TaskState
from octaskly.core.node.announcements import Announcements, SelfDescription
from octaskly.core.node.availability import AvailabilityControl, DiskFailureHandler
from octaskly.core.node.components import Components, build_components
from octaskly.core.node.connections import Connections, RevocationEnforcer
from octaskly.core.node.message_handlers import MessageHandlers
from octaskly.core.node.role_change import RoleChange
from octaskly.core.node.shutdown import Shutdown
from octaskly.core.node.timers import Timers
from octaskly.core.protocol.messages import STOPPING_REASON, Hello, Message, Roster
from octaskly.core.replies import NotDispatching, TaskExplanation

ClientRequest = (
    TaskIdsRequested
    | TasksSubmitted
    | CancelRequested
    | CatchUpRequested
    | ExplainRequested
    | PurgeRequested
    | RecordRequested
    | TasksNotified
)


class ClientRequestHandlers:
    """Which part of a reign answers what."""

    def __init__(self, components: Components) -> None:
        self._roster_builder = components.roster_builder
        self._election = components.election
        self._catch_up = components.catch_up
        self._dispatcher = components.dispatcher
        self._record_writer = components.record_writer

    def on_client_request(self, event: ClientRequest, now: Moment) -> list[Effect]:
        """Pass a request on while this node reigns."""
        if isinstance(event, TasksNotified):
            return self._dispatcher.on_tasks_notified(event, now)
        if not self._dispatcher.is_active:
            return [Answer(event.ticket, NotDispatching())]
        match event:
            case TasksSubmitted():
                return self._dispatcher.on_submitted(event, now)
            case CancelRequested():
                return self._dispatcher.on_cancel_requested(event, now)
            case RecordRequested():
                may_write = self._dispatcher.is_accepting
                return self._record_writer.on_record_requested(
                    event, now, may_write=may_write
                )
            case PurgeRequested():
                self._dispatcher.retention.on_purge_requested(event, now)
            case CatchUpRequested(ticket):
                self._catch_up.add_request(ticket, now)
                self._election.heartbeats.hasten_heartbeat()
            case TaskIdsRequested(ticket, suffixes):
                return [Answer(ticket, self._dispatcher.reserve_task_ids(suffixes))]
            case ExplainRequested(ticket):
                return [Answer(ticket, self._explain_task(event, now))]
        return []

    def _explain_task(self, event: ExplainRequested, now: Moment) -> TaskExplanation:
        roster = self._roster_builder.roster
        members = () if roster is None else roster.members
        explainer = self._dispatcher.explainer
        names = {**dict(event.names), **{m.id: m.name for m in members}}
        explanation = explainer.explain_task(event.record, members, now, names)
        placement = explainer.explain_placement(event.record, members, names)
        return replace(explanation, placement_reason=placement)


LATE_STEP_S = (
    0.05  #: behind the longest time between two steps, and it was own slowness
)
WorkEvent = (
    ClientRequest
    | AttemptsEnded
    | Persisted
    | QueuedLoaded
    | LiveLoaded
    | FloorPlanned
    | UnblockedLoaded
    | LoadSampled
    | DiskChanged
    | AvailabilityRequested
    | AddressesChanged
)
"""What happens to tasks and this machine, not to links."""
EVENTS_WITH_DRAW = (TimerFired, Received, PeerUp, PeerDown)  #: what brings chance along


class Node:
    """Everything that one agent decides."""

    def __init__(self, settings: Settings, saved: SavedState) -> None:
        self._timing = settings.timing
        self._me = settings.node.id
        components = build_components(settings, saved)
        self._journal = components.journal
        self._peer_table = components.peer_table
        self._address_book = components.peer_table.address_book
        self._mdns_schedule = components.mdns_schedule
        self._roster_builder = components.roster_builder
        self._candidacy = components.candidacy
        self._election = components.election
        self._timeouts = components.timeouts
        self._replication = components.replication
        self._standby = components.standby
        self._catch_up = components.catch_up
        self._dispatcher = components.dispatcher
        self._record_writer = components.record_writer
        self._self_fencing = components.self_fencing
        self._worker = components.worker
        self.rotation: KeyRotation = components.rotation
        """Which generations of the mesh secret are known where."""
        self.refused_counts: Mapping[str, int] = (
            components.message_validator.refused_counts
        )
        """How many messages of peers were refused, by the code of the reason."""
        self.ended_counts: Mapping[TaskState, int] = components.dispatcher.ended_counts
        """How many tasks ended while this node reigned, by state."""
        self._shutdown = Shutdown(components)
        self._disk_failure_handler = DiskFailureHandler(components)
        self._availability_control = AvailabilityControl(components)
        self._client_request_handlers = ClientRequestHandlers(components)
        self._self_description = SelfDescription(components)
        name = saved.name or settings.node.name
        self._announcements = Announcements(components, self._self_description, name)
        self._connections = Connections(components)
        self._revocation_enforcer = RevocationEnforcer(components, self._connections)
        self._message_handlers = MessageHandlers(
            components, self._self_description, self._connections
        )
        self._timers = Timers(
            components,
            self._self_description,
            self._connections,
            self._revocation_enforcer,
            self._shutdown,
            self._disk_failure_handler,
        )
        self._last_step_s: float | None = None
        self._role_change = RoleChange(components)

    @property
    def progress(self) -> tuple[int, int]:
        """Numbers of what was last given to the disk, and of what is on it."""
        return self._journal.last_number, self._journal.persisted

    @property
    def phase(self) -> Phase:
        """Where this node stands in the mesh."""
        return self._election.phase

    @property
    def is_dispatcher(self) -> bool:
        """Whether this node reigns; so only once its claim is durable."""
        return self._election.dispatcher_epoch is not None

    @property
    def dispatcher(self) -> NodeId | None:
        """The dispatcher as far as this node can reach it."""
        return self._election.reachable_dispatcher

    @property
    def epoch(self) -> Epoch:
        """The highest epoch that this node has followed or reigned in."""
        return self._election.epoch

    @property
    def roster(self) -> Roster | None:
        """The members of the mesh, as last heard."""
        return self._roster_builder.roster

    @property
    def standbys(self) -> tuple[StandbyView, ...]:
        """Who keeps copies of what this reign appends; none unless it reigns."""
        return self._replication.standby_views()

    @property
    def has_rows_ahead(self) -> bool:
        """Whether this node knows of tasks more than its log says to standbys."""
        return self._journal.has_rows_ahead

    @property
    def last_takeover(self) -> Takeover | None:
        """How this node took over last, if it reigns in place of another one."""
        return self._election.last_takeover

    @property
    def stream(self) -> StreamId | None:
        """Where this reign writes; None unless this node reigns."""
        return self._journal.stream

    @property
    def peers(self) -> Mapping[NodeId, PeerView]:
        """Who is connected."""
        return self._peer_table.peers

    @property
    def in_sync_epoch(self) -> Epoch:
        """The last reign with which this node kept level as a standby."""
        return self._standby.in_sync_epoch

    @property
    def has_in_sync_standby(self) -> bool:
        """Whether answers wait for a copy elsewhere."""
        return self._replication.has_in_sync_standby

    @property
    def has_read_all(self) -> bool:
        """Whether all that the nodes here hold can be read from this node's disk."""
        return self._catch_up.has_read_all

    def last_heard_s(self, node: NodeId) -> float | None:
        """Return when a peer was last heard, or was found lost, if that is known."""
        view = self._peer_table.peers.get(node)
        return (
            self._roster_builder.lost_since_s(node)
            if view is None
            else view.last_frame_s
        )

    def hello(self, now: Moment) -> Hello:
        """Return what this node says of itself on a new link."""
        return self._self_description.hello(now)

    def deadline(self) -> float:
        """Return when to step again without an event, in monotonic seconds."""
        return self._timers.deadline()

    def step(self, event: Event, now: Moment) -> list[Effect]:
        """Do what is due at `now`, then handle `event`; return what to do, in order."""
        if isinstance(event, EVENTS_WITH_DRAW):
            self._election.draw = event.draw
        effects = self._check_clock_gap(now)
        effects += self._timers.on_time(now)
        effects += self._handle_event(event, now)
        effects += self._message_handlers.reread_after_sync(now)
        if self._shutdown.is_requested:
            effects += self._shutdown.on_time(now)
        if self._candidacy.is_disk_failing:
            effects += self._disk_failure_handler.on_time(now)
        if self._catch_up.pending_requests:
            dispatcher_epoch = self._election.dispatcher_epoch
            epoch = None if dispatcher_epoch is None else dispatcher_epoch.epoch
            effects += self._catch_up.on_time(epoch, now)
        return self._deliver_consequences(effects, now)

    # Time

    def _check_clock_gap(self, now: Moment) -> list[Effect]:
        """Begin, or notice that this node itself stood still."""
        last_s, self._last_step_s = self._last_step_s, now.mono_s
        if last_s is None:
            effects = self._election.start_election(now)
            self._catch_up.expect_nodes(
                self._address_book.remembered_nodes(), now.mono_s
            )
            return (
                effects
                + self._mdns_schedule.start(now)
                + self._address_book.dial_remembered(now)
            )
        gap_s = now.mono_s - last_s
        if gap_s > self._timing.suspend_gap_s:
            return self._on_resume(now)
        if gap_s <= self._timing.tick_s + LATE_STEP_S:
            return []
        self._timeouts.on_pause(gap_s, now)
        return self._self_fencing.on_pause(gap_s, now)

    def _on_resume(self, now: Moment) -> list[Effect]:
        """The machine slept: its roles and links belong to the time before."""
        effects = self._election.start_discovering("woke", now)
        for peer in tuple(self._peer_table.peers):
            effects += self._connections.close_link(peer, "woke", now)
        effects += self._role_change.apply_role(now)  # Nothing is accepted on the way.
        return (
            effects
            + self._mdns_schedule.start(now)
            + self._address_book.redial_all(now)
        )

    # Events

    def _handle_event(self, event: Event, now: Moment) -> list[Effect]:
        match event:
            case TimerFired():
                return []
            case Received(peer, messages):
                return self._on_received(peer, messages, now)
            case PeerUp():
                return self._on_peer_up(event, now)
            case PeerDown(peer, reason):
                return self._connections.on_peer_down(peer, reason, now)
            case PeersDiscovered(adverts):
                return self._address_book.on_peers_discovered(
                    adverts, now, self._connections.needed_peers()
                )
            case DialFailed():
                self._address_book.on_dial_failed(event, now)
                return self._timeouts.on_dial_failed(event, now)
            case StopRequested() | KeyringChanged() | RotateRequested():
                return self._handle_control_event(event, now)
            case _:
                return self._handle_work_event(event, now)

    def _handle_control_event(
        self, event: StopRequested | KeyringChanged | RotateRequested, now: Moment
    ) -> list[Effect]:
        if isinstance(event, StopRequested):
            return self._shutdown.start_shutdown(event.drain_s, now)
        return self._revocation_enforcer.on_keyring_event(event, now)

    def _handle_work_event(self, event: WorkEvent, now: Moment) -> list[Effect]:
        if isinstance(event, ClientRequest):
            return self._client_request_handlers.on_client_request(event, now)
        match event:
            case QueuedLoaded() | LiveLoaded() | UnblockedLoaded() | FloorPlanned():
                return self._dispatcher.on_store_answer(event, now)
            case Persisted(number):
                self._journal.on_persisted(number)
                # Who waits for an answer comes first.
                return self._replication.release_acks(now) + self._journal.run_deferred(
                    now
                )
            case AttemptsEnded():
                return self._worker.on_attempts_ended(event, now)
            case LoadSampled(load):
                self._self_description.set_load(load)
                return self._availability_control.on_load_sampled(event, now)
            case AddressesChanged(addresses):
                self._self_description.set_addresses(addresses)
            case DiskChanged(is_failing):
                effects = self._disk_failure_handler.on_disk_changed(event, now)
                return effects + self._availability_control.on_disk_changed(
                    now, is_failing=is_failing
                )
            case AvailabilityRequested():
                return self._availability_control.on_availability_requested(event, now)
        return []

    # Links

    def _on_peer_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        if self._shutdown.is_done:  # Its process takes a moment to end.
            return [Disconnect(event.peer, STOPPING_REASON)]
        return self._connections.on_peer_up(event, now)

    def _on_received(
        self, peer: NodeId, messages: tuple[Message, ...], now: Moment
    ) -> list[Effect]:
        effects: list[Effect] = []
        for message in messages:
            if not self._peer_table.record_frame(peer, now):
                break  # It left, or was told to leave, in mid-batch.
            refused = self._connections.reject_invalid(peer, message, now)
            if refused:
                return effects + refused
            effects += self._message_handlers.on_message(peer, message, now)
            if isinstance(message, Roster):
                effects += self._connections.drop_unneeded_links(now)
        return effects

    # Consequences

    def _deliver_consequences(self, effects: list[Effect], now: Moment) -> list[Effect]:
        """Deliver what this node's halves send each other, until all is quiet."""
        done: list[Effect] = []
        waiting = deque(effects)
        while True:
            while waiting:
                effect = waiting.popleft()
                if isinstance(effect, Send) and effect.peer == self._me:
                    # Behind what is decided already, as appends keep their order.
                    for message in effect.messages:
                        waiting += self._message_handlers.on_message(
                            self._me, message, now
                        )
                else:
                    done.append(effect)
                    if isinstance(effect, LogWrite):
                        waiting += self._replication.on_log_write(effect, now)
            waiting += self._role_change.apply_role(now)
            waiting += self._replication.update_standbys(now)
            waiting += self._record_writer.broadcast_new_records(
                self._election.dispatcher_epoch, now
            )
            if not waiting:
                break
        return done + self._announcements.announce_changes(now)
