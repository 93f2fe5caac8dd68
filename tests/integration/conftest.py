"""Fixtures: one API, one mesh of APIs, or one mesh of agents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.agents import Agent, three_agents
from tests.support.api_mesh import ApiMesh
from tests.support.api_node import ApiNode, api_node


@pytest.fixture
async def node() -> AsyncIterator[ApiNode]:
    """One API on real sockets, with the usual bounds."""
    async with api_node() as started:
        yield started


@pytest.fixture
async def api_mesh() -> AsyncIterator[ApiMesh]:
    """A mesh without members; tests add them."""
    async with ApiMesh() as started:
        yield started


@pytest.fixture
def fresh_mesh(tmp_path: Path) -> Iterator[list[Agent]]:
    """Three agents, dispatcher first, that no other test uses."""
    with three_agents(tmp_path) as agents:
        yield agents
