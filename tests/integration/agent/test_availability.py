"""Operator orders: drain, pause and their opposites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import (
    TASKS,
    WAIT_S_MAX,
    Agent,
    ending,
    finished,
    meshed,
    running,
    start,
    submit,
    until,
    until_nodes,
)
from tests.support.pooling import processes_with, token

NODES = "/api/v1/nodes"
OBEYS = "trap 'exit 0' TERM"


def steer(agent: Agent, name: str, order: str) -> dict[str, Any]:
    """Send an order to a node through an agent, and return the node's state."""
    status, node = agent.call("POST", f"{NODES}/{name}/{order}")
    assert status == 200, node
    found: dict[str, Any] = node
    return found


def status_of(agent: Agent, task_id: str) -> str:
    return str(agent.call("GET", f"{TASKS}/{task_id}")[1]["status"])


def test_a_drained_node_finishes_and_accepts_nothing_until_resumed(
    tmp_path: Path,
) -> None:
    """Also as the only node and dispatcher, and after a restart."""
    agent = start(tmp_path, "solo", "--slots", "1")
    with ending(agent):
        wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
        first = submit(agent, f"touch {tmp_path}/on; {wait}")
        until((tmp_path / "on").exists, "it runs")
        waiting = [submit(agent, "echo waited") for _ in range(3)]

        for _ in range(2):
            drained = steer(agent, "solo", "drain")
            assert (drained["state"], drained["running"]) == ("draining", 1)
        assert agent.call("GET", f"{NODES}/solo")[1]["state"] == "draining"
        (tmp_path / "go").touch()
        assert finished(agent, first)["status"] == "completed"
        assert {status_of(agent, task) for task in waiting} == {"queued"}
        assert "order=drain" in agent.log()
    again = start(tmp_path, "solo", "--slots", "1")
    with ending(again):
        until(lambda: again.call("GET", NODES)[0] == 200, "a dispatcher")
        assert again.call("GET", f"{NODES}/solo")[1]["state"] == "draining"
        assert {status_of(again, task) for task in waiting} == {"queued"}

        assert steer(again, "solo", "resume")["state"] == "ready"
        assert [finished(again, task)["stdout"] for task in waiting] == ["waited\n"] * 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    """Two idle nodes with a slot each, which accept work between tests."""
    flags = ("--slots", "1", "--kill-grace", "30")
    folder = tmp_path_factory.mktemp("pair")
    with running(folder, "ana", "ben", extra=flags) as agents:
        until_nodes(agents[0], 2)
        yield agents


def test_a_paused_task_continues_where_it_stopped(
    pair: list[Agent], tmp_path: Path
) -> None:
    """The pause does not count for its time limit, and other nodes get the work."""
    ana, ben = pair
    mine = f"{tmp_path}/$OCTASKLY_NODE"
    wait = f"while ! [ -e {mine}.go ]; do sleep 0.05; done"
    command = f"touch {mine}.on; {wait}; echo $OCTASKLY_NODE"
    tasks = [submit(ana, command, timeout=6) for _ in "ab"]
    until(lambda: len(list(tmp_path.glob("*.on"))) == 2, "both run")
    paused = steer(ana, "ben", "pause")
    assert (paused["state"], paused["running"]) == ("paused", 1)
    shown = f"{NODES}/ben"
    until(lambda: ben.call("GET", shown)[1]["state"] == "paused", "all know")
    # More than that limit passes on the other node.
    (tmp_path / "ana.go").touch()
    others = [submit(ana, "sleep 3.5; echo $OCTASKLY_NODE") for _ in "cd"]
    assert [finished(ana, task)["stdout"] for task in others] == ["ana\n"] * 2
    frozen = [task for task in tasks if status_of(ana, task) == "running"]
    assert len(frozen) == 1
    (tmp_path / "ben.go").touch()
    assert steer(ben, "ben", "unpause")["state"] == "ready"
    end = finished(ana, frozen[0])
    assert (end["status"], end["stdout"]) == ("completed", "ben\n")
    assert end["attempt"] == 1


