"""How long the steps of a dispatcher take that takes over 26 400 running attempts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, bound_row
from tests.support.large_takeover import takeover_steps

STEP_MS_MAX = 100.0  #: meanwhile the node answers nobody


def figures(_: Path, *, quick: bool) -> Iterator[Row]:
    """Perform all steps; of several runs, the best counts for each kind of step."""
    best: dict[str, float] = {}
    for _run in range(2 if quick else 5):
        slowest: dict[str, float] = {}
        for name, step in takeover_steps():
            began_s = time.perf_counter()
            step()
            took_ms = (time.perf_counter() - began_s) * 1000
            slowest[name] = max(slowest.get(name, 0.0), took_ms)
        best = {name: min(took, best.get(name, took)) for name, took in slowest.items()}
    name = max(best, key=best.__getitem__)
    yield bound_row(f"takeover, longest step ({name})", best[name], "ms", STEP_MS_MAX)
