"""Access: the whole route table, roles, browsers, sockets, nodes without a mesh."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from octaskly import __version__
from octaskly.api import HttpTimeouts
from octaskly.api.security.origin_checks import AllowList
from octaskly.api.server import connection_limits, listeners, server
from octaskly.config.settings import LimitOptions
from octaskly.core.model.ids import Epoch, NodeId
from octaskly.core.model.nodes import StandbyView, Takeover
from octaskly.ports.gateway import ReplicationState
from octaskly.system.build import build_id
from tests.support.agents import WAIT_S_MAX
from tests.support.api_node import (
    ADMIN,
    CLIENT,
    VIEWER,
    Answer,
    ApiNode,
    api_node,
    ask,
    assert_hardened,
    assert_problem,
    assert_standard_headers,
    exchange,
    parse,
    serve_free,
    until,
)
from tests.support.fake_gateway import NOW_MS, FakeGateway

PARTS = ("id", "task", "name", "other", "path", "token")
PAGE = ("/", "/static/style.css")  #: the dashboard's files, which hold no data
SWAP = ("POST", "/api/v1/sessions")  #: takes a code instead
OPEN = {(method, path) for path in ("/health", *PAGE) for method in ("GET", "HEAD")}
BARE = {("GET", "/metrics"), ("HEAD", "/metrics")}  #: on loopback, without a token


def _routes(node: ApiNode) -> list[tuple[str, str]]:
    """Return method and a concrete path of every route of the real router."""
    sample = dict.fromkeys(PARTS, "1") | {
        "file": "style.css",
        "sha256": "0" * 64,
        "attempt": "1-1-1-1",
    }
    found = []
    for route in node.server.router.routes():
        assert route.resource is not None
        path = route.resource.url_for(**_parts(route.resource, sample)).path
        found.append((route.method, path))
    return found


def _parts(resource: web.AbstractResource, sample: dict[str, str]) -> dict[str, str]:
    pattern = resource.get_info().get("pattern")
    return {name: sample[name] for name in pattern.groupindex} if pattern else {}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer forged"},
        {"Octaskly-Principal": "admin ana", "Octaskly-Hop": "node-b"},
        {"Origin": "http://localhost:8080"},
    ],
    ids=["no token", "bad token", "stated principal", "local page"],
)
async def test_every_route_but_health_and_the_page_needs_a_principal(
    node: ApiNode, headers: dict[str, str]
) -> None:
    """The real route table is used, so a new route cannot be forgotten."""
    routes = _routes(node)

    answers = {
        (method, path): await node.ask(method, path, headers=headers)
        for method, path in routes
    }

    assert len(routes) >= 15
    for (method, path), answer in answers.items():
        is_bare = (method, path) in BARE and "Authorization" not in headers
        if (method, path) in OPEN or is_bare:
            assert answer.status == 200, (method, path)
        elif (method, path) == SWAP:
            assert_problem(answer, 400, "Malformed JSON")
        else:
            assert answer.status == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert_problem(answer, 401, "Missing or invalid authentication token")


async def test_every_answer_forbids_browsers_to_run_its_content(node: ApiNode) -> None:
    """Each route, with and without rights, unknown routes, and invalid HTTP."""
    answers = [
        await node.ask(method, path, headers=headers)
        for method, path in [*_routes(node), ("GET", "/nowhere"), ("PATCH", "/health")]
        for headers in ({}, ADMIN, {"Host": "evil.com"})
        if headers is not ADMIN or method != "GET"  # Some streams never end.
    ]
    answers.append(parse(await exchange(node.port, b"GET /health\r\n\r\n")))
    origin = {"Origin": "http://localhost:1", "Access-Control-Request-Method": "GET"}
    answers.append(await node.ask("OPTIONS", "/api/v1/tasks", headers=origin))

    assert {200, 204, 400, 401, 403, 404, 405} <= {one.status for one in answers}
    for answer in answers:
        assert_hardened(answer)


async def test_a_route_without_an_access_rule_is_closed(node: ApiNode) -> None:
    """A handler outside the table answers no request."""

    async def handle(request: web.Request) -> web.Response:
        return web.Response(text="open")

    other = server.ApiServer(
        FakeGateway(),
        verify_token=lambda _: pytest.fail("not reached"),
        node_name="x",
        clock=node.server._pipeline._services.clock,
        identify_peer=lambda _: None,
    )
    other.router.add_get("/added", handle)
    port = await serve_free(other)
    try:
        answer = await ask(port, "GET", "/added", headers=ADMIN)
    finally:
        await other.close()

    assert_problem(answer, 403, "Insufficient permissions")


async def test_the_route_for_node_certificates_takes_no_token(node: ApiNode) -> None:
    """Requests between nodes are closed to admins, too."""
    path = "/internal/v1/outputs/x/1-1-1-1/x"

    answer = await node.ask("GET", path, headers=ADMIN)

    assert_problem(answer, 401)


@pytest.mark.parametrize("headers", [ADMIN, CLIENT, VIEWER, {}])
@pytest.mark.parametrize("path", ["/metrics", "/api/v1/sd/prometheus"])
async def test_every_role_may_scrape_and_discover(
    node: ApiNode, path: str, headers: dict[str, str]
) -> None:
    """A monitoring program needs no right beyond reading, and must list nodes."""
    answer = await node.ask("GET", path, headers=headers)

    assert answer.status == (200 if headers or path == "/metrics" else 401)


@pytest.mark.parametrize(
    ("headers", "status"), [(ADMIN, 201), (CLIENT, 403), (VIEWER, 403)]
)
async def test_only_admins_mint_tokens(
    node: ApiNode, headers: dict[str, str], status: int
) -> None:
    """A token cannot create one with more rights."""
    answer = await node.ask(
        "POST", "/api/v1/tokens", headers=headers, body={"role": "viewer"}
    )

    assert answer.status == status


@pytest.mark.parametrize(
    ("headers", "status"), [(ADMIN, 200), (CLIENT, 403), (VIEWER, 403)]
)
async def test_only_admins_forget_tasks(
    node: ApiNode, headers: dict[str, str], status: int
) -> None:
    """Forgetting affects all users' tasks, for good."""
    answer = await node.ask(
        "POST", "/api/v1/forget", headers=headers, body={"older_than_s": 0}
    )

    assert answer.status == status


