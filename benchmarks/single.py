"""What one task costs: alone, in a mesh, and at least, in Python."""

from __future__ import annotations

import random
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks import floor
from benchmarks.measure import BATCH, Row, cpu_s, exchange, throughput
from tests.support.agents import Agent, meshed

PAUSE_S = 0.01  #: before and after each task, so that all of them find cold caches
ALONE_MAX = 1.5  #: times the floor
MESH_MAX = 1.5  #: times a task alone
SUBMISSION = b'{"command":"true"}'


class Way(NamedTuple):
    """A way to run one task, and the processes that take part."""

    run: Callable[[], None]
    pids: tuple[int, ...] = ()


class Cost(NamedTuple):
    """Medians of many single tasks."""

    took_ms: float
    cpu_ms: float  #: without launchers


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Run single tasks each way, in turns, so that other work meets all alike."""
    with ExitStack() as stack:
        for name in ("mesh", "alone", "floor"):
            (folder / name).mkdir(parents=True)
        mesh = stack.enter_context(meshed(folder / "mesh", "ana", "ben", "cleo"))
        alone = stack.enter_context(meshed(folder / "alone", "solo"))
        least = stack.enter_context(floor.serving(folder / "floor"))
        for first in (alone[0], mesh[0]):
            throughput(first, "true", BATCH)  # Launchers start with the first task.
        ways = {
            "floor": Way(lambda: _exchange_once(least, "/")),
            "alone": _way(stack, alone, asked=alone[0]),
            "mesh": _way(stack, mesh, asked=mesh[0]),
            "forwarded": _way(stack, mesh, asked=mesh[1]),
        }
        costs = _measure(ways, turns=100 if quick else 400)
    least_ms, alone_ms = costs["floor"].took_ms, costs["alone"].took_ms
    yield "one task: floor, in Python", f"{least_ms:.2f} ms", "1.00", "", ""
    yield _row("one task, alone", costs["alone"], least_ms, ALONE_MAX, "floor")
    yield _row("one task, two standbys", costs["mesh"], alone_ms, MESH_MAX, "alone")
    took_ms = costs["forwarded"].took_ms
    ratio = f"{took_ms / alone_ms:.2f}"
    yield "the same, asked of a standby", f"{took_ms:.2f} ms", ratio, "", ""
    for name, what in (("alone", "its agent"), ("mesh", "all three agents")):
        cpu_ms = f"{costs[name].cpu_ms:.2f} ms"
        yield f"one task, {name}: CPU of {what}", cpu_ms, "", "", ""


def _row(name: str, cost: Cost, base_ms: float, most: float, base: str) -> Row:
    ratio = cost.took_ms / base_ms
    met = "yes" if ratio <= most else "no"
    return name, f"{cost.took_ms:.2f} ms", f"{ratio:.2f}", f"<= {most} {base}", met


def _way(stack: ExitStack, agents: list[Agent], *, asked: Agent) -> Way:
    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
    connection.connect(asked.ready()["socket"])
    pids = tuple(agent.process.pid for agent in agents)
    return Way(lambda: _exchange_once(connection, "/api/v1/tasks?wait=1"), pids)


def _exchange_once(connection: socket.socket, path: str) -> None:
    """Run a task in one exchange, or in two if it takes very long."""
    ended = exchange(connection, "POST", path, SUBMISSION)
    if ended["exit_code"] is None:
        path = f"/api/v1/tasks/{ended['id']}?wait=10"
        ended = exchange(connection, "GET", path)
    assert ended["exit_code"] == 0


def _measure(ways: Mapping[str, Way], turns: int) -> dict[str, Cost]:
    took_ms: dict[str, list[float]] = {name: [] for name in ways}
    cpu_ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        # Whoever comes after a related one finds warm caches.
        for name, way in random.sample(list(ways.items()), len(ways)):
            before_s = sum(map(cpu_s, way.pids))
            time.sleep(PAUSE_S)
            began_s = time.perf_counter()
            way.run()
            took_ms[name].append((time.perf_counter() - began_s) * 1000)
            time.sleep(PAUSE_S)
            cpu_ms[name].append((sum(map(cpu_s, way.pids)) - before_s) * 1000)
    return {
        name: Cost(statistics.median(took_ms[name]), statistics.median(cpu_ms[name]))
        for name in ways
    }
