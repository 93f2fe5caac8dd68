"""Output of tasks as events and as bytes, from the log and from workers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest
from msgspec.structs import replace

from octaskly.api.output import follower, task_status_query
from octaskly.api.output.logs import parse_event_id
from octaskly.config.defaults import STREAMS_PER_SUBJECT
from octaskly.config.settings import LimitOptions
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, NodeId, StreamId, TaskId
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.ports.output import OutputChunk
from octaskly.ports.store import TaskParts
from tests.support.agents import WAIT_S_MAX
from tests.support.api_mesh import PATIENT, ApiMesh, Member
from tests.support.api_node import (
    ADMIN,
    VIEWER,
    Answer,
    ApiNode,
    api_node,
    assert_hardened,
    assert_problem,
)
from tests.support.fake_gateway import STREAM, FakeGateway

FIRST = "1-7-1-1"
FEW = 4  #: streams that a node serves at once, in tests of the limit
DONE = Outcome(
    state=AttemptState.OK,
    reason=EndReason.EXIT,
    exit_code=0,
    stdout=b"one\ntwo\n",
    stderr=b"oh\n",
    stdout_bytes=8,
    stderr_bytes=3,
)
LONG_S = 2 * WAIT_S_MAX
LONG = replace(DONE, stdout=b"0123", stdout_bytes=1000, stderr=b"", stderr_bytes=0)

Event = tuple[str, str, Any]


def parsed(block: bytes) -> Event:
    fields = dict(line.split(": ", 1) for line in block.decode().splitlines())
    return fields["event"], fields["id"], json.loads(fields["data"])


def events(answer: Answer) -> list[Event]:
    """Return the events of a stream that has ended."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "text/event-stream"
    blocks = [block for block in answer.body.split(b"\n\n") if block]
    assert blocks.pop(0).startswith(b"retry:")
    return [parsed(block) for block in blocks if not block.startswith(b":")]


def summary(found: list[Event]) -> list[tuple[str, Any]]:
    """Return the kinds of events with their main values."""
    return [
        (kind, data["status"] if kind == "end" else data) for kind, _, data in found
    ]


async def ask(node: ApiNode, task: str, query: str = "", **headers: str) -> list[Event]:
    path = f"/api/v1/tasks/{task}/logs?{query}"
    answer = await node.ask("GET", path, headers=VIEWER | headers)
    return events(answer)


class Reader:
    """A client that reads a stream as it comes."""

    def __init__(self, node: ApiNode, path: str, **headers: str) -> None:
        self._node = node
        self._path = path
        self._headers = VIEWER | headers

    async def __aenter__(self) -> Self:
        self._reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self._node.port
        )
        lines = [
            f"GET {self._path} HTTP/1.1",
            f"Host: localhost:{self._node.port}",
            *(f"{name}: {value}" for name, value in self._headers.items()),
        ]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        await self._reader.readuntil(b"\r\n\r\n")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def next(self) -> Event | None:
        """Return the next event, None at the end."""
        block = b""
        async with asyncio.timeout(WAIT_S_MAX):
            while not block or block.startswith((b"retry:", b":")):
                block = b""
                while not block.endswith(b"\n\n"):
                    size = int(await self._reader.readline(), 16)
                    block += await self._reader.readexactly(size)
                    await self._reader.readline()
                    if not size:
                        return None
        return parsed(block.strip())

    async def of(self, kind: str) -> Event:
        """Return the next event of a kind."""
        while (event := await self.next()) is not None:
            if event[0] == kind:
                return event
        raise AssertionError(f"no {kind} came")


@pytest.fixture
async def patient_node() -> AsyncIterator[ApiNode]:
    async with api_node(timeouts=PATIENT) as made:
        yield made


def finish(gateway: FakeGateway, task: str, outcome: Outcome) -> None:
    gateway.finish(task, outcome)


def lose(gateway: FakeGateway, task: str) -> None:
    """Mark the last attempt of a task as lost."""
    gateway.finish(task, Outcome(state=AttemptState.RELEASED, reason=EndReason.LOST))


async def run_first(node: ApiNode, where: str | None = None) -> tuple[str, AttemptId]:
    """Let a task run."""
    task = await node.submit()
    return task, node.gateway.start(task, where)


