"""A long queue beside a short one, and many tasks that only wait."""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.crowd import Probe, watch
from benchmarks.measure import (
    BATCH,
    Row,
    bound_row,
    children,
    count,
    cpu_s,
    rss_mb,
    throughput,
    until,
)
from tests.support.agents import Agent, request, running, until_nodes

SHORT = 2000
SLOTS = 2
BULK = 10_000  #: as many as one request may hold
SETTLE_S = 2.0
RUN_S = 5.0
MEMORY_MB = 150.0
SHARE = 0.95
CPU_SHARE = 1.1
PAGE_MS = 5.0
COLD_MS = 50.0
STATS_MS = 1.0
PAUSE_MS = 50.0
SLEEPERS = 64
NEAR = 0.02  #: of one a second and slot
CORE_PERCENT = 10.0


class Burst(NamedTuple):
    """Tasks that one agent ran in a row."""

    rate: float  #: tasks a second
    cpu_us: float  #: of the agent, for each task


def million(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Queue a million tasks; compare with an empty dispatcher and a short queue.

    One agent works on a short queue, the deep one, a short one and so on. The short
    ones have a higher priority. Each burst of the deep queue is compared with the short
    ones before and after it, so that other work on the machine meets both.
    """
    tasks, runs = (100_000, 2) if quick else (1_000_000, 5)
    with running(folder, "head", extra=("--slots", str(SLOTS))) as (head,):
        until_nodes(head, 1)
        throughput(head, "true", BATCH)  # Launchers start with the first task.
        blocks = _block(head)
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
        deep, short = [], [_run_short(head, blocks)]
        for _ in range(runs):
            deep.append(_run_deep(head, blocks, pauses_s))
            short.append(_run_short(head, blocks))
        name = "longest pause of its loop, filling and running"
        yield bound_row(name, max(pauses_s) * 1000, "ms", PAUSE_MS)
        yield from _compare(f"true with {tasks} queued", deep, short)
        head.process.kill()


def _compare(name: str, deep: list[Burst], short: list[Burst]) -> Iterator[Row]:
    """Yield the rate and the CPU of a deep queue, against the short ones around it."""
    around = [
        Burst((a.rate + b.rate) / 2, (a.cpu_us + b.cpu_us) / 2)
        for a, b in pairwise(short)
    ]
    pairs = list(zip(deep, around, strict=True))
    rate = statistics.median(burst.rate for burst in deep)
    ratio = statistics.median(burst.rate / other.rate for burst, other in pairs)
    met = "yes" if ratio >= SHARE else "no"
    yield f"{name}, in pairs", f"{rate:.0f}/s", f"{ratio:.2f}", f">= {SHARE}", met
    cpu_us = statistics.median(burst.cpu_us for burst in deep)
    ratio = statistics.median(burst.cpu_us / other.cpu_us for burst, other in pairs)
    met = "yes" if ratio <= CPU_SHARE else "no"
    what = f"{name}: agent CPU a task"
    yield what, f"{cpu_us:.0f} us", f"{ratio:.2f}", f"<= {CPU_SHARE}", met


def _block(agent: Agent) -> list[str]:
    """Keep all slots busy with tasks that go first; return these."""
    sleepers = [{"command": "sleep 3600", "priority": 50}] * SLOTS
    status, tasks = agent.call("POST", "/api/v1/tasks", sleepers)
    assert status == 201, tasks
    ids = [task["id"] for task in tasks]

    def is_running(task: str) -> bool:
        return bool(
            agent.call("GET", f"/api/v1/tasks/{task}")[1]["status"] == "running"
        )

    until("all slots are taken", lambda: all(map(is_running, ids)))
    return ids


def _run_short(agent: Agent, blocks: list[str]) -> Burst:
    """Work off a short queue that goes before the deep one."""
    with contextlib.closing(agent.connection()) as connection:
        batch = [{"command": "true", "priority": 10}] * 2 * SHORT
        status, tasks = request(connection, "POST", "/api/v1/tasks", batch)
        assert status == 201, tasks
        with _unblocked(agent, blocks):
            # The launchers have slept.
            request(connection, "GET", f"/api/v1/tasks/{tasks[SHORT]['id']}?wait=60")
            before_s, began_s = cpu_s(agent.process.pid), time.perf_counter()
            request(connection, "GET", f"/api/v1/tasks/{tasks[-1]['id']}?wait=60")
            took_s = time.perf_counter() - began_s
            used_s = cpu_s(agent.process.pid) - before_s
    return Burst(SHORT / took_s, used_s / SHORT * 1e6)


def _run_deep(agent: Agent, blocks: list[str], pauses_s: list[float]) -> Burst:
    """Work on the deep queue for some seconds; note how long its loop paused."""
    with _unblocked(agent, blocks):
        # What the core had read before runs first.
        began = count(agent, "completed")
        until("some have ended", lambda: count(agent, "completed") >= began + SHORT)
        began, began_s = count(agent, "completed"), time.perf_counter()
        before_s = cpu_s(agent.process.pid)
        pauses_s.append(_pause_s(agent, RUN_S))
        ended = count(agent, "completed") - began
        took_s = time.perf_counter() - began_s
        used_s = cpu_s(agent.process.pid) - before_s
    return Burst(ended / took_s, used_s / ended * 1e6)


@contextlib.contextmanager
def _unblocked(agent: Agent, blocks: list[str]) -> Iterator[None]:
    """Let tasks run within a block."""
    cancel(agent, blocks)
    yield
    blocks[:] = _block(agent)


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
