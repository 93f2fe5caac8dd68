"""Workers that sleep past their lease: what was sent to them meanwhile is not begun."""

from __future__ import annotations

import pytest

from tests.simulation.kinds.failovers import run_slept


@pytest.mark.slow
@pytest.mark.parametrize("pause_s", [3.5, 6.0, 9.5])
@pytest.mark.parametrize("seed", range(4))
def test_worker_that_slept_past_its_lease_starts_no_waiting_order(
    seed: int, pause_s: float
) -> None:
    """The dispatcher has given the task to another worker since."""
    world = run_slept(seed, pause_s)

    assert len(world.commands.started) == 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_worker_that_slept_for_a_moment_leaves_no_task_behind(seed: int) -> None:
    """What it refuses is given out again, and it gets new work."""
    world = run_slept(seed, 1.5)

    assert len(world.commands.started) == 20
