"""Whole agents on loopback: one audit log at every node."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.integration.agent.test_tokens import connection, issue
from tests.support.agents import Agent, meshed, request, roles_of, until

Line = tuple[str | None, str, str | None, str, int]


def lines(agent: Agent) -> list[dict[str, Any]]:
    status, body = agent.call("GET", "/api/v1/audit?since_s=3600&limit=1000")
    assert status == 200, body
    return list(body["entries"])


def join_times(agent: Agent) -> dict[str, str | None]:
    """Return the time of each node's join."""
    nodes = agent.call("GET", "/api/v1/nodes")[1]["nodes"]
    return {node["name"]: node["joined_at"] for node in nodes}


def records_of(agent: Agent) -> set[Line]:
    """Return caller, action, node and answer of each record."""
    return {
        (e["subject"], e["action"], e["target"], e["node"], e["status"])
        for e in lines(agent)
    }


def ask(
    agent: Agent, method: str, path: str, body: object = None, *, token: str
) -> tuple[int, Any]:
    with contextlib.closing(connection(agent)) as opened:
        return request(opened, method, path, body, token)


def test_all_changes_and_refusals_are_in_one_log(
    fresh_mesh: list[Agent],
) -> None:
    """From every node, including local decisions, and after a failover.

    Only admins read it.
    """
    worker = fresh_mesh[2]
    client, viewer = (
        issue(worker, name=r, role=r)["token"] for r in ("client", "viewer")
    )
    status, task = ask(
        worker, "POST", "/api/v1/tasks", {"command": "true"}, token=client
    )
    assert status == 201, task
    assert ask(worker, "GET", "/api/v1/tasks", token=viewer)[0] == 200
    assert (
        ask(worker, "POST", "/api/v1/tasks", {"command": "x"}, token=viewer)[0] == 403
    )
    assert ask(worker, "GET", "/api/v1/tasks", token="x.y.z")[0] == 401
    for token in (client, viewer):
        assert ask(worker, "GET", "/api/v1/audit", token=token)[0] == 403
    assert worker.call("POST", "/api/v1/nodes/cy/pause")[0] == 200
    assert worker.call("DELETE", "/api/v1/tokens/viewer")[0] == 200
    tasks = "POST /api/v1/tasks"
    who = worker.call("GET", "/api/v1/tokens")[1]["tokens"][0]["issued_by"]
    wanted: set[Line] = {
        (who, "POST /api/v1/tokens", "client", "cy", 201),
        (who, "POST /api/v1/tokens", "viewer", "cy", 201),
        ("client", tasks, None, "cy", 201),
        ("viewer", tasks, None, "cy", 403),
        (None, "GET /api/v1/tasks", None, "cy", 401),
        ("client", "GET /api/v1/audit", None, "cy", 403),
        (who, "POST /api/v1/nodes/{name}/pause", "cy", "cy", 200),
        (who, "DELETE /api/v1/tokens/{token}", "viewer", "cy", 200),
    }

    until(lambda: wanted <= records_of(fresh_mesh[0]), "all of it is in the log")
    seen = lines(fresh_mesh[0])
    joined = {e["subject"] for e in seen if e["action"] == "join"}
    (submission,) = (
        e for e in seen if e["action"] == tasks and e["subject"] == "client"
    )
    assert joined == {"node:ben", "node:cy"}
    assert (submission["tasks"], submission["task_count"]) == ([task["id"]], 1)
    assert (submission["source"], submission["decided_by"]) == ("127.0.0.1", "ana")
    (paused,) = (e for e in seen if e["action"].endswith("pause"))
    assert (paused["source"][:4], paused["decided_by"]) == ("uid ", "cy")
    there = {e["id"]: e for e in lines(worker)}  # With the records that came meanwhile.
    assert [there[e["id"]] for e in seen] == seen

    came = join_times(worker)
    assert came["ana"] is None
    assert all(came[name] for name in ("ben", "cy"))

    fresh_mesh[0].process.send_signal(signal.SIGKILL)
    fresh_mesh[0].process.wait()
    until(
        lambda: roles_of(worker).get("ben") == "dispatcher",
        "another node is dispatcher",
    )
    assert {e["id"] for e in seen} <= {e["id"] for e in lines(worker)}
    assert join_times(worker) == came


