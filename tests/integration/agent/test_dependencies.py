"""Dependent tasks on a real agent, which may be killed meanwhile."""

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


def test_a_task_starts_when_its_parents_have_finished(agent: Agent) -> None:
    """Whatever slots are free; all parents must end."""
    first = submit(agent, "sleep 0.4; echo 1 >> order")
    second = submit(agent, "sleep 0.2; echo 2 >> order")
    last = submit(agent, "cat order", after=[first, second])

    end = finished(agent, last)

    assert sorted(end["stdout"].split()) == ["1", "2"]
    assert (end["after"], end["on"]) == ([first, second], "success")


def test_an_ended_parent_is_not_awaited(agent: Agent) -> None:
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
    """By the child's condition; a child that can never run gives the reason."""
    parent = submit(agent, command)
    child = submit(agent, "true", after=[parent], on=on)

    end = finished(agent, child)

    assert end["status"] == status
    if status == "cancelled":
        assert end["reason"] == "cancelled"
        assert parent in end["detail"]


def test_a_failure_ends_all_dependent_tasks(agent: Agent) -> None:
    """Including indirect ones, and at once, not when other parents have ended."""
    slow = submit(agent, "sleep 60")
    bad = submit(agent, "exit 3")
    child = submit(agent, "true", after=[slow, bad])
    grandchild = submit(agent, "true", after=[child])
    cleanup = submit(agent, "echo tidy", after=[grandchild], on="failure")

    assert finished(agent, child)["status"] == "cancelled"
    assert finished(agent, grandchild)["status"] == "cancelled"
    assert finished(agent, cleanup)["stdout"] == "tidy\n"
    agent.call("DELETE", f"{TASKS}/{slow}?force=true")


def test_a_cancelled_parent_ends_its_children(agent: Agent) -> None:
    """A waiting child can be cancelled itself, without force."""
    parent = submit(agent, "sleep 60")
    child = submit(agent, "true", after=[parent])
    other = submit(agent, "true", after=[parent])

    assert agent.call("DELETE", f"{TASKS}/{other}")[0] == 200
    agent.call("DELETE", f"{TASKS}/{parent}?force=true")

    assert finished(agent, child)["status"] == "cancelled"
    assert finished(agent, other)["detail"] is None


def test_tasks_of_one_request_can_depend_on_each_other(agent: Agent) -> None:
    """In any order, by client-chosen ids."""
    batch = [
        {"command": "cat made", "id": "use", "after": ["make"]},
        {"command": "cat made", "after": ["use"]},
        {"command": "sleep 0.2; echo it > made", "id": "make"},
    ]

    status, body = agent.call("POST", TASKS, batch)

    assert status == 201, body
    assert [finished(agent, task["id"])["status"] for task in body] == ["completed"] * 3


def test_circular_dependencies_are_refused(agent: Agent) -> None:
    """The error names the circle; an unknown parent is refused, too."""
    circle = [
        {"command": "true", "id": "outside", "after": ["a"]},
        {"command": "true", "id": "a", "after": ["b"]},
        {"command": "true", "id": "b", "after": ["c"]},
        {"command": "true", "id": "c", "after": ["a"]},
    ]
    status, body = agent.call("POST", TASKS, circle)
    assert (status, body["error"]) == (400, "Circular dependency between tasks")
    assert body["hint"] == "a after b after c after a"

    own = {"command": "true", "id": "self", "after": ["self"]}
    assert agent.call("POST", TASKS, own)[0] == 400

    lost = [{"command": "true"}, {"command": "true", "after": ["nobody"]}]
    status, body = agent.call("POST", TASKS, lost)
    assert (status, body["error"]) == (400, "Parent task not found")
    assert body["field"] == "$[1].after[0]"
    assert agent.call("GET", f"{TASKS}/a")[0] == 404


def test_a_killed_dispatcher_remembers_waiting_children(tmp_path: Path) -> None:
    """It also learns which parents ended while it was away."""
    agent = agents.start(tmp_path, "lone", "--slots", "2")
    parent = submit(agent, "sleep 1; echo parent >> order")
    child = submit(agent, "echo child >> order; cat order", after=[parent])
    agent.process.kill()
    agent.process.wait()

    agent = agents.start(tmp_path, "lone", "--slots", "2")
    end = finished(agent, child)
    agent.stop()

    assert end["stdout"].endswith("parent\nchild\n")
