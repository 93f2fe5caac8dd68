"""What a call costs: one task from submission to result, by each way in."""

from __future__ import annotations

import asyncio
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

import octaskly
from benchmarks.measure import Row
from tests.support.agents import Agent, request, running, until_nodes

TASKS = "/api/v1/tasks"


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Take the ways in turns, so that all see the same machine."""
    rounds, calls = (3, 20) if quick else (10, 50)
    with running(folder, "solo", extra=("--slots", "2")) as (agent,):
        until_nodes(agent, 1)
        ways = _ways(agent)
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                count = max(calls // 10, 3) if name == COMMAND else calls
                cpu_s = _cpu_s()
                wall_s = way(count)
                spent_s = _cpu_s() - cpu_s
                took[name].append((wall_s / count * 1000, spent_s / count * 1000))
        raw_ms = statistics.median(spent for _, spent in took[RAW])
        for name, samples in took.items():
            call_ms = statistics.median(wall for wall, _ in samples)
            cpu_ms = statistics.median(spent for _, spent in samples)
            said = f"{cpu_ms:.2f} of {call_ms:.1f} ms"
            yield f"CPU of {name}", said, f"{cpu_ms / raw_ms:.2f}", "", ""
        yield from _many(agent, 500 if quick else 5000)


RAW = "http.client, no client at all"
COMMAND = "octaskly run -- true"


def _ways(agent: Agent) -> dict[str, Callable[[int], float]]:
    _, made = agent.call("POST", "/api/v1/tokens", {"role": "client"})
    token = made["token"]
    url = agent.ready()["api_url"]
    return {
        RAW: lambda count: _raw(agent, count),
        "octaskly.Client": lambda count: _blocking(agent, count),
        "octaskly.AsyncClient": lambda count: asyncio.run(_awaited(agent, count)),
        "requests, with a session": lambda count: _requests(url, token, count),
        COMMAND: lambda count: _command(agent, count),
    }


def _cpu_s() -> float:
    """Return the CPU time of this process and its ended children: not of the agent."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


def _raw(agent: Agent, count: int) -> float:
    connection = agent.connection()
    began_s = time.perf_counter()
    for _ in range(count):
        _, task = request(connection, "POST", TASKS, {"command": "true"})
        request(connection, "GET", f"{TASKS}/{task['id']}?wait=60")
    took_s = time.perf_counter() - began_s
    connection.close()
    return took_s


def _blocking(agent: Agent, count: int) -> float:
    with octaskly.Client(state_dir=agent.state) as mesh:
        mesh.nodes()
        began_s = time.perf_counter()
        for _ in range(count):
            mesh.run("true")
        return time.perf_counter() - began_s


async def _awaited(agent: Agent, count: int) -> float:
    async with octaskly.AsyncClient(state_dir=agent.state) as mesh:
        await mesh.nodes()
        began_s = time.perf_counter()
        for _ in range(count):
            await mesh.run("true")
        return time.perf_counter() - began_s


def _requests(url: str, token: str, count: int) -> float:
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {token}"
        began_s = time.perf_counter()
        for _ in range(count):
            made: dict[str, Any] = session.post(
                f"{url}{TASKS}", json={"command": "true"}, timeout=60
            ).json()
            session.get(f"{url}{TASKS}/{made['id']}?wait=60", timeout=90)
        return time.perf_counter() - began_s


def _command(agent: Agent, count: int) -> float:
    program = [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state)]
    began_s = time.perf_counter()
    for _ in range(count):
        subprocess.run([*program, "run", "--", "true"], check=True)
    return time.perf_counter() - began_s


def _many(agent: Agent, count: int) -> Iterator[Row]:
    """Map one command over many items, to the last result."""
    with octaskly.Client(state_dir=agent.state) as mesh:
        began_s = time.perf_counter()
        ended = sum(1 for _ in mesh.map("true", range(count), ordered=False))
        rate = ended / (time.perf_counter() - began_s)
    yield f"Client.map of {count} items", f"{rate:.0f}/s", "", "", ""