@pytest.mark.parametrize("order", ["drain", "resume", "pause", "unpause"])
@pytest.mark.parametrize(
    ("headers", "status"), [(ADMIN, 200), (CLIENT, 403), (VIEWER, 403)]
)
async def test_only_admins_give_orders_to_nodes(
    node: ApiNode, headers: dict[str, str], status: int, order: str
) -> None:
    """An order stops the work of all users."""
    url = f"/api/v1/nodes/laptop-01/{order}"
    answer = await node.ask("POST", url, headers=headers)

    assert answer.status == status


async def test_a_token_has_the_requested_role_subject_and_lifetime(
    node: ApiNode,
) -> None:
    """By default 24 hours and the caller's own name."""
    plain = await node.ask(
        "POST", "/api/v1/tokens", headers=ADMIN, body={"role": "client"}
    )
    body = {"role": "viewer", "subject": "grafana", "expires_s": 60}
    named = await node.ask("POST", "/api/v1/tokens", headers=ADMIN, body=body)

    assert plain.json == {
        "token": "client:ana:86400",
        "id": f"{0:032x}",
        "name": None,
        "expires_at": "2026-02-07T12:00:00Z",
    }
    assert named.json == {
        "token": "viewer:grafana:60",
        "id": f"{1:032x}",
        "name": None,
        "expires_at": "2026-02-06T12:01:00Z",
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "$.role"),
        ({"role": "root"}, "$.role"),
        ({"role": "admin", "expires_s": 0}, "$.expires_s"),
        ({"role": "admin", "expires_s": 90 * 86400 + 1}, "$.expires_s"),
        ({"role": "admin", "subject": "a\nb"}, "$.subject"),
        ({"role": "admin", "subject": ""}, "$.subject"),
        ({"rol": "admin"}, "$.rol"),
        ({"role": "admin", "name": ""}, "$.name"),
        ({"role": "admin", "name": "a b"}, "$.name"),
        ({"role": "admin", "name": "n" * 65}, "$.name"),
    ],
)
async def test_an_invalid_token_request_names_the_field(
    node: ApiNode, body: dict[str, object], field: str
) -> None:
    """As for tasks."""
    answer = await node.ask("POST", "/api/v1/tokens", headers=ADMIN, body=body)

    assert_problem(answer, 400)
    assert answer.json["field"] == field


