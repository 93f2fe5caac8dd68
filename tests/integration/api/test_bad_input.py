"""Rows B01 to B20 of the checklist of bad inputs, one test id each, over raw TCP."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time

import jwt
import pytest

from octaskly.api import HttpTimeouts
from octaskly.api.security.origin_checks import AllowList
from octaskly.api.server.request_bodies import SMALL_BODY_BYTES
from octaskly.config.defaults import CONNECTIONS_PER_ADDRESS
from octaskly.errors import TrustError
from octaskly.ports.tokens import Principal
from octaskly.trust import mesh_secret as secrets_of
from octaskly.trust.tokens import TokenSigner
from tests.support.agents import WAIT_S_MAX
from tests.support.api_node import (
    ADMIN,
    JSON,
    TOKENS,
    VIEWER,
    ApiNode,
    HurriedClock,
    api_node,
    ask,
    assert_problem,
    assert_standard_headers,
    exchange,
    parse,
    unread,
    until,
)

TASKS = "/api/v1/tasks"
GOOD = {"command": "true"}


async def test_b01_post_without_token(node: ApiNode) -> None:
    """401 with a challenge, and nothing is stored."""
    answer = await node.ask("POST", TASKS, body=GOOD)

    assert_problem(answer, 401, "Missing or invalid authentication token")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json["hint"].startswith("missing bearer token")
    assert node.gateway.records == {}


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic YTpi", "bearer", "Bearer a b", "Bearer \xff"],
)
async def test_b01_malformed_authorization(node: ApiNode, header: str) -> None:
    """Anything but a bearer token is 401, never 500."""
    answer = await node.ask("GET", TASKS, headers={"Authorization": header})

    assert_problem(answer, 401, "Missing or invalid authentication token")


def _forgeries() -> dict[str, str]:
    secret, other = secrets_of.generate_secret(), secrets_of.generate_secret()
    now_s = int(time.time())
    good = TokenSigner(secret)
    mint = {"subject": "ana", "role": "admin", "jti": "j", "expires_s": 60}
    token = good.sign_token(**mint, now_s=now_s)  # type: ignore[arg-type]
    claims = jwt.decode(token, options={"verify_signature": False})
    key = secret.token_key(secret.generation)
    headers = {"kid": str(secret.generation)}

    def signed(changes: dict[str, object]) -> str:
        kept = {k: v for k, v in (claims | changes).items() if v is not None}
        return jwt.encode(kept, key, "HS256", headers=headers)

    return {
        "secret": secret.to_text(),
        "good": token,
        "alg none": jwt.encode(claims, "", "none", headers=headers),
        "wrong key": TokenSigner(other).sign_token(**mint, now_s=now_s),  # type: ignore[arg-type]
        "no exp": signed({"exp": None}),
        "foreign aud": signed({"aud": "octaskly:other"}),
        "exp as text": signed({"exp": str(now_s + 60)}),
        "far exp": signed({"exp": 10**18}),
        "unknown role": signed({"role": "root"}),
        "expired": signed({"iat": now_s - 9000, "exp": now_s - 8000}),
        "too long": token + "a" * 5000,
        "garbage": "a.b.c",
    }


async def test_b02_forged_and_expired_tokens() -> None:
    """One text for every forgery; only a genuine but expired token differs."""
    tokens = _forgeries()
    mesh = TokenSigner(secrets_of.parse_secret(tokens.pop("secret")))

    def verify(token: str) -> Principal:
        claims = mesh.verify_token(token, time.time())
        return Principal(subject=claims.subject, role=claims.role)

    async with api_node(verify_token=verify) as node:
        answers = {
            name: await node.ask(
                "GET", TASKS, headers={"Authorization": f"Bearer {token}"}
            )
            for name, token in tokens.items()
        }

    assert answers.pop("good").status == 200
    for answer in answers.values():
        assert_problem(answer, 401, "Missing or invalid authentication token")
    hints = {name: answer.json["hint"] for name, answer in answers.items()}
    another = "`octaskly token create --role client` on a node prints a new one"
    assert hints.pop("expired") == f"the token has expired; {another}"
    assert hints.pop("too long") == "the token is longer than 4096 bytes"
    assert set(hints.values()) == {
        f"the token is incomplete, or not of this mesh; {another}"
    }


@pytest.mark.parametrize(
    ("method", "path"), [("POST", TASKS), ("DELETE", f"{TASKS}/x")]
)
async def test_b03_viewer_may_not_write(node: ApiNode, method: str, path: str) -> None:
    """403, before the body or the task is read."""
    answer = await node.ask(method, path, headers=VIEWER)

    assert_problem(answer, 403, "Insufficient permissions")
    assert "tasks:write" in answer.json["hint"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.com:3000",
        "evil.com",
        "localhost.evil.com",
        "evil.com.",
        "localhost..",
        "127.0.0.1.nip.io",
        "0.0.0.0",
        "128.0.0.1",
        "10.0.0.1:3000",
        "2130706433",
        "0x7f.1",
        "[::2]:3000",
        "[fe80::1]",
        "::1",
        "localhost:99999",
        "localhost:port",
        "localhost:3000@evil.com",
        "user@localhost",
        "laptop-01",
        "localhost/evil",
        "loc\u00e1lhost",
        "xn--loclhost-p4a",
    ],
)
@pytest.mark.parametrize("path", ["/health", TASKS, "/nowhere"])
async def test_b04_foreign_host(node: ApiNode, host: str, path: str) -> None:
    """403 on every path, so that no page can rebind its name to this node."""
    answer = await node.ask("GET", path, headers=ADMIN | {"Host": host})

    if answer.status != 400:  # The parser itself refuses some.
        assert_problem(answer, 403, "Access denied")
        assert answer.json["field"] == "Host"
    assert_standard_headers(answer)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:1",
        "LOCALHOST:3000",
        "localhost.",
        "127.0.0.1:3000",
        "127.1.2.3",
        "[::1]:3000",
        "[0:0:0:0:0:0:0:1]",
        "pi.lan:3000",
    ],
)
async def test_b04_own_hosts(host: str) -> None:
    """Loopback in all its forms, and names in the settings."""
    async with api_node(allowed=AllowList(names=["Pi.lan"], origins=())) as node:
        answer = await node.ask("GET", "/health", headers={"Host": host})

    assert answer.status == 200, answer


async def test_a_body_that_is_no_gzip_is_refused_in_one_line(node: ApiNode) -> None:
    """Like every error, because it goes into logs and to terminals."""
    headers = ADMIN | {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = await node.ask("POST", "/api/v1/tasks", headers=headers, body=b"{}")

    assert_problem(answer, 400, "Bad request")
    said = "the body cannot be read: Can not decode content-encoding: gzip"
    assert answer.json["hint"] == said


async def test_b04_absolute_uri(node: ApiNode) -> None:
    """The host of the target counts as much as the header."""
    own = await node.ask("GET", f"http://localhost:{node.port}/health")
    foreign = await node.ask("GET", "http://evil.com/health")
    both = await node.ask(
        "GET", f"http://localhost:{node.port}/health", headers={"Host": "evil.com"}
    )

    assert own.status == 200
    assert_problem(foreign, 403, "Access denied")
    assert_problem(both, 403, "Access denied")


FOREIGN = [
    "http://evil.com",
    "http://localhost.evil.com",
    "http://localhost:3000@evil.com",
    "http://127.0.0.1.nip.io",
    "http://localhost:99999",
    "HTTP://LOCALHOST:8080",
    "null",
    "http://localhost:8080/",
    "ftp://localhost",
    "http://localhost:",
    "http://127.0.0.2",
]


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PUT", "HEAD"])
async def test_b05_foreign_origin(node: ApiNode, origin: str, method: str) -> None:
    """403 for all methods, without any header that would let the page read it."""
    headers = ADMIN | {"Origin": origin, "Access-Control-Request-Method": "POST"}

    answer = await node.ask(method, "/health", headers=headers)

    if method == "HEAD":
        assert answer.status == 403
    else:
        assert_problem(answer, 403, "Access denied")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_b05_cross_site_without_origin(node: ApiNode, method: str) -> None:
    """The browser's own header is trusted."""
    headers = ADMIN | {"Sec-Fetch-Site": "cross-site"}

    answer = await node.ask(method, f"{TASKS}/x", headers=headers)

    assert_problem(answer, 403, "Access denied")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "a/b/c"]
)
async def test_b06_other_content_type(node: ApiNode, content_type: str) -> None:
    """415: a body that a form can send without a preflight is never parsed."""
    answer = await node.ask(
        "POST", TASKS, headers=ADMIN | {"Content-Type": content_type}, body=GOOD
    )

    assert_problem(answer, 415)
    assert node.gateway.records == {}


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON"]
)
async def test_b06_json_with_charset(node: ApiNode, content_type: str) -> None:
    """A charset is allowed."""
    answer = await node.ask(
        "POST", TASKS, headers=ADMIN | {"Content-Type": content_type}, body=GOOD
    )

    assert answer.status == 201


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b"[" * 100_000,
        b'{"command":' * 5000,
        json.dumps(GOOD).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        b"NaN",
        b'{"command":"a","timeout":NaN}',
        b'{"command":"a","timeout":1e400}',
        b'{"command":"a","timeout":' + b"9" * 5000 + b"}",
        b'{"command":"\xff"}',
        b'{"command":"a"} {"command":"b"}',
        b'{"command":"a",}',
        b"null",
        b'"true"',
        b"\x00",
    ],
)
async def test_b07_invalid_json(node: ApiNode, body: bytes) -> None:
    """400, never 500."""
    answer = await node.ask("POST", TASKS, headers=ADMIN, body=body)

    assert_problem(answer, 400)
    assert node.faults == []
    assert node.gateway.records == {}


