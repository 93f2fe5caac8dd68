"""Tasks that come after others, on a real agent that may be killed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import agents
from tests.support.agents import TASKS, Agent, finished, submit


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    started = agents.start(tmp_path_factory.mktemp("one"), "lone", "--slots", "2")
    yield started
    started.stop()


def test_a_task_begins_when_those_before_it_have_finished(agent: Agent) -> None:
    """Whatever slots are free meanwhile; several parents are all waited for."""
    first = submit(agent, "sleep 0.4; echo 1 >> order")
    second = submit(agent, "sleep 0.2; echo 2 >> order")
    last = submit(agent, "cat order", after=[first, second])

    end = finished(agent, last)

    assert sorted(end["stdout"].split()) == ["1", "2"]
    assert (end["after"], end["on"]) == ([first, second], "success")


def test_what_has_ended_already_is_not_waited_for(agent: Agent) -> None:
    """Its number alone names it, too."""
    first = submit(agent, "true")
    finished(agent, first)

    child = submit(agent, "echo now", after=[first.rpartition("-")[0]])

    assert finished(agent, child)["stdout"] == "now\n"


@pytest.mark.parametrize(
    ("command", "on", "status"),
    [
        ("true", "success", "completed"),
        ("false", "success", "cancelled"),
        ("true", "failure", "cancelled"),
        ("false", "failure", "completed"),
        ("true", "any", "completed"),
        ("false", "any", "completed"),
    ],
)
def test_the_end_of_a_parent_decides(
    agent: Agent, command: str, on: str, status: str
) -> None:
    """As the child asked for; what never can run says why."""
    parent = submit(agent, command)
    child = submit(agent, "true", after=[parent], on=on)

    end = finished(agent, child)

    assert end["status"] == status
    if status == "cancelled":
        assert end["reason"] == "cancelled"
        assert parent in end["detail"]


def test_a_failure_resolves_all_that_come_after_it(agent: Agent) -> None:
    """Also those that come after those, and at once, not when others have ended."""
    slow = submit(agent, "sleep 60")
    bad = submit(agent, "exit 3")
    child = submit(agent, "true", after=[slow, bad])
    grandchild = submit(agent, "true", after=[child])
    cleanup = submit(agent, "echo tidy", after=[grandchild], on="failure")

    assert finished(agent, child)["status"] == "cancelled"
    assert finished(agent, grandchild)["status"] == "cancelled"
    assert finished(agent, cleanup)["stdout"] == "tidy\n"
    agent.call("DELETE", f"{TASKS}/{slow}?force=true")


def test_a_cancelled_parent_resolves_its_children(agent: Agent) -> None:
    """A child that waits can be cancelled itself, without force."""
    parent = submit(agent, "sleep 60")
    child = submit(agent, "true", after=[parent])
    other = submit(agent, "true", after=[parent])

    assert agent.call("DELETE", f"{TASKS}/{other}")[0] == 200
    agent.call("DELETE", f"{TASKS}/{parent}?force=true")

    assert finished(agent, child)["status"] == "cancelled"
    assert finished(agent, other)["detail"] is None


def test_tasks_of_one_request_can_come_after_each_other(agent: Agent) -> None:
    """In any order, by the ids that the client chose."""
    batch = [
        {"command": "cat made", "id": "use", "after": ["make"]},
        {"command": "cat made", "after": ["use"]},
        {"command": "sleep 0.2; echo it > made", "id": "make"},
    ]

    status, body = agent.call("POST", TASKS, batch)

    assert status == 201, body
    assert [finished(agent, task["id"])["status"] for task in body] == ["completed"] * 3


def test_what_waits_for_each_other_is_refused(agent: Agent) -> None:
    """All of it, naming the circle; so is what waits for nobody."""
    circle = [
        {"command": "true", "id": "a", "after": ["b"]},
        {"command": "true", "id": "b", "after": ["c"]},
        {"command": "true", "id": "c", "after": ["a"]},
    ]
    status, body = agent.call("POST", TASKS, circle)
    assert (status, body["error"]) == (400, "Tasks wait for each other")
    assert "a after" in body["hint"]

    own = {"command": "true", "id": "self", "after": ["self"]}
    assert agent.call("POST", TASKS, own)[0] == 400

    lost = [{"command": "true"}, {"command": "true", "after": ["nobody"]}]
    status, body = agent.call("POST", TASKS, lost)
    assert (status, body["error"]) == (400, "Parent task not found")
    assert body["field"] == "$[1].after[0]"
    assert agent.call("GET", f"{TASKS}/a")[0] == 404


def test_a_dispatcher_that_was_killed_remembers_who_waits(tmp_path: Path) -> None:
    """And finds out what ended while it was away, or never saw the end of it."""
    agent = agents.start(tmp_path, "lone", "--slots", "2")
    parent = submit(agent, "sleep 1; echo parent >> order")
    child = submit(agent, "echo child >> order; cat order", after=[parent])
    agent.process.kill()
    agent.process.wait()

    agent = agents.start(tmp_path, "lone", "--slots", "2")
    end = finished(agent, child)
    agent.stop()

    assert end["stdout"].endswith("parent\nchild\n")