async def test_an_ended_task_is_sent_from_the_log(patient_node: ApiNode) -> None:
    """Attempt, both streams, end; each with an id of attempt and offsets."""
    task, _ = await run_first(patient_node)
    finish(patient_node.gateway, task, DONE)

    found = await ask(patient_node, task)

    expected = {"attempt": 1, "node": "laptop-01", "previous": None}
    assert [event[:2] for event in found] == [
        ("attempt", f"{FIRST}:0:0"),
        ("stdout", f"{FIRST}:8:0"),
        ("stderr", f"{FIRST}:8:3"),
        ("end", f"{FIRST}:8:3"),
    ]
    assert summary(found) == [
        ("attempt", expected),
        ("stdout", {"offset": 0, "data": "one\ntwo\n"}),
        ("stderr", {"offset": 0, "data": "oh\n"}),
        ("end", "completed"),
    ]
    end = found[-1][2]
    assert (end["exit_code"], end["stdout_bytes"], end["stderr_bytes"]) == (0, 8, 3)


async def test_an_end_unknown_to_a_new_dispatcher_is_awaited(
    patient_node: ApiNode,
) -> None:
    """Its output would otherwise look missing instead of late."""
    task, _ = await run_first(patient_node)
    running = patient_node.gateway.records[TaskId(task)]
    finish(patient_node.gateway, task, DONE)
    known = [patient_node.gateway.records[TaskId(task)], running]
    read = patient_node.gateway.find_task

    async def failing_over(ref: str, detail: TaskParts = TaskParts.ALL) -> TaskRecord:
        return known.pop(0) if known else await read(ref)

    patient_node.gateway.find_task = failing_over  # type: ignore[method-assign]

    found = await ask(patient_node, task, "follow=true")

    assert not known
    assert summary(found)[1:] == [
        ("stdout", {"offset": 0, "data": "one\ntwo\n"}),
        ("stderr", {"offset": 0, "data": "oh\n"}),
        ("end", "completed"),
    ]


async def test_a_stream_can_be_chosen_with_an_offset(
    patient_node: ApiNode,
) -> None:
    """`stream` and `offset`; beyond the end there is only the end."""
    task, _ = await run_first(patient_node)
    finish(patient_node.gateway, task, DONE)

    assert summary(await ask(patient_node, task, "stream=stdout&offset=4"))[1:] == [
        ("stdout", {"offset": 4, "data": "two\n"}),
        ("end", "completed"),
    ]
    assert summary(await ask(patient_node, task, "stream=stderr&offset=99"))[1:] == [
        ("end", "completed")
    ]


async def test_a_stream_resumes_at_its_position(
    patient_node: ApiNode,
) -> None:
    """`Last-Event-ID`; offsets of another attempt do not count."""
    task, _ = await run_first(patient_node)
    finish(patient_node.gateway, task, DONE)

    resumed = {"Last-Event-ID": f"{FIRST}:4:3"}
    assert summary(await ask(patient_node, task, **resumed)) == [
        ("stdout", {"offset": 4, "data": "two\n"}),
        ("end", "completed"),
    ]
    resumed = {"Last-Event-ID": "1-7-9-9:4:3"}
    assert [kind for kind, *_ in await ask(patient_node, task, **resumed)] == [
        "attempt",
        "stdout",
        "stderr",
        "end",
    ]


@pytest.mark.parametrize(
    "text", ["x", "1-7-1-1:4", ":4", "1-7-1:4:3", "1-7-1-1:-4:3", "1-7-1-1:4:3\u00b2"]
)
async def test_an_id_of_another_stream_is_refused(
    patient_node: ApiNode, text: str
) -> None:
    """It would mean another position, and bytes would be lost."""
    task = await patient_node.submit()

    answer = await patient_node.ask(
        "GET",
        f"/api/v1/tasks/{task}/logs",
        headers=VIEWER | {"Last-Event-ID": text.encode().decode("latin-1")},
    )

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == "Last-Event-ID"


@pytest.mark.parametrize(
    "query", ["stream=all", "offset=-1", "offset=x", "follow=yes", "tail=5"]
)
async def test_an_invalid_parameter_is_named(patient_node: ApiNode, query: str) -> None:
    """With its allowed values."""
    task = await patient_node.submit()

    answer = await patient_node.ask(
        "GET", f"/api/v1/tasks/{task}/logs?{query}", headers=VIEWER
    )

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == query.partition("=")[0]


