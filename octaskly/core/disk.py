"""What it means that the disk of this node takes no more writes.

A dispatcher that cannot write hands over to a standby that holds everything; a
follower says so, and is neither standby nor successor until its disk works again.
"""

from __future__ import annotations

import math

from octaskly.core.effects import Effect, Note
from octaskly.core.events import DiskChanged
from octaskly.core.machines import Machines
from octaskly.core.model import Moment

RETRY_S = 5.0  #: before standbys that did not take over are asked again


class DiskCare:
    """The state of this node's disk, and the hand-over when it fails."""

    def __init__(self, machines: Machines) -> None:
        self._candidacy = machines.candidacy
        self._election = machines.election
        self._dispatch = machines.dispatch
        self._handover = machines.handover
        self._asks_s = 0.0  #: no standby is asked before

    def on_changed(self, event: DiskChanged, now: Moment) -> list[Effect]:
        """The disk fails, or works again."""
        if not self._candidacy.take_disk(is_failing=event.is_failing):
            return []
        self._asks_s = now.mono_s
        if event.is_failing:
            fields = (("reason", event.why),) if event.why else ()
            return [Note("warning", "disk failing", fields)]
        effects: list[Effect] = [Note("info", "disk well")]
        if self._candidacy.is_withdrawn:
            return effects
        return effects + self._reign_on(now)

    def on_time(self, now: Moment) -> list[Effect]:
        """Hand the reign over while the disk fails."""
        candidacy = self._candidacy
        is_idle = not candidacy.is_disk_failing or candidacy.is_withdrawn
        if is_idle or self._election.reign is None or now.mono_s < self._asks_s:
            return []
        effects = self._handover.step(now, must_be_level=True)
        if effects is None:
            self._asks_s = now.mono_s + RETRY_S
            return self._reign_on(now)
        # So that the standby can draw level.
        self._dispatch.pause_accepting()
        return effects

    def _reign_on(self, now: Moment) -> list[Effect]:
        """Nobody took over, or nobody needs to any more."""
        self._handover.reset()
        return self._dispatch.resume_accepting(now)

    def deadline(self) -> float:
        """Return when `on_time` has something to do."""
        if not self._candidacy.is_disk_failing or self._election.reign is None:
            return math.inf
        return self._handover.deadline() or self._asks_s
