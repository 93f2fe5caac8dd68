"""What time makes of a phase: whose turn it is to claim, and who is silent too long.

Owns nothing: what it doubts stands in the phase. The moves are those of `election`.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

import math

from octaskly.core.effects import Effect, Note
from octaskly.core.election.candidacy import UNREADABLE, Candidacy
from octaskly.core.election.election import Election
from octaskly.core.election.failure_detector import Judgement, Suspicion
from octaskly.core.election.heartbeats import PLAIN_BEATS
from octaskly.core.election.phases import (
    Following,
    Phase,
    Reigning,
    Seeking,
    Succeeding,
    TakingOver,
    Tie,
    Yielding,
)
from octaskly.core.events import DialFailed
from octaskly.core.membership.membership import Membership
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import STOPPING, ProbeOk
from octaskly.core.replication.catch_up import PLAIN_ENDS

PROBED_MAX = 16  #: peers asked about a suspect
SUCCESSORS_DIALLED = 3


class Watch:
    """The timers of one node's phases, and its doubts."""

    def __init__(
        self,
        settings: Settings,
        members: Membership,
        candidacy: Candidacy,
        election: Election,
    ) -> None:
        self._me = settings.node.id
        self._timing = settings.timing
        self._members = members
        self._hints = members.hints
        self._candidacy = candidacy
        self._election = election
        self._patience = election.patience

    @property
    def _phase(self) -> Phase:
        return self._election.phase

    @property
    def _suspicion(self) -> Suspicion | None:
        phase = self._phase
        return phase.suspicion if isinstance(phase, Seeking | Following) else None

    # Time

    def deadline(self) -> float:
        """Return when time alone changes something.

        For who falls silent it looks at each tick as well.
        """
        match self._election.phase:
            case Reigning():  # As mostly, and so is the next one.
                return self._election.pulse.due_s
            case Following(suspicion=suspicion):
                return math.inf if suspicion is None else suspicion.deadline()
            case Seeking() as phase:
                is_withdrawn = self._candidacy.is_withdrawn
                return math.inf if is_withdrawn else self._look_s(phase)
            case Succeeding() as phase:
                return min(self._election.turn_s(phase), self._widens_s(phase))
            case TakingOver():
                return math.inf  # The disk decides when it goes on.
            case Yielding() as phase:
                return self._yields_until_s(phase)

    def on_time(self, now: Moment) -> list[Effect]:
        """Do what is due."""
        match self._phase:
            case Seeking() as phase:
                return self._on_seeking(phase, now)
            case Following() as phase:
                return self._on_following(phase, now)
            case Succeeding() as phase:
                return self._dial_before(phase, now) + self._election.succeed(now)
            case TakingOver():
                return []
            case Reigning(reign):
                return self._election.pulse.on_time(reign, now)
            case Yielding() as phase:
                return self._on_yielding(phase, now)

    def _on_seeking(self, phase: Seeking, now: Moment) -> list[Effect]:
        """Claim when it is this node's turn, unless a peer hears a dispatcher."""
        phase.looked = now
        if self._candidacy.is_withdrawn or now.mono_s < self._turn_s(phase):
            return []
        if phase.suspicion is not None and not self._is_settled(phase.suspicion, now):
            return []
        phase.suspicion = None
        about = self._absent_dispatcher()
        if about is None:
            return self._election.take_over("no dispatcher found")
        return self._suspect(phase, about, now)

    def _turn_s(self, phase: Seeking) -> float:
        """Return when those that are better, or may be, have had their time."""
        timing, hints = self._timing, self._hints
        window_s = timing.seek_s + phase.jitter_s
        if hints.is_alone:
            window_s = timing.seek_alone_s
        elif hints.is_meeting:
            window_s += hints.meet_s  # Slow handshakes; dead ones fail before.
        wait_s = self._candidacy.count_better(phase.looked) * timing.claim_wait_s
        return phase.since_s + window_s + wait_s

    def _look_s(self, phase: Seeking) -> float:
        """Return when this node has its turn, asks on, or awaits one less."""
        due_s = self._turn_s(phase)
        if phase.suspicion is not None:
            due_s = max(due_s, phase.suspicion.deadline())
        return min(due_s, self._hints.awaited_until_s)

    def _on_following(self, phase: Following, now: Moment) -> list[Effect]:
        """Doubt a dispatcher that is silent, and claim once it is taken for dead."""
        suspicion = phase.suspicion
        if suspicion is None and self._candidacy.outreads(phase.tie.dispatcher):
            # It was followed while this node could not reign, or had no such log yet.
            return self._election.claim_above(self._election.epoch, UNREADABLE)
        if suspicion is None:
            return self._watch(phase, now)
        match suspicion.judge(now):
            case Judgement.DEAD:
                finding, is_proven = suspicion.finding, suspicion.is_proven
                return self._election.bereave(finding, now, is_proven=is_proven)
            case Judgement.WAIT if suspicion.is_asking_due(now):
                return self._inquire(suspicion, now)
            case _:
                return []

    def _watch(self, phase: Following, now: Moment) -> list[Effect]:
        """Suspect a dispatcher that is silent; its link may only look alive."""
        dispatcher = phase.tie.dispatcher
        view = self._members.peers.get(dispatcher)
        heard_s = self._patience.heard_s(0.0 if view is None else view.frame_s)
        silence_s = self._timing.silence_s * self._patience.factor(now)
        silence_s *= PLAIN_BEATS if phase.tie.is_plain else 1
        if view is not None and view.frame_s <= phase.since_s:
            silence_s += self._hints.meet_s  # It has not even said that it heard.
        if view is not None and now.mono_s - heard_s < silence_s:
            return []
        self._election.loss.on_silence(heard_s)
        effects = self._members.disconnect(dispatcher, "silent", now)
        note = Note("warning", "dispatcher silent", (("peer", dispatcher),))
        return [*effects, note, *self._suspect(phase, dispatcher, now)]

    def _on_yielding(self, phase: Yielding, now: Moment) -> list[Effect]:
        """Give up a winner that takes too long to claim, or is gone."""
        if now.mono_s < self._yields_until_s(phase):
            return []
        if phase.tie is None:
            return self._election.seek("winner lost", now)
        if now.mono_s >= self._lost_s(phase.tie):
            dispatcher = phase.tie.dispatcher
            effects = self._members.disconnect(dispatcher, "silent", now)
            return [*effects, *self._election.seek("winner lost", now)]
        # The rest is on this disk and joins later; the worker must not wait.
        return self._election.settle("the worker waits no longer", now)

    def _yields_until_s(self, phase: Yielding) -> float:
        """Return when this node waits for the winner no longer."""
        if phase.tie is None:
            return phase.since_s + self._timing.yield_s
        return min(self._lost_s(phase.tie), phase.since_s + self._timing.adopt_s)

    def _lost_s(self, tie: Tie) -> float:
        """Return when a winner that says nothing more is taken for lost."""
        view = self._members.peers.get(tie.dispatcher)
        return 0.0 if view is None else view.frame_s + self._timing.yield_s

    def on_pause(self, gap_s: float, now: Moment) -> None:
        """This node itself stood still: others get the time of silence again."""
        self._patience.on_pause(now)
        phase = self._phase
        if isinstance(phase, Seeking):
            phase.since_s += gap_s
        if self._suspicion is not None:
            self._suspicion.restart(now)

    # Doubts

    def _suspect(
        self, phase: Seeking | Following, about: NodeId, now: Moment
    ) -> list[Effect]:
        """Doubt that a dispatcher lives; its worker stands by meanwhile."""
        self._election.loss.miss(now)
        suspicion = Suspicion(about, self._timing, self._patience.factor(now))
        phase.suspicion = suspicion
        return self._inquire(suspicion, now)

    def _inquire(self, suspicion: Suspicion, now: Moment) -> list[Effect]:
        """Dial the suspect, and ask others about it, those first that know best."""
        about, members = suspicion.about, self._members
        successors = self._candidacy.successors
        first = [node for node in successors if node in members.peers]
        rest = [node for node in sorted(members.peers) if node not in first]
        effects = suspicion.ask((first + rest)[:PROBED_MAX], now)
        for node in (about, *list(successors)[:SUCCESSORS_DIALLED]):
            if node not in members.peers:
                effects += self._dial(node, now)
        return effects

    def _dial(self, node: NodeId, now: Moment) -> list[Effect]:
        """Dial a node where this one has seen it, else where the roster says it is."""
        listed = self._candidacy.successors.get(node, ())
        return self._hints.dial(node, self._hints.addresses_of(node) or listed, now)

    def _widens_s(self, phase: Succeeding) -> float:
        """Return when it dials more of those before it, though no dial has failed.

        Hosts that are gone refuse nothing; a dial to each takes its time.
        """
        if phase.is_proven and phase.widened:
            return math.inf
        return phase.since_s + phase.widened * self._timing.stagger_s

    def _dial_before(self, phase: Succeeding, now: Moment) -> list[Effect]:
        """Dial down the roster, a few at a time, until one is met that goes before.

        So all who have lost the same links meet at the first of them that is there.
        """
        while now.mono_s >= self._widens_s(phase):
            phase.widened += 1
        most = SUCCESSORS_DIALLED - 1 + phase.widened
        effects: list[Effect] = []
        for node in self._candidacy.before(phase.gone)[:most]:
            if node in self._members.peers:
                break
            if not self._hints.is_dialling(node):
                effects += self._dial(node, now)
        return effects

    def _is_settled(self, suspicion: Suspicion, now: Moment) -> bool:
        """Whether a dispatcher that others name is dead, or may be asked about anew."""
        if suspicion.judge(now) is not Judgement.DEAD:
            return suspicion.is_asking_due(now)
        for view in self._members.peers.values():
            if view.dispatcher == suspicion.about:
                view.dispatcher = None
        return True

    def _absent_dispatcher(self) -> NodeId | None:
        """Return the highest dispatcher that peers name and that is not connected."""
        peers = self._members.peers
        here = {None, self._me, *peers}
        named = [view for view in peers.values() if view.dispatcher not in here]
        return max(named, key=lambda view: view.epoch).dispatcher if named else None

    def on_probe_ok(self, message: ProbeOk) -> list[Effect]:
        """Take a peer's word about a suspect."""
        self._election.hear(message.epoch.term)
        if self._suspicion is not None:
            self._suspicion.on_probe_ok(message)
        return []

    def on_dial_failed(self, event: DialFailed, now: Moment) -> list[Effect]:
        """Nobody is where a node was; if it was refused, its process is gone."""
        node, phase, suspicion = event.node, self._phase, self._suspicion
        if node is None:
            return []
        if isinstance(phase, Succeeding):
            gone = phase.gone
        elif suspicion is not None:
            gone = suspicion.about
        else:
            return []
        is_first = self._candidacy.miss(node)
        if node != gone:
            return self.on_time(now) if isinstance(phase, Succeeding) else []
        if not event.was_refused:
            # As a process ends, its links may do so before it listens no more.
            return self._dial(node, now) if is_first else []
        if isinstance(phase, Succeeding):
            phase.is_proven = True
        elif suspicion is not None:
            suspicion.on_proof()
        return self.on_time(now)

    def on_peer_down(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """A link ended; that of the dispatcher is a reason to doubt it."""
        phase = self._phase
        if isinstance(phase, Succeeding):
            return self.on_time(now)  # It may be one that was met, and goes before.
        if peer != self._election.dispatcher:
            return []
        if isinstance(phase, Yielding):
            self._election.part(now)
        if not isinstance(phase, Following) or phase.suspicion is not None:
            return []
        if reason == STOPPING:
            return self._election.bereave("it stopped", now)
        if reason not in PLAIN_ENDS:
            # This node stood still, else it would have noticed the silence: it may have
            # been given up as standby meanwhile, and what told it so is lost.
            self._election.loss.on_silence(now.mono_s)
        return self._suspect(phase, peer, now)
