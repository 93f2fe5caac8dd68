"""Whether another node may hold tasks that this reign does not know.

A dispatcher that is asked for an unknown task says "not found" only when it can know:
nobody is missing who may have accepted it, and nothing is still being pulled. Until
then the answer is that it cannot tell yet.

A follower that is cut off may follow somebody else, and keep tasks of that reign,
before its silence shows. So an answer waits until each follower that may do so has
confirmed a heartbeat that was sent after the question.
"""

from __future__ import annotations

import math

from octaskly.core.effects import Answer, Effect
from octaskly.core.membership.membership import PeerTable
from octaskly.core.membership.peer import PeerView
from octaskly.core.membership.roster import LOST_MEMBER_S
from octaskly.core.model.ids import NO_EPOCH, Epoch, Moment, NodeId, covers
from octaskly.core.model.keys import REVOKED_REASON
from octaskly.core.model.nodes import NodeState, Role
from octaskly.core.protocol.messages import STOPPING_REASON, UNNEEDED_REASON, Roster
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from octaskly.core.replies import CatchUpStatus, NotDispatching

REMEMBERED_PEER_S = 30.0  #: for peers that are remembered to come, after a start

NON_PARTITION_REASONS = (
    "eof",
    "reset",
    STOPPING_REASON,
    UNNEEDED_REASON,
    REVOKED_REASON,
)
"""Ends of a link after which the other side is not at work without this one."""


class CatchUp:
    """Who is missing in this reign, and for how long that is worth an excuse."""

    def __init__(
        self,
        journal: Journal,
        peer_table: PeerTable,
        anti_entropy: AntiEntropy,
        suspicion_timeout_s: float,
    ) -> None:
        self._suspicion_timeout_s = (
            suspicion_timeout_s  #: after which a follower may claim
        )
        self._journal = journal
        self._peer_table = peer_table
        self._anti_entropy = anti_entropy
        self._epoch: Epoch = NO_EPOCH
        self._missing_nodes: dict[NodeId, float] = {}
        """Nodes that may know more, and until when they are waited for."""
        self.pending_requests: list[tuple[int, Epoch, float]] = []
        """Who waits for an answer: tickets, in which reign they asked, and when."""

    def expect_nodes(self, nodes: list[NodeId], now_s: float) -> None:
        """These were in the mesh before this process started."""
        self._missing_nodes = dict.fromkeys(nodes, now_s + REMEMBERED_PEER_S)

    def start_catch_up(
        self, epoch: Epoch, roster: Roster | None, in_sync_epoch: Epoch, now_s: float
    ) -> None:
        """Reign.

        Args:
            epoch: Of this reign.
            roster: As last heard from the dispatcher before.
            in_sync_epoch: The reign with which this node's log was level last.
            now_s: The monotonic clock.
        """
        self._epoch = epoch
        if roster is None:
            # Nobody has said who was in the mesh that this node met.
            heard_of = self._peer_table.address_book.heard_of_nodes()
            self._missing_nodes.update(
                dict.fromkeys(heard_of, now_s + REMEMBERED_PEER_S)
            )
            return
        for member in roster.members:
            is_lost = member.state is NodeState.LOST  # It may be at work elsewhere.
            # A standby has all that its dispatcher answered for, or another one has.
            is_covered = (
                member.role is Role.DISPATCHER and in_sync_epoch == roster.epoch
            )
            if is_covered or (member.role is Role.WORKER and not is_lost):
                continue
            if member.id != epoch.node:
                self._missing_nodes[member.id] = now_s + LOST_MEMBER_S

    def on_peer_lost(
        self, node: NodeId, view: PeerView, reason: str, now_s: float
    ) -> None:
        """A peer is gone, perhaps with entries that it had not handed over yet.

        A follower of this reign that is cut off may also be at work elsewhere.
        """
        is_follower = view.followed_epoch == self._epoch
        is_cut_off = is_follower and reason not in NON_PARTITION_REASONS
        lacks_rows = self._anti_entropy.lacks_rows(node, view.rows_ahead)
        vector = view.vector.items()
        if is_cut_off or lacks_rows or not covers(self._journal.vector, vector):
            self._missing_nodes[node] = now_s + LOST_MEMBER_S
        elif is_follower:
            self._missing_nodes.pop(node, None)

    def add_request(self, ticket: int, now: Moment) -> None:
        """Have `on_time` answer whether this reign knows of all tasks."""
        self.pending_requests.append((ticket, self._epoch, now.mono_s))

    def on_time(self, own_epoch: Epoch | None, now: Moment) -> list[Effect]:
        """Answer what can be answered.

        Args:
            own_epoch: The epoch in which this node reigns; None: in none.
            now: The clocks.
        """
        requests, self.pending_requests = self.pending_requests, []
        is_complete = self.is_complete(now.mono_s)
        confirmed_s = self._confirmed_heartbeat_s()
        answers: list[Effect] = []
        for ticket, epoch, since_s in requests:
            if epoch != own_epoch:
                answers.append(Answer(ticket, NotDispatching()))
            elif not is_complete or since_s <= confirmed_s:
                answers.append(Answer(ticket, CatchUpStatus(is_complete)))
            else:
                self.pending_requests.append((ticket, epoch, since_s))
        return answers

    def _confirmed_heartbeat_s(self) -> float:
        """Return when the last heartbeat was sent that all who may claim confirmed."""
        sent_s = math.inf
        for view in self._peer_table.peers.values():
            if view.info.electable:
                health = view.last_heartbeat_ok
                is_own = health is not None and health.epoch == self._epoch
                sent_s = min(sent_s, health.sent_s if health and is_own else -math.inf)
        return sent_s

    def is_complete(self, now_s: float) -> bool:
        """Return whether a task that is unknown here is unknown everywhere."""
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
        """Return whether no follower is silent for so long that it may have claimed.

        Where a LAN falls apart, the other half takes this node for dead before this
        one gives up the links to it.
        """
        return all(
            now_s - view.last_frame_s < self._suspicion_timeout_s
            or not view.info.electable
            for view in self._peer_table.peers.values()
        )

    @property
    def has_read_all(self) -> bool:
        """Whether all that the nodes here hold can be read from this node's disk."""
        return (
            not self._anti_entropy.is_pulling
            and self._journal.is_remote_durable
            and all(
                self._has_read_peer(*peer) for peer in self._peer_table.peers.items()
            )
        )

    def can_read_more(self, now_s: float) -> bool:
        """Return whether a node that has more to tell is not silent."""
        return not self._journal.is_remote_durable or any(
            now_s - view.last_frame_s < self._suspicion_timeout_s
            for node, view in self._peer_table.peers.items()
            if self._anti_entropy.awaits_answer_from(node)
            or not self._has_read_peer(node, view)
        )

    def _has_read_peer(self, node: NodeId, view: PeerView) -> bool:
        """Whether a node that follows holds nothing that this one has not."""
        return (
            self._is_follower(node)
            and not self._anti_entropy.lacks_rows(node, view.rows_ahead)
            and covers(self._journal.vector, view.vector.items())
        )

    def _is_follower(self, node: NodeId) -> bool:
        view = self._peer_table.peers.get(node)
        return view is not None and view.followed_epoch == self._epoch
