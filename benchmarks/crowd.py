"""Many agents on one machine: idle, and when half of them die at once."""

from __future__ import annotations

import contextlib
import re
import selectors
import signal
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path

from benchmarks.measure import Row, bound_row, cpu_s, until
from tests.support.agents import Agent, start, until_nodes
from tests.support.latency import waited_for_core_s

AT_ONCE = 4  #: agents that start at the same time
START_S = 600.0  #: no goal: beside other work it takes a hundred their time
FORM_S = 900.0
SETTLE_S = 5.0
WATCH_S = 8.0  #: after the kill
EVERY_S = 0.1  #: each survivor is asked so often, if it has answered
IDLE_PERCENT = 2.0
LAG_MS = 200.0
AGREE_S = 60.0  #: no goal either
MOVED = re.compile("dispatcher (followed|elected) ")
ASK = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Start a crowd, watch its dispatcher idle at half its size, kill half of it."""
    size = 10 if quick else 100
    agents: list[Agent] = []
    try:
        head = grow(folder, agents, size // 2)
        time.sleep(SETTLE_S)
        seconds = 10.0 if quick else 30.0
        began_s = cpu_s(head.process.pid)
        time.sleep(seconds)
        percent = (cpu_s(head.process.pid) - began_s) / seconds * 100
        name = f"idle dispatcher of {len(agents)} nodes: share of a core"
        yield bound_row(name, percent, "%", IDLE_PERCENT)
        head = grow(folder, agents, size)
        time.sleep(SETTLE_S)
        dead = [head, *(agent for agent in agents if agent is not head)][: size // 2]
        left = [agent for agent in agents if agent not in dead]
        probes = [Probe(agent) for agent in left]
        for agent in dead:
            agent.process.send_signal(signal.SIGKILL)
        killed = time.time()
        watch(probes, until_s=time.perf_counter() + WATCH_S)
        heads = agreed_on(left, within_s=AGREE_S)
        met = "yes" if len(heads) == 1 else "no"
        name = f"half of {size} killed: dispatchers afterwards"
        yield name, f"{len(heads)}", "", "1", met
        lines = [line for agent in left for line in lines_since(agent, killed)]
        last_s = max((at for at, text in lines if MOVED.match(text)), default=killed)
        name = "until the last survivor had its dispatcher for good"
        yield name, f"{last_s - killed:.1f} s", "", "", ""
        claims = sum(text.startswith("claiming ") for _, text in lines)
        yield "claims meanwhile", f"{claims}", "", "", ""
        worst = max(probe.lag_s for probe in probes) * 1000
        yield bound_row("loop lag of the survivors, worst", worst, "ms", LAG_MS)
        waited = max(probe.answer_s for probe in probes) * 1000
        yield (
            "the same with the time spent waiting for a core",
            f"{waited:.0f} ms",
            "",
            "",
            "",
        )
    finally:
        for agent in agents:
            agent.process.kill()
        for agent in agents:
            agent.process.wait()


def grow(folder: Path, agents: list[Agent], size: int) -> Agent:
    """Start agents, a few at a time, until there are so many; return the dispatcher."""
    while len(agents) < size:
        fresh = [
            start(folder, f"node{number}", "--slots", "1")
            for number in range(len(agents), min(size, len(agents) + AT_ONCE))
        ]
        agents += fresh
        until("they are ready", partial(_are_ready, fresh), within_s=START_S)
    until_nodes(agents[0], size, deadline_s=FORM_S)
    name = _head_of(agents[0])
    return next(agent for agent in agents if agent.state.name == name)


def _are_ready(agents: list[Agent]) -> bool:
    return all(agent.description() for agent in agents)


def _head_of(agent: Agent) -> str:
    """Return the name of the dispatcher that an agent knows; empty if it has none."""
    status, body = agent.call("GET", "/api/v1/nodes")
    nodes = body["nodes"] if status == HTTPStatus.OK else []
    return " ".join(n["name"] for n in nodes if n["role"] == "dispatcher")


def agreed_on(agents: list[Agent], *, within_s: float) -> set[str]:
    """Wait until all name one of them as dispatcher; return what they name at last."""
    names = {agent.state.name for agent in agents}
    ends_s = time.perf_counter() + within_s
    while True:
        heads = {_head_of(agent) for agent in agents}
        if len(heads) == 1 and heads <= names:
            return heads
        if time.perf_counter() > ends_s:
            return heads
        time.sleep(1.0)


def lines_since(agent: Agent, began: float) -> Iterator[tuple[float, str]]:
    """Yield what an agent has logged since a time, each line with its own time."""
    for line in agent.log().splitlines():
        at, _, rest = line.partition(" [")
        with contextlib.suppress(ValueError):
            logged = datetime.fromisoformat(at).timestamp()
            if logged >= began:
                yield logged, rest.partition("] ")[2]


class Probe:
    """Asks one agent for its health, which its event loop alone answers.

    What this process itself waits for a core counts as lag of the agent.
    """

    def __init__(self, agent: Agent) -> None:
        self.lag_s = 0.0  #: longest answer, without what was waited for a core
        self.answer_s = 0.0  #: longest answer
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(agent.ready()["socket"])
        self._scheduled = Path(f"/proc/{agent.process.pid}/schedstat")
        self._asked_s = 0.0
        self._waited_s = 0.0
        self._is_asked = False

    def ask(self, now_s: float) -> None:
        """Ask, unless an answer is awaited."""
        if not self._is_asked and now_s >= self._asked_s + EVERY_S:
            self._is_asked = True
            self._waited_s = waited_for_core_s(self._scheduled)
            self._asked_s = time.perf_counter()
            self.connection.sendall(ASK)

    def take(self) -> None:
        """Take the answer."""
        assert self.connection.recv(4096)
        took_s = time.perf_counter() - self._asked_s
        self._is_asked = False
        waited_s = waited_for_core_s(self._scheduled) - self._waited_s
        self.answer_s = max(self.answer_s, took_s)
        self.lag_s = max(self.lag_s, took_s - waited_s)


def watch(probes: list[Probe], *, until_s: float) -> None:
    """Ask all agents again and again until a moment; then the probes are used up."""
    with selectors.DefaultSelector() as selector:
        for probe in probes:
            selector.register(probe.connection, selectors.EVENT_READ, probe)
        while (now_s := time.perf_counter()) < until_s:
            for probe in probes:
                probe.ask(now_s)
            for key, _ in selector.select(EVERY_S / 10):
                key.data.take()
    for probe in probes:
        with contextlib.suppress(OSError):
            probe.connection.close()
