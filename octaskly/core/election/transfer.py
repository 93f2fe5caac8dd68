"""Transfer of the role of dispatcher: asks one successor after another to claim.

A dispatcher transfers its role when its node stops, or when its disk or API fails.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, LogLine, Send
from octaskly.core.election.election import Election
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.ids import DispatcherEpoch, Moment, NodeId
from octaskly.core.model.settings import Timing
from octaskly.core.protocol.messages import Transfer
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication

SUCCESSORS_ASKED_MAX = 3


class DispatcherTransfer:
    """The successors asked so far, and the deadline of the latest."""

    def __init__(
        self,
        timing: Timing,
        journal: Journal,
        peer_table: PeerTable,
        election: Election,
        replication: Replication,
    ) -> None:
        self._timing = timing
        self._journal = journal
        self._peer_table = peer_table
        self._election = election
        self._replication = replication
        self._asked_successors: list[NodeId] = []
        self._asked_at_s: float | None = None  #: when the latest was asked
        self._transferred_epoch: DispatcherEpoch | None = (
            None  #: the epoch that it was asked to succeed
        )

    @property
    def is_in_progress(self) -> bool:
        """Return True if a successor may be claiming, so the log must not grow."""
        return (
            self._transferred_epoch is not None
            and self._transferred_epoch is self._election.dispatcher_epoch
        )

    def reset(self) -> None:
        """Forget the successors asked, so that the next one is the best again."""
        self._asked_successors.clear()
        self._asked_at_s = self._transferred_epoch = None

    def ask_next_successor(
        self, now: Moment, *, must_be_in_sync: bool = False, must_serve: bool = False
    ) -> list[Effect] | None:
        """Ask the next successor, or wait for the latest; None: no successor is left.

        Args:
            now: Both clocks.
            must_be_in_sync: Ask only a standby that has acknowledged everything,
                because this node's own disk may fail.
            must_serve: Ask only a node whose API works, because that of this node does
                not: what makes one API fail often makes all fail.
        """
        dispatcher_epoch = self._election.dispatcher_epoch
        assert dispatcher_epoch is not None
        deadline_s = self.deadline()
        if deadline_s is not None and now.mono_s < deadline_s:
            return []
        self._asked_at_s = self._transferred_epoch = None
        successor = self._best_successor(
            *(dispatcher_epoch, now),
            must_be_in_sync=must_be_in_sync,
            must_serve=must_serve,
        )
        if successor is None:
            return None
        if must_be_in_sync:
            is_ready = self._replication.has_acked_all(successor)
        else:
            is_ready = (
                self._journal.is_all_durable and self._replication.has_no_pending_acks
            )
        if not is_ready:
            return []
        self._asked_successors.append(successor)
        self._asked_at_s, self._transferred_epoch = now.mono_s, dispatcher_epoch
        journal = self._journal
        transfer = Transfer(
            dispatcher_epoch.epoch, journal.vector_items(), journal.retired_summary()
        )
        note = LogLine("info", "handing over", (("peer", successor),))
        return [note, Send(successor, (transfer,))]

    def deadline(self) -> float | None:
        """Return the deadline of the latest successor; None: none was asked."""
        if self._asked_at_s is None:
            return None
        return self._asked_at_s + self._timing.step_down_s

    def _best_successor(
        self,
        dispatcher_epoch: DispatcherEpoch,
        now: Moment,
        *,
        must_be_in_sync: bool,
        must_serve: bool,
    ) -> NodeId | None:
        """Return the best follower not asked yet; None after `SUCCESSORS_ASKED_MAX`.

        A standby that holds everything is best: its claim need not wait for the log.
        """
        if len(self._asked_successors) >= SUCCESSORS_ASKED_MAX:
            return None
        ranked = sorted(
            (
                *(view.is_api_failing, not self._replication.has_acked_all(node)),
                *(view.rank(now), node),
            )
            for node, view in self._peer_table.followers(dispatcher_epoch.epoch)
            if view.is_candidate
            and node not in self._asked_successors
            and (not must_be_in_sync or self._replication.is_in_sync(node))
            and not (must_serve and view.is_api_failing)
        )
        return ranked[0][-1] if ranked else None
