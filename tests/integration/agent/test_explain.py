"""Explanations, refusals and the queue limit of real agents."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.agent.test_availability import steer
from tests.support.agents import (
    TASKS,
    Agent,
    ending,
    finished,
    running,
    start,
    submit,
    until,
    until_nodes,
)


def submit_one(agent: Agent, **task: Any) -> tuple[int, Any]:
    """Submit one task that does nothing."""
    status, body = agent.call("POST", TASKS, {"command": "true", **task})
    return status, body


def explained(agent: Agent, task: str) -> Any:
    status, explanation = agent.call("GET", f"{TASKS}/{task}/explain")
    assert status == 200, explanation
    return explanation


def state_of(agent: Agent, name: str) -> str:
    return str(agent.call("GET", f"/api/v1/nodes/{name}")[1]["state"])


def codes(explanation: Any) -> dict[str, list[str]]:
    """Return the codes of the reasons, by node."""
    return {
        node["name"]: [why["code"] for why in node["reasons"]]
        for node in explanation["nodes"]
    }


def test_a_task_that_fits_no_node_waits_and_is_explained(tmp_path: Path) -> None:
    """B22: others run meanwhile; a fail-fast task is refused."""
    agent = start(tmp_path, "solo", "--slots", "2", "--label", "disk=hdd")
    with ending(agent):
        until(lambda: agent.call("GET", "/api/v1/nodes")[0] == 200, "a dispatcher")
        huge = {"requires": {"cpus": 999}}
        status, accepted = submit_one(agent, **huge)
        why = "no node has 999 CPUs; largest is 2 (solo)"

        assert status == 201
        explanation = explained(agent, accepted["id"])
        assert (explanation["status"], explanation["summary"]) == ("queued", why)
        assert codes(explanation) == {"solo": ["cpus"]}
        ssd = submit_one(agent, requires={"labels": {"disk": "ssd"}})[1]["id"]
        (node,) = explained(agent, ssd)["nodes"]
        assert node["reasons"] == [
            {"code": "label", "message": "lacks label disk=ssd (has disk=hdd)"}
        ]
        many = [{"command": "true", "priority": 9, **huge}] * 10_000
        assert agent.call("POST", TASKS, many)[0] == 201
        assert finished(agent, submit(agent, "echo ran"))["stdout"] == "ran\n"

        before = agent.call("GET", TASKS)[1]["total"]
        for path, task in (
            (TASKS, {"fail_fast": True}),
            (f"{TASKS}?fail_fast=true", {}),
        ):
            body = {"command": "true", **huge, **task}
            status, refused = agent.call("POST", path, body)
            assert (status, refused["error"]) == (422, "No node can run the task")
            assert refused["hint"] == why
            assert refused["field"] == "$.requires"
        assert agent.call("GET", TASKS)[1]["total"] == before
        fits = {"requires": {"cpus": 2}, "fail_fast": True}
        assert (
            finished(agent, submit_one(agent, **fits)[1]["id"])["status"] == "completed"
        )

        shown = cli(agent, "explain", accepted["id"])
        assert why in shown
        assert "needs 999 cpus, has 2" in shown
        assert json.loads(cli(agent, "explain", ssd, "--json"))["id"] == ssd


def cli(agent: Agent, *arguments: str) -> str:
    """Run a command of this package against an agent, and return its output."""
    command = [
        *(sys.executable, "-m", "octaskly", "--state-dir", str(agent.state)),
        *arguments,
    ]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=dict(os.environ)
    )
    return done.stdout


def test_every_node_has_its_own_reason(tmp_path: Path) -> None:
    """From any node: paused, drained, and excluded by the task."""
    with running(tmp_path, "ana", "ben", extra=("--slots", "1")) as (ana, ben):
        until_nodes(ana, 2)
        steer(ana, "ana", "pause")
        steer(ana, "ben", "drain")
        until(lambda: state_of(ana, "ben") == "draining", "the dispatcher knows")
        task = submit(ana, "true")
        only = submit_one(ana, requires={"node": "ben"})[1]["id"]

        for agent in (ana, ben):
            assert codes(explained(agent, task)) == {
                "ana": ["paused"],
                "ben": ["draining"],
            }
            assert codes(explained(agent, only)) == {
                "ana": ["paused", "node"],
                "ben": ["draining"],
            }
        summary = explained(ana, task)["summary"]
        assert summary == "no node that could run it accepts tasks now"

        steer(ana, "ben", "resume")
        for each in (task, only):
            assert finished(ana, each)["worker_id"] == "ben"
        assert explained(ana, task)["summary"] == "it completed on ben"


def refused_wait_s(agent: Agent, tasks: object) -> str | None:
    """Submit tasks that are refused; return the time until another try."""
    with contextlib.closing(agent.connection()) as connection:
        head = {"Content-Type": "application/json"}
        connection.request("POST", TASKS, json.dumps(tasks), head)
        reply = connection.getresponse()
        reply.read()
    assert reply.status == 429
    return reply.headers["Retry-After"]


def test_a_full_queue_refuses_more_and_keeps_its_tasks(tmp_path: Path) -> None:
    """B21: 429 with Retry-After; there is room again once tasks have run."""
    agent = start(tmp_path, "solo", "--slots", "1", "--queue-max", "3")
    with ending(agent):
        until(lambda: agent.call("GET", "/api/v1/nodes")[0] == 200, "a dispatcher")
        steer(agent, "solo", "pause")
        taken = [submit(agent, "echo kept") for _ in range(3)]

        status, refused = submit_one(agent)

        assert (status, refused["error"]) == (429, "Queue is full")
        assert refused["hint"].startswith("3 tasks are queued, the maximum is 3")
        assert refused_wait_s(agent, {"command": "true"}) == "5"
        batch = [{"command": "true"}] * 2
        assert agent.call("POST", TASKS, batch)[0] == 429
        # More than the queue's size: another try does not help.
        assert refused_wait_s(agent, batch * 2) is None
        assert agent.call("GET", TASKS)[1]["total"] == 3
        steer(agent, "solo", "unpause")
        assert [finished(agent, task)["stdout"] for task in taken] == ["kept\n"] * 3
        assert finished(agent, submit(agent, "echo more"))["stdout"] == "more\n"