@pytest.mark.parametrize("kind", ["logs", "stdout", "stderr"])
async def test_an_unknown_task_has_no_stream(patient_node: ApiNode, kind: str) -> None:
    """Errors come as JSON, before a stream starts."""
    answer = await patient_node.ask("GET", f"/api/v1/tasks/nope/{kind}", headers=VIEWER)

    assert_problem(answer, 404, "Task not found")


async def test_characters_are_whole_and_bytes_exact(patient_node: ApiNode) -> None:
    """A character in two pieces is joined; invalid text is base64."""
    task, attempt = await run_first(patient_node)
    whole = "ü€😀".encode()
    pieces = [OutputChunk(0, n, whole[n : n + 1]) for n in range(len(whole))]
    end = len(whole)
    pieces += [OutputChunk(0, end, b"a\xff\x00b"), OutputChunk(0, end + 4, b"\xe2\x82")]
    patient_node.gateway.wrote[TaskId(task), attempt] = pieces
    outcome = replace(DONE, stdout=b"", stdout_bytes=end + 6, stderr_bytes=0)
    finish(patient_node.gateway, task, replace(outcome, stderr=b""))

    found = [
        data for kind, _, data in await ask(patient_node, task) if kind == "stdout"
    ]

    assert [item["data"] for item in found if "encoding" not in item] == list("ü€😀")
    exact = [base64.b64decode(i["data"]) for i in found if "encoding" in i]
    assert exact == [b"a\xff\x00b", b"\xe2\x82"]


async def test_missing_output_is_marked(patient_node: ApiNode) -> None:
    """Between the start and the end of long output, and when there is no file."""
    task, attempt = await run_first(patient_node)
    finish(patient_node.gateway, task, LONG)

    assert summary(await ask(patient_node, task))[1:] == [
        ("stdout", {"offset": 0, "data": "0123"}),
        (
            "gap",
            {
                "stream": "stdout",
                "offset": 4,
                "bytes": 996,
                "reason": "laptop-01 does not keep the rest",
            },
        ),
        ("end", "completed"),
    ]
    kept = [
        OutputChunk(0, 0, b"012345"),
        OutputChunk(0, 990, b"x" * 10),
        OutputChunk(0, 1000, b""),
    ]
    patient_node.gateway.wrote[TaskId(task), attempt] = kept
    assert summary(await ask(patient_node, task))[1:] == [
        ("stdout", {"offset": 0, "data": "012345"}),
        (
            "gap",
            {
                "stream": "stdout",
                "offset": 6,
                "bytes": 984,
                "reason": "the task wrote more than the node keeps",
            },
        ),
        ("stdout", {"offset": 990, "data": "x" * 10}),
        ("end", "completed"),
    ]


async def test_raw_bytes_are_exact(patient_node: ApiNode) -> None:
    """With the true number of bytes, which may be larger."""
    task, attempt = await run_first(patient_node)
    raw = bytes(range(256)) * 4
    finish(patient_node.gateway, task, replace(DONE, stdout=raw, stdout_bytes=len(raw)))

    for path, expected, total in (
        ("stdout", raw, "1024"),
        ("stdout?offset=1000", raw[1000:], "1024"),
        ("stderr", b"oh\n", "3"),
    ):
        answer = await patient_node.ask(
            "GET", f"/api/v1/tasks/{task}/{path}", headers=VIEWER
        )
        assert (answer.status, answer.body) == (200, expected)
        assert answer.headers["octaskly-output-bytes"] == total
        assert answer.headers["content-type"] == "application/octet-stream"
        assert_hardened(answer)

    task, attempt = await run_first(patient_node)
    kept = [
        OutputChunk(0, 0, b"012345"),
        OutputChunk(0, 990, b"x" * 10),
        OutputChunk(0, 1000, b""),
    ]
    patient_node.gateway.wrote[TaskId(task), attempt] = kept
    finish(patient_node.gateway, task, LONG)
    answer = await patient_node.ask(
        "GET", f"/api/v1/tasks/{task}/stdout", headers=VIEWER
    )
    assert answer.body == b"012345" + b"x" * 10
    assert answer.headers["octaskly-output-bytes"] == "1000"


