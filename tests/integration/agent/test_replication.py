"""Replication of whole agents, and the death of a dispatcher as clients see it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from octaskly.cli.commands.submit import submit_drafts
from octaskly.client import Session
from octaskly.rest.client_types import Draft
from tests.support.agents import (
    WAIT_S_MAX,
    Agent,
    ending,
    finished,
    kill_agent,
    launch,
    meshed,
    running,
    until_nodes,
)

TASKS = "/api/v1/tasks"
NAMES = ("ana", "ben", "cy")
CLIENTS = 50
TURNS = 6  #: tasks of each
TASK = {"command": "true"}


@dataclass(frozen=True)
class Answer:
    """The answer to one request."""

    status: int
    headers: http.client.HTTPMessage
    body: Any


def ask(
    agent: Agent,
    method: str,
    path: str,
    body: object = None,
    *,
    key: str | None = None,
    token: str | None = None,
) -> Answer:
    """Send one request on a connection of its own; with a token over TCP."""
    headers = {"Idempotency-Key": key} if key else {}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    url = urlsplit(agent.ready()["api_url"])
    by_tcp = http.client.HTTPConnection("127.0.0.1", url.port or 0, timeout=60)
    connection = by_tcp if token is not None else agent.connection()
    with contextlib.closing(connection):
        connection.request(method, path, body=data, headers=headers)
        reply = connection.getresponse()
        return Answer(reply.status, reply.headers, json.loads(reply.read()))


def until(agent: Agent, path: str, is_so: Callable[[Any], Any]) -> Any:
    """Repeat a request until its body matches; return the body."""
    deadline = time.perf_counter() + WAIT_S_MAX
    while time.perf_counter() < deadline:
        answer = ask(agent, "GET", path)
        if answer.status == 200 and is_so(answer.body):
            return answer.body
        time.sleep(0.02)
    pytest.fail(f"not within {WAIT_S_MAX} s: {path}")


def has_copies(count: int) -> Callable[[Any], bool]:
    return lambda body: bool(body["replicas"] == count)


@dataclass
class Trio:
    """Three agents, one of them dispatcher once all had met."""

    dispatcher: Agent
    others: list[Agent]


@contextlib.contextmanager
def three(folder: Path) -> Iterator[Trio]:
    with meshed(folder, *NAMES, extra=("--log-format", "json")) as (
        dispatcher,
        *others,
    ):
        until(dispatcher, "/api/v1/nodes", has_copies(3))
        yield Trio(dispatcher, others)


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    with three(tmp_path) as trio:
        yield trio


@pytest.fixture(scope="module")
def bereft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trio, Answer]]:
    """Three that have lost their dispatcher, with its earlier answer to key k."""
    with three(tmp_path_factory.mktemp("bereft")) as trio:
        first = ask(trio.others[0], "POST", TASKS, TASK, key="k")
        kill_agent(trio.dispatcher)
        until(trio.others[0], "/api/v1/nodes", has_copies(2))
        yield trio, first


def events(agent: Agent) -> list[tuple[str, str | None]]:
    """Return the role events in an agent's log: event, and peer or reason."""
    lines = [json.loads(line) for line in agent.log().splitlines()]
    other = ("agent ready", "another mesh discovered")
    return [
        (line["event"], line.get("peer") or line.get("reason"))
        for line in lines
        if line["event"] not in other
    ]


def test_a_client_of_a_deposed_dispatcher_hears_of_the_end(
    trio: Trio, tmp_path: Path
) -> None:
    """Its request goes on at the next dispatcher, to which the end is reported."""
    old, new = trio.dispatcher, trio.others[0]
    gate = tmp_path / "gate"
    command = f"until [ -e {gate} ]; do sleep 0.05; done"
    path = f"{TASKS}/{ask(old, 'POST', TASKS, {'command': command}).body['id']}"
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(ask, old, "GET", f"{path}?wait=60")
        until(old, path, lambda task: task["status"] == "running")
        old.process.send_signal(signal.SIGSTOP)
        try:
            until(new, "/api/v1/nodes", partial(is_led_by_another, old))
        finally:
            old.process.send_signal(signal.SIGCONT)
        until(old, "/api/v1/nodes", partial(is_led_by_another, old))
        gate.touch()

        assert asked.result(timeout=30).body["status"] == "completed"


