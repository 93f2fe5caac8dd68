"""One mesh of real agents for all that asks nothing special of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import octaskly
from tests.agents import Agent, meshed
from tests.client.kinds import KINDS, Open, opening


@pytest.fixture(scope="session")
def agents() -> Iterator[list[Agent]]:
    """Two agents, the dispatcher first."""
    # A socket's path has 107 bytes at most, so the folder lies near the root.
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-") as folder,
        meshed(Path(folder), "ash", "birch") as agents,
    ):
        yield agents


@pytest.fixture(params=KINDS)
def open_client(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """What opens clients, of each kind in turn, with nothing said elsewhere."""
    for variable in ("URL", "TOKEN", "CA_FILE", "STATE_DIR"):
        monkeypatch.delenv(f"OCTASKLY_{variable}", raising=False)
    with opening(request.param) as open_one:
        yield open_one


@pytest.fixture
def mesh(agents: list[Agent], open_client: Open) -> octaskly.Client:
    """A client of the agent that is not dispatcher."""
    return open_client(state_dir=agents[1].state)
