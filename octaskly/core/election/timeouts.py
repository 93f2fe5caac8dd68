"""What time makes of a phase: whose turn it is to claim, and who is silent too long.

Owns nothing: what it doubts stands in the phase. The moves are those of `election`.

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
from octaskly.core.membership.membership import PeerTable
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.protocol.messages import STOPPING_REASON, Probe, ProbeOk
from octaskly.core.replication.catch_up import NON_PARTITION_REASONS

PROBED_PEERS_MAX = 16  #: peers asked about a suspect
SUCCESSORS_DIALLED_MAX = 3


class Timeouts:
    """The timers of one node's phases, and its doubts."""

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

    @property
    def _suspicion(self) -> Suspicion | None:
        phase = self._phase
        return phase.suspicion if isinstance(phase, Discovering | Following) else None

    # Time

    def set_timer(self, now: Moment) -> None:
        """Set the timer by what is known now.

        Frames of the dispatcher put its end off: with each heartbeat, the timer too.
        """
        due_s = self.deadline(now)
        if isinstance(self._phase, Discovering | Campaigning):
            # What these wait for moves with all that is heard of others.
            due_s = min(due_s, now.mono_s + self._timing.tick_s)
        self._timers.set(Timer.ELECTION, due_s)

    def deadline(self, now: Moment) -> float:
        """Return when time alone changes something, as it looks now."""
        match self._election.phase:
            case Dispatching() | Claiming():
                return math.inf  # Heartbeats have a timer of their own, or the disk.
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
        """Do what is due."""
        effects = self._do_due(now)
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
        """Claim when it is this node's turn, unless a peer hears a dispatcher."""
        phase.last_look = now
        if self._candidacy.is_withdrawn or now.mono_s < self._claim_turn_s(phase):
            return []
        if phase.suspicion is not None and not self._is_suspicion_over(
            phase.suspicion, now
        ):
            return []
        phase.suspicion = None
        suspect = self._absent_dispatcher()
        if suspect is None:
            return self._election.claim_epoch("no dispatcher found")
        return self._start_suspicion(phase, suspect, now)

    def _claim_turn_s(self, phase: Discovering) -> float:
        """Return when those that are better, or may be, have had their time."""
        timing, address_book = self._timing, self._address_book
        window_s = timing.discovery_s + phase.jitter_s
        if address_book.knows_no_peer:
            window_s = timing.discovery_alone_s
        elif address_book.is_awaiting_dials:
            window_s += (
                address_book.dial_wait_s
            )  # Slow handshakes; dead ones fail before.
        wait_s = (
            self._candidacy.count_better_ranked(phase.last_look) * timing.claim_wait_s
        )
        return phase.since_s + window_s + wait_s

    def _next_check_s(self, phase: Discovering) -> float:
        """Return when this node has its turn, asks on, or awaits one less."""
        due_s = self._claim_turn_s(phase)
        if phase.suspicion is not None:
            due_s = max(due_s, phase.suspicion.deadline())
        return min(due_s, self._address_book.first_dial_deadline_s)

    def _on_following(self, phase: Following, now: Moment) -> list[Effect]:
        """Doubt a dispatcher that is silent, and claim once it is taken for dead."""
        suspicion = phase.suspicion
        if suspicion is None:
            return self._check_silence(phase, now)
        match suspicion.evaluate(now):
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
        """Suspect a dispatcher that is silent; its link may only look alive."""
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
        """Return when a dispatcher that says nothing more is suspected."""
        view = self._peer_table.peers.get(phase.follow_link.dispatcher)
        if view is None:
            return now.mono_s
        scale = self._timeout_scaling.timeout_scale(now)
        silence_s = self._timing.suspicion_timeout_s * scale
        silence_s *= PLAIN_WORKER_HEARTBEATS if phase.follow_link.is_plain_worker else 1
        if view.last_frame_s <= phase.since_s:  # It has not even said that it heard.
            silence_s += self._address_book.dial_wait_s
        return self._timeout_scaling.silent_since_s(view.last_frame_s) + silence_s

    def _on_stepping_down(self, phase: SteppingDown, now: Moment) -> list[Effect]:
        """Give up a winner that takes too long to claim, or is gone."""
        if now.mono_s < self._step_down_deadline_s(phase):
            return []
        if phase.follow_link is None:
            return self._election.start_discovering("winner lost", now)
        if now.mono_s >= self._winner_deadline_s(phase.follow_link):
            dispatcher = phase.follow_link.dispatcher
            effects = self._peer_table.disconnect(dispatcher, "silent", now)
            return [*effects, *self._election.start_discovering("winner lost", now)]
        # The rest is on this disk and joins later; the worker must not wait.
        return self._election.finish_step_down("the worker waits no longer", now)

    def _step_down_deadline_s(self, phase: SteppingDown) -> float:
        """Return when this node waits for the winner no longer."""
        if phase.follow_link is None:
            return phase.since_s + self._timing.step_down_s
        return min(
            self._winner_deadline_s(phase.follow_link),
            phase.since_s + self._timing.reattach_s,
        )

    def _winner_deadline_s(self, follow_link: FollowLink) -> float:
        """Return when a winner that says nothing more is taken for lost."""
        view = self._peer_table.peers.get(follow_link.dispatcher)
        return 0.0 if view is None else view.last_frame_s + self._timing.step_down_s

    def on_pause(self, gap_s: float, now: Moment) -> None:
        """This node itself stood still: others get the time of silence again."""
        self._timeout_scaling.on_pause(now)
        phase = self._phase
        if isinstance(phase, Discovering):
            phase.since_s += gap_s
        if self._suspicion is not None:
            self._suspicion.restart_probe(now)
        self.set_timer(now)

    # Doubts

    def _start_suspicion(
        self, phase: Discovering | Following, suspect: NodeId, now: Moment
    ) -> list[Effect]:
        """Doubt that a dispatcher lives; its worker stands by meanwhile."""
        suspicion = Suspicion(
            suspect, self._timing, self._timeout_scaling.timeout_scale(now)
        )
        self._election.start_suspicion(phase, suspicion, now)
        return self._probe_suspect(suspicion, now)

    def _probe_suspect(self, suspicion: Suspicion, now: Moment) -> list[Effect]:
        """Dial the suspect, and ask others about it, those first that know best."""
        suspect, peer_table = suspicion.suspect, self._peer_table
        successors = self._candidacy.successors
        successors_here = [node for node in successors if node in peer_table.peers]
        others = [
            node for node in sorted(peer_table.peers) if node not in successors_here
        ]
        effects = suspicion.send_probes(
            (successors_here + others)[:PROBED_PEERS_MAX], now
        )
        for node in (suspect, *list(successors)[:SUCCESSORS_DIALLED_MAX]):
            if node not in peer_table.peers:
                effects += self._dial_node(node, now)
        return effects

    def _dial_node(self, node: NodeId, now: Moment) -> list[Effect]:
        """Dial a node where this one has seen it, else where the roster says it is."""
        listed = self._candidacy.successors.get(node, ())
        return self._address_book.dial_node(
            node, self._address_book.addresses_of(node) or listed, now
        )

    def _next_dial_round_s(self, phase: Campaigning) -> float:
        """Return when it dials more of those before it, though no dial has failed.

        Hosts that are gone refuse nothing; a dial to each takes its time.
        """
        if phase.is_end_proven and phase.dial_rounds:
            return math.inf
        return phase.since_s + phase.dial_rounds * self._timing.claim_stagger_s

    def _dial_earlier_successors(self, phase: Campaigning, now: Moment) -> list[Effect]:
        """Dial down the roster, a few at a time, until one is met that goes before.

        So all who have lost the same links meet at the first of them that is there.
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

    def _is_suspicion_over(self, suspicion: Suspicion, now: Moment) -> bool:
        """Whether a dispatcher that others name is dead, or may be asked about anew."""
        if suspicion.evaluate(now) is not SuspicionState.DEAD:
            return suspicion.is_probe_due(now)
        for view in self._peer_table.peers.values():
            if view.dispatcher == suspicion.suspect:
                view.dispatcher = None
        return True

    def _absent_dispatcher(self) -> NodeId | None:
        """Return the highest dispatcher that peers name and that is not connected."""
        peers = self._peer_table.peers
        here = {None, self._me, *peers}
        named = [view for view in peers.values() if view.dispatcher not in here]
        return max(named, key=lambda view: view.epoch).dispatcher if named else None

    def on_probe(self, peer: NodeId, message: Probe, now: Moment) -> list[Effect]:
        """Say how long ago a frame came from the node that is asked about."""
        suspect = message.suspect
        age_s = (
            0.0 if suspect == self._me else self._peer_table.frame_age_s(suspect, now)
        )
        ok = ProbeOk(suspect, message.sent_s, age_s, self._election.epoch)
        return [Send(peer, (ok,))]

    def on_dispatcher_heard(self, now: Moment) -> list[Effect]:
        """The dispatcher that this node follows has sent a heartbeat."""
        phase, election = self._phase, self._election
        if not isinstance(phase, Following) or phase.suspicion is not None:
            return []
        self.set_timer(now)
        if not self._candidacy.reads_newer_log_than(phase.follow_link.dispatcher):
            return []
        # It was followed while this node could not reign, or had no such log yet.
        return election.claim_epoch_above(election.epoch, UNREADABLE_LOG_REASON)

    def on_probe_ok(self, message: ProbeOk) -> list[Effect]:
        """Take a peer's word about a suspect."""
        self._election.observe_term(message.epoch.term)
        if self._suspicion is not None:
            self._suspicion.on_probe_ok(message)
        return []

    def on_dial_failed(self, event: DialFailed, now: Moment) -> list[Effect]:
        """Nobody is where a node was; if it was refused, its process is gone."""
        node, phase, suspicion = event.node, self._phase, self._suspicion
        if node is None:
            return []
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
            # As a process ends, its links may do so before it listens no more.
            return self._dial_node(node, now) if is_first else []
        if isinstance(phase, Campaigning):
            phase.is_end_proven = True
        elif suspicion is not None:
            suspicion.mark_proven_dead()
        return self.on_time(now)

    def on_peer_down(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """A link ended; that of the dispatcher is a reason to doubt it."""
        phase = self._phase
        if isinstance(phase, Campaigning):
            return self.on_time(now)  # It may be one that was met, and goes before.
        if peer != self._election.dispatcher:
            return []
        if isinstance(phase, SteppingDown):
            self._election.on_winner_lost(now)
        if not isinstance(phase, Following) or phase.suspicion is not None:
            return []
        if reason == STOPPING_REASON:
            return self._election.on_dispatcher_lost("it stopped", now)
        if reason not in NON_PARTITION_REASONS:
            # This node stood still, else it would have noticed the silence: it may have
            # been given up as standby meanwhile, and what told it so is lost.
            self._election.on_dispatcher_silent(now.mono_s)
        return self._start_suspicion(phase, peer, now)