def is_led_by_another(old: Agent, body: Any) -> bool:
    """Return True if a list of nodes has a dispatcher that is not `old`."""
    heads = [n["id"] for n in body["nodes"] if n["role"] == "dispatcher"]
    return bool(heads) and old.ready()["node_id"] not in heads


def test_no_client_notices_that_the_dispatcher_is_killed(trio: Trio) -> None:
    """G8: with keys, one task each; nothing but 201 and 503.

    A client repeats a request after 503, as the answer says. Its token makes it the
    same subject at each node; on the local socket it would be another one at each.
    """
    asked = {"role": "client", "subject": "bo"}
    token = ask(trio.others[0], "POST", "/api/v1/tokens", asked).body["token"]
    died = threading.Event()
    answers: list[Answer] = []
    accepted: dict[str, set[str]] = {}

    def submit(front: Agent, key: str) -> None:
        ids = accepted.setdefault(key, set())
        while True:
            answer = ask(front, "POST", TASKS, TASK, key=key, token=token)
            answers.append(answer)
            if answer.status == 201:
                ids.add(answer.body["id"])
                return
            time.sleep(int(answer.headers["Retry-After"]))

    def live(number: int) -> None:
        front, other = trio.others[number % 2], trio.others[1 - number % 2]
        for turn in range(TURNS):
            submit(front, f"key-{number}-{turn}")
            if (number, turn) == (0, TURNS // 2):
                kill_agent(trio.dispatcher)
                died.set()
        assert died.wait(2 * WAIT_S_MAX)
        # Once more, at the other node: the same tasks, no new ones.
        for turn in range(TURNS):
            submit(other, f"key-{number}-{turn}")

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(live, number) for number in range(CLIENTS)]:
            done.result()

    assert {answer.status for answer in answers} <= {201, 503}
    assert Counter(map(len, accepted.values())) == {1: CLIENTS * TURNS}
    total = len({task for ids in accepted.values() for task in ids})
    listed = until(trio.others[0], f"{TASKS}?limit=1", lambda body: body["total"])
    assert listed["total"] == total == CLIENTS * TURNS


