"""The REST contract on a live mesh of three: at the dispatcher and forwarded."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from octaskly.trust import load_secret
from octaskly.trust.tokens import TokenSigner
from tests.support.agents import ENDS, WAIT_S_MAX, Agent, meshed
from tests.support.conformance import conforms
from tests.support.pooling import call_settings, processes_with, token

TASKS = "/api/v1/tasks"
NAMES = ("ash", "birch", "cedar")
SLOTS = 2
EVERY_ANSWER = (
    "X-Request-ID",
    "X-Response-Time-ms",
    "Cache-Control",
    "Pragma",
    "Expires",
)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True)
class Answer:
    """The answer to one request."""

    status: int
    body: Any
    headers: http.client.HTTPMessage


@dataclass(frozen=True)
class Front:
    """One node as a client over HTTP sees it."""

    agent: Agent
    port: int
    admin: str

    def token(self, role: str, subject: str) -> str:
        status, body = self.agent.call(
            "POST", "/api/v1/tokens", {"role": role, "subject": subject}
        )
        assert status == 201, body
        return str(body["token"])

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = "",
        **headers: str,
    ) -> Answer:
        """Send a request; bytes are sent unchanged, all else as JSON."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if body is None or isinstance(body, bytes) else _json(body)
        if data is not None:
            given.setdefault("Content-Type", "application/json")
        if token is not None:
            given.setdefault("Authorization", f"Bearer {token or self.admin}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body=data, headers=given)
            reply = connection.getresponse()
            raw = reply.read()
        media = reply.headers.get("Content-Type", "")
        conforms(method, path, reply.status, media.partition(";")[0], raw)
        is_json = media == "application/json"
        answer = Answer(
            reply.status, json.loads(raw) if is_json and raw else raw, reply.headers
        )
        for name in EVERY_ANSWER:
            assert name in answer.headers, (path, name)
        if answer.status >= 400 and raw:
            assert answer.body["status"] == answer.status
            assert TIME.fullmatch(answer.body["timestamp"])
        return answer

    def submit(self, body: object, **more: Any) -> Any:
        answer = self.ask("POST", TASKS, body, **more)
        assert answer.status == 201, answer.body
        return answer.body

    def run(self, command: str, **more: object) -> dict[str, Any]:
        """Return a task once it has ended."""
        task = self.submit({"command": command, **more})
        answer = self.ask("GET", f"{TASKS}/{task['id']}?wait=60")
        assert answer.status == 200, answer.body
        assert answer.body["status"] in ENDS, answer.body
        found: dict[str, Any] = answer.body
        return found


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def slotted_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    """Three nodes, the dispatcher first."""
    folder = tmp_path_factory.mktemp("mesh")
    with meshed(folder, *NAMES, extra=("--slots", str(SLOTS))) as agents:
        yield agents


@pytest.fixture(scope="module", params=["dispatcher", "forwarded"])
def front(request: pytest.FixtureRequest, slotted_mesh: list[Agent]) -> Front:
    """The dispatcher, then a node that is not."""
    return front_of(slotted_mesh[0 if request.param == "dispatcher" else 1])


def front_of(agent: Agent) -> Front:
    _, minted = agent.call("POST", "/api/v1/tokens", {"role": "admin"})
    port = int(agent.ready()["api_url"].rpartition(":")[2])
    return Front(agent, port, minted["token"])


@contextlib.contextmanager
def all_slots_busy(front: Front) -> Iterator[list[str]]:
    """Fill each slot of the mesh with a long task."""
    count = len(NAMES) * SLOTS
    tasks = [task["id"] for task in front.submit([{"command": "sleep 3600"}] * count)]
    try:
        # Right after short tasks a worker may hold one ahead; it returns that. And
        # some of those may still run, as other tests did not wait for them.
        running = f"{TASKS}?status=running"
        until(front, running, lambda b: {t["id"] for t in b["tasks"]} == set(tasks))
        until(front, "/api/v1/nodes", _is_full)
        yield tasks
    finally:
        for task in tasks:
            answer = front.ask("DELETE", f"{TASKS}/{task}?force=true")
            assert answer.status == 200, answer.body


def _is_full(body: dict[str, Any]) -> bool:
    return all(node["running"] == SLOTS for node in body["nodes"])


def until(front: Front, path: str, is_true: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until a path shows the wanted state."""
    deadline = time.monotonic() + WAIT_S_MAX
    while not is_true(body := front.ask("GET", path).body):
        assert time.monotonic() < deadline, body
        time.sleep(0.02)


def until_state(front: Front, task: str, state: str) -> None:
    """Wait until a task shows this state."""
    until(front, f"{TASKS}/{task}", lambda body: bool(body["status"] == state))


def test_every_node_reports_the_remaining_rate_limit(front: Front) -> None:
    """A client has one account for all nodes, with the limit of its role."""
    token = front.token("viewer", "rates")
    paths = ("/api/v1/stats", "/api/v1/openapi.json", "/api/v1/nodes")

    left = [
        (answer.headers["RateLimit-Limit"], answer.headers["RateLimit-Remaining"])
        for path in paths
        for answer in [front.ask("GET", path, token=token)]
    ]

    assert left == [("12000", str(12000 - n)) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("GET", f"{TASKS}/unknown", None, 404, "Task not found"),
        ("GET", f"{TASKS}/%00", None, 400, "Invalid parameter value"),
        ("GET", f"{TASKS}/../stats", None, 404, "Not found"),
        ("GET", f"{TASKS}?limit=-1", None, 400, "Invalid parameter value"),
        ("GET", f"{TASKS}?limit=1001", None, 400, "Invalid parameter value"),
        ("GET", f"{TASKS}?limit={10**30}", None, 400, "Invalid parameter value"),
        ("GET", f"{TASKS}?status=bogus", None, 400, "Invalid parameter value"),
        ("GET", f"{TASKS}?offset=x", None, 400, "Invalid parameter value"),
        ("GET", f"{TASKS}?page=1", None, 400, "Invalid parameter value"),
        ("GET", "/api/v1/nodes/nobody", None, 404, "Worker not found"),
        ("PATCH", TASKS, None, 405, "Method not allowed"),
        ("TRACE", "/", None, 405, "Method not allowed"),
        ("POST", TASKS, b"", 400, "Malformed JSON"),
        ("POST", TASKS, b"{", 400, "Malformed JSON"),
        ("POST", TASKS, b'{"command":"\xff"}', 400, "Malformed JSON"),
        ("POST", TASKS, {}, 400, "Missing required field"),
        ("POST", TASKS, {"command": " "}, 400, "Invalid command format"),
        ("POST", TASKS, {"command": "a\0b"}, 400, "Invalid command format"),
        ("POST", TASKS, {"command": "a" * 65_537}, 400, "Invalid command format"),
        ("POST", TASKS, {"comand": "true"}, 400, "Unknown field"),
        (
            *("POST", TASKS, {"command": "true", "timeout": 86_401}),
            *(400, "Invalid parameter value"),
        ),
        (
            *("POST", TASKS, {"command": "true", "inputs": ["../../etc/passwd"]}),
            *(400, "Invalid parameter value"),
        ),
        ("POST", TASKS, [{"command": "true"}] * 10_001, 400, "Invalid parameter value"),
        ("DELETE", f"{TASKS}/unknown", None, 404, "Task not found"),
    ],
)
def test_errors_are_the_same_at_every_node(
    front: Front, method: str, path: str, body: object, status: int, error: str
) -> None:
    """Rows B07 to B17, with the texts of the reference."""
    answer = front.ask(method, path, body)

    assert (answer.status, answer.body["error"]) == (status, error)
    assert status != 405 or answer.headers["Allow"]


@pytest.mark.alone  # Ten thousand tasks at a time, on three agents.
def test_lists_page_and_filter(front: Front, slotted_mesh: list[Agent]) -> None:
    """Oldest first, with exact totals; a batch is there completely or not at all.

    The fullest batch goes through the node that is not dispatcher.
    """
    before = front.ask("GET", f"{TASKS}?limit=1").body["total"]
    most = [{"command": f": {n}"} for n in range(10_000)]
    refused = front.ask("POST", TASKS, [*most[:-1], {"command": ""}])
    wanted = most[:2000] if front.agent is slotted_mesh[0] else most
    count = len(wanted)
    tasks = front.submit(wanted)
    ids = [task["id"] for task in tasks]
    ended = front.ask("GET", f"{TASKS}/{ids[-1]}?wait=60")

    assert refused.body["field"] == "$[9999].command"
    assert [task["command"] for task in tasks] == [w["command"] for w in wanted]
    assert ended.body["status"] == "completed"
    assert front.ask("GET", "/health").body["status"] == "healthy"
    found = []
    for offset in range(before, before + count, 1000):
        page = front.ask("GET", f"{TASKS}?limit=1000&offset={offset}").body
        assert (page["total"], page["returned"]) == (before + count, 1000)
        assert (page["limit"], page["offset"]) == (1000, offset)
        assert not {"stdout", "stderr"} & page["tasks"][0].keys()
        found += [task["id"] for task in page["tasks"]]
    assert found == ids


def test_tasks_are_filtered_by_the_name_of_their_worker(front: Front) -> None:
    """An unknown worker has no tasks, which is no error."""
    with all_slots_busy(front) as tasks:
        for name in NAMES:
            path = f"{TASKS}?status=running&worker_id={name}"
            # Lists show durable states, some milliseconds behind the roster.
            until(front, path, lambda body: bool(body["total"] == SLOTS))
            page = front.ask("GET", path).body
            assert {task["worker_id"] for task in page["tasks"]} == {name}
            assert {task["id"] for task in page["tasks"]} <= set(tasks)
        stats = front.ask("GET", "/api/v1/stats").body
        nothing = front.ask("GET", f"{TASKS}?worker_id=nobody")

    assert stats["workers"] == {"total": 3, "active": 3, "idle": 0}
    assert stats["tasks"]["running"] == len(NAMES) * SLOTS
    assert (nothing.status, nothing.body["tasks"]) == (200, [])


@pytest.mark.parametrize("round_", range(3))
def test_one_key_is_one_task_at_every_node(
    slotted_mesh: list[Agent], round_: int
) -> None:
    """Twenty requests at once at three nodes get one answer, also later."""
    fronts = [front_of(agent) for agent in slotted_mesh]
    key = f"parallel-{round_}-{time.monotonic_ns()}"

    def ask(number: int) -> Answer:
        front = fronts[number % len(fronts)]
        # One subject for all: a key belongs to its owner.
        return front.ask(
            *("POST", TASKS, {"command": "true"}),
            token=fronts[0].admin,
            Idempotency_Key=key,
        )

    with ThreadPoolExecutor(20) as pool:
        answers = [*pool.map(ask, range(20)), ask(0)]

    assert {answer.status for answer in answers} == {201}, answers
    assert len({answer.body["id"] for answer in answers}) == 1


def test_a_key_with_another_body_is_refused(front: Front) -> None:
    """Another command, more tasks, or fewer: each is another request."""
    key = f"other-{time.monotonic_ns()}"
    two = [{"command": "true"}, {"command": "false"}]
    first = front.submit(two, Idempotency_Key=key)

    again = front.ask("POST", TASKS, two, Idempotency_Key=key)
    assert [task["id"] for task in again.body] == [task["id"] for task in first]
    for other in (two[:1], two[0], [*two, two[0]], two[::-1]):
        answer = front.ask("POST", TASKS, other, Idempotency_Key=key)
        assert (answer.status, answer.body["error"]) == (409, "Duplicate task ID")


def test_a_client_chosen_id_is_used_once(front: Front) -> None:
    """A batch that repeats one leaves nothing behind."""
    name = f"mine.{time.monotonic_ns()}"
    front.submit({"command": "true", "id": name})

    batch = [{"command": "true", "id": f"{name}.b"}, {"command": "true", "id": name}]
    assert front.ask("POST", TASKS, batch).status == 409
    assert front.ask("GET", f"{TASKS}/{name}.b").status == 404


def test_a_chosen_id_takes_the_place_of_no_key(front: Front) -> None:
    """Everybody can compute the id of a retry, and that of a key that others reuse."""
    body, key = {"command": "true"}, f"nightly-{time.monotonic_ns()}"
    derived = front.submit(body, Idempotency_Key=key)["id"]
    free = derived[:-1] + ("1" if derived[-1] == "0" else "0")

    for name in (free, f"{free}.7", f"{free}.all"):
        answer = front.ask("POST", TASKS, [body | {"id": name}])
        assert (answer.status, answer.body["field"]) == (400, "$[0].id"), name
    for name in (f"x-{free}", f"{free}7"):
        assert front.submit(body | {"id": name})["id"] == name


def test_roles_limit_the_rights_of_a_token(front: Front) -> None:
    """Decision 9: viewers read, clients cancel their own, and none mints tokens."""
    ann, bob = front.token("client", "ann"), front.token("client", "bob")
    viewer = front.token("viewer", "vic")
    with all_slots_busy(front):
        task = front.submit({"command": "true"}, token=ann)["id"]
        path = f"{TASKS}/{task}"
        short = path.rpartition("-")[0]
        until_state(front, task, "queued")

        for method, where, body, token, status in [
            ("GET", path, None, viewer, 200),
            ("GET", path, None, bob, 200),
            ("POST", TASKS, {"command": "true"}, viewer, 403),
            ("DELETE", path, None, viewer, 403),
            ("DELETE", path, None, bob, 403),
            ("POST", "/api/v1/tokens", {"role": "admin"}, bob, 403),
            ("DELETE", short, None, ann, 200),
            ("DELETE", path, None, ann, 200),
        ]:
            answer = front.ask(method, where, body, token=token)
            assert answer.status == status, (method, where, answer.body)
        assert front.ask("DELETE", path).body == {
            "id": task,
            "status": "cancelled",
            "message": "Task cancelled successfully",
        }
    assert front.ask("GET", path).body["reason"] == "cancelled"
    assert front.ask("GET", path).body["started_at"] is None


def test_only_an_expired_token_is_reported_as_expired(front: Front) -> None:
    """B02: forged ones share one text, so that a forger learns nothing."""
    tokens = TokenSigner(load_secret(front.agent.state.parent / "mesh.key"))
    old = tokens.sign_token(
        subject="a", role="admin", expires_s=60, now_s=time.time() - 3600, jti="1"
    )
    header, claims, signature = front.admin.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"1"}').decode().rstrip("=")
    forged = [f"{none}.{claims}.", f"{header}.{claims}.{signature[::-1]}", "x"]

    expired = front.ask("POST", TASKS, {"command": "true"}, token=old)
    refused = [front.ask("GET", "/api/v1/stats", token=token) for token in forged]
    missing = front.ask("POST", TASKS, {"command": "true"}, token=None)

    another = "`octaskly token create --role client` on a node prints a new one"
    assert (expired.status, expired.body["error"], expired.body["hint"]) == (
        401,
        "Missing or invalid authentication token",
        f"the token has expired; {another}",
    )
    assert [(r.status, r.body["hint"]) for r in refused] == [
        (401, f"the token is incomplete, or not of this mesh; {another}")
    ] * len(forged)
    assert missing.headers["WWW-Authenticate"] == "Bearer"
    assert missing.body["hint"] == (
        "missing bearer token; send `Authorization: Bearer <TOKEN>`; "
        "`octaskly token create --role client` on a node prints one"
    )


@pytest.mark.parametrize(
    ("command", "more", "ending"),
    [
        ("exit 3", {}, ("failed", "exit", 3, None)),
        ("kill -TERM $$", {}, ("failed", "signal", 143, 15)),
        ("no-such-command-here", {}, ("failed", "exit", 127, None)),
        ("true", {"inputs": ["missing"]}, ("failed", "inputs", None, None)),
        (
            *("setsid sleep {0} & sleep {0}", {"timeout": 1}),
            ("failed", "timeout", 124, None),
        ),
        ("setsid sleep {0} & echo", {}, ("completed", "exit", 0, None)),
    ],
)
def test_endings(
    front: Front, command: str, more: dict[str, Any], ending: tuple[object, ...]
) -> None:
    """State, reason, exit code and signal, and no process left behind."""
    word = token()
    task = front.run(command.replace("{0}", word), **more)

    shown = tuple(task[key] for key in ("status", "reason", "exit_code", "signal"))
    assert shown == ending
    assert TIME.fullmatch(task["created_at"])
    assert processes_with(word) == {}


def test_output_is_kept_to_1_mib_with_true_counts(front: Front) -> None:
    """Exactly 1 MiB is complete; more is cut and marked; exact bytes are available."""
    cut = front.run("head -c 2097152 /dev/zero; head -c 1048576 /dev/zero >&2")
    odd = front.run(r"printf 'a\000\377\303\251'")
    exact = front.ask("GET", f"{TASKS}/{odd['id']}?encoding=base64").body

    assert (len(cut["stdout"]), len(cut["stderr"])) == (1 << 20, 1 << 20)
    assert (cut["stdout_bytes"], cut["stderr_bytes"]) == (2 << 20, 1 << 20)
    assert (cut["stdout_truncated"], cut["stderr_truncated"]) == (True, False)
    assert odd["stdout"] == "a\0\ufffdé"
    assert base64.b64decode(exact["stdout"]) == b"a\x00\xff\xc3\xa9"


def test_outputs_come_from_every_node_and_never_through_links(
    front: Front, slotted_mesh: list[Agent]
) -> None:
    """Only regular files below the worker directory are captured."""
    task = front.run(
        "mkdir -p d; printf kept > d/f; ln -sf /etc/passwd l; ln -sfn /etc e; : > z",
        outputs=["d/f", "l", "e/passwd", "nope", "z"],
    )
    path = f"{TASKS}/{task['id']}/outputs"

    sizes = {output["path"]: output["bytes"] for output in task["outputs"]}
    assert sizes == {"d/f": 4, "l": None, "e/passwd": None, "nope": None, "z": 0}
    for agent in slotted_mesh:
        node = front_of(agent)
        assert node.ask("GET", f"{path}/d/f").body == b"kept"
        assert node.ask("GET", f"{path}/z").body == b""
        for name in ("l", "e/passwd", "nope", "other"):
            assert node.ask("GET", f"{path}/{name}").status == 404
        assert node.ask("GET", f"{path}/%2e%2e/f").status == 400


def test_a_running_task_is_cancelled_by_force_only(front: Front) -> None:
    """409, then 200 on each repetition; an ended task is 404."""
    task = front.submit({"command": "setsid sleep 600 & sleep 600"})["id"]
    path = f"{TASKS}/{task}"
    until_state(front, task, "running")

    assert front.ask("GET", f"{path}?wait=0.1").body["status"] == "running"
    refused = front.ask("DELETE", path)
    assert (refused.status, refused.body["error"]) == (
        409,
        "Cannot cancel running task",
    )
    answers = [front.ask("DELETE", p) for p in (f"{path}?force=true", path)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body == answers[1].body
    assert front.ask("GET", path).body["status"] == "cancelled"
    done = front.run("true")["id"]
    assert front.ask("DELETE", f"{TASKS}/{done}?force=true").status == 404


def test_tasks_see_their_own_ids_and_nothing_of_the_agent(front: Front) -> None:
    """Decision 13."""
    task = front.run("env | grep -E '^(OCTASKLY|NOTIFY|WATCHDOG|LISTEN)' | sort")

    shown = task["stdout"].splitlines()
    for_calls = call_settings(os.environ["PATH"])
    attempt, mark, node, slot, task_id = [
        line for line in shown if line not in for_calls
    ]
    assert attempt == f"OCTASKLY_ATTEMPT={task['attempt']}"
    assert mark.startswith(f"OCTASKLY_MARK={task['id']}.")
    assert node == f"OCTASKLY_NODE={task['worker_id']}"
    assert set(for_calls) <= set(shown)
    assert slot in [f"OCTASKLY_SLOT={number}" for number in range(SLOTS)]
    assert task_id == f"OCTASKLY_TASK_ID={task['id']}"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.com:3000"}, 403),
        ({"Host": "localhost.evil.com"}, 403),
        ({"Host": "[::1]:3000"}, 200),
        ({"Origin": "http://evil.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:5173"}, 200),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
    ],
)
def test_foreign_web_pages_are_refused(
    front: Front, headers: dict[str, str], status: int
) -> None:
    """B04, B05: also for /health, which needs no token."""
    answer = front.ask("GET", "/health", token=None, **headers)

    assert answer.status == status
    allowed = answer.headers["Access-Control-Allow-Origin"]
    assert allowed == (headers.get("Origin") if status == 200 else None)


def test_request_ids_are_kept_or_replaced(front: Front) -> None:
    """B20: a forwarded request has one id on its whole way."""
    asked = {
        given: front.ask("GET", "/api/v1/stats", X_Request_ID=given).headers[
            "X-Request-ID"
        ]
        for given in ("fine-1.x_y", "has space", "a" * 8000)
    }

    assert asked.pop("fine-1.x_y") == "fine-1.x_y"
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{6}", own) for own in asked.values())


HEAD = b"Host: localhost\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", b"400"),
        (
            b"POST /api/v1/tasks HTTP/1.1\r\n" + HEAD + b"Content-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"400",
        ),
        (b"\x16\x03\x01\x00\xc8" + b"\0" * 200, b"400"),
        (
            b"GET /health HTTP/1.1\r\n" + HEAD + b"X: " + b"a" * 9000 + b"\r\n\r\n",
            b"400",
        ),
    ],
)
def test_invalid_http_is_answered_in_json_and_closed(
    front: Front, data: bytes, status: bytes
) -> None:
    """B18, with the headers of every answer."""
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        connection.sendall(data)
        reply = b""
        while chunk := connection.recv(65_536):
            reply += chunk

    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert json.loads(body)["status"] == int(status)
    assert all(name.encode() in head for name in EVERY_ANSWER)
