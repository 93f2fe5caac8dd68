"""The examples of the API reference, verbatim except for the port."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from octaskly.core.model.ids import TaskId
from tests.support.api_node import TOKENS, VIEWER, ApiNode, api_node
from tests.support.fake_gateway import FakeGateway

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "rest-api.md"
CURL = {
    "create": """
    curl -X POST http://localhost:3000/api/v1/tasks \\
      -H "Authorization: Bearer TOKEN" \\
      -H "Content-Type: application/json" \\
      -d '{"command":"echo test","timeout":3600}'
""",
    "list": """
    curl -X GET http://localhost:3000/api/v1/tasks \\
      -H "Authorization: Bearer TOKEN"
""",
    "details": """
    curl -X GET http://localhost:3000/api/v1/tasks/task-001 \\
      -H "Authorization: Bearer TOKEN"
""",
    "cancel": """
    curl -X DELETE http://localhost:3000/api/v1/tasks/task-001 \\
      -H "Authorization: Bearer TOKEN"
""",
    "statistics": """
    curl -X GET http://localhost:3000/api/v1/stats \\
      -H "Authorization: Bearer TOKEN"
""",
    "health": """
    curl -X GET http://localhost:3000/health
""",
}

PYTHON = """
import requests

base_url = "http://localhost:3000"
token = "bearer_token_here"
headers = {"Authorization": f"Bearer {token}"}

# Create task
task_data = {
    "command": "echo hello",
    "timeout": 3600
}
response = requests.post(
    f"{base_url}/api/v1/tasks",
    json=task_data,
    headers=headers
)
task_id = response.json()["id"]

# Get task status
response = requests.get(
    f"{base_url}/api/v1/tasks/{task_id}",
    headers=headers
)
print(response.json())
"""


@pytest.fixture
async def documented_node() -> AsyncIterator[ApiNode]:
    tokens = {
        **TOKENS,
        "TOKEN": TOKENS["admin-token"],
        "bearer_token_here": TOKENS["client-token"],
    }
    async with api_node(FakeGateway(), verify_token=tokens.__getitem__) as started:
        yield started


async def _curl(node: ApiNode, name: str) -> Any:
    line = CURL[name].replace("localhost:3000", f"localhost:{node.port}")
    ran = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", line], capture_output=True, check=True, timeout=20
    )
    return json.loads(ran.stdout)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_lines_of_the_reference(documented_node: ApiNode) -> None:
    """In the order of the reference, each with the documented answer."""
    created = await _curl(documented_node, "create")
    assert created["id"].startswith("task-001-")
    assert {k: v for k, v in created.items() if k != "id"} == {
        "command": "echo test",
        "status": "queued",
        "created_at": "2026-02-06T12:00:00Z",
        "replicas": 1,
    }

    listed = await _curl(documented_node, "list")
    assert (listed["total"], listed["returned"]) == (1, 1)
    assert listed["tasks"][0]["id"] == created["id"]

    details = await _curl(documented_node, "details")
    assert (details["id"], details["command"]) == (created["id"], "echo test")

    cancelled = await _curl(documented_node, "cancel")
    assert cancelled == {
        "id": created["id"],
        "status": "cancelled",
        "message": "Task cancelled successfully",
    }

    statistics = await _curl(documented_node, "statistics")
    assert set(statistics) >= {"workers", "tasks", "system", "database"}

    health = await _curl(documented_node, "health")
    assert health["status"] == "healthy"


async def test_python_client_of_the_reference(documented_node: ApiNode) -> None:
    """It prints the task that it created."""
    source = PYTHON.replace("localhost:3000", f"localhost:{documented_node.port}")
    printed = io.StringIO()

    def run() -> None:
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "reference", "exec"), {})  # noqa: S102  our own text

    await asyncio.to_thread(run)

    assert "'command': 'echo hello'" in printed.getvalue()
    assert "'status': 'queued'" in printed.getvalue()


async def test_query_examples_of_the_reference(documented_node: ApiNode) -> None:
    """Each of the four answers 200."""
    paths = (
        "/api/v1/tasks?limit=50",
        "/api/v1/tasks?status=completed",
        "/api/v1/tasks?worker_id=worker-01",
        "/api/v1/tasks?limit=100&offset=200",
        "/api/v1/tasks?limit=50&offset=200",
    )
    headers = {"Authorization": "Bearer TOKEN"}

    answers = [
        await documented_node.ask("GET", path, headers=headers) for path in paths
    ]

    assert [answer.status for answer in answers] == [200] * 5
    places = [(answer.json["limit"], answer.json["offset"]) for answer in answers]
    assert places == [(50, 0), (100, 0), (100, 0), (100, 200), (50, 200)]


async def test_example_answers_have_the_documented_fields(
    documented_node: ApiNode,
) -> None:
    """Every field of the reference's examples is there."""
    headers = {"Authorization": "Bearer TOKEN"}
    task = await documented_node.ask(
        "POST", "/api/v1/tasks", headers=headers, body={"command": "true"}
    )
    name = task.json["id"]
    documented_node.gateway.start(TaskId(name))
    documented_node.gateway.finish(TaskId(name))

    details = await documented_node.ask("GET", f"/api/v1/tasks/{name}", headers=headers)
    listed = await documented_node.ask("GET", "/api/v1/tasks", headers=headers)

    assert set(details.json) >= {
        "id",
        "command",
        "status",
        "worker_id",
        "stdout",
        "stderr",
        "exit_code",
        "duration_ms",
        "created_at",
        "completed_at",
    }
    assert set(listed.json["tasks"][0]) >= {
        "id",
        "command",
        "status",
        "worker_id",
        "exit_code",
        "created_at",
        "completed_at",
    }


async def test_the_error_of_the_reference_is_what_a_node_answers(
    documented_node: ApiNode,
) -> None:
    """Word for word, as users search for it."""
    sample = re.search(
        r"<!-- shown: GET /api/v1/tasks 400 -->\n+```json\n(.*?)```",
        REFERENCE.read_text(),
        re.DOTALL,
    )
    assert sample is not None

    answer = await documented_node.ask("GET", "/api/v1/tasks?limit=0", headers=VIEWER)

    assert answer.status == 400
    assert answer.json == json.loads(sample[1])
