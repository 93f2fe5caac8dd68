"""Giving the reign to a follower: one successor after another is asked to claim.

A dispatcher hands over when its node stops, and when its disk takes no more writes.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, Note, Send
from octaskly.core.election.election import Election
from octaskly.core.membership.membership import Membership
from octaskly.core.model.ids import Moment, NodeId, Reign
from octaskly.core.model.settings import Timing
from octaskly.core.protocol.messages import Transfer
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication

SUCCESSORS_ASKED = 3


class HandOver:
    """The successors that were asked, and how long the last may take."""

    def __init__(
        self,
        timing: Timing,
        journal: Journal,
        members: Membership,
        election: Election,
        replication: Replication,
    ) -> None:
        self._timing = timing
        self._journal = journal
        self._members = members
        self._election = election
        self._replication = replication
        self._asked: list[NodeId] = []
        self._transfer_s: float | None = None  #: when the last was asked
        self._given: Reign | None = None  #: what it was asked to take over

    @property
    def is_under_way(self) -> bool:
        """Whether a successor is claiming, so that the log must not grow."""
        return self._given is not None and self._given is self._election.reign

    def reset(self) -> None:
        """Begin with the best successor again."""
        self._asked.clear()
        self._transfer_s = self._given = None

    def step(self, now: Moment, *, must_be_level: bool = False) -> list[Effect] | None:
        """Ask the next successor, or wait for the last; None: nobody is left to ask.

        Args:
            now: Both clocks.
            must_be_level: Ask only a standby that holds everything, as this node's
                own disk does not.
        """
        reign = self._election.reign
        assert reign is not None
        deadline_s = self.deadline()
        if deadline_s is not None and now.mono_s < deadline_s:
            return []
        self._transfer_s = self._given = None
        successor = self._successor(reign, now, must_be_level=must_be_level)
        if successor is None:
            return None
        if must_be_level:
            is_ready = self._replication.level_with(successor)
        else:
            is_ready = self._journal.is_settled and self._replication.is_quiet
        if not is_ready:
            return []
        self._asked.append(successor)
        self._transfer_s, self._given = now.mono_s, reign
        transfer = Transfer(reign.epoch, self._journal.vector_items())
        note = Note("info", "handing over", (("peer", successor),))
        return [note, Send(successor, (transfer,))]

    def deadline(self) -> float | None:
        """Return when the successor that was asked last has had its time."""
        if self._transfer_s is None:
            return None
        return self._transfer_s + self._timing.yield_s

    def _successor(
        self, reign: Reign, now: Moment, *, must_be_level: bool
    ) -> NodeId | None:
        """Return the best follower that was not asked, unless enough were.

        A standby that holds all is best: the claim need not wait for the log.
        """
        if len(self._asked) >= SUCCESSORS_ASKED:
            return None
        ranked = sorted(
            (not self._replication.level_with(node), view.standing(now), node)
            for node, view in self._members.followers(reign.epoch)
            if view.is_candidate
            and node not in self._asked
            and (not must_be_level or self._replication.streams_to(node))
        )
        return ranked[0][-1] if ranked else None
