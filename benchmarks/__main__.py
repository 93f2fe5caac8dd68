"""Measures Octaskly beside its limits and its peers, and prints one table.

usage: python -m benchmarks [--quick] [all | failover]

Every ratio is of figures from this run: absolute times mean little on shared
machines. Nothing leaves this machine; every loop is bounded.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from benchmarks import failover, limits, peers
from tests.agents import Agent, request, running, start, until_nodes

BATCH = 1000
Row = tuple[str, str, str, str, str]


def main() -> int:
    """Run all figures in order, printing each row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("which", nargs="?", choices=("all", "failover"), default="all")
    options = parser.parse_args()
    print(f"{'figure':44} {'value':>16} {'ratio':>10} {'goal':>14} met", flush=True)
    unmet = 0
    with tempfile.TemporaryDirectory(prefix="octaskly-bench-") as folder:
        rows = (
            _failover(runs=3 if options.quick else 20)
            if options.which == "failover"
            else _figures(Path(folder), quick=options.quick)
        )
        for name, value, ratio, goal, met in rows:
            print(f"{name:44} {value:>16} {ratio:>10} {goal:>14} {met}", flush=True)
            unmet += met == "no"
    return 1 if unmet else 0


def _figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    runs = 1 if quick else 3
    limit = limits.spawn_limit(runs=runs)
    yield "R: C, posix_spawn sh -c true, 2 processes", f"{limit:.0f}/s", "1.00", "", ""
    with running(folder / "one", "solo", extra=("--slots", "2")) as (agent,):
        yield from _idle(agent)
        _throughput(agent, "true", BATCH)  # Launchers start with the first task.
        rate = statistics.median(_throughput(agent, "true") for _ in range(runs))
        yield _row("true by bulk REST, durable, 2 slots", rate, limit, 0.65)
        plain = statistics.median(_throughput(agent, "/bin/true") for _ in range(runs))
        shell = limits.spawn_limit("/bin/true", runs=1)
        yield (
            "plain external command, against sh -c of it",
            f"{plain:.0f}/s",
            f"{plain / shell:.2f}",
            ">= 1.6 (later)",
            "",
        )
        yield from _latency(agent, folder, count=50 if quick else 200)
        loaded_mb = _rss_mb(agent.process.pid)
        yield "resident memory after all of this", f"{loaded_mb:.0f} MB", "", "", ""
        yield _cold_ls(agent, runs=5 if quick else 15)
    count = 500 if quick else 2000
    for name, peer in peers.PEERS.items():
        try:
            peer_rate = peer(count)
        except (ImportError, FileNotFoundError) as error:
            yield f"peer: {name}", "not installed", "", "", f"({error})"
            continue
        yield (
            f"peer: {name}",
            f"{peer_rate:.0f}/s",
            f"{peer_rate / limit:.2f}",
            "",
            f"(Octaskly: {rate / peer_rate:.1f} times)",
        )
    yield from _forming(folder, runs=3 if quick else 20)


def _row(name: str, rate: float, limit: float, goal: float) -> Row:
    ratio = rate / limit
    met = "yes" if ratio >= goal else "no"
    return name, f"{rate:.0f}/s", f"{ratio:.2f}", f">= {goal} R", met


