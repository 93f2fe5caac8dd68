"""Ended tasks that go when an operator says so, by a real agent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.agents import Agent, running, until

TASKS = "/api/v1/tasks"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("forget")
    with running(folder, "lone", extra=("--slots", "1")) as (agent,):
        agent.ready()  # Commands ask at once.
        yield agent


def test_ended_tasks_go_and_those_that_run_or_wait_stay(agent: Agent) -> None:
    """With what they wrote, and at once; a second time there is nothing left."""
    forget(agent, "--all-ended")  # What other tests have left.
    ended = [run(agent, f"echo {n}", wait=True) for n in range(3)]
    running = run(agent, "sleep 60")
    waiting = run(agent, "true")

    told = forget(agent, "--all-ended")
    again = forget(agent, "--all-ended")

    assert (told, again) == (3, 0)
    for task in ended:
        assert agent.call("GET", f"{TASKS}/{task}")[0] == 404
    status, page = agent.call("GET", TASKS)
    assert (status, page["total"]) == (200, 2)
    assert {task["id"] for task in page["tasks"]} == {running, waiting}
    assert agent.call("DELETE", f"{TASKS}/{running}?force=true")[0] == 200
    _, last = agent.call("GET", f"{TASKS}/{waiting}?wait=30")
    assert last["status"] == "completed"


def test_what_was_forgotten_is_shown_no_more(agent: Agent) -> None:
    """However much it is: rows go one step after the other, behind the decision."""
    first = {"id": "first", "command": "true", "requires": {"gpus": 1000}}
    others = [{"command": "true", "after": ["first"]}] * 3000
    status, made = agent.call("POST", TASKS, [first, *others])
    assert status == 201
    assert agent.call("DELETE", f"{TASKS}/first")[0] == 200
    until(lambda: total(agent, "?status=queued") == 0, "all ended")

    status, body = agent.call("POST", "/api/v1/forget", {"older_than_s": 0})
    shown = agent.call("GET", f"{TASKS}/{made[-1]['id']}")[0]

    assert (status, shown, total(agent)) == (200, 404, 0)
    assert body["forgotten"] >= len(made)


def test_what_ended_lately_stays_where_an_age_is_given(agent: Agent) -> None:
    """The same age as by itself, but now."""
    task = run(agent, "true", wait=True)

    assert forget(agent, "--older-than", "1h") == 0

    assert agent.call("GET", f"{TASKS}/{task}")[0] == 200


def test_a_name_that_is_given_again_is_repeated_for_itself(agent: Agent) -> None:
    """Its first bearer was forgotten, while a repetition of that one waits."""
    again = []
    for command in ("true", "echo other", "true"):
        made = {"id": "nightly", "command": command, "requires": {"gpus": 1000}}
        assert agent.call("POST", TASKS, made)[0] == 201
        assert agent.call("DELETE", f"{TASKS}/nightly")[0] == 200
        status, body = agent.call("POST", f"{TASKS}/nightly/retry")
        assert (status, body.get("command")) == (201, command), body
        again.append(body["id"])
        forget(agent, "--all-ended")
    for task in again:  # What waits would be seen by other tests.
        agent.call("DELETE", f"{TASKS}/{task}")

    assert len(set(again)) == len(again)


def test_what_shall_go_has_to_be_said(agent: Agent) -> None:
    """Neither nothing nor both is a wish."""
    for flags in ((), ("--all-ended", "--older-than", "7d")):
        done = octaskly(agent, "forget", *flags)

        assert done.returncode == 2
        assert "either --older-than T, or --all-ended" in done.stderr


def octaskly(agent: Agent, *args: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state), *args]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def forget(agent: Agent, *flags: str) -> int:
    done = octaskly(agent, "forget", *flags, "--json")
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["forgotten"])


def total(agent: Agent, query: str = "") -> int:
    _, page = agent.call("GET", TASKS + query)
    return int(page["total"])


def run(agent: Agent, command: str, *, wait: bool = False) -> str:
    status, body = agent.call("POST", TASKS, {"command": command})
    assert status == 201, body
    if wait:
        agent.call("GET", f"{TASKS}/{body['id']}?wait=30")
    return str(body["id"])
