"""Measures Octaskly and prints one table: by default beside its limits and its peers.

usage: python -m benchmarks [--quick] [peers | failover | cost | traffic | kills
                                       | dashboard
                                       | million | crowd | logs | arrays | noop
                                       | deep | calls | sleepers | growth | tls
                                       | retention | clients | metrics | pause
                                       | lists | strangers | files | takeover
                                       | floods | single | forming | ends | size
                                       | burst | all]

Every ratio is of figures from this run: absolute times mean little on shared
machines. Nothing leaves this machine; every loop is bounded.
"""

from __future__ import annotations

import argparse
import compileall
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import octaskly
from benchmarks import (
    arrays,
    burst,
    calls,
    clients,
    cost,
    crowd,
    dashboard,
    deep,
    ends,
    failover,
    files,
    floods,
    growth,
    limits,
    lists,
    logs,
    metrics,
    noop,
    pause,
    peers,
    plain,
    retention,
    scale,
    single,
    size,
    strangers,
    takeover,
)
from benchmarks.measure import (
    BATCH,
    Row,
    bound_row,
    cpu_s,
    exchange,
    p95_row,
    ratio_row,
    rss_mb,
    throughput,
)
from benchmarks.reasons import reason
from tests.support.agents import Agent, request, running, start, until_nodes

Figures = Callable[..., Iterator[Row]]


def main() -> int:
    """Run all figures in order, printing each row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, less of each")
    parser.add_argument("which", nargs="?", choices=WHICH, default="peers")
    options = parser.parse_args()
    # As where it was installed, also where Python is told to write none of this.
    compileall.compile_dir(Path(octaskly.__file__).parent, quiet=1)
    print(f"{'figure':48} {'value':>16} {'ratio':>10} {'goal':>14} met", flush=True)
    unmet: list[str] = []
    with tempfile.TemporaryDirectory(prefix="octaskly-bench-") as folder:
        for name, value, ratio, goal, met in WHICH[options.which](
            Path(folder), quick=options.quick
        ):
            print(f"{name:48} {value:>16} {ratio:>10} {goal:>14} {met}", flush=True)
            if met == "no":
                unmet.append(name)
    for name in unmet:
        print(f"not met: {name}\n    {reason(name)}")
    return 1 if unmet else 0


def _peers(folder: Path, *, quick: bool) -> Iterator[Row]:
    runs = 1 if quick else 3
    limit = limits.spawn_limit(runs=runs)
    yield "R: C, posix_spawn sh -c true, 2 processes", f"{limit:.0f}/s", "1.00", "", ""
    with running(folder / "one", "solo", extra=("--slots", "2")) as (agent,):
        yield from _idle(agent)
        throughput(agent, "true", BATCH)  # Launchers start with the first task.
        rate = statistics.median(throughput(agent, "true") for _ in range(runs))
        yield ratio_row("true by bulk REST, durable, 2 slots", rate, limit, 0.8)
        direct = statistics.median(throughput(agent, "/bin/true") for _ in range(runs))
        shell = limits.spawn_limit("/bin/true", runs=1)
        yield ratio_row("plain external command", direct, shell, 1.6, "sh -c of it")
        yield from _latency(agent, folder, count=50 if quick else 200)
        loaded_mb = rss_mb(agent.process.pid)
        yield "resident memory after all of this", f"{loaded_mb:.0f} MB", "", "", ""
        yield _cold_ls(agent, runs=5 if quick else 15)
    yield from single.figures(folder / "single", quick=quick)
    yield from noop.figures(folder / "noop", quick=quick)
    yield from plain.figures(folder / "plain", quick=quick)
    yield from deep.sleepers(folder / "sleepers", quick=quick)
    yield from deep.million(folder / "deep", quick=quick)
    yield from lists.figures(folder / "lists", quick=quick)
    yield from ends.figures(folder / "ends", quick=quick)
    yield from arrays.figures(folder / "arrays", quick=quick)
    yield from size.figures(folder / "size", quick=quick)
    yield from takeover.figures(folder, quick=quick)
    count = 500 if quick else 2000
    for name, peer in peers.PEERS.items():
        try:
            peer_rate = peer(count)
        except (ImportError, FileNotFoundError) as error:
            yield name, "not installed", "", "", f"({error})"
            continue
        yield (
            f"{name}; Octaskly {rate / peer_rate:.1f} times",
            f"{peer_rate:.0f}/s",
            f"{peer_rate / limit:.2f}",
            "< Octaskly",
            "yes" if peer_rate < rate else "no",
        )
    yield from _forming(folder, quick=quick)


def _all(folder: Path, *, quick: bool) -> Iterator[Row]:
    """The default table, then each figure that is not in it."""
    for name, figures in WHICH.items():
        if name == "peers" or name not in IN_PEERS:
            place = folder / name
            place.mkdir()
            yield from figures(place, quick=quick)


def _latency(agent: Agent, folder: Path, *, count: int) -> Iterator[Row]:
    """Submit one task at a time to an idle node and wait for its result."""
    samples = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(agent.ready()["socket"])
        for _ in range(count):
            time.sleep(0.01)
            began = time.perf_counter()
            created = exchange(
                connection, "POST", "/api/v1/tasks", b'{"command":"true"}'
            )
            path = f"/api/v1/tasks/{created['id']}?wait=10"
            ended = exchange(connection, "GET", path)
            samples.append((time.perf_counter() - began) * 1000)
            assert ended["exit_code"] == 0
    samples.sort()
    p50, p99 = samples[len(samples) // 2], samples[int(len(samples) * 0.99)]
    spawn, fsync = limits.spawn_ms(), limits.fsync_ms(folder)
    bound = spawn + 2 * fsync + 1
    yield (
        "p50 submit to result, idle",
        f"{p50:.2f} ms",
        f"{p50 / bound:.2f}",
        f"<= {bound:.2f} ms",
        "yes" if p50 <= bound else "no",
    )
    yield (
        "p99 submit to result, idle",
        f"{p99:.2f} ms",
        "",
        f"<= {p50 + 2:.2f} ms",
        "yes" if p99 <= p50 + 2 else "no",
    )


def _idle(agent: Agent, seconds: float = 10.0) -> Iterator[Row]:
    """CPU time and memory of an agent that has nothing to do."""
    time.sleep(2)
    began = cpu_s(agent.process.pid)
    time.sleep(seconds)
    percent = (cpu_s(agent.process.pid) - began) / seconds * 100
    yield bound_row("idle node: share of a core", percent, "%", 0.5)
    yield bound_row("idle node: resident memory", rss_mb(agent.process.pid), "MB", 80)


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


def _forming(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Three agents at once; then a fresh fourth; then a first one all alone."""
    forming, joining, first = [], [], []
    runs = 3 if quick else 20
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
    yield p95_row("three agents form, from the last start", forming, 3.0)
    yield p95_row("a fresh node shows as worker", joining, 1.5)
    yield p95_row("first result of the first agent", first, 2.0)


