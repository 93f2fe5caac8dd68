"""How soon a visitor can run tasks, from the start of the process that burst starts."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, p95_row
from octaskly.cli.burst.runs import INVITE_VARIABLE, agent_command
from tests.support.agents import Agent, running, until_nodes

READY_S = 3.0
READY = b"visitor ready"  #: a line of its log
INVITE = {"ttl_s": 3600, "visitor": {"stay_s": 3600}}


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Start visitors one after the other, each with an invite of its own."""
    with running(folder / "burst", "solo") as (agent,):
        until_nodes(agent, 1)
        samples = [_ready_s(agent) for _ in range(3 if quick else 20)]
    yield p95_row("visitor ready, from the start of its process", samples, READY_S)


def _ready_s(agent: Agent) -> float:
    """Start a visitor, and return how long it took to be ready for tasks."""
    status, invite = agent.call("POST", "/api/v1/invites", INVITE)
    assert status == 201, invite
    environ = {**os.environ, INVITE_VARIABLE: invite["url"]}
    command = f"exec {agent_command(())}"
    began_s = time.perf_counter()
    visitor = subprocess.Popen(
        ["sh", "-c", command], env=environ, stderr=subprocess.PIPE
    )
    assert visitor.stderr is not None
    with visitor:
        is_ready = any(READY in line for line in visitor.stderr)
        ready_s = time.perf_counter() - began_s
        visitor.terminate()
        visitor.communicate()
    assert is_ready, "the visitor ended before it was ready"
    return ready_s
