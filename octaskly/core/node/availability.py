"""Whether a node takes work: what operators tell it, and what its machine lacks.

An order is in force at once, and answered when it is kept: a machine that was drained
for a repair stays drained through its restarts. A node whose disk or memory is short,
or on which no launcher starts, takes no work until that is over, and says so.
"""

from __future__ import annotations

import math

from octaskly.core.effects import Answer, Effect, Note
from octaskly.core.events import DiskChanged, LoadSampled, SteeringAsked
from octaskly.core.model.ids import Moment
from octaskly.core.model.nodes import Stance
from octaskly.core.node.components import Machines
from octaskly.core.replies import Steered

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


class Helm:
    """What changes the stance of one node."""

    def __init__(self, machines: Machines) -> None:
        self._journal = machines.journal
        self._worker = machines.worker

    def on_asked(self, event: SteeringAsked, now: Moment) -> list[Effect]:
        """Do as an operator says; an order that changes nothing is fine, too."""
        stance = self._worker.stance
        hold = stance.hold.steered(event.steering)
        effects: list[Effect] = []
        if hold != stance.hold:
            fields = (("order", event.steering.value), ("by", event.by))
            effects = [Note("info", "node steered", fields)]
            effects += self._worker.take_stance(stance.steered(hold), now)
            effects.append(self._journal.save(hold=hold))

        def kept(_: Moment) -> list[Effect]:
            steered = Steered(self._worker.stance.state, self._worker.running)
            return [Answer(event.ticket, steered)]

        return effects + self._journal.when_durable(kept, now)

    def on_load(self, event: LoadSampled, now: Moment) -> list[Effect]:
        """Take no work while what runs stands still for lack of memory.

        Nor while nothing would begin: what is given back after a while each time is
        late, and other nodes could have run it.
        """
        stance = self._worker.stance.sampled(event.load.stalled_percent)
        failing = event.are_launchers_failing
        return self._endure(stance.on_launchers(are_failing=failing), now)

    def on_disk(self, now: Moment, *, is_failing: bool) -> list[Effect]:
        """Take no work while its results could not be kept."""
        stance = self._worker.stance.on_disk(is_failing=is_failing)
        return self._endure(stance, now)

    def _endure(self, stance: Stance, now: Moment) -> list[Effect]:
        before = self._worker.stance
        effects = self._worker.take_stance(stance, now)
        if stance.strain is before.strain:
            return effects
        if stance.strain is None:
            return [*effects, Note("info", "takes work again")]
        fields = (("short_of", stance.strain.value),)
        return [*effects, Note("warning", "takes no work", fields)]