@pytest.mark.parametrize("command", ["", " ", "\t\n \u3000", 1, None, [], ["a"], {}])
async def test_b08_command_that_is_no_text(node: ApiNode, command: object) -> None:
    """400 with the path of the field."""
    answer = await node.ask("POST", TASKS, headers=ADMIN, body={"command": command})

    assert_problem(answer, 400, "Invalid command format")
    assert answer.json["field"] == "$.command"


async def test_b08_missing_command(node: ApiNode) -> None:
    """The reference has a text of its own for it."""
    answer = await node.ask("POST", TASKS, headers=ADMIN, body={"timeout": 5})

    assert_problem(answer, 400, "Missing required field")
    assert answer.json["field"] == "$.command"


@pytest.mark.parametrize(
    "command",
    ["a\0b", "\ud800", "a" * 65_537, "\u00e9" * 32_769],
    ids=["nul", "surrogate", "long", "long in bytes"],
)
async def test_b09_command_that_no_shell_takes(node: ApiNode, command: str) -> None:
    """400 naming the field; the limit is in bytes."""
    answer = await node.ask("POST", TASKS, headers=ADMIN, body={"command": command})

    assert_problem(answer, 400, "Invalid command format")
    assert answer.json["field"] == "$.command"
    if len(command) > 10:
        assert "65536" in answer.json["hint"]


