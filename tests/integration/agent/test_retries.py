"""Retries on a real agent, which a task may kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest

from octaskly.core.dispatcher.task_rules import LOSSES_MAX
from tests.support.agents import (
    TASKS,
    Agent,
    finished,
    request,
    running,
    start,
    submit,
    until,
)

OTHER = {"subject": "somebody else"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("retries")
    with running(folder, "lone", extra=("--slots", "2")) as (agent,):
        yield agent


def test_a_failed_task_is_retried_until_it_succeeds(agent: Agent) -> None:
    """Its last attempt counts."""
    command = "echo x >> tries; exit $((75 * ($(wc -l < tries) < 3)))"
    task = submit(agent, command, retries=5, retry_on=[75])

    end = finished(agent, task)

    assert (end["status"], end["exit_code"], end["attempt"]) == ("completed", 0, 3)


def test_an_unlisted_exit_code_is_final(agent: Agent) -> None:
    """The task can be repeated by hand, as a new task."""
    task = submit(agent, "exit 4", retries=5, retry_on=[75])
    end = finished(agent, task)
    assert (end["status"], end["exit_code"], end["attempt"]) == ("failed", 4, 1)

    status, again = agent.call("POST", f"{TASKS}/{task}/retry")

    assert (status, again["retry_of"]) == (201, task)
    assert finished(agent, again["id"])["exit_code"] == 4


@pytest.mark.parametrize("options", [{}, {"array": {"range": "1-3"}}])
def test_a_repeated_task_keeps_its_changed_priority(
    agent: Agent, options: dict[str, object]
) -> None:
    """It was put back so that others go first, and still should be."""
    nowhere = {"labels": {"no": "node"}}
    task = submit(agent, "true", priority=2, requires=nowhere, **options)
    path = f"{TASKS}/{task}"
    assert agent.call("POST", f"{path}/reprioritize", {"priority": -7})[0] == 200
    agent.call("DELETE", path)

    name = agent.call("POST", f"{path}/retry")[1]["id"]

    agent.call("DELETE", f"{TASKS}/{name}")
    again = agent.call("GET", f"{TASKS}/{name}")[1]
    assert (again["retry_of"], again["priority"]) == (task, -7)


def test_a_member_is_repeated_once_whatever_its_array_s_priority(
    agent: Agent,
) -> None:
    """That may change while other members wait."""
    array = submit(agent, "exit 1", array={"range": "0-99"})
    member = f"{array}.0"
    finished(agent, member)
    first = agent.call("POST", f"{TASKS}/{member}/retry")[1]
    agent.call("POST", f"{TASKS}/{array}/reprioritize", {"priority": 20})

    status, second = agent.call("POST", f"{TASKS}/{member}/retry")

    assert (status, second["id"]) == (201, first["id"])
    agent.call("DELETE", f"{TASKS}/{array}?force=true")


def test_a_task_is_repeated_once_by_any_admin(agent: Agent) -> None:
    """Each node's local user is another subject, but means the same failure."""
    task = submit(agent, "exit 4")
    finished(agent, task)
    status, minted = agent.call("POST", "/api/v1/tokens", {"role": "admin"} | OTHER)
    assert status == 201
    address = agent.ready()["api_url"].removeprefix("http://")

    status, first = agent.call("POST", f"{TASKS}/{task}/retry")
    with closing(HTTPConnection(address)) as connection:
        path = f"{TASKS}/{task}/retry"
        other = request(connection, "POST", path, token=minted["token"])

    assert (status, other[0]) == (201, 201)
    assert other[1]["id"] == first["id"]


def test_a_task_that_kills_its_agent_is_stopped_as_poison(tmp_path: Path) -> None:
    """It would kill the agent after every restart."""
    agent = start(tmp_path, "lone", "--slots", "1")
    try:
        killer = submit(agent, f"touch {tmp_path}/$OCTASKLY_ATTEMPT.on; sleep 60")
        innocent = submit(agent, "echo still here")
        for attempt in range(1, LOSSES_MAX + 1):
            until((tmp_path / f"{attempt}.on").exists, "it runs, and kills")
            # It starts during its commit; only durable attempts count.
            until(partial(_has_started, agent, killer, attempt), "the disk has it")
            agent.process.kill()
            agent.process.wait()
            agent = start(tmp_path, "lone", "--slots", "1")
        end, other = finished(agent, killer), finished(agent, innocent)
    finally:
        agent.stop()

    assert (end["status"], end["reason"]) == ("failed", "poison")
    assert other["status"] == "completed"


def _has_started(agent: Agent, task: str, attempt: int) -> bool:
    """Return True if that is the last attempt on the agent's disk."""
    _, body = agent.call("GET", f"{TASKS}/{task}")
    return bool(body.get("attempt") == attempt)


@pytest.mark.parametrize("retry_on", [["failure"], None])
def test_the_output_of_a_lost_task_is_not_invented(
    agent: Agent, retry_on: list[str] | None
) -> None:
    """Its end was not seen; its node has kept the earlier output, also of poison."""
    command = "head -c 3000000 /dev/zero; kill -9 $PPID; sleep 60"
    task = submit(agent, command, retry_on=retry_on)

    end = finished(agent, task)
    with closing(agent.connection()) as connection:
        connection.request("GET", f"{TASKS}/{task}/stdout")
        reply = connection.getresponse()
        kept = reply.read()

    assert end["reason"] == ("lost" if retry_on else "poison")
    names = ("stdout", "stdout_bytes", "stdout_truncated", "stderr", "stderr_bytes")
    assert [end[name] for name in names] == [None] * len(names)
    assert len(kept) > 1 << 20
    assert reply.headers["Octaskly-Output-Bytes"] is None
