"""Each route under attack for a minute, as others notice it.

Another user of the machine, with a token of each role in turn and then without one,
asks the dispatcher of two nodes over 512 connections as fast as it is answered.
Meanwhile another client submits, and `/health` is asked. Times that the machine takes
for other work do not count: those for which a core was awaited are subtracted, and the
logs are in memory, because each submission is two syncs of a disk that others use, too.
`make soak` runs this once; it takes `SOAK_ROUTE_S` seconds for each route.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from octaskly.api.http.handler_types import Route
from octaskly.api.routes.table import ROUTES
from tests.attack.test_connections import NOBODY
from tests.attack.test_each_route import CONNECTIONS, ROLES, Loaded, body_of, load
from tests.attack.test_viewer_lists import (
    GROWTH_MB_MAX,
    memory_mb,
    outsider,
    reset_peak,
)
from tests.support import request_flood
from tests.support.agents import meshed
from tests.support.latency import (
    Submitter,
    loopback_port,
    percentile_95,
    probing_health,
)

MEMORY = "/dev/shm"  # pytest does not make the folder.
ROUTE_S = float(os.environ.get("SOAK_ROUTE_S", "60"))
IDLE_S = 3.0  #: besides
RATIO_MAX = 5.0
HEALTH_S_MAX = 0.2
SUBMISSIONS = 10

pytestmark = [pytest.mark.soak, pytest.mark.timeout(4 * ROUTE_S + 300)]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-routes-", dir=MEMORY) as folder,
        meshed(Path(folder), "ana", "ben") as (dispatcher, _),
    ):
        yield load(dispatcher)


@dataclass
class Notice:
    """What others notice while one role attacks."""

    submissions: list[float]  #: seconds
    health: list[float]
    answers: dict[str, int]  #: of the attacker, by status


@pytest.mark.parametrize(
    "route", ROUTES, ids=[f"{route.method} {route.path}" for route in ROUTES]
)
def test_others_are_served_while_a_route_is_attacked(
    loaded: Loaded, route: Route
) -> None:
    """Neither memory nor latency goes beyond its bound, and the dispatcher stays."""
    agent = loaded.agent
    with contextlib.closing(
        Submitter(agent, outsider(agent, "client", "bob").token)
    ) as other:
        epoch = other.epoch()
        begin_mb = memory_mb(agent, "VmRSS")
        reset_peak(agent)
        idle_s = percentile_95(_submit_for(other, IDLE_S))

        noticed = {role: _attack(loaded, route, role, other) for role in ROLES}
        epoch_after = other.epoch()

    shown = {
        role: (
            f"p95 {percentile_95(notice.submissions) * 1000:.1f} ms,"
            f" health {max(notice.health) * 1000:.0f} ms, {notice.answers}"
        )
        for role, notice in noticed.items()
    }
    growth_mb = memory_mb(agent, "VmHWM") - begin_mb
    print(f"idle p95 {idle_s * 1000:.1f} ms; +{growth_mb:.0f} MB; {shown}")
    for role, notice in noticed.items():
        assert notice.answers, role
        assert max(notice.health) < HEALTH_S_MAX, role
        assert percentile_95(notice.submissions) < RATIO_MAX * idle_s, role
    assert growth_mb < GROWTH_MB_MAX
    assert epoch_after == epoch


def _attack(loaded: Loaded, route: Route, role: str | None, other: Submitter) -> Notice:
    """Let one role attack a route for its part of the time."""
    agent, seconds = loaded.agent, ROUTE_S / len(ROLES)
    token = role and outsider(agent, role, f"eve-{role}").token
    health: list[float] = []
    with _flooding(loaded, route, token, seconds) as flood:
        with probing_health(agent, health):
            submissions = _submit_for(other, seconds)
        told, _ = flood.communicate()
    return Notice(submissions, health, json.loads(told))


def _submit_for(other: Submitter, seconds: float) -> list[float]:
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
