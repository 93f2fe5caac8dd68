"""What others notice of an attack: their submissions, and the health of an agent."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.agents import TASKS, Agent, request

NOWHERE = {"labels": {"there": "is-none"}}  #: so that no task runs
PAUSE_S = 0.02  #: between two requests
SHARE = 95  #: per cent


class Submitter:
    """A client that submits over one connection of its own."""

    def __init__(self, agent: Agent, token: str) -> None:
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", loopback_port(agent), timeout=60
        )
        self._token = token
        self._stopwatch = Stopwatch(agent)

    def close(self) -> None:
        """Close its connection."""
        self._connection.close()

    def submissions(self, count: int) -> list[float]:
        """Submit so many tasks, one at a time; return the seconds that each took."""
        body = {"command": "true", "requires": NOWHERE}
        samples = []
        for _ in range(count):
            time.sleep(PAUSE_S)
            self._stopwatch.start()
            status, told = request(self._connection, "POST", TASKS, body, self._token)
            samples.append(self._stopwatch.elapsed_s())
            assert status == 201, told
        return samples

    def epoch(self) -> str | None:
        """Return the epoch of the dispatcher."""
        head = {"Authorization": f"Bearer {self._token}"}
        self._connection.request("GET", "/api/v1/stats", headers=head)
        answer = self._connection.getresponse()
        answer.read()
        return answer.headers["Octaskly-Epoch"]


@contextlib.contextmanager
def probing_health(agent: Agent, samples: list[float]) -> Iterator[None]:
    """Ask for the health of an agent for the length of a block; add the seconds."""
    is_over = threading.Event()

    def probe() -> None:
        stopwatch = Stopwatch(agent)
        port = loopback_port(agent)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        with contextlib.closing(connection):
            while not is_over.wait(PAUSE_S):
                stopwatch.start()
                status, _ = request(connection, "GET", "/health")
                samples.append(stopwatch.elapsed_s())
                assert status == 200

    with ThreadPoolExecutor(1) as threads:
        probed = threads.submit(probe)
        try:
            yield
        finally:
            is_over.set()
        probed.result()


class Stopwatch:
    """Measures time without that for which a core was awaited.

    The machine may have other work, for which neither an agent nor this test can do
    anything.
    """

    def __init__(self, agent: Agent) -> None:
        self._scheduled = (
            Path(f"/proc/{agent.process.pid}/schedstat"),
            Path("/proc/thread-self/schedstat"),
        )
        self._began_s = self._waited_s = 0.0

    def start(self) -> None:
        """Start at zero."""
        self._waited_s = sum(map(waited_for_core_s, self._scheduled))
        self._began_s = time.perf_counter()

    def elapsed_s(self) -> float:
        """Return the seconds since the start."""
        took_s = time.perf_counter() - self._began_s
        waited_s = sum(map(waited_for_core_s, self._scheduled)) - self._waited_s
        return max(0.0, took_s - waited_s)


def waited_for_core_s(scheduled: Path) -> float:
    """Return how long the first thread of a process has waited for a core in all."""
    return int(scheduled.read_text().split()[1]) / 1e9


def percentile_95(samples: list[float]) -> float:
    """Return the value that 95 of 100 samples do not exceed."""
    return sorted(samples)[-(-len(samples) * SHARE // 100) - 1]


def loopback_port(agent: Agent) -> int:
    """Return the port of an agent's API on this machine."""
    return int(str(agent.ready()["api_url"]).rpartition(":")[2])
