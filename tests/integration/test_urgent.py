"""While the old secret is on its way out: what it still opens, and what no more.

A member that does not confirm keeps the moment long enough to look at it.
"""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from octaskly.api.auth import PRINCIPAL_HEADER
from octaskly.core.messages import ClaimOk, Reattach
from octaskly.core.model import Epoch, NodeId, NodeState
from octaskly.mesh import wire
from octaskly.trust import MeshSecret, MeshTrust, NodeKey, load
from tests.agents import Agent, request, running, until, until_nodes
from tests.integration.test_bad_peers import Member

ROTATION = "/api/v1/rotation"
TASKS = "/api/v1/tasks"


@pytest.fixture
def solo(tmp_path: Path) -> Iterator[Agent]:
    with running(tmp_path, "solo") as (agent,):
        until_nodes(agent, 1)
        yield agent


class Caller:
    """Who speaks HTTPS with a certificate of a secret, on one connection."""

    def __init__(self, agent: Agent, trust: MeshTrust) -> None:
        url = urlsplit(agent.ready()["lan_url"])
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", url.port, context=trust.lan_client_context(), timeout=20
        )

    def status(self) -> int:
        """Ask as a node that forwards for an admin; return the answer."""
        headers = {PRINCIPAL_HEADER: "admin eve"}
        self._connection.request("GET", TASKS, headers=headers)
        answer = self._connection.getresponse()
        answer.read()
        return answer.status

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def fresh(secret: MeshSecret) -> MeshTrust:
    """Return an identity that nobody has seen, made with a secret."""
    return MeshTrust(secret, NodeKey.generate())


def token_of(agent: Agent) -> str:
    status, made = agent.call("POST", "/api/v1/tokens", {"role": "client"})
    assert status == 201
    return str(made["token"])


def with_token(agent: Agent, token: str) -> int:
    port = urlsplit(agent.ready()["api_url"]).port
    opened = http.client.HTTPConnection("127.0.0.1", port or 0, timeout=20)
    with contextlib.closing(opened):
        return request(opened, "GET", TASKS, token=token)[0]


def test_an_old_secret_makes_no_new_member_and_no_token_once_it_has_to_go(
    solo: Agent, tmp_path: Path
) -> None:
    """At once, while members that have not confirmed yet still come in with it."""
    secret, old_token = load(tmp_path / "mesh.key"), token_of(solo)
    member = Member(tmp_path, int(solo.ready()["peer_port"]))
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(member.linked())
        follows = ClaimOk(epoch(solo), ())
        link.sendall(wire.encode([follows, Reattach((), 0, NodeState.READY)]))
        until(lambda: "liar" in names(solo), "people have seen it")
        before = Caller(solo, fresh(secret))
        stack.callback(before.close)
        assert before.status() == 200

        assert solo.call("POST", f"{ROTATION}?now=true")[0] == 202

        statuses = [before.status()]
        for trust in (fresh(secret), member.trust):
            caller = Caller(solo, trust)
            stack.callback(caller.close)
            statuses.append(caller.status())
        statuses.append(with_token(solo, old_token))
        new_token = token_of(solo)
        statuses.append(with_token(solo, new_token))
        _, seen = solo.call("GET", ROTATION)
        assert seen["phase"] == "spreading", "all of that was while it is accepted"
        assert statuses == [401, 401, 200, 401, 200]
        until(lambda: phase(solo) == "settled", "the old secret is over")
        assert with_token(solo, new_token) == 200


def epoch(agent: Agent) -> Epoch:
    _, body = agent.call("GET", "/api/v1/stats")
    reign = body["mesh"]["epoch"]
    return Epoch(reign["term"], NodeId(reign["node"]))


def names(agent: Agent) -> set[str]:
    _, body = agent.call("GET", "/api/v1/nodes")
    return {node["name"] for node in body.get("nodes", ())}


def phase(agent: Agent) -> str:
    return str(agent.call("GET", ROTATION)[1]["phase"])
