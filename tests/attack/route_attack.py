"""Attacks one route as another user, and measures what others notice meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from octaskly.api.http.handler_types import Route
from tests.attack.test_connections import NOBODY
from tests.attack.test_each_route import CONNECTIONS, Loaded, body_of
from tests.attack.test_viewer_lists import outsider
from tests.support import request_flood
from tests.support.latency import (
    Submitter,
    loopback_port,
    percentile_95,
    probing_health,
)

SUBMISSIONS = 10  #: at a time, until the time is over

MEMORY = "/dev/shm"  # pytest does not make the folder.
"""Where the logs of the attacked nodes are.

Each submission is two syncs of the disk, and other work uses it, too.
"""


@dataclass(frozen=True)
class Notice:
    """Latencies of other clients during an attack, and the answers to the attacker."""

    submissions: list[float]  #: seconds
    health: list[float]  #: seconds
    answers: dict[str, int]  #: of the attacker, by status

    @property
    def submission_s(self) -> float:
        """95th percentile of the submissions of others."""
        return percentile_95(self.submissions)

    def __str__(self) -> str:
        """Return both for people."""
        health_ms = max(self.health) * 1000
        return (
            f"p95 {self.submission_s * 1000:.1f} ms,"
            f" health {health_ms:.0f} ms, {self.answers}"
        )


def attack(
    loaded: Loaded, route: Route, role: str | None, other: Submitter, seconds: float
) -> Notice:
    """Let one role attack a route, and another client submit meanwhile."""
    agent = loaded.agent
    token = role and outsider(agent, role, f"eve-{role}").token
    health: list[float] = []
    with _flooding(loaded, route, token, seconds) as flood:
        with probing_health(agent, health):
            submissions = submit_for(other, seconds)
        told, _ = flood.communicate()
    return Notice(submissions, health, json.loads(told))


def submit_for(other: Submitter, seconds: float) -> list[float]:
    """Submit one task after another; return the seconds that each took."""
    until_s = time.monotonic() + seconds
    samples: list[float] = []
    while time.monotonic() < until_s:
        samples += other.submissions(SUBMISSIONS)
    return samples


@contextlib.contextmanager
def _flooding(
    loaded: Loaded, route: Route, token: str | None, seconds: float
) -> Iterator[subprocess.Popen[bytes]]:
    """Attack a route as another user, whose process takes no core from the agent."""
    port = loopback_port(loaded.agent)
    words = (str(port), str(CONNECTIONS), str(seconds))
    program = Path(request_flood.__file__).read_text()
    python = (os.path.realpath(sys.executable), "-I", "-c", program)
    with subprocess.Popen(
        ["nice", "-n", "19", *python, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
    ) as flood:
        assert flood.stdin is not None
        flood.stdin.write(_request(route, loaded.path_of(route), token))
        flood.stdin.close()
        flood.stdin = None  # `communicate` would write to it.
        try:
            yield flood
        finally:
            flood.kill()


def _request(route: Route, path: str, token: str | None) -> bytes:
    """Return a request as bytes."""
    lines = [f"{route.method} {path} HTTP/1.1", "Host: localhost"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    body = body_of(route)
    data = b"" if body is None else json.dumps(body).encode()
    if data:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*lines, "", ""]).encode() + data
