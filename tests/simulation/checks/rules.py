"""All rules of a world: those that hold after every step, and those at its end.

The rules of retries and arrays are in `tries`.
"""

from __future__ import annotations

from tests.simulation.checks.copies import Copies
from tests.simulation.checks.epochs import (
    EpochWatch,
    one_dispatcher,
    one_writer_per_stream,
)
from tests.simulation.checks.forgetting import Forgetting, forgotten_tasks_stay_away
from tests.simulation.checks.kept import (
    accepted_tasks_match_their_requests,
    acknowledged_results_are_present,
    all_nodes_use_the_same_records,
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
from tests.simulation.checks.reported import reported_outcomes_stay, watch_reports
from tests.simulation.checks.unknown import TakeoverChecks
from tests.simulation.world import World

FINAL = (
    one_dispatcher,
    one_writer_per_stream,
    nothing_accepted_is_lost,
    accepted_tasks_match_their_requests,
    no_phantom_tasks,
    nothing_runs_before_its_parents,
    cancels_are_kept,
    records_are_kept,
    all_nodes_use_the_same_records,
    acknowledged_results_are_present,
    every_accepted_task_is_final,
    one_outcome,
    cancelled_stays_cancelled,
    reported_outcomes_stay,
    forgotten_tasks_stay_away,
    results_are_kept,
)
"""Checks of a world at rest; each raises AssertionError."""


def watch(world: World) -> None:
    """Check a world after every step of a node and at every answer."""
    EpochWatch(world)
    Copies(world)
    TakeoverChecks(world)
    Forgetting(world)
    watch_reports(world)
