"""Real agents for tests and benchmarks: processes on loopback, stopped by pid."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from octaskly.api.problems import NO_DISPATCHER
from octaskly.trust import create_secret_file
from tests.support.fork_server import ForkedProcess, ForkServer

AGENT_MODULES = (
    *("octaskly.cli.root", "octaskly.cli.agent"),
    *("octaskly.agent.main", "octaskly.agent.lifecycle"),
)
READY_S_MAX = 90.0  #: a busy machine is slow to start many
STOP_S_MAX = 20.0
DRAIN_S = 0.3  #: for tasks that still run at the end of a test
END_S_MAX = 90.0  #: seconds for tasks to end, with many before them
WAIT_S_MAX = 45.0  #: seconds for changes that take a second or two elsewhere
TASKS = "/api/v1/tasks"
ENDS = ("completed", "failed", "cancelled")
AS_OTHERS = (
    ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    if os.geteuid() == 0
    else ()
)
"""Prefix of a command that must respect file modes, even as root."""


def soon_s(promised_s: float) -> float:
    """Return how long to wait for an event that is promised within a time.

    `make soak` holds the product to the time itself. In `make test` only the event
    counts, because any machine stalls for a second or two.
    """
    is_soak = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
    return promised_s if is_soak else WAIT_S_MAX


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the agent's local socket, where no token is needed."""

    def __init__(self, path: str, timeout_s: float = 120.0) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class Agent:
    """One running agent."""

    process: subprocess.Popen[bytes] | ForkedProcess
    state: Path
    started: float  #: perf_counter at the start of the process

    def description(self) -> dict[str, Any] | None:
        """Return `agent.json` once the agent is ready."""
        with contextlib.suppress(OSError, ValueError):
            text = (self.state / "agent.json").read_text()
            found: dict[str, Any] = json.loads(text)
            if found.get("pid") == self.process.pid:
                return found
        return None

    def ready(self) -> dict[str, Any]:
        """Wait for `agent.json`."""
        deadline = time.perf_counter() + READY_S_MAX
        while time.perf_counter() < deadline:
            if found := self.description():
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError(f"the agent did not start:\n{self.log()}")

    def log(self) -> str:
        """Return its log so far."""
        return (self.state / "log.txt").read_text()

    def connection(self) -> UnixConnection:
        """Return a connection to its local socket."""
        return UnixConnection(self.ready()["socket"])

    def call(
        self, method: str, path: str, body: object = None, *, key: str | None = None
    ) -> tuple[int, Any]:
        """Send one request over the local socket; return status and decoded body."""
        with contextlib.closing(self.connection()) as connection:
            return request(connection, method, path, body, key=key)

    def stop(self) -> None:
        """Stop it, by SIGTERM first."""
        stop_all([self])


def stop_all(agents: Collection[Agent], drain_s: float = STOP_S_MAX) -> None:
    """Stop agents at once, by SIGTERM first; each takes a moment to say goodbye.

    A second SIGTERM after `drain_s` ends the tasks that still run.
    """
    for agent in agents:
        agent.process.terminate()
    deadline_s = time.monotonic() + drain_s
    for agent in agents:
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.process.wait(max(0.0, deadline_s - time.monotonic()))
            continue
        agent.process.terminate()
    for agent in agents:
        try:
            agent.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            agent.process.kill()
            agent.process.wait()


