"""joblib on a mesh: code with `n_jobs` needs no change."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import cloudpickle
import joblib
import pytest

import octaskly.joblib as backend
from tests.support.agents import Agent

cloudpickle.register_pickle_by_value(sys.modules[__name__])


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
