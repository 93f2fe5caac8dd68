"""A long queue beside a short one, and many tasks that only wait."""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.crowd import Probe, watch
from benchmarks.measure import (
    BATCH,
    Row,
    bound_row,
    children,
    count,
    cpu_s,
    occupy,
    rss_mb,
    throughput,
    until,
)
from tests.support.agents import Agent, request, running, until_nodes

SHORT = 1000
BULK = 10_000  #: as many as one request may hold
SETTLE_S = 2.0
RUN_S = 5.0
MEMORY_MB = 150.0
SHARE = 0.8
PAGE_MS = 5.0
COLD_MS = 50.0
STATS_MS = 1.0
PAUSE_MS = 50.0
SLEEPERS = 64
NEAR = 0.02  #: of one a second and slot
CORE_PERCENT = 10.0


def million(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Queue a million tasks; compare with an empty dispatcher and a short queue."""
    tasks, runs = (100_000, 1) if quick else (1_000_000, 3)
    slots = 2
    with running(folder, "head", extra=("--slots", str(slots))) as (head,):
        until_nodes(head, 1)
        throughput(head, "true", BATCH)  # Launchers start with the first task.
        short = statistics.median(_drained(head, slots) for _ in range(runs))
        blocks = occupy(head, slots)
        time.sleep(SETTLE_S)
        empty_mb = rss_mb(head.process.pid)
        filling = threading.Thread(target=fill, args=(head, tasks))
        filling.start()
        pauses_s = []
        while filling.is_alive():
            pauses_s.append(_pause_s(head, SETTLE_S))
        time.sleep(SETTLE_S)
        grown_mb = rss_mb(head.process.pid) - empty_mb
        yield bound_row(f"{tasks} queued: memory", grown_mb, "MB", MEMORY_MB)
        yield from _pages(head, tasks)
        cancel(head, blocks)
        began = count(head, "completed")
        until("some have ended", lambda: count(head, "completed") >= began + SHORT)
        began, began_s = count(head, "completed"), time.perf_counter()
        pauses_s.append(_pause_s(head, RUN_S))
        ended = count(head, "completed") - began
        deep = ended / (time.perf_counter() - began_s)
        name = "longest pause of its loop, filling and running"
        yield bound_row(name, max(pauses_s) * 1000, "ms", PAUSE_MS)
        met = "yes" if deep / short >= SHARE else "no"
        name = f"true with {tasks} queued, against {SHORT}"
        yield name, f"{deep:.0f}/s", f"{deep / short:.2f}", f">= {SHARE}", met
        head.process.kill()


def fill(agent: Agent, tasks: int) -> None:
    """Queue so many tasks that do nothing."""
    some = min(tasks, BULK)
    body = json.dumps([{"command": "true"}] * some).encode()
    head = {"Content-Type": "application/json"}
    with contextlib.closing(agent.connection()) as connection:
        for _ in range(tasks // some):
            connection.request("POST", "/api/v1/tasks", body, head)
            reply = connection.getresponse()
            reply.read()
            assert reply.status == 201


def cancel(agent: Agent, tasks: list[str]) -> None:
    """End tasks, running ones, too."""
    for task in tasks:
        agent.call("DELETE", f"/api/v1/tasks/{task}?force=true")


def _drained(agent: Agent, slots: int) -> float:
    """Return the rate at which a short queue is worked off."""
    blocks = occupy(agent, slots)
    with contextlib.closing(agent.connection()) as connection:
        batch = [{"command": "true"}] * SHORT
        status, tasks = request(connection, "POST", "/api/v1/tasks", batch)
        assert status == 201, tasks
        cancel(agent, blocks)
        began_s = time.perf_counter()
        request(connection, "GET", f"/api/v1/tasks/{tasks[-1]['id']}?wait=60")
        return SHORT / (time.perf_counter() - began_s)


def _pause_s(agent: Agent, seconds: float) -> float:
    """Watch an agent for so long; return how long its loop answered nobody."""
    probe = Probe(agent)
    watch([probe], until_s=time.perf_counter() + seconds)
    return probe.lag_s


def _pages(agent: Agent, tasks: int) -> Iterator[Row]:
    """How long pages of the list take: the first, in sequence, deep and filtered."""
    deep, rows = tasks // 2, "/api/v1/tasks?limit=50"
    with contextlib.closing(agent.connection()) as connection:

        def get(path: str) -> float:
            began_s = time.perf_counter()
            status, answer = request(connection, "GET", path)
            assert status == 200, answer
            return (time.perf_counter() - began_s) * 1000

        cold_ms = get(f"{rows}&status=queued&offset={deep}")
        first_ms = _median(lambda _: get(rows))
        deep_ms = _median(lambda n: get(f"{rows}&offset={deep + 50 * n}"))
        stats_ms = statistics.median(get("/api/v1/stats") for _ in range(20))
    yield bound_row("first page of 50", first_ms, "ms", PAGE_MS)
    yield bound_row("deep pages of 50, in sequence", deep_ms, "ms", PAGE_MS)
    yield bound_row("one deep page, filtered, cold", cold_ms, "ms", COLD_MS)
    yield bound_row("stats", stats_ms, "ms", STATS_MS)


def _median(page: Callable[[int], float], pages: int = 20) -> float:
    """Return the median of some pages; the word of one is the machine's."""
    return statistics.median(page(number) for number in range(pages))


def sleepers(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Keep many slots busy with tasks that sleep a second each."""
    rounds = 5 if quick else 15
    extra = ("--slots", str(SLEEPERS))
    with running(folder, "sleepy", extra=extra) as (agent,):
        until_nodes(agent, 1)
        throughput(agent, "true", BATCH)  # Launchers start with the first task.
        pids = [agent.process.pid, *children(agent.process.pid)]
        batch = [{"command": "sleep 1"}] * SLEEPERS * rounds
        with contextlib.closing(agent.connection()) as connection:
            rate, used_s = _slept(agent, connection, batch, pids)
    near = rate / SLEEPERS
    met = "yes" if near >= 1 - NEAR else "no"
    name = f"{SLEEPERS} slots of sleep 1"
    yield name, f"{rate:.1f}/s", f"{near:.3f}", f">= {1 - NEAR}", met
    percent = used_s / (len(batch) / rate) * 100
    yield bound_row("agent and launchers meanwhile", percent, "% core", CORE_PERCENT)


def _slept(
    agent: Agent,
    connection: HTTPConnection,
    batch: list[dict[str, str]],
    pids: list[int],
) -> tuple[float, float]:
    """Return tasks per second, and the CPU seconds that they took besides."""
    done = count(agent, "completed") + len(batch)
    before_s, began_s = sum(map(cpu_s, pids)), time.perf_counter()
    status, tasks = request(connection, "POST", "/api/v1/tasks", batch)
    assert status == 201, tasks
    request(connection, "GET", f"/api/v1/tasks/{tasks[-1]['id']}?wait=120")
    until("all have slept", lambda: count(agent, "completed") == done, within_s=60)
    took_s = time.perf_counter() - began_s
    return len(batch) / took_s, sum(map(cpu_s, pids)) - before_s
