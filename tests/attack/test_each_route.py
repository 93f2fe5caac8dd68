"""Each route of the table, asked over hundreds of connections, by each role.

What can be counted is checked: the answers, the memory of the agent, its epoch, and
that another client's submission is accepted meanwhile. A new route is asked as well,
because the requests are made of the table. `make soak` attacks each route for a minute
(`test_routes_for_a_minute.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

import pytest

from octaskly.api.http.handler_types import Route
from octaskly.api.routes.table import ROUTES
from octaskly.api.security.route_cost import CostKind
from octaskly.core.model.ids import ATTEMPT_PATTERN
from tests.attack.test_viewer_lists import (
    COMMAND,
    GROWTH_MB_MAX,
    NOWHERE,
    Outsider,
    outsider,
)
from tests.support.agents import (
    TASKS,
    Agent,
    finished,
    memory_mb,
    request,
    reset_peak,
    running,
    submit,
    until,
)

ROLES = ("viewer", "client", "admin", None)  #: None: without a token
CONNECTIONS = 512  #: of all roles together, as each may have no more than 128
BATCH = 250
ROWS = 500  #: of a list, each with the longest command
ANSWER_S = 120.0
CLOSED = 0  #: instead of a status
REFUSALS = {
    CLOSED,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
}
PARTS = {
    "path:(?s:.+)": "out.txt",
    "file:.+": "app/main.js",
    "sha256": "0" * 64,
    "token": "nobody",
    f"attempt:{ATTEMPT_PATTERN}": "1-1-1-1",
}
CONTROL = "\x01"  #: takes six bytes in JSON
WRITE = "yes | head -c 1000000 | tee out.txt; yes | head -c 1000000 >&2"
QUERY = {"limit": "1000", "count": "10000", "text": "x", "encoding": "base64"}


pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Loaded:
    """An agent with many large tasks."""

    agent: Agent
    task: str  #: an ended one, with much output and a long environment
    array: str

    def path_of(self, route: Route) -> str:
        """Return a path of a route, with all that makes its answers long."""
        path = route.path
        task = self.array if path.startswith("/api/v1/arrays/") else self.task
        name = self.agent.state.name
        for part, value in {
            **PARTS,
            "id": task,
            "task": task,
            "name": name,
            "other": name,
        }.items():
            path = path.replace(f"{{{part}}}", value)
        long = QUERY if route.method == "GET" else {}  # Else it would be refused.
        query = [f"{name}={long[name]}" for name in route.query or () if name in long]
        return "?".join([path, "&".join(query)]) if query else path


def load(agent: Agent) -> Loaded:
    """Submit what makes the answers of an agent long."""
    env = {f"V{n}": CONTROL * 100_000 for n in range(5)}
    task = submit(agent, WRITE, env=env, outputs=["out.txt"])
    array = {"range": f"1-{ROWS}"}
    array_id = submit(agent, COMMAND[:-8] + "{}", requires=NOWHERE, array=array)
    batch = [{"command": COMMAND, "requires": NOWHERE}] * BATCH
    with contextlib.closing(agent.connection()) as connection:
        for _ in range(ROWS // BATCH):
            assert request(connection, "POST", TASKS, batch)[0] == 201
    assert finished(agent, task)["status"] == "completed"
    return Loaded(agent, task, array_id)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    with running(tmp_path_factory.mktemp("routes"), "solo") as (agent,):
        yield load(agent)


def body_of(route: Route) -> object:
    """Return the body of a request to a route, or None if it has none."""
    if route.body_type is None:
        return None
    return {"command": "true", "requires": NOWHERE} if route.path == TASKS else {}


def request_for(route: Route, path: str, token: str | None) -> bytes:
    """Return a request on a connection of its own."""
    fields = body_of(route)
    body, media = b"", "application/octet-stream"
    if fields is not None:
        body, media = json.dumps(fields).encode(), "application/json"
    head = [
        f"{route.method} {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {media}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if token is not None:
        head.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*head, "", ""]).encode() + body


def is_whole(head: bytes, body: bytes) -> bool:
    """Return True if a body has its announced end."""
    _, is_announced, rest = head.lower().partition(b"\r\ncontent-length:")
    if is_announced:
        return len(body) == int(rest.partition(b"\r\n")[0])
    return body.endswith(b"0\r\n\r\n")


async def ask(port: int, sent: bytes, *, is_stream: bool) -> tuple[int, bool]:
    """Send one request; return its status, and whether a refusal is in order.

    The status is CLOSED if the node closed the connection, as it does with the oldest
    of a local user who opens too many before a request on them is complete.
    """
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(maxsplit=2)[1])
        if is_stream:
            return status, True  # Leaving closes the connection.
        shown = await reader.read()
    except (ConnectionError, asyncio.IncompleteReadError):
        return CLOSED, True
    finally:
        if writer is not None:
            writer.close()
    assert status == HTTPStatus.NO_CONTENT or is_whole(head, shown), head
    is_refusal = status >= HTTPStatus.BAD_REQUEST
    return status, not is_refusal or "error" in json.loads(shown)


async def ask_often(
    port: int, route: Route, sent: bytes, count: int
) -> Counter[tuple[int, bool]]:
    is_stream = route.cost.kind is CostKind.STREAM
    asked = (ask(port, sent, is_stream=is_stream) for _ in range(count))
    async with asyncio.timeout(ANSWER_S):
        return Counter(await asyncio.gather(*asked))


def status_of_submission(client: Outsider) -> int:
    """Return the status that a client gets, which repeats a closed connection.

    Here it has the user of the attacker, so it has a part of the attacker's share.
    """
    task = {"command": "true", "requires": NOWHERE}

    def answered() -> int | None:
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            return client.ask("POST", TASKS, task).status
        return None

    return int(until(answered, "a submission is answered"))


@pytest.mark.parametrize(
    "route", ROUTES, ids=[f"{route.method} {route.path}" for route in ROUTES]
)
def test_no_route_takes_much_of_a_node(loaded: Loaded, route: Route) -> None:
    """However often it is asked at once, with what makes its answers long.

    With a token of each role and without one, all at the same time.
    """
    agent = loaded.agent
    tokens = {
        role: role and outsider(agent, role, f"eve-{role}").token for role in ROLES
    }
    other = outsider(agent, "client", "bob")
    count = CONNECTIONS // len(ROLES)
    path = loaded.path_of(route)
    epoch = other.ask("GET", "/api/v1/stats").headers["Octaskly-Epoch"]
    begin_mb = memory_mb(agent, "VmRSS")
    reset_peak(agent)

    async def ask_and_submit() -> tuple[list[Counter[tuple[int, bool]]], int]:
        sent = [request_for(route, path, token) for token in tokens.values()]
        attack = asyncio.gather(
            *(ask_often(other.port, route, each, count) for each in sent)
        )
        submitted = await asyncio.to_thread(status_of_submission, other)
        return await attack, submitted

    answers, submitted = asyncio.run(ask_and_submit())

    assert "{" not in path
    assert submitted == HTTPStatus.CREATED
    known = {*route.responses, *route.error_statuses, *REFUSALS, 400, 404}
    for role, of_role in zip(ROLES, answers, strict=True):
        assert of_role.total() == count
        assert all(is_in_order for _, is_in_order in of_role), (role, of_role)
        assert {status for status, _ in of_role} <= known, (role, of_role)
    assert memory_mb(agent, "VmHWM") - begin_mb < GROWTH_MB_MAX
    after = other.ask("GET", "/api/v1/stats").headers["Octaskly-Epoch"]
    assert after == epoch
