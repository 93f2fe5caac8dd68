"""One client cannot take the room of others: queued bytes, files and streams.

Finding S8 of the attack on 0.1.0.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octaskly.config.defaults import WEBHOOKS_PER_SUBJECT
from tests.support.agents import (
    TASKS,
    WAIT_S_MAX,
    Agent,
    finished,
    meshed,
    replicas,
    request,
    running,
    until,
    until_nodes,
)

FILES_QUOTA_BYTES = 8 << 20
QUEUED_MAX = "1M"


def port_of(agent: Agent) -> int:
    return int(agent.ready()["api_url"].rpartition(":")[2])


def token_for(agent: Agent, subject: str, role: str = "client") -> str:
    status, made = agent.call("POST", "/api/v1/tokens", {"role": role, "name": subject})
    assert status == 201, made
    return str(made["token"])


def ask(
    agent: Agent, token: str, method: str, path: str, body: object = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(
        "127.0.0.1", port_of(agent), timeout=WAIT_S_MAX
    )
    with contextlib.closing(connection):
        return request(connection, method, path, body, token)


def file_path(data: bytes) -> str:
    return f"/api/v1/files/{hashlib.sha256(data).hexdigest()}"


def upload(agent: Agent, token: str, data: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(
        "127.0.0.1", port_of(agent), timeout=WAIT_S_MAX
    )
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/octet-stream",
    }
    path = file_path(data)
    with contextlib.closing(connection):
        connection.request("POST", path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def announce_file(agent: Agent, token: str, size_bytes: int) -> socket.socket:
    """Announce a file, send its first byte, and leave it at that."""
    connection = socket.create_connection(("127.0.0.1", port_of(agent)), WAIT_S_MAX)
    connection.sendall(
        f"POST /api/v1/files/{'0' * 64} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {token}\r\nExpect: 100-continue\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Content-Length: {size_bytes}\r\n\r\n".encode()
    )
    assert connection.recv(1 << 10).startswith(b"HTTP/1.1 100")
    connection.sendall(b"x")
    return connection


def test_a_body_that_announces_the_whole_quota_reserves_nothing(
    tmp_path: Path,
) -> None:
    """Another client stores a file while the first sends nothing of its own."""
    quota = ("--files-quota", str(FILES_QUOTA_BYTES))
    with running(tmp_path, "ana", extra=quota) as (agent,):
        until_nodes(agent, 1)
        greedy, other = token_for(agent, "greedy"), token_for(agent, "other")
        with announce_file(agent, greedy, FILES_QUOTA_BYTES):
            status, answer = upload(agent, other, b"a" * (1 << 20))

        assert status == 201, answer


def test_no_client_releases_the_file_of_another(tmp_path: Path) -> None:
    """The file has room until its own client, or an admin, releases it."""
    quota = ("--files-quota", str(FILES_QUOTA_BYTES))
    mine, theirs, more = (letter * (5 << 20) for letter in (b"a", b"b", b"c"))
    with running(tmp_path, "ana", extra=quota) as (agent,):
        until_nodes(agent, 1)
        owner, other = token_for(agent, "owner"), token_for(agent, "other")
        viewer = token_for(agent, "viewer", "viewer")
        assert upload(agent, owner, mine)[0] == 201

        assert ask(agent, viewer, "DELETE", file_path(mine))[0] == 403
        assert ask(agent, other, "DELETE", file_path(mine))[0] == 204
        assert ask(agent, other, "GET", file_path(mine))[0] == 200
        assert ask(agent, other, "DELETE", file_path(mine))[0] == 204
        assert upload(agent, other, theirs)[0] == 507

        assert ask(agent, owner, "DELETE", file_path(mine))[0] == 204
        assert upload(agent, other, theirs)[0] == 201
        assert upload(agent, owner, more)[0] == 507
        assert agent.call("DELETE", file_path(theirs))[0] == 204
        assert upload(agent, owner, more)[0] == 201


def test_waiting_tasks_of_one_client_have_a_quota_of_bytes(tmp_path: Path) -> None:
    """The refusal says what is full and whose; others submit, and room returns."""
    extra = ("--queued-bytes-per-subject", QUEUED_MAX, "--slots", "1")
    with running(tmp_path, "ana", extra=extra) as (agent,):
        until_nodes(agent, 1)
        greedy, other = token_for(agent, "greedy"), token_for(agent, "other")
        stdin = base64.b64encode(b"x" * (400 << 10)).decode()
        gate = tmp_path / "go"
        held = {"command": f"until test -e {gate}; do sleep 0.05; done; true"}
        assert ask(agent, greedy, "POST", TASKS, held)[0] == 201
        task = {"command": "true", "stdin_base64": stdin}

        answers = [ask(agent, greedy, "POST", TASKS, task) for _ in range(4)]
        refused = answers[-1][1]

        assert [status for status, _ in answers] == [201, 201, 429, 429]
        assert "greedy" in refused["hint"]
        assert "--queued-bytes-per-subject" in refused["hint"]
        assert ask(agent, other, "POST", TASKS, task)[0] == 201
        assert agent.call("POST", TASKS, task)[0] == 201

        gate.touch()
        last = answers[1][1]["id"]
        assert ask(agent, greedy, "GET", f"{TASKS}/{last}?wait=60")[1]["status"] == (
            "completed"
        )
        # Bytes are not counted again at once.
        until(lambda: ask(agent, greedy, "POST", TASKS, task)[0] == 201, "room is back")


def test_paths_of_waiting_tasks_count_in_the_quota_of_bytes(tmp_path: Path) -> None:
    """Each list of paths may have as many bytes as stdin."""
    extra = ("--queued-bytes-per-subject", QUEUED_MAX, "--slots", "1")
    with running(tmp_path, "ana", extra=extra) as (agent,):
        until_nodes(agent, 1)
        greedy = token_for(agent, "greedy")
        paths = [f"{n:04}{'x' * 100}" for n in range(4000)]
        nowhere = {"labels": {"there": "is-none"}}
        task = {"command": "true", "requires": nowhere, "inputs": paths}

        answers = [ask(agent, greedy, "POST", TASKS, task)[0] for _ in range(4)]

        assert answers == [201, 201, 429, 429]


def test_webhooks_of_one_client_have_a_quota(tmp_path: Path) -> None:
    """Each takes memory of the dispatcher until its receiver answers."""
    with running(tmp_path, "ana") as (agent,):
        until_nodes(agent, 1)
        greedy, other = token_for(agent, "greedy"), token_for(agent, "other")
        task = {
            "command": "true",
            "requires": {"labels": {"there": "is-none"}},
            "notify_url": "http://127.0.0.1:9/",
        }
        half = [task] * (WEBHOOKS_PER_SUBJECT // 2)

        answers = [ask(agent, greedy, "POST", TASKS, half) for _ in range(3)]
        refused = answers[-1][1]

        assert [status for status, _ in answers] == [201, 201, 429]
        assert "1000 webhooks of greedy are pending" in refused["hint"]
        assert ask(agent, greedy, "POST", TASKS, [task])[0] == 429
        assert ask(agent, greedy, "POST", TASKS, {"command": "true"})[0] == 201
        assert ask(agent, other, "POST", TASKS, task)[0] == 201
        assert agent.call("POST", TASKS, task)[0] == 201


def test_one_viewer_cannot_take_all_event_streams(tmp_path: Path) -> None:
    """Its own limit is reached first, so another viewer and a local user get one."""
    with running(tmp_path, "ana", extra=("--streams-per-subject", "2")) as (agent,):
        until_nodes(agent, 1)
        greedy, other = (token_for(agent, s, "viewer") for s in ("greedy", "other"))
        with contextlib.ExitStack() as opened:
            statuses = [
                opened.enter_context(_stream(agent, greedy)).status for _ in range(3)
            ]

            assert statuses == [200, 200, 429]
            assert opened.enter_context(_stream(agent, other)).status == 200


@contextlib.contextmanager
def _stream(agent: Agent, token: str) -> Any:
    connection = http.client.HTTPConnection(
        "127.0.0.1", port_of(agent), timeout=WAIT_S_MAX
    )
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {token}"}
        connection.request("GET", "/api/v1/events", headers=headers)
        yield connection.getresponse()


STDIN = "x" * (1 << 20)  #: the most that a task may have
LARGE = {"stdin": STDIN}
LARGE_TASKS = 50
LOG_BYTES_MAX = 10 << 20  #: a tenth of what these tasks took; failed ones stay


def log_bytes(agent: Agent) -> int:
    """Return the bytes of the pages in use in a node's log."""
    path = agent.state / "log.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as log:
        pages, free, size = (
            log.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    """A dispatcher and its standby."""
    folder = tmp_path_factory.mktemp("stdin")
    with meshed(folder, "ana", "bob") as agents:
        until(lambda: replicas(agents[0]) == 2, "there is a standby")
        yield agents


def test_ended_tasks_do_not_keep_their_stdin_on_any_disk(pair: list[Agent]) -> None:
    """600 tasks with 1 MB took 1.2 GB on three disks for as long as results stay."""
    agent, task, names = pair[0], {"command": "wc -c"} | LARGE, []
    for _ in range(0, LARGE_TASKS, 10):
        status, answer = agent.call("POST", TASKS, [task] * 10)
        assert status == 201, answer
        names += [each["id"] for each in answer]
    ends = [finished(agent, name) for name in names]
    assert {end["stdout"].strip() for end in ends} == {str(len(STDIN))}

    until(lambda: max(map(log_bytes, pair)) < LOG_BYTES_MAX, "both logs are small")

    shown = agent.call("GET", f"{TASKS}/{names[0]}")[1]
    assert (shown["stdin_bytes"], shown["stdin_freed"]) == (len(STDIN), True)


def test_a_completed_task_without_its_stdin_is_not_repeated(pair: list[Agent]) -> None:
    """The refusal says why; an equal request with its key still finds the task."""
    agent, task = pair[0], {"command": "wc -c"} | LARGE

    def post(body: object) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json", "Idempotency-Key": "key"}
        with contextlib.closing(agent.connection()) as connection:
            connection.request("POST", TASKS, json.dumps(body).encode(), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def is_freed() -> bool:
        return bool(agent.call("GET", f"{TASKS}/{name}")[1]["stdin_freed"])

    name = post(task)[1]["id"]
    assert finished(agent, name)["status"] == "completed"
    until(is_freed, "its stdin is freed")

    status, refusal = agent.call("POST", f"{TASKS}/{name}/retry")

    assert (status, refusal["error"]) == (409, "Stdin was deleted")
    assert f"{len(STDIN)} bytes" in refusal["hint"]
    status, same = post(task)
    assert (status, same["id"]) == (201, name)
    assert post({**task, "stdin": "y" + STDIN[1:]})[0] == 409


def test_a_failed_task_keeps_its_stdin_for_a_retry(pair: list[Agent]) -> None:
    """Its submitter has few of them."""
    agent = pair[0]
    status, task = agent.call("POST", TASKS, {"command": "wc -c; false"} | LARGE)
    assert status == 201, task
    assert finished(agent, task["id"])["status"] == "failed"

    status, again = agent.call("POST", f"{TASKS}/{task['id']}/retry")

    assert status == 201, again
    assert finished(agent, again["id"])["stdout"].strip() == str(len(STDIN))
