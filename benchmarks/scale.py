"""Long queues: a dispatcher that dies again and again, and a standby that joins."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import BATCH, Row, bound_row, count, occupy, rss_max_mb, until
from octaskly.core.replication.replication import STANDBYS_MAX
from tests.support.agents import Agent, request, running, start, until_nodes

NODES = 4
SPARES = 4
TAKEOVER_S = 2.0
DRAIN_S = 300.0  #: for the queue to be worked off after the last kill
JOIN_S = 180.0  #: of a join that clients are measured beside; a million takes longer
PAUSE_S = 0.02
TURN_S = 2.0  #: between two ways to share the cores while a standby joins
ACCEPT_MS = 50.0
MEMORY_MB = 300.0


class _Clients:
    """Clients of a mesh that remember how much was accepted."""

    def __init__(self) -> None:
        self.accepted = 0

    def submit(self, agent: Agent, command: str, tasks: int) -> None:
        """Submit so many tasks in large requests."""
        with contextlib.closing(agent.connection()) as connection:
            for _ in range(tasks // BATCH):
                batch = [{"command": command}] * BATCH
                status, answer = request(connection, "POST", "/api/v1/tasks", batch)
                assert status == 201, answer
                self.accepted += len(answer)

    def replicas(self, agent: Agent) -> int:
        """Submit one task, again if need be; return how many disks hold it."""
        head = {
            "Content-Type": "application/json",
            "Idempotency-Key": f"one-{self.accepted}",
        }
        body = json.dumps({"command": "true"})
        with contextlib.closing(agent.connection()) as connection:
            while True:
                connection.request("POST", "/api/v1/tasks", body, head)
                reply = connection.getresponse()
                reply.read()
                if reply.status in (200, 201):
                    self.accepted += 1
                    return int(reply.headers["Octaskly-Replicas"])


def kills(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Kill the dispatcher of a long queue again and again; nothing may be lost.

    All slots are taken until the last kill, so that the whole queue is handed on each
    time; then it is worked off and counted.
    """
    tasks, times = (10_000, 3) if quick else (100_000, 10)
    clients = _Clients()
    takeovers, wrong = [], 0
    names = [f"node{number}" for number in range(NODES)]
    with running(folder, *names, extra=("--slots", "1")) as agents:
        until_nodes(agents[0], NODES)
        blocks = occupy(agents[0], NODES) + _spares(agents[0])
        clients.submit(agents[0], "true", tasks)
        for _ in range(times):
            until("two standbys are level", lambda: _is_whole(agents[0]), within_s=60)
            takeovers.append(_kill(folder, agents, clients))
            open_ = _unfinished(agents[0]) + count(agents[0], "failed")
            wrong += clients.accepted + len(blocks) != open_
        for task in blocks:
            agents[0].call("DELETE", f"/api/v1/tasks/{task}?force=true")
        until("all done", lambda: not _unfinished(agents[0]), within_s=DRAIN_S)
        lost = clients.accepted - count(agents[0], "completed")
    worst, p50 = max(takeovers), statistics.median(takeovers)
    name, value, _, goal, met = bound_row(
        f"next accept, worst of {times} kills", worst, "s", TAKEOVER_S
    )
    yield name, value, f"p50 {p50:.2f}", goal, met
    met = "yes" if wrong == 0 else "no"
    yield f"{tasks} queued: wrong counts after a kill", f"{wrong}", "", "0", met
    met = "yes" if lost == 0 else "no"
    yield f"accepted {clients.accepted}, not completed", f"{lost}", "", "0", met


def _spares(agent: Agent) -> list[str]:
    """Queue tasks that take a slot when one fails that has lost its node thrice."""
    spares = [{"command": "sleep 1000"}] * SPARES
    status, tasks = agent.call("POST", "/api/v1/tasks", spares)
    assert status == 201, tasks
    return [task["id"] for task in tasks]


