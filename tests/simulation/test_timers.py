"""That a node may wait until something is due, as its machines tell."""

from __future__ import annotations

import pytest

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Effect
from octaskly.core.election.phases import Discovering, Following
from octaskly.core.election.timeouts import Timeouts
from octaskly.core.membership.address_book import AddressBook
from octaskly.core.model.ids import Moment
from octaskly.core.node.self_fencing import SelfFencing
from octaskly.core.node.timers import Timers
from octaskly.core.worker.worker import Worker
from tests.simulation.kinds.tormented import run_seed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_no_machine_has_anything_to_do_before_the_time_it_tells(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be done late, as nobody is asked before that."""
    on_time = Timers.on_time

    def checked(self: Timers, now: Moment) -> list[Effect]:
        machines: list[AddressBook | SelfFencing | Dispatcher | Worker | Timeouts]
        machines = [
            self._address_book,
            self._self_fencing,
            self._dispatcher,
            self._worker,
        ]
        if not isinstance(self._election.phase, Following | Discovering):
            machines.append(self._timeouts)  # Else it looks around at each tick, too.
        for machine in machines:
            if now.mono_s < machine.deadline():
                assert machine.on_time(now) == [], machine
        return on_time(self, now)

    monkeypatch.setattr(Timers, "on_time", checked)

    run_seed(seed)