def test_a_paused_task_can_be_cancelled_by_force(
    pair: list[Agent], tmp_path: Path
) -> None:
    """The answer is true at once, and its processes are gone."""
    ana, _ = pair
    command = f"trap '' TERM; echo $$ > {tmp_path}/pid; sleep 600"
    task = submit(ana, command, requires={"node": "ana"})
    note = tmp_path / "pid"
    pid = until(lambda: note.exists() and note.read_text().strip(), "the task runs")
    steer(ana, "ana", "pause")

    status, _ = ana.call("DELETE", f"{TASKS}/{task}?force=true")
    assert status == 200
    until(lambda: not Path(f"/proc/{pid}").exists(), "its process is gone")
    assert status_of(ana, task) == "cancelled"
    assert steer(ana, "ana", "unpause")["state"] == "ready"


def submit_waiting(agent: Agent, folder: Path, manner: str) -> str:
    """Submit a task that records its node and waits with this command."""
    folder.mkdir(exist_ok=True)
    mine = f"{folder}/$OCTASKLY_ATTEMPT"
    command = (
        f"{manner}; test -e {folder}/1.pid && kill -0 $(cat {folder}/1.pid) && exit 9;"
        f" echo $$ > {mine}.pid; while [ ! -e {folder}/go ]; do sleep 0.05; done;"
        " echo $OCTASKLY_NODE"
    )
    task = submit(agent, command)
    until((folder / "1.pid").exists, "it runs")
    return task


def test_a_stopped_worker_drains_and_returns_the_rest_b28(tmp_path: Path) -> None:
    """It runs again elsewhere, and never beside the first run.

    One task obeys SIGTERM, the other one ignores it.
    """
    flags = ("--slots", "2", "--drain", "1", "--kill-grace", "1")
    with meshed(tmp_path, "ana", "ben", extra=flags) as (dispatcher, worker):
        dispatcher_name = dispatcher.state.name
        steer(dispatcher, dispatcher_name, "drain")
        manners = {tmp_path / "obeys": OBEYS, tmp_path / "ignores": "trap '' TERM"}
        tasks = [submit_waiting(dispatcher, *each) for each in manners.items()]
        steer(dispatcher, dispatcher_name, "resume")
        worker.process.terminate()

        for folder in manners:
            until((folder / "2.pid").exists, "it runs again")
            (folder / "go").touch()
        for end in [finished(dispatcher, task) for task in tasks]:
            assert (end["status"], end["exit_code"]) == ("completed", 0)
            assert (end["stdout"], end["attempt"]) == (f"{dispatcher_name}\n", 2)
        assert worker.process.wait(WAIT_S_MAX) == 0, worker.log()
        assert "reason='drain over'" in worker.log()


def test_a_lone_agent_keeps_unfinished_tasks(tmp_path: Path) -> None:
    """Its next start runs them again (B28)."""
    flags = ("--drain", "0", "--kill-grace", "1")
    with running(tmp_path, "solo", extra=flags) as (agent,):
        task = submit_waiting(agent, tmp_path, OBEYS)
        agent.process.terminate()
        assert agent.process.wait(WAIT_S_MAX) == 0, agent.log()
    (tmp_path / "go").touch()
    again = start(tmp_path, "solo")
    with ending(again):
        end = finished(again, task)

        assert (end["status"], end["stdout"], end["attempt"]) == (
            "completed",
            "solo\n",
            2,
        )


DAEMON = "(setsid sh -c 'env -i sleep {0} & exit' &) ; setsid sleep {0} & sleep {0}"


def test_a_forced_cancel_leaves_no_process_on_another_node(pair: list[Agent]) -> None:
    """Even if it forked twice, left its session or cleared its environment."""
    ana, ben = pair
    words = [token(), token()]
    tasks = [submit(ana, DAEMON.format(word)) for word in words]
    until(lambda: all(len(sleepers(word)) == 3 for word in words), "both run")
    for agent, task in zip((ana, ben), tasks, strict=True):
        assert agent.call("DELETE", f"{TASKS}/{task}?force=true")[0] == 200

    until(lambda: not any(map(processes_with, words)), "all are gone")
    ends = [finished(ana, task) for task in tasks]
    assert {end["status"] for end in ends} == {"cancelled"}
    until(
        lambda: {finished(ana, task)["signal"] for task in tasks} == {15},
        "the ends are reported",
    )


def sleepers(word: str) -> list[int]:
    """Return the `sleep` processes with this time."""
    return [pid for pid, text in processes_with(word).items() if text[:5] == "sleep"]