async def test_the_name_of_a_token_has_its_own_limits(node: ApiNode) -> None:
    """The error once named the limits of a task's name."""
    body = {"role": "viewer", "name": "a b"}
    answer = await node.ask("POST", "/api/v1/tokens", headers=ADMIN, body=body)

    limits = "1 to 64 characters of A-Z a-z 0-9 . _ -, the first not -"
    hint = f"a token's name must be {limits}"
    assert answer.json["hint"] == hint


async def test_a_named_token_is_listed_and_revoked(node: ApiNode) -> None:
    """The list contains subject and expiry, and never the token."""
    body = {"role": "viewer", "name": "grafana", "expires_s": 60}
    await node.ask("POST", "/api/v1/tokens", headers=ADMIN, body=body)

    before = await node.ask("GET", "/api/v1/tokens", headers=ADMIN)
    taken = await node.ask("POST", "/api/v1/tokens", headers=ADMIN, body=body)
    revoked = await node.ask("DELETE", "/api/v1/tokens/grafana", headers=ADMIN)
    unknown = await node.ask("DELETE", "/api/v1/tokens/prometheus", headers=ADMIN)

    shown = {
        "id": f"{0:032x}",
        "name": "grafana",
        "subject": "grafana",
        "role": "viewer",
        "state": "good",
        "issued_at": "2026-02-06T12:00:00Z",
        "issued_by": "ana",
        "expires_at": "2026-02-06T12:01:00Z",
        "revoked_at": None,
        "revoked_by": None,
    }
    assert before.json == {"tokens": [shown], "total": 1}
    assert_problem(taken, 409, "Duplicate token name")
    end = {"revoked_at": "2026-02-06T12:00:00Z", "revoked_by": "ana"}
    assert revoked.json == {**shown, **end, "state": "revoked"}
    assert_problem(unknown, 404, "Token not found")


@pytest.mark.parametrize("headers", [CLIENT, VIEWER])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/v1/tokens"), ("DELETE", "/api/v1/tokens/x")]
)
async def test_only_an_admin_sees_and_revokes_tokens(
    node: ApiNode, headers: dict[str, str], method: str, path: str
) -> None:
    """Names and subjects of other users are private."""
    assert_problem(await node.ask(method, path, headers=headers), 403)


# --- browsers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:8080",
        "http://localhost",
        "https://localhost:5173",
        "http://127.0.0.1:3000",
        "https://dash.example",
    ],
)
async def test_allowed_origin_is_reflected(origin: str) -> None:
    """On answers and on errors, with Vary, and never with credentials."""
    allowed = AllowList(names=(), origins=["https://dash.example"])
    async with api_node(allowed=allowed) as node:
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        good = await node.ask("GET", "/health", headers=headers)
        bad = await node.ask("GET", "/nowhere", headers=headers)

    for answer in (good, bad):
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Origin"
        exposed = answer.headers["access-control-expose-headers"]
        assert exposed == "X-Request-ID, X-Response-Time-ms"
        assert "access-control-allow-credentials" not in answer.headers


async def test_an_answer_without_origin_allows_none(node: ApiNode) -> None:
    """A cache must still know that the answer depends on it."""
    answer = await node.ask("GET", "/health")

    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", ["/api/v1/tasks", "/api/v1/tasks/x", "/nowhere"])
async def test_preflight_needs_no_token(node: ApiNode, path: str) -> None:
    """204 without a body, with methods and headers."""
    headers = {
        "Origin": "http://localhost:8080",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }

    answer = await node.ask("OPTIONS", path, headers=headers)

    assert (answer.status, answer.body) == (204, b"")
    given = answer.headers
    assert given["access-control-allow-origin"] == "http://localhost:8080"
    assert given["access-control-allow-methods"] == "GET, POST, DELETE, OPTIONS"
    allowed = given["access-control-allow-headers"].split(", ")
    assert allowed[:3] == ["Content-Type", "Authorization", "X-Custom-Header"]
    assert set(allowed[3:]) == {"Idempotency-Key", "Last-Event-ID"}
    assert int(given["access-control-max-age"]) > 0
    assert given["x-request-id"]


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
async def test_local_pages_and_typed_urls_are_accepted(
    node: ApiNode, site: str
) -> None:
    """Only a foreign site is refused."""
    answer = await node.ask("GET", "/health", headers={"Sec-Fetch-Site": site})

    assert answer.status == 200


