"""Arrays: what a million members cost before they run, and how fast they do."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import limits, noop
from benchmarks.measure import (
    BATCH,
    Row,
    bound_row,
    cpu_s,
    occupy,
    ratio_row,
    rss_mb,
    throughput,
)
from tests.support.agents import Agent, request, running, until_nodes
from tests.support.herd import Work, herd

MEMBERS = 1_000_000
ACCEPT_S = 1.0
MEMORY_MB = 20.0
SHARE = 0.9  #: of the rate of plain tasks, and of R
NO_OP_BATCHES = 2  #: of plain tasks that return at once
NO_OP_MEMBERS = 100_000
CPU_SHARE = 0.02  #: of what a plain task takes
DISPATCHED = 200_000  #: members that workers end at once
INSTANT_WORKERS = (8, Work(slots=256, from_s=0.0, to_s=0.0))


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Accept a million members, then run some of an array beside plain tasks."""
    runs, members = (1, 5_000) if quick else (3, 10_000)
    with running(folder, "solo", extra=("--slots", "2")) as (agent,):
        until_nodes(agent, 1)
        throughput(agent, "true", BATCH)  # Launchers start with the first task.
        blocks = occupy(agent, 2)
        before_mb, before_bytes = rss_mb(agent.process.pid), _disk_bytes(agent)
        array, took_s = _accepted(agent, "true", MEMBERS)
        yield bound_row("a million members: accepted", took_s, "s", ACCEPT_S)
        grown_mb = rss_mb(agent.process.pid) - before_mb
        yield bound_row("a million members: memory", grown_mb, "MB", MEMORY_MB)
        grown_mb = (_disk_bytes(agent) - before_bytes) / (1 << 20)
        yield bound_row("a million members: disk", grown_mb, "MB", MEMORY_MB)
        for task in (array, *blocks):
            agent.call("DELETE", f"/api/v1/tasks/{task}?force=true")
        plain, arrays = [], []
        for _ in range(runs):
            plain.append(throughput(agent, "true", members))
            arrays.append(_rate(agent, members))
        share = statistics.median(arrays) / statistics.median(plain)
        yield (
            "true, members of an array",
            f"{statistics.median(arrays):.0f}/s",
            f"{share:.2f}",
            f">= {SHARE}",
            "yes" if share >= SHARE else "no",
        )
        yield "true, plain tasks", f"{statistics.median(plain):.0f}/s", "1.00", "", ""
    limit = limits.spawn_limit(runs=runs)
    rate = statistics.median(arrays)
    yield ratio_row("true, members of an array, by R", rate, limit, SHARE)
    yield _no_op_cpu(folder / "noop")
    yield _dispatcher_cpu(folder / "dispatcher")


def _no_op_cpu(folder: Path) -> Row:
    """Compare members with plain tasks, both of which return at once."""
    with noop.no_op_agent(folder) as agent:
        pid = agent.process.pid
        noop.work(agent, 1)
        began_s = cpu_s(pid)
        noop.work(agent, NO_OP_BATCHES)
        plain_us = (cpu_s(pid) - began_s) / (NO_OP_BATCHES * noop.BULK) * 1e6
        began_s = cpu_s(pid)
        _rate(agent, NO_OP_MEMBERS)
        member_us = (cpu_s(pid) - began_s) / NO_OP_MEMBERS * 1e6
    share = member_us / plain_us
    met = "yes" if share <= CPU_SHARE else "no"
    name = "no-op members: agent CPU a member, by a task"
    return name, f"{member_us:.1f} us", f"{share:.3f}", f"<= {CPU_SHARE}", met


def _dispatcher_cpu(folder: Path) -> Row:
    """Compare them on a dispatcher that has only its workers' messages to handle."""
    plain, members = DISPATCHED // 10, DISPATCHED
    with running(folder, "head", extra=("--slots", "1")) as (head,):
        until_nodes(head, 1)
        occupy(head, 1)
        pid = head.process.pid
        with herd(head, *INSTANT_WORKERS):
            until_nodes(head, INSTANT_WORKERS[0] + 1)
            noop.work(head, 1)
            occupied_s = cpu_s(pid)
            noop.work(head, plain // noop.BULK)
            plain_us = (cpu_s(pid) - occupied_s) / plain * 1e6
            began_s = cpu_s(pid)
            _rate(head, members)
            member_us = (cpu_s(pid) - began_s) / members * 1e6
        head.process.kill()
    share = member_us / plain_us
    met = "yes" if share <= CPU_SHARE else "no"
    name = "no-op members: dispatcher CPU a member, by a task"
    return name, f"{member_us:.2f} us", f"{share:.3f}", f"<= {CPU_SHARE}", met


def _accepted(agent: Agent, command: str, members: int) -> tuple[str, float]:
    body = {"command": command, "array": {"range": f"1-{members}"}}
    with contextlib.closing(agent.connection()) as connection:
        began_s = time.perf_counter()
        status, answer = request(connection, "POST", "/api/v1/tasks", body)
        took_s = time.perf_counter() - began_s
    assert status == 201, answer
    return str(answer["id"]), took_s


def _rate(agent: Agent, members: int) -> float:
    began_s = time.perf_counter()
    array, _ = _accepted(agent, "true", members)
    with contextlib.closing(agent.connection()) as connection:
        path = f"/api/v1/arrays/{array}?wait=300"
        _, answer = request(connection, "GET", path)
    assert answer["array"]["completed"] == members, answer
    return members / (time.perf_counter() - began_s)


def _disk_bytes(agent: Agent) -> int:
    return sum(path.stat().st_size for path in agent.state.glob("*.db*"))
