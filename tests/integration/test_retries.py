"""Tasks that are tried again, by a real agent that may die of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.core.retry import LOSSES_MAX
from tests import agents
from tests.agents import TASKS, Agent, finished, submit


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    started = agents.start(tmp_path, "lone", "--slots", "2")
    yield started
    started.stop()


def test_a_failed_task_is_tried_again_until_it_succeeds(agent: Agent) -> None:
    """Its last attempt is the one that counts."""
    command = "echo x >> tries; exit $((75 * ($(wc -l < tries) < 3)))"
    task = submit(agent, command, retries=5, retry_on=[75])

    end = finished(agent, task)

    assert (end["status"], end["exit_code"], end["attempt"]) == ("completed", 0, 3)


def test_a_code_that_is_not_named_is_the_end(agent: Agent) -> None:
    """And it can be repeated by hand, as a task of its own."""
    task = submit(agent, "exit 4", retries=5, retry_on=[75])
    end = finished(agent, task)
    assert (end["status"], end["exit_code"], end["attempt"]) == ("failed", 4, 1)

    status, again = agent.call("POST", f"{TASKS}/{task}/retry")

    assert (status, again["retry_of"]) == (201, task)
    assert finished(agent, again["id"])["exit_code"] == 4


def test_a_task_that_kills_its_agent_is_stopped_as_poison(tmp_path: Path) -> None:
    """Else it would kill the agent as often as that is started again."""
    pid = f"sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p' {tmp_path}/lone/agent.json"
    agent = agents.start(tmp_path, "lone", "--slots", "1")
    killer = submit(agent, f"sleep 1; kill -9 $({pid}); sleep 9")
    innocent = submit(agent, "echo still here")
    for _ in range(LOSSES_MAX):
        agent.process.wait(30)
        agent = agents.start(tmp_path, "lone", "--slots", "1")
    end, other = finished(agent, killer), finished(agent, innocent)
    agent.stop()

    assert (end["status"], end["reason"]) == ("failed", "poison")
    assert other["status"] == "completed"
