"""Visitors on hosts of their own: what they run, and what they never get."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.mesh.forming import form, nodes
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

WITHIN_S = 30.0


class BorrowedMachine:
    """A visitor process on a host of the lab."""

    def __init__(
        self, host: Host, member: Host, *options: str, stay_s: int = 600
    ) -> None:
        asked = {"ttl_s": 300, "visitor": {"stay_s": stay_s}}
        made = member.http("POST", "/api/v1/invites", json=asked)
        assert made.status == 201, made.body
        self.invite = made.json
        self.folder = host.folder / "visit"
        self.log = host.folder / "visitor.log"
        with self.log.open("ab") as log:
            self.process = host.popen(
                *(sys.executable, "-m", "octaskly", "agent", "--visitor"),
                *("--slots", "2", *options),
                env={
                    **host.environ("visitor"),
                    "TMPDIR": str(host.folder),
                    "OCTASKLY_INVITE": self.invite["url"],
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def visitors(host: Host) -> list[Mapping[str, Any]]:
    """Return the visitors that a host lists."""
    return [node for node in nodes(host) if node["visitor"]]


@pytest.fixture
def lab(_may_make_labs: None) -> Iterator[Lab]:
    with Lab(2) as lab:
        try:
            yield lab
        finally:
            for host in lab.hosts:
                log = host.folder / "visitor.log"
                if log.exists():
                    print(f"--- visitor on {host.name}", log.read_text()[-4000:])
            lab.show_logs()


def run_task(host: Host, command: str, **fields: Any) -> Mapping[str, Any]:
    """Run a task to its end."""
    asked = {"command": command, **fields}
    answer = host.http("POST", "/api/v1/tasks", json=asked)
    assert answer.status in (200, 201), answer.body
    task = answer.json["id"]

    def is_over() -> bool:
        shown = host.http("GET", f"/api/v1/tasks/{task}").json
        return shown["status"] not in ("queued", "running")

    wait_until(f"the end of {task}", is_over, within_s=WITHIN_S)
    return dict(host.http("GET", f"/api/v1/tasks/{task}").json)


def test_visitor_runs_a_task_that_allows_it(lab: Lab) -> None:
    """The thin path: invite, visit, a task and its result."""
    member, borrowed = lab.hosts
    form(lab, hosts=[member])
    BorrowedMachine(borrowed, member)
    wait_until("a visitor", lambda: visitors(member), within_s=WITHIN_S)
    drained = member.http("POST", f"/api/v1/nodes/{member.name}/drain")
    assert drained.status == 200, drained.body

    done = run_task(member, "echo from $OCTASKLY_NODE", visitors=True, timeout=60)

    assert done["status"] == "completed", done
    assert done["stdout"] == f"from {visitors(member)[0]['name']}\n"
