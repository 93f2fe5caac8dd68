"""Tokens for dashboard pages: login codes of the local socket, used once and soon."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from octaskly.api import ListenerKind
from octaskly.api.http.handler_types import no_checkup
from octaskly.api.security.one_time_codes import CODE_TTL_S, CODES_MAX, OneTimeCodes
from octaskly.core.model.ids import Moment, NodeId
from octaskly.errors import TrustError
from octaskly.ports.join_service import JoinStatus, WaitingMachine
from octaskly.ports.tokens import Principal
from octaskly.trust import MeshTls, NodeKey, generate_secret
from tests.support.api_node import (
    ADMIN,
    JSON,
    Answer,
    ApiNode,
    FixedClock,
    api_node,
    ask,
    assert_problem,
    serve_free,
)
from tests.support.fake_gateway import NOW_MS, FakeGateway

PAGES = "/api/v1/sessions"
OURS = Principal(subject="ana", role="admin", uid=1000)


class Hands(FixedClock):
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.mono_s = 100.0

    def now(self) -> Moment:
        return Moment(self.mono_s, NOW_MS)


class Nobody:
    """Admissions of a node without waiting machines."""

    async def list_join_requests(self) -> list[WaitingMachine]:
        return []

    async def join_status(self) -> JoinStatus:
        raise NotImplementedError


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
async def session_node(tmp_path: Path, clock: Hands) -> AsyncIterator[ApiNode]:
    """A node whose desk issues the tokens of its pages."""
    gateway = FakeGateway()

    def verify(token: str) -> Principal:
        kind, _, jti = token.rpartition(":")
        if token == "admin-token":
            return Principal(subject="ana", role="admin", token="a-named-one")
        if not kind.startswith("page:") or jti in gateway.tokens.revoked:
            raise TrustError("token is not valid")
        return Principal(
            subject=kind.removeprefix("page:"),
            role="admin",
            token=jti,
            session_node=NodeId("elsewhere" if jti == "far" else "node-a"),
            session_started_s=NOW_MS // 1000,
        )

    options: dict[str, Any] = {
        "verify_token": verify,
        "clock": clock,
        "admissions": Nobody(),
        "describe_agent": lambda: CHECKUP,
    }
    async with api_node(gateway, **options) as started:
        await started.server.serve_unix(tmp_path / "api.sock")
        yield started


LAN = "https://10.0.0.7:3443"
CHECKUP = replace(no_checkup(), api_url="http://localhost:3000", lan_url=LAN)


async def code_of(tmp_path: Path, good_for: str = "me") -> dict[str, Any]:
    """Request a code as a local user does."""

    def ask() -> Any:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(tmp_path / "api.sock"))
        body = json.dumps({"good_for": good_for})
        connection.request("POST", f"{PAGES}/codes", body=body, headers=JSON)
        answer = connection.getresponse()
        assert answer.status == 201
        said = json.loads(answer.read())
        connection.close()
        return said

    found: dict[str, Any] = await asyncio.to_thread(ask)
    return found


async def swap(node: ApiNode, code: str) -> Answer:
    return await node.ask("POST", PAGES, body={"code": code})


def shown(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_code_of_the_local_socket_signs_a_page_in(
    session_node: ApiNode, tmp_path: Path
) -> None:
    """As the requesting user; its address points to this node."""
    code = await code_of(tmp_path)

    answer = await swap(session_node, code["code"])

    assert code["url"] == f"http://localhost:3000/#code={code['code']}"
    assert code["lan_url"] is None
    assert answer.status == 201
    assert answer.json["role"] == "admin"
    assert answer.json["subject"].startswith("local:")
    listed = await session_node.ask(
        "GET", "/api/v1/nodes", headers=shown(answer.json["token"])
    )
    assert listed.status == 200


async def test_a_code_is_valid_once(session_node: ApiNode, tmp_path: Path) -> None:
    """A reader of the process list comes too late."""
    code = (await code_of(tmp_path))["code"]
    await swap(session_node, code)

    again = await swap(session_node, code)

    assert_problem(again, 401, "Missing or invalid authentication token")
    assert again.json["hint"].endswith("octaskly open")


async def test_a_code_is_valid_for_a_minute(
    session_node: ApiNode, tmp_path: Path, clock: Hands
) -> None:
    """A forgotten printed code opens nothing."""
    code = (await code_of(tmp_path))["code"]
    clock.mono_s += CODE_TTL_S

    assert (await swap(session_node, code)).status == 401


@pytest.mark.parametrize("given", ["", "x", "node-a.", "node-a." + "x" * 43, "é.é"])
async def test_an_invalid_code_is_refused(session_node: ApiNode, given: str) -> None:
    """With one status, whatever its form."""
    assert (await swap(session_node, given)).status == 401


async def test_a_code_of_another_node_is_reported_as_such(
    session_node: ApiNode, tmp_path: Path
) -> None:
    """The user would otherwise open it there again and again."""
    code = (await code_of(tmp_path))["code"]

    answer = await swap(session_node, f"node-b.{code.partition('.')[2]}")

    assert answer.status == 401
    assert "another node" in answer.json["hint"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_a_code_for_the_local_user_is_refused_to_another(
    session_node: ApiNode, tmp_path: Path
) -> None:
    """The kernel names the user at the other end of the connection."""
    code = (await code_of(tmp_path))["code"]
    body = json.dumps({"code": code}).encode()
    head = f"POST {PAGES} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    os.seteuid(65534)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", session_node.port)
    finally:
        os.seteuid(0)
    writer.write(head.encode() + body)
    raw = await reader.read()
    writer.close()

    assert raw.startswith(b"HTTP/1.1 401")
    assert b"another user" in raw
    assert (await swap(session_node, code)).status == 401, "it is burnt"


async def test_a_code_for_anybody_has_a_network_address(
    session_node: ApiNode, tmp_path: Path
) -> None:
    """People copy it to another machine themselves."""
    code = await code_of(tmp_path, "anybody")

    assert code["lan_url"] == f"{LAN}/#code={code['code']}"
    assert (await swap(session_node, code["code"])).status == 201


async def test_a_token_cannot_request_a_code(session_node: ApiNode) -> None:
    """A token could otherwise become one that renews itself."""
    answer = await session_node.ask(
        "POST", f"{PAGES}/codes", headers=ADMIN, body={"good_for": "me"}
    )

    assert_problem(answer, 403, "Insufficient permissions")


async def test_a_page_renews_its_token_under_the_same_id(
    session_node: ApiNode, tmp_path: Path
) -> None:
    """So revoking one of them revokes the page."""
    first = await swap(session_node, (await code_of(tmp_path))["code"])
    token = first.json["token"]

    second = await session_node.ask("POST", f"{PAGES}/renew", headers=shown(token))

    assert second.status == 200
    assert second.json["token"].rpartition(":")[2] == token.rpartition(":")[2]
    await session_node.gateway.tokens.revoke(f"{1:032x}", by="ana")
    refused = await session_node.ask("POST", f"{PAGES}/renew", headers=shown(token))
    assert refused.status == 401


async def test_a_token_of_no_page_is_not_renewed(session_node: ApiNode) -> None:
    """It would be valid for ever."""
    answer = await session_node.ask("POST", f"{PAGES}/renew", headers=ADMIN)

    assert_problem(answer, 403, "Insufficient permissions")


@pytest.mark.parametrize(
    ("headers", "status"),
    [(shown("page:bo:1"), 200), (shown("page:bo:far"), 403), (ADMIN, 403)],
    ids=["opened here", "opened elsewhere", "any admin"],
)
async def test_only_a_page_opened_here_admits_machines(
    session_node: ApiNode, headers: dict[str, str], status: int
) -> None:
    """An admission hands out the mesh secret, for which no token is enough."""
    answer = await session_node.ask("GET", "/api/v1/requests", headers=headers)

    assert answer.status == status


async def test_a_page_admits_machines_through_loopback_only() -> None:
    """On the network its token may be a stolen one."""
    trust = MeshTls(generate_secret(), NodeKey.generate())
    page = Principal(
        subject="bo",
        role="admin",
        token="1",
        session_node=trust.node_id,
        session_started_s=1,
    )
    async with api_node(
        FakeGateway(trust.node_id),
        verify_token=lambda _: page,
        admissions=Nobody(),
        lan_ssl=trust.lan_server_contexts(["here"], ["127.0.0.1"]),
    ) as node:
        port = await serve_free(node.server, ListenerKind.LAN, ["127.0.0.1"])
        tls = ssl.create_default_context(cadata=trust.ca_pem())
        headers, path = shown("x"), "/api/v1/requests"
        near = await node.ask("GET", path, headers=headers)
        far = await ask(port, "GET", path, headers=headers, tls=tls)

    assert near.status == 200
    assert_problem(far, 403, "Insufficient permissions")


async def test_guesses_are_counted_on_loopback_too(clock: Hands) -> None:
    """Like those of strangers on the network."""
    async with api_node(limits_per_minute={"stranger": 3}, clock=clock) as node:
        answers = [(await swap(node, "node-a.x")).status for _ in range(5)]

    assert answers == [401, 401, 401, 429, 429]


def test_only_the_newest_codes_are_kept() -> None:
    """A loop of requests fills no memory, and the newest code works."""
    codes = OneTimeCodes()
    made = [codes.create(OURS, uid=None, now_s=0.0) for _ in range(CODES_MAX + 1)]

    assert codes.redeem(made[0], 1.0) is None
    assert codes.redeem(made[-1], 1.0) is not None


def test_a_code_of_a_user_needs_that_user_or_root() -> None:
    """A client whose user is unknown is refused."""
    codes = OneTimeCodes()
    opened = codes.redeem(codes.create(OURS, uid=1000, now_s=0.0), 1.0)

    assert opened is not None
    assert opened.may_be_redeemed_by(1000)
    assert opened.may_be_redeemed_by(0)
    assert not opened.may_be_redeemed_by(1001)
    assert not opened.may_be_redeemed_by(None)
