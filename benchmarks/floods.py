"""One client floods a route over 512 connections, while another one submits.

The soak test of each route has the same bounds; here are routes of each cost.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, bound_row
from octaskly.api.routes.table import ROUTES
from tests.attack.route_attack import MEMORY, attack, submit_for
from tests.attack.test_each_route import load
from tests.attack.test_routes_for_a_minute import HEALTH_S_MAX, IDLE_S, RATIO_MAX
from tests.attack.test_viewer_lists import outsider
from tests.support.agents import meshed
from tests.support.latency import Submitter, percentile_95

FLOODED = (  #: (role, route)
    ("viewer", "GET /api/v1/tasks"),
    ("viewer", "DELETE /api/v1/tasks/{id}"),
    ("client", "POST /api/v1/tasks"),
    ("client", "DELETE /api/v1/tasks/{id}"),
    ("admin", "GET /api/v1/arrays/{id}"),
    ("admin", "GET /api/v1/tasks/{id}/outputs"),
    (None, "GET /api/v1/nodes"),
)


def figures(_folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure by how much submissions take longer, and how long `/health` takes."""
    routes = {f"{route.method} {route.path}": route for route in ROUTES}
    seconds = 4.0 if quick else 15.0
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-floods-", dir=MEMORY) as folder,
        meshed(Path(folder), "ana", "ben") as (dispatcher, _),
    ):
        loaded = load(dispatcher)
        token = outsider(dispatcher, "client", "bob").token
        with contextlib.closing(Submitter(dispatcher, token)) as other:
            for role, name in FLOODED:
                idle_s = percentile_95(submit_for(other, IDLE_S))
                notice = attack(loaded, routes[name], role, other, seconds)
                who = role or "no token"
                ratio = notice.submission_s / idle_s
                yield (
                    f"{name} by {who}: p95 of others' submissions",
                    f"{notice.submission_s * 1000:.1f} ms",
                    f"{ratio:.1f} of idle",
                    f"< {RATIO_MAX:g}",
                    "yes" if ratio < RATIO_MAX else "no",
                )
                name = f"{name} by {who}: slowest `/health`"
                yield bound_row(name, max(notice.health), "s", HEALTH_S_MAX)
