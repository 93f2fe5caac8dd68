"""What the benchmarks share: rows of the table, and what is measured of an agent."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.support.agents import Agent, request

BATCH = 1000
Row = tuple[str, str, str, str, str]  #: figure, value, ratio, goal, whether it is met


def ratio_row(
    name: str, rate: float, limit: float, goal: float, what: str = "R"
) -> Row:
    """Return a row for a rate that is compared with a limit."""
    ratio = rate / limit
    met = "yes" if ratio >= goal else "no"
    return name, f"{rate:.0f}/s", f"{ratio:.2f}", f">= {goal} {what}", met


def throughput(agent: Agent, command: str, count: int = 10_000) -> float:
    """Return tasks per second from the first POST until the client has every result.

    The client reads the results of each batch as soon as the batch is done, as a
    program would that works on them.
    """
    connection = agent.connection()
    _, page = request(connection, "GET", "/api/v1/tasks?limit=1")
    before = page["total"]
    batch = [{"command": command}] * BATCH
    last: list[str] = []
    began = time.perf_counter()
    for _ in range(count // BATCH):
        status, tasks = request(connection, "POST", "/api/v1/tasks", batch)
        assert status == 201, tasks
        last.append(tasks[-1]["id"])
    codes: list[int] = []
    for task_id in last:
        request(connection, "GET", f"/api/v1/tasks/{task_id}?wait=120")
        codes += _exit_codes(connection, before + len(codes))
    elapsed = time.perf_counter() - began
    connection.close()
    assert codes == [0] * count
    return count / elapsed


def _exit_codes(connection: HTTPConnection, offset: int) -> list[int]:
    """Return the exit codes of one batch, once the last stragglers have ended."""
    while True:
        _, page = request(
            connection, "GET", f"/api/v1/tasks?limit={BATCH}&offset={offset}"
        )
        codes = [task["exit_code"] for task in page["tasks"]]
        if None not in codes:
            return codes


def exchange(
    connection: socket.socket, method: str, path: str, body: bytes = b""
) -> Any:
    """Send one request and return the decoded answer, at the least cost in Python."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + b"\r\n" + body)
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    headers, _, answer = data.partition(b"\r\n\r\n")
    length = int(headers.lower().partition(b"content-length:")[2].split()[0])
    while len(answer) < length:
        answer += connection.recv(65536)
    return json.loads(answer)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, by the scheduler's exact clock."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, of an agent its launchers."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    return _status_mb(pid, "VmRSS:")


def rss_max_mb(pid: int) -> float:
    """Return the most memory that was resident since the process began."""
    return _status_mb(pid, "VmHWM:")


def _status_mb(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field}")


def bound_row(name: str, value: float, unit: str, most: float) -> Row:
    """Return a row for a figure that must stay below `most`."""
    met = "yes" if value < most else "no"
    return name, f"{value:.2f} {unit}", "", f"< {most:g} {unit}", met


def p95_row(name: str, samples: list[float], goal_s: float) -> Row:
    """Return a row for times whose 95th percentile counts."""
    ordered = sorted(samples)
    p95 = ordered[max(0, -(-len(ordered) * 95 // 100) - 1)]
    return (
        f"{name}, p95 of {len(samples)}",
        f"{p95:.2f} s",
        f"p50 {statistics.median(samples):.2f}",
        f"<= {goal_s} s",
        "yes" if p95 <= goal_s else "no",
    )


def occupy(agent: Agent, slots: int) -> list[str]:
    """Keep so many slots of a mesh, all that it has, busy; return the tasks."""
    command = [{"command": "sleep 3600"}] * slots
    status, tasks = agent.call("POST", "/api/v1/tasks", command)
    assert status == 201, tasks
    until("all slots are taken", lambda: count(agent, "running") == slots)
    return [task["id"] for task in tasks]


def count(agent: Agent, state: str) -> int:
    """Return how many tasks of the mesh are in a state."""
    status, stats = agent.call("GET", "/api/v1/stats")
    assert status == 200, stats
    return int(stats["tasks"][state])


def replicas(agent: Agent) -> int:
    """Submit a task that ends at once; return how many disks held it by the answer."""
    with contextlib.closing(agent.connection()) as connection:
        head = {"Content-Type": "application/json"}
        connection.request("POST", "/api/v1/tasks", b'{"command":"true"}', head)
        reply = connection.getresponse()
        assert reply.status == 201, reply.read()
        return int(reply.headers["Octaskly-Replicas"])


def until(what: str, is_true: Callable[[], bool], *, within_s: float = 30.0) -> float:
    """Wait for something; return the seconds that it took."""
    began_s = time.perf_counter()
    while not is_true():
        if time.perf_counter() > began_s + within_s:
            raise RuntimeError(f"not within {within_s} s: {what}")
        time.sleep(0.01)
    return time.perf_counter() - began_s
