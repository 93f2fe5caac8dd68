"""Rights of an old secret during an urgent rotation.

A member that does not confirm keeps the moment long enough to look at it.
"""

from __future__ import annotations

import contextlib
import http.client
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from octaskly.api.http.authentication import PRINCIPAL_HEADER
from octaskly.core.model.ids import Epoch, NodeId
from octaskly.core.model.nodes import NodeState
from octaskly.core.protocol.messages import ClaimOk, Reattach
from octaskly.mesh import wire
from octaskly.trust import MeshSecret, MeshTls, NodeKey, load_secret
from tests.integration.mesh.test_bad_peers import Member
from tests.support.agents import Agent, request, running, until, until_nodes

ROTATION = "/api/v1/rotation"
TASKS = "/api/v1/tasks"


LOOKS_MAX = 5  #: that moment is over before a slow machine has checked


class Caller:
    """A client that speaks HTTPS with a certificate of a secret, on one connection."""

    def __init__(self, agent: Agent, trust: MeshTls) -> None:
        url = urlsplit(agent.ready()["lan_url"])
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", url.port, context=trust.lan_client_context(), timeout=20
        )

    def status(self) -> int:
        """Send a request as a node that forwards for an admin; return the answer."""
        headers = {PRINCIPAL_HEADER: "admin eve"}
        self._connection.request("GET", TASKS, headers=headers)
        answer = self._connection.getresponse()
        answer.read()
        return answer.status

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def fresh(secret: MeshSecret) -> MeshTls:
    """Return a new identity, made with a secret."""
    return MeshTls(secret, NodeKey.generate())


def token_of(agent: Agent) -> str:
    status, made = agent.call("POST", "/api/v1/tokens", {"role": "client"})
    assert status == 201
    return str(made["token"])


def with_token(agent: Agent, token: str) -> int:
    port = urlsplit(agent.ready()["api_url"]).port
    opened = http.client.HTTPConnection("127.0.0.1", port or 0, timeout=20)
    with contextlib.closing(opened):
        return request(opened, "GET", TASKS, token=token)[0]


def test_an_old_secret_makes_no_member_or_token_in_an_urgent_rotation(
    tmp_path: Path,
) -> None:
    """At once, while unconfirmed members still connect with it.

    A check that came too late is repeated with another mesh.
    """
    for number in range(LOOKS_MAX):
        folder = tmp_path / str(number)
        folder.mkdir()
        with running(folder, "solo") as (solo,):
            until_nodes(solo, 1)
            statuses, new_token = rights_of_old_secret(solo, folder)
            if statuses is None:
                continue
            assert statuses == [401, 401, 200, 401, 200]
            until(lambda solo=solo: phase(solo) == "settled", "the old secret is over")  # type: ignore[misc]
            assert with_token(solo, new_token) == 200
            return
    pytest.fail("no look was in time")


def rights_of_old_secret(solo: Agent, folder: Path) -> tuple[list[int] | None, str]:
    """Return the rights of an old secret in an urgent rotation, and a new token.

    Return None if the secret was gone before all checks.
    """
    secret, old_token = load_secret(folder / "mesh.key"), token_of(solo)
    member = Member(folder, int(solo.ready()["peer_port"]))
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(member.linked())
        follows = ClaimOk(epoch(solo), ())
        link.sendall(wire.encode([follows, Reattach((), 0, NodeState.READY)]))
        until(lambda: "liar" in names(solo), "people have seen it")
        before = Caller(solo, fresh(secret))
        stack.callback(before.close)
        assert before.status() == 200

        assert solo.call("POST", f"{ROTATION}?now=true")[0] == 202

        try:
            statuses = [before.status()]
            for trust in (fresh(secret), member.trust):
                caller = Caller(solo, trust)
                stack.callback(caller.close)
                statuses.append(caller.status())
        except (OSError, http.client.HTTPException):
            if phase(solo) == "spreading":
                raise
            return None, ""
        statuses.append(with_token(solo, old_token))
        new_token = token_of(solo)
        statuses.append(with_token(solo, new_token))
        return (statuses if phase(solo) == "spreading" else None), new_token


def epoch(agent: Agent) -> Epoch:
    _, body = agent.call("GET", "/api/v1/stats")
    current = body["mesh"]["epoch"]
    return Epoch(current["term"], NodeId(current["node"]))


def names(agent: Agent) -> set[str]:
    _, body = agent.call("GET", "/api/v1/nodes")
    return {node["name"] for node in body.get("nodes", ())}


def phase(agent: Agent) -> str:
    return str(agent.call("GET", ROTATION)[1]["phase"])
