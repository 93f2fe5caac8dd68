"""Tasks that return at once: what is left is the control plane."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.measure import Row, bound_row, count, cpu_s, occupy, until
from octaskly.trust import create_secret_file
from tests.support.agents import Agent, launch, running, until_nodes
from tests.support.no_op_agent import NO_OP_PROGRAM

BULK = 10_000  #: as many as one request may hold
SLOTS = 512  #: so that work never waits for a message to come round
RATE = 60_000
ACCEPT_RATE = 200_000
CPU_US = 18.0
"""A third of the 55 us that a task took before packed rows, in the loop and the writer.
"""


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Tasks that cost nothing, from the first request to the last durable result."""
    batches, runs = (2, 1) if quick else (5, 3)
    with no_op_agent(folder) as agent:
        work(agent, 1)
        began_s = cpu_s(agent.process.pid)
        rate = statistics.median(work(agent, batches) for _ in range(runs))
        used_s = cpu_s(agent.process.pid) - began_s
    yield _row("no-op tasks, durable", rate, RATE)
    cpu_us = used_s / (runs * batches * BULK) * 1e6
    yield bound_row("no-op tasks: agent CPU a task", cpu_us, "us", CPU_US)
    with running(folder, "accepting", extra=("--slots", "1")) as (agent,):
        occupy(agent, 1)
        rate = statistics.median(accept(agent, batches)[0] for _ in range(runs))
    yield _row("bulk accept, durable", rate, ACCEPT_RATE)


@contextlib.contextmanager
def no_op_agent(
    folder: Path, environ: Mapping[str, str] = os.environ
) -> Iterator[Agent]:
    """Run an agent whose tasks return at once."""
    folder.mkdir(parents=True, exist_ok=True)
    create_secret_file(folder / "mesh.key")
    agent = launch(
        folder / "noop",
        folder / "mesh.key",
        *("--name", "noop", "--slots", str(SLOTS)),
        program=NO_OP_PROGRAM,
        environ=environ,
    )
    try:
        until_nodes(agent, 1)
        yield agent
    finally:
        agent.stop()


def _row(name: str, rate: float, goal: int) -> Row:
    met = "yes" if rate >= goal else "no"
    return name, f"{rate:.0f}/s", f"{rate / goal:.2f}", f">= {goal}/s", met


def work(agent: Agent, batches: int) -> float:
    """Return tasks per second until the last result is durable."""
    done = count(agent, "completed") + batches * BULK
    began_s = time.perf_counter()
    _, last = accept(agent, batches)
    agent.call("GET", f"/api/v1/tasks/{last}?wait=60")
    until("all have ended", lambda: count(agent, "completed") == done)
    return batches * BULK / (time.perf_counter() - began_s)


def accept(agent: Agent, batches: int) -> tuple[float, str]:
    """Return tasks per second that are accepted from one client; and the last one."""
    head = {"Content-Type": "application/json"}
    body = json.dumps([{"command": "true"}] * BULK).encode()
    answer = b""
    with contextlib.closing(agent.connection()) as connection:
        connection.connect()
        began_s = time.perf_counter()
        for _ in range(batches):
            connection.request("POST", "/api/v1/tasks", body, head)
            reply = connection.getresponse()
            answer = reply.read()
            assert reply.status == 201, answer
        took_s = time.perf_counter() - began_s
    return batches * BULK / took_s, str(json.loads(answer)[-1]["id"])