def test_no_command_notices_that_the_dispatcher_is_killed(trio: Trio) -> None:
    """Without explicit keys: tasks have usual ids, and still none is duplicated.

    This also holds after the dead dispatcher returns with the tasks that it alone
    accepted.
    """
    died = threading.Event()

    def live(number: int) -> list[str]:
        front = trio.others[number % 2]
        ids = []
        with Session.at_socket(
            front.ready()["socket"], retry_timeout_s=WAIT_S_MAX
        ) as node:
            for turn in range(TURNS):
                if (number, turn) == (0, TURNS // 2):
                    kill_agent(trio.dispatcher)
                    died.set()
                drafts = [Draft(command="true", name=f"{number}-{turn}")]
                [[task]] = submit_drafts(node, drafts, key=None, durability=None)
                ids.append(task.id)
        assert died.wait(2 * WAIT_S_MAX)
        return ids

    with ThreadPoolExecutor(CLIENTS) as pool:
        accepted = [task for ids in pool.map(live, range(CLIENTS)) for task in ids]
    state = trio.dispatcher.state
    again = launch(state, state.parent / "mesh.key", "--name", state.name)
    with ending(again):
        front = trio.others[0]
        until(front, "/api/v1/nodes", has_copies(3))
        listed = until(front, f"{TASKS}?limit=1000", lambda body: body["total"])

    assert all(re.fullmatch(r"task-\d{3,4}-[0-9a-f]{8}", task) for task in accepted)
    assert sorted(accepted) == sorted(task["id"] for task in listed["tasks"])
    assert len(set(accepted)) == CLIENTS * TURNS


def test_a_retry_after_a_failover_reports_the_current_copies(
    bereft: tuple[Trio, Answer],
) -> None:
    """It is as safe as a new task would be, not as safe as it was."""
    trio, first = bereft
    front = trio.others[0]

    again = ask(front, "POST", TASKS, TASK, key="k")
    state = ask(front, "GET", "/api/v1/stats").body["mesh"]

    assert first.body["replicas"] >= 2
    assert (again.status, again.body["id"]) == (201, first.body["id"])
    assert again.body["replicas"] == 2
    assert again.headers["Octaskly-Replicas"] == "2"
    assert (
        again.headers["Octaskly-Epoch"] == f"{state['term']}/{state['epoch']['node']}"
    )
    assert state["last_failover"]["reason"] == "dispatcher lost"
    assert state["last_failover"]["duration_ms"] >= 0


def test_the_log_of_a_takeover_is_readable(
    bereft: tuple[Trio, Answer],
) -> None:
    """One line for each transition, with the names of nodes, not with their ids."""
    trio, _ = bereft
    names = {agent.state.name for agent in trio.others}
    lost = trio.dispatcher.state.name
    body = until(trio.others[0], "/api/v1/nodes", has_copies(2))
    successor = body["nodes"][0]["name"]
    dead = next(node for node in body["nodes"] if node["name"] == lost)

    logged = {agent.state.name: events(agent) for agent in trio.others}

    assert (dead["state"], bool(dead["last_seen"])) == ("lost", True)
    (other,) = names - {successor}
    assert logged[successor][-4:] == [
        ("dispatcher lost", lost),
        ("claiming", "dispatcher lost"),
        ("dispatcher elected", "dispatcher lost"),
        ("standby in sync", other),
    ]
    assert logged[other][-1] == ("dispatcher followed", successor)
    lines = [json.loads(line) for line in trio.dispatcher.log().splitlines()]
    assert {
        line["peer"] for line in lines if line["event"] == "standby in sync"
    } == names


def test_a_strict_mesh_accepts_tasks_with_two_copies_only(tmp_path: Path) -> None:
    """A lone node refuses every request, and says when to try again."""
    with running(tmp_path, "ana", extra=("--durability", "strict")) as (first,):
        until_nodes(first, 1)
        refused = ask(first, "POST", TASKS, TASK)
        with running(tmp_path, "ben", extra=("--durability", "strict")) as (second,):
            until(first, "/api/v1/nodes", has_copies(2))
            accepted = ask(second, "POST", TASKS, TASK)
            # The first node is alone again, and could not record the end.
            finished(second, accepted.body["id"])

    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    assert refused.body["error"] == "No standby keeps a copy"
    assert (accepted.status, accepted.body["replicas"]) == (201, 2)


def test_a_task_that_only_an_absent_node_knows_is_never_unknown(
    tmp_path: Path,
) -> None:
    """G7: a node that comes back alone cannot know what the other one accepted."""
    with running(tmp_path, "ana", "ben") as (ana, ben):
        until(ana, "/api/v1/nodes", has_copies(2))
        kill_agent(ben)
        until(ana, "/api/v1/nodes", has_copies(1))
        task = ask(ana, "POST", TASKS, TASK).body["id"]
        kill_agent(ana)
    short = "-".join(task.split("-")[:2])
    asked = [
        ("GET", f"{TASKS}/{task}"),
        ("GET", f"{TASKS}/{short}"),
        ("GET", f"{TASKS}/{task}/outputs/a.txt"),
        ("DELETE", f"{TASKS}/{task}"),
    ]
    with running(tmp_path, "ben") as (ben,):
        until_nodes(ben, 1)
        answers = [ask(ben, method, path) for method, path in asked]
        listed = ask(ben, "GET", TASKS)
        with running(tmp_path, "ana"):
            deadline = time.perf_counter() + WAIT_S_MAX
            seen = [ask(ben, *asked[0]).status]
            while seen[-1] != 200 and time.perf_counter() < deadline:
                time.sleep(0.02)
                seen.append(ask(ben, *asked[0]).status)

    for answer in answers:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.body["error"] == "The log is not complete yet"
    assert (listed.status, listed.body["total"]) == (200, 0)
    assert set(seen) <= {200, 503}
    assert seen[-1] == 200