# --- health, and nodes without a mesh ----------------------------------------------


async def test_health_needs_no_token(node: ApiNode) -> None:
    """Status, version and uptime; parameters against caches are ignored."""
    answer = await node.ask("GET", "/health?x=1")

    assert answer.status == 200
    assert_standard_headers(answer)
    body = answer.json
    assert (body["status"], body["uptime_seconds"]) == ("healthy", 3600)
    assert (body["version"], body["build"]) == (__version__, build_id())
    assert isinstance(body["version"], str)


async def test_health_of_a_node_that_cannot_serve(node: ApiNode) -> None:
    """503 with the reason; the one error whose status is a word."""
    node.gateway.failure = "Database connection failed"

    answer = await node.ask("GET", "/health")

    assert answer.status == 503
    assert answer.json["status"] == "unhealthy"
    assert answer.json["message"] == "Database connection failed"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/v1/tasks"), ("POST", "/api/v1/tokens"), ("GET", "/nowhere")],
)
async def test_a_node_without_a_mesh_says_how_to_join(method: str, path: str) -> None:
    """It has no key to verify a token with, so all but health is 503."""
    async with api_node(FakeGateway(mesh_id=None)) as node:
        health = await node.ask("GET", "/health")
        answer = await node.ask(method, path, headers=ADMIN)

    assert health.status == 200
    assert_problem(answer, 503)
    assert "octaskly invite" in answer.json["hint"]


# --- the UNIX socket ---------------------------------------------------------------