async def test_without_follow_the_existing_output_is_sent(
    patient_node: ApiNode,
) -> None:
    """Also of a waiting or running task: `end` has its state."""
    task = await patient_node.submit()
    assert summary(await ask(patient_node, task)) == [
        ("state", {"status": "queued"}),
        ("end", "queued"),
    ]
    attempt = patient_node.gateway.start(task)
    patient_node.gateway.wrote[TaskId(task), attempt] = [OutputChunk(0, 0, b"so far")]
    assert summary(await ask(patient_node, task))[1:] == [
        ("stdout", {"offset": 0, "data": "so far"}),
        ("end", "running"),
    ]


async def test_a_follower_waits_for_the_start_and_for_another_attempt(
    patient_node: ApiNode,
) -> None:
    """Output of a lost attempt stays; the next one starts at its own start."""
    task = await patient_node.submit()
    async with Reader(patient_node, f"/api/v1/tasks/{task}/logs?follow=true") as reader:
        assert await reader.next() == ("state", ":0:0", {"status": "queued"})
        first = AttemptId(1, STREAM, 1, 1)
        patient_node.gateway.wrote[TaskId(task), first] = [OutputChunk(0, 0, b"first")]
        patient_node.gateway.start(task)
        assert (await reader.of("attempt"))[2]["attempt"] == 1
        assert (await reader.of("stdout"))[2]["data"] == "first"

        lose(patient_node.gateway, task)
        assert (await reader.of("state"))[2] == {"status": "queued"}
        second = AttemptId(1, STREAM, 2, 2)
        patient_node.gateway.wrote[TaskId(task), second] = [
            OutputChunk(0, 0, b"second")
        ]
        patient_node.gateway.start(task)
        expected = await reader.of("attempt")
        assert expected[1:] == (
            "1-7-2-2:0:0",
            {"attempt": 2, "node": "laptop-01", "previous": "lost"},
        )
        assert (await reader.of("stdout"))[2] == {"offset": 0, "data": "second"}
        finish(
            patient_node.gateway,
            task,
            replace(DONE, stdout=b"second", stdout_bytes=6, stderr=b"", stderr_bytes=0),
        )
        end = await reader.of("end")
        assert end[1] == "1-7-2-2:6:0"
        assert await reader.next() is None


async def test_a_superseded_attempt_can_be_read(
    patient_node: ApiNode,
) -> None:
    """Its output shows why it was retried; an unknown number is named."""
    task, _ = await run_first(patient_node)
    failed = replace(DONE, state=AttemptState.RELEASED, exit_code=7)
    patient_node.gateway.finish(task, failed)
    assert summary(await ask(patient_node, task)) == [
        ("state", {"status": "queued"}),
        ("end", "queued"),
    ]

    found = await ask(patient_node, task, "attempt=1&stream=stderr&follow=true")
    assert summary(found)[1:] == [
        ("stderr", {"offset": 0, "data": "oh\n"}),
        ("end", "queued"),
    ]
    end = found[-1][2]
    assert (end["attempt"], end["exit_code"], end["stderr_bytes"]) == (1, 7, 3)
    raw = await patient_node.ask(
        "GET", f"/api/v1/tasks/{task}/stdout?attempt=1", headers=VIEWER
    )
    assert raw.body == b"one\ntwo\n"
    for number, status in (("2", 404), ("-1", 400), ("x", 400)):
        answer = await patient_node.ask(
            "GET", f"/api/v1/tasks/{task}/logs?attempt={number}", headers=VIEWER
        )
        assert_problem(answer, status)
        assert answer.json["field"] == "attempt"


async def test_a_lost_attempt_has_the_output_of_its_node(patient_node: ApiNode) -> None:
    """Its end was not seen, so the log has nothing of its output."""
    task, attempt = await run_first(patient_node)
    lose(patient_node.gateway, task)
    assert summary(await ask(patient_node, task, "attempt=1"))[1:] == [
        ("end", "queued")
    ]

    patient_node.gateway.wrote[TaskId(task), attempt] = [OutputChunk(0, 0, b"so far")]

    assert summary(await ask(patient_node, task, "attempt=1"))[1:] == [
        ("stdout", {"offset": 0, "data": "so far"}),
        ("end", "queued"),
    ]


