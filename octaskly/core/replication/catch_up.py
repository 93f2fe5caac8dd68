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
from octaskly.core.membership.membership import Membership
from octaskly.core.membership.peer import PeerView
from octaskly.core.membership.roster import LOST_S
from octaskly.core.model.ids import NO_EPOCH, Epoch, Moment, NodeId, covers
from octaskly.core.model.keys import REVOKED
from octaskly.core.model.nodes import NodeState, Role
from octaskly.core.protocol.messages import ATTACHED, STOPPING, Roster
from octaskly.core.replication.anti_entropy import Exchange
from octaskly.core.replication.journal import Journal
from octaskly.core.replies import NotHere, Passed

RETURN_S = 30.0  #: for peers that are remembered to come, after a start

PLAIN_ENDS = ("eof", "reset", STOPPING, ATTACHED, REVOKED)
"""Ends of a link after which the other side is not at work without this one."""


class Completeness:
    """Who is missing in this reign, and for how long that is worth an excuse."""

    def __init__(
        self,
        journal: Journal,
        members: Membership,
        exchange: Exchange,
        silence_s: float,
    ) -> None:
        self._silence_s = silence_s  #: after which a follower may claim
        self._journal = journal
        self._members = members
        self._exchange = exchange
        self._epoch: Epoch = NO_EPOCH
        self._missing: dict[NodeId, float] = {}
        """Nodes that may know more, and until when they are waited for."""
        self.asked: list[tuple[int, Epoch, float]] = []
        """Who waits for an answer: tickets, in which reign they asked, and when."""

    def remember(self, nodes: list[NodeId], now_s: float) -> None:
        """These were in the mesh before this process started."""
        self._missing = dict.fromkeys(nodes, now_s + RETURN_S)

    def begin(
        self, epoch: Epoch, roster: Roster | None, level: Epoch, now_s: float
    ) -> None:
        """Reign.

        Args:
            epoch: Of this reign.
            roster: As last heard from the dispatcher before.
            level: The reign with which this node's log was level last.
            now_s: The monotonic clock.
        """
        self._epoch = epoch
        if roster is None:
            # Nobody has said who was in the mesh that this node met.
            met = self._members.hints.met()
            self._missing.update(dict.fromkeys(met, now_s + RETURN_S))
            return
        for member in roster.members:
            is_lost = member.state is NodeState.LOST  # It may be at work elsewhere.
            # A standby has all that its dispatcher answered for, or another one has.
            is_covered = member.role is Role.DISPATCHER and level == roster.epoch
            if is_covered or (member.role is Role.WORKER and not is_lost):
                continue
            if member.id != epoch.node:
                self._missing[member.id] = now_s + LOST_S

    def on_lost(self, node: NodeId, view: PeerView, reason: str, now_s: float) -> None:
        """A peer is gone, perhaps with entries that it had not handed over yet.

        A follower of this reign that is cut off may also be at work elsewhere.
        """
        is_follower = view.follows == self._epoch
        is_cut_off = is_follower and reason not in PLAIN_ENDS
        lacks_rows = self._exchange.lacks_rows(node, view.ahead)
        vector = view.vector.items()
        if is_cut_off or lacks_rows or not covers(self._journal.vector, vector):
            self._missing[node] = now_s + LOST_S
        elif is_follower:
            self._missing.pop(node, None)

    def ask(self, ticket: int, now: Moment) -> None:
        """Have `on_time` answer whether this reign knows of all tasks."""
        self.asked.append((ticket, self._epoch, now.mono_s))

    def on_time(self, reign: Epoch | None, now: Moment) -> list[Effect]:
        """Answer what can be answered.

        Args:
            reign: The epoch in which this node reigns; None: in none.
            now: The clocks.
        """
        asked, self.asked = self.asked, []
        is_complete = self.is_complete(now.mono_s)
        confirmed_s = self._confirmed_s()
        answers: list[Effect] = []
        for ticket, epoch, since_s in asked:
            if epoch != reign:
                answers.append(Answer(ticket, NotHere()))
            elif not is_complete or since_s <= confirmed_s:
                answers.append(Answer(ticket, Passed(is_complete)))
            else:
                self.asked.append((ticket, epoch, since_s))
        return answers

    def _confirmed_s(self) -> float:
        """Return when the last heartbeat was sent that all who may claim confirmed."""
        sent_s = math.inf
        for view in self._members.peers.values():
            if view.info.electable:
                health = view.health
                is_own = health is not None and health.epoch == self._epoch
                sent_s = min(sent_s, health.sent_s if health and is_own else -math.inf)
        return sent_s

    def is_complete(self, now_s: float) -> bool:
        """Return whether a task that is unknown here is unknown everywhere."""
        self._missing = {
            node: until_s
            for node, until_s in self._missing.items()
            if until_s > now_s and not self._is_heard(node)
        }
        return not self._missing and self.has_read_all and self._hears_all(now_s)

    def _hears_all(self, now_s: float) -> bool:
        """Return whether no follower is silent for so long that it may have claimed.

        Where a LAN falls apart, the other half takes this node for dead before this
        one gives up the links to it.
        """
        return all(
            now_s - view.frame_s < self._silence_s or not view.info.electable
            for view in self._members.peers.values()
        )

    @property
    def has_read_all(self) -> bool:
        """Whether all that the nodes here hold can be read from this node's disk."""
        return (
            not self._exchange.is_busy
            and self._journal.is_merged
            and all(self._is_read(*peer) for peer in self._members.peers.items())
        )

    def reads_on(self, now_s: float) -> bool:
        """Return whether a node that has more to tell is not silent."""
        return not self._journal.is_merged or any(
            now_s - view.frame_s < self._silence_s
            for node, view in self._members.peers.items()
            if self._exchange.is_owed(node) or not self._is_read(node, view)
        )

    def _is_read(self, node: NodeId, view: PeerView) -> bool:
        """Whether a node that follows holds nothing that this one has not."""
        return (
            self._is_heard(node)
            and not self._exchange.lacks_rows(node, view.ahead)
            and covers(self._journal.vector, view.vector.items())
        )

    def _is_heard(self, node: NodeId) -> bool:
        view = self._members.peers.get(node)
        return view is not None and view.follows == self._epoch