async def test_b09_longest_command(node: ApiNode) -> None:
    """65 536 bytes are accepted."""
    assert await node.submit("a" * 65_536)


async def test_b10_unknown_field(node: ApiNode) -> None:
    """400 with the most similar known name."""
    answer = await node.ask("POST", TASKS, headers=ADMIN, body={"comand": "true"})

    assert_problem(answer, 400, "Unknown field")
    assert answer.json["hint"] == "unknown field `comand`; did you mean `command`?"
    assert answer.json["field"] == "$.comand"


BODILESS = [
    ("POST", "/api/v1/nodes/n1/drain"),
    ("POST", f"{TASKS}/task-001/retry"),
    ("POST", "/api/v1/rotation"),
    ("DELETE", f"{TASKS}/task-001"),
    ("GET", TASKS),
]


@pytest.mark.parametrize(("method", "path"), BODILESS)
async def test_b10_field_where_no_body_is_needed(
    node: ApiNode, method: str, path: str
) -> None:
    """A client that sends `force` so must not believe that it worked."""
    answer = await node.ask(method, path, headers=ADMIN, body={"force": True})

    assert_problem(answer, 400, "Unknown field")
    assert answer.json["field"] == "$.force"


@pytest.mark.parametrize(("method", "path"), BODILESS)
async def test_an_empty_object_is_no_body(
    node: ApiNode, method: str, path: str
) -> None:
    """Some clients always send one."""
    bare = await node.ask(method, path, headers=ADMIN)
    empty = await node.ask(method, path, headers=ADMIN, body={})

    assert empty.status == bare.status != 400


