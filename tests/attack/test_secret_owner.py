"""A secret file that comes to belong to another user, who could then read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octaskly.trust import create_secret_file
from tests.support.agents import Agent, ending, finished, launch, submit
from tests.support.port_thief import THIEF_UID

pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("network"),
]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """The secret file of an agent."""
    file = tmp_path / "mesh.key"
    create_secret_file(file)
    return file


def start(secret: Path) -> Agent:
    return launch(secret.parent / "solo", secret, "--name", "solo")


def octaskly_here(agent: Agent, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command against the agent."""
    return subprocess.run(
        [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_agent_does_not_start_with_the_secret_of_another_user(secret: Path) -> None:
    """Exit code 78; the error names the user, and the command that mends it."""
    os.chown(secret, THIEF_UID, -1)
    agent = start(secret)
    with ending(agent):
        code = agent.process.wait(60)

    assert code == 78
    assert f"error: {secret} belongs to user 64420, who can read it\n" in agent.log()
    assert f"hint: chown root {secret}\n" in agent.log()


def test_a_secret_that_changes_owner_stops_no_agent_and_is_not_renewed(
    secret: Path,
) -> None:
    """The mesh works on; a new secret would go to that user, so there is none."""
    agent = start(secret)
    with ending(agent):
        agent.ready()
        before = secret.read_text()
        os.chown(secret, THIEF_UID, -1)
        rotated = octaskly_here(agent, "rotate", "--now", "--yes")
        after = secret.read_text()
        doctor = octaskly_here(agent, "doctor", "--interface", "lo")
        task = finished(agent, submit(agent, "echo on"))

    assert rotated.returncode == 1
    assert "belongs to user 64420, who can read it" in rotated.stderr
    assert after == before
    assert "✗ secret: " in doctor.stdout
    assert "belongs to user 64420" in doctor.stdout
    assert task["stdout"] == "on\n"