def _throughput(agent: Agent, command: str, count: int = 10_000) -> float:
    """Return tasks per second from the first POST until the client has every result.

    The client reads the results of each batch as soon as the batch is done, as a
    program would that works on them.
    """
    connection = agent.connection()
    _, page = request(connection, "GET", "/api/v1/tasks?limit=1")
    before = page["total"]
    batch = [{"command": command}] * BATCH
    last: list[str] = []
    began = time.perf_counter()
    for _ in range(count // BATCH):
        status, tasks = request(connection, "POST", "/api/v1/tasks", batch)
        assert status == 201, tasks
        last.append(tasks[-1]["id"])
    codes: list[int] = []
    for task_id in last:
        request(connection, "GET", f"/api/v1/tasks/{task_id}?wait=120")
        codes += _exit_codes(connection, before + len(codes))
    elapsed = time.perf_counter() - began
    connection.close()
    assert codes == [0] * count
    return count / elapsed


def _exit_codes(connection: HTTPConnection, offset: int) -> list[int]:
    """Return the exit codes of one batch, once the last stragglers have ended."""
    while True:
        _, page = request(
            connection, "GET", f"/api/v1/tasks?limit={BATCH}&offset={offset}"
        )
        codes = [task["exit_code"] for task in page["tasks"]]
        if None not in codes:
            return codes


def _latency(agent: Agent, folder: Path, *, count: int) -> Iterator[Row]:
    """Submit one task at a time to an idle node and wait for its result."""
    samples = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(agent.ready()["socket"])
        for _ in range(count):
            time.sleep(0.01)
            began = time.perf_counter()
            created = _exchange(
                connection, "POST", "/api/v1/tasks", b'{"command":"true"}'
            )
            path = f"/api/v1/tasks/{created['id']}?wait=10"
            ended = _exchange(connection, "GET", path)
            samples.append((time.perf_counter() - began) * 1000)
            assert ended["exit_code"] == 0
    samples.sort()
    p50, p99 = samples[len(samples) // 2], samples[int(len(samples) * 0.99)]
    spawn, fsync = limits.spawn_ms(), limits.fsync_ms(folder)
    bound = spawn + 2 * fsync + 2
    yield (
        "p50 submit to result, idle",
        f"{p50:.2f} ms",
        f"{p50 / bound:.2f}",
        f"<= {bound:.2f} ms",
        "yes" if p50 <= bound else "no",
    )
    yield "p99 submit to result, idle", f"{p99:.2f} ms", "", "", ""


def _exchange(
    connection: socket.socket, method: str, path: str, body: bytes = b""
) -> Any:
    """Send one request and return the decoded answer, at the least cost in Python."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + b"\r\n" + body)
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    headers, _, answer = data.partition(b"\r\n\r\n")
    length = int(headers.lower().partition(b"content-length:")[2].split()[0])
    while len(answer) < length:
        answer += connection.recv(65536)
    return json.loads(answer)


def _idle(agent: Agent, seconds: float = 10.0) -> Iterator[Row]:
    """CPU time and memory of an agent that has nothing to do."""
    time.sleep(2)
    began = _cpu_s(agent.process.pid)
    time.sleep(seconds)
    percent = (_cpu_s(agent.process.pid) - began) / seconds * 100
    yield (
        "idle node: share of a core",
        f"{percent:.2f} %",
        "",
        "< 0.5 %",
        "yes" if percent < 0.5 else "no",
    )
    rss_mb = _rss_mb(agent.process.pid)
    yield (
        "idle node: resident memory",
        f"{rss_mb:.0f} MB",
        "",
        "< 80 MB",
        "yes" if rss_mb < 80 else "no",
    )


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, by the scheduler's exact clock."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def _cold_ls(agent: Agent, *, runs: int) -> Row:
    command = [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state), "ls"]
    samples = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        samples.append((time.perf_counter() - began) * 1000)
    median = statistics.median(samples)
    met = "yes" if median < 150 else "no"
    return "octaskly ls, cold, median", f"{median:.0f} ms", "", "< 150 ms", met


def _forming(folder: Path, *, runs: int) -> Iterator[Row]:
    """Three agents at once; then a fresh fourth; then a first one all alone."""
    forming, joining, first = [], [], []
    for run in range(runs):
        place = folder / f"forming{run}"
        with running(place, "ana", "ben", "cleo") as agents:
            for agent in agents:
                agent.ready()
            last = max(agent.started for agent in agents)
            forming.append(until_nodes(agents[0], 3) - last)
            fresh = start(place, "dora")
            try:
                joining.append(until_nodes(agents[0], 4) - fresh.started)
            finally:
                fresh.stop()
        with running(folder / f"first{run}", "solo") as (agent,):
            connection = agent.connection()
            while True:
                status, task = request(
                    connection, "POST", "/api/v1/tasks", {"command": "true"}
                )
                if status == 201:
                    break
            request(connection, "GET", f"/api/v1/tasks/{task['id']}?wait=10")
            first.append(time.perf_counter() - agent.started)
    yield _p95("three agents form, from the last start", forming, 3.0)
    yield _p95("a fresh node shows as worker", joining, 1.5)
    yield _p95("first result of the first agent", first, 2.0)


def _failover(*, runs: int) -> Iterator[Row]:
    for name, samples, goal_s in failover.figures(runs=runs):
        yield _p95(name, samples, goal_s)


def _p95(name: str, samples: list[float], goal_s: float) -> Row:
    ordered = sorted(samples)
    p95 = ordered[max(0, -(-len(ordered) * 95 // 100) - 1)]
    return (
        f"{name}, p95 of {len(samples)}",
        f"{p95:.2f} s",
        f"p50 {statistics.median(samples):.2f}",
        f"<= {goal_s} s",
        "yes" if p95 <= goal_s else "no",
    )


if __name__ == "__main__":
    sys.exit(main())