class _Local(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("whatever.example", timeout=WAIT_S_MAX)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def _ask_local(path: Path, method: str, target: str, body: Any = None) -> Answer:
    connection = _Local(path)
    try:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"} if data else {}
        connection.request(method, target, data, headers)
        got = connection.getresponse()
        names = {name.lower(): value for name, value in got.getheaders()}
        return Answer(got.status, names, got.read())
    finally:
        connection.close()


async def test_a_local_user_is_admin_without_a_token(
    node: ApiNode, tmp_path: Path
) -> None:
    """Its socket credentials identify it, whatever Host it sends."""
    path = tmp_path / "api.sock"
    await node.server.serve_unix(path)

    answer = await asyncio.to_thread(
        _ask_local, path, "POST", "/api/v1/tasks", {"command": "true"}
    )

    assert answer.status == 201
    principal, _ = node.gateway.submissions[0]
    assert principal.role == "admin"
    assert principal.subject.startswith("local:")
    assert principal.subject.endswith("@laptop-01")


async def test_the_socket_file_is_private_and_removed_with_the_server(
    tmp_path: Path,
) -> None:
    """0600 without a group; nothing is left behind."""
    path = tmp_path / "api.sock"
    async with api_node() as node:
        await node.server.serve_unix(path, "no-such-group-here")
        mode = stat.S_IMODE(path.stat().st_mode)

    assert mode == 0o600
    assert not path.exists()


async def test_the_socket_of_a_dead_process_is_replaced(
    node: ApiNode, tmp_path: Path
) -> None:
    """One that answers is not."""
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    await node.server.serve_unix(path)
    async with api_node() as second:
        with pytest.raises(OSError, match="another process serves"):
            await second.server.serve_unix(path)

    answer = await asyncio.to_thread(_ask_local, path, "GET", "/health")
    assert answer.status == 200


async def test_a_file_that_is_no_socket_is_not_replaced(
    node: ApiNode, tmp_path: Path
) -> None:
    """A typo in a setting must not delete a file."""
    path = tmp_path / "notes.txt"
    path.write_text("mine")

    with pytest.raises(OSError, match="not a socket"):
        await node.server.serve_unix(path)

    assert path.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_other_local_users_are_refused(node: ApiNode, tmp_path: Path) -> None:
    """403 even where the mode of the file admits them."""
    path = tmp_path / "api.sock"
    await node.server.serve_unix(path)
    path.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    # The kernel records the user at connect, so another uid just then is enough.
    connection = socket.socket(socket.AF_UNIX)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        connection.connect(str(path))
    finally:
        os.seteuid(0)
        os.setegid(0)

    reader, writer = await asyncio.open_connection(sock=connection)
    writer.write(b"GET /api/v1/tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    raw = await reader.read()
    writer.close()

    assert_problem(parse(raw), 403, "Access denied")


# --- connections -------------------------------------------------------------------


async def test_both_loopback_addresses_share_the_port(node: ApiNode) -> None:
    """`localhost` may mean either."""
    reader, writer = await asyncio.open_connection("::1", node.port)
    writer.write(
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )

    answer = parse(await reader.read())
    writer.close()

    assert answer.status == 200


async def test_headers_up_to_the_setting_are_accepted() -> None:
    """Each field, and the first line."""
    async with api_node(limits=LimitOptions(header_bytes=4000)) as node:
        within = await node.ask("GET", "/health", headers={"Made-Up": "a" * 3900})
        field = await node.ask("GET", "/health", headers={"Made-Up": "a" * 4100})
        line = await node.ask("GET", "/health?" + "a" * 4100)

    assert within.status == 200
    assert_problem(field, 400, "Bad request")
    assert_problem(line, 400, "Bad request")


async def test_half_sent_requests_give_way_to_new_connections() -> None:
    """The oldest is closed first, and a connection with a token never for them."""
    async with api_node(limits=LimitOptions(connections_max=16)) as node:
        kept_reader, kept = await asyncio.open_connection("127.0.0.1", node.port)
        kept.write(_listing("admin-token"))
        await kept_reader.readuntil(b"\r\n")
        half = [await _half_sent(node) for _ in range(4)]

        answer = await node.ask("GET", "/health")
        async with asyncio.timeout(WAIT_S_MAX):
            with contextlib.suppress(ConnectionResetError):
                assert await half[0][0].read() == b""
        kept.write(_listing("admin-token"))
        again = await kept_reader.readuntil(b"HTTP/1.1 200")
        others = [reader.at_eof() for reader, _ in half[1:]]

        for _, writer in (*half, (kept_reader, kept)):
            writer.transport.abort()
    assert answer.status == 200
    assert again.endswith(b"HTTP/1.1 200")
    assert others == [False] * 3


def _listing(token: str) -> bytes:
    """Return a request for the list of tasks."""
    return (
        "GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()


async def _half_sent(
    node: ApiNode,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection, and send the start of a header."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localh")
    return reader, writer


async def test_one_subject_gets_so_many_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One more is 429 and names it; an idle one would have been closed instead."""
    monkeypatch.setattr(connection_limits, "IDLE_S_MIN", 0.0)
    async with api_node(limits=LimitOptions(connections_per_subject=2)) as node:
        task = await node.submit()
        poll = f"/api/v1/tasks/{task}?wait=60"
        async with asyncio.TaskGroup() as group:
            polls = [
                group.create_task(node.ask("GET", poll, headers=VIEWER))
                for _ in range(2)
            ]
            await until(lambda: len(node.server._long_polls._limits) == 2)
            refused = await node.ask("GET", "/api/v1/tasks", headers=VIEWER)
            other = await node.ask("GET", "/api/v1/tasks", headers=CLIENT)
            for each in polls:
                each.cancel()
        await until(lambda: not node.server.connection_count)
        idle = [await asyncio.open_connection("127.0.0.1", node.port) for _ in "abc"]
        for reader, writer in idle:
            writer.write(_listing("viewer-token"))
            assert await reader.readuntil(b"200") == b"HTTP/1.1 200"
        for _, writer in idle:
            writer.transport.abort()

    assert_problem(refused, 429, "Too many connections")
    assert "dee may have 2 connections" in refused.json["hint"]
    assert (refused.headers["retry-after"], refused.headers["connection"]) == (
        "1",
        "close",
    )
    assert other.status == 200


async def test_connections_over_the_limit_get_an_error_or_are_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A user of the local socket has as many connections as a subject."""
    monkeypatch.setattr(connection_limits, "EXCESS_ANSWERED_MAX", 1)
    monkeypatch.setattr(listeners, "WAIT_S", 0.0)
    path = tmp_path / "api.sock"
    async with api_node(limits=LimitOptions(connections_per_subject=1)) as node:
        await node.server.serve_unix(path)
        task = await node.submit()
        poll = f"GET /api/v1/tasks/{task}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        _, polling = await asyncio.open_unix_connection(path)
        polling.write(poll.encode())
        await until(lambda: node.server._long_polls._limits)

        told = await asyncio.to_thread(_ask_local, path, "GET", "/health")
        _, idle = await asyncio.open_unix_connection(path)
        await until(lambda: node.server.connection_count == 2)
        reader, cut = await asyncio.open_unix_connection(path)
        nothing = await reader.read()
        over_tcp = await node.ask("GET", "/health")
        for writer in (polling, idle, cut):
            writer.transport.abort()

    assert_problem(told, 429, "Too many connections")
    assert told.json["hint"].startswith("user ")
    assert nothing == b""
    assert over_tcp.status == 200


async def test_a_connection_is_kept_for_many_requests(node: ApiNode) -> None:
    """Keep-alive works, also after an error."""
    one = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    raw = await exchange(node.port, one * 3 + last)

    assert raw.count(b"HTTP/1.1 404") == 3
    assert raw.count(b"HTTP/1.1 200") == 1


async def test_no_request_counts_after_its_answer_or_its_client(node: ApiNode) -> None:
    """Else the later requests of its owner would start one in a turn for ever."""
    unanswered = node.server._pipeline.turns._unanswered
    task = await node.submit()
    poll = f"GET /api/v1/tasks/{task}?wait=60 HTTP/1.1\r\nHost: localhost\r\n"
    poll += "".join(f"{name}: {value}\r\n" for name, value in ADMIN.items()) + "\r\n"

    for sent in (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
        b"no HTTP\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(sent)
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: not unanswered)
        writer.close()
    _, leaving = await asyncio.open_connection("127.0.0.1", node.port)
    leaving.write(poll.encode() * 2)
    await until(lambda: node.server._long_polls._limits)
    assert list(unanswered.values()) == [2]
    leaving.transport.abort()
    await until(lambda: not unanswered)


async def test_close_finishes_requests_in_flight() -> None:
    """Accepted work is answered; a long poll ends at once with the current state."""
    # The poll ends long before requests in flight would be aborted.
    deadlines = HttpTimeouts(shutdown_s=2 * WAIT_S_MAX)
    async with api_node(timeouts=deadlines) as node:
        task = await node.submit()
        node.gateway.held.clear()
        async with asyncio.timeout(WAIT_S_MAX), asyncio.TaskGroup() as group:
            posted = group.create_task(
                node.ask("POST", "/api/v1/tasks", headers=ADMIN, body={"command": "a"})
            )
            polled = group.create_task(
                node.ask("GET", f"/api/v1/tasks/{task}?wait=60", headers=ADMIN)
            )
            await until(lambda: len(node.gateway.submissions) == 2)
            await until(lambda: node.server._long_polls._limits)
            asyncio.get_running_loop().call_later(0.2, node.gateway.held.set)
            await node.server.close()

    assert posted.result().status == 201
    assert polled.result().json["status"] == "queued"


async def test_closing_is_announced_on_kept_connections(node: ApiNode) -> None:
    """A client on a kept connection gets its answer, and `Connection: close`.

    Without it, it could not know whether its next request was carried out.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    writer.write(one)
    await reader.readuntil(b"}")

    async with asyncio.TaskGroup() as group:
        closing = group.create_task(node.server.close())
        await until(lambda: node.server._long_polls.is_closing)
        writer.write(one)
        answer = parse(await reader.read())
        await closing
    writer.close()

    assert answer.status == 200
    assert answer.headers["connection"] == "close"


async def test_served_requests_are_logged(node: ApiNode) -> None:
    """Caller, request and status, in one plain line."""
    await node.ask("GET", "/api/v1/tasks?limit=1%0A", headers=ADMIN)

    served = node.served[0]

    assert (served.method, served.path, served.status) == ("GET", "/api/v1/tasks", 400)
    assert served.subject == "ana"


# --- nodes and statistics ----------------------------------------------------------


async def test_stats_have_the_shape_of_the_reference(node: ApiNode) -> None:
    """Counts of the mesh, the dispatcher's machine, the log."""
    await node.submit()

    answer = await node.ask("GET", "/api/v1/stats", headers=VIEWER)

    body = answer.json
    assert body["workers"] == {"total": 3, "active": 2, "idle": 1}
    assert body["tasks"]["queued"] == 1
    assert set(body["tasks"]) == {
        "queued",
        "running",
        "completed",
        "failed",
        "cancelled",
    }
    assert body["system"] == {
        "uptime_seconds": 86400,
        "memory_usage_mb": 512,
        "cpu_usage_percent": 25.5,
    }
    assert body["database"] == {"total_tasks": 1, "disk_size_mb": 15}
    assert body["mesh"] == {
        "term": 1,
        "epoch": {"term": 1, "node": "node-a"},
        "replicas": 1,
        "standbys": [],
        "last_failover": None,
        "reign_seconds": 0,
        "refused": {},
    }


async def test_stats_and_nodes_show_the_safety_of_a_task(node: ApiNode) -> None:
    """The same in both, names included; a joining standby is no copy yet."""
    gateway = node.gateway
    gateway.known_names[NodeId("node-b")] = "laptop-02"
    gateway.state = ReplicationState(
        epoch=Epoch(7, NodeId("node-a")),
        standbys=(
            StandbyView(NodeId("node-b"), True, 2),
            StandbyView(NodeId("node-c"), False, 1200),
        ),
        last_takeover=Takeover(NOW_MS, 412, "dispatcher lost"),
    )

    stats = await node.ask("GET", "/api/v1/stats", headers=VIEWER)
    nodes = await node.ask("GET", "/api/v1/nodes", headers=VIEWER)

    expected = {
        "term": 7,
        "epoch": {"term": 7, "node": "node-a"},
        "replicas": 2,
        "standbys": [
            {"name": "laptop-02", "id": "node-b", "state": "level", "lag": 2},
            {"name": "node-c", "id": "node-c", "state": "joining", "lag": 1200},
        ],
        "last_failover": {
            "at": "2026-02-06T12:00:00Z",
            "duration_ms": 412,
            "reason": "dispatcher lost",
        },
    }
    assert expected.items() <= stats.json["mesh"].items()
    assert expected.items() <= nodes.json.items()


async def test_nodes_are_listed_and_found_by_name_or_id(node: ApiNode) -> None:
    """An unknown name or id is 404."""
    listed = await node.ask("GET", "/api/v1/nodes", headers=VIEWER)
    by_name = await node.ask("GET", "/api/v1/nodes/laptop-01", headers=VIEWER)
    by_id = await node.ask("GET", "/api/v1/nodes/node-a", headers=VIEWER)
    unknown = await node.ask("GET", "/api/v1/nodes/nobody", headers=VIEWER)

    assert listed.json["total"] == 1
    assert listed.json["nodes"] == [by_name.json]
    assert by_name.json == by_id.json
    assert by_name.json["addresses"] == ["127.0.0.1:7878", "[::1]:7878"]
    assert (by_name.json["role"], by_name.json["state"]) == ("dispatcher", "ready")
    assert_problem(unknown, 404, "Worker not found")


async def test_long_text_of_strangers_is_truncated_in_the_audit_log() -> None:
    """The records of a node would not fit into one request otherwise."""
    async with api_node() as node:
        await node.ask("GET", f"/api/v1/tasks/{'%01' * 2000}")
        await node.server.auditor.flush()

        (deed,) = node.gateway.audit.deeds
        assert deed.target == "\x01" * 160


async def test_a_submission_with_an_unknown_outcome_is_audited() -> None:
    """No standby acknowledges a strict one, but this node may have accepted it."""
    async with api_node() as node:
        path = "/api/v1/tasks?durability=strict"
        refused = await node.ask("POST", path, headers=CLIENT, body={"command": "make"})
        await node.server.auditor.flush()

        (deed,) = node.gateway.audit.deeds
    assert_problem(refused, 503, "No standby keeps a copy")
    assert (deed.status, deed.command) == (503, "make")
