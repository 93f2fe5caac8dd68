"""What operators tell a node: drain and resume, pause and unpause.

An order is in force at once, and answered when it is kept: a machine that was drained
for a repair stays drained through its restarts.
"""

from __future__ import annotations

from octaskly.core.effects import Answer, Effect, Note, Steered
from octaskly.core.events import SteeringAsked
from octaskly.core.machines import Machines
from octaskly.core.model import Moment


class Helm:
    """The way of an operator's order through one node."""

    def __init__(self, machines: Machines) -> None:
        self._journal = machines.journal
        self._worker = machines.worker

    def on_asked(self, event: SteeringAsked, now: Moment) -> list[Effect]:
        """Do as an operator says; an order that changes nothing is fine, too."""
        hold = self._worker.hold.steered(event.steering)
        effects: list[Effect] = []
        if hold != self._worker.hold:
            fields = (("order", event.steering.value), ("by", event.by))
            effects = [Note("info", "node steered", fields)]
            effects += self._worker.steer(hold, now)
            effects.append(self._journal.save(hold=hold))

        def kept(_: Moment) -> list[Effect]:
            steered = Steered(self._worker.state, self._worker.running)
            return [Answer(event.ticket, steered)]

        return effects + self._journal.when_durable(kept, now)
