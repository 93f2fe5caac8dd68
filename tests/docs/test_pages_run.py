"""README and tutorials: their commands run, and print the shown output."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import octaskly
from octaskly.rest.client_types import Task
from tests.docs.blocks import CHECKED_MAP, ROOT, Block, Command, blocks_of, commands_of
from tests.docs.console import Console, alike, console
from tests.support.agents import Agent

PAGES = ["docs/how-to/back-up-and-restore.md", "docs/tutorials/one-machine.md"]
"""Pages that start agents of their own, on one machine."""

EXAMPLES = ROOT / "docs" / "examples"
LINES_MAX = 40
TWO_MACHINES = ["README.md", "docs/tutorials/first-mesh.md"]
"""Pages that need two machines; tests/mesh/test_tutorial.py runs some."""
TRAVELLING = {
    f"docs/how-to/{name}.md": tools
    for name, tools in {
        "build-on-many-machines": ["gcc", "make"],
        "make-thumbnails": ["identify"],
        "render-frames": ["povray", "ffmpeg", "identify"],
        "run-tests-in-shards": [],
        "sweep-parameters": [],
        "transcode-videos": ["ffmpeg"],
    }.items()
}
"""Pages whose files travel, and their tools; tests/mesh/test_how_tos.py runs them."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_page_prints_its_shown_output(page: str, quick: Path) -> None:
    """Every command that one machine can run prints the output of the page."""
    ran = 0
    # A socket's path has 107 bytes at most, so the home lies near the root.
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-docs-") as home,
        console(Path(home)) as shell,
    ):
        shell.environ["PATH"] = f"{quick}:{shell.environ['PATH']}"
        for block in blocks_of((ROOT / page).read_text()):
            ran += shell.do(block)

    assert ran >= 4


def test_wrong_output_line_is_found() -> None:
    """The comparison is strict enough to find an error."""
    assert alike(["ash  ready  0/2"], ["birch  ready  1/4"])
    assert not alike(["ash  ready  0/2"], ["ash  lost  0/2"])
    assert not alike(["exit code: 0", "x"], ["exit code: 0"])
    assert alike(["pi4  ready  now"], ["pi4  ready  now; joined 3.7 s ago"])
    assert not alike(["pi4  ready  now"], ["pi4  lost  now; joined 3.7 s ago"])
    ready = "... agent ready ..."
    assert alike([ready], ["2026-01-01T00:00:00Z agent ready port=1"])
    assert not alike([ready], ["agent stopped"])
    block = Block(line=1, language="console", text="$ a \\\n  b\nout\n$ c\n")
    assert commands_of(block) == [
        Command("a \\\n  b", ["out"]),
        Command("c", []),
    ]


def test_an_example_fails_with_an_item_of_its_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though its loop does not look at exit codes."""
    failed = Task(id="task-001", status="failed", item="0", exit_code=1)
    for kind in (octaskly.Client, octaskly.AsyncClient):
        monkeypatch.setattr(kind, "map", lambda *_arguments: iter([failed]))

    exec(CHECKED_MAP, {})  # noqa: S102 - as a block of a page

    with pytest.raises(AssertionError, match="item 0: exit code 1"):
        list(octaskly.Client.map("false", [0]))  # type: ignore[arg-type, call-arg]


EXPECTED = {
    "submit_and_wait.sh": '"stdout":"hello from ',
    "with_requests.py": "'stdout': 'hello\\n'",
    "bulk_submit.py": "499 tasks, sum of squares 41541750",
    "fetch_output.sh": "1000\n",
    "spread_calls.py": "17984 primes below 200000",
}


@pytest.mark.timeout(400)
def test_examples_run_unchanged(page_mesh: tuple[Console, Agent]) -> None:
    """A copied example does what the page promises."""
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix != ".md"}
    assert scripts == set(EXPECTED)
    _, node = page_mesh
    status, minted = node.call("POST", "/api/v1/tokens", {"role": "client"})
    assert status == 201
    environ = {
        **os.environ,
        "OCTASKLY_URL": node.ready()["api_url"],
        "OCTASKLY_TOKEN": minted["token"],
    }
    for name, expected in EXPECTED.items():
        assert expected in output_of(EXAMPLES / name, environ)
        assert len((EXAMPLES / name).read_text().splitlines()) < LINES_MAX


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(".sh")])
def test_scripts_of_examples_use_the_socket_of_a_node(
    page_mesh: tuple[Console, Agent], name: str
) -> None:
    """Where no URL is set they need no token."""
    environ = {k: v for k, v in page_mesh[0].environ.items() if k != "OCTASKLY_TOKEN"}

    assert EXPECTED[name] in output_of(EXAMPLES / name, environ)


def output_of(script: Path, environ: dict[str, str]) -> str:
    """Return what an example prints."""
    words = [sys.executable, str(script)] if script.suffix == ".py" else [str(script)]
    done = subprocess.run(
        words, env=environ, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
