"""Outputs that a real agent has no room for: `--output-quota` as its users see it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.typed import typed
from tests.support.agents import Agent, running, until

Octaskly = Callable[..., subprocess.CompletedProcess[str]]

QUOTA = "5M"
TOO_LARGE = "head -c 6000000 /dev/zero > big"
PROBLEM = (
    "output big was not kept: its worker has space for 5 MB of outputs of one task"
)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A node that keeps 5 MB of outputs."""
    extra = ("--output-cap", QUOTA, "--output-quota", QUOTA)
    folder = tmp_path_factory.mktemp("quota")
    with running(folder, "small", extra=extra) as [started]:
        yield started


@pytest.fixture
def octaskly(agent: Agent, tmp_path: Path) -> Octaskly:
    """Run a command in a folder of the user."""
    agent.ready()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            typed("--state-dir", str(agent.state), *words),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
            check=False,
        )

    return run


def without_waits(stderr: str) -> list[str]:
    """Return the lines of stderr, but no reason of a wait: any machine may stall."""
    return [line for line in stderr.splitlines() if not line.startswith("queued: ")]


@pytest.mark.parametrize(("end", "code"), [("", 125), ("; exit 3", 3)])
def test_run_says_that_an_output_exceeds_the_quota(
    octaskly: Octaskly, end: str, code: int
) -> None:
    """It exits 125, or with the code of the command, which `explain` names, too."""
    done = octaskly("run", "--out", "big", "--", TOO_LARGE + end)
    explained = octaskly("explain", "last").stdout

    *lacking, problem = without_waits(done.stderr)
    assert (done.returncode, done.stdout, problem) == (code, "", PROBLEM)
    if end:
        assert not lacking
        assert f"failed on small: exit code 3: {PROBLEM}" in explained
    else:
        assert lacking[0].endswith(" ended without big")
        assert f"completed on small; {PROBLEM}" in explained


def test_json_has_the_missing_output_and_the_reason(octaskly: Octaskly) -> None:
    """The state and the exit code are those of the command."""
    done = octaskly("run", "--json", "--out", "big", "--", TOO_LARGE)

    task = json.loads(done.stdout)
    assert done.returncode == 125
    assert (task["status"], task["exit_code"]) == ("completed", 0)
    assert (task["outputs_missing"], task["detail"]) == (["big"], PROBLEM)


def test_a_task_with_outputs_waits_for_room(octaskly: Octaskly) -> None:
    """It does not run, and `explain` says why; a task without outputs runs."""
    fill = "head -c 4500000 /dev/zero > kept"
    kept = octaskly("submit", "--out", "kept", "--", fill).stdout.strip()
    assert octaskly("wait", kept).returncode == 0

    waits = octaskly("submit", "--out", "made", "--", "touch made").stdout.strip()
    try:
        text = until(lambda: no_room_text(octaskly, waits), "no node has room")
        assert octaskly("run", "--", "echo plain").stdout == "plain\n"
    finally:
        octaskly("cancel", "--force", waits)
        assert octaskly("fetch", kept).returncode == 0  # This frees its room.
    assert text.startswith(
        f"{waits} (queued): no node that could run it has space for its outputs on"
        " small (its --output-quota is full of outputs that were not fetched); the"
        " next attempt starts in"
    )


def no_room_text(octaskly: Octaskly, task: str) -> str:
    """Return the explanation of a task once its node has said that it has no room."""
    text = octaskly("explain", task).stdout
    return text if "has space" in text else ""
