"""When a node claims, whom it follows and when it yields.

Reads time, links and messages, and takes the steps of `phases`. What a reign does with
tasks is `dispatch`; `reign` and `attachment` are what the node goes by.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, Note, Send
from octaskly.core.events import PeerUp
from octaskly.core.messages import (
    STOPPING,
    Claim,
    ClaimNo,
    ClaimOk,
    ProbeOk,
    Pull,
    Redirect,
    Transfer,
)
from octaskly.core.model import Epoch, Moment, NodeId
from octaskly.core.phases import Phase
from octaskly.core.pulse import PLAIN_BEATS
from octaskly.core.seeking import Seeking
from octaskly.core.succession import Reign, beats, covers
from octaskly.core.suspicion import Judgement
from octaskly.core.versions import UNREADABLE


class Election(Seeking):
    """The way of one node through the phases."""

    awake_s = 0.0  #: end of this node's last own pause

    def deadline(self) -> float | None:
        """Return when time alone changes something."""
        timing = self._timing
        match self.phase:
            case Phase.SEEK:
                return None if self.is_stopping else self._seek_due_s()
            case Phase.FOLLOWER if self._claim_s is not None:
                return self._claim_s
            case Phase.FOLLOWER if self._suspicion is not None:
                return self._suspicion.deadline()
            case Phase.DISPATCHER:
                return self._pulse.due_s
            case Phase.YIELDING:
                return self._since_s + timing.yield_s
            case _:
                return None

    # Time

    def on_draw(self, draw: float) -> None:
        """Take chance from an event."""
        self._draw = draw

    def on_pause(self, gap_s: float, now: Moment) -> None:
        """This node itself stood still: others get the time of silence again."""
        self.awake_s = now.mono_s
        if self.phase is Phase.SEEK:
            self._since_s += gap_s
        if self._suspicion is not None:
            self._suspicion.restart(now)

    def on_time(self, now: Moment) -> list[Effect]:
        """Do what is due."""
        self._step = now
        match self.phase:
            case Phase.SEEK:
                return self._on_seeking(now)
            case Phase.FOLLOWER:
                return self._on_following(now)
            case Phase.DISPATCHER:
                assert self.reign is not None
                return self._pulse.on_time(self.reign, now)
            case Phase.YIELDING:
                return self._on_yielding(now)
            case Phase.TAKEOVER:
                return []  # The disk decides when it goes on.

    def _on_following(self, now: Moment) -> list[Effect]:
        if self._claim_s is not None:
            if now.mono_s < self._claim_s:
                return []
            return self._take_over("dispatcher lost", now)
        dispatcher = self.dispatcher
        assert dispatcher is not None
        suspicion = self._suspicion
        if suspicion is None and self._outreads(dispatcher):
            # It was followed while this node could not reign, or had no such log yet.
            return self._claim_above(self.epoch, UNREADABLE, now)
        if suspicion is None:
            return self._watch(dispatcher, now)
        match suspicion.judge(now):
            case Judgement.DEAD:
                return self._bereave(suspicion.finding, now)
            case Judgement.WAIT if suspicion.is_asking_due(now):
                return self._suspect(dispatcher, now)
            case _:
                return []

    def _watch(self, dispatcher: NodeId, now: Moment) -> list[Effect]:
        """Suspect a dispatcher that is silent; its link may only look alive."""
        view = self._members.peers.get(dispatcher)
        heard_s = self.awake_s if view is None else max(view.frame_s, self.awake_s)
        silence_s = self._timing.silence_s * self.patience.factor(now)
        silence_s *= PLAIN_BEATS if self.is_plain else 1
        if view is not None and view.frame_s <= self._since_s:
            silence_s += self._members.meet_s  # It has not even said that it heard.
        if view is not None and now.mono_s - heard_s < silence_s:
            return []
        self.attachment = None
        self._lost_s = heard_s
        self.was_silent = True
        effects = self._members.disconnect(dispatcher, "silent", now)
        note = Note("warning", "dispatcher silent", (("peer", dispatcher),))
        return [*effects, note, *self._suspect(dispatcher, now)]

    def _bereave(self, reason: str, now: Moment) -> list[Effect]:
        """The dispatcher is gone for good: its successors claim, one after another."""
        gone = self.deposed = self.dispatcher
        self._miss(now)
        self.attachment = None
        self._suspicion = None
        self.dispatcher = None
        if not self._is_fit or self.versions.is_outdated:
            return self.seek("dispatcher lost", now)
        wait_s = self._turn_s(gone)
        self._claim_s = now.mono_s + wait_s
        fields = (("peer", gone or ""), ("reason", reason))
        note = Note("warning", "dispatcher lost", fields)
        return [note, *self._on_following(now)]

    def _on_yielding(self, now: Moment) -> list[Effect]:
        if self.dispatcher is None:
            if now.mono_s - self._since_s < self._timing.yield_s:
                return []
            return self.seek("winner lost", now)
        age_s = self._members.age_s(self.dispatcher, now)
        if age_s is None or age_s >= self._timing.yield_s:
            effects = self._members.disconnect(self.dispatcher, "silent", now)
            return [*effects, *self.seek("winner lost", now)]
        if now.mono_s - self._since_s >= self._timing.adopt_s:
            # The rest is on this disk and joins later; the worker must not wait.
            return self._settle("the worker waits no longer", now)
        return []

    # Links

    def on_peer_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        """Compare what both sides said in HELLO."""
        hello, peer = event.hello, event.peer
        self._exchange.forget(peer)
        self._term = max(self._term, hello.epoch.term)
        reigns = hello.dispatcher == peer
        if self.reign is not None:
            return self._meet(event, self.reign, now)
        if reigns and self.phase is Phase.YIELDING and hello.epoch == event.sent.epoch:
            return []
        if reigns and hello.epoch >= self.epoch:
            reason = "it reigned when met"
            return self._follow(peer, hello.epoch, hello.vector, reason, now)
        if self.phase is Phase.FOLLOWER and peer == self.dispatcher:
            # It came back without its role: a reign never resumes.
            return self._bereave("it restarted", now)
        if reigns:
            return self.correct(peer)
        if self.attachment is not None and hello.dispatcher != self.dispatcher:
            return self.correct(peer)
        return []

    def _meet(self, event: PeerUp, reign: Reign, now: Moment) -> list[Effect]:
        """A dispatcher meets a peer that may be one too."""
        hello, sent, peer = event.hello, event.sent, event.peer
        is_same = sent.dispatcher == self._info.id and sent.epoch == reign.epoch
        if hello.dispatcher == peer and is_same:
            if beats(sent, hello) and hello.epoch < reign.epoch:
                return [Send(peer, (self._pulse.claim(reign),))]
            if beats(sent, hello):
                return self._claim_above(hello.epoch, "won over a dispatcher", now)
            return self._yield(peer, "lost to a dispatcher", now)
        if hello.dispatcher == peer and hello.epoch > reign.epoch:
            reason = "a higher epoch reigns"
            return self._follow(peer, hello.epoch, hello.vector, reason, now)
        effects: list[Effect] = []
        if not is_same:
            effects += [Send(peer, (self._pulse.claim(reign),))]
        if hello.dispatcher in (None, self._info.id) and hello.epoch > reign.epoch:
            effects += self._claim_above(hello.epoch, "a higher epoch was seen", now)
        return effects

    def on_peer_down(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """A link ended; that of the dispatcher is a reason to doubt it."""
        self._exchange.forget(peer)
        if peer != self.dispatcher:
            return []
        if self.phase is Phase.YIELDING:
            self.dispatcher = None
            self._since_s = now.mono_s
            return []
        if self.phase is not Phase.FOLLOWER or self._suspicion is not None:
            return []
        self.attachment = None
        if reason == STOPPING:
            return self._bereave("it stopped", now)
        return self._suspect(peer, now)

    def on_refused(self, node: NodeId | None, now: Moment) -> list[Effect]:
        """Nobody listens at a node's addresses: its process is gone."""
        suspicion = self._suspicion
        if suspicion is None or node != suspicion.about:
            return []
        suspicion.on_proof()
        return self.on_time(now)

    # Messages

    def on_claim(self, peer: NodeId, message: Claim, now: Moment) -> list[Effect]:
        """Follow a claim that is not behind what was seen."""
        epoch = message.epoch
        if epoch.node != peer:
            return []
        self._term = max(self._term, epoch.term)
        if epoch < self._bound():
            return self.correct(peer)
        if epoch == self._heir_of:
            return []
        is_followed = peer == self.dispatcher and epoch == self.epoch
        if is_followed and self.attachment is None and self._suspicion is None:
            return []  # The answer waits for the disk, or for the log.
        return self._follow(peer, epoch, message.vector, "it claims", now)

    def on_heartbeat(self, peer: NodeId, epoch: Epoch, now: Moment) -> list[Effect]:
        """Judge a heartbeat; the answer is the node's affair."""
        if epoch == self._heir_of or (peer == self.dispatcher and epoch == self.epoch):
            return []
        if epoch.node != peer or epoch < self._bound():
            return self.correct(peer)
        return self._follow(peer, epoch, (), "it sends heartbeats", now)

    def on_claim_ok(self, peer: NodeId, message: ClaimOk, now: Moment) -> list[Effect]:
        """A peer follows this reign; take over what only it holds."""
        reign = self.reign
        if self.phase is Phase.YIELDING and peer == self._winner:
            # Each has given way to the other; this one heard of it first.
            return self._take_over("the winner gave way", now)
        if reign is None or message.epoch != reign.epoch:
            return self._send_away(peer)
        ahead = message.ahead
        self._members.confirm(peer, reign.epoch, message.vector, ahead)
        is_readable = self.versions.is_readable(peer)
        return self._exchange.ask(peer, ahead) if is_readable else []

    def on_claim_no(self, peer: NodeId, message: ClaimNo, now: Moment) -> list[Effect]:
        """A higher epoch is known: yield to who lives in it, else rise above it."""
        self._term = max(self._term, message.epoch.term)
        if self.reign is None or message.epoch <= self._bound():
            return []
        if message.epoch.node == peer:
            return self._yield(peer, "a higher epoch reigns", now)
        return self._claim_above(message.epoch, "a higher epoch was seen", now)

    def on_redirect(self, peer: NodeId, message: Redirect, now: Moment) -> list[Effect]:
        """A peer says who is dispatcher."""
        epoch, dispatcher = message.epoch, message.dispatcher
        self._term = max(self._term, epoch.term)
        is_own = self.phase is Phase.FOLLOWER and peer == self.dispatcher
        if dispatcher == self._info.id or (is_own and epoch < self.epoch):
            return []  # The latter was said before the reign that is followed.
        if peer in self._members.peers:
            self._members.peers[peer].dispatcher = dispatcher
        effects: list[Effect] = []
        if self.reign is not None:
            if epoch <= self._bound():
                return []
            effects = self._yield(dispatcher, "a higher epoch reigns", now)
        elif is_own:
            effects = self.seek("redirected", now)
        elif epoch < self.epoch:
            return []
        dials = self._members.dial(
            dispatcher, message.addresses, now, is_dispatcher=True
        )
        return effects + dials

    def on_probe_ok(self, message: ProbeOk) -> list[Effect]:
        """Take a peer's word about a suspect."""
        self._term = max(self._term, message.epoch.term)
        if self._suspicion is not None:
            self._suspicion.on_probe_ok(message)
        return []

    def on_pull(self, peer: NodeId, message: Pull, now: Moment) -> list[Effect]:
        """See in a peer's question what it holds."""
        view = self._members.peers.get(peer)
        if view is not None:
            view.vector = dict(message.vector)
        if self.phase is not Phase.YIELDING or peer != self.dispatcher:
            return []
        if covers(dict(message.vector), self._journal.vector_items()):
            return self._settle("it holds all of the log", now)
        return []

    def on_transfer(self, peer: NodeId, message: Transfer, now: Moment) -> list[Effect]:
        """The dispatcher stops and hands over: pull what is missing, then claim."""
        is_own = peer == self.dispatcher and message.epoch == self.epoch
        if self.phase is not Phase.FOLLOWER or not is_own or self.is_stopping:
            return []
        self._transfer = message.vector
        self.deposed = peer
        self._miss(now)
        effects = self._exchange.want(peer, message.vector)
        return effects + self.on_absorbed(now)

    def on_absorbed(self, now: Moment) -> list[Effect]:
        """Entries were taken in: perhaps the transfer is complete."""
        transfer = self._transfer
        if transfer is None or not covers(self._journal.vector, transfer):
            return []
        epoch = self.epoch
        effects = self._take_over("handed over", now)
        self._heir_of = epoch  # What it still says is no reason to turn back.
        return effects
