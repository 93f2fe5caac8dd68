"""Many seeds of trouble: every check holds in each, and every planted bug is caught.

`OCTASKLY_SEEDS=1000:9000` runs these seeds too; nightly runs take fresh ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octaskly.core.model import Timing
from tests.simulation.checkers import nothing_runs_twice
from tests.simulation.faults import run_failover, run_flapping, run_seed
from tests.simulation.mutants import MUTANTS, Plant, no_epoch_check_in_worker

HERE = Path(__file__).parent
BLOCK = 10
SEEDS = 60  #: on each change; about 15 s in all
MUTANT_SEEDS = 120  #: within which each planted bug must show

REGRESSIONS = [
    int(line.split("#")[0])
    for line in (HERE / "regressions.txt").read_text().splitlines()
    if line.split("#")[0].strip()
]


def _blocks() -> list[range]:
    blocks = [range(first, first + BLOCK) for first in range(0, SEEDS, BLOCK)]
    more = os.environ.get("OCTASKLY_SEEDS")
    if more:
        first, end = map(int, more.split(":"))
        blocks += [range(n, min(n + BLOCK, end)) for n in range(first, end, BLOCK)]
    return blocks


@pytest.mark.slow
@pytest.mark.parametrize("seeds", _blocks(), ids=lambda seeds: f"from-{seeds[0]}")
def test_whatever_fails_nothing_accepted_is_lost(seeds: range) -> None:
    """All invariants of `checkers` hold, whatever the seeds do to the mesh."""
    for seed in seeds:
        try:
            run_seed(seed)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.slow
@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_seed_that_once_failed_passes(seed: int) -> None:
    """What was found once stays fixed."""
    run_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_mesh_that_falls_apart_again_and_again_loses_nothing(seed: int) -> None:
    """F9: slow links and a full queue, so that much is under way at each split."""
    world = run_flapping(seed)

    assert len(world.accepted) > 500


@pytest.mark.slow
@pytest.mark.parametrize("plant", MUTANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation that finds nothing is only worth something if it could."""
    plant(monkeypatch)
    hunt = run_flapping if plant is no_epoch_check_in_worker else run_seed

    def find() -> None:
        for seed in range(MUTANT_SEEDS):
            hunt(seed)

    with pytest.raises(AssertionError):
        find()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_failover_runs_nothing_twice_where_the_worker_survives(seed: int) -> None:
    """A new dispatcher waits for workers to say what they still run."""
    nothing_runs_twice(run_failover(seed, is_graceful=False))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_graceful_hand_over_runs_nothing_twice(seed: int) -> None:
    """Work goes on where it is; the new dispatcher adopts it."""
    world = run_failover(seed, is_graceful=True)

    nothing_runs_twice(world)
    assert not world.refused
    assert len(world.started) == 20


@pytest.mark.slow
def test_without_the_adopt_window_a_hand_over_runs_tasks_twice() -> None:
    """The planted bug for the rule above: everything is queued again at once."""

    def find() -> None:
        for seed in range(20):
            impatient = Timing(adopt_s=0.0)
            world = run_failover(seed, is_graceful=True, timing=impatient)
            nothing_runs_twice(world)

    with pytest.raises(AssertionError, match="twice"):
        find()


@pytest.mark.slow
def test_a_seed_does_the_same_under_any_hash_seed() -> None:
    """Otherwise no failure could be replayed."""
    script = (
        "from tests.simulation.faults import run_seed;"
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
            timeout=50,
        ).stdout
        for hash_seed in ("1", "2")
    ]

    assert runs[0] == runs[1]
    assert runs[0].split()[0] == run_seed(3).trace_hash()