async def test_a_task_that_never_ran_ends_without_output(patient_node: ApiNode) -> None:
    """A reader that waits for its start learns of the cancel."""
    task = await patient_node.submit()
    async with Reader(patient_node, f"/api/v1/tasks/{task}/logs?follow=true") as reader:
        assert await reader.next()
        answer = await patient_node.ask(
            "DELETE", f"/api/v1/tasks/{task}", headers=ADMIN
        )
        assert answer.status == 200

        assert (await reader.of("end"))[2]["status"] == "cancelled"


async def cancelled_while_it_runs(node: ApiNode) -> str:
    task, attempt = await run_first(node)
    node.gateway.wrote[TaskId(task), attempt] = [OutputChunk(0, 0, b"one\n")]
    answer = await node.ask("DELETE", f"/api/v1/tasks/{task}?force=true", headers=ADMIN)
    assert answer.status == 200
    return task


async def test_a_cancelled_task_is_followed_until_it_ends(
    patient_node: ApiNode,
) -> None:
    """It has a grace period, and its last output may matter most."""
    task = await cancelled_while_it_runs(patient_node)
    async with Reader(patient_node, f"/api/v1/tasks/{task}/logs?follow=true") as reader:
        assert (await reader.of("stdout"))[2]["data"] == "one\n"

        bye = replace(DONE, state=AttemptState.CANCELLED, exit_code=3)
        finish(patient_node.gateway, task, bye)

        assert (await reader.of("stdout"))[2] == {"offset": 4, "data": "two\n"}
        end = (await reader.of("end"))[2]
    assert (end["status"], end["exit_code"]) == ("cancelled", 3)


async def test_without_follow_a_cancelled_task_is_not_awaited(
    patient_node: ApiNode,
) -> None:
    """The stream has the existing output."""
    task = await cancelled_while_it_runs(patient_node)

    assert summary(await ask(patient_node, task))[1:] == [
        ("stdout", {"offset": 0, "data": "one\n"}),
        ("end", "cancelled"),
    ]