def _kill(folder: Path, agents: list[Agent], clients: _Clients) -> float:
    """Kill the dispatcher, start it again; return seconds to the next accept."""
    _, body = agents[0].call("GET", "/api/v1/nodes")
    (head,) = (n["name"] for n in body["nodes"] if n["role"] == "dispatcher")
    place = next(i for i, agent in enumerate(agents) if agent.state.name == head)
    witness = agents[not place]
    agents[place].process.kill()
    began_s = time.perf_counter()
    clients.replicas(witness)
    took_s = time.perf_counter() - began_s
    agents[place].process.wait()
    agents[place] = start(folder, head, "--slots", "1")
    until_nodes(witness, len(agents), deadline_s=60)
    return took_s


def _is_whole(agent: Agent) -> bool:
    """Return whether both standbys keep up, and every slot is taken."""
    _, body = agent.call("GET", "/api/v1/nodes")
    level = [standby["state"] == "level" for standby in body["standbys"]]
    return (
        len(level) == STANDBYS_MAX and all(level) and count(agent, "running") == NODES
    )


def _unfinished(agent: Agent) -> int:
    """Return how many tasks are queued or run."""
    _, stats = agent.call("GET", "/api/v1/stats")
    return int(stats["tasks"]["queued"] + stats["tasks"]["running"])


def million(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Let a standby join a dispatcher with a long queue, while clients submit."""
    tasks = 50_000 if quick else 1_000_000
    clients = _Clients()
    slots = ("--slots", "1")
    with running(folder, "head", extra=slots) as (head,):
        until_nodes(head, 1)
        occupy(head, 1)
        began_s = time.perf_counter()
        clients.submit(head, "true", tasks)
        rate = tasks / (time.perf_counter() - began_s)
        yield f"{tasks} queued", f"{rate:.0f}/s", "", "", ""
        standby = start(folder, "standby", *slots)
        try:
            began_s = time.perf_counter()
            apart, shared = _accept_ms(head, standby, clients)
            joined_s = time.perf_counter() - began_s
            memory = {
                name: rss_max_mb(agent.process.pid)
                for name, agent in (("dispatcher", head), ("standby", standby))
            }
        finally:
            standby.process.kill()
            standby.process.wait()
        head.process.kill()
    joined = f"{joined_s:.1f} s" if joined_s < JOIN_S else f"> {JOIN_S:.0f} s"
    yield "a standby joins, from its start to level", joined, "", "", ""
    name = f"accept meanwhile, a core for each node, p99 of {len(apart)}"
    yield bound_row(name, _p99(apart), "ms", ACCEPT_MS)
    name = f"the same where both share all cores, p99 of {len(shared)}"
    yield name, f"{_p99(shared):.0f} ms" if shared else "none", "", "", ""
    for name, most in memory.items():
        yield bound_row(f"resident memory, {name}, at most", most, "MB", MEMORY_MB)


def _accept_ms(
    head: Agent, standby: Agent, clients: _Clients
) -> tuple[list[float], list[float]]:
    """Submit one task after the other until a standby is level, or for `JOIN_S`.

    In turns the dispatcher and the clients have one core and the standby another, as
    on machines of their own, and all share what there is. Return milliseconds of both.
    """
    apart: list[float] = []
    shared: list[float] = []
    everything = os.sched_getaffinity(0)
    one = min(everything)
    other = everything - {one} or everything
    began_s = time.perf_counter()
    copies, turn = 1, None
    try:
        while copies == 1 and (at_s := time.perf_counter() - began_s) < JOIN_S:
            if turn != (turn := int(at_s / TURN_S) % 2):
                _confine(os.getpid(), everything if turn else {one})
                _confine(head.process.pid, everything if turn else {one})
                _confine(standby.process.pid, everything if turn else other)
            time.sleep(PAUSE_S)
            sent_s = time.perf_counter()
            copies = clients.replicas(head)
            took_ms = (time.perf_counter() - sent_s) * 1000
            (shared if turn else apart).append(took_ms)
    finally:
        _confine(os.getpid(), everything)
    return apart, shared


def _confine(pid: int, cores: set[int]) -> None:
    """Let all threads of a process run on these cores alone."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # A thread that has ended.
            os.sched_setaffinity(int(task.name), cores)


def _p99(samples: list[float]) -> float:
    return sorted(samples)[int(len(samples) * 0.99)]
