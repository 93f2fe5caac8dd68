"""Token revocation on whole agents on loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from octaskly.api.http.file_sender import LONG_BODY_BYTES
from tests.support.agents import (
    UNFORKED,
    WAIT_S_MAX,
    Agent,
    ending,
    request,
    roles_of,
    soon_s,
    start,
    stop_all,
    three_agents,
    until,
    until_nodes,
)

TOKENS = "/api/v1/tokens"
SOON_S = soon_s(2.0)  #: after the answer to a revocation


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    """A mesh that tests do not change, whose processes show their own words."""
    with three_agents(tmp_path_factory.mktemp("shared"), prefix=UNFORKED) as agents:
        yield agents


def connection(agent: Agent) -> http.client.HTTPConnection:
    """Return a connection over TCP, where a token is needed."""
    url = urlsplit(agent.ready()["api_url"])
    return http.client.HTTPConnection("127.0.0.1", url.port or 0, timeout=30)


def status_at(agent: Agent, token: str, path: str = "/api/v1/tasks") -> int:
    """Return a node's status for a token."""
    with contextlib.closing(connection(agent)) as opened:
        return request(opened, "GET", path, token=token)[0]


def issue(agent: Agent, **asked: Any) -> dict[str, Any]:
    status, issued = agent.call("POST", TOKENS, {"role": "client", **asked})
    assert status == 201, issued
    return dict(issued)


def revoked_everywhere_s(agents: list[Agent], token: str) -> float:
    """Return the seconds until each node refuses a token."""
    began_s = time.perf_counter()
    for agent in agents:
        until(
            lambda agent=agent: status_at(agent, token) == 401,  # type: ignore[misc]
            f"{agent.state.name} refuses the token",
        )
    return time.perf_counter() - began_s


def test_a_revoked_token_is_refused_by_all_nodes_for_good(
    fresh_mesh: list[Agent], tmp_path: Path
) -> None:
    """Threat 11: within two seconds; after a failover; after all have restarted.

    The worker forwards the revocation, and so does the node that gets a valid token:
    most of these requests go over two machines.
    """
    worker = fresh_mesh[2]
    assert roles_of(worker)["cy"] == "worker"
    named = issue(worker, name="ci", expires_s=86_400 * 30)
    plain, kept = issue(worker), issue(worker, name="kept")["token"]
    for agent in fresh_mesh:
        assert status_at(agent, named["token"]) == 200
        assert status_at(agent, plain["token"]) == 200

    status, shown = worker.call("DELETE", f"{TOKENS}/ci")
    took_s = revoked_everywhere_s(fresh_mesh, named["token"])
    assert (status, shown["state"]) == (200, "revoked")
    assert took_s < SOON_S, f"all refused it after {took_s:.2f} s"
    assert worker.call("DELETE", f"{TOKENS}/{plain['id']}")[0] == 200
    assert revoked_everywhere_s(fresh_mesh, plain["token"]) < SOON_S

    roles = roles_of(worker)
    dispatcher = next(a for a in fresh_mesh if roles[a.state.name] == "dispatcher")
    dispatcher.process.send_signal(signal.SIGKILL)
    dispatcher.process.wait()
    left = [agent for agent in fresh_mesh if agent is not dispatcher]
    until(lambda: status_at(left[0], kept) == 200, "another node is dispatcher")
    for agent in left:
        assert status_at(agent, named["token"]) == 401
        assert status_at(agent, plain["token"]) == 401

    stop_all(left)
    again = [start(tmp_path, agent.state.name) for agent in fresh_mesh]
    with ending(*again):
        for agent in again:
            agent.ready()
            assert status_at(agent, named["token"]) == 401
        until_nodes(again[0], 3)
        for agent in again:
            assert status_at(agent, plain["token"]) == 401
            assert status_at(agent, kept) == 200
        status, listed = again[0].call("GET", TOKENS)
        states = {shown["name"]: shown["state"] for shown in listed["tokens"]}
        assert states == {"ci": "revoked", "kept": "good"}


class Reader(threading.Thread):
    """Reads an answer until it ends in any way."""

    def __init__(
        self, agent: Agent, path: str, token: str, asked: dict[str, str] | None = None
    ) -> None:
        super().__init__(daemon=True)
        self._opened = connection(agent)
        headers = {"Authorization": f"Bearer {token}"}
        if asked is None:
            self._opened.request("GET", path, headers=headers)
        else:
            headers["Content-Type"] = "application/json"
            self._opened.request("POST", path, json.dumps(asked), headers)
        self.has_started = threading.Event()
        self.status = 0

    def run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            reply = self._opened.getresponse()
            self.status = reply.status
            while reply.read1():
                self.has_started.set()
        self._opened.close()


