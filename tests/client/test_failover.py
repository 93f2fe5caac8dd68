"""Nodes are killed while programs of both kinds submit, wait, follow and listen."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import octaskly
from tests.client.kinds import KINDS, opening
from tests.support.agents import WAIT_S_MAX, Agent, start

LINES = 8
COUNT_OUT = f"i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); sleep 0.25; done"


@pytest.fixture
def trio(agents: list[Agent]) -> list[Agent]:
    """The agents, the dispatcher first, its last successor last."""
    _, body = agents[0].call("GET", "/api/v1/nodes")
    by_name = {agent.state.name: agent for agent in agents}
    return [by_name[node["name"]] for node in body["nodes"]]


def with_both(state_dir: Path, program: Callable[[octaskly.Client, str], None]) -> None:
    """Run a program with a client of each kind, at the same time."""

    def run(kind: str) -> None:
        with opening(kind) as open_client:
            program(open_client(state_dir=state_dir, retry_timeout_s=WAIT_S_MAX), kind)

    with ThreadPoolExecutor() as pool:
        list(pool.map(run, KINDS))


@pytest.mark.timeout(200)
def test_programs_do_not_notice_the_death_of_the_dispatcher(
    trio: list[Agent],
) -> None:
    """Each submission is one task, each line comes once, each end is reported."""
    first, _, last = trio
    under_way = threading.Barrier(len(KINDS), action=first.process.kill)

    def program(mesh: octaskly.Client, kind: str) -> None:
        task = mesh.submit(COUNT_OUT, requires={"node": last.state.name})
        log = mesh.logs(task, stream="stdout", deadline_s=60)
        begun = list(itertools.islice(log, 2))
        news = mesh.events(deadline_s=60)
        next(news)  # The state of the node shows that the stream is open.
        submitted = [mesh.submit("true", name=kind)]

        under_way.wait()
        submitted += [mesh.submit("true", name=kind) for _ in range(5)]
        rest = list(log)

        written = b"".join(piece.data for piece in [*begun, *rest])
        assert written == b"".join(b"%d\n" % n for n in range(LINES))
        assert mesh.wait(task, deadline_s=60).attempt == 1
        ended = [end.id for end in mesh.as_ended(submitted, deadline_s=60)]
        there = [each.id for each in mesh.tasks() if each.name == kind]
        assert sorted(ended) == sorted(there) == sorted(each.id for each in submitted)
        missing = {*ended, task.id}
        while missing:
            event = next(news)
            if event.data.get("status") == "completed":
                missing.discard(event.data["id"])
        news.close()

    with_both(last.state, program)


@pytest.mark.timeout(200)
def test_client_waits_for_a_node_that_restarts(
    trio: list[Agent], folder: Path, started: dict[str, Agent]
) -> None:
    """Its socket is gone for a while; a request to it is sent again."""
    first, _, last = trio

    def restart() -> None:
        last.process.kill()
        last.process.wait()
        started[last.state.name] = start(folder, last.state.name)

    restarting = threading.Timer(0.1, restart)
    under_way = threading.Barrier(len(KINDS), action=restarting.start)

    def program(mesh: octaskly.Client, kind: str) -> None:
        task = mesh.submit("sleep 0.8", requires={"node": first.state.name})
        under_way.wait()
        assert mesh.wait(task, deadline_s=60).status == "completed"
        restarting.join()
        assert mesh.run(f"echo {kind}").stdout == f"{kind}\n"

    with_both(last.state, program)
