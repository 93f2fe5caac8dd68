"""What peers say of who reigns, and what this node makes of it and answers.

Owns nothing; the moves are those of `election`.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, Send
from octaskly.core.election.candidacy import Candidacy
from octaskly.core.election.election import Election
from octaskly.core.election.phases import (
    Campaigning,
    Claiming,
    Dispatching,
    Following,
    SteppingDown,
)
from octaskly.core.events import PeerUp
from octaskly.core.membership.membership import PeerTable
from octaskly.core.model.ids import DispatcherEpoch, Epoch, Moment, NodeId, covers
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import (
    Claim,
    ClaimOk,
    ClaimRejected,
    Hello,
    Pull,
    Redirect,
    Transfer,
)
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal


def wins_over(mine: Hello, theirs: Hello) -> bool:
    """Return whether the dispatcher that sent `mine` keeps the role.

    One that can read the other's log, if the other cannot read its own. Then more
    followers, then the higher term, then the higher id. Both sides compare the two
    HELLOs of one link, which nobody can change afterwards.
    """
    reads, is_read = (
        mine.readable_log_version >= theirs.log_version,
        theirs.readable_log_version >= mine.log_version,
    )
    if reads != is_read:
        return reads
    return _score(mine) > _score(theirs)


def _score(hello: Hello) -> tuple[int, int, str]:
    return (hello.followers, hello.epoch.term, hello.node.id)


class ClaimHandlers:
    """The claims of this node and of others, as peers hear and tell of them."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        peer_table: PeerTable,
        anti_entropy: AntiEntropy,
        candidacy: Candidacy,
        election: Election,
    ) -> None:
        self._me = settings.node.id
        self._journal = journal
        self._peer_table = peer_table
        self._anti_entropy = anti_entropy
        self._candidacy = candidacy
        self._log_versions = candidacy.log_versions
        self._election = election

    def on_peer_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        """Compare what both sides said in HELLO."""
        hello, peer = event.peer_hello, event.peer
        self._anti_entropy.drop_peer(peer)  # An earlier link may have owed an answer.
        effects = self._log_versions.on_peer_up(peer, hello)
        return effects + self._compare_dispatchers(event, now)

    def _compare_dispatchers(self, event: PeerUp, now: Moment) -> list[Effect]:
        hello, peer = event.peer_hello, event.peer
        self._election.observe_term(hello.epoch.term)
        peer_dispatches = hello.dispatcher == peer
        phase = self._election.phase
        if isinstance(phase, Dispatching):
            return self._on_peer_up_as_dispatcher(event, phase.dispatcher_epoch, now)
        is_known_winner = (
            isinstance(phase, SteppingDown) and hello.epoch == event.own_hello.epoch
        )
        if peer_dispatches and is_known_winner:
            return []
        if peer_dispatches and hello.epoch >= self._election.epoch:
            reason = "it reigned when met"
            return self._election.follow(peer, hello.epoch, hello.vector, reason, now)
        if isinstance(phase, Following) and peer == phase.follow_link.dispatcher:
            # It came back without its role: a reign never resumes.
            return self._election.on_dispatcher_lost("it restarted", now)
        attachment = self._election.attachment
        follows_another = (
            attachment is not None and hello.dispatcher != attachment.dispatcher
        )
        return (
            self.reject_stale_dispatcher(peer)
            if peer_dispatches or follows_another
            else []
        )

    def _on_peer_up_as_dispatcher(
        self, event: PeerUp, dispatcher_epoch: DispatcherEpoch, now: Moment
    ) -> list[Effect]:
        """A dispatcher meets a peer that may be one too."""
        hello, sent, peer = event.peer_hello, event.own_hello, event.peer
        is_same = sent.dispatcher == self._me and sent.epoch == dispatcher_epoch.epoch
        if hello.dispatcher == peer and is_same:
            return self._resolve_rival_dispatcher(event, dispatcher_epoch, now)
        if hello.dispatcher == peer and hello.epoch > dispatcher_epoch.epoch:
            reason = "a higher epoch reigns"
            return self._election.follow(peer, hello.epoch, hello.vector, reason, now)
        effects: list[Effect] = []
        if not is_same:
            effects += [
                Send(peer, (self._election.heartbeats.claim_message(dispatcher_epoch),))
            ]
        if (
            hello.dispatcher in (None, self._me)
            and hello.epoch > dispatcher_epoch.epoch
        ):
            effects += self._claim_above_unowned(hello.epoch)
        return effects

    def _resolve_rival_dispatcher(
        self, event: PeerUp, dispatcher_epoch: DispatcherEpoch, now: Moment
    ) -> list[Effect]:
        """Two dispatchers meet: both compare the same two statements."""
        if not wins_over(event.own_hello, event.peer_hello):
            return self._election.step_down_for(event.peer, "lost to a dispatcher", now)
        if event.peer_hello.epoch < dispatcher_epoch.epoch:
            return [
                Send(
                    event.peer,
                    (self._election.heartbeats.claim_message(dispatcher_epoch),),
                )
            ]
        reason = "won over a dispatcher"
        return self._election.claim_epoch_above(event.peer_hello.epoch, reason)

    def _claim_above_unowned(self, epoch: Epoch) -> list[Effect]:
        """Renew the reign above an epoch in which nobody is known to live."""
        return self._election.claim_epoch_above(epoch, "a higher epoch was seen")

    # Messages

    def on_claim(self, peer: NodeId, message: Claim, now: Moment) -> list[Effect]:
        """Follow a claim that is not behind what was seen."""
        epoch = message.epoch
        if epoch.node != peer:
            return []
        self._election.observe_term(epoch.term)
        if epoch < self._election.min_epoch:
            return self.reject_stale_dispatcher(peer)
        if self._is_predecessor_epoch(epoch):
            return []
        if (
            self._election.is_followed_epoch(peer, epoch)
            and self._election.attachment is None
        ):
            return []  # The answer waits for the disk, or for the log.
        return self._election.follow(peer, epoch, message.vector, "it claims", now)

    def on_heartbeat(self, peer: NodeId, epoch: Epoch, now: Moment) -> list[Effect]:
        """Judge a heartbeat; the answer is the node's affair."""
        if self._election.is_followed_epoch(peer, epoch) or self._is_predecessor_epoch(
            epoch
        ):
            return []
        if epoch.node != peer or epoch < self._election.min_epoch:
            return self.reject_stale_dispatcher(peer)
        return self._election.follow(peer, epoch, (), "it sends heartbeats", now)

    def _is_predecessor_epoch(self, epoch: Epoch) -> bool:
        """Whether a reign handed over: what it still says is no reason to turn back."""
        phase = self._election.phase
        return isinstance(phase, Claiming) and phase.predecessor == epoch

    def on_claim_ok(self, peer: NodeId, message: ClaimOk) -> list[Effect]:
        """A peer follows this reign; take over what only it holds."""
        phase = self._election.phase
        if isinstance(phase, SteppingDown) and peer == phase.winner:
            # Each has given way to the other; this one heard of it first.
            return self._election.claim_epoch("the winner gave way")
        if not isinstance(phase, Dispatching):
            return self._redirect_follower(peer)
        if message.epoch != phase.dispatcher_epoch.epoch:
            return []
        ahead = message.rows_ahead
        self._peer_table.confirm_follower(peer, message.epoch, message.vector, ahead)
        is_readable = self._log_versions.is_log_readable(peer)
        return self._anti_entropy.pull_from(peer, ahead) if is_readable else []

    def on_claim_no(
        self, peer: NodeId, message: ClaimRejected, now: Moment
    ) -> list[Effect]:
        """A higher epoch is known: yield to who lives in it, else rise above it."""
        epoch = message.epoch
        self._election.observe_term(epoch.term)
        if self._election.dispatcher_epoch is None or epoch <= self._election.min_epoch:
            return []
        if epoch.node == peer:
            return self._election.step_down_for(peer, "a higher epoch reigns", now)
        return self._claim_above_unowned(epoch)

    def on_redirect(self, peer: NodeId, message: Redirect, now: Moment) -> list[Effect]:
        """A peer says who is dispatcher."""
        election = self._election
        epoch, dispatcher = message.epoch, message.dispatcher
        election.observe_term(epoch.term)
        is_own_dispatcher = (
            isinstance(election.phase, Following) and peer == election.dispatcher
        )
        if dispatcher == self._me or (is_own_dispatcher and epoch < election.epoch):
            return []  # The latter was said before the reign that is followed.
        if peer in self._peer_table.peers:
            self._peer_table.peers[peer].dispatcher = dispatcher
        effects: list[Effect] = []
        if election.dispatcher_epoch is not None:
            if epoch <= election.min_epoch:
                return []
            effects = election.step_down_for(dispatcher, "a higher epoch reigns", now)
        elif is_own_dispatcher:
            effects = election.start_discovering("redirected", now)
        elif epoch < election.epoch:
            return []
        dials = self._peer_table.address_book.dial_node(
            dispatcher, message.addresses, now, is_dispatcher=True
        )
        return effects + dials

    def on_pull(self, peer: NodeId, message: Pull, now: Moment) -> list[Effect]:
        """See in a peer's question what it holds."""
        view = self._peer_table.peers.get(peer)
        if view is not None:
            view.vector = dict(message.vector)
        election = self._election
        if not isinstance(election.phase, SteppingDown) or peer != election.dispatcher:
            return []
        if covers(dict(message.vector), self._journal.vector_items()):
            return self._election.finish_step_down("it holds all of the log", now)
        return []

    def on_transfer(self, peer: NodeId, message: Transfer, now: Moment) -> list[Effect]:
        """The dispatcher stops and hands over: pull what is missing, then claim."""
        phase = self._election.phase
        if not isinstance(phase, Following) or self._candidacy.is_withdrawn:
            return []
        if not self._election.is_followed_epoch(peer, message.epoch):
            return []
        phase.transfer_vector = message.vector
        self._election.loss.mark_missing(now, peer)
        effects = self._anti_entropy.pull_missing(peer, message.vector)
        return effects + self.continue_transfer()

    def continue_transfer(self) -> list[Effect]:
        """Entries were taken in: perhaps the transfer is complete."""
        phase = self._election.phase
        if (
            not isinstance(phase, Following | Campaigning)
            or phase.transfer_vector is None
        ):
            return []
        if not covers(self._journal.vector, phase.transfer_vector):
            return []
        election = self._election
        return election.claim_epoch("handed over", election.epoch)

    # Whom others are told to follow

    def reject_stale_dispatcher(self, peer: NodeId) -> list[Effect]:
        """Tell a deposed dispatcher whom this node follows, or at least how late."""
        election = self._election
        attachment = election.attachment
        if election.dispatcher_epoch is None and attachment is not None:
            return election.redirect_peers(
                [peer], attachment.dispatcher, election.epoch
            )
        return [Send(peer, (ClaimRejected(election.min_epoch),))]

    def _redirect_follower(self, peer: NodeId) -> list[Effect]:
        """Tell a peer that would follow this node, which has given way, whom to follow.

        Else it would take the silence here for a death, and claim.
        """
        phase = self._election.phase
        winner = phase.winner if isinstance(phase, SteppingDown) else None
        other = winner or self._election.dispatcher
        if other is None or other == peer:
            return []
        return self._election.redirect_peers([peer], other, self._election.epoch)
