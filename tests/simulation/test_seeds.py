"""Many seeds of faults: every check holds in each of them.

`make soak` runs many more, and fresh ones, by `hunt`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octaskly.core.effects import LogLine
from octaskly.core.model.ids import task_name
from tests.simulation.hunt import failures, run_of
from tests.simulation.kinds.failing import (
    run_cancelled,
    run_cut_off,
    run_failing,
    run_freed,
    run_reprioritized,
)
from tests.simulation.kinds.failovers import (
    run_backlog,
    run_bare,
    run_belated,
    run_crash,
    run_given_up,
    run_hand_over,
    run_quiet,
    run_returned,
    run_short,
    run_starved,
    run_two_lost_logs,
)
from tests.simulation.kinds.holdings import run_holdings
from tests.simulation.kinds.ranges import run_ranges
from tests.simulation.kinds.snapshots import (
    run_half_followed,
    run_half_joined,
    run_half_left,
    run_newcomers,
)
from tests.simulation.kinds.splits import run_flapping, run_same_names, run_unseen
from tests.simulation.kinds.tormented import (
    run_seed,
    run_skewed,
    run_steered,
    run_unordered,
    run_updated,
)
from tests.simulation.world import World

HERE = Path(__file__).parent
SEEDS = range(500)  #: run on each change

REGRESSIONS = [
    words
    for line in (HERE / "regressions.txt").read_text().splitlines()
    if (words := line.split("#")[0].split())
]


@pytest.mark.slow
@pytest.mark.alone  # On all cores; `make test` reports the duration.
@pytest.mark.parametrize("seeds", [SEEDS], ids=[f"{len(SEEDS)} seeds"])
def test_accepted_tasks_survive_any_fault(seeds: range) -> None:
    """All rules of `checks` hold, whatever faults the seeds draw."""
    assert not list(failures(seeds))


@pytest.mark.slow
@pytest.mark.parametrize("words", REGRESSIONS, ids=" ".join)
def test_seed_that_once_failed_passes(words: list[str]) -> None:
    """A seed that once found a bug stays fixed."""
    seed, kind = words if len(words) > 1 else (*words, "seed")
    run_of(kind)(int(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(3), 941548973, 941548991, 941549014])
def test_priorities_change_while_nodes_fail(seed: int) -> None:
    """The latest change counts on all disks, and turns match what runs and waits."""
    run_reprioritized(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_mesh_that_splits_repeatedly_loses_nothing(seed: int) -> None:
    """F9: slow links and a full queue, so that much is under way at each split."""
    world = run_flapping(seed)

    assert len(world.clients.accepted) > 500


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(10), 11, 22])
def test_drained_and_paused_nodes_lose_nothing(seed: int) -> None:
    """Despite crashes, splits and operators' commands."""
    world = run_steered(seed)

    assert any(note.event == "availability changed" for note in notes(world))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_rolling_upgrade_loses_nothing(seed: int) -> None:
    """Older programs get no entries that they cannot read, and yield to newer ones."""
    run_updated(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_wrong_clocks_make_no_task_older(seed: int) -> None:
    """Ages are checked by the time of the world."""
    run_skewed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_failing_tasks_are_tried_as_often_as_requested(seed: int) -> None:
    """All nodes agree on an array's counts, whatever else fails."""
    run_failing(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [56, 141])
def test_no_task_runs_without_the_stdin_that_its_node_freed(seed: int) -> None:
    """In these worlds a dispatcher gets a freed submission before its end."""
    run_freed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_no_member_of_a_force_cancelled_array_keeps_running(
    seed: int,
) -> None:
    """The node that cancelled is dead, and a worker was away at that moment."""
    run_cut_off(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_dispatcher_knows_which_node_has_which_blob(seed: int) -> None:
    """After each failover, restart and broken link, though no log has it."""
    run_holdings(seed)


def notes(world: World) -> list[LogLine]:
    """Return the notes of all nodes."""
    return [note for machine in world.machines.values() for _, note in machine.notes]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_streams_may_arrive_in_any_order(seed: int) -> None:
    """A floor that arrives before its prerequisites waits for them."""
    run_unordered(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_staged_snapshot_reaches_all_nodes_and_half_of_one_none(seed: int) -> None:
    """Even if the log that it came from is lost, and the receiver dies meanwhile."""
    run_half_joined(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_staged_snapshot_outlives_its_sender_and_its_receiver(seed: int) -> None:
    """Otherwise the successor says that it cannot tell yet."""
    run_half_left(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_newcomers_with_interrupted_snapshots_lose_nothing(seed: int) -> None:
    """The sender crashes or loses its disk, and then the newcomers do."""
    run_newcomers(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_any_dispatcher_knows_a_snapshot_that_was_staged(seed: int) -> None:
    """Its receiver died while it merged the rows, and follows after its return."""
    run_half_followed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_halves_of_a_split_may_use_one_name_for_different_tasks(seed: int) -> None:
    """Each task is kept and ends on its own."""
    world = run_same_names(seed)

    tasks = {task for task, _ in world.clients.wanted}
    assert len(tasks) > len({task_name(task) for task in tasks})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_mesh_without_faults_runs_each_task_once(seed: int) -> None:
    """G4: at least once in general, exactly once without faults."""
    world = run_quiet(seed)

    assert len(world.clients.accepted) == 80
    assert len(world.commands.started) == 80


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_failover_runs_no_task_twice_if_its_worker_survives(seed: int) -> None:
    """A new dispatcher waits for workers to report their running tasks."""
    run_crash(seed)
    run_bare(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_failover_runs_no_task_twice_that_has_just_ended(seed: int) -> None:
    """Perhaps only the standby that did not succeed knows that a task ended."""
    run_short(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_new_dispatcher_waits_for_ends_from_a_slow_standby(seed: int) -> None:
    """Until they come, a task that is missing from a worker's list may have ended."""
    run_starved(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_attempts_that_a_returning_worker_does_not_list_may_be_in_its_log(
    seed: int,
) -> None:
    """They are not taken for lost before that log is read."""
    run_returned(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_later_log_of_an_earlier_epoch_changes_no_reported_end(seed: int) -> None:
    """The dispatcher repeats the first end in its own epoch before it reports it."""
    run_two_lost_logs(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_new_dispatcher_waits_for_starts_known_to_a_slow_node(seed: int) -> None:
    """So a new dispatcher starts no waiting task while that node still sends."""
    run_backlog(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_confirmed_cancel_never_turns_into_a_success(seed: int) -> None:
    """The task had just ended, and the dispatcher that confirmed the cancel is dead."""
    run_cancelled(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_members_of_ranges_end_as_single_tasks_do(seed: int) -> None:
    """Whatever fails, is cancelled or moves while workers run and report them."""
    run_ranges(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_late_result_brings_no_forgotten_task_back(seed: int) -> None:
    """The node that receives it never had the task."""
    world = run_belated(seed)

    assert len(world.storage.forgotten) == 6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_standby_that_was_dropped_unawares_calls_no_task_unknown(seed: int) -> None:
    """Its dispatcher died with tasks that it had confirmed alone."""
    run_given_up(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_split_halves_meet_again_without_multicast(seed: int) -> None:
    """G6: each half remembers the addresses of the other one."""
    run_unseen(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_graceful_handover_runs_no_task_twice(seed: int) -> None:
    """Work goes on where it is; the new dispatcher adopts it."""
    world = run_hand_over(seed)

    assert not world.clients.refused
    assert len(world.commands.started) == 20


@pytest.mark.slow
def test_seed_repeats_its_run_under_any_hash_seed() -> None:
    """Otherwise no failure could be replayed."""
    script = (
        "from tests.simulation.kinds.tormented import run_seed;"
        "print(run_seed(3).trace_hash(), run_seed(12).trace_hash())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=HERE.parent.parent,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]

    assert runs[0] == runs[1]
    assert runs[0].split()[0] == run_seed(3).trace_hash()