async def test_an_end_that_never_comes_is_not_awaited(
    patient_node: ApiNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker of the cancelled task may be lost for good."""
    monkeypatch.setattr(follower, "STATUS_WAIT_S", 0.01)
    monkeypatch.setattr(follower, "RETRY_S", 0.01)
    task = await cancelled_while_it_runs(patient_node)

    assert summary(await ask(patient_node, task, "follow=true"))[1:] == [
        ("stdout", {"offset": 0, "data": "one\n"}),
        ("end", "cancelled"),
    ]


async def test_streams_are_bounded(patient_node: ApiNode) -> None:
    """Beyond the bound of a subject 429; a place is free after an end."""
    task = await patient_node.submit()
    path = f"/api/v1/tasks/{task}/logs?follow=true"
    readers = [Reader(patient_node, path) for _ in range(STREAMS_PER_SUBJECT)]
    for reader in readers:
        await reader.__aenter__()

    answer = await patient_node.ask("GET", path, headers=VIEWER)
    assert_problem(answer, 429, "Too many event streams")
    assert answer.headers["retry-after"]

    for reader in readers:
        await reader.__aexit__()

    async def is_served() -> bool:
        task_path = f"/api/v1/tasks/{task}/logs"
        return (await patient_node.ask("GET", task_path, headers=VIEWER)).status == 200

    async with asyncio.timeout(WAIT_S_MAX):
        while not await is_served():
            pass


# -- several nodes -------------------------------------------------------------------


class Three:
    """The node with the client, the dispatcher, and the worker, all different."""

    def __init__(self, front: Member, back: Member, worker: Member) -> None:
        self.front, self.back, self.worker = front, back, worker
        front.follow(back)
        node = worker.gateway.node_id
        for member in (front, back):
            member.gateway.lan_urls[node] = (worker.lan_url,)
            member.gateway.known_names[node] = "worker"

    async def run_first(self) -> tuple[str, AttemptId]:
        return await run_first(self.back.api, self.worker.gateway.node_id)


@pytest.fixture
async def three(api_mesh: ApiMesh) -> Three:
    return Three(
        await api_mesh.member("front"),
        await api_mesh.member("back"),
        await api_mesh.member("worker"),
    )


async def test_any_node_sends_output_of_another(three: Three) -> None:
    """The dispatcher names the worker; the bytes come from there."""
    task, attempt = await three.run_first()
    three.worker.gateway.wrote[TaskId(task), attempt] = [
        OutputChunk(0, 0, b"\x00\xff"),
        OutputChunk(1, 0, b"oh"),
        OutputChunk(0, 990, b"x" * 10),
        OutputChunk(0, 1000, b""),
    ]
    outcome = replace(LONG, stderr=b"oh", stderr_bytes=2)
    finish(three.back.gateway, task, outcome)

    for member in (three.front, three.back):
        found = await ask(member.api, task)
        assert [kind for kind, *_ in found] == [
            *("attempt", "stdout", "stderr", "gap", "stdout", "end")
        ]
        assert found[0][2]["node"] == "worker"
    answer = await three.front.api.ask(
        "GET", f"/api/v1/tasks/{task}/stdout", headers=VIEWER
    )
    assert answer.body == b"\x00\xff" + b"x" * 10


async def test_output_of_a_lost_worker_comes_from_the_log(three: Three) -> None:
    """The reader learns which part is missing, and why."""
    task, _ = await three.run_first()
    finish(three.back.gateway, task, LONG)
    three.front.gateway.lan_urls.clear()

    found = await ask(three.front.api, task)

    assert found[1][2] == {"offset": 0, "data": "0123"}
    assert found[2][2]["reason"] == "worker, which keeps the rest, cannot be reached"
    assert found[3][0] == "end"


async def test_a_follower_survives_a_change_of_dispatcher(
    api_mesh: ApiMesh, three: Three
) -> None:
    """Its node finds the new one; nothing comes twice."""
    task, attempt = await three.run_first()
    wrote = three.worker.gateway.wrote[TaskId(task), attempt] = [
        OutputChunk(0, 0, b"one\n")
    ]
    path = f"/api/v1/tasks/{task}/logs?follow=true"
    async with Reader(three.front.api, path) as reader:
        assert (await reader.of("stdout"))[2]["data"] == "one\n"
        successor = await api_mesh.member("successor")
        successor.gateway.records = dict(three.back.gateway.records)
        successor.gateway.lan_urls = three.back.gateway.lan_urls
        successor.become_dispatcher(term=2)
        three.back.follow(successor, term=2)
        three.front.follow(successor, term=2)
        wrote.append(OutputChunk(0, 4, b"two\n"))
        finish(successor.gateway, task, replace(DONE, stderr=b"", stderr_bytes=0))

        assert (await reader.of("stdout"))[2] == {"offset": 4, "data": "two\n"}
        assert (await reader.of("end"))[1] == f"{FIRST}:8:0"


@pytest.mark.parametrize("is_front", [True, False])
async def test_output_of_a_visitor_comes_from_the_dispatcher(
    three: Three, *, is_front: bool
) -> None:
    """Nobody else can reach it."""
    visitor = NodeId("visitor-" + "v" * 16)
    three.back.gateway.visitors.add(visitor)
    task, attempt = await run_first(three.back.api, visitor)
    wrote = three.back.gateway.wrote[TaskId(task), attempt] = [
        OutputChunk(0, 0, b"one\n")
    ]
    asked = three.front if is_front else three.back
    path = f"/api/v1/tasks/{task}/logs?follow=true"
    async with Reader(asked.api, path) as reader:
        assert (await reader.of("stdout"))[2]["data"] == "one\n"
        three.back.gateway.visitors.clear()  # It leaves.
        wrote.append(OutputChunk(0, 4, b"two\n"))
        finish(three.back.gateway, task, replace(DONE, stderr=b"", stderr_bytes=0))

        assert (await reader.of("stdout"))[2] == {"offset": 4, "data": "two\n"}
        assert (await reader.of("end"))[1] == f"{FIRST}:8:0"


async def test_a_follower_leaves_a_silent_worker(api_mesh: ApiMesh) -> None:
    """Its cable is out: the connection does not end, and the task runs elsewhere."""
    three = Three(
        await api_mesh.member(
            "front", dataclasses.replace(PATIENT, keepalive_s=0.1, stall_s=LONG_S)
        ),
        await api_mesh.member("back"),
        await api_mesh.member(
            "worker", dataclasses.replace(PATIENT, keepalive_s=LONG_S)
        ),
    )

    async def pieces(*_: object, **__: object) -> AsyncIterator[OutputChunk]:
        yield OutputChunk(0, 0, b"first")
        await asyncio.sleep(LONG_S)

    three.worker.gateway.stream_output = pieces  # type: ignore[method-assign]
    task, _ = await three.run_first()
    async with Reader(
        three.front.api, f"/api/v1/tasks/{task}/logs?follow=true"
    ) as reader:
        assert (await reader.of("stdout"))[2]["data"] == "first"
        lose(three.back.gateway, task)
        here = three.front.gateway
        again = three.back.gateway.start(task, here.node_id)
        here.wrote[TaskId(task), again] = [OutputChunk(0, 0, b"second")]

        assert (await reader.of("attempt"))[2]["previous"] == "lost"
        assert (await reader.of("stdout"))[2]["data"] == "second"


async def test_followers_leave_connections_of_the_dispatcher_to_others(
    api_mesh: ApiMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Followers of queued tasks on all nodes could use its last connection."""
    monkeypatch.setattr(task_status_query, "_BUSY_S", 0.01)
    few = LimitOptions(streams_max=FEW)
    names = ("front", "back", "worker")
    three = Three(*[await api_mesh.member(name, limits=few) for name in names])
    task = await three.back.api.submit()
    path = f"/api/v1/tasks/{task}/logs?follow=true"
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(FEW):
            await stack.enter_async_context(Reader(three.back.api, path))
        reader = await stack.enter_async_context(Reader(three.front.api, path))
        assert (await reader.of("state"))[2] == {"status": "queued"}
        attempt = three.back.gateway.start(task, three.worker.gateway.node_id)
        three.worker.gateway.wrote[TaskId(task), attempt] = [OutputChunk(0, 0, b"one")]

        assert (await reader.of("stdout"))[2]["data"] == "one"


@pytest.mark.parametrize("is_front", [True, False])
async def test_a_follower_waits_for_a_dispatcher_that_still_catches_up(
    three: Three, monkeypatch: pytest.MonkeyPatch, *, is_front: bool
) -> None:
    """Right after a failover it may not know the task; a started stream may stay."""
    monkeypatch.setattr(task_status_query, "_BUSY_S", 0.01)
    front = three.back if is_front else three.front
    task = await three.back.api.submit()
    path = f"/api/v1/tasks/{task}/logs?follow=true"
    async with Reader(front.api, path) as reader:
        assert (await reader.of("state"))[2] == {"status": "queued"}
        records, three.back.gateway.records = three.back.gateway.records, {}
        three.back.gateway.is_complete = False
        three.back.gateway.elect(three.back.gateway.view)
        answer = await front.api.ask("GET", path, headers=VIEWER)
        assert_problem(answer, 503, "The log is not complete yet")

        three.back.gateway.records = records
        attempt = three.back.gateway.start(task, three.worker.gateway.node_id)
        three.worker.gateway.wrote[TaskId(task), attempt] = [OutputChunk(0, 0, b"one")]
        assert (await reader.of("stdout"))[2]["data"] == "one"


async def test_an_impossible_answer_of_a_node_ends_the_stream(three: Three) -> None:
    """A worker that goes back in a stream is not believed."""
    task, attempt = await three.run_first()
    three.worker.gateway.wrote[TaskId(task), attempt] = [
        OutputChunk(0, 0, b"0123"),
        OutputChunk(0, 2, b"23"),
    ]
    finish(three.back.gateway, task, LONG)

    found = await ask(three.front.api, task)

    assert [kind for kind, *_ in found] == ["attempt", "stdout", "gap", "end"]


@pytest.mark.parametrize(
    "path",
    ["/internal/v1/tasks/{task}/status", "/internal/v1/transcripts/{task}/1-7-1-1"],
)
async def test_routes_between_nodes_are_closed_to_tokens(
    patient_node: ApiNode, path: str
) -> None:
    """Only a node certificate opens them."""
    task, _ = await run_first(patient_node)

    answer = await patient_node.ask("GET", path.format(task=task), headers=ADMIN)

    assert_problem(answer, 401)


def test_ids_contain_attempt_and_offsets() -> None:
    """Also before the first attempt."""
    place = parse_event_id("12-9223372036854775807-5-3:4:5")

    assert place.attempt == AttemptId(12, StreamId(9223372036854775807), 5, 3)
    assert place.offsets == [4, 5]
    assert parse_event_id(":0:0").attempt is None
