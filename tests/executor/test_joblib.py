"""joblib on a mesh: code with `n_jobs` needs no change."""

from __future__ import annotations

import math
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import joblib
import pytest

import octaskly.joblib as backend
from tests.support.agents import TASKS, Agent

cloudpickle.register_pickle_by_value(sys.modules[__name__])

RESULT_S_MAX = 90.0


@pytest.fixture
def _mesh(agents: list[Agent]) -> Iterator[None]:
    """Make joblib use the mesh."""
    with joblib.parallel_config(backend.BACKEND_NAME, state_dir=agents[1].state):
        yield


def fail(number: int) -> int:
    if number == 3:
        raise LookupError(number)
    return number


@pytest.mark.usefixtures("_mesh")
def test_joblib_calls_run_on_the_mesh() -> None:
    """In order, in other processes, as many as the mesh has slots."""
    import os

    results = joblib.Parallel(n_jobs=-1)(
        joblib.delayed(lambda n: (math.sqrt(n), os.environ["OCTASKLY_NODE"]))(number)
        for number in range(12)
    )

    assert [root for root, _ in results] == [math.sqrt(n) for n in range(12)]
    assert {node for _, node in results} <= {"ash", "birch"}
    assert joblib.effective_n_jobs(-1) == 10
    assert joblib.effective_n_jobs(-2) == 9
    assert joblib.effective_n_jobs(3) == 3


@pytest.mark.usefixtures("_mesh")
def test_an_exception_ends_one_joblib_run_but_not_the_next() -> None:
    """It has its original type."""
    run = joblib.Parallel(n_jobs=2)
    with pytest.raises(LookupError):
        run(joblib.delayed(fail)(number) for number in range(6))

    assert run(joblib.delayed(fail)(number) for number in range(3)) == [0, 1, 2]


@pytest.mark.usefixtures("_mesh")
def test_joblib_results_can_be_read_one_by_one() -> None:
    """Also in order of completion."""
    for kind in ("generator", "generator_unordered"):
        run = joblib.Parallel(n_jobs=2, return_as=kind)
        assert sorted(run(joblib.delayed(fail)(n) for n in range(3))) == [0, 1, 2]


@pytest.mark.usefixtures("_mesh")
def test_short_calls_share_tasks(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the first one has told how long they take."""
    monkeypatch.setattr(backend, "TRIAL_S_MAX", RESULT_S_MAX)
    with joblib.parallel_config(
        backend.BACKEND_NAME, state_dir=agents[1].state, labels={"test": "joblib"}
    ):
        results = joblib.Parallel(n_jobs=-1)(
            joblib.delayed(math.sqrt)(number) for number in range(40)
        )

    tasks = agents[0].call("GET", f"{TASKS}?label=test%3Djoblib")[1]["tasks"]
    assert results == [math.sqrt(number) for number in range(40)]
    assert len(tasks) < 10
    assert tasks[0]["call"] == "sqrt(0)"
    assert {task["name"] for task in tasks} == {"sqrt"}
    assert any(task["call"].endswith(" more") for task in tasks)


@pytest.mark.usefixtures("_mesh")
def test_long_calls_run_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the first one has ended."""
    monkeypatch.setattr(backend, "TRIAL_S_MAX", 0.01)

    def meet(number: int) -> int:
        (tmp_path / str(number)).touch()
        while len(list(tmp_path.iterdir())) < 4:
            time.sleep(0.02)
        return number

    assert joblib.Parallel(n_jobs=4)(joblib.delayed(meet)(n) for n in range(4)) == [
        *range(4)
    ]


@pytest.mark.usefixtures("_mesh")
def test_an_argument_that_cannot_be_pickled_ends_a_joblib_run() -> None:
    """Also one in a task of several calls."""
    run = joblib.Parallel(n_jobs=2)
    with pytest.raises(pickle.PicklingError):
        run(joblib.delayed(id)(value) for value in (1, 2, sys._getframe(), 4))
