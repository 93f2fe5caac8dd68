"""Visitors at a member: workers with a certificate of some hours and no other right.

A visitor is no peer: it is in no table that the election, replication, the roster of
members or key rotation read, so none of them can take it into account. Only this module
reads what it sends. A report or a list of attempts counts for attempts that the
dispatcher has assigned to that visitor, and for nothing else.

A visitor dials. A member that is not dispatcher names the one that is. The dispatcher
sends heartbeats once it has read which attempts are live, so that it can check what a
visitor says it runs.

Source: docs/explanation/security.md, "Visitors".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from msgspec.structs import replace

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import (
    Answer,
    Disconnect,
    Effect,
    LogLine,
    RenameNode,
    Send,
)
from octaskly.core.election.election import Election
from octaskly.core.election.transfer import DispatcherTransfer
from octaskly.core.events import OutputRequested, PeerUp
from octaskly.core.key_rotation.rotation import KeyRotation
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.field_types import SUBJECT_CHARS_MAX
from octaskly.core.model.ids import (
    NO_EPOCH,
    AttemptId,
    Epoch,
    Moment,
    NodeId,
    TaskId,
)
from octaskly.core.model.keyring_state import OUTDATED_REASON
from octaskly.core.model.nodes import (
    NO_LOAD,
    NodeInfo,
    NodeState,
    Role,
    RosterEntry,
)
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.node.message_checks import REATTACH_PARTS_MAX, MessageValidator
from octaskly.core.protocol.messages import (
    CONTACTS_MAX,
    PROTOCOL_PREFIX,
    VISITORS_MAX,
    Contact,
    Contacts,
    Heartbeat,
    HeartbeatOk,
    Leave,
    Message,
    OutputPieces,
    Probe,
    ProbeOk,
    ReadOutput,
    Reattach,
    Redirect,
    Report,
    Results,
    ResultsOk,
)
from octaskly.core.protocol.visitor_rules import (
    FROM_VISITOR,
    LINK_MESSAGES,
    MESSAGES_BURST,
    MESSAGES_PER_S,
    READS_MAX,
    SLOTS_MAX,
    TIME_UP_REASON,
    answers_read,
    bounded_load,
    bounded_outcome,
    cost_of_message,
    is_possible_outcome,
    is_valid_visitor,
    may_pass,
)
from octaskly.core.replies import NoVisitorOutput, VisitorOutput

HEARTBEAT_S = 1.0  #: to each visitor; the network between may be slow
SILENCE_S = 10.0  #: after which the attempts of a silent visitor run elsewhere
TOO_MANY_REASON = "too many visitors"
BUDGETS_MAX = 4 * VISITORS_MAX  #: of visitors that are linked, or were lately
WAITED_S = 600.0  #: how long a visitor may stay at a member that has no work for it


@dataclass(slots=True)
class VisitorView:
    """The data about one linked visitor."""

    info: NodeInfo  #: with its name in the mesh, and no address
    ends_ms: int  #: wall clock; the end of its certificate
    wanted_name: str  #: that it gave itself
    invited_by: str  #: subject
    last_frame_s: float
    epoch: Epoch = NO_EPOCH  #: in which it said what it runs
    part_count: int = 0  #: parts so far of a list of attempts that has more
    listed: set[tuple[TaskId, AttemptId]] = field(default_factory=set)
    """The attempts in these parts that it was given."""
    reads: dict[int, ReadOutput] = field(default_factory=dict)
    """Requests for output that it has not answered yet, by ticket."""
    health: HeartbeatOk | None = None
    state: NodeState = NodeState.READY


@dataclass(slots=True)
class _Budget:
    """Messages that a visitor may send; it stays when its link ends."""

    at_s: float
    messages: float = MESSAGES_BURST

    def spend(self, messages: float, now: Moment) -> bool:
        """Count messages; return False if the visitor floods."""
        passed_s, self.at_s = max(0.0, now.mono_s - self.at_s), now.mono_s
        full = self.messages + passed_s * MESSAGES_PER_S
        self.messages = min(MESSAGES_BURST, full) - messages
        return self.messages >= 0.0


class Visitors:
    """The visitors that are linked to this node."""

    def __init__(
        self,
        own_info: NodeInfo,
        *,
        peer_table: PeerTable,
        roster_builder: RosterBuilder,
        election: Election,
        dispatcher_transfer: DispatcherTransfer,
        dispatcher: Dispatcher,
        rotation: KeyRotation,
        validator: MessageValidator,
        timers: TimerHeap,
    ) -> None:
        self.views: dict[NodeId, VisitorView] = {}
        self._budgets: dict[NodeId, _Budget] = {}  #: the latest link is last
        self._own_info = own_info
        self._peer_table = peer_table
        self._roster_builder = roster_builder
        self._election = election
        self._dispatcher_transfer = dispatcher_transfer
        self._dispatcher = dispatcher
        self._rotation = rotation
        self._validator = validator
        self._timers = timers
        self._oldest_generation = rotation.keyring.oldest
        self._next_heartbeat_s = 0.0
        self._ready_epoch = NO_EPOCH  #: in which the live attempts were read
        self._redirected: tuple[NodeId, Epoch] | None = None
        self._sent_contacts: Contacts | None = None

    def __contains__(self, node: NodeId) -> bool:
        return node in self.views

    # --- Links.

    def on_visitor_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        """Accept or refuse a visitor; it replaces an earlier link of the same one."""
        assert event.visit_ends_ms is not None
        node, info = event.peer, event.peer_hello.node
        effects = self.on_visitor_down(node, "replaced", now)
        if (refused := self._refused_link(event, now)) is not None:
            return effects + refused
        name = self._roster_builder.assign_name(node, info.name)
        leaves_ms = event.visit_ends_ms
        if info.leaves_ms is not None:
            leaves_ms = min(leaves_ms, max(info.leaves_ms, now.wall_ms))
        self.views[node] = VisitorView(
            info=replace(
                info,
                name=name,
                addresses=(),
                peer_port=0,
                lan_port=0,
                electable=False,
                leaves_ms=leaves_ms,
            ),
            ends_ms=event.visit_ends_ms,
            wanted_name=info.name,
            invited_by=event.invited_by[:SUBJECT_CHARS_MAX],
            last_frame_s=now.mono_s,
        )
        self._peer_table.count_change()
        self._set_timer(now)
        effects += [
            RenameNode(node, name),
            LogLine("info", "visitor linked", (("peer", node), ("name", name))),
        ]
        return effects + self._greet(node, now)

    def _refused_link(self, event: PeerUp, now: Moment) -> list[Effect] | None:
        """Return the refusal of a new link; None if a visitor may have it."""
        assert event.visit_ends_ms is not None
        node, info = event.peer, event.peer_hello.node
        if event.visit_ends_ms <= now.wall_ms:
            return [Disconnect(node, TIME_UP_REASON)]
        if (refusal := self._rotation.link_refusal(node)) is not None:
            return [Disconnect(node, refusal)]
        if len(self.views) >= VISITORS_MAX:
            return [Disconnect(node, TOO_MANY_REASON)]
        if not self._open_budget(node, now).spend(LINK_MESSAGES, now):
            return self._refuse(node, "flood", now)
        if info.id != node or not is_valid_visitor(info):
            return self._refuse(node, "node", now)
        if not 0 < info.slots <= SLOTS_MAX:
            return self._refuse(node, "slots", now)
        return None

    def on_visitor_down(self, node: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Remove a visitor whose link ended; its attempts run elsewhere."""
        view = self.views.pop(node, None)
        if view is None:
            return []
        self._roster_builder.forget_name(node)
        self._peer_table.count_change()
        effects: list[Effect] = [
            LogLine("info", "visitor left", (("peer", node), ("reason", reason))),
            *(Answer(ticket, NoVisitorOutput()) for ticket in view.reads),
        ]
        if view.epoch != self._own_epoch():
            return effects
        return effects + self._dispatcher.on_worker_down(node, now)

    def _open_budget(self, node: NodeId, now: Moment) -> _Budget:
        """Return the budget of a visitor, who may have been here a moment ago."""
        budget = self._budgets.pop(node, None) or _Budget(now.mono_s)
        self._budgets[node] = budget
        if len(self._budgets) > BUDGETS_MAX:
            del self._budgets[next(n for n in self._budgets if n not in self.views)]
        return budget

    def close_all(self, reason: str, now: Moment) -> list[Effect]:
        """Close the links of all visitors."""
        effects: list[Effect] = []
        for node in tuple(self.views):
            effects += self._close(node, reason, now)
        return effects

    def _close(self, node: NodeId, reason: str, now: Moment) -> list[Effect]:
        return [Disconnect(node, reason), *self.on_visitor_down(node, reason, now)]

    def _refuse(self, node: NodeId, code: str, now: Moment) -> list[Effect]:
        """Close the link of a visitor that sent what no correct visitor sends."""
        reason = f"{PROTOCOL_PREFIX}{code}"
        log_lines = self._validator.count_refusal(node, code)
        return [
            *log_lines,
            Disconnect(node, reason),
            *self.on_visitor_down(node, reason, now),
        ]

    def on_keyring_changed(self, now: Moment) -> list[Effect]:
        """Close the links of all visitors once their secret has ended.

        A visitor's certificate is of one generation of the secret and is not renewed.
        """
        oldest = self._rotation.keyring.oldest
        has_ended = oldest > self._oldest_generation
        self._oldest_generation = oldest
        return self.close_all(OUTDATED_REASON, now) if has_ended else []

    # --- Role and time.

    def on_role_changed(self, now: Moment) -> list[Effect]:
        """Send visitors to the dispatcher if it is another node now."""
        followed = self._followed()
        if followed == self._redirected:
            return []
        self._redirected = followed
        self._set_timer(now)
        effects: list[Effect] = []
        for node in tuple(self.views):
            effects += self._greet(node, now)
        return effects

    def on_time(self, now: Moment) -> list[Effect]:
        """Send heartbeats, and close the links of visitors that are silent or over.

        An admin may have ended their visit, at any node.
        """
        effects: list[Effect] = []
        for node, view in tuple(self.views.items()):
            if view.ends_ms <= now.wall_ms:
                effects += self._close(node, TIME_UP_REASON, now)
            elif (refusal := self._rotation.link_refusal(node)) is not None:
                effects += self._close(node, refusal, now)
            elif now.mono_s - view.last_frame_s > self._silence_s():
                effects += self._close(node, "silent", now)
        epoch = self._own_epoch()
        if self.views and epoch is not None and self._is_ready(epoch):
            effects += self._send_contacts()
            effects += self._rename_visitors(now)
            heartbeat = Heartbeat(epoch, now.mono_s)
            if now.mono_s >= self._next_heartbeat_s:
                self._next_heartbeat_s = now.mono_s + HEARTBEAT_S
                effects += [Send(node, (heartbeat,)) for node in self.views]
        self._set_timer(now)
        return effects

    def _silence_s(self) -> float:
        """Return after how long a visitor counts as lost; only a dispatcher asks it."""
        return SILENCE_S if self._own_epoch() is not None else WAITED_S

    def _is_ready(self, epoch: Epoch) -> bool:
        """Return True once the dispatcher knows the live attempts of earlier epochs."""
        if self._ready_epoch != epoch and self._dispatcher.has_read_live_tasks:
            self._ready_epoch = epoch
        return self._ready_epoch == epoch

    def _set_timer(self, now: Moment) -> None:
        at_s = now.mono_s + HEARTBEAT_S / 4 if self.views else math.inf
        self._timers.set(Timer.VISITORS, at_s)

    def _own_epoch(self) -> Epoch | None:
        own = self._election.dispatcher_epoch
        return None if own is None else own.epoch

    def _followed(self) -> tuple[NodeId, Epoch] | None:
        attachment = self._election.attachment
        if attachment is None:
            return None
        return attachment.dispatcher, attachment.epoch

    def _greet(self, node: NodeId, now: Moment) -> list[Effect]:
        """Send a visitor to the dispatcher, if this node knows it."""
        followed = self._followed()
        if followed is None:
            return []
        dispatcher, epoch = followed
        if dispatcher == self._own_info.id:
            self._next_heartbeat_s = now.mono_s  # The next one is due at once.
            self._sent_contacts = None
            self._timers.set(Timer.VISITORS, now.mono_s)
            return []
        addresses = self._peer_table.addresses_of(dispatcher)
        return [Send(node, (Redirect(epoch, dispatcher, addresses),))]

    def _send_contacts(self) -> list[Effect]:
        """Send the addresses of members to all visitors, if they have changed."""
        roster = self._roster_builder.roster
        epoch = self._own_epoch()
        if roster is None or roster.epoch != epoch:
            return []
        present = [m for m in roster.members if m.state is not NodeState.LOST]
        contacts = Contacts(
            roster.epoch,
            tuple(
                Contact(id=m.id, addresses=m.addresses, lan_port=m.lan_port)
                for m in present[:CONTACTS_MAX]
            ),
        )
        if contacts == self._sent_contacts:
            return []
        self._sent_contacts = contacts
        return [Send(node, (contacts,)) for node in self.views]

    # --- Messages.

    def on_received(
        self, node: NodeId, messages: tuple[Message, ...], now: Moment
    ) -> list[Effect]:
        """Handle what a visitor sends; all that it may not send closes its link."""
        effects: list[Effect] = []
        for message in messages:
            view = self.views.get(node)
            if view is None:
                break  # Its link ended within this batch.
            if not may_pass(message, FROM_VISITOR):
                return effects + self._refuse(node, "visitor", now)
            view.last_frame_s = now.mono_s
            is_asked_for = (
                isinstance(message, OutputPieces) and message.ticket in view.reads
            )
            cost = 0.0 if is_asked_for else cost_of_message(message)
            if not self._budgets[node].spend(cost, now):
                return effects + self._refuse(node, "flood", now)
            effects += self._on_message(node, view, message, now)
        return effects

    def _on_message(
        self, node: NodeId, view: VisitorView, message: Message, now: Moment
    ) -> list[Effect]:
        if isinstance(message, Leave):
            return self.on_visitor_down(node, message.reason, now)
        if isinstance(message, OutputPieces):
            return self._on_output(node, view, message, now)
        epoch = self._own_epoch()
        if epoch is None or not self._is_ready(epoch):
            return []  # It keeps its results until there is a dispatcher.
        match message:
            case HeartbeatOk():
                return self._on_heartbeat_ok(node, view, message, epoch, now)
            case Reattach():
                return self._on_reattach(node, view, message, epoch, now)
            case Results():
                return self._on_results(node, view, message, epoch, now)
            case Probe(suspect, sent_s) if view.epoch == epoch:
                return [Send(node, (ProbeOk(suspect, sent_s, 0.0, epoch),))]
            case _:
                return []

    def _on_heartbeat_ok(
        self,
        node: NodeId,
        view: VisitorView,
        message: HeartbeatOk,
        epoch: Epoch,
        now: Moment,
    ) -> list[Effect]:
        if view.epoch != epoch or message.epoch != epoch:
            return []
        self._record_state(view, message.state)
        # Of what a member says of itself, only its load and its credit count.
        health = replace(
            message,
            credit=_bounded_credit(view, message.credit),
            load=bounded_load(message.load),
            is_merging=False,
        )
        view.health = health
        return self._dispatcher.on_heartbeat_ok(node, health, now)

    def _on_reattach(
        self,
        node: NodeId,
        view: VisitorView,
        message: Reattach,
        epoch: Epoch,
        now: Moment,
    ) -> list[Effect]:
        """Register a visitor as worker; attempts that it was not given are ended."""
        named = [(spec.id, attempt) for attempt, spec in message.running]
        own = {each for each in named if self._own_spec(node, *each) is not None}
        unknown = [each for each in named if each not in own]
        self._dispatcher.kill_unknown_attempts(node, unknown)
        view.listed |= own
        view.part_count += 1
        if message.has_more:
            too_many = view.part_count > REATTACH_PARTS_MAX
            return self._refuse(node, "parts", now) if too_many else []
        known = [
            (attempt, spec)
            for task, attempt in sorted(view.listed)
            if (spec := self._own_spec(node, task, attempt)) is not None
        ]
        view.listed, view.part_count = set(), 0
        view.epoch = epoch
        self._record_state(view, message.state)
        effects = self._dispatcher.on_worker_up(view.info, now)
        reattach = Reattach(
            tuple(known), _bounded_credit(view, message.credit), message.state
        )
        return effects + self._dispatcher.on_reattach(node, reattach, now)

    def _on_results(
        self,
        node: NodeId,
        view: VisitorView,
        message: Results,
        epoch: Epoch,
        now: Moment,
    ) -> list[Effect]:
        """Record the ends of attempts that the visitor holds; acknowledge all others.

        A visitor keeps an end until it is acknowledged. Nobody waits for the end of an
        attempt that runs elsewhere by now, for example.
        """
        if view.epoch != epoch or self._dispatcher_transfer.is_in_progress:
            return []
        counted: dict[tuple[TaskId, AttemptId], Report] = {}
        void: list[tuple[TaskId, AttemptId]] = []
        for report in message.reports:
            key = report.task, report.attempt
            spec = self._own_spec(node, *key)
            if spec is None:
                if not self._dispatcher.is_unacknowledged(*key):
                    void.append(key)
            elif not is_possible_outcome(report.outcome):
                return self._refuse(node, "fact", now)
            elif key not in counted:
                outcome = bounded_outcome(report.outcome, spec, now.wall_ms)
                counted[key] = replace(report, outcome=outcome, spec=None)
        if message.state is not None:
            self._record_state(view, message.state)
        credit = _bounded_credit(view, message.credit)
        self._dispatcher.record_results(
            node, Results(tuple(counted.values()), credit, message.state), now
        )
        return [Send(node, (ResultsOk(tuple(void)),))] if void else []

    # --- Live output.

    def on_output_requested(self, event: OutputRequested) -> list[Effect]:
        """Ask a visitor for output of one of its attempts."""
        ticket, view = event.ticket, self.views.get(event.visitor)
        is_worker = view is not None and view.epoch == self._own_epoch()
        if view is None or not is_worker or len(view.reads) >= READS_MAX:
            return [Answer(ticket, NoVisitorOutput())]
        read = ReadOutput(ticket, event.task, event.attempt, event.starts)
        view.reads[ticket] = read
        return [Send(event.visitor, (read,))]

    def _on_output(
        self, node: NodeId, view: VisitorView, message: OutputPieces, now: Moment
    ) -> list[Effect]:
        """Pass on the output that a request waits for."""
        read = view.reads.get(message.ticket)
        if read is None:
            return []  # It was asked over an earlier link, which has ended.
        if not answers_read(read, message):
            return self._refuse(node, "output", now)  # That ends the request, too.
        del view.reads[message.ticket]
        if message.is_absent:
            return [Answer(message.ticket, NoVisitorOutput())]
        reply = VisitorOutput(message.pieces, message.is_complete)
        return [Answer(message.ticket, reply)]

    def _own_spec(
        self, node: NodeId, task: TaskId, attempt: AttemptId
    ) -> TaskSpec | None:
        return self._dispatcher.assigned_spec(node, task, attempt)

    def _record_state(self, view: VisitorView, state: NodeState) -> None:
        # Only members find that a node is lost.
        if state not in (view.state, NodeState.LOST):
            view.state = state
            self._peer_table.count_change()

    # --- The roster.

    def _rename_visitors(self, now: Moment) -> list[Effect]:
        """Give visitors other names if members have theirs by now."""
        effects: list[Effect] = []
        taken = self._roster_builder.member_names()
        for node, view in self.views.items():
            if view.info.name not in taken:
                continue
            name = self._roster_builder.assign_name(node, view.wanted_name)
            view.info = replace(view.info, name=name)
            self._peer_table.count_change()
            effects.append(RenameNode(node, name))
            if view.epoch == self._own_epoch():
                effects += self._dispatcher.on_worker_up(view.info, now)
        return effects

    def roster_entries(self) -> tuple[RosterEntry, ...]:
        """Return the visitors that have said what they run, by name."""
        epoch = self._own_epoch()
        present = [v for v in self.views.values() if v.epoch == epoch]
        present.sort(key=lambda view: (view.info.name, view.info.id))
        return tuple(self._entry(view) for view in present)

    def _entry(self, view: VisitorView) -> RosterEntry:
        info, health = view.info, view.health
        held = self._dispatcher.outstanding(info.id)
        return RosterEntry(
            id=info.id,
            name=info.name,
            role=Role.WORKER,
            state=view.state,
            addresses=(),
            lan_port=0,
            slots=info.slots,
            running=min(held, info.slots),
            version=info.version,
            load=NO_LOAD if health is None else health.load,
            memory_mb=info.memory_mb,
            labels=info.labels,
            os=info.os,
            arch=info.arch,
            cpus=info.cpus,
            gpus=info.gpus,
            pythons=info.pythons,
            pressure=None if health is None else health.pressure,
            leaves_ms=info.leaves_ms,
            invited_by=view.invited_by,
        )


def _bounded_credit(view: VisitorView, credit: int) -> int:
    """Return a credit without prefetch, as what waits there could run elsewhere."""
    return max(0, min(credit, view.info.slots))
