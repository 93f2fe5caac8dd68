"""The examples of the API reference on an agent; only port and token are replaced."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api.test_reference import CURL, PYTHON
from tests.support.agents import Agent, finished, running, until_nodes


@pytest.fixture
def solo(tmp_path: Path) -> Iterator[Agent]:
    """An agent that accepts tasks and runs none, so that their state is known."""
    with running(tmp_path, "solo") as (agent,):
        until_nodes(agent, 1)
        steer(agent, "drain")
        yield agent


def steer(agent: Agent, how: str) -> None:
    status, body = agent.call("POST", f"/api/v1/nodes/solo/{how}")
    assert status == 200, body


def ran(agent: Agent, text: str, placeholder: str, *words: str) -> str:
    """Run text of the reference; return its output."""
    port = agent.ready()["api_url"].rpartition(":")[2]
    asked = {"role": "client", "subject": "bo"}
    token = agent.call("POST", "/api/v1/tokens", asked)[1]["token"]
    text = text.replace("localhost:3000", f"localhost:{port}")
    text = text.replace(placeholder, token)
    done = subprocess.run([*words, text], capture_output=True, check=True, timeout=60)
    return done.stdout.decode()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_lines_of_the_reference_on_an_agent(solo: Agent) -> None:
    """In the order of the reference, each with the documented answer."""

    def curl(name: str) -> Any:
        return json.loads(ran(solo, CURL[name], "TOKEN", "sh", "-c"))

    created, listed, details = curl("create"), curl("list"), curl("details")
    statistics, cancelled, health = curl("statistics"), curl("cancel"), curl("health")

    assert created["id"].startswith("task-001-")
    assert (created["command"], created["status"]) == ("echo test", "queued")
    assert [task["id"] for task in listed["tasks"]] == [created["id"]]
    assert (details["id"], details["status"]) == (created["id"], "queued")
    assert statistics["tasks"]["queued"] == 1
    assert cancelled == {
        "id": created["id"],
        "status": "cancelled",
        "message": "Task cancelled successfully",
    }
    assert health["status"] == "healthy"


def test_python_client_of_the_reference_on_an_agent(solo: Agent) -> None:
    """It prints the task that it created, which runs once the agent runs tasks."""
    printed = ran(solo, PYTHON, "bearer_token_here", sys.executable, "-c")

    assert "'command': 'echo hello'" in printed
    assert "'status': 'queued'" in printed
    steer(solo, "resume")
    assert finished(solo, "task-001")["stdout"] == "hello\n"
