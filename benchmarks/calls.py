"""Calls of Python: what one costs, and how many a second, beside what one would use.

Everything runs on this machine with two processes at a time; a mesh has more machines,
and then the same share of each.
"""

from __future__ import annotations

import pickle
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle

from benchmarks.measure import Row
from octaskly.executor import Executor as MeshExecutor
from tests.support.agents import running, until_nodes

WORKERS = 2
ARRAY_BYTES = 20_000_000

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # It is on no worker.


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure each executor in turn."""
    count = 2_000 if quick else 20_000
    with ProcessPoolExecutor(WORKERS) as pool:
        yield from _figures("ProcessPoolExecutor", pool, count)
    yield from _dask(count)
    with running(folder, "solo", extra=("--slots", str(WORKERS))) as (agent,):
        until_nodes(agent, 1)
        with MeshExecutor(state_dir=agent.state) as mesh:
            yield from _figures("Octaskly", mesh, count)
            yield from _shared(mesh)


def _figures(name: str, executor: Any, count: int) -> Iterator[Row]:
    executor.submit(_double, 1).result()  # Processes start with the first call.
    times = [_timed_components(executor) for _ in range(30)]
    one_ms = statistics.median(times) * 1000
    yield f"{name}: one call, there and back", f"{one_ms:.1f} ms", "", "", ""
    for size in (1, 100, 1000):
        calls = min(count, 200 * size) if name == "Octaskly" else count
        rate = _rate(executor, calls, size)
        yield f"{name}: map, chunks of {size}", f"{rate:.0f}/s", "", "", ""


def _dask(count: int) -> Iterator[Row]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.submit(_double, 1).result()
        times = []
        for _ in range(30):
            begin = time.perf_counter()
            client.submit(_double, 1, pure=False).result()
            times.append(time.perf_counter() - begin)
        one_ms = statistics.median(times) * 1000
        yield "Dask: one call, there and back", f"{one_ms:.1f} ms", "", "", ""
        few = min(count, 5000)
        begin = time.perf_counter()
        client.gather(client.map(_double, range(few), pure=False))
        rate = few / (time.perf_counter() - begin)
        yield "Dask: map", f"{rate:.0f}/s", "", "", ""


def _shared(executor: Executor) -> Iterator[Row]:
    """How long calls take that share a large argument, from the second on."""
    data = _FailedMembers(bytearray(ARRAY_BYTES))
    executor.submit(_length, data).result()
    begin = time.perf_counter()
    sizes = list(executor.map(_length, [data] * 10))
    each_ms = (time.perf_counter() - begin) / len(sizes) * 1000
    name = f"Octaskly: a call that shares {ARRAY_BYTES // 1_000_000} MB with others"
    yield name, f"{each_ms:.0f} ms", "", "", ""


def _timed_components(executor: Executor) -> float:
    begin = time.perf_counter()
    executor.submit(_double, 1).result()
    return time.perf_counter() - begin


def _rate(executor: Executor, count: int, size: int) -> float:
    begin = time.perf_counter()
    total = sum(executor.map(_double, range(count), chunksize=size))
    assert total == count * (count - 1)
    return count / (time.perf_counter() - begin)


def _double(number: int) -> int:
    return number * 2


class _FailedMembers:
    """Bytes that leave a pickle as a buffer of their own, as those of NumPy do."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _FailedMembers, (pickle.PickleBuffer(self.data),)


def _length(array: _FailedMembers) -> int:
    return len(array.data)
