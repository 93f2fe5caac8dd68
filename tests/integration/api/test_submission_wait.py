"""`POST /tasks?wait=S`: one exchange submits a task and returns its end."""

from __future__ import annotations

import asyncio
import base64

import pytest

from octaskly.api.routes import tasks
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from tests.integration.api.test_forwarding import back, front
from tests.support.agents import WAIT_S_MAX
from tests.support.api_mesh import Member
from tests.support.api_node import ADMIN, CLIENT, ApiNode, assert_problem, until

__all__ = ["back", "front"]

TASKS = "/api/v1/tasks"
ONE = {"command": "echo hello", "id": "one"}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a submission wait for as long as a test may take."""
    monkeypatch.setattr(tasks, "SUBMISSION_WAIT_S_MAX", WAIT_S_MAX)


def output_of(size: int) -> Outcome:
    return Outcome(
        state=AttemptState.OK,
        reason=EndReason.EXIT,
        exit_code=0,
        stdout=b"\xff" * size,
        stdout_bytes=size,
    )


@pytest.mark.usefixtures("patient")
async def test_a_submission_returns_a_short_task_with_its_output(node: ApiNode) -> None:
    """All fields of a task, as `GET` returns them, and the number of copies."""
    asked = asyncio.ensure_future(
        node.ask("POST", f"{TASKS}?wait=300", headers=CLIENT, body=ONE)
    )
    await until(lambda: TaskId("one") in node.gateway.records)
    node.gateway.start("one")
    node.gateway.finish("one")

    answer = await asked
    shown = await node.ask("GET", f"{TASKS}/one", headers=CLIENT)

    assert answer.status == 201
    assert answer.json["status"] == "completed"
    assert answer.json["stdout"] == "hello\n"
    assert answer.json == shown.json | {"replicas": 1}
    assert answer.headers["octaskly-replicas"] == "1"


@pytest.mark.parametrize("wait", ["0", "0.001", "300"])
async def test_a_longer_task_is_returned_as_it_is_then(
    node: ApiNode, wait: str
) -> None:
    """A node waits for 0.05 s at most, whatever is asked."""
    answer = await node.ask("POST", f"{TASKS}?wait={wait}", headers=CLIENT, body=ONE)

    assert answer.status == 201
    assert (answer.json["id"], answer.json["status"]) == ("one", "queued")
    assert answer.json["stdout"] is None


@pytest.mark.parametrize(("size", "is_included"), [(32 << 10, True), (40_000, False)])
async def test_only_short_output_is_included(
    node: ApiNode, size: int, *, is_included: bool
) -> None:
    """A quota may refuse a large answer, as if nothing had been accepted."""
    head, body = {**CLIENT, "Idempotency-Key": "again"}, {"command": "echo hello"}
    first = await node.ask("POST", TASKS, headers=head, body=body)
    node.gateway.start(first.json["id"])
    node.gateway.finish(first.json["id"], output_of(size))

    path = f"{TASKS}?wait=1&encoding=base64"
    answer = await node.ask("POST", path, headers=head, body=body)

    assert (answer.status, answer.json["status"]) == (201, "completed")
    assert answer.json["stdout_bytes"] == size
    sent = answer.json["stdout"]
    assert (sent and base64.b64decode(sent)) == (
        b"\xff" * size if is_included else None
    )


@pytest.mark.usefixtures("patient")
async def test_an_accepted_task_is_not_refused_when_its_dispatcher_ends(
    node: ApiNode,
) -> None:
    """Otherwise the client, or a node that forwards, would submit it again."""
    asked = asyncio.ensure_future(
        node.ask("POST", f"{TASKS}?wait=1", headers=CLIENT, body=ONE)
    )
    await until(lambda: TaskId("one") in node.gateway.records)
    node.gateway.view = None
    node.gateway.start("one")

    answer = await asked

    assert (answer.status, answer.json["status"]) == (201, "queued")
    assert len(node.gateway.records) == 1


@pytest.mark.parametrize(
    ("query", "body", "field", "hint"),
    [
        ("wait=-1", ONE, "wait", "`wait` must be 0 to 300 seconds"),
        ("wait=soon", ONE, "wait", "`wait` must be 0 to 300 seconds"),
        ("wait=301", ONE, "wait", "`wait` must be 0 to 300 seconds"),
        ("wait=", ONE, "wait", "`wait` must be 0 to 300 seconds"),
        ("wait=1&wait=2", ONE, "wait", "`wait` is given twice"),
        (
            "wait=1",
            [ONE],
            "wait",
            "`wait` is for a single task: send an object, not an array",
        ),
        (
            "encoding=base64",
            ONE,
            "encoding",
            "`encoding` is for output: it requires `wait`",
        ),
        ("wait=1&encoding=x", ONE, "encoding", "`encoding` must be utf-8 or base64"),
    ],
)
async def test_a_wrong_wait_is_named_and_nothing_is_accepted(
    node: ApiNode, query: str, body: object, field: str, hint: str
) -> None:
    """With the allowed values."""
    answer = await node.ask("POST", f"{TASKS}?{query}", headers=ADMIN, body=body)

    assert_problem(answer, 400, "Invalid parameter value")
    assert (answer.json["field"], answer.json["hint"]) == (field, hint)
    assert node.gateway.records == {}


@pytest.mark.usefixtures("patient")
async def test_a_node_passes_the_wait_on_to_the_dispatcher(
    front: Member, back: Member
) -> None:
    """The end returns on the same way."""
    asked = asyncio.ensure_future(
        front.api.ask("POST", f"{TASKS}?wait=1", headers=CLIENT, body=ONE)
    )
    await until(lambda: TaskId("one") in back.gateway.records)
    back.gateway.start("one")
    back.gateway.finish("one")

    answer = await asked

    assert (answer.status, answer.json["stdout"]) == (201, "hello\n")
    assert answer.headers["octaskly-dispatcher"] == "back"
