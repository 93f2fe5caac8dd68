"""What others notice of an attack: their submissions, and the health of an agent."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
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

    def submissions(self, count: int) -> list[float]:
        """Submit so many tasks, one at a time; return the seconds that each took."""
        body = {"command": "true", "requires": NOWHERE}
        samples = []
        for _ in range(count):
            time.sleep(PAUSE_S)
            began_s = time.perf_counter()
            status, told = request(self._connection, "POST", TASKS, body, self._token)
            samples.append(time.perf_counter() - began_s)
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
    """Ask for the health of an agent for the length of a block.

    The samples are seconds, without those that the agent waited for a core.
    """
    is_over = threading.Event()
    scheduled = Path(f"/proc/{agent.process.pid}/schedstat")

    def probe() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", loopback_port(agent))
        while not is_over.wait(PAUSE_S):
            waited_s, began_s = waited_for_core_s(scheduled), time.perf_counter()
            status, _ = request(connection, "GET", "/health")
            took_s = time.perf_counter() - began_s
            samples.append(took_s - (waited_for_core_s(scheduled) - waited_s))
            assert status == 200

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def waited_for_core_s(scheduled: Path) -> float:
    """Return how long the first thread of a process has waited for a core in all."""
    return int(scheduled.read_text().split()[1]) / 1e9


def percentile_95(samples: list[float]) -> float:
    """Return the value that 95 of 100 samples do not exceed."""
    return sorted(samples)[-(-len(samples) * SHARE // 100) - 1]


def loopback_port(agent: Agent) -> int:
    """Return the port of an agent's API on this machine."""
    return int(str(agent.ready()["api_url"]).rpartition(":")[2])
