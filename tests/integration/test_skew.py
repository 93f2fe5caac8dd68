"""F39: agents of this protocol version and the next one in one mesh."""

from __future__ import annotations

from pathlib import Path

import pytest

from octaskly.trust import make
from tests.agents import ending, finished, launch, submit, until_nodes

NEXT = "tests.integration.next_version"
PROGRAMS = ("octaskly", NEXT)


@pytest.mark.parametrize("programs", [PROGRAMS, PROGRAMS[::-1]], ids=["old", "new"])
def test_agents_of_two_versions_work_together(
    tmp_path: Path, programs: tuple[str, str]
) -> None:
    """Whichever reigns, both run tasks, and the other takes over with all results."""
    secret = tmp_path / "mesh.key"
    make(secret)
    slots = ("--slots", "1")
    first = launch(tmp_path / "ana", secret, *slots, program=programs[0])
    with ending(first):
        until_nodes(first, 1)
        second = launch(tmp_path / "ben", secret, *slots, program=programs[1])
        with ending(second):
            until_nodes(first, 2)
            ids = [submit(second, f"sleep 0.2; echo {n}") for n in range(6)]
            ran = [finished(first, task) for task in ids]
            first.stop()
            until_nodes(second, 1)
            kept = [finished(second, task) for task in ids]
            finished(second, submit(second, "true"))

    assert [task["stdout"] for task in ran] == [f"{n}\n" for n in range(6)]
    assert len({task["worker_id"] for task in ran}) == 2
    assert [task["stdout"] for task in kept] == [task["stdout"] for task in ran]
    assert "protocol: " not in first.log() + second.log()
