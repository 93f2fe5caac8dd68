"""All rules of a world: those that hold after every step, and those at its end.

What holds of tasks that are tried again, and of arrays, is apart, in `tries`.
"""

from __future__ import annotations

from tests.simulation.checks.copies import Copies
from tests.simulation.checks.forgetting import Forgetting, what_is_forgotten_stays_away
from tests.simulation.checks.kept import (
    accepted_tasks_are_what_was_asked_for,
    acknowledged_results_are_present,
    all_go_by_the_same_records,
    cancels_are_kept,
    no_phantom_tasks,
    nothing_accepted_is_lost,
    records_are_kept,
    results_are_kept,
)
from tests.simulation.checks.outcomes import (
    cancelled_stays_cancelled,
    every_accepted_task_is_final,
    nothing_runs_before_its_parents,
    one_outcome,
)
from tests.simulation.checks.reigns import Reigns, one_dispatcher, one_writer_per_stream
from tests.simulation.checks.unknown import Heirs
from tests.simulation.world import World

FINAL = (
    one_dispatcher,
    one_writer_per_stream,
    nothing_accepted_is_lost,
    accepted_tasks_are_what_was_asked_for,
    no_phantom_tasks,
    nothing_runs_before_its_parents,
    cancels_are_kept,
    records_are_kept,
    all_go_by_the_same_records,
    acknowledged_results_are_present,
    every_accepted_task_is_final,
    one_outcome,
    cancelled_stays_cancelled,
    what_is_forgotten_stays_away,
    results_are_kept,
)
"""What must hold once a world is at rest; each raises AssertionError."""


def watch(world: World) -> None:
    """Check a world after every step of a node, and at every answer."""
    Reigns(world)
    Copies(world)
    Heirs(world)
    Forgetting(world)