def test_a_flood_of_refusals_and_of_tasks_gives_a_few_lines(
    fresh_mesh: list[Agent],
) -> None:
    """A refusal would otherwise cost more than a request."""
    token = issue(fresh_mesh[1], name="bulk")["token"]
    before = {e["id"] for e in lines(fresh_mesh[1])}
    began_s = time.monotonic()
    with contextlib.closing(connection(fresh_mesh[2])) as opened:
        for _ in range(200):
            assert request(opened, "GET", "/api/v1/tasks", token="x.y.z")[0] == 401
    many = [{"command": "true", "requires": {"gpus": 99}}] * 100
    for _ in range(20):
        assert ask(fresh_mesh[1], "POST", "/api/v1/tasks", many, token=token)[0] == 201

    def are_written() -> bool:
        found = [e for e in lines(fresh_mesh[1]) if e["subject"] == "bulk"]
        return sum(int(e["task_count"]) for e in found) >= 10 * len(many)

    until(are_written, "the first submissions are in the log")
    seen = [e for e in lines(fresh_mesh[1]) if e["id"] not in before]

    refused = [e for e in seen if not e["allowed"]]
    bulk = [e for e in seen if e["action"] == "POST /api/v1/tasks"]
    minutes = 1 + (time.monotonic() - began_s) // 60  # Each starts with a line.
    assert len(refused) <= 2 + 2 * minutes
    assert len(bulk) <= 22
    assert all(len(e["tasks"]) <= 8 for e in bulk)


def test_a_viewer_cannot_hide_changes_behind_refusals(fresh_mesh: list[Agent]) -> None:
    """Any user of a machine has a network of loopback addresses to ask from."""
    agent = fresh_mesh[0]
    viewer = issue(agent, name="eve", role="viewer")["token"]
    client = issue(agent, name="bo", role="client")["token"]
    task = {"command": "true", "requires": {"gpus": 99}}
    victim = ask(agent, "POST", "/api/v1/tasks", task, token=client)[1]["id"]
    port = urlsplit(agent.ready()["api_url"]).port or 0
    for number in range(80):
        source = (f"127.0.{number // 8}.{2 + number}", 0)
        opened = http.client.HTTPConnection(
            "127.0.0.1", port, timeout=30, source_address=source
        )
        with contextlib.closing(opened):
            assert request(opened, "POST", "/api/v1/tokens", {}, viewer)[0] == 403
    assert ask(agent, "DELETE", f"/api/v1/tasks/{victim}", token=client)[0] == 200
    issue(agent, name="mine", role="admin")
    who = agent.call("GET", "/api/v1/tokens")[1]["tokens"][0]["issued_by"]

    wanted: set[Line] = {
        ("bo", "DELETE /api/v1/tasks/{id}", victim, "ana", 200),
        (who, "POST /api/v1/tokens", "mine", "ana", 201),
        ("eve", "POST /api/v1/tokens", None, "ana", 403),
    }
    until(lambda: wanted <= records_of(agent), "the changes are logged with authors")
    assert sum(e["status"] == 403 for e in lines(agent)) <= 2
    (submission,) = (e for e in lines(agent) if victim in e["tasks"])
    assert submission["command"] == "true"


def test_a_client_that_leaves_early_hides_no_change(fresh_mesh: list[Agent]) -> None:
    """It closes its connection while the change is being made."""
    agent, names = fresh_mesh[0], [f"bo{n}" for n in range(3)]
    for name in names:
        token = issue(agent, name=name, role="client")["token"]
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
        }
        for number in range(8):  # Few enough to have an entry each.
            task = {"command": "true", "id": f"{name}-{number}"}
            with contextlib.closing(connection(agent)) as opened:
                opened.request("POST", "/api/v1/tasks", json.dumps(task), headers)
                time.sleep(number / 2000)  # To leave at different moments.
        last = {"command": "true", "id": f"{name}-last"}
        assert ask(agent, "POST", "/api/v1/tasks", last, token=token)[0] == 201
    found = agent.call("GET", "/api/v1/tasks?limit=1000")[1]["tasks"]

    def audited() -> int:
        made = [e for e in lines(agent) if e["action"] == "POST /api/v1/tasks"]
        return sum(e["count"] for e in made if e["subject"] in names)

    until(lambda: audited() >= len(found), "all changes are in the log")


def test_an_orderly_stop_loses_no_entry(tmp_path: Path) -> None:
    """Not even of a lone node, nor of changes that are summed up each minute."""
    count = 14
    with meshed(tmp_path, "ana") as (agent,):
        for number in range(count):
            task = {"command": "true", "id": f"t{number}", "requires": {"gpus": 99}}
            assert agent.call("POST", "/api/v1/tasks", task)[0] == 201
    with meshed(tmp_path, "ana") as (agent,):
        made = [e for e in lines(agent) if e["action"] == "POST /api/v1/tasks"]

    assert sum(entry["count"] for entry in made) == count
