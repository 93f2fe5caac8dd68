"""A node that runs out of something says so, ends what runs, and recovers alone.

Rows B33 and B41 of the bad input that Octaskly must bear, threats 18, 23 and 24.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from octaskly.stats import stalled_percent
from tests.agents import Agent, running, start, until_nodes
from tests.integration.test_agent import TASKS, ending, finished, submit, until
from tests.mesh.faults import fill, small_disk

DISK_MB = 80  #: of which 64 are kept free
NODES = "/api/v1/nodes"


def node_of(agent: Agent, name: str) -> dict[str, Any]:
    found: dict[str, Any] = agent.call("GET", f"{NODES}/{name}")[1]
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_takes_no_work_and_recovers_alone(tmp_path: Path) -> None:
    """What runs ends and is told, new work is refused, reading works (B33)."""
    with small_disk(tmp_path / "solo", DISK_MB) as disk:
        agent = start(tmp_path, "solo", "--slots", "1")
        with ending(agent):
            gate = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo well"
            runs = submit(agent, f"touch {tmp_path}/on; {gate}")
            until((tmp_path / "on").exists, "it runs")
            waits = submit(agent, "echo late")
            ballast = fill(disk, left_bytes=8 << 20)
            until(lambda: node_of(agent, "solo")["short_of"] == "disk", "it says so")

            assert agent.call("POST", TASKS, {"command": "true"})[0] == 507
            (tmp_path / "go").touch()
            assert finished(agent, runs)["stdout"] == "well\n"
            assert agent.call("GET", f"{TASKS}/{waits}")[1]["status"] == "queued"
            assert node_of(agent, "solo")["state"] == "ready"

            ballast.unlink()
            assert finished(agent, waits)["stdout"] == "late\n"
            until(lambda: node_of(agent, "solo")["short_of"] is None, "it recovers")
            assert "short_of=disk" in agent.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_worker_with_a_full_disk_gets_no_work(tmp_path: Path) -> None:
    """The others get it (B33)."""
    with (
        small_disk(tmp_path / "ben", DISK_MB) as disk,
        running(tmp_path, "ana", "ben", extra=("--slots", "1")) as (ana, ben),
    ):
        until_nodes(ana, 2)
        fill(disk, left_bytes=8 << 20)
        until(lambda: node_of(ana, "ben")["short_of"] == "disk", "it says so")
        command = "sleep 0.2; echo $OCTASKLY_NODE"
        ids = [submit(ana, command) for _ in range(4)]

        assert {finished(ana, task)["stdout"] for task in ids} == {"ana\n"}
        assert ben.call("GET", TASKS)[0] == 200


def test_pressure_on_memory_is_read_as_the_kernel_tells_it() -> None:
    """Not all kernels do (B41)."""
    told = (
        "some avg10=41.50 avg60=3.11 avg300=0.70 total=100\n"
        "full avg10=22.04 avg60=1.30 avg300=0.25 total=90\n"
    )

    assert stalled_percent(told) == 22.04
    assert stalled_percent("some avg10=1.00 avg60=0.00 avg300=0.00 total=1\n") == 0.0
    assert stalled_percent("") == 0.0
