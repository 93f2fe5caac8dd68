"""What it costs that a node is scraped: CPU of a scrape, and throughput meanwhile."""

from __future__ import annotations

import contextlib
import statistics
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import BATCH, Row, bound_row, cpu_s, rss_mb, throughput
from tests.support.agents import Agent, running

SCRAPES = 50
SHARE_MAX = 1.0  #: percent of a core, scraped each second


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """One node, scraped each second, as few would, in turns with not at all."""
    tasks, runs = (3000, 3) if quick else (10_000, 5)
    with running(folder, "solo", extra=("--slots", "2")) as (agent,):
        throughput(agent, "true", BATCH)  # Launchers start with the first task.
        pid, before_mb = agent.process.pid, rss_mb(agent.process.pid)
        _scrape(agent)
        grown_mb = rss_mb(pid) - before_mb
        began_s = cpu_s(pid)
        for _ in range(SCRAPES):
            _scrape(agent)
        took_s = (cpu_s(pid) - began_s) / SCRAPES
        pairs = []
        for _ in range(runs):
            plain = throughput(agent, "true", tasks)
            with _scraped(agent):
                pairs.append(throughput(agent, "true", tasks) / plain)
    yield bound_row("scraped each second", 100 * took_s, "% of a core", SHARE_MAX)
    yield "memory of the first scrape", f"{grown_mb:.1f} MB", "", "", ""
    yield "bulk true, scraped / not", "", f"{statistics.median(pairs):.3f}", "", ""


def _scrape(agent: Agent) -> None:
    with urllib.request.urlopen(agent.ready()["api_url"] + "/metrics") as answer:
        answer.read()


@contextlib.contextmanager
def _scraped(agent: Agent) -> Iterator[None]:
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(1.0):
            _scrape(agent)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
