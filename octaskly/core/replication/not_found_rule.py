"""Catch-up: decides when "unknown here" means "unknown everywhere" (404 or 503).

A dispatcher answers "not found" only if no node is missing that may have accepted the
task, and no pull is pending. Until then it answers that it is catching up.

A partitioned follower may follow another dispatcher, and store its tasks, before the
silence is noticed. So an answer waits until every electable peer has confirmed a
heartbeat that was sent after the request.
"""

from __future__ import annotations

import math

from octaskly.core.effects import Answer, Effect
from octaskly.core.membership.peer import PeerView
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import LOST_MEMBER_S
from octaskly.core.model.ids import NO_EPOCH, Epoch, Moment, NodeId
from octaskly.core.model.keyring_state import REVOKED_REASON
from octaskly.core.model.nodes import NodeState, Role
from octaskly.core.protocol.messages import STOPPED_REASONS, UNNEEDED_REASON, Roster
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from octaskly.core.replies import CatchUpStatus, NotDispatching

REMEMBERED_PEER_S = 30.0
"""Wait for remembered peers after a start, and for a dispatcher that died."""

NON_PARTITION_REASONS = (
    "eof",
    "reset",
    *STOPPED_REASONS,
    UNNEEDED_REASON,
    REVOKED_REASON,
)
"""Reasons of a link's end that rule out a partition."""


