from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from octaskly.cli.demo.agents import DemoAgent, run_agents, wait_until_formed
from tests.cli.stand_in import Api, serving
from tests.cli.typed import quickly, typed

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session", autouse=True)
def _quick_starts() -> Iterator[None]:
    """Start one interpreter; each typed command is a fork of it."""
    with quickly():
        yield


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoAgent]:
    """One node that serves, for the tests of a file."""
    folder = tmp_path_factory.mktemp("agent")
    (folder / "work").mkdir()
    with run_agents(folder, ["lone"], folder / "work") as [started]:
        wait_until_formed([started])
        yield started


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment without the agents of this machine."""
    kept = {key: value for key, value in os.environ.items() if key[:4] != "OCTA"}
    kept |= {
        "HOME": str(tmp_path / "home"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "NO_COLOR": "1",
        "TZ": "UTC",
    }
    (tmp_path / "run" / "octaskly").mkdir(parents=True)
    return kept


@pytest.fixture
def octaskly(environ: dict[str, str]) -> Run:
    """Run the command in a process of its own."""

    def run(
        *arguments: str,
        stdin: bytes = b"",
        node: str | None = "here",
        stderr: int | IO[bytes] = subprocess.PIPE,
    ) -> subprocess.CompletedProcess[bytes]:
        chosen = ["--node", node] if node else []
        return subprocess.run(
            typed(*chosen, *arguments),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environ,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def api(tmp_path: Path, environ: dict[str, str]) -> Iterator[Api]:
    """A node named `here` on this machine."""
    api = Api()
    with serving(api, tmp_path / "run" / "octaskly" / "here.sock"):
        yield api
