"""One mesh for all pages whose commands are typed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.console import Console, console
from tests.support.agents import TASKS, Agent, ending, launch, until_nodes
from tests.support.fork_server import forking_cli


@pytest.fixture(scope="session")
def quick() -> Iterator[Path]:
    """Return a folder with an `octaskly` that starts quickly."""
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-quick-") as folder,
        forking_cli(Path(folder)) as path,
    ):
        yield path


@pytest.fixture(scope="module")
def page_mesh(quick: Path) -> Iterator[tuple[Console, Agent]]:
    """Return a shell, and two nodes of one mesh: `ash` on this machine, and `pi4`.

    The working folder is the worker directory of both, so tasks find the files that a
    page makes. It lives only for its module, because pages open invites, and a join by
    code in another module would ask this `ash`.
    """
    # A socket's path has 107 bytes at most, so the home lies near the root.
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-docs-") as home,
        console(Path(home), is_strict=False) as shell,
    ):
        shell.environ["PATH"] = f"{quick}:{shell.environ['PATH']}"
        shell.folder = shell.home / "work"
        for folder in ("work", "bin", "pi4"):
            (shell.home / folder).mkdir()
        settings = (
            f"--slots 4 --workdir {shell.folder} --gpu 0 --gpu 1 --label gpu=a100"
        )
        shell.start(f"octaskly agent --name ash {settings}", [])
        apart = {k: v for k, v in shell.environ.items() if k != "XDG_RUNTIME_DIR"}
        settings = f"--name pi4 {settings}"
        pi4 = launch(shell.home / "pi4", shell.secret, *settings.split(), environ=apart)
        with ending(pi4):
            until_nodes(pi4, 2)
            # Pages mention tasks 12 to 14; with a key they would have other ids.
            for _ in range(14):
                status, problem = pi4.call("POST", TASKS, {"command": "true"})
                assert status == 201, problem
            yield shell, pi4