def test_an_urgent_rotation_ends_tokens_and_the_old_secret(
    fresh_mesh: list[Agent], tmp_path: Path
) -> None:
    """No node is revoked, and all nodes stay in the mesh."""
    token = issue(fresh_mesh[2])["token"]
    old = (tmp_path / "mesh.key").read_text().strip()

    status, rotation = fresh_mesh[2].call("POST", "/api/v1/rotation?now=true")

    assert (status, rotation["revoked"]) == (202, [])
    for agent in fresh_mesh:
        until(lambda agent=agent: settled(agent) == 2, "the old secret is over")  # type: ignore[misc]
        assert status_at(agent, token) == 401
    assert old not in (tmp_path / "mesh.key").read_text()
    until_nodes(fresh_mesh[0], 3)


def settled(agent: Agent) -> int | None:
    """Return the generation of a secret that is the only one."""
    status, body = agent.call("GET", "/api/v1/rotation")
    is_settled = status == 200 and body["phase"] == "settled"
    return int(body["generation"]) if is_settled else None


def test_streams_and_long_polls_end_with_their_token(shared: list[Agent]) -> None:
    """No later event reaches an open stream or a long poll."""
    issued = issue(shared[0], name="watch", role="viewer")
    brief = issue(shared[0], role="viewer")["token"]
    status, task = shared[0].call("POST", "/api/v1/tasks", {"command": "sleep 60"})
    assert status == 201
    streams = [Reader(a, "/api/v1/events", issued["token"]) for a in shared]
    polls = [
        Reader(a, f"/api/v1/tasks/{task['id']}?wait=50", issued["token"])
        for a in shared
    ]
    others = Reader(shared[1], "/api/v1/events", brief)
    for reader in (*streams, *polls, others):
        reader.start()
    for stream in (*streams, others):
        assert stream.has_started.wait(WAIT_S_MAX)

    assert shared[1].call("DELETE", f"{TOKENS}/watch")[0] == 200
    began_s = time.perf_counter()
    for reader in (*streams, *polls):
        reader.join(WAIT_S_MAX)
        assert not reader.is_alive()
    took_s = time.perf_counter() - began_s

    assert took_s < SOON_S, f"the last one ended after {took_s:.2f} s"
    assert [poll.status for poll in polls] == [401, 401, 401]
    assert others.is_alive()
    ended = shared[0].call("DELETE", f"/api/v1/tasks/{task['id']}?force=true")
    assert ended[0] == 200


def begin_upload(agent: Agent, token: str, *, tls: bool) -> http.client.HTTPConnection:
    """Send half of a file; return the connection."""
    opened = connection(agent)
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        url = urlsplit(agent.ready()["lan_url"])
        opened = http.client.HTTPSConnection(
            "127.0.0.1", url.port, timeout=30, context=context
        )
    data = os.urandom(3 * LONG_BODY_BYTES)
    opened.putrequest("POST", f"/api/v1/files/{sha256(data).hexdigest()}")
    opened.putheader("Authorization", f"Bearer {token}")
    opened.putheader("Content-Type", "application/octet-stream")
    opened.putheader("Content-Length", str(len(data)))
    opened.endheaders(data[: len(data) // 2])
    return opened


def test_long_posts_end_with_their_token(shared: list[Agent]) -> None:
    """A lender's stream stays open as long as its tasks, an upload if it is slow."""
    agent = shared[1]
    token = issue(agent, name="lender")["token"]
    lender = Reader(agent, "/api/v1/files/lend", token, {"sha256": "ab" * 32})
    lender.start()
    assert lender.has_started.wait(WAIT_S_MAX)
    uploads = [begin_upload(agent, token, tls=tls) for tls in (False, True)]

    assert agent.call("DELETE", f"{TOKENS}/lender")[0] == 200
    began_s = time.perf_counter()
    statuses = [upload.getresponse().status for upload in uploads]
    lender.join(WAIT_S_MAX)
    took_s = time.perf_counter() - began_s

    assert statuses == [401, 401]
    assert not lender.is_alive()
    assert took_s < SOON_S, f"the last one ended after {took_s:.2f} s"


def test_a_token_is_stored_nowhere(shared: list[Agent]) -> None:
    """Threat 20: not in a database, a log, or the visible data of a process."""
    issued = issue(shared[2], name="canary", role="admin")
    token = issued["token"]
    signature = token.rpartition(".")[2].encode()
    for agent in shared:
        assert status_at(agent, token) == 200
        assert status_at(agent, token, "/nowhere") == 404
        assert status_at(agent, token + "x") == 401

    assert shared[0].call("DELETE", f"{TOKENS}/canary")[0] == 200
    assert status_at(shared[0], token) == 401

    files: dict[Path, bytes] = {}
    for path in shared[0].state.parent.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # The process has ended meanwhile.
            if path.is_file():
                files[path] = path.read_bytes()
    assert len(files) > len(shared)
    found = [path for path, data in files.items() if signature in data]
    for agent in shared:
        proc = Path(f"/proc/{agent.process.pid}")
        for page in (proc / "cmdline", proc / "environ"):
            found += [page] if signature in page.read_bytes() else []
    assert not found
