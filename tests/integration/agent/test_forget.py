"""An operator's request to forget ended tasks, on a real agent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.agents import (
    Agent,
    finished,
    running,
    submit,
    three_agents,
    until,
)

TASKS = "/api/v1/tasks"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("forget")
    with running(folder, "lone", extra=("--slots", "1")) as (agent,):
        agent.ready()  # Commands ask at once.
        yield agent


def test_ended_tasks_are_forgotten_and_others_stay(agent: Agent) -> None:
    """With their output, and at once; a repetition finds nothing more."""
    forget(agent, "--all-ended")  # The tasks of other tests.
    ended = [run(agent, f"echo {n}", wait=True) for n in range(3)]
    running = run(agent, "sleep 60")
    waiting = run(agent, "true")

    count = forget(agent, "--all-ended")
    again = forget(agent, "--all-ended")

    assert (count, again) == (3, 0)
    for task in ended:
        assert agent.call("GET", f"{TASKS}/{task}")[0] == 404
    status, page = agent.call("GET", TASKS)
    assert (status, page["total"]) == (200, 2)
    assert {task["id"] for task in page["tasks"]} == {running, waiting}
    assert agent.call("DELETE", f"{TASKS}/{running}?force=true")[0] == 200
    _, last = agent.call("GET", f"{TASKS}/{waiting}?wait=30")
    assert last["status"] == "completed"


def test_forgotten_tasks_are_not_shown(agent: Agent) -> None:
    """However many they are: their rows are deleted in steps after the decision."""
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


def test_recent_tasks_stay_if_an_age_is_given(agent: Agent) -> None:
    """The same age as in the automatic rule, but applied now."""
    task = run(agent, "true", wait=True)

    assert forget(agent, "--older-than", "1h") == 0

    assert agent.call("GET", f"{TASKS}/{task}")[0] == 200


def test_a_reused_name_is_repeated_for_its_new_task(agent: Agent) -> None:
    """The first task was forgotten, while its repetition waits."""
    again = []
    for command in ("true", "echo other", "true"):
        made = {"id": "nightly", "command": command, "requires": {"gpus": 1000}}
        assert agent.call("POST", TASKS, made)[0] == 201
        assert agent.call("DELETE", f"{TASKS}/nightly")[0] == 200
        status, body = agent.call("POST", f"{TASKS}/nightly/retry")
        assert (status, body.get("command")) == (201, command), body
        again.append(body["id"])
        forget(agent, "--all-ended")
    for task in again:  # Other tests would see waiting tasks.
        agent.call("DELETE", f"{TASKS}/{task}")

    assert len(set(again)) == len(again)


def test_a_request_to_forget_needs_exactly_one_choice(agent: Agent) -> None:
    """Neither none nor both is valid."""
    for flags in ((), ("--all-ended", "--older-than", "7d")):
        done = octaskly(agent, "forget", *flags)

        assert done.returncode == 2
        assert "either --older-than T, or --all-ended" in done.stderr


def octaskly(agent: Agent, *args: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state), *args]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def forget(agent: Agent, *flags: str) -> int:
    done = octaskly(agent, "forget", *flags, "--yes", "--json")
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


def test_forgotten_tasks_free_room_on_all_nodes(tmp_path: Path) -> None:
    """Long output and outputs at a worker, and the second copies of outputs.

    What belongs to a task that is not forgotten stays.
    """
    command = "head -c 3000000 /dev/zero | tr '\\0' x; echo data >result"
    more = {"outputs": ["result"], "workdir": "scratch", "requires": {"node": "cy"}}
    with three_agents(tmp_path) as agents:
        ended = submit(agents[0], command, **more)
        runs = submit(agents[0], f"{command}; exec sleep 60", **more)
        assert finished(agents[0], ended)["status"] == "completed"
        until(lambda: len(kept(agents, "transcripts")) == 2, "both have long output")
        until(lambda: len(kept(agents, "outputs")) == 2, "a second node has a copy")

        forget(agents[0], "--all-ended")

        until(lambda: kept(agents, "outputs") == [], "outputs are deleted")
        until(lambda: kept(agents, "transcripts") == [runs], "so is long output")


def kept(agents: Sequence[Agent], folder: str) -> list[str]:
    """Return the tasks of which nodes keep something."""
    found = [path for one in agents for path in (one.state / folder).glob("*")]
    return [path.name.rpartition(".")[0] or path.name for path in found]
