"""Handlers of the peers' messages about the dispatcher: HELLO, claims and redirects.

Owns no state; `election` changes the phase.

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
from octaskly.core.log.retired_streams import NONE_RETIRED
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.ids import DispatcherEpoch, Epoch, Moment, NodeId
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
    """Return True if the dispatcher that sent `mine` keeps the role.

    If only one of the two can read the other's log, that one wins. Otherwise more
    followers win, then the higher term, then the higher id. Both sides compare the same
    two HELLOs of one link, so they reach the same result.
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
    """Handles messages about the dispatcher: follows, rejects, claims or steps down."""

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
        """Compare the dispatchers and log versions in the two HELLOs of a new link."""
        hello, peer = event.peer_hello, event.peer
        self._anti_entropy.drop_peer(peer)  # A pull on the earlier link gets no answer.
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
            reason = "it was dispatcher when the link came up"
            extent = (hello.vector, hello.retired)
            return self._election.follow(peer, hello.epoch, extent, reason, now)
        if isinstance(phase, Following) and peer == phase.follow_link.dispatcher:
            # It restarted without its role, and an epoch never resumes.
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
        """Compare the epochs when this dispatcher connects to a peer."""
        hello, sent, peer = event.peer_hello, event.own_hello, event.peer
        is_same = sent.dispatcher == self._me and sent.epoch == dispatcher_epoch.epoch
        if hello.dispatcher == peer and is_same:
            return self._resolve_rival_dispatcher(event, dispatcher_epoch, now)
        if hello.dispatcher == peer and hello.epoch > dispatcher_epoch.epoch:
            reason = "a higher epoch exists"
            extent = (hello.vector, hello.retired)
            return self._election.follow(peer, hello.epoch, extent, reason, now)
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
        """Decide between two dispatchers from the two HELLOs, with `wins_over`."""
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
        """Claim a new epoch above one that has no known dispatcher."""
        return self._election.claim_epoch_above(epoch, "a higher epoch was seen")

    # Messages

    def on_claim(self, peer: NodeId, message: Claim, now: Moment) -> list[Effect]:
        """Follow the peer if its epoch is at least the highest epoch seen."""
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
            return []  # The answer is pending: it waits for the disk, or for the log.
        extent = (message.vector, message.retired)
        return self._election.follow(peer, epoch, extent, "it claims", now)

    def on_heartbeat(self, peer: NodeId, epoch: Epoch, now: Moment) -> list[Effect]:
        """Follow or reject the sender of a heartbeat; the node sends the answer."""
        if self._election.is_followed_epoch(peer, epoch) or self._is_predecessor_epoch(
            epoch
        ):
            return []
        if epoch.node != peer or epoch < self._election.min_epoch:
            return self.reject_stale_dispatcher(peer)
        extent = ((), NONE_RETIRED)
        return self._election.follow(peer, epoch, extent, "it sends heartbeats", now)

    def _is_predecessor_epoch(self, epoch: Epoch) -> bool:
        """Return True if this epoch was transferred to this node's pending claim.

        Messages of that epoch do not stop the claim.
        """
        phase = self._election.phase
        return isinstance(phase, Claiming) and phase.predecessor == epoch

    def on_claim_ok(self, peer: NodeId, message: ClaimOk) -> list[Effect]:
        """Record a follower of this epoch; pull the entries that only it holds."""
        phase = self._election.phase
        if isinstance(phase, SteppingDown) and peer == phase.winner:
            # Both dispatchers stepped down for each other; this one notices first.
            return self._election.claim_epoch("the winner stepped down")
        if not isinstance(phase, Dispatching):
            effects = self._redirect_follower(peer)
            return effects + self._pull_for_dispatcher(peer, message)
        if message.epoch != phase.dispatcher_epoch.epoch:
            return []
        self._peer_table.confirm_follower(
            peer, message.epoch, message.vector, message.retired
        )
        is_readable = self._log_versions.is_log_readable(peer)
        return self._anti_entropy.pull_from(peer) if is_readable else []

    def _pull_for_dispatcher(self, peer: NodeId, message: ClaimOk) -> list[Effect]:
        """Pull what a peer holds alone, if this node is its relay to a dispatcher.

        The dispatcher cannot pull from the peer, but it pulls from this node.
        """
        if self._election.attachment is None:
            return []
        if self._journal.holds_log(message.vector, message.retired):
            return []
        if not self._log_versions.is_log_readable(peer):
            return []
        return self._anti_entropy.pull_from(peer)

    def on_claim_no(
        self, peer: NodeId, message: ClaimRejected, now: Moment
    ) -> list[Effect]:
        """Handle a higher epoch: step down for its dispatcher, else claim above it."""
        epoch = message.epoch
        self._election.observe_term(epoch.term)
        if self._election.dispatcher_epoch is None or epoch <= self._election.min_epoch:
            return []
        if epoch.node == peer:
            return self._election.step_down_for(peer, "a higher epoch exists", now)
        return self._claim_above_unowned(epoch)

    def on_redirect(self, peer: NodeId, message: Redirect, now: Moment) -> list[Effect]:
        """Dial the dispatcher that a peer names, unless its epoch is stale."""
        election = self._election
        epoch, dispatcher = message.epoch, message.dispatcher
        election.observe_term(epoch.term)
        is_own_dispatcher = (
            isinstance(election.phase, Following) and peer == election.dispatcher
        )
        if dispatcher == self._me or (is_own_dispatcher and epoch < election.epoch):
            return []  # The peer sent it before the epoch that this node follows.
        if (view := self._peer_table.peers.get(peer)) is not None:
            view.dispatcher, view.epoch = dispatcher, epoch
        is_dispatching = election.dispatcher_epoch is not None
        if is_dispatching and epoch <= election.min_epoch:
            return []
        if not is_own_dispatcher and epoch < election.epoch:
            return []
        # It also records the addresses, which a redirect of followers repeats.
        dials = self._peer_table.address_book.dial_node(
            dispatcher, message.addresses, now, is_dispatcher=True
        )
        effects: list[Effect] = []
        if is_dispatching:
            effects = election.step_down_for(dispatcher, "a higher epoch exists", now)
        elif is_own_dispatcher:
            effects = election.start_discovering("redirected", now)
        return effects + dials

    def on_pull(self, peer: NodeId, message: Pull, now: Moment) -> list[Effect]:
        """Record the vector of a PULL; finish stepping down if it covers the log."""
        view = self._peer_table.peers.get(peer)
        if view is not None:
            view.set_extent(message.vector, message.retired)
            view.included_digest = message.included
        election = self._election
        if not isinstance(election.phase, SteppingDown) or peer != election.dispatcher:
            return []
        digests = (message.retired.digest, message.included)
        if self._journal.is_held_by(message.vector, digests):
            return self._election.finish_step_down("it holds the whole log", now)
        return []

    def on_transfer(self, peer: NodeId, message: Transfer, now: Moment) -> list[Effect]:
        """Pull what is missing from a dispatcher that transfers its role; claim."""
        phase = self._election.phase
        if not isinstance(phase, Following) or self._candidacy.is_withdrawn:
            return []
        if not self._election.is_followed_epoch(peer, message.epoch):
            return []
        phase.transfer_extent = (message.vector, message.retired)
        self._election.loss.mark_missing(now, peer)
        effects = self._anti_entropy.pull_missing(*(peer, *phase.transfer_extent))
        return effects + self.continue_transfer()

    def continue_transfer(self) -> list[Effect]:
        """Claim if a transfer is pending and its entries are all here."""
        phase = self._election.phase
        if (
            not isinstance(phase, Following | Campaigning)
            or phase.transfer_extent is None
        ):
            return []
        if not self._journal.holds_log(*phase.transfer_extent):
            return []
        election = self._election
        return election.claim_epoch("handed over", election.epoch)

    # Redirects

    def reject_stale_dispatcher(self, peer: NodeId) -> list[Effect]:
        """Send a deposed dispatcher this node's dispatcher, or the minimal epoch."""
        election = self._election
        attachment = election.attachment
        if election.dispatcher_epoch is None and attachment is not None:
            return election.redirect_peers(
                [peer], attachment.dispatcher, election.epoch
            )
        return [Send(peer, (ClaimRejected(election.min_epoch),))]

    def _redirect_follower(self, peer: NodeId) -> list[Effect]:
        """Redirect a peer that follows this node after it stepped down.

        Without a redirect, the peer would take this node's silence for a failure, and
        claim.
        """
        phase = self._election.phase
        winner = phase.winner if isinstance(phase, SteppingDown) else None
        other = winner or self._election.dispatcher
        if other is None or other == peer:
            return []
        return self._election.redirect_peers([peer], other, self._election.epoch)