@pytest.mark.parametrize(
    "timeout", [0, -1, 86_401, "60", True, 1e308, 60.5, None, 10**30, [], "1e3"]
)
async def test_b11_timeout_out_of_range(node: ApiNode, timeout: object) -> None:
    """400 with the allowed range."""
    body = {"command": "true", "timeout": timeout}

    answer = await node.ask("POST", TASKS, headers=ADMIN, body=body)

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["hint"].count("xpected") == 1  # Not in two ways at once.
    assert "1 to 86400" in answer.json["hint"]
    assert answer.json["field"] == "$.timeout"


@pytest.mark.parametrize("field", ["node", "os", "arch"])
async def test_an_empty_requirement_is_refused(node: ApiNode, field: str) -> None:
    """A script with an unset variable would run its command anywhere."""
    body = {"command": "true", "requires": {field: ""}}

    answer = await node.ask("POST", TASKS, headers=ADMIN, body=body)

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == f"$.requires.{field}"
    assert node.gateway.records == {}


@pytest.mark.parametrize("timeout", [1, 86_400])
async def test_b11_timeout_at_its_bounds(node: ApiNode, timeout: int) -> None:
    """Both bounds are allowed."""
    body = {"command": "true", "timeout": timeout}

    answer = await node.ask("POST", TASKS, headers=ADMIN, body=body)

    assert answer.status == 201


async def test_b12_body_over_its_limit(node: ApiNode) -> None:
    """413 at once if the length says so; 1 MiB for routes without tasks."""
    tasks = await node.ask(
        "POST", TASKS, headers=ADMIN | JSON | {"Content-Length": str((32 << 20) + 1)}
    )
    tokens = await node.ask(
        "POST", "/api/v1/tokens", headers=ADMIN, body=b" " * ((1 << 20) + 1)
    )

    assert_problem(tasks, 413)
    assert_problem(tokens, 413)
    assert tasks.headers["connection"] == "close"


@pytest.mark.parametrize(
    "route", [("POST", "/api/v1/sessions"), ("GET", "/health"), ("GET", "/metrics")]
)
async def test_bodies_are_small_where_no_token_is_needed(
    node: ApiNode, route: tuple[str, str]
) -> None:
    """Those of all others count in one sum, which strangers could use up."""
    answer = await node.ask(*route, headers=JSON, body=b" " * (SMALL_BODY_BYTES + 1))

    assert_problem(answer, 413)


