"""How a node leaves on purpose: hand over, finish what runs, say goodbye.

A dispatcher asks its best follower to claim, one after another until one does; alone,
it ends its reign by itself. Then the worker drains, and every link gets its Leave.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, Note, Send, Stopped
from octaskly.core.machines import Machines
from octaskly.core.messages import STOPPING, Transfer
from octaskly.core.model import Moment, NodeId
from octaskly.core.phases import Phase, Reign

SUCCESSORS_ASKED = 3


class Departure:
    """The way out of one node; idle until it is asked for."""

    def __init__(self, machines: Machines) -> None:
        self.is_done = False
        self._timing = machines.settings.timing
        self._journal = machines.journal
        self._members = machines.members
        self._election = machines.election
        self._replication = machines.replication
        self._dispatch = machines.dispatch
        self._worker = machines.worker
        self._ends_s: float | None = None  #: when patience with the worker is over
        self._transfer_s: float | None = None  #: when the chosen successor was asked
        self._asked: list[NodeId] = []

    @property
    def is_asked(self) -> bool:
        """Whether the node is on its way out."""
        return self._ends_s is not None

    def begin(self, drain_s: float, now: Moment) -> list[Effect]:
        """Start to leave; asked a second time, leave at once."""
        if self.is_asked:
            return self._finish("stopped at once", now)
        self._ends_s = now.mono_s + drain_s
        self._election.is_stopping = True
        effects: list[Effect] = [Note("info", "stopping")]
        if self._dispatch.is_reigning:
            self._dispatch.pause_accepting()
        return effects + self._worker.drain(now, is_draining=True)

    def on_time(self, now: Moment) -> list[Effect]:
        """Go on as far as possible."""
        if self._ends_s is None or self.is_done:
            return []
        reign = self._election.reign
        if reign is not None:
            if self._is_awaited(now):
                return []
            self._election.is_handing_over = False
            successor = self._successor(reign, now)
            if successor is not None:
                return self._hand_over(reign, successor, now)
        is_late = now.mono_s >= self._ends_s
        if not is_late and not self._is_clean():
            return []
        return self._finish("drained" if not is_late else "drain over", now)

    def deadline(self) -> float | None:
        """Return when patience ends."""
        if self._ends_s is None or self.is_done:
            return None
        if self._transfer_s is not None and self._election.reign is not None:
            return self._transfer_s + self._timing.yield_s
        return self._ends_s

    def _is_clean(self) -> bool:
        """Whether all that this node ran and wrote is safe elsewhere or on disk."""
        is_yielding = self._election.phase is Phase.YIELDING
        return self._worker.is_idle and self._journal.is_settled and not is_yielding

    def _is_awaited(self, now: Moment) -> bool:
        """Whether the successor that was asked last may still claim."""
        if self._transfer_s is None:
            return False
        return now.mono_s < self._transfer_s + self._timing.yield_s

    def _hand_over(self, reign: Reign, successor: NodeId, now: Moment) -> list[Effect]:
        """Ask the next successor, once the own part of the log is complete."""
        self._transfer_s = None
        if not self._journal.is_settled or not self._replication.is_quiet:
            return []
        self._asked.append(successor)
        self._transfer_s = now.mono_s
        self._election.is_handing_over = True
        transfer = Transfer(reign.epoch, self._journal.vector_items())
        note = Note("info", "handing over", (("peer", successor),))
        return [note, Send(successor, (transfer,))]

    def _successor(self, reign: Reign, now: Moment) -> NodeId | None:
        """Return the best follower that was not asked, unless enough were.

        A standby that holds all is best: the claim need not wait for the log.
        """
        if len(self._asked) >= SUCCESSORS_ASKED:
            return None
        ranked = sorted(
            (not self._replication.level_with(node), view.standing(now), node)
            for node, view in self._members.followers(reign.epoch)
            if view.info.electable and node not in self._asked
        )
        return ranked[0][-1] if ranked else None

    def _finish(self, reason: str, now: Moment) -> list[Effect]:
        self.is_done = True
        effects: list[Effect] = [Note("info", "stopped", (("reason", reason),))]
        effects += self._election.seek("stopped", now)
        for peer in tuple(self._members.peers):
            effects += self._members.disconnect(peer, STOPPING, now)
        return [*effects, Stopped()]
