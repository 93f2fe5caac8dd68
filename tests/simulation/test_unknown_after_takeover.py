"""A standby in sync until the end knows at once that a task is unknown."""

from __future__ import annotations

import pytest

from tests.simulation.machine import Machine
from tests.simulation.world import World

AT_ONCE_S = 1.0


@pytest.mark.parametrize("seed", range(5))
def test_unknown_task_is_404_right_after_a_takeover(seed: int) -> None:
    """The dispatcher died; all tasks that it confirmed are here, so none is missing."""
    world = World(seed, nodes=3)
    world.start_all()
    assert world.run_until(world.is_settled, 30.0)
    (lost,) = world.dispatchers()
    world.clients.submit(lost, 3)
    world.run(5.0)
    said: list[Machine] = []

    world.crash(lost)
    assert world.run_until(world.is_settled, 10.0)
    (heir,) = world.dispatchers()
    world.clients.on_unknown(world.machines[heir], said.append)
    world.run(AT_ONCE_S)

    assert said == [world.machines[heir]]