async def test_b12_endless_chunks(node: ApiNode) -> None:
    """413 when the limit is crossed, whatever the announced length."""
    head = (
        f"POST /api/v1/tokens HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: {ADMIN['Authorization']}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

    raw = await exchange(node.port, head.encode() + chunk * 20)

    assert_problem(parse(raw), 413)


async def test_b12_gzip_bomb(node: ApiNode) -> None:
    """The limit counts unpacked bytes."""
    bomb = gzip.compress(b" " * (40 << 20))

    answer = await node.ask(
        "POST", TASKS, headers=ADMIN | {"Content-Encoding": "gzip"}, body=bomb
    )

    assert len(bomb) < 100_000
    assert_problem(answer, 413)


async def test_the_sum_of_all_bodies_is_bounded(node: ApiNode) -> None:
    """B12: each is within its limit, but they are many; small ones still pass."""
    length = 30 << 20
    head = (
        f"POST {TASKS} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: {ADMIN['Authorization']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()
    streams = []
    for _ in range(3):  # All but their last byte, so they stay in memory.
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(head + b" " * (length - 1))
        await writer.drain()
        streams.append((reader, writer))

    refused = parse(await exchange(node.port, head + b" " * length))
    small = await node.ask("POST", TASKS, headers=ADMIN, body=GOOD)
    for _, writer in streams:
        writer.transport.abort()
    later = await node.ask("POST", TASKS, headers=ADMIN, body=b" " * length)
    while later.status == 503:
        later = await node.ask("POST", TASKS, headers=ADMIN, body=b" " * length)

    assert_problem(refused, 503, "Too many large requests")
    assert refused.headers["retry-after"] == "1"
    assert small.status == 201
    assert_problem(later, 400)


async def test_b12_broken_gzip(node: ApiNode) -> None:
    """A body that cannot be unpacked is a bad request."""
    answer = await node.ask(
        "POST", TASKS, headers=ADMIN | {"Content-Encoding": "gzip"}, body=b"no gzip"
    )

    assert_problem(answer, 400)


@pytest.mark.parametrize("field", ["inputs", "outputs"])
@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a\0b",
        "a/../../b",
        "..",
        "a/..",
        ".",
        "",
        "./",
        "//etc/passwd",
        "x" * 256,
        "a/" * 2100 + "b",
        "\udcff",
    ],
)
async def test_b13_path_that_leaves(node: ApiNode, field: str, path: str) -> None:
    """400 with the index of the entry."""
    body = {"command": "true", field: ["good.txt", path]}

    answer = await node.ask("POST", TASKS, headers=ADMIN, body=body)

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == f"$.{field}[1]"


@pytest.mark.parametrize("value", [["a"] * 10_001, "a.txt", [1], {"a": 1}, None])
async def test_b13_paths_that_are_no_list(node: ApiNode, value: object) -> None:
    """At most 10 000 texts."""
    body = {"command": "true", "inputs": value}

    answer = await node.ask("POST", TASKS, headers=ADMIN, body=body)

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"].startswith("$.inputs")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("unknown", 404),
        ("task-999", 404),
        ("../stats", 404),
        ("%2e%2e", 400),
        ("%00", 400),
        ("a%2Fb", 400),
        ("%ff", 400),
        ("a" * 65, 400),
        ("", 404),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_b14_task_that_is_not_there(
    node: ApiNode, method: str, path: str, status: int
) -> None:
    """404, or 400 for an impossible id."""
    answer = await node.ask(method, f"{TASKS}/{path}", headers=ADMIN)

    assert_problem(answer, status)
    if path in ("unknown", "task-999"):
        assert answer.json["error"] == "Task not found"


async def test_b15_cancelling_twice(node: ApiNode) -> None:
    """The second answer repeats the first."""
    task = await node.submit()

    first = await node.ask("DELETE", f"{TASKS}/{task}", headers=ADMIN)
    second = await node.ask("DELETE", f"{TASKS}/{task}", headers=ADMIN)

    assert (first.status, second.status) == (200, 200)
    assert first.body == second.body


async def test_b15_cancelling_a_finished_task(node: ApiNode) -> None:
    """404, as the reference says."""
    task = await node.submit()
    node.gateway.start(task)
    node.gateway.finish(task)

    answer = await node.ask("DELETE", f"{TASKS}/{task}?force=true", headers=ADMIN)

    assert_problem(answer, 404, "Task not found")


