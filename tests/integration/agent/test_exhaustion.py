"""A node without disk, memory or descriptors reports it, and recovers alone.

Rows B33 and B41 of the list of bad inputs, and threats 18, 23 and 24.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from octaskly.system.machine_stats import memory_stalled_percent
from tests.mesh.faults import fill, small_disk
from tests.support.agents import (
    TASKS,
    Agent,
    ending,
    finished,
    running,
    start,
    submit,
    until,
    until_nodes,
)

DISK_MB = 80  #: 64 of them are kept free
NODES = "/api/v1/nodes"
TOKENS = "/api/v1/tokens"


def node_of(agent: Agent, name: str) -> dict[str, Any]:
    found: dict[str, Any] = agent.call("GET", f"{NODES}/{name}")[1]
    return found


def test_a_node_whose_log_cannot_be_written_runs_tasks(tmp_path: Path) -> None:
    """As when only the disk of the log is full."""
    prefix = ("sh", "-c", 'exec "$@" 2>/dev/full', "sh")
    agent = start(tmp_path, "solo", "--log-level", "debug", prefix=prefix)
    with ending(agent):
        assert finished(agent, submit(agent, "echo well"))["stdout"] == "well\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_node_with_a_full_disk_accepts_no_work_and_recovers_alone(
    tmp_path: Path,
) -> None:
    """Running tasks end with a reason, new ones are refused, reads work (B33)."""
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
def test_changes_are_answered_without_disk_space(tmp_path: Path) -> None:
    """A cancel takes effect, and is kept once a repetition has some room.

    A token is not kept.
    """
    with small_disk(tmp_path / "solo", DISK_MB) as disk:
        agent = start(tmp_path, "solo", "--slots", "1")
        with ending(agent):
            go = tmp_path / "go"
            long = "head -c 1000000 /dev/urandom"
            runs = submit(agent, f"until test -e {go}; do sleep 0.05; done; {long}")
            waits = submit(agent, "true", after=[runs])
            ballast = fill(disk)
            go.touch()
            until(lambda: agent.call("GET", "/health")[0] == 503, "it fails")
            for _ in range(2):
                status, body = agent.call("DELETE", f"{TASKS}/{waits}")
                assert status == 507, body
                assert f"{waits} is cancelled, but the disk" in body["hint"], body

            for method, path, asked in (
                ("POST", TOKENS, {"role": "viewer", "name": "late"}),
                ("DELETE", f"{TOKENS}/{'0' * 32}", None),
            ):
                status, body = agent.call(method, path, asked)
                assert status == 507, (path, body)
                assert "cannot write its log" in body["hint"], body

            ballast.unlink()
            assert finished(agent, waits)["status"] == "cancelled"
            until(lambda: agent.call("GET", "/health")[0] == 200, "it is well")
            assert agent.call("GET", TOKENS)[1]["tokens"] == []
            assert agent.call("DELETE", f"{TASKS}/{waits}")[0] == 200
            assert finished(agent, runs)["stdout_bytes"] == 1_000_000


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


def test_memory_pressure_is_read_from_the_kernel() -> None:
    """Not all kernels report it (B41)."""
    text = (
        "some avg10=41.50 avg60=3.11 avg300=0.70 total=100\n"
        "full avg10=22.04 avg60=1.30 avg300=0.25 total=90\n"
    )

    assert memory_stalled_percent(text) == 22.04
    assert (
        memory_stalled_percent("some avg10=1.00 avg60=0.00 avg300=0.00 total=1\n")
        == 0.0
    )
    assert memory_stalled_percent("") == 0.0


def _used_s(pid: int) -> float:
    """Return a process's processor time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _asked(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20.0)
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection


def test_an_agent_short_of_descriptors_reports_it_and_recovers(tmp_path: Path) -> None:
    """Neither a crash nor a busy loop, and commands go on (B41, threat 24)."""
    with running(tmp_path, "solo") as (agent,), contextlib.ExitStack() as opened:
        assert finished(agent, submit(agent, "true"))["status"] == "completed"
        pid = agent.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, hard))
        port = int(str(agent.ready()["api_url"]).rpartition(":")[2])
        *older, newest = [opened.enter_context(_asked(port)) for _ in range(100)]
        # Older connections give way, so the newest is served.
        assert newest.recv(4096).startswith(b"HTTP/1.1 200")
        answers = []
        for connection in older:
            with contextlib.suppress(OSError):
                connection.settimeout(0.5)
                answers.append(connection.recv(4096))
        busy = [a for a in answers if a and not a.startswith(b"HTTP/1.1 200")]
        assert all(b"Retry-After: 1\r\n" in answer for answer in busy)

        begin_s, used_s = time.monotonic(), _used_s(pid)
        until(lambda: time.monotonic() > begin_s + 2.0, "time passes")
        assert _used_s(pid) - used_s < 1.0
        opened.close()
        until(lambda: _is_well(port), "it serves again")
        task = finished(agent, submit(agent, "echo back"))
        assert task["stdout"] == "back\n"


def _is_well(port: int) -> bool:
    with contextlib.suppress(OSError), _asked(port) as connection:
        return connection.recv(4096).startswith(b"HTTP/1.1 200")
    return False
