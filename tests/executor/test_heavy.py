"""Tests with gigabytes, a failover or scikit-learn, for `make soak`."""

from __future__ import annotations

import pickle
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import psutil
import pytest

import octaskly
import octaskly.joblib
from tests.support.agents import TASKS, Agent, meshed, until

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

MIB = 1 << 20


@pytest.fixture
def three() -> Iterator[list[Agent]]:
    """A separate mesh, whose nodes may die."""
    names = ("ash", "birch", "cedar")
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-") as folder,
        meshed(Path(folder), *names, extra=("--slots", "2")) as agents,
    ):
        yield agents


class Array:
    """Bytes that leave a pickle as a buffer of their own, like NumPy's."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Array, (pickle.PickleBuffer(self.data),)


def memory_mb(agents: list[Agent]) -> list[float]:
    return [psutil.Process(a.process.pid).memory_info().rss / MIB for a in agents]


def test_hundreds_of_megabytes_bypass_the_agents_in_both_directions(
    agents: list[Agent],
) -> None:
    """They go through disks; data beyond the bound fails with an error."""

    def turned(array: Array) -> Array:
        array.data[0] = 7
        return array

    with octaskly.Executor(state_dir=agents[1].state) as executor:
        executor.submit(turned, Array(bytearray(1))).result(60)
        before = memory_mb(agents)
        data = Array(bytearray(400 * MIB))
        result = executor.submit(turned, data).result(200)
        assert (len(result.data), result.data[0]) == (400 * MIB, 7)
        error = executor.submit(lambda: Array(bytearray(2048 * MIB))).exception(100)
        assert isinstance(error, octaskly.ResultLost)
        assert "the result has 21474" in str(error)
        assert f"a node keeps at most {1024 * MIB} of a task" in str(error)
        assert executor.submit(pow, 2, 8).result(60) == 256
    grown = [now - then for now, then in zip(memory_mb(agents), before, strict=True)]
    assert max(grown) < 48, grown


def test_calls_outlive_the_dispatcher(three: list[Agent]) -> None:
    """It is killed while calls run, wait, and are still to be submitted."""

    def slow(number: int) -> int:
        time.sleep(0.5)
        return number

    with octaskly.Executor(12, state_dir=three[1].state) as executor:
        futures = [executor.submit(slow, number) for number in range(30)]
        until(lambda: futures[0].running() or futures[0].done(), "the first call runs")
        three[0].process.kill()

        assert [future.result(120) for future in futures] == list(range(30))


def test_scikit_learn_uses_the_mesh_unchanged(three: list[Agent]) -> None:
    """`cross_val_score(n_jobs=-1)` gives the same scores, made on all three nodes."""
    why = "scikit-learn comes with `make soak`"
    datasets = pytest.importorskip("sklearn.datasets", reason=why)
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    X, y = datasets.make_classification(2000, 40, random_state=1)  # noqa: N806 - as all do
    model = RandomForestClassifier(n_estimators=10, random_state=1)
    alone = cross_val_score(model, X, y, cv=6)
    with joblib.parallel_config("octaskly", state_dir=three[1].state):
        spread = cross_val_score(model, X, y, cv=6, n_jobs=-1)

    assert list(spread) == list(alone)
    tasks = three[0].call("GET", TASKS)[1]["tasks"]
    assert {task["status"] for task in tasks} == {"completed"}
    assert {task["worker_id"] for task in tasks} == {"ash", "birch", "cedar"}
