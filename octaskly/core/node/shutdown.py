"""How a node leaves on purpose: hand over, finish what runs, say goodbye.

A dispatcher asks its best follower to claim, one after another until one does; alone,
it ends its reign by itself. Then the worker drains; what still runs when patience is
over is ended and given back. At last every link gets its Leave.
"""

from __future__ import annotations

import math

from octaskly.core.effects import Effect, Note, Stopped
from octaskly.core.election.phases import Yielding
from octaskly.core.model.ids import Moment
from octaskly.core.node.components import Machines
from octaskly.core.protocol.messages import STOPPING

GONE_S = 6.0  #: beyond the grace, for processes to go and results to be kept
SETTLE_S = 2.0  #: for what is on its way to the disk when patience is over


class Departure:
    """The way out of one node; idle until it is asked for."""

    def __init__(self, machines: Machines) -> None:
        self.is_asked = False  #: the node is on its way out
        self.is_done = False
        self._journal = machines.journal
        self._members = machines.members
        self._candidacy = machines.candidacy
        self._election = machines.election
        self._handover = machines.handover
        self._dispatch = machines.dispatch
        self._worker = machines.worker
        self._ends_s: float | None = None  #: when patience with the worker is over
        self._kill_s = machines.settings.timing.kill_grace_s + GONE_S
        self._has_given_up = False
        self._is_late = False

    def begin(self, drain_s: float, now: Moment) -> list[Effect]:
        """Start to leave; asked a second time, leave at once."""
        if self.is_asked:
            return self._finish("stopped at once", now)
        if self._worker.stance.hold.is_paused:
            drain_s = 0.0  # What is frozen does not end.
        self.is_asked = True
        self._ends_s = now.mono_s + drain_s
        self._candidacy.withdraw()
        # Standbys that were asked while the disk failed may be ready by now.
        self._handover.reset()
        effects: list[Effect] = [Note("info", "stopping", (("drain_s", drain_s),))]
        if self._dispatch.is_reigning:
            self._dispatch.pause_accepting()
        stance = self._worker.stance.leaving()
        return effects + self._worker.take_stance(stance, now)

    def on_time(self, now: Moment) -> list[Effect]:
        """Go on as far as possible."""
        if self._ends_s is None or self.is_done:
            return []
        self._is_late = is_late = now.mono_s >= self._ends_s
        if is_late and not self._has_given_up:
            self._has_given_up = True
            # Others run it again, but not beside what is left of it here.
            if ended := self._worker.give_up():
                self._ends_s += self._kill_s
                return ended
        # Without a successor answers would leave that one disk alone holds.
        has_waited = now.mono_s >= self._ends_s + SETTLE_S
        is_stuck = has_waited and not self._journal.is_settled
        if self._election.reign is not None and not is_stuck:
            effects = self._handover.step(now)
            if effects is not None:
                return effects
        if not is_late and not self._is_clean():
            return []
        is_over = is_late or self._has_given_up
        return self._finish("drain over" if is_over else "drained", now)

    def deadline(self) -> float:
        """Return when patience ends."""
        if self._ends_s is None or self.is_done:
            return math.inf
        if self._election.reign is None:
            return self._ends_s
        patience_s = SETTLE_S if self._is_late else 0.0
        return self._handover.deadline() or self._ends_s + patience_s

    def _is_clean(self) -> bool:
        """Whether all that this node ran and wrote is safe elsewhere or on disk."""
        is_yielding = isinstance(self._election.phase, Yielding)
        return self._worker.is_idle and self._journal.is_settled and not is_yielding

    def _finish(self, reason: str, now: Moment) -> list[Effect]:
        self.is_done = True
        effects: list[Effect] = [Note("info", "stopped", (("reason", reason),))]
        self._election.seek("stopped", now)  # In silence: it seeks nothing any more.
        for peer in tuple(self._members.peers):
            effects += self._members.disconnect(peer, STOPPING, now)
        return [*effects, Stopped()]
