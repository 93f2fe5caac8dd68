"""A flood of unfinished TLS handshakes, while a node of the mesh comes back.

A third host opens 2000 connections a second from 150 addresses, to the peer port and
the LAN port of the dispatcher. The other node is killed and started again meanwhile,
and forwards many requests at once. Needs root and iproute2.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

from benchmarks.measure import Row, bound_row, rss_mb
from tests.mesh.forming import FORM_S, form, nodes, roles
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import ip, missing, wait_until
from tests.support.hello_flood import ADDRESSES, FIRST_ADDRESS

RATE = 2000
FLOOD_S = 1200.0  #: it ends with the lab
SETTLED_S = 5.0  #: of flood before the node is killed
GROWTH_MB_MAX = 50.0
BACK_S_MAX = 2.0
NETWORK = "10.77.1"
AT_ONCE = 16
IDLE_S = 6.0  #: until a node closes unused connections to another


def figures(_folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure the memory of the flooded node, and how long the other one is away."""
    if (reason := missing()) is not None:
        raise FileNotFoundError(reason)
    with Lab(3) as lab:
        form(lab, hosts=lab.hosts[:2])
        stranger = lab.hosts.pop()
        head, (other,) = roles(lab)
        lab.hosts.append(stranger)
        numbers = range(FIRST_ADDRESS, FIRST_ADDRESS + ADDRESSES)
        ip(
            *(f"addr add {NETWORK}.{number}/16 dev eth0" for number in numbers),
            netns=stranger.netns,
        )
        rounds = 1 if quick else 5
        calm_s = _median([_restart(head, other, lab) for _ in range(rounds)])
        yield "a node comes back, without strangers", f"{calm_s:.2f} s", "", "", ""
        before_mb = rss_mb(head.first.process.pid)
        flood = _flood(stranger, head)
        time.sleep(SETTLED_S)
        away_s = [_restart(head, other, lab) for _ in range(rounds)]
        statuses = _forwarded(other, rounds)
        assert flood.poll() is None, "the flood ended too early"
        growth_mb = rss_mb(head.first.process.pid) - before_mb
        yield bound_row(
            f"{RATE} strangers a second: memory", growth_mb, "MB", GROWTH_MB_MAX
        )
        name = f"meanwhile a node comes back, median of {rounds}"
        yield bound_row(name, _median(away_s), "s", BACK_S_MAX)
        yield "the slowest of them", f"{max(away_s):.2f} s", "", "", ""
        refused = statuses.total() - statuses[HTTPStatus.CREATED]
        yield (
            f"of {statuses.total()} submissions forwarded meanwhile, {AT_ONCE} at once",
            f"{refused} refused",
            "",
            "0",
            "no" if refused else "yes",
        )


def _median(samples: list[float]) -> float:
    return sorted(samples)[len(samples) // 2]


def _forwarded(other: Host, rounds: int) -> Counter[int]:
    """Submit at the other node; each round needs new connections to the dispatcher."""

    def submit(_: int) -> int:
        return other.http("POST", "/api/v1/tasks", json={"command": "true"}).status

    statuses = Counter[int]()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in range(rounds):
            statuses += Counter(threads.map(submit, range(AT_ONCE)))
            time.sleep(IDLE_S)
    return statuses


def _flood(stranger: Host, head: Host) -> subprocess.Popen[bytes]:
    described = head.first.description
    ports = str(described["peer_port"]), described["lan_url"].rpartition(":")[2]
    return stranger.popen(
        *(sys.executable, "-m", "tests.support.hello_flood", str(RATE), str(FLOOD_S)),
        *(NETWORK, head.ip, *ports),
        stdout=subprocess.DEVNULL,
    )


def _restart(head: Host, other: Host, lab: Lab) -> float:
    """Restart the agent of a host; return the seconds from its start to its return.

    They begin when it listens: a start of Python is no matter of the flood.
    """
    other.first.process.kill()
    other.first.process.wait()
    wait_until("it is lost", lambda: not _is_ready(head, other), within_s=FORM_S)
    other.agent("", "--slots", "2", secret=lab.folder / "mesh.key")
    began_s = time.perf_counter()
    wait_until("it is back", lambda: _is_ready(head, other), within_s=FORM_S)
    return time.perf_counter() - began_s


def _is_ready(head: Host, other: Host) -> bool:
    states = {node["name"]: node["state"] for node in nodes(head)}
    return states.get(other.name) == "ready"
