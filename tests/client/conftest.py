"""One mesh of real agents for all tests without special needs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import octaskly
from tests.client.kinds import KINDS, Open, opening
from tests.support.agents import Agent, replicas, start, until, until_nodes

NAMES = ("ash", "birch", "cedar")


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """The folder of all agents' state."""
    # A socket's path has 107 bytes at most, so the folder lies near the root.
    with tempfile.TemporaryDirectory(prefix="octaskly-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def started() -> Iterator[dict[str, Agent]]:
    """The agents by name, also those that a test killed."""
    agents: dict[str, Agent] = {}
    try:
        yield agents
    finally:
        for agent in agents.values():
            agent.stop()


@pytest.fixture
def agents(folder: Path, started: dict[str, Agent]) -> list[Agent]:
    """Three running agents of one mesh."""
    dead = [
        name
        for name in NAMES
        if name not in started or started[name].process.poll() is not None
    ]
    for name in dead:
        started[name] = start(folder, name)
    for name in dead:  # This takes a while on busy machines.
        until(started[name].description, f"{name} starts")
    if dead:
        until_nodes(started["ash"], len(NAMES))
        until(lambda: replicas(started["ash"]) == len(NAMES), "all keep copies")
    return [started[name] for name in NAMES]


@pytest.fixture(params=KINDS)
def open_client(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """A function that opens clients, of each kind in turn, without other settings."""
    for variable in ("URL", "TOKEN", "CA_FILE", "STATE_DIR"):
        monkeypatch.delenv(f"OCTASKLY_{variable}", raising=False)
    with opening(request.param) as open_one:
        yield open_one


@pytest.fixture
def client(agents: list[Agent], open_client: Open) -> octaskly.Client:
    """A client of one of the agents."""
    return open_client(state_dir=agents[1].state)