async def test_b15_cancelling_a_running_task(node: ApiNode) -> None:
    """409 unless forced."""
    task = await node.submit()
    node.gateway.start(task)

    gentle = await node.ask("DELETE", f"{TASKS}/{task}", headers=ADMIN)
    forced = await node.ask("DELETE", f"{TASKS}/{task}?force=true", headers=ADMIN)

    assert_problem(gentle, 409, "Cannot cancel running task")
    assert forced.status == 200
    assert forced.json["status"] == "cancelled"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PATCH", TASKS, "GET, HEAD, OPTIONS, POST"),
        ("PUT", f"{TASKS}/x", "DELETE, GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("TRACE", "/", "GET, HEAD, OPTIONS"),
        ("DELETE", TASKS, "GET, HEAD, OPTIONS, POST"),
    ],
)
async def test_b16_wrong_method(
    node: ApiNode, method: str, path: str, allow: str
) -> None:
    """405 with the allowed methods."""
    answer = await node.ask(method, path, headers=ADMIN)

    assert_problem(answer, 405)
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=-1", "limit"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        (f"limit={10**30}", "limit"),
        ("limit=1.0", "limit"),
        ("limit=", "limit"),
        ("limit=%D9%A1", "limit"),
        ("status=bogus", "status"),
        ("status=QUEUED", "status"),
        ("offset=x", "offset"),
        ("offset=-1", "offset"),
        ("limit=1&limit=2", "limit"),
        ("limt=1", "limt"),
        ("worker_id=", "worker_id"),
    ],
)
async def test_b17_query_out_of_range(node: ApiNode, query: str, field: str) -> None:
    """400 with the parameter."""
    answer = await node.ask("GET", f"{TASKS}?{query}", headers=ADMIN)

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == field


@pytest.mark.parametrize(
    ("method", "query", "field"),
    [
        ("GET", "wait=301", "wait"),
        ("GET", "wait=-1", "wait"),
        ("GET", "wait=nan", "wait"),
        ("GET", "force=true", "force"),
        ("GET", "encoding=latin-1", "encoding"),
        ("DELETE", "force=1", "force"),
        ("DELETE", "wait=1", "wait"),
    ],
)
async def test_b17_query_of_one_task(
    node: ApiNode, method: str, query: str, field: str
) -> None:
    """Each route knows its own parameters."""
    answer = await node.ask(method, f"{TASKS}/x?{query}", headers=ADMIN)

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == field


PROTOCOL_ERRORS = {
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "no host in 1.0": b"GET /health HTTP/1.0\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "empty host": b"GET /health HTTP/1.1\r\nHost:\r\n\r\n",
    "length and chunks": b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + b"\x01" * 200,
    "long header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: "
    + b"a" * 9000
    + b"\r\n\r\n",
    "long path": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    + b"A: a\r\n" * 500
    + b"\r\n",
    "no version": b"GET /health\r\n\r\n",
    "bad version": b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "bad method": b"G@T /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bad target": b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bad header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
    "bad length": b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: -1\r\n\r\n",
    "nul in header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: \0\r\n\r\n",
}


@pytest.mark.parametrize("data", PROTOCOL_ERRORS.values(), ids=PROTOCOL_ERRORS.keys())
async def test_b18_broken_http(node: ApiNode, data: bytes) -> None:
    """400 as JSON, then the connection is closed."""
    raw = await exchange(node.port, data)

    answer = parse(raw)
    assert_problem(answer, 400)
    assert not answer.json["hint"].endswith(":")  # The library's own text behind it.
    assert node.faults == []


@pytest.mark.parametrize("kind", ["long header", "long path"])
async def test_b18_errors_of_long_headers_have_our_text(
    node: ApiNode, kind: str
) -> None:
    """The library would repeat the start of the header, as a bytearray."""
    answer = parse(await exchange(node.port, PROTOCOL_ERRORS[kind]))

    assert answer.json["hint"] == (
        "the request line or a header field is over 8190 bytes"
    )


@pytest.mark.parametrize("version", ["0.9", "2.0"])
async def test_b18_other_version_of_http(node: ApiNode, version: str) -> None:
    """505; later bytes on the connection cannot be parsed."""
    request = f"GET /health HTTP/{version}\r\nHost: localhost\r\n\r\n"

    answer = parse(await exchange(node.port, request.encode()))

    assert_problem(answer, 505, "Unsupported HTTP version")


async def test_b18_unknown_expectation(node: ApiNode) -> None:
    """417 as JSON; the library answers it before any middleware runs."""
    answer = await node.ask("GET", "/health", headers={"Expect": "a miracle"})

    assert_problem(answer, 417)