def _failover(_: Path, *, quick: bool) -> Iterator[Row]:
    for name, samples, goal_s in failover.figures(runs=3 if quick else 20):
        yield p95_row(name, samples, goal_s)


WHICH: dict[str, Figures] = {
    "peers": _peers,
    "dashboard": dashboard.figures,
    "failover": _failover,
    "forming": _forming,
    "clients": clients.figures,
    "cost": cost.throughput_shared,
    "traffic": cost.request_metrics,
    "kills": scale.kills,
    "million": scale.million,
    "crowd": crowd.figures,
    "logs": logs.figures,
    "arrays": arrays.figures,
    "calls": calls.figures,
    "noop": noop.figures,
    "deep": deep.million,
    "tls": plain.figures,
    "growth": growth.figures,
    "sleepers": deep.sleepers,
    "retention": retention.figures,
    "single": single.figures,
    "strangers": strangers.figures,
    "takeover": takeover.figures,
    "floods": floods.figures,
    "ends": ends.figures,
    "size": size.figures,
    "metrics": metrics.figures,
    "pause": pause.figures,
    "lists": lists.figures,
    "files": files.figures,
    "burst": burst.figures,
    "all": _all,
}
IN_PEERS = {
    *("all", "peers", "single", "noop", "tls", "sleepers", "deep", "lists", "ends"),
    *("arrays", "size", "takeover", "forming"),
}
"""The figures that are part of the default table, and the tables themselves."""


if __name__ == "__main__":
    sys.exit(main())
