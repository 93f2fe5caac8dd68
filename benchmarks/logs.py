"""Output of tasks: how soon a line is at a client, and what a flood does to a node."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, bound_row, p95_row, rss_max_mb, rss_mb, until
from octaskly import Client
from tests.support.agents import Agent, request, running, until_nodes

LINE_S = 0.3
EVERY_S = 0.03
API_S = 0.2
CAP_MIB = 64.0
GROWTH_MB = 16.0
FLOOD_S = 600.0
PAUSE_S = 0.05
SPEAKER = (
    f"{sys.executable} -uc 'import time\n"
    "for n in range({count}): print(time.time_ns()); time.sleep({every_s})'"
)


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Follow a task on another node, then flood one."""
    with running(folder / "line", "ash", "birch") as agents:
        until_nodes(agents[0], 2)
        samples = _lines(agents, count=30 if quick else 300)
        yield p95_row("a line is at a client of another node", samples, LINE_S)
    with running(folder / "flood", "solo") as (agent,):
        until_nodes(agent, 1)
        yield from _flood(agent, gigabytes=1 if quick else 5)


def _lines(agents: list[Agent], *, count: int) -> list[float]:
    """Return for each line how long after it was printed the client had it."""
    command = SPEAKER.format(count=count, every_s=EVERY_S)
    with _client(agents[0]) as client:
        task = client.submit(command)
        until("it runs", lambda: bool(client.task(task.id).worker_id))
        worker = client.task(task.id).worker_id
    front = next(agent for agent in agents if agent.state.name != worker)
    samples = []
    with _client(front) as client:
        for log in client.logs(task.id, stream="stdout", follow=True):
            now_ns = time.time_ns()
            if log.kind == "stdout":
                lines = log.text.split()
                samples += [(now_ns - int(line)) / 1e9 for line in lines]
    return samples[1:]  # What was printed before the client came does not count.


def _flood(agent: Agent, *, gigabytes: int) -> Iterator[Row]:
    """Have a task write as fast as it can, and use the node meanwhile."""
    size = gigabytes * 10**9
    before_bytes, before_mb = _disk_bytes(agent.state), rss_mb(agent.process.pid)
    _, task = agent.call("POST", "/api/v1/tasks", {"command": f"yes | head -c {size}"})
    waits: list[float] = []
    most_bytes = 0
    began_s = time.perf_counter()
    with contextlib.closing(agent.connection()) as connection:
        while True:
            asked_s = time.perf_counter()
            _, shown = request(connection, "GET", "/api/v1/tasks?limit=10")
            waits.append(time.perf_counter() - asked_s)
            most_bytes = max(most_bytes, _disk_bytes(agent.state) - before_bytes)
            if shown["tasks"][-1]["completed_at"]:
                break
            assert time.perf_counter() < began_s + FLOOD_S
            time.sleep(PAUSE_S)
        took_s = time.perf_counter() - began_s
        _, ended = request(connection, "GET", f"/api/v1/tasks/{task['id']}")
    name = f"{gigabytes} GB of yes"
    yield f"{name}: rate", f"{size / took_s / 1e6:.0f} MB/s", "", "", ""
    grown_mb = most_bytes / (1 << 20)
    yield bound_row(f"{name}: growth of the disk", grown_mb, "MiB", CAP_MIB)
    kept = sum(f.stat().st_size for f in (agent.state / "transcripts").iterdir())
    yield bound_row(f"{name}: kept of it", kept / (1 << 20), "MiB", CAP_MIB)
    grown_mb = rss_max_mb(agent.process.pid) - before_mb
    yield bound_row(f"{name}: growth of the agent's memory", grown_mb, "MB", GROWTH_MB)
    yield p95_row(f"{name}: answer of the API", waits, API_S)
    is_true = ended["stdout_bytes"] == size and ended["stdout_truncated"]
    said = f"{ended['stdout_bytes']} bytes"
    yield f"{name}: said of it", said, "", "cut, true size", "yes" if is_true else "no"


def _client(agent: Agent) -> Client:
    return Client(state_dir=agent.state)


def _disk_bytes(folder: Path) -> int:
    """Return what a folder takes on the disk."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.lstat().st_blocks * 512
    return total
