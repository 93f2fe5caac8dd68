"""Many seeds of trouble: every check holds in each of them.

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
from tests.simulation.kinds.failing import run_cancelled, run_cut_off, run_failing
from tests.simulation.kinds.failovers import (
    run_backlog,
    run_bare,
    run_belated,
    run_crash,
    run_given_up,
    run_hand_over,
    run_quiet,
    run_short,
    run_starved,
)
from tests.simulation.kinds.snapshots import (
    run_half_followed,
    run_half_joined,
    run_half_left,
    run_newcomers,
)
from tests.simulation.kinds.splits import run_flapping, run_same_names, run_unseen
from tests.simulation.kinds.tormented import (
    run_seed,
    run_steered,
    run_unordered,
    run_updated,
)
from tests.simulation.world import World

HERE = Path(__file__).parent
SEEDS = range(500)  #: on each change

REGRESSIONS = [
    words
    for line in (HERE / "regressions.txt").read_text().splitlines()
    if (words := line.split("#")[0].split())
]


@pytest.mark.slow
@pytest.mark.alone  # On all cores, and `make test` says how long it took.
@pytest.mark.parametrize("seeds", [SEEDS], ids=[f"{len(SEEDS)} seeds"])
def test_whatever_fails_nothing_accepted_is_lost(seeds: range) -> None:
    """All rules of `checks` hold, whatever the seeds do to the mesh."""
    assert not list(failures(seeds))


@pytest.mark.slow
@pytest.mark.parametrize("words", REGRESSIONS, ids=" ".join)
def test_a_seed_that_once_failed_passes(words: list[str]) -> None:
    """What was found once stays fixed."""
    seed, kind = words if len(words) > 1 else (*words, "seed")
    run_of(kind)(int(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_a_mesh_that_falls_apart_again_and_again_loses_nothing(seed: int) -> None:
    """F9: slow links and a full queue, so that much is under way at each split."""
    world = run_flapping(seed)

    assert len(world.clients.accepted) > 500


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(10), 11, 22])
def test_nodes_that_are_drained_and_paused_lose_nothing(seed: int) -> None:
    """Through crashes and splits, and whatever operators say meanwhile."""
    world = run_steered(seed)

    assert any(note.event == "availability changed" for note in notes(world))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_programs_are_updated_one_after_another_and_nothing_is_lost(seed: int) -> None:
    """Older ones get nothing that they cannot read, and give way to newer ones."""
    run_updated(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_tasks_that_fail_are_tried_as_often_as_they_ask_for(seed: int) -> None:
    """And arrays count their members alike on all nodes, whatever fails besides."""
    run_failing(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_nothing_runs_on_of_an_array_that_was_cancelled_with_what_runs(
    seed: int,
) -> None:
    """Though who cancelled it is dead, and a worker was away at that moment."""
    run_cut_off(seed)


def notes(world: World) -> list[LogLine]:
    """Return what all nodes noted."""
    return [note for machine in world.machines.values() for _, note in machine.notes]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_streams_may_come_in_any_order(seed: int) -> None:
    """A floor that comes before what it builds on waits for that."""
    run_unordered(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_what_came_with_half_a_snapshot_is_told_to_all(seed: int) -> None:
    """Though the log that it came from is gone for ever."""
    world = run_half_joined(seed)

    assert world.storage.snapshots == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_what_came_with_half_a_snapshot_outlives_who_told_it(seed: int) -> None:
    """Or its heir says that it cannot tell yet."""
    run_half_left(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_newcomers_whose_snapshots_break_off_lose_nothing(seed: int) -> None:
    """Whoever gave them is crashed, or loses its disk, and then they do."""
    run_newcomers(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_what_came_with_half_a_snapshot_is_known_to_any_dispatcher(seed: int) -> None:
    """No log says that it was accepted, so the node that has it has to."""
    run_half_followed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_halves_of_a_split_may_give_one_name_to_different_tasks(seed: int) -> None:
    """Each is kept and comes to an end of its own."""
    world = run_same_names(seed)

    tasks = {task for task, _ in world.clients.wanted}
    assert len(tasks) > len({task_name(task) for task in tasks})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_mesh_without_faults_runs_each_task_once(seed: int) -> None:
    """G4: at least once in general, exactly once if nothing fails."""
    world = run_quiet(seed)

    assert len(world.clients.accepted) == 80
    assert len(world.commands.started) == 80


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_failover_runs_nothing_twice_where_the_worker_survives(seed: int) -> None:
    """A new dispatcher waits for workers to say what they still run."""
    run_crash(seed)
    run_bare(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_failover_runs_nothing_twice_that_has_just_ended(seed: int) -> None:
    """That a task ended may be known to the standby that did not succeed alone."""
    run_short(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_starved_dispatcher_s_ends_are_awaited(seed: int) -> None:
    """They come late: until then, what a worker does not list may have ended."""
    run_starved(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_what_waits_may_have_begun_as_a_slow_node_knows(seed: int) -> None:
    """So a new dispatcher starts none of it while that node still tells."""
    run_backlog(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_who_was_told_of_a_cancel_is_not_told_of_a_success_later(seed: int) -> None:
    """Though the task had just ended, and the dispatcher that said so is dead."""
    run_cancelled(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_late_result_brings_nothing_back_that_is_forgotten(seed: int) -> None:
    """Though who hears it never had the task in hand."""
    world = run_belated(seed)

    assert len(world.storage.forgotten) == 6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_standby_that_was_given_up_unheard_calls_no_task_unknown(seed: int) -> None:
    """Its dispatcher died with what it had answered for alone."""
    run_given_up(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_halves_of_a_split_meet_again_without_multicast(seed: int) -> None:
    """G6: each end remembers where the other one was."""
    run_unseen(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_graceful_hand_over_runs_nothing_twice(seed: int) -> None:
    """Work goes on where it is; the new dispatcher adopts it."""
    world = run_hand_over(seed)

    assert not world.clients.refused
    assert len(world.commands.started) == 20


@pytest.mark.slow
def test_a_seed_does_the_same_under_any_hash_seed() -> None:
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
