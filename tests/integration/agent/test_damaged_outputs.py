"""Outputs whose bytes became wrong on a node, and those whose node is gone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from octaskly import Client, NotFound
from octaskly.runner.files.output_copies import PARTIAL_SUFFIX
from octaskly.runner.output.captured_contents import DAMAGED_NAME
from octaskly.runner.output.captured_folders import UNCOPIED_NAME
from tests.integration.agent.test_trees import (
    explained,
    get_raw,
    send,
)
from tests.support.agents import (
    Agent,
    finished,
    roles_of,
    running,
    submit,
    until,
    until_nodes,
)

SIZE_BYTES = 3_000_000
LOGGED = "outputs on disk are damaged"


class Made(NamedTuple):
    """A task with outputs at its worker, and a second copy of them."""

    task: str
    worker: Agent
    copy: Agent
    data: bytes  #: of its largest file

    def damage(self, agent: Agent) -> Path:
        """Overwrite the largest file at a node with as many other bytes."""
        [place] = (agent.state / "outputs" / self.task).glob(
            f"*/{sha256(self.data).hexdigest()}"
        )
        with place.open("r+b") as file:
            file.seek(1_500_000)
            file.write(b"wrong")
        return place


class Three:
    """Three agents; each output is at the worker, and a copy at one of the others."""

    def __init__(self, agents: list[Agent]) -> None:
        self.agents = agents
        roles = roles_of(agents[0])
        self.worker = next(
            agent for agent in agents if roles[agent.state.name] != "dispatcher"
        )
        self.asked = next(agent for agent in agents if agent is not self.worker)

    def make(self, seed: int) -> Made:
        """Run a task; return once its outputs have a copy."""
        data = random.Random(seed).randbytes(SIZE_BYTES - 1) + b"\n"
        tree = send(self.worker, {"in": data[:-1]})
        task = submit(
            self.asked,
            "mkdir out; cd out; echo first > a; (cat ../in; echo) > big; echo last > z",
            tree={"sha256": tree.sha256, "node": tree.node},
            outputs=["out"],
            workdir="scratch",
            requires={"node": self.worker.state.name},
        )
        assert finished(self.asked, task)["status"] == "completed"
        others = [agent for agent in self.agents if agent is not self.worker]

        def copies() -> list[Agent]:
            return [
                agent
                for agent in others
                # The folder of an attempt has this name once its copy is whole.
                for place in (agent.state / "outputs" / task).glob("*")
                if place.suffix != PARTIAL_SUFFIX
            ]

        kept = self.worker.state / "outputs" / task
        until(
            lambda: copies() and not [*kept.glob(f"*/{UNCOPIED_NAME}")],
            "another node has a copy, and has told the worker so",
        )
        return Made(task, self.worker, copies()[0], data)

    def run_after(self, made: Made, agent: Agent) -> dict[str, Any]:
        """Run a task that gets the outputs, on a node; return its end."""
        task = submit(
            self.asked,
            "sha256sum < out/big",
            outputs_of=[made.task],
            workdir="scratch",
            requires={"node": agent.state.name},
        )
        return finished(self.asked, task)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    folder = tmp_path_factory.mktemp("damaged")
    with running(folder, "ash", "birch", "cedar") as agents:
        until_nodes(agents[0], 3)
        yield Three(agents)


def test_wrong_bytes_at_the_worker_are_fetched_from_the_copy(
    three: Three, tmp_path: Path
) -> None:
    """The worker deletes them, and says so once."""
    made = three.make(1)
    place = made.damage(made.worker)
    logged = made.worker.log().count(LOGGED)

    with Client(state_dir=three.asked.state) as client:
        fetched = client.fetch(made.task, tmp_path)
        client.fetch(made.task, tmp_path / "again")

    assert fetched.files == 3
    for home in (tmp_path, tmp_path / "again"):
        assert (home / "out" / "big").read_bytes() == made.data
    assert not place.exists()
    assert (place.parent / DAMAGED_NAME).exists()
    assert made.worker.log().count(LOGGED) == logged + 1


def test_a_file_of_outputs_is_sent_by_a_node_where_it_is_right(three: Three) -> None:
    """Other files of the same outputs, too."""
    made = three.make(2)
    made.damage(made.worker)
    path = f"/api/v1/tasks/{made.task}/outputs/out"

    assert get_raw(three.asked, f"{path}/big") == (200, made.data)
    assert get_raw(three.asked, f"{path}/z") == (200, b"last\n")


def test_a_task_on_the_worker_gets_the_right_bytes_from_the_copy(three: Three) -> None:
    """Though wrong ones of the same name are on its own disk."""
    made = three.make(3)
    made.damage(made.worker)

    ended = three.run_after(made, made.worker)

    assert ended["stdout"] == f"{sha256(made.data).hexdigest()}  -\n", ended
    inputs = explained(three.asked, ended["id"])["inputs"]
    assert inputs["sent"] == [{"node": made.copy.state.name, "bytes": SIZE_BYTES}]


def test_a_task_on_the_node_with_the_copy_needs_nothing_sent(three: Three) -> None:
    """Also if the files of the worker are damaged."""
    made = three.make(4)

    first = three.run_after(made, made.copy)
    made.damage(made.worker)
    second = three.run_after(made, made.copy)

    for ended in (first, second):
        assert ended["stdout"] == f"{sha256(made.data).hexdigest()}  -\n", ended
        inputs = explained(three.asked, ended["id"])["inputs"]
        assert (inputs["present_bytes"], inputs["sent"]) == (SIZE_BYTES + 11, [])


def test_outputs_that_are_wrong_everywhere_are_not_fetched(
    three: Three, tmp_path: Path
) -> None:
    """It is an error, and what was in its place stays."""
    made = three.make(5)
    made.damage(made.worker)
    made.damage(made.copy)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "big").write_text("old")

    with Client(state_dir=three.asked.state) as client, pytest.raises(NotFound):
        client.fetch(made.task, tmp_path)

    assert (tmp_path / "out" / "big").read_text() == "old"
    assert three.run_after(made, made.worker)["reason"] == "inputs"
