"""How soon a visitor can run tasks, and what idle visitors cost a member."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import (
    BATCH,
    Row,
    children,
    cpu_s,
    p95_row,
    ratio_row,
    throughput,
)
from octaskly.cli.burst.runs import INVITE_VARIABLE, agent_command
from tests.support.agents import Agent, running, until, until_nodes

READY_S = 3.0
READY = b"visitor ready"  #: a line of its log
INVITE = {"ttl_s": 3600, "visitor": {"stay_s": 3600}}
VISITORS = 10
RATIO_MIN = 0.97
IDLE_S = 10.0
START_S = 180.0  #: for all of them at once, also on a busy machine


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Start visitors one after the other, then keep ten of them."""
    with running(folder / "burst", "solo") as (agent,):
        until_nodes(agent, 1)
        samples = [_ready_s(agent) for _ in range(3 if quick else 20)]
    yield p95_row("visitor ready, from the start of its process", samples, READY_S)
    yield from _with_visitors(folder, rounds=3 if quick else 15)


def _ready_s(agent: Agent) -> float:
    """Start a visitor, and return how long it took to be ready for tasks."""
    began_s = time.perf_counter()
    visitor = _start(agent)
    assert visitor.stderr is not None
    with visitor:
        is_ready = any(READY in line for line in visitor.stderr)
        ready_s = time.perf_counter() - began_s
        visitor.terminate()
        visitor.communicate()
    assert is_ready, "the visitor ended before it was ready"
    return ready_s


def _start(agent: Agent) -> subprocess.Popen[bytes]:
    """Start a visitor with an invite of its own."""
    status, invite = agent.call("POST", "/api/v1/invites", INVITE)
    assert status == 201, invite
    environ = {**os.environ, INVITE_VARIABLE: invite["url"]}
    command = f"exec {agent_command(())}"
    return subprocess.Popen(["sh", "-c", command], env=environ, stderr=subprocess.PIPE)


def _with_visitors(folder: Path, *, rounds: int) -> Iterator[Row]:
    """Measure two members in turns, one of which has idle visitors.

    The visitors run on this machine. What they use themselves meets both members alike.
    """
    options = ("--slots", "2")
    with (
        running(folder / "without", "without", extra=options) as (without,),
        running(folder / "with", "with", extra=options) as (member,),
        _visitors(member) as visitors,
    ):
        agents = (without, member)
        rates: tuple[list[float], list[float]] = [], []
        costs: tuple[list[float], list[float]] = [], []
        for agent in agents:
            throughput(agent, "true", BATCH)  # Launchers start with the first task.
        for turn in range(rounds):
            for place in (0, 1) if turn % 2 else (1, 0):
                before_s = _cpu_s(agents[place])
                rates[place].append(throughput(agents[place], "true", BATCH))
                costs[place].append((_cpu_s(agents[place]) - before_s) / BATCH)
        assert all(visitor.poll() is None for visitor in visitors)
        name = f"throughput with {VISITORS} idle visitors"
        usual, rate = map(statistics.median, rates)
        yield ratio_row(name, rate, usual, RATIO_MIN, "without them")
        usual_s, cost_s = map(statistics.median, costs)
        ratio = cost_s / usual_s
        goal = f"<= {1 / RATIO_MIN:.2f}"
        yield (
            "CPU of the member for a task then",
            f"{cost_s * 1e6:.0f} µs",
            f"{ratio:.2f}",
            goal,
            "yes" if ratio <= 1 / RATIO_MIN else "no",
        )
        yield from _idle_costs(without, member, visitors)


def _idle_costs(
    without: Agent, member: Agent, visitors: list[subprocess.Popen[bytes]]
) -> Iterator[Row]:
    """Measure what all of them use while no task runs, of one processor."""
    pids = [visitor.pid for visitor in visitors]
    before = [cpu_s(without.process.pid), cpu_s(member.process.pid)]
    visitors_s = sum(map(cpu_s, pids))
    time.sleep(IDLE_S)
    own_s, usual_s = (
        cpu_s(agent.process.pid) - at_s
        for agent, at_s in zip((member, without), reversed(before), strict=True)
    )
    more = (own_s - usual_s) / IDLE_S / VISITORS
    yield "idle visitor, CPU of the member", f"{more:.2%}", "", "", ""
    each = (sum(map(cpu_s, pids)) - visitors_s) / IDLE_S / VISITORS
    yield "idle visitor, its own CPU", f"{each:.2%}", "", "", ""


@contextlib.contextmanager
def _visitors(agent: Agent) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep visitors at an agent, which never get a task."""
    started = [_start(agent) for _ in range(VISITORS)]
    try:
        until(
            lambda: _count_visitors(agent) == VISITORS,
            "all visitors are there",
            deadline_s=START_S,
        )
        yield started
    finally:
        for visitor in started:
            visitor.terminate()
        for visitor in started:
            visitor.communicate()


def _count_visitors(agent: Agent) -> int:
    _, page = agent.call("GET", "/api/v1/nodes")
    return sum(node["visitor"] for node in page["nodes"])


def _cpu_s(agent: Agent) -> float:
    """Return the CPU seconds of an agent and its launchers."""
    pid = agent.process.pid
    return cpu_s(pid) + sum(map(cpu_s, children(pid)))
