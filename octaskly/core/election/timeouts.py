"""Election timeouts: turns to claim, silence of the dispatcher, and suspicions.

Owns no state: a suspicion is part of the phase. `election` changes the phase.
`Timing` in `core.model.settings` has the values.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

import math

from octaskly.core.effects import Effect, LogLine, Send
from octaskly.core.election.candidacy import UNREADABLE_LOG_REASON, Candidacy
from octaskly.core.election.election import Election
from octaskly.core.election.failure_detector import Suspicion, SuspicionState
from octaskly.core.election.heartbeats import PLAIN_WORKER_HEARTBEATS
from octaskly.core.election.phases import (
    Campaigning,
    Claiming,
    Discovering,
    Dispatching,
    Following,
    FollowLink,
    Phase,
    SteppingDown,
)
from octaskly.core.events import DialFailed
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import STOPPED_REASONS, Probe, ProbeOk
from octaskly.core.replication.not_found_rule import NON_PARTITION_REASONS

PROBED_PEERS_MAX = 16  #: peers that get a probe about a suspect
SUCCESSORS_DIALLED_MAX = 3


class Timeouts:
    """The timer of one node's phase, and its suspicions."""

    def __init__(
        self,
        settings: Settings,
        peer_table: PeerTable,
        candidacy: Candidacy,
        election: Election,
        timers: TimerHeap,
    ) -> None:
        self._timers = timers
        self._me = settings.node.id
        self._timing = settings.timing
        self._peer_table = peer_table
        self._address_book = peer_table.address_book
        self._candidacy = candidacy
        self._election = election
        self._timeout_scaling = election.timeout_scaling

    @property
    def _phase(self) -> Phase:
        return self._election.phase

    # Timer

    def set_timer(self, now: Moment) -> None:
        """Set the election timer to the deadline of the phase.

        Each heartbeat of the dispatcher postpones it.
        """
        due_s = self.deadline(now)
        if due_s < math.inf:
            # It depends on peers and recent epochs, and may become earlier. So it is
            # checked at every tick.
            due_s = min(due_s, now.mono_s + self._timing.tick_s)
        self._timers.set(Timer.ELECTION, due_s)

    def deadline(self, now: Moment) -> float:
        """Return the time at which the phase times out, as known now."""
        match self._election.phase:
            case Dispatching() | Claiming():
                return math.inf  # They use the disk or Timer.HEARTBEAT.
            case Following(suspicion=Suspicion() as suspicion):
                return suspicion.deadline()
            case Following() as phase:
                return self._silence_deadline_s(phase, now)
            case Discovering() as phase:
                is_withdrawn = self._candidacy.is_withdrawn
                return math.inf if is_withdrawn else self._next_check_s(phase)
            case Campaigning() as phase:
                return min(
                    self._election.claim_turn_s(phase), self._next_dial_round_s(phase)
                )
            case SteppingDown() as phase:
                return self._step_down_deadline_s(phase)

    def on_time(self, now: Moment) -> list[Effect]:
        """Handle the timeout of the phase, and set the timer again."""
        relay = self._election.relay
        effects = self._do_due(now)
        if self._election.relay != relay:
            self._election.note_relay_change()
        self.set_timer(now)
        return effects

    def _do_due(self, now: Moment) -> list[Effect]:
        match self._phase:
            case Discovering() as phase:
                return self._on_discovering(phase, now)
            case Following() as phase:
                return self._on_following(phase, now)
            case Campaigning() as phase:
                return self._dial_earlier_successors(
                    phase, now
                ) + self._election.claim_if_turn(now)
            case Claiming() | Dispatching():
                return []
            case SteppingDown() as phase:
                return self._on_stepping_down(phase, now)

    def _on_discovering(self, phase: Discovering, now: Moment) -> list[Effect]:
        """Claim at this node's turn, unless peers name a live dispatcher.

        The peers are asked about each once before that turn, to find a relay.
        """
        phase.last_look = now
        if self._candidacy.is_withdrawn:
            return []
        is_turn = now.mono_s >= self._claim_turn_s(phase)
        suspicion = phase.suspicion
        if suspicion is not None:
            if not self._is_suspicion_over(suspicion, now, is_turn=is_turn):
                return []
            if suspicion.is_probe_due(now) and self._is_absent(suspicion.suspect):
                return self._probe_suspect(suspicion, now)
            phase.suspicion = None
        suspect = self._absent_dispatcher()
        if is_turn and suspect is None:
            return self._election.claim_epoch("no dispatcher found")
        if suspect is not None and (is_turn or self._may_probe_early(phase, suspect)):
            phase.probed = suspect
            return self._start_suspicion(phase, suspect, now)
        return self._ask_peers(phase, now)

    def _may_probe_early(self, phase: Discovering, suspect: NodeId) -> bool:
        """Return True if peers were not asked yet, and a dial may not help."""
        return phase.probed != suspect and not self._address_book.is_dialling(suspect)

    def _claim_turn_s(self, phase: Discovering) -> float:
        """Return the time at which all better-ranked candidates could have claimed."""
        timing, address_book = self._timing, self._address_book
        window_s = timing.discovery_s + phase.jitter_s
        if address_book.knows_no_peer:
            window_s = timing.discovery_alone_s
        elif address_book.is_awaiting_dials:
            window_s += (
                address_book.dial_wait_s
            )  # For slow handshakes; dials to dead hosts fail earlier.
        wait_s = (
            self._candidacy.count_better_ranked(phase.last_look) * timing.claim_wait_s
        )
        return phase.since_s + window_s + wait_s

    def _next_question_s(self, phase: Discovering) -> float:
        """Return the time to ask why a better-ranked peer does not claim.

        The answer is here when the wait for that peer ends.
        """
        timing = self._timing
        better = self._candidacy.count_better_ranked(phase.last_look)
        if not better:
            return math.inf
        first_s = self._claim_turn_s(phase) - (better - 1) * timing.claim_wait_s
        return max(first_s - timing.probe_s, phase.asked_s + timing.claim_wait_s)

    def _ask_peers(self, phase: Discovering, now: Moment) -> list[Effect]:
        """Ask the peers which dispatcher they follow, once for each claim not made.

        In a partly linked mesh, a peer may follow one that this node does not hear.
        """
        if now.mono_s < self._next_question_s(phase):
            return []
        phase.asked_s = now.mono_s
        question = Probe(self._me, now.mono_s)  # `on_probe` names the other dispatcher.
        peers = sorted(self._peer_table.peers)[:PROBED_PEERS_MAX]
        return [Send(peer, (question,)) for peer in peers]

    def _next_check_s(self, phase: Discovering) -> float:
        """Return the time of this node's turn, next probe or first dial timeout."""
        due_s = min(self._claim_turn_s(phase), self._next_question_s(phase))
        if phase.suspicion is not None:
            due_s = phase.suspicion.deadline()
        else:
            suspect = self._absent_dispatcher()
            if suspect is not None and self._may_probe_early(phase, suspect):
                due_s = 0.0
        return min(due_s, self._address_book.first_dial_deadline_s)

    def _on_following(self, phase: Following, now: Moment) -> list[Effect]:
        """Suspect a silent dispatcher; start the succession once it counts as dead."""
        suspicion = phase.suspicion
        if suspicion is None:
            return self._check_silence(phase, now)
        match suspicion.evaluate(now):
            case SuspicionState.DEAD if self._may_hear(suspicion):
                return self._probe_suspect(suspicion, now)
            case SuspicionState.DEAD:
                finding, is_proven = suspicion.death_reason, suspicion.is_proven
                return self._election.on_dispatcher_lost(
                    finding, now, is_proven=is_proven
                )
            case SuspicionState.PROBING if suspicion.is_probe_due(now):
                return self._probe_suspect(suspicion, now)
            case _:
                return []

    def _check_silence(self, phase: Following, now: Moment) -> list[Effect]:
        """Suspect a silent dispatcher and close its link, which may be broken."""
        if now.mono_s < self._silence_deadline_s(phase, now):
            return []
        dispatcher = phase.follow_link.dispatcher
        view = self._peer_table.peers.get(dispatcher)
        heard_s = self._timeout_scaling.silent_since_s(
            0.0 if view is None else view.last_frame_s
        )
        self._election.on_dispatcher_silent(heard_s)
        effects = self._peer_table.disconnect(dispatcher, "silent", now)
        note = LogLine("warning", "dispatcher silent", (("peer", dispatcher),))
        return [*effects, note, *self._start_suspicion(phase, dispatcher, now)]

    def _silence_deadline_s(self, phase: Following, now: Moment) -> float:
        """Return the end of the suspicion timeout if no further frame arrives."""
        view = self._peer_table.peers.get(phase.follow_link.dispatcher)
        if view is None:
            return now.mono_s
        scale = self._timeout_scaling.timeout_scale(now)
        silence_s = self._timing.suspicion_timeout_s * scale
        silence_s *= PLAIN_WORKER_HEARTBEATS if phase.follow_link.is_plain_worker else 1
        if view.last_frame_s <= phase.since_s:  # No frame has arrived yet.
            silence_s += self._address_book.dial_wait_s
        return self._timeout_scaling.silent_since_s(view.last_frame_s) + silence_s

    def _on_stepping_down(self, phase: SteppingDown, now: Moment) -> list[Effect]:
        """Stop waiting for a winner that is lost, or does not claim or pull in time."""
        if now.mono_s < self._step_down_deadline_s(phase):
            return []
        if phase.follow_link is None:
            return self._lose_winner(now)
        if now.mono_s >= self._winner_deadline_s(phase.follow_link):
            dispatcher = phase.follow_link.dispatcher
            effects = self._peer_table.disconnect(dispatcher, "silent", now)
            return [*effects, *self._lose_winner(now)]
        # The rest of the log is on this disk and is pulled later; the worker must not
        # wait.
        return self._election.finish_step_down("the worker waits no longer", now)

    def _lose_winner(self, now: Moment) -> list[Effect]:
        return self._election.start_discovering("winner lost", now)

    def _step_down_deadline_s(self, phase: SteppingDown) -> float:
        """Return the end of the wait for the winner."""
        if phase.follow_link is None:
            return phase.since_s + self._timing.step_down_s
        return min(
            self._winner_deadline_s(phase.follow_link),
            phase.since_s + self._timing.reattach_s,
        )

    def _winner_deadline_s(self, follow_link: FollowLink) -> float:
        """Return the time at which a silent winner counts as lost."""
        view = self._peer_table.peers.get(follow_link.dispatcher)
        return 0.0 if view is None else view.last_frame_s + self._timing.step_down_s

    def on_pause(self, gap_s: float, now: Moment) -> None:
        """Restart the timeouts after a pause of this node itself."""
        self._timeout_scaling.on_pause(now)
        phase = self._phase
        if isinstance(phase, Discovering):
            phase.since_s += gap_s
        if self._election.suspicion is not None:
            self._election.suspicion.restart_probe(now)
        self.set_timer(now)

    # Suspicions

    def _start_suspicion(
        self, phase: Discovering | Following, suspect: NodeId, now: Moment
    ) -> list[Effect]:
        """Suspect a dispatcher, and probe it."""
        suspicion = Suspicion(
            suspect, self._timing, self._timeout_scaling.timeout_scale(now)
        )
        self._election.start_suspicion(phase, suspicion, now)
        return self._probe_suspect(suspicion, now)

    def _probe_suspect(self, suspicion: Suspicion, now: Moment) -> list[Effect]:
        """Dial the suspect and the first successors; probe peers, successors first."""
        suspect, peers = suspicion.suspect, self._peer_table.peers
        successors = [
            node
            for node in self._candidacy.successors
            if node not in (suspect, self._me)
        ]
        probed = [node for node in successors if node in peers]
        probed += [node for node in sorted(peers) if node not in probed]
        effects = suspicion.send_probes(probed[:PROBED_PEERS_MAX], now)
        suspicion.connected = frozenset(peers)
        for node in (suspect, *successors[:SUCCESSORS_DIALLED_MAX]):
            if node not in peers:
                effects += self._dial_node(node, now)
        return effects

    def _may_hear(self, suspicion: Suspicion) -> bool:
        """Return True if a peer that follows the suspect came too late for a probe.

        In a large mesh, most nodes are linked to the dispatcher alone.
        """
        return not suspicion.is_proven and any(
            view.dispatcher == suspicion.suspect
            for node, view in self._peer_table.peers.items()
            if node not in suspicion.connected
        )

    def _dial_node(self, node: NodeId, now: Moment) -> list[Effect]:
        """Dial a node at its known addresses, else at those of the roster."""
        listed = self._candidacy.successors.get(node, ())
        return self._address_book.dial_node(
            node, self._address_book.addresses_of(node) or listed, now
        )

    def _next_dial_round_s(self, phase: Campaigning) -> float:
        """Return the time at which to dial one more successor, without a failed dial.

        A host that is gone does not refuse a dial; the dial times out instead.
        """
        if phase.is_end_proven and phase.dial_rounds:
            return math.inf
        return phase.since_s + phase.dial_rounds * self._timing.claim_stagger_s

    def _dial_earlier_successors(self, phase: Campaigning, now: Moment) -> list[Effect]:
        """Dial earlier successors, a few at a time, until one is connected.

        Thus all nodes that lost the same links connect to the first live successor.
        """
        while now.mono_s >= self._next_dial_round_s(phase):
            phase.dial_rounds += 1
        most = SUCCESSORS_DIALLED_MAX - 1 + phase.dial_rounds
        effects: list[Effect] = []
        for node in self._candidacy.nodes_claiming_first(phase.lost_dispatcher)[:most]:
            if node in self._peer_table.peers:
                break
            if not self._address_book.is_dialling(node):
                effects += self._dial_node(node, now)
        return effects

    def _is_suspicion_over(
        self, suspicion: Suspicion, now: Moment, *, is_turn: bool
    ) -> bool:
        """Return True if the suspect is dead, or if probes about it are due again.

        Probes before this node's turn do not count against the suspect: while many
        nodes start, answers are late.
        """
        if suspicion.evaluate(now) is not SuspicionState.DEAD:
            return suspicion.is_probe_due(now)
        if not (is_turn or suspicion.is_proven):
            return True
        for view in self._peer_table.peers.values():
            if view.dispatcher == suspicion.suspect:
                view.dispatcher = None
        return True

    def _is_absent(self, dispatcher: NodeId) -> bool:
        """Return True if a peer names this dispatcher, and it is not connected."""
        peers = self._peer_table.peers
        named = any(view.dispatcher == dispatcher for view in peers.values())
        return named and dispatcher not in peers

    def _absent_dispatcher(self) -> NodeId | None:
        """Return the unconnected dispatcher that a peer names in the highest epoch."""
        peers = self._peer_table.peers
        here = {None, self._me, *peers}
        named = [view for view in peers.values() if view.dispatcher not in here]
        return max(named, key=lambda view: view.epoch).dispatcher if named else None

    def on_probe(self, peer: NodeId, message: Probe, now: Moment) -> list[Effect]:
        """Answer with the age of the last frame from the suspect, if it is followed.

        If this node follows another dispatcher, it names that one. Otherwise the peer
        would claim, and take this node from it.
        """
        suspect, election = message.suspect, self._election
        age_s = None
        if suspect == self._me:
            age_s = 0.0
        elif suspect == election.dispatcher:
            age_s = self._peer_table.frame_age_s(suspect, now)
        effects: list[Effect] = [
            Send(peer, (ProbeOk(suspect, message.sent_s, age_s, election.epoch),))
        ]
        followed = election.attachment
        if followed is not None and followed.dispatcher not in (
            self._me,
            suspect,
            peer,
        ):
            effects += election.redirect_peers(
                [peer], followed.dispatcher, followed.epoch
            )
        return effects

    def on_dispatcher_heard(self, now: Moment) -> list[Effect]:
        """Postpone the timeout after a heartbeat of the dispatcher."""
        phase, election = self._phase, self._election
        if not isinstance(phase, Following) or phase.suspicion is not None:
            return []
        self.set_timer(now)
        if not self._candidacy.reads_newer_log_than(phase.follow_link.dispatcher):
            return []
        # When it was followed, this node was not eligible, or its log had an older
        # version.
        return election.claim_epoch_above(election.epoch, UNREADABLE_LOG_REASON)

    def on_probe_ok(self, peer: NodeId, message: ProbeOk) -> list[Effect]:
        """Record a peer's answer about the suspect."""
        self._election.observe_term(message.epoch.term)
        suspicion = self._election.suspicion
        if suspicion is not None:
            relay = suspicion.relay
            suspicion.on_probe_ok(peer, message)
            if suspicion.relay != relay:
                self._election.note_relay_change()
        return []

    def on_dial_failed(self, event: DialFailed, now: Moment) -> list[Effect]:
        """Skip a successor after a failed dial; a refusal proves a suspect dead."""
        node, phase, suspicion = event.node, self._phase, self._election.suspicion
        if node is None:
            return []
        if isinstance(phase, SteppingDown):
            is_absent = node == phase.winner and node not in self._peer_table.peers
            return self._lose_winner(now) if is_absent else []
        if isinstance(phase, Campaigning):
            lost_dispatcher = phase.lost_dispatcher
        elif suspicion is not None:
            lost_dispatcher = suspicion.suspect
        else:
            return []
        is_first = self._candidacy.mark_absent(node)
        if node != lost_dispatcher:
            return self.on_time(now) if isinstance(phase, Campaigning) else []
        if not event.was_refused:
            # A process that ends may close its links before its listening socket.
            return self._dial_node(node, now) if is_first else []
        if isinstance(phase, Campaigning):
            phase.is_end_proven = True
        elif suspicion is not None:
            suspicion.mark_proven_dead()
        return self.on_time(now)

    def on_peer_down(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Suspect the dispatcher if its link ended."""
        phase = self._phase
        if isinstance(phase, Campaigning):
            return self.on_time(now)  # The peer may have been an earlier successor.
        if peer != self._election.dispatcher:
            return []
        if isinstance(phase, SteppingDown):
            self._election.on_winner_lost(now)
        if not isinstance(phase, Following) or phase.suspicion is not None:
            return []
        if reason in STOPPED_REASONS:
            return self._election.on_dispatcher_lost("it stopped", now)
        if reason not in NON_PARTITION_REASONS:
            # Without a pause of its own, this node would have noticed the silence. In
            # the pause, the dispatcher may have dropped it as standby, and the message
            # about it is lost.
            self._election.on_dispatcher_silent(now.mono_s)
        return self._start_suspicion(phase, peer, now)
