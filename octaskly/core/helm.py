"""Whether a node takes work: what operators tell it, and what its machine lacks.

An order is in force at once, and answered when it is kept: a machine that was drained
for a repair stays drained through its restarts. A node whose disk or memory is short,
or on which no launcher starts, takes no work until that is over, and says so.
"""

from __future__ import annotations

from octaskly.core.effects import Answer, Effect, Note
from octaskly.core.events import LoadSampled, SteeringAsked
from octaskly.core.machines import Machines
from octaskly.core.model import Moment
from octaskly.core.replies import Steered
from octaskly.core.stance import Stance


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
