"""Each route under attack for a minute, as others notice it.

Another user of the machine, with a token of each role in turn and then without one,
asks the dispatcher of two nodes over 512 connections as fast as it is answered.
Meanwhile another client submits, and `/health` is asked. Times that the machine takes
for other work do not count: those for which a core was awaited are subtracted, and the
logs are in memory. `make soak` runs this once; it takes `SOAK_ROUTE_S` seconds for each
route.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.api.http.handler_types import Route
from octaskly.api.routes.table import ROUTES
from tests.attack.route_attack import MEMORY, attack, submit_for
from tests.attack.test_each_route import ROLES, Loaded, load
from tests.attack.test_viewer_lists import GROWTH_MB_MAX, outsider
from tests.support.agents import memory_mb, meshed, reset_peak
from tests.support.latency import Submitter, percentile_95

ROUTE_S = float(os.environ.get("SOAK_ROUTE_S", "60"))
IDLE_S = 3.0  #: besides, before the attacks and after them
RATIO_MAX = 5.0
HEALTH_S_MAX = 0.2

pytestmark = [pytest.mark.soak, pytest.mark.timeout(4 * ROUTE_S + 300)]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-routes-", dir=MEMORY) as folder,
        meshed(Path(folder), "ana", "ben") as (dispatcher, _),
    ):
        yield load(dispatcher)


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
        idle = submit_for(other, IDLE_S)

        noticed = {
            role: attack(loaded, route, role, other, ROUTE_S / len(ROLES))
            for role in ROLES
        }
        idle += submit_for(other, IDLE_S)
        epoch_after = other.epoch()

    idle_s = percentile_95(idle)
    growth_mb = memory_mb(agent, "VmHWM") - begin_mb
    shown = {role: str(notice) for role, notice in noticed.items()}
    print(f"idle p95 {idle_s * 1000:.1f} ms; +{growth_mb:.0f} MB; {shown}")
    for role, notice in noticed.items():
        assert notice.answers, role
        assert max(notice.health) < HEALTH_S_MAX, role
        assert notice.submission_s < RATIO_MAX * idle_s, role
    assert growth_mb < GROWTH_MB_MAX
    assert epoch_after == epoch
