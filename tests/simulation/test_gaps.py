"""Time without an accepted task after faults that stop the whole mesh at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.kinds import gaps
from tests.simulation.world import World

ASLEEP = (gaps.run_asleep, gaps.run_frozen)
PARTLY_LINKED = (gaps.run_ring, gaps.run_ringed)


@pytest.mark.slow
@pytest.mark.parametrize("run", ASLEEP)
@pytest.mark.parametrize("seed", range(2))
def test_mesh_that_slept_accepts_tasks_within_five_seconds(
    run: Callable[[int], World], seed: int
) -> None:
    """Through each node, counted from when the last one woke."""
    run(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_first_machine_to_wake_accepts_tasks_within_five_seconds(seed: int) -> None:
    """It has looked for the others in vain, so it does not wait for a standby, too."""
    gaps.run_waking(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_mesh_that_was_killed_while_it_started_accepts_tasks_soon(seed: int) -> None:
    """Within five seconds after the last process has started."""
    gaps.run_killed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("run", PARTLY_LINKED)
@pytest.mark.parametrize("seed", range(3))
def test_each_node_of_a_ring_accepts_tasks(
    run: Callable[[int], World], seed: int
) -> None:
    """A node out of the dispatcher's reach passes requests to a peer that hears it."""
    run(seed)
