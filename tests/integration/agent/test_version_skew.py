"""F39: agents of this protocol version and the next one in one mesh."""

from __future__ import annotations

from pathlib import Path

import pytest

from octaskly.trust import create_secret_file
from tests.support.agents import (
    Agent,
    ending,
    finished,
    launch,
    roles_of,
    submit,
    until,
    until_nodes,
)

NEXT = "tests.support.next_version"
NEXT_LOG = "tests.support.next_log"
PROGRAMS = ("octaskly", NEXT)


@pytest.mark.parametrize("programs", [PROGRAMS, PROGRAMS[::-1]], ids=["old", "new"])
def test_agents_of_two_versions_work_together(
    tmp_path: Path, programs: tuple[str, str]
) -> None:
    """Both run tasks in either role, and the other takes over with all results."""
    secret = tmp_path / "mesh.key"
    create_secret_file(secret)
    begun = tmp_path / "begun"
    begun.mkdir()
    # The first task waits for a second one, which only the other node can run.
    met = f"until [ $(ls {begun} | wc -l) -ge 2 ]; do sleep 0.05; done"
    slots = ("--slots", "1")
    first = launch(tmp_path / "ana", secret, *slots, program=programs[0])
    with ending(first):
        until_nodes(first, 1)
        second = launch(tmp_path / "ben", secret, *slots, program=programs[1])
        with ending(second):
            until_nodes(first, 2)
            ids = [
                submit(second, f"touch {begun}/{n}; {met}; echo {n}") for n in range(6)
            ]
            ran = [finished(first, task) for task in ids]
            first.stop()
            until_nodes(second, 1)
            kept = [finished(second, task) for task in ids]
            finished(second, submit(second, "true"))

    assert [task["stdout"] for task in ran] == [f"{n}\n" for n in range(6)]
    assert len({task["worker_id"] for task in ran}) == 2
    assert [task["stdout"] for task in kept] == [task["stdout"] for task in ran]
    assert "protocol: " not in first.log() + second.log()


def test_an_older_program_never_becomes_standby_of_a_newer_log(
    tmp_path: Path,
) -> None:
    """A node that cannot read the log still works, and one that can takes over."""
    secret = tmp_path / "mesh.key"
    create_secret_file(secret)
    ana = launch(tmp_path / "ana", secret, "--name", "ana", program=NEXT_LOG)
    with ending(ana):
        until_nodes(ana, 1)
        old = launch(tmp_path / "old", secret, "--name", "old")
        with ending(old):
            until_nodes(ana, 2)
            alone = _accepted(ana)
            ben = launch(tmp_path / "ben", secret, "--name", "ben", program=NEXT_LOG)
            with ending(ben):
                until(lambda: roles_of(ana).get("ben") == "standby", "ben is standby")
                until(lambda: _accepted(ana) > 1, "ben keeps up")
                roles, both = roles_of(ana), _accepted(ana)
                ana.process.kill()
                until(
                    lambda: roles_of(old).get("ben") == "dispatcher",
                    "ben is dispatcher",
                )
                ran = finished(old, submit(old, "true"))

    assert roles == {"ana": "dispatcher", "ben": "standby", "old": "worker"}
    assert (alone, both) == (1, 2)
    assert ran["status"] == "completed"
    assert "peer runs an older version" in ana.log()


def _accepted(agent: Agent) -> int:
    """Submit a task; return the number of copies in the answer."""
    status, task = agent.call("POST", "/api/v1/tasks", {"command": "true"})
    assert status == 201, task
    return int(task["replicas"])
