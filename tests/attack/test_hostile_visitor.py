"""What a visitor sends on its link to harm the member at the other end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.api.http.authentication import PRINCIPAL_HEADER
from octaskly.api.http.node_client import HOP_HEADER
from octaskly.api.routes.table import ROUTES
from octaskly.core.model.keyring_state import OUTDATED_REASON, REVOKED_REASON
from octaskly.core.protocol.messages import Heartbeat, Leave
from octaskly.mesh import wire
from octaskly.mesh.links.duplicates import DUPLICATE_ID
from tests.attack.test_connections import new_token
from tests.attack.test_each_route import PARTS
from tests.support.agents import Agent, finished, running, submit, until
from tests.support.frames import length_prefixed
from tests.support.hostile_visitor import HostileVisitor, farewell, hear, hear_all

PRINCIPAL = "admin eve"  #: as a member states who asks
EMPTY_FRAME = length_prefixed(b"\x90")


def path_of(pattern: str) -> str:
    """Return a path of a route."""
    for name, value in PARTS.items():
        pattern = pattern.replace(f"{{{name}}}", value)
    return pattern.replace("{", "").replace("}", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("visited")


@pytest.fixture(scope="module")
def agent(folder: Path) -> Iterator[Agent]:
    with running(folder, "ash") as (agent,):
        yield agent


def test_a_visitor_cannot_make_a_member_change_its_id(
    folder: Path, agent: Agent
) -> None:
    """It says that the member's id is in use, as a member would of a copied folder."""
    with HostileVisitor(folder, agent).linked() as tls:
        tls.sendall(wire.encode([Leave(DUPLICATE_ID)]))
        hear_all(tls)

    assert finished(agent, submit(agent, "true"))["status"] == "completed"
    log = agent.log()
    assert f"reason={DUPLICATE_ID!r}" in log or DUPLICATE_ID in log
    assert "node id renewed" not in log


def test_frames_without_a_message_close_the_link(folder: Path, agent: Agent) -> None:
    """They would cost time without counting against the visitor's messages."""
    with HostileVisitor(folder, agent).linked() as tls:
        tls.sendall(EMPTY_FRAME)
        reason = farewell(tls)

    assert reason == "protocol: a frame without a message"


def test_no_token_and_no_statement_opens_a_route_to_a_visitor(
    folder: Path, agent: Agent
) -> None:
    """It has stolen the token of an admin, and says that it forwards for one."""
    visitor = HostileVisitor(folder, agent)
    token = new_token(agent, "admin", "eve")
    headers = {
        "Authorization": f"Bearer {token}",
        PRINCIPAL_HEADER: PRINCIPAL,
        HOP_HEADER: "1",
    }
    denied = [route for route in ROUTES if not route.allows_visitors]

    answers = {
        (route.method, route.path): visitor.ask(
            route.method, path_of(route.path), headers
        )
        for route in denied
    }

    assert {key for key, status in answers.items() if status != 403} == set()
    assert len(answers) == len(denied) > 0


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/api/v1/nodes/{visitor}/revoke", REVOKED_REASON),
        ("/api/v1/rotation?now=true", OUTDATED_REASON),
    ],
)
def test_a_visitor_is_out_once_it_is_revoked_or_the_secret_is_renewed(
    tmp_path: Path, path: str, reason: str
) -> None:
    """Its link ends at once, and its certificate opens none and no route."""
    with running(tmp_path, "ash") as (agent,):
        finished(agent, submit(agent, "true"))
        visitor = HostileVisitor(tmp_path, agent)
        with visitor.linked() as tls:
            hear(tls, Heartbeat)
            status, _ = agent.call("POST", path.format(visitor=visitor.node_id))
            assert status == 202
            assert farewell(tls) == reason
        until(lambda: _is_settled(agent), "the old secret has ended")

        with contextlib.suppress(OSError), visitor.linked() as tls:
            assert hear_all(tls) == []
        with pytest.raises(OSError):  # An alert, or a closed connection.
            visitor.ask("GET", f"/internal/v1/files/{'0' * 64}")


def _is_settled(agent: Agent) -> bool:
    return bool(agent.call("GET", "/api/v1/rotation")[1]["phase"] == "settled")
