"""One client cannot take the room of others: queued bytes, files and streams.

Finding S8 of the attack on 0.1.0.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import socket
from pathlib import Path
from typing import Any

from tests.support.agents import (
    TASKS,
    WAIT_S_MAX,
    Agent,
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


def upload(agent: Agent, token: str, data: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(
        "127.0.0.1", port_of(agent), timeout=WAIT_S_MAX
    )
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/octet-stream",
    }
    path = f"/api/v1/files/{hashlib.sha256(data).hexdigest()}"
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