def request(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    token: str | None = None,
    *,
    key: str | None = None,
) -> tuple[int, Any]:
    """Send one request, with an idempotency key if given; return status and body."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if key:
        headers["Idempotency-Key"] = key
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = json.dumps(body).encode() if body is not None else None
    connection.request(method, path, body=data, headers=headers)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read() or b"null")


def start(folder: Path, name: str, *extra: str, prefix: Sequence[str] = ()) -> Agent:
    """Start an agent that shares the mesh secret of `folder`, made beforehand.

    An agent that makes its own secret would wait while another mesh is in sight.
    """
    create_secret_file(folder / "mesh.key")
    words = ("--name", name, *extra)
    return launch(folder / name, folder / "mesh.key", *words, prefix=prefix)


ANY_PORTS = ("--api-port", "0", "--peer-port", "0", "--lan-port", "0")
UNFORKED = ("env",)
"""Prefix of an agent that needs an interpreter of its own."""

_forks: list[ForkServer] = []


@contextlib.contextmanager
def forked_starts() -> Iterator[None]:
    """Start agents as forks within a block, which saves most of their processor time.

    An agent with a program, prefix or environment of its own starts as for users.
    """
    with contextlib.closing(ForkServer(*AGENT_MODULES)) as server:
        _forks.append(server)
        yield
        _forks.clear()


def fork_agent(
    words: Sequence[str],
    *,
    environ: Mapping[str, str],
    files: Sequence[IO[bytes]],
    netns: str = "",
) -> ForkedProcess | None:
    """Start an agent as `ForkServer.start` does; None if none is forked now."""
    if not _forks:
        return None
    return _forks[0].start(words, environ=environ, files=files, netns=netns)


def launch(
    state: Path,
    secret: Path,
    *extra: str,
    program: str = "octaskly",
    environ: Mapping[str, str] = os.environ,
    ports: Sequence[str] = ANY_PORTS,
    prefix: Sequence[str] = (),
    descriptors: Sequence[int] = (),
) -> Agent:
    """Start an agent with this state folder and secret file.

    Args:
        state: Its state folder.
        secret: The file of the mesh secret.
        extra: More flags.
        program: The module to run.
        environ: Its environment, but for the settings in it.
        ports: The flags of its ports; by default it takes any.
        prefix: A command that becomes the agent's process.
        descriptors: Open files that the prefix inherits.
    """
    state.mkdir(parents=True, exist_ok=True)
    words = ["agent", "--interface", "lo", "--state-dir", str(state)]
    words += ["--secret-file", str(secret), *ports, *extra]
    is_usual = program == "octaskly" and environ is os.environ and not prefix
    environ = {k: v for k, v in environ.items() if not k.startswith("OCTASKLY_")}
    process: subprocess.Popen[bytes] | ForkedProcess | None = None
    with (state / "log.txt").open("ab") as log, Path(os.devnull).open("rb") as nothing:
        if is_usual:
            process = fork_agent(words, environ=environ, files=(nothing, log, log))
        process = process or subprocess.Popen(
            [*prefix, sys.executable, "-m", program, *words],
            stdin=nothing,
            stdout=log,
            stderr=log,
            env=environ,
            pass_fds=descriptors,
        )
    return Agent(process, state, time.perf_counter())


@contextlib.contextmanager
def running(
    folder: Path,
    *names: str,
    extra: tuple[str, ...] = (),
    prefix: Sequence[str] = (),
) -> Iterator[list[Agent]]:
    """Run agents for the length of a block."""
    agents: list[Agent] = []
    try:
        agents.extend(start(folder, name, *extra, prefix=prefix) for name in names)
        yield agents
    finally:
        stop_all(agents, DRAIN_S)


@contextlib.contextmanager
def meshed(
    folder: Path, *names: str, extra: tuple[str, ...] = ()
) -> Iterator[list[Agent]]:
    """Run agents that know each other for the length of a block, dispatcher first."""
    with running(folder, *names, extra=extra) as agents:
        for agent in agents:
            until_nodes(agent, len(agents))
        _, body = agents[0].call("GET", "/api/v1/nodes")
        roles = {node["name"]: node["role"] for node in body["nodes"]}
        yield sorted(agents, key=lambda agent: roles[agent.state.name] != "dispatcher")


@contextlib.contextmanager
def ending(*agents: Agent) -> Iterator[None]:
    """Stop agents at the end of a block, also after an error."""
    try:
        yield
    finally:
        stop_all(agents, DRAIN_S)


def submit(agent: Agent, command: str, **more: object) -> str:
    """Submit one task and return its id; retry while there is no dispatcher."""
    body = {"command": command, **more}

    def answer() -> tuple[int, Any] | None:
        status, task = agent.call("POST", TASKS, body)
        is_early = status == 503 and task["error"] == NO_DISPATCHER
        return None if is_early else (status, task)

    status, task = until(answer, "there is a dispatcher")
    assert status == 201, task
    return str(task["id"])


def store_file(agent: Agent, data: bytes) -> dict[str, str]:
    """Store a file for tasks at a node; return what names it in a task."""
    with contextlib.closing(agent.connection()) as connection:
        headers = {"Content-Type": "application/octet-stream"}
        connection.request("POST", "/api/v1/files", data, headers)
        reply = connection.getresponse()
        stored = json.loads(reply.read())
    assert reply.status == 201, stored
    return {"sha256": stored["sha256"], "node": stored["node"]}


def finished(agent: Agent, task_id: str, path: str = TASKS) -> dict[str, Any]:
    """Wait for the end of a task or array, also across a failover; return it."""

    def ended() -> dict[str, Any] | None:
        status, task = agent.call("GET", f"{path}/{task_id}?wait=30")
        assert status in (200, 503), task
        return dict(task) if task["status"] in ENDS else None

    found: dict[str, Any] = until(ended, f"{task_id} ends", deadline_s=END_S_MAX)
    return found


def until(
    is_true: Callable[[], Any], what: str, *, deadline_s: float = WAIT_S_MAX
) -> Any:
    """Return the first true answer; fail when the time is over."""
    deadline = time.perf_counter() + deadline_s
    while time.perf_counter() < deadline:
        if answer := is_true():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {deadline_s} s: {what}")


def replicas(agent: Agent) -> int:
    """Return how many nodes hold a copy of accepted tasks; 0 without a dispatcher."""
    status, body = agent.call("GET", "/api/v1/nodes")
    return int(body["replicas"]) if status == 200 else 0


def until_nodes(agent: Agent, count: int, *, deadline_s: float = WAIT_S_MAX) -> float:
    """Wait until the agent lists `count` ready nodes; return perf_counter then."""
    deadline = time.perf_counter() + deadline_s
    while time.perf_counter() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, body = agent.call("GET", "/api/v1/nodes")
            if status == 200:
                nodes = body["nodes"]
                ready = [n for n in nodes if n["state"] == "ready"]
                dispatchers = [n for n in ready if n["role"] == "dispatcher"]
                if len(ready) == count and len(dispatchers) == 1:
                    return time.perf_counter()
        time.sleep(0.01)
    raise RuntimeError(f"no mesh of {count} within {deadline_s} s")


@contextlib.contextmanager
def three_agents(folder: Path, prefix: Sequence[str] = ()) -> Iterator[list[Agent]]:
    """Run a dispatcher, another eligible node, and a plain worker."""
    agents = [start(folder, "ana", prefix=prefix)]
    try:
        until_nodes(agents[0], 1)
        agents.append(start(folder, "ben", prefix=prefix))
        agents.append(start(folder, "cy", "--no-electable", prefix=prefix))
        until_nodes(agents[0], 3)
        yield agents
    finally:
        stop_all(agents, DRAIN_S)


def roles_of(agent: Agent) -> dict[str, str]:
    """Return the role of each node; empty while there is no dispatcher."""
    status, body = agent.call("GET", "/api/v1/nodes")
    return {n["name"]: n["role"] for n in body["nodes"]} if status == 200 else {}


def kill_agent(agent: Agent) -> None:
    """Kill an agent's process, as a power cut would."""
    agent.process.send_signal(signal.SIGKILL)
    agent.process.wait()


def memory_mb(agent: Agent, field: str) -> float:
    """Return the agent's memory now (`VmRSS`), or the most since a reset (`VmHWM`)."""
    for line in Path(f"/proc/{agent.process.pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise AssertionError(f"the kernel does not show {field}")


def reset_peak(agent: Agent) -> None:
    """Set `VmHWM` to the present size: proc(5), clear_refs."""
    Path(f"/proc/{agent.process.pid}/clear_refs").write_text("5")