class NotFoundRule:
    """The missing nodes of this epoch, and the requests that wait for them."""

    def __init__(
        self,
        journal: Journal,
        peer_table: PeerTable,
        anti_entropy: AntiEntropy,
        suspicion_timeout_s: float,
    ) -> None:
        self._suspicion_timeout_s = (
            suspicion_timeout_s  #: silence after which a follower may claim
        )
        self._journal = journal
        self._peer_table = peer_table
        self._anti_entropy = anti_entropy
        self._epoch: Epoch = NO_EPOCH
        self._missing_nodes: dict[NodeId, float] = {}
        """Nodes that may hold unknown tasks, with the end of the wait for each."""
        self.pending_requests: list[tuple[int, Epoch, float]] = []
        """Waiting requests: ticket, epoch and time of each."""
        self._unconfirmed: set[NodeId] = set()
        """Peers that have yet to confirm a heartbeat for the first of them."""

    def expect_nodes(self, nodes: list[NodeId], now_s: float) -> None:
        """Wait for nodes that were in the mesh before this process started."""
        self._missing_nodes = dict.fromkeys(nodes, now_s + REMEMBERED_PEER_S)

    def start_catch_up(
        self,
        epoch: Epoch,
        roster: Roster | None,
        now_s: float,
        lost_dispatcher: NodeId | None = None,
    ) -> None:
        """Start an epoch of this node, and find the nodes that may hold more.

        The previous dispatcher and its standbys may, and any lost node: it may have
        been dispatcher elsewhere.

        Args:
            epoch: The new epoch.
            roster: The latest roster of a previous dispatcher.
            now_s: The monotonic clock.
            lost_dispatcher: The previous dispatcher, which may have sent no roster.
        """
        self._epoch = epoch
        if lost_dispatcher is not None:
            self._missing_nodes[lost_dispatcher] = now_s + REMEMBERED_PEER_S
        if roster is None:
            # Without a roster, any node that this process has heard of may hold tasks.
            heard_of = self._peer_table.address_book.heard_of_nodes()
            self._missing_nodes.update(
                dict.fromkeys(heard_of, now_s + REMEMBERED_PEER_S)
            )
            return
        for member in roster.members:
            is_lost = member.state is NodeState.LOST  # It may still be running.
            if member.id == epoch.node or (member.role is Role.WORKER and not is_lost):
                continue
            # What a dispatcher acknowledged is usually on a standby as well.
            is_dispatcher = member.role is Role.DISPATCHER
            wait_s = REMEMBERED_PEER_S if is_dispatcher else LOST_MEMBER_S
            self._missing_nodes[member.id] = now_s + wait_s

    def on_peer_lost(
        self, node: NodeId, view: PeerView, reason: str, now_s: float
    ) -> None:
        """Wait for a lost peer that may hold entries which this node lacks.

        A partitioned follower of this epoch may also follow another dispatcher.
        """
        is_follower = view.followed_epoch == self._epoch
        is_cut_off = is_follower and reason not in NON_PARTITION_REASONS
        holds_log = self._journal.will_hold_log(view.vector.items(), view.retired)
        if is_cut_off or not holds_log:
            self._missing_nodes[node] = now_s + LOST_MEMBER_S
        elif is_follower:
            self._missing_nodes.pop(node, None)

    def add_request(self, ticket: int, now: Moment) -> None:
        """Add a request that `on_time` answers with the catch-up status."""
        self.pending_requests.append((ticket, self._epoch, now.mono_s))

    def on_heartbeat_ok(
        self, peer: NodeId, own_epoch: Epoch, now: Moment
    ) -> list[Effect]:
        """Answer requests if this peer was the last one that they waited for.

        Whether a log was read takes a look at all streams of all peers, so it is not
        asked at the heartbeat of each peer.
        """
        if not self.pending_requests:
            return []
        view = self._peer_table.peers.get(peer)
        _, _, since_s = self.pending_requests[0]
        if view is None or self._confirmed_s(view) >= since_s:
            self._unconfirmed.discard(peer)
        return [] if self._unconfirmed else self.on_time(own_epoch, now)

    def on_time(self, own_epoch: Epoch | None, now: Moment) -> list[Effect]:
        """Answer the requests that need not wait longer.

        Args:
            own_epoch: The epoch of this dispatcher; None: this node is not dispatcher.
            now: The clocks.
        """
        requests, self.pending_requests = self.pending_requests, []
        if not requests:
            return []
        is_complete = self.is_complete(now.mono_s)
        confirmed = {
            node: self._confirmed_s(view)
            for node, view in self._peer_table.peers.items()
            if view.info.electable
        }
        confirmed_s = min(confirmed.values(), default=math.inf)
        answers: list[Effect] = []
        for ticket, epoch, since_s in requests:
            if epoch != own_epoch:
                answers.append(Answer(ticket, NotDispatching()))
            elif not is_complete or since_s <= confirmed_s:
                answers.append(Answer(ticket, CatchUpStatus(is_complete)))
            else:
                self.pending_requests.append((ticket, epoch, since_s))
        first_s = self.pending_requests[0][2] if self.pending_requests else -math.inf
        self._unconfirmed = {n for n, at_s in confirmed.items() if at_s < first_s}
        return answers

    def _confirmed_s(self, view: PeerView) -> float:
        """Return the send time of the last heartbeat that a peer confirmed."""
        health = view.last_heartbeat_ok
        if health is None or health.epoch != self._epoch:
            return -math.inf
        return health.sent_s

    def is_complete(self, now_s: float) -> bool:
        """Return True if a task that is unknown here is unknown everywhere."""
        self._missing_nodes = {
            node: until_s
            for node, until_s in self._missing_nodes.items()
            if until_s > now_s and not self._is_follower(node)
        }
        return (
            not self._missing_nodes
            and self.has_read_all
            and self._hears_all_followers(now_s)
        )

    def _hears_all_followers(self, now_s: float) -> bool:
        """Return True if no electable peer has been silent long enough to claim.

        In a partition, the other side may declare this node dead before this node
        closes its links to that side.
        """
        return all(
            now_s - view.last_frame_s < self._suspicion_timeout_s
            or not view.info.electable
            for view in self._peer_table.peers.values()
        )

    @property
    def has_read_all(self) -> bool:
        """Return True if this node's disk holds all that connected nodes hold."""
        return (
            not self._anti_entropy.is_pulling
            and self._journal.is_remote_durable
            and all(
                self._has_read_peer(*peer) for peer in self._peer_table.peers.items()
            )
        )

    def has_read_log_of(self, view: PeerView) -> bool:
        """Return True if this node's disk holds all that a follower said it holds."""
        journal = self._journal
        is_held = journal.holds_log(view.vector.items(), view.retired)
        return is_held and journal.is_remote_durable

    def can_read_more(self, now_s: float) -> bool:
        """Return True if more entries are expected from a peer that is not silent."""
        journal = self._journal
        return (
            journal.is_merging
            or not journal.is_remote_durable
            or any(
                now_s - view.last_frame_s < self._suspicion_timeout_s
                for node, view in self._peer_table.peers.items()
                if self._anti_entropy.awaits_answer_from(node)
                or not self._has_read_peer(node, view)
            )
        )

    def _has_read_peer(self, node: NodeId, view: PeerView) -> bool:
        """Return True if a follower holds nothing that is missing here."""
        return self._is_follower(node) and self._journal.holds_log(
            view.vector.items(), view.retired
        )

    def _is_follower(self, node: NodeId) -> bool:
        view = self._peer_table.peers.get(node)
        return view is not None and view.followed_epoch == self._epoch