async def test_b18_connect_is_refused(node: ApiNode) -> None:
    """This is no proxy."""
    raw = await exchange(
        node.port,
        b"CONNECT evil.com:80 HTTP/1.1\r\nHost: evil.com:80\r\n"
        b"Connection: close\r\n\r\n",
    )

    assert parse(raw).status in (400, 403, 405)
    assert_standard_headers(parse(raw))


@pytest.mark.parametrize("data", [b"", b"GET /health HT", b"GET / HTTP/1.1\r\nHost: l"])
async def test_b19_half_a_header(data: bytes) -> None:
    """Closed at the deadline, which starts at the connect."""
    async with api_node(timeouts=HttpTimeouts(header_s=0.3, shutdown_s=1)) as node:
        started_s = asyncio.get_running_loop().time()
        await exchange(node.port, data)
        took_s = asyncio.get_running_loop().time() - started_s

    assert 0.25 < took_s < HttpTimeouts().header_s


async def test_b19_half_a_body() -> None:
    """408, then closed."""
    async with api_node(timeouts=HttpTimeouts(body_s=0.3, shutdown_s=1)) as node:
        answer = await node.ask(
            "POST", TASKS, headers=ADMIN | JSON | {"Content-Length": "100"}
        )

    assert_problem(answer, 408)
    assert answer.headers["connection"] == "close"


async def test_b19_half_open_connections_delay_nobody() -> None:
    """With 200 of them an answer still comes; all are closed in the end.

    The oldest give way once they are idle; the newest of a local user stay until their
    deadline.
    """
    patient = HttpTimeouts(header_s=2 * WAIT_S_MAX, shutdown_s=1)
    requests = 3
    async with api_node(timeouts=patient, clock=HurriedClock()) as node:
        half = await _half_open(node)
        for _ in range(requests):
            answer = await node.ask("GET", "/health")
            assert answer.status == 200
        kept = half[requests - CONNECTIONS_PER_ADDRESS :]
        assert not any(reader.at_eof() for reader, _ in kept)
        for _, writer in half:
            writer.transport.abort()
    async with api_node(timeouts=HttpTimeouts(header_s=1.0, shutdown_s=1)) as node:
        half = await _half_open(node)
        async with asyncio.timeout(WAIT_S_MAX):
            for reader, writer in half:
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
                writer.close()


async def _half_open(
    node: ApiNode,
) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open 200 connections that each send half a header."""
    half = []
    for _ in range(200):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(b"GET /health HTTP/1.1\r\n")
        half.append((reader, writer))
    return half


async def test_b19_unread_answers() -> None:
    """Pipelined requests without a token; the connection is closed."""
    async with api_node(timeouts=HttpTimeouts(stall_s=0.5, shutdown_s=1)) as node:
        lines = "GET /static/app/store.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        async with unread(node, lines.encode() * 5000):
            await until(lambda: not node.server.connection_count)
        assert node.faults == []


@pytest.mark.parametrize(
    "given", ["a b", "x" * 65, "x" * 8000, "\x1b[31mred", "", "\u00e9", "a;b"]
)
async def test_b20_unusable_request_id(node: ApiNode, given: str) -> None:
    """Replaced by our own, so that a log line stays one plain line."""
    answer = await node.ask("GET", "/health", headers={"X-Request-ID": given})

    if answer.status == 400:  # The parser refuses control characters itself.
        return
    assert answer.status == 200
    assert answer.headers["x-request-id"] != given
    assert len(node.served) == 1
    assert node.served[0].request_id == answer.headers["x-request-id"]


async def test_b20_usable_request_id(node: ApiNode) -> None:
    """Returned unchanged, in errors too."""
    headers = {"X-Request-ID": "build-7.a_B"}

    good = await node.ask("GET", "/health", headers=headers)
    bad = await ask(node.port, "GET", "/nowhere", headers=headers)

    assert good.headers["x-request-id"] == "build-7.a_B"
    assert bad.headers["x-request-id"] == "build-7.a_B"


def test_tokens_of_these_tests_cover_all_roles() -> None:
    """The matrix of rights needs every principal."""
    assert {who.role for who in TOKENS.values()} == {"admin", "client", "viewer"}
    assert issubclass(TrustError, Exception)
