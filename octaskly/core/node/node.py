"""One node of the mesh: joins the state machines into `step`.

Owns nothing but the order of things: first what time makes due, then the event, then
the consequences that one machine has for another, until none is left. The dispatcher
is its own worker, so what its two halves send each other never leaves this module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from octaskly.core.effects import Answer, Disconnect, Effect, Send, Written
from octaskly.core.election.phases import Phase
from octaskly.core.events import (
    AttemptsEnded,
    BarrierAsked,
    CancelRequested,
    DialFailed,
    DiskChanged,
    Event,
    ExplainAsked,
    FloorPlanned,
    ForgetAsked,
    LiveLoaded,
    Loaded,
    LoadSampled,
    Moved,
    NamesAsked,
    PeerDown,
    PeerUp,
    Persisted,
    Received,
    RecordAsked,
    RipeLoaded,
    Saved,
    Seen,
    SteeringAsked,
    StopAsked,
    TasksNotified,
    TasksSubmitted,
    Woke,
)
from octaskly.core.key_rotation.rotation import Rotation
from octaskly.core.membership.peer import PeerView
from octaskly.core.model.ids import Epoch, Moment, NodeId, StreamId
from octaskly.core.model.keys import KeysChanged, RotateAsked
from octaskly.core.model.nodes import Failover, StandbyView
from octaskly.core.model.settings import Settings
from octaskly.core.model.tasks import TaskState
from octaskly.core.node.announcements import Herald, Profile
from octaskly.core.node.availability import DiskCare, Helm
from octaskly.core.node.components import Machines, assemble
from octaskly.core.node.connections import Custody, Links
from octaskly.core.node.message_handlers import Inbound
from octaskly.core.node.role_change import Allegiance
from octaskly.core.node.shutdown import Departure
from octaskly.core.node.timers import Timers
from octaskly.core.protocol.messages import STOPPING, Hello, Message, Roster
from octaskly.core.replies import Explanation, NotHere

Question = (
    NamesAsked
    | TasksSubmitted
    | CancelRequested
    | BarrierAsked
    | ExplainAsked
    | ForgetAsked
    | RecordAsked
    | TasksNotified
)


class Questions:
    """Which part of a reign answers what."""

    def __init__(self, machines: Machines) -> None:
        self._registry = machines.registry
        self._election = machines.election
        self._completeness = machines.completeness
        self._dispatch = machines.dispatch
        self._clerk = machines.clerk

    def on_asked(self, event: Question, now: Moment) -> list[Effect]:
        """Pass a request on while this node reigns."""
        if isinstance(event, TasksNotified):
            return self._dispatch.on_notified(event, now)
        if not self._dispatch.is_reigning:
            return [Answer(event.ticket, NotHere())]
        match event:
            case TasksSubmitted():
                return self._dispatch.on_submitted(event, now)
            case CancelRequested():
                return self._dispatch.on_cancel(event, now)
            case RecordAsked():
                may_write = self._dispatch.is_accepting
                return self._clerk.on_asked(event, now, may_write=may_write)
            case ForgetAsked():
                self._dispatch.retention.on_asked(event, now)
            case BarrierAsked(ticket):
                self._completeness.ask(ticket, now)
                self._election.pulse.hasten()
            case NamesAsked(ticket, suffixes):
                return [Answer(ticket, self._dispatch.named(suffixes))]
            case ExplainAsked(ticket):
                return [Answer(ticket, self._explain(event, now))]
        return []

    def _explain(self, event: ExplainAsked, now: Moment) -> Explanation:
        roster = self._registry.roster
        members = () if roster is None else roster.members
        explaining = self._dispatch.explaining
        names = {**dict(event.names), **{m.id: m.name for m in members}}
        told = explaining.explain(event.record, members, now, names)
        placement = explaining.placement(event.record, members, names)
        return replace(told, placement=placement)


LATE_S = 0.05  #: behind the longest time between two steps, and it was own slowness
WorkEvent = (
    Question
    | AttemptsEnded
    | Persisted
    | Loaded
    | LiveLoaded
    | FloorPlanned
    | RipeLoaded
    | LoadSampled
    | DiskChanged
    | SteeringAsked
    | Moved
)
"""What happens to tasks and this machine, not to links."""
DRAWN = (Woke, Received, PeerUp, PeerDown)  #: what brings chance along


class Node:
    """Everything that one agent decides."""

    def __init__(self, settings: Settings, saved: Saved) -> None:
        self._timing = settings.timing
        self._me = settings.node.id
        machines = assemble(settings, saved)
        self._journal = machines.journal
        self._members = machines.members
        self._hints = machines.members.hints
        self._browsing = machines.browsing
        self._registry = machines.registry
        self._candidacy = machines.candidacy
        self._election = machines.election
        self._watch = machines.watch
        self._replication = machines.replication
        self._standby = machines.standby
        self._completeness = machines.completeness
        self._dispatch = machines.dispatch
        self._clerk = machines.clerk
        self._doubt = machines.doubt
        self._worker = machines.worker
        self.rotation: Rotation = machines.rotation
        """Which generations of the mesh secret are known where."""
        self.refused: Mapping[str, int] = machines.vetting.refused
        """How many messages of peers were refused, by the code of the reason."""
        self.ended: Mapping[TaskState, int] = machines.dispatch.ended
        """How many tasks ended while this node reigned, by state."""
        self._departure = Departure(machines)
        self._disk = DiskCare(machines)
        self._helm = Helm(machines)
        self._questions = Questions(machines)
        self._profile = Profile(machines)
        name = saved.name or settings.node.name
        self._herald = Herald(machines, self._profile, name)
        self._links = Links(machines)
        self._custody = Custody(machines, self._links)
        self._inbound = Inbound(machines, self._profile, self._links)
        self._timers = Timers(
            machines,
            self._profile,
            self._links,
            self._custody,
            self._departure,
            self._disk,
        )
        self._step_s: float | None = None
        self._allegiance = Allegiance(machines)

    @property
    def progress(self) -> tuple[int, int]:
        """Numbers of what was last given to the disk, and of what is on it."""
        return self._journal.number, self._journal.persisted

    @property
    def phase(self) -> Phase:
        """Where this node stands in the mesh."""
        return self._election.phase

    @property
    def is_dispatcher(self) -> bool:
        """Whether this node reigns; so only once its claim is durable."""
        return self._election.reign is not None

    @property
    def dispatcher(self) -> NodeId | None:
        """The dispatcher as far as this node can reach it."""
        return self._election.known_dispatcher

    @property
    def epoch(self) -> Epoch:
        """The highest epoch that this node has followed or reigned in."""
        return self._election.epoch

    @property
    def roster(self) -> Roster | None:
        """The members of the mesh, as last heard."""
        return self._registry.roster

    @property
    def standbys(self) -> tuple[StandbyView, ...]:
        """Who keeps copies of what this reign appends; none unless it reigns."""
        return self._replication.views()

    @property
    def is_ahead(self) -> bool:
        """Whether this node knows of tasks more than its log says to standbys."""
        return self._journal.is_ahead

    @property
    def failover(self) -> Failover | None:
        """How this node took over last, if it reigns in place of another one."""
        return self._election.failover

    @property
    def stream(self) -> StreamId | None:
        """Where this reign writes; None unless this node reigns."""
        return self._journal.stream

    @property
    def peers(self) -> Mapping[NodeId, PeerView]:
        """Who is connected."""
        return self._members.peers

    @property
    def level_epoch(self) -> Epoch:
        """The last reign with which this node kept level as a standby."""
        return self._standby.epoch

    @property
    def has_level_standby(self) -> bool:
        """Whether answers wait for a copy elsewhere."""
        return self._replication.is_level

    @property
    def has_read_all(self) -> bool:
        """Whether all that the nodes here hold can be read from this node's disk."""
        return self._completeness.has_read_all

    def heard_s(self, node: NodeId) -> float | None:
        """Return when a peer was last heard, or was found lost, if that is known."""
        view = self._members.peers.get(node)
        return self._registry.lost_s(node) if view is None else view.frame_s

    def hello(self, now: Moment) -> Hello:
        """Return what this node says of itself on a new link."""
        return self._profile.hello(now)

    def deadline(self) -> float:
        """Return when to step again without an event, in monotonic seconds."""
        return self._timers.deadline()

    def step(self, event: Event, now: Moment) -> list[Effect]:
        """Do what is due at `now`, then handle `event`; return what to do, in order."""
        if isinstance(event, DRAWN):
            self._election.draw = event.draw
        effects = self._on_clock(now)
        effects += self._timers.on_time(now)
        effects += self._handle(event, now)
        effects += self._inbound.on_quiet(now)
        if self._departure.is_asked:
            effects += self._departure.on_time(now)
        if self._candidacy.is_disk_failing:
            effects += self._disk.on_time(now)
        if self._completeness.asked:
            reign = self._election.reign
            epoch = None if reign is None else reign.epoch
            effects += self._completeness.on_time(epoch, now)
        return self._conclude(effects, now)

    # Time

    def _on_clock(self, now: Moment) -> list[Effect]:
        """Begin, or notice that this node itself stood still."""
        last_s, self._step_s = self._step_s, now.mono_s
        if last_s is None:
            effects = self._election.start(now)
            self._completeness.remember(self._hints.remembered(), now.mono_s)
            return effects + self._browsing.start(now) + self._hints.begin(now)
        gap_s = now.mono_s - last_s
        if gap_s > self._timing.gap_s:
            return self._wake(now)
        if gap_s <= self._timing.tick_s + LATE_S:
            return []
        self._watch.on_pause(gap_s, now)
        return self._doubt.on_pause(gap_s, now)

    def _wake(self, now: Moment) -> list[Effect]:
        """The machine slept: its roles and links belong to the time before."""
        effects = self._election.seek("woke", now)
        for peer in tuple(self._members.peers):
            effects += self._links.cut(peer, "woke", now)
        effects += self._allegiance.reconcile(now)  # Nothing is accepted on the way.
        return effects + self._browsing.start(now) + self._hints.redial_all(now)

    # Events

    def _handle(self, event: Event, now: Moment) -> list[Effect]:
        match event:
            case Woke():
                return []
            case Received(peer, messages):
                return self._on_received(peer, messages, now)
            case PeerUp():
                return self._on_up(event, now)
            case PeerDown(peer, reason):
                return self._links.on_down(peer, reason, now)
            case Seen(adverts):
                return self._hints.on_seen(adverts, now, self._links.wanted())
            case DialFailed():
                self._hints.on_dial_failed(event, now)
                return self._watch.on_dial_failed(event, now)
            case StopAsked() | KeysChanged() | RotateAsked():
                return self._on_order(event, now)
            case _:
                return self._handle_work(event, now)

    def _on_order(
        self, event: StopAsked | KeysChanged | RotateAsked, now: Moment
    ) -> list[Effect]:
        if isinstance(event, StopAsked):
            return self._departure.begin(event.drain_s, now)
        return self._custody.on_event(event, now)

    def _handle_work(self, event: WorkEvent, now: Moment) -> list[Effect]:
        if isinstance(event, Question):
            return self._questions.on_asked(event, now)
        match event:
            case Loaded() | LiveLoaded() | RipeLoaded() | FloorPlanned():
                return self._dispatch.on_read(event, now)
            case Persisted(number):
                self._journal.on_persisted(number)
                # Who waits for an answer comes first.
                return self._replication.release(now) + self._journal.release(now)
            case AttemptsEnded():
                return self._worker.on_ended(event, now)
            case LoadSampled(load):
                self._profile.take_load(load)
                return self._helm.on_load(event, now)
            case Moved(addresses):
                self._profile.move(addresses)
            case DiskChanged(is_failing):
                effects = self._disk.on_changed(event, now)
                return effects + self._helm.on_disk(now, is_failing=is_failing)
            case SteeringAsked():
                return self._helm.on_asked(event, now)
        return []

    # Links

    def _on_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        if self._departure.is_done:  # Its process takes a moment to end.
            return [Disconnect(event.peer, STOPPING)]
        return self._links.on_up(event, now)

    def _on_received(
        self, peer: NodeId, messages: tuple[Message, ...], now: Moment
    ) -> list[Effect]:
        effects: list[Effect] = []
        for message in messages:
            if not self._members.touch(peer, now):
                break  # It left, or was told to leave, in mid-batch.
            refused = self._links.turn_away(peer, message, now)
            if refused:
                return effects + refused
            effects += self._inbound.on_message(peer, message, now)
            if isinstance(message, Roster):
                effects += self._links.drop_surplus(now)
        return effects

    # Consequences

    def _conclude(self, effects: list[Effect], now: Moment) -> list[Effect]:
        """Deliver what this node's halves send each other, until all is quiet."""
        done: list[Effect] = []
        waiting = deque(effects)
        while True:
            while waiting:
                effect = waiting.popleft()
                if isinstance(effect, Send) and effect.peer == self._me:
                    # Behind what is decided already, as appends keep their order.
                    for message in effect.messages:
                        waiting += self._inbound.on_message(self._me, message, now)
                else:
                    done.append(effect)
                    if isinstance(effect, Written):
                        waiting += self._replication.on_written(effect, now)
            waiting += self._allegiance.reconcile(now)
            waiting += self._replication.review(now)
            waiting += self._clerk.review(self._election.reign, now)
            if not waiting:
                break
        return done + self._herald.on_change(now)
