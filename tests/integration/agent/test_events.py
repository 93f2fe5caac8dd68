"""Events of whole agents, through restarts and failovers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.config.defaults import STREAMS_PER_SUBJECT
from tests.support.agents import (
    Agent,
    ending,
    finished,
    running,
    start,
    submit,
    until,
    until_nodes,
)
from tests.support.sse_client import events, tasks_in

STATES = ("queued", "running", "completed")


def every_state(task: str) -> list[tuple[str, str]]:
    return [(task, state) for state in STATES]


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running(tmp_path_factory.mktemp("events"), "solo") as (agent,):
        until_nodes(agent, 1)
        yield agent


def test_a_stream_reports_nodes_and_tasks(solo: Agent) -> None:
    """Each node, then the steps of each task, without command and output."""
    with events(solo) as stream:
        first = next(iter(stream))
        task = submit(solo, "echo secret-word; exit 3")
        found = stream.until(task, "failed")
    with events(solo, query=f"?task={task}", last_id=first.id) as stream:
        again = stream.until(task, "failed")
    with events(solo, query="?types=task", last_id=found[0].id) as stream:
        rest = stream.until(task, "failed")

    assert (first.name, first.data["name"], first.data["state"]) == (
        *("node", "solo", "ready"),
    )
    assert tasks_in(found) == [(task, s) for s in ("queued", "running", "failed")]
    assert found[-1].data["exit_code"] == 3
    assert found[-1].data["reason"] == "exit"
    assert found[-1].data["worker_id"] == "solo"
    assert found[-1].data["attempt"] == 1
    assert "secret" not in repr(found)
    assert again == [event for event in found if event.name == "task"]
    assert rest == again[1:]


def test_a_stream_resumes_after_a_restart(tmp_path: Path) -> None:
    """It ends properly when the agent stops; no later event is missed."""
    agent = start(tmp_path, "ana")
    with ending(agent):
        until_nodes(agent, 1)
        with events(agent) as stream:
            first = submit(agent, "true")
            found = stream.until(first, "queued")
            finished(agent, first)
            second = submit(agent, "true")
            finished(agent, second)
        agent.stop()
    agent = start(tmp_path, "ana")
    with ending(agent):
        until_nodes(agent, 1)
        with events(agent, last_id=found[-1].id) as stream:
            third = submit(agent, "true")
            rest = stream.until(third, "completed")

    assert "reset" not in {event.name for event in rest}
    assert tasks_in(rest) == [
        *every_state(first)[1:],
        *every_state(second),
        *every_state(third),
    ]


def test_a_stream_resumes_at_the_next_dispatcher(tmp_path: Path) -> None:
    """Through a follower that takes over: no event is missed."""
    with running(tmp_path, "ana") as (ana,):
        until_nodes(ana, 1)
        with running(tmp_path, "bo") as (bo,):
            until_nodes(bo, 2)
            until(
                lambda: bo.call("GET", "/api/v1/nodes")[1].get("replicas") == 2,
                "a copy",
            )
            with events(bo) as stream:
                first = submit(bo, "true")
                found = stream.until(first, "completed")
                ana.process.kill()
                after = list(stream)
            # Its dispatcher was killed: only with a key may a node repeat a request.
            body = {"command": "true"}
            second = bo.call("POST", "/api/v1/tasks", body, key="second")[1]["id"]
            finished(bo, second)
            with events(bo, last_id=(after or found)[-1].id) as stream:
                third = submit(bo, "true")
                rest = stream.until(third, "completed")

    assert "reset" not in {event.name for event in found + after + rest}
    received = tasks_in(found + after + rest)
    for task in (first, second, third):
        assert [each for each in received if each[0] == task] == every_state(task)
    roles = [e.data["role"] for e in rest if e.data.get("name") == "bo"]
    assert roles[0] == "dispatcher"


def test_clients_beyond_the_stream_limit_leave_the_api_usable(tmp_path: Path) -> None:
    """B42: those within the limit of their user are served, others get Retry-After."""
    with running(tmp_path, "solo") as (agent,), contextlib.ExitStack() as clients:
        until_nodes(agent, 1)
        statuses = []
        for _ in range(STREAMS_PER_SUBJECT + 40):
            client = clients.enter_context(contextlib.closing(agent.connection()))
            client.request("GET", "/api/v1/events", headers={"Connection": "close"})
            answer = clients.enter_context(contextlib.closing(client.getresponse()))
            statuses.append((answer.status, answer.getheader("Retry-After")))
        task = finished(agent, submit(agent, "true"))

    assert statuses == [(200, None)] * STREAMS_PER_SUBJECT + [(429, "5")] * 40
    assert task["status"] == "completed"


def test_an_id_of_another_mesh_is_answered_by_a_reset(solo: Agent) -> None:
    """The client may have missed anything."""
    with events(solo, last_id="1-2-3-0123456789abcdef") as stream:
        found = next(iter(stream))
    status = solo.call("GET", "/api/v1/events?types=tasks")[0]

    assert found.name == "reset"
    assert status == 400
