"""What peers say of who reigns, and what this node makes of it and answers.

Owns nothing; the moves are those of `election`.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, Send
from octaskly.core.election.candidacy import Candidacy
from octaskly.core.election.election import Election
from octaskly.core.election.phases import (
    Following,
    Reigning,
    Succeeding,
    TakingOver,
    Yielding,
)
from octaskly.core.events import PeerUp
from octaskly.core.membership.membership import Membership
from octaskly.core.model.ids import Epoch, Moment, NodeId, Reign, covers
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import (
    Claim,
    ClaimNo,
    ClaimOk,
    Hello,
    Pull,
    Redirect,
    Transfer,
)
from octaskly.core.replication.anti_entropy import Exchange
from octaskly.core.replication.journal import Journal


def beats(mine: Hello, theirs: Hello) -> bool:
    """Return whether the dispatcher that sent `mine` keeps the role.

    One that can read the other's log, if the other cannot read its own. Then more
    followers, then the higher term, then the higher id. Both sides compare the two
    HELLOs of one link, which nobody can change afterwards.
    """
    reads, is_read = mine.reads >= theirs.log_version, theirs.reads >= mine.log_version
    if reads != is_read:
        return reads
    return _score(mine) > _score(theirs)


def _score(hello: Hello) -> tuple[int, int, str]:
    return (hello.followers, hello.epoch.term, hello.node.id)


class Claims:
    """The claims of this node and of others, as peers hear and tell of them."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        members: Membership,
        exchange: Exchange,
        candidacy: Candidacy,
        election: Election,
    ) -> None:
        self._me = settings.node.id
        self._journal = journal
        self._members = members
        self._exchange = exchange
        self._candidacy = candidacy
        self._versions = candidacy.versions
        self._election = election

    def on_peer_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        """Compare what both sides said in HELLO."""
        hello, peer = event.hello, event.peer
        self._election.hear(hello.epoch.term)
        reigns = hello.dispatcher == peer
        phase = self._election.phase
        if isinstance(phase, Reigning):
            return self._meet(event, phase.reign, now)
        is_known = isinstance(phase, Yielding) and hello.epoch == event.sent.epoch
        if reigns and is_known:
            return []
        if reigns and hello.epoch >= self._election.epoch:
            reason = "it reigned when met"
            return self._election.follow(peer, hello.epoch, hello.vector, reason, now)
        if isinstance(phase, Following) and peer == phase.tie.dispatcher:
            # It came back without its role: a reign never resumes.
            return self._election.bereave("it restarted", now)
        attachment = self._election.attachment
        is_astray = attachment is not None and hello.dispatcher != attachment.dispatcher
        return self.correct(peer) if reigns or is_astray else []

    def _meet(self, event: PeerUp, reign: Reign, now: Moment) -> list[Effect]:
        """A dispatcher meets a peer that may be one too."""
        hello, sent, peer = event.hello, event.sent, event.peer
        is_same = sent.dispatcher == self._me and sent.epoch == reign.epoch
        if hello.dispatcher == peer and is_same:
            return self._contend(event, reign, now)
        if hello.dispatcher == peer and hello.epoch > reign.epoch:
            reason = "a higher epoch reigns"
            return self._election.follow(peer, hello.epoch, hello.vector, reason, now)
        effects: list[Effect] = []
        if not is_same:
            effects += [Send(peer, (self._election.pulse.claim(reign),))]
        if hello.dispatcher in (None, self._me) and hello.epoch > reign.epoch:
            effects += self._rise_above(hello.epoch)
        return effects

    def _contend(self, event: PeerUp, reign: Reign, now: Moment) -> list[Effect]:
        """Two dispatchers meet: both compare the same two statements."""
        if not beats(event.sent, event.hello):
            return self._election.yield_to(event.peer, "lost to a dispatcher", now)
        if event.hello.epoch < reign.epoch:
            return [Send(event.peer, (self._election.pulse.claim(reign),))]
        reason = "won over a dispatcher"
        return self._election.claim_above(event.hello.epoch, reason)

    def _rise_above(self, epoch: Epoch) -> list[Effect]:
        """Renew the reign above an epoch in which nobody is known to live."""
        return self._election.claim_above(epoch, "a higher epoch was seen")

    # Messages

    def on_claim(self, peer: NodeId, message: Claim, now: Moment) -> list[Effect]:
        """Follow a claim that is not behind what was seen."""
        epoch = message.epoch
        if epoch.node != peer:
            return []
        self._election.hear(epoch.term)
        if epoch < self._election.bound:
            return self.correct(peer)
        if self._is_heir_of(epoch):
            return []
        if self._is_followed(peer, epoch) and self._election.attachment is None:
            return []  # The answer waits for the disk, or for the log.
        return self._election.follow(peer, epoch, message.vector, "it claims", now)

    def on_heartbeat(self, peer: NodeId, epoch: Epoch, now: Moment) -> list[Effect]:
        """Judge a heartbeat; the answer is the node's affair."""
        if self._is_followed(peer, epoch) or self._is_heir_of(epoch):
            return []
        if epoch.node != peer or epoch < self._election.bound:
            return self.correct(peer)
        return self._election.follow(peer, epoch, (), "it sends heartbeats", now)

    def _is_followed(self, peer: NodeId, epoch: Epoch) -> bool:
        election = self._election
        return peer == election.dispatcher and epoch == election.epoch

    def _is_heir_of(self, epoch: Epoch) -> bool:
        """Whether a reign handed over: what it still says is no reason to turn back."""
        phase = self._election.phase
        return isinstance(phase, TakingOver) and phase.heir_of == epoch

    def on_claim_ok(self, peer: NodeId, message: ClaimOk) -> list[Effect]:
        """A peer follows this reign; take over what only it holds."""
        phase = self._election.phase
        if isinstance(phase, Yielding) and peer == phase.winner:
            # Each has given way to the other; this one heard of it first.
            return self._election.take_over("the winner gave way")
        if not isinstance(phase, Reigning):
            return self._send_away(peer)
        if message.epoch != phase.reign.epoch:
            return []
        ahead = message.ahead
        self._members.confirm(peer, message.epoch, message.vector, ahead)
        is_readable = self._versions.is_readable(peer)
        return self._exchange.ask(peer, ahead) if is_readable else []

    def on_claim_no(self, peer: NodeId, message: ClaimNo, now: Moment) -> list[Effect]:
        """A higher epoch is known: yield to who lives in it, else rise above it."""
        epoch = message.epoch
        self._election.hear(epoch.term)
        if self._election.reign is None or epoch <= self._election.bound:
            return []
        if epoch.node == peer:
            return self._election.yield_to(peer, "a higher epoch reigns", now)
        return self._rise_above(epoch)

    def on_redirect(self, peer: NodeId, message: Redirect, now: Moment) -> list[Effect]:
        """A peer says who is dispatcher."""
        election = self._election
        epoch, dispatcher = message.epoch, message.dispatcher
        election.hear(epoch.term)
        is_own = isinstance(election.phase, Following) and peer == election.dispatcher
        if dispatcher == self._me or (is_own and epoch < election.epoch):
            return []  # The latter was said before the reign that is followed.
        if peer in self._members.peers:
            self._members.peers[peer].dispatcher = dispatcher
        effects: list[Effect] = []
        if election.reign is not None:
            if epoch <= election.bound:
                return []
            effects = election.yield_to(dispatcher, "a higher epoch reigns", now)
        elif is_own:
            effects = election.seek("redirected", now)
        elif epoch < election.epoch:
            return []
        dials = self._members.hints.dial(
            dispatcher, message.addresses, now, is_dispatcher=True
        )
        return effects + dials

    def on_pull(self, peer: NodeId, message: Pull, now: Moment) -> list[Effect]:
        """See in a peer's question what it holds."""
        view = self._members.peers.get(peer)
        if view is not None:
            view.vector = dict(message.vector)
        election = self._election
        if not isinstance(election.phase, Yielding) or peer != election.dispatcher:
            return []
        if covers(dict(message.vector), self._journal.vector_items()):
            return self._election.settle("it holds all of the log", now)
        return []

    def on_transfer(self, peer: NodeId, message: Transfer, now: Moment) -> list[Effect]:
        """The dispatcher stops and hands over: pull what is missing, then claim."""
        phase = self._election.phase
        if not isinstance(phase, Following) or self._candidacy.is_withdrawn:
            return []
        if not self._is_followed(peer, message.epoch):
            return []
        phase.transfer = message.vector
        self._election.loss.miss(now, peer)
        effects = self._exchange.want(peer, message.vector)
        return effects + self.on_absorbed()

    def on_absorbed(self) -> list[Effect]:
        """Entries were taken in: perhaps the transfer is complete."""
        phase = self._election.phase
        if not isinstance(phase, Following | Succeeding) or phase.transfer is None:
            return []
        if not covers(self._journal.vector, phase.transfer):
            return []
        election = self._election
        return election.take_over("handed over", election.epoch)

    # Whom others are told to follow

    def correct(self, peer: NodeId) -> list[Effect]:
        """Tell a deposed dispatcher whom this node follows, or at least how late."""
        election = self._election
        attachment = election.attachment
        if election.reign is None and attachment is not None:
            return election.redirect([peer], attachment.dispatcher, election.epoch)
        return [Send(peer, (ClaimNo(election.bound),))]

    def _send_away(self, peer: NodeId) -> list[Effect]:
        """Tell a peer that would follow this node, which has given way, whom to follow.

        Else it would take the silence here for a death, and claim.
        """
        phase = self._election.phase
        winner = phase.winner if isinstance(phase, Yielding) else None
        other = winner or self._election.dispatcher
        if other is None or other == peer:
            return []
        return self._election.redirect([peer], other, self._election.epoch)
