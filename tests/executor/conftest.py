"""One mesh of real agents for all executors, the dispatcher first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import Agent, meshed

collect_ignore = ["cpython"]  # It is collected by way of test_cpython.py.


@pytest.fixture(scope="session")
def agents() -> Iterator[list[Agent]]:
    """Two agents with room for sleeping tasks."""
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-") as folder,
        meshed(Path(folder), "ash", "birch", extra=("--slots", "5")) as agents,
    ):
        yield agents
