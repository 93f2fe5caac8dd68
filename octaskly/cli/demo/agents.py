"""Agent processes of the demo, on the loopback interface only."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octaskly import Client, NodeInfo
from octaskly.cli.interrupts import signal_handlers
from octaskly.client import Refused, ReplyLost, Unreachable
from octaskly.errors import MeshError

READY_S_MAX = 60.0
STOP_S_MAX = 15.0
RESPONSE_S_MAX = 10.0
POLL_S = 0.05
LOG_LINES = 8
INTERRUPT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class DemoAgent:
    """One agent: its name, process, folder and log."""

    name: str
    process: subprocess.Popen[bytes]
    state: Path
    log: Path

    def description(self) -> dict[str, Any] | None:
        """Return the agent's description of itself, None until it is ready."""
        try:
            found: dict[str, Any] = json.loads((self.state / "agent.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if found.get("pid") == self.process.pid else None

    def client(self) -> Client:
        """Return a client of its local socket."""
        return Client(state_dir=self.state, retry_timeout_s=RESPONSE_S_MAX)


@contextlib.contextmanager
def run_agents(
    folder: Path, names: Sequence[str], workdir: Path
) -> Iterator[list[DemoAgent]]:
    """Run agents that share one mesh secret and one worker directory.

    The agents are stopped at the end, by SIGKILL if they do not exit in time.
    """
    # Imported here, because importing cryptography would slow other commands.
    from octaskly.trust import load_or_create_secret  # noqa: PLC0415

    # Create the secret first: an agent without a secret that discovers another mesh
    # would wait to join that mesh.
    load_or_create_secret(folder / "mesh.key")
    started: list[DemoAgent] = []
    try:
        # An interrupt before a new process is in the list would leave it running.
        with _defer_interrupts():
            started.extend(_start(folder, name, workdir) for name in names)
        yield started
    finally:
        with _ignore_interrupts():
            stop(started)


def wait_until_formed(started: Sequence[DemoAgent]) -> list[NodeInfo]:
    """Wait until the agents form one mesh with one dispatcher; return its nodes.

    Raises:
        MeshError: an agent ended, or the agents formed no mesh in time.
    """
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline:
        for agent in started:
            if agent.process.poll() is not None:
                raise MeshError(
                    f"the agent {agent.name} ended with code {agent.process.returncode}"
                    f"\n{last_log_lines(agent)}"
                )
        if (nodes := _nodes_seen_by_all(started)) is not None:
            return nodes
        time.sleep(POLL_S)
    logs = "\n".join(last_log_lines(agent) for agent in started)
    raise MeshError(
        f"{len(started)} agents formed no mesh within {READY_S_MAX:.0f} s\n{logs}"
    )


def _nodes_seen_by_all(started: Sequence[DemoAgent]) -> list[NodeInfo] | None:
    """Return the nodes once every agent lists all of them under one dispatcher."""
    nodes: list[NodeInfo] = []
    for agent in started:
        try:
            with agent.client() as client:
                nodes = client.nodes()
        except (Refused, ReplyLost, Unreachable):
            return None
        roles = [node.role for node in nodes if node.state == "ready"]
        if len(roles) != len(started) or roles.count("dispatcher") != 1:
            return None
    return nodes


def last_log_lines(agent: DemoAgent) -> str:
    """Return the last lines of an agent's log."""
    lines = agent.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(f"    {agent.name}: {line}" for line in lines)


def stop(started: Sequence[DemoAgent]) -> None:
    """Stop the agents; a running task gets `STOP_S_MAX` seconds."""
    for agent in started:
        agent.process.terminate()
    deadline = time.monotonic() + STOP_S_MAX
    for agent in started:
        try:
            agent.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            agent.process.kill()
            agent.process.wait()


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C, so that the block cleans up."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    with signal_handlers((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


def _ignore_interrupts() -> contextlib.AbstractContextManager[None]:
    return signal_handlers(INTERRUPT_SIGNALS, signal.SIG_IGN)


@contextlib.contextmanager
def _defer_interrupts() -> Iterator[None]:
    """Defer interrupts until the end of the block."""
    noted: list[int] = []
    with signal_handlers(
        INTERRUPT_SIGNALS, lambda number, _frame: noted.append(number)
    ):
        yield
    if noted:
        raise KeyboardInterrupt


def _start(folder: Path, name: str, workdir: Path) -> DemoAgent:
    state, log = folder / name, folder / f"{name}.log"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OCTASKLY_")}
    environ["CONFIGURATION_DIRECTORY"] = str(folder)  # No settings file is there.
    # The kernel ends the agent if this process is killed and cannot clean up.
    guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    with log.open("wb") as target:
        process = subprocess.Popen(  # noqa: S603
            [
                *guard,
                *(sys.executable, "-m", "octaskly", "agent", "--name", name),
                *("--interface", "lo", "--state-dir", str(state)),
                *("--secret-file", str(folder / "mesh.key")),
                *("--api-port", "0", "--peer-port", "0", "--lan-port", "0"),
                *("--workdir", str(workdir)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=target,
            env=environ,
            # Ctrl-C must reach only the demo, which then stops the agents.
            start_new_session=True,
        )
    return DemoAgent(name, process, state, log)
