"""One mesh of real agents for all that asks nothing special of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import octaskly
from tests.agents import Agent, meshed


@pytest.fixture(scope="session")
def agents() -> Iterator[list[Agent]]:
    """Two agents, the dispatcher first."""
    # A socket's path has 107 bytes at most, so the folder lies near the root.
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-") as folder,
        meshed(Path(folder), "ash", "birch") as agents,
    ):
        yield agents


@pytest.fixture
def mesh(agents: list[Agent]) -> Iterator[octaskly.Client]:
    """A client of the agent that is not dispatcher."""
    with octaskly.Client(state_dir=agents[1].state) as mesh:
        yield mesh
