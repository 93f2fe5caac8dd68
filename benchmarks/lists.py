"""What others notice while one client asks for the longest lists without a pause.

The lists are of tasks with commands of 64 KiB; who asks is a process of its own with 20
connections, which does not heed refusals. Others submit one task at a time, and probe
`/health`, in the same run without and with it.

usage: python -m benchmarks.lists PORT TOKEN
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, bound_row, rss_max_mb, rss_mb
from tests.support.agents import TASKS, Agent, running, submit
from tests.support.latency import (
    NOWHERE,
    Submitter,
    loopback_port,
    percentile_95,
    probing_health,
)

ROWS = 1000
BATCH = 250
CONNECTIONS = 20
COMMAND = "true " + "x" * 65_531
BEGIN_S = 1.0
ROUNDS = 3
RATIO_MAX = 5.0
HEALTH_MS = 200.0
GROWTH_MB = 100.0
ROLES = ("viewer", "client", "admin")


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Lists by a token of each role, in turns with none."""
    count = 40 if quick else 150
    with running(folder, "solo") as (agent,):
        _fill(agent)
        other = Submitter(agent, _token(agent, "client"))
        before_mb = rss_mb(agent.process.pid)
        epoch = other.epoch()
        for role in ROLES:
            token = _token(agent, role)
            idle: list[float] = []
            busy: list[float] = []
            health: list[float] = []
            for _ in range(ROUNDS):
                idle += other.submissions(count)
                with _listing(agent, token), probing_health(agent, health):
                    busy += other.submissions(count)
            ratio = percentile_95(busy) / percentile_95(idle)
            yield (
                f"submissions under lists by a {role}, p95 without waits for a core",
                f"{percentile_95(busy) * 1000:.1f} ms",
                f"{ratio:.2f}",
                f"< {RATIO_MAX:g} x idle",
                "yes" if ratio < RATIO_MAX else "no",
            )
            worst = max(health) * 1000
            name = f"/health under lists by a {role}, without waits for a core"
            yield bound_row(name, worst, "ms", HEALTH_MS)
        grown_mb = rss_max_mb(agent.process.pid) - before_mb
        yield bound_row(
            "memory of the dispatcher under lists", grown_mb, "MB", GROWTH_MB
        )
        met = "yes" if other.epoch() == epoch else "no"
        yield "epochs begun under lists", "0" if met == "yes" else "some", "", "0", met


def _fill(agent: Agent) -> None:
    submit(agent, "true", requires=NOWHERE)  # Once there is a dispatcher.
    batch = [{"command": COMMAND, "requires": NOWHERE}] * BATCH
    for _ in range(ROWS // BATCH):
        status, told = agent.call("POST", TASKS, batch)
        assert status == 201, told


def _token(agent: Agent, role: str) -> str:
    status, told = agent.call("POST", "/api/v1/tokens", {"role": role})
    assert status == 201, told
    return str(told["token"])


@contextlib.contextmanager
def _listing(agent: Agent, token: str) -> Iterator[None]:
    """Ask for lists in another process for the length of a block."""
    process = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, str(loopback_port(agent)), token]
    )
    try:
        time.sleep(BEGIN_S)
        yield
    finally:
        process.kill()
        process.wait()


def _ask(port: int, token: str) -> None:
    """Ask for the longest list for ever."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    head = {"Authorization": f"Bearer {token}"}
    while True:
        connection.request("GET", f"{TASKS}?limit={ROWS}", headers=head)
        connection.getresponse().read()


if __name__ == "__main__":
    for _ in range(CONNECTIONS):
        threading.Thread(target=_ask, args=(int(sys.argv[1]), sys.argv[2])).start()
