"""What the copies cost: throughput with two standbys, and bytes of an idle mesh."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import (
    BATCH,
    Row,
    bound_row,
    count,
    occupy,
    replicas,
    throughput,
    until,
)
from tests.mesh.lab import Lab
from tests.mesh.netns import missing
from tests.mesh.scene import Scene
from tests.support.agents import Agent, running, start, until_nodes

SLOTS = 2
SHARE = 0.7
HOSTS = 5
SETTLE_S = 10.0
KB = 1000


def throughput_shared(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Bulk throughput of a dispatcher with two standbys, against one with none.

    All on the same cores, in turns; the standbys' slots are taken, so that they keep
    copies and run nothing.
    """
    tasks, runs = (3000, 3) if quick else (10_000, 5)
    alone, copied = [], []
    with (
        running(folder / "alone", "solo", extra=("--slots", str(SLOTS))) as (solo,),
        _copied(folder / "copied") as head,
    ):
        for agent in (solo, head):
            throughput(agent, "true", BATCH)  # Launchers start with the first task.
        for _ in range(runs):
            alone.append(throughput(solo, "true", tasks))
            copied.append(throughput(head, "true", tasks))
    rate = statistics.median(copied)
    ratio = statistics.median(b / a for a, b in zip(alone, copied, strict=True))
    yield "bulk true, no standby", f"{statistics.median(alone):.0f}/s", "1.00", "", ""
    yield (
        "bulk true, two standbys on the same cores",
        f"{rate:.0f}/s",
        f"{ratio:.2f}",
        f">= {SHARE}",
        "yes" if ratio >= SHARE else "no",
    )


@contextlib.contextmanager
def _copied(folder: Path) -> Iterator[Agent]:
    """Run a dispatcher and two standbys whose slots are taken."""
    with running(folder, "head", extra=("--slots", str(SLOTS))) as (head,):
        until_nodes(head, 1)
        standbys: list[Agent] = []
        try:
            standbys += [start(folder, name, "--slots", "1") for name in ("ana", "ben")]
            until_nodes(head, 1 + len(standbys))
            tasks = occupy(head, SLOTS + len(standbys))
            own = [task for task in tasks if _place(head, task) == "head"]
            assert len(own) == SLOTS
            _cancel(head, own)
            until("two copies", lambda: replicas(head) > 1)
            until("the slots are free", lambda: count(head, "queued") == 0)
            yield head
            _cancel(head, [task for task in tasks if task not in own])
        finally:
            for agent in standbys:
                agent.stop()


def _place(agent: Agent, task: str) -> str:
    _, found = agent.call("GET", f"/api/v1/tasks/{task}")
    return str(found["worker_id"])


def _cancel(agent: Agent, tasks: list[str]) -> None:
    for task in tasks:
        status, answer = agent.call("DELETE", f"/api/v1/tasks/{task}?force=true")
        assert status == 200, answer


def request_metrics(_: Path, *, quick: bool) -> Iterator[Row]:
    """Bytes on the cable of each host of an idle mesh: TLS, TCP, mDNS and all."""
    if (reason := missing()) is not None:
        raise FileNotFoundError(reason)
    seconds = 10.0 if quick else 60.0
    with Lab(HOSTS) as lab:
        scene = Scene("traffic", lab).form()
        head = scene.dispatcher()
        time.sleep(SETTLE_S)
        before = _bytes(lab)
        time.sleep(seconds)
        rates = {
            port: [
                (b - a) / seconds / KB for a, b in zip(before[port], ways, strict=True)
            ]
            for port, ways in _bytes(lab).items()
        }
    mean = statistics.mean(sent for sent, _ in rates.values())
    yield bound_row(f"idle mesh of {HOSTS}: sent by a node, mean", mean, "kB/s", 5)
    for way, rate in zip(("sent", "received"), rates[head.port], strict=True):
        yield bound_row(f"its dispatcher: {way}", rate, "kB/s", 5)


def _bytes(lab: Lab) -> dict[str, tuple[int, int]]:
    """Return the bytes that each host has sent and received on its cable."""
    command = ["ip", "-n", lab.switch, "-s", "-j", "link", "show", "type", "veth"]
    done = subprocess.run(command, check=True, capture_output=True)
    ports = {host.port for host in lab.hosts}
    return {
        # What the switch receives, the host has sent.
        link["ifname"]: (link["stats64"]["rx"]["bytes"], link["stats64"]["tx"]["bytes"])
        for link in json.loads(done.stdout)
        if link["ifname"] in ports
    }
