"""A standby of real agents that joins after the start of the log was deleted."""

from __future__ import annotations

from pathlib import Path

from tests.mesh.databases import log
from tests.support.agents import (
    TASKS,
    finished,
    replicas,
    running,
    submit,
    until,
    until_nodes,
)

SLOT = ("--slots", "1")


def test_a_standby_that_joined_by_snapshot_takes_over_completely(
    tmp_path: Path,
) -> None:
    """Rows and the tail: ended, running and waiting tasks, and no forgotten one."""
    go = tmp_path / "go"
    with running(tmp_path, "ana", extra=SLOT) as (ana,):
        until_nodes(ana, 1)
        for number in range(3):
            finished(ana, submit(ana, f"echo {number}"))
        status, body = ana.call("POST", "/api/v1/forget", {"older_than_s": 0})
        assert (status, body["forgotten"]) == (200, 3)
        ended = finished(ana, submit(ana, "echo ended"))["id"]
        held = submit(ana, f"until test -e {go}; do sleep 0.05; done; echo held")
        waits = submit(ana, "echo waits", after=[held])

        with running(tmp_path, "ben", extra=SLOT) as (ben,):
            until(lambda: replicas(ana) == 2, "it keeps a copy")
            last = submit(ana, "echo last", after=[waits])
            # Everything that was not sent as entries came as rows.
            assert min(log(ben.state)).seq > min(log(ana.state)).seq > 1
            ana.process.kill()
            ana.process.wait()
            until(lambda: replicas(ben) == 1, "it is dispatcher")
            go.touch()

            assert finished(ben, held)["stdout"] == "held\n"
            assert finished(ben, last)["stdout"] == "last\n"
            assert ben.call("GET", f"{TASKS}/{ended}")[1]["stdout"] == "ended\n"
            listed = ben.call("GET", TASKS)[1]["tasks"]
            assert [task["id"] for task in listed] == [ended, held, waits, last]
            assert {task["status"] for task in listed} == {"completed"}
