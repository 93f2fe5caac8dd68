"""The routes of tasks, over real TCP."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from octaskly.api.schemas import task_options
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import ArrayProgress
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import (
    AttemptState,
    EndReason,
    Outcome,
    OutputFile,
    TaskSpec,
)
from octaskly.errors import OutcomeUnknown, StoreError, StoreFull
from octaskly.ports.store import MemberFailure
from tests.support.api_node import (
    ADMIN,
    CLIENT,
    VIEWER,
    ApiNode,
    assert_problem,
    assert_standard_headers,
)
from tests.support.fake_gateway import NOW_MS

TASKS = "/api/v1/tasks"


async def test_created_task_answers_like_the_reference(node: ApiNode) -> None:
    """201 with id, command, status and a time that ends in Z."""
    body = {"command": "echo hello", "timeout": 3600, "inputs": ["a.txt"]}

    answer = await node.ask("POST", TASKS, headers=CLIENT, body=body)

    assert answer.status == 201
    assert_standard_headers(answer)
    assert answer.json == {
        "id": next(iter(node.gateway.records)),
        "command": "echo hello",
        "status": "queued",
        "created_at": "2026-02-06T12:00:00Z",
        "replicas": 1,
    }
    assert answer.headers["octaskly-dispatcher"] == "laptop-01"
    assert answer.headers["octaskly-epoch"] == "1/node-a"
    assert answer.headers["octaskly-replicas"] == "1"


async def test_ids_can_be_reserved_by_submitters(node: ApiNode) -> None:
    """Any requested number, up to the size of a batch."""
    answer = await node.ask("GET", "/api/v1/ids?count=2", headers=CLIENT)
    refused = await node.ask("GET", "/api/v1/ids?count=10001", headers=CLIENT)
    reader = await node.ask("GET", "/api/v1/ids", headers=VIEWER)

    assert answer.json == {"ids": ["task-001-00000001", "task-002-00000002"]}
    assert_problem(refused, 400, "Invalid parameter value")
    assert reader.status == 403


async def test_each_task_shows_its_number_of_copies(node: ApiNode) -> None:
    """All of a batch have the same; the header has it for the whole."""
    node.gateway.keep_copies("node-b")
    body = [{"command": f"echo {n}"} for n in range(3)]

    answer = await node.ask("POST", TASKS, headers=CLIENT, body=body)

    assert [task["replicas"] for task in answer.json] == [2, 2, 2]
    assert answer.headers["octaskly-replicas"] == "2"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{TASKS}?durability=strict", {"command": "true"}),
        (TASKS, {"command": "true", "durability": "strict"}),
        (TASKS, [{"command": "true"}, {"command": "true", "durability": "strict"}]),
        (
            f"{TASKS}?durability=normal",
            {"command": "true", "durability": "strict"},
        ),
    ],
)
async def test_strict_tasks_are_refused_with_one_copy(
    node: ApiNode, path: str, body: object
) -> None:
    """By task or by request; one strict task makes the batch strict: all or none."""
    refused = await node.ask("POST", path, headers=CLIENT, body=body)
    node.gateway.keep_copies("node-b")
    accepted = await node.ask("POST", path, headers=CLIENT, body=body)

    assert_problem(refused, 503, "No standby keeps a copy")
    assert refused.headers["retry-after"] == "1"
    assert accepted.status == 201


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (f"{TASKS}?durability=eternal", {"command": "true"}, "durability"),
        (TASKS, {"command": "true", "durability": 1}, "$.durability"),
        (TASKS, [{"command": "true", "durability": "x"}], "$[0].durability"),
    ],
)
async def test_an_unknown_durability_is_named(
    node: ApiNode, path: str, body: object, field: str
) -> None:
    """With the two allowed values."""
    answer = await node.ask("POST", path, headers=CLIENT, body=body)

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == field
    assert "normal or strict" in answer.json["hint"]


async def test_refusals_of_the_dispatcher_name_its_epoch(node: ApiNode) -> None:
    """An error also belongs to one epoch."""
    answer = await node.ask("GET", f"{TASKS}/nothing", headers=CLIENT)

    assert_problem(answer, 404, "Task not found")
    assert answer.headers["octaskly-dispatcher"] == "laptop-01"
    assert answer.headers["octaskly-epoch"] == "1/node-a"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{TASKS}/somewhere"),
        ("GET", f"{TASKS}/task-7"),
        ("GET", f"{TASKS}/somewhere?wait=1"),
        ("DELETE", f"{TASKS}/somewhere"),
        ("GET", f"{TASKS}/somewhere/outputs/a.txt"),
    ],
)
async def test_an_unknown_task_is_no_404_while_others_may_know_it(
    node: ApiNode, method: str, path: str
) -> None:
    """G7: an accepted task is never called unknown; lists show the known ones."""
    node.gateway.is_complete = False

    answer = await node.ask(method, path, headers=ADMIN)
    listed = await node.ask("GET", TASKS, headers=ADMIN)
    node.gateway.is_complete = True
    later = await node.ask(method, path, headers=ADMIN)

    assert_problem(answer, 503, "The log is not complete yet")
    assert answer.headers["retry-after"] == "1"
    assert (listed.status, later.status) == (200, 404)


async def test_defaults_of_a_task_are_those_of_the_reference(node: ApiNode) -> None:
    """Timeout one hour, no inputs, no outputs; the submitter is the subject."""
    task = await node.submit("true")

    spec = node.gateway.records[task].spec  # type: ignore[index]

    assert spec is not None
    assert (spec.timeout_s, spec.inputs, spec.outputs) == (3600, (), ())
    assert spec.submitter == "ana"


async def test_a_task_may_have_no_time_limit(node: ApiNode) -> None:
    """`none` is an extension of the reference; answers show null."""
    body = {"command": "true", "timeout": "none"}

    answer = await node.ask("POST", TASKS, headers=ADMIN, body=body)

    assert answer.status == 201
    spec = node.gateway.records[answer.json["id"]].spec
    assert spec is not None
    assert spec.timeout_s is None
    shown = await node.ask("GET", f"{TASKS}/{answer.json['id']}", headers=ADMIN)
    assert shown.json["timeout"] is None


async def test_a_batch_is_accepted_whole_and_in_order(node: ApiNode) -> None:
    """The answer to an array is an array in request order."""
    body = [{"command": f"echo {n}"} for n in range(1000)]

    answer = await node.ask("POST", TASKS, headers=ADMIN, body=body)

    assert answer.status == 201
    assert [task["command"] for task in answer.json] == [t["command"] for t in body]
    assert [task["id"] for task in answer.json] == list(node.gateway.records)


async def test_a_batch_with_one_bad_task_is_refused_whole(node: ApiNode) -> None:
    """The bad task is named, and nothing is stored."""
    body = [{"command": "true"}] * 3 + [{"command": " "}]

    answer = await node.ask("POST", TASKS, headers=ADMIN, body=body)

    assert_problem(answer, 400, "Invalid command format")
    assert answer.json["field"] == "$[3].command"
    assert node.gateway.records == {}


@pytest.mark.parametrize("count", [0, 10_001])
async def test_a_batch_has_one_to_ten_thousand_tasks(node: ApiNode, count: int) -> None:
    """An empty batch and one task too many are refused."""
    answer = await node.ask(
        "POST", TASKS, headers=ADMIN, body=[{"command": "true"}] * count
    )

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == "$"


async def test_a_chosen_id_is_used_once(node: ApiNode) -> None:
    """A second task with the id is a conflict, also within one batch."""
    body = {"command": "true", "id": "build.7"}

    first = await node.ask("POST", TASKS, headers=ADMIN, body=body)
    second = await node.ask("POST", TASKS, headers=ADMIN, body=body)
    both = [{"command": "true", "id": "x"}, {"command": "true", "id": "x"}]
    twice = await node.ask("POST", TASKS, headers=ADMIN, body=both)

    assert first.json["id"] == "build.7"
    assert_problem(second, 409, "Duplicate task ID")
    assert_problem(twice, 409, "Duplicate task ID")
    assert twice.json["field"] == "$[1].id"


async def test_no_id_is_an_option_of_a_command(node: ApiNode) -> None:
    """Ids are passed to other commands, as `octaskly ls --json | ... xargs` does."""
    for chosen in ("--force", "-h"):
        body = {"command": "true", "id": chosen}
        refused = await node.ask("POST", TASKS, headers=ADMIN, body=body)
        assert_problem(refused, 400, "Invalid parameter value")


async def test_an_idempotency_key_gives_the_same_task(node: ApiNode) -> None:
    """The same body gives the same task; another body is a conflict."""
    headers = ADMIN | {"Idempotency-Key": "k1"}

    first = await node.ask("POST", TASKS, headers=headers, body={"command": "a"})
    again = await node.ask("POST", TASKS, headers=headers, body={"command": "a"})
    other = await node.ask("POST", TASKS, headers=headers, body={"command": "b"})

    assert (first.status, again.status) == (201, 201)
    assert first.json == again.json
    assert_problem(other, 409, "Duplicate task ID")
    assert other.json["field"] == "Idempotency-Key"


@pytest.mark.parametrize("key", ["a b", "x" * 256, "\u00e9"])
async def test_an_invalid_idempotency_key_is_refused(node: ApiNode, key: str) -> None:
    """A key has 1 to 255 visible ASCII characters."""
    answer = await node.ask(
        "POST", TASKS, headers=ADMIN | {"Idempotency-Key": key}, body={"command": "a"}
    )

    assert_problem(answer, 400, "Invalid parameter value")
    assert answer.json["field"] == "Idempotency-Key"


async def test_a_queued_task_shows_unknown_values_as_null(node: ApiNode) -> None:
    """Nothing is omitted or invented."""
    task = await node.submit("cargo build")

    answer = await node.ask("GET", f"{TASKS}/{task}", headers=VIEWER)

    assert answer.status == 200
    known = {"id", "command", "status", "timeout", "created_at", "inputs", "outputs"}
    known |= {*task_options.render_options(None), "name", "labels", "priority"}
    known |= {"outputs_missing"}
    unknown = {k: v for k, v in answer.json.items() if k not in known}
    assert set(unknown) >= {"worker_id", "stdout", "stderr", "exit_code", "reason"}
    assert set(unknown.values()) == {None}
    assert answer.json["status"] == "queued"


async def test_a_completed_task_shows_its_result(node: ApiNode) -> None:
    """Exit code, output, duration and the name of the node."""
    task = await node.submit("echo hello")
    node.gateway.start(task)
    node.gateway.finish(task)

    answer = await node.ask("GET", f"{TASKS}/{task}", headers=VIEWER)

    assert answer.json == {
        "id": task,
        "command": "echo hello",
        "status": "completed",
        "worker_id": "laptop-01",
        "attempt": 1,
        "exit_code": 0,
        "signal": None,
        "reason": "exit",
        "detail": None,
        "timeout": 3600,
        "queue_ms": 0,
        "duration_ms": 1500,
        "cpu_seconds": None,
        "memory_peak_mb": None,
        "created_at": "2026-02-06T12:00:00Z",
        "started_at": "2026-02-06T12:00:00Z",
        "elapsed_ms": None,
        "completed_at": "2026-02-06T12:00:01Z",
        "stdout": "hello\n",
        "stderr": "",
        "stdout_bytes": 6,
        "stderr_bytes": 0,
        "stdout_truncated": False,
        "stderr_truncated": False,
        "inputs": [],
        "outputs": [],
        "outputs_missing": [],
        "priority": 0,
        "array": None,
        "name": None,
        "call": None,
        "labels": {},
        **task_options.render_options(None),
    }


async def test_a_task_shows_its_usage_and_waiting_time(node: ApiNode) -> None:
    """Also in lists; a slow clock of the worker makes no time negative."""
    for started_ms, queue_ms in ((NOW_MS + 250, 250), (NOW_MS - 250, 0)):
        task = await node.submit("echo hello")
        node.gateway.start(task)
        outcome = Outcome(
            state=AttemptState.OK,
            reason=EndReason.EXIT,
            started_ms=started_ms,
            cpu_ms=1750,
            memory_max_kb=20_500,
        )
        node.gateway.finish(task, outcome)
        one = await node.ask("GET", f"{TASKS}/{task}", headers=VIEWER)
        listed = await node.ask("GET", TASKS, headers=VIEWER)

        for shown in (one.json, listed.json["tasks"][-1]):
            assert shown["queue_ms"] == queue_ms
            assert (shown["cpu_seconds"], shown["memory_peak_mb"]) == (1.75, 20.0)


async def test_binary_and_long_output_is_marked(
    node: ApiNode,
) -> None:
    """Invalid UTF-8 is replaced, truncation is marked, missing outputs are null."""
    body = {"command": "x", "outputs": ["r.txt", "gone.txt"]}
    created = await node.ask("POST", TASKS, headers=ADMIN, body=body)
    task = created.json["id"]
    node.gateway.start(task)
    outcome = Outcome(
        state=AttemptState.FAILED,
        reason=EndReason.SIGNAL,
        exit_code=137,
        signal=9,
        stdout=b"\xff\x00ok",
        stdout_bytes=9999,
        outputs=(OutputFile("r.txt", 3), OutputFile("gone.txt", None)),
    )
    node.gateway.finish(task, outcome)

    shown = (await node.ask("GET", f"{TASKS}/{task}", headers=VIEWER)).json
    url = f"{TASKS}/{task}?encoding=base64"
    exact = (await node.ask("GET", url, headers=VIEWER)).json

    assert base64.b64decode(exact["stdout"]) == b"\xff\x00ok"
    assert exact["encoding"] == "base64"
    assert shown["stdout"] == "\ufffd\x00ok"
    assert shown["encoding"] == "utf-8-replaced"
    assert (shown["stdout_bytes"], shown["stdout_truncated"]) == (9999, True)
    assert (shown["exit_code"], shown["signal"], shown["reason"]) == (137, 9, "signal")
    assert shown["outputs"] == [
        {"path": "r.txt", "bytes": 3, "files": None},
        {"path": "gone.txt", "bytes": None, "files": None},
    ]
    assert shown["outputs_missing"] == ["gone.txt"]


@pytest.mark.parametrize(
    ("kept", "written_bytes", "text", "encoding"),
    [
        ("ß€".encode()[:4], 9, "ß", None),
        ("\ufffd€".encode()[:5], 9, "\ufffd", None),
        (b"\xff" + "€".encode()[:2], 9, "\ufffd", "utf-8-replaced"),
        ("ß€".encode()[:4], 4, "ß\ufffd", "utf-8-replaced"),
    ],
)
async def test_a_character_that_was_cut_is_left_out_of_the_text(
    node: ApiNode, kept: bytes, written_bytes: int, text: str, encoding: str | None
) -> None:
    """The limit of kept output does not make text binary."""
    task = await node.submit()
    node.gateway.start(task)
    outcome = Outcome(
        state=AttemptState.OK,
        reason=EndReason.EXIT,
        exit_code=0,
        stdout=kept,
        stdout_bytes=written_bytes,
    )
    node.gateway.finish(task, outcome)

    shown = (await node.ask("GET", f"{TASKS}/{task}", headers=VIEWER)).json

    assert (shown["stdout"], shown.get("encoding")) == (text, encoding)
    assert shown["stdout_bytes"] == written_bytes
    assert shown["stdout_truncated"] == (len(kept) != written_bytes)


async def test_a_short_id_is_resolved_if_it_is_unique(node: ApiNode) -> None:
    """`task-001` is enough for the only task with that number."""
    task = await node.submit()

    answer = await node.ask("GET", f"{TASKS}/task-001", headers=VIEWER)

    assert answer.json["id"] == task


async def test_ambiguous_short_id_is_a_conflict(node: ApiNode) -> None:
    """Two tasks with one number, from two sides of a split."""
    for task in ("task-001-aaaaaaaa", "task-001-bbbbbbbb"):
        body = {"command": "true", "id": task}
        await node.ask("POST", TASKS, headers=ADMIN, body=body)

    answer = await node.ask("GET", f"{TASKS}/task-001", headers=VIEWER)

    assert_problem(answer, 409, "Task ID is ambiguous")


async def test_a_short_id_in_a_query_lists_its_candidates(node: ApiNode) -> None:
    """A path takes whole ids only, so a program cannot cancel a task by accident."""
    first = await node.submit()
    body = {"command": "true", "id": "task-7923-0000000f"}
    await node.ask("POST", TASKS, headers=ADMIN, body=body)

    async def candidates(short: str) -> list[str]:
        found = await node.ask("GET", f"{TASKS}?ref={short}", headers=VIEWER)
        return [task["id"] for task in found.json["tasks"]]

    assert await candidates("1") == [first]
    assert await candidates(first[-8:-3]) == [first]
    assert await candidates("0000") == [body["id"]]
    assert await candidates("beef") == []
    for wrong in ("ref=x", "ref=", "ref=beef&limit=1"):
        answer = await node.ask("GET", f"{TASKS}?{wrong}", headers=VIEWER)
        assert_problem(answer, 400, "Invalid parameter value")
        assert answer.json["field"] == "ref"
    assert (await node.ask("GET", f"{TASKS}/1", headers=VIEWER)).status == 404


async def test_array_that_was_lost_with_its_workers_has_an_end(node: ApiNode) -> None:
    """No member of it is known to have started."""
    array = TaskId("task-001-00000001")
    spec = TaskSpec(
        array, "run {}", options=TaskOptions(array=ArraySpec(count=2, first=1))
    )
    progress = ArrayProgress(failed=2, ended_ms=NOW_MS)
    node.gateway.records[array] = TaskRecord(array, spec, progress=progress)

    shown = (await node.ask("GET", f"{TASKS}/{array}", headers=VIEWER)).json

    assert (shown["started_at"], shown["duration_ms"]) == (None, None)
    assert shown["completed_at"] == "2026-02-06T12:00:00Z"


async def test_running_work_shows_its_start_and_its_progress(node: ApiNode) -> None:
    """Also the rate and the remaining time of an array, and its first failure."""
    task = await node.submit()
    array = TaskId("task-002-00000002")
    progress = ArrayProgress(queued=60, running=4, completed=30, failed=6)
    options = TaskOptions(array=ArraySpec(count=100, first=1))
    spec = TaskSpec(array, "run {}", options=options)
    node.gateway.records[array] = TaskRecord(array, spec, progress=progress)
    ended = Outcome(AttemptState.FAILED, EndReason.EXIT, exit_code=3)
    node.gateway.first_failures[array] = MemberFailure(17, ended)
    node.gateway.start(task)
    node.gateway.began_ms = NOW_MS - 90_000

    listed = (await node.ask("GET", TASKS, headers=VIEWER)).json["tasks"]
    shown = (await node.ask("GET", f"{TASKS}/{array}", headers=VIEWER)).json
    alone = (await node.ask("GET", f"/api/v1/arrays/{array}", headers=VIEWER)).json
    path = f"{TASKS}/{array}/explain"
    explained = (await node.ask("GET", path, headers=VIEWER)).json

    assert explained["first_failure"] == shown["array"]["first_failure"]
    assert [each["short_id"] for each in listed] == ["1", "2"]
    for each in (*listed, shown, alone):
        assert each["started_at"] == "2026-02-06T11:58:30Z"
        assert each["elapsed_ms"] == 90_000
    for each in (listed[1], shown, alone):
        assert each["array"]["rate_per_s"] == 0.4
        assert each["array"]["eta_ms"] == 160_000
        assert each["array"]["first_failure"] == {
            "id": f"{array}.17",
            "index": 17,
            "exit_code": 3,
            "signal": None,
            "reason": "exit",
            "detail": None,
        }


@pytest.mark.parametrize(
    ("state", "lacks_one"), [(AttemptState.OK, True), (AttemptState.FAILED, False)]
)
async def test_a_completed_task_says_which_output_it_lacks(
    node: ApiNode, state: AttemptState, *, lacks_one: bool
) -> None:
    """A failed one may lack all of them."""
    task = await node.submit()
    node.gateway.start(task)
    outputs = (OutputFile("a.txt", 3), OutputFile("b", None), OutputFile("c", None))
    ended = Outcome(state, EndReason.EXIT, exit_code=0, outputs=outputs)
    node.gateway.finish(task, ended)

    [listed] = (await node.ask("GET", TASKS, headers=VIEWER)).json["tasks"]

    assert listed.get("missing_output") == ("b" if lacks_one else None)


async def test_a_list_has_pages_and_counts(node: ApiNode) -> None:
    """Oldest first, without output, with total, returned, limit and offset."""
    tasks = [await node.submit(f"echo {n}") for n in range(5)]

    answer = await node.ask("GET", f"{TASKS}?limit=2&offset=1", headers=VIEWER)

    assert [task["id"] for task in answer.json["tasks"]] == tasks[1:3]
    assert all("stdout" not in task for task in answer.json["tasks"])
    place = {key: answer.json[key] for key in ("total", "returned", "limit", "offset")}
    assert place == {"total": 5, "returned": 2, "limit": 2, "offset": 1}


async def test_list_without_parameters_has_the_default_page(node: ApiNode) -> None:
    """100 from the start."""
    answer = await node.ask("GET", TASKS, headers=VIEWER)

    assert answer.json == {
        "tasks": [],
        "total": 0,
        "returned": 0,
        "limit": 100,
        "offset": 0,
    }


async def test_list_filters_by_state_and_worker(node: ApiNode) -> None:
    """All five states are filters; an unknown worker has no tasks."""
    node.gateway.known_names[NodeId("node-b")] = "pi"
    queued, running, done, cancelled = [await node.submit() for _ in range(4)]
    node.gateway.start(running, "node-b")
    node.gateway.start(done)
    node.gateway.finish(done)
    await node.ask("DELETE", f"{TASKS}/{cancelled}", headers=ADMIN)

    async def ids(query: str) -> list[str]:
        answer = await node.ask("GET", f"{TASKS}?{query}", headers=VIEWER)
        assert answer.status == 200, answer
        return [task["id"] for task in answer.json["tasks"]]

    assert await ids("status=queued") == [queued]
    assert await ids("status=running") == [running]
    assert await ids("status=completed") == [done]
    assert await ids("status=cancelled") == [cancelled]
    assert await ids("status=failed") == []
    assert await ids("worker_id=pi") == [running]
    assert await ids("worker_id=node-b&status=queued") == []
    assert await ids("worker_id=nobody") == []


async def test_attempts_of_a_task_and_recent_attempts_are_listed(node: ApiNode) -> None:
    """Each with its node, its end, and times to the millisecond."""
    node.gateway.known_names[NodeId("node-b")] = "pi"
    first, second = [await node.submit(f"echo {'x' * 300}") for _ in range(2)]
    node.gateway.start(first, "node-b")
    node.gateway.finish(first)
    node.gateway.start(second)

    own = await node.ask("GET", f"{TASKS}/{first}/attempts", headers=VIEWER)
    all_ = await node.ask("GET", "/api/v1/attempts?since_s=60", headers=VIEWER)

    (attempt,) = own.json["attempts"]
    assert (attempt["worker_id"], attempt["status"]) == ("pi", "completed")
    assert attempt["completed_at"] == "2026-02-06T12:00:01.500Z"
    (ended,), (running,) = all_.json["ended"], all_.json["running"]
    assert ended == {
        **attempt,
        "id": first,
        "name": None,
        "call": None,
        "assigned_at": None,
        "command": f"echo {'x' * 195}",
        "has_files": False,
    }
    assert (running["id"], running["status"]) == (second, "running")
    assert running["assigned_at"] == all_.json["now"] == "2026-02-06T12:00:00.000Z"


async def test_a_search_returns_the_cursor_of_its_next_page(node: ApiNode) -> None:
    """With the name of the last task that was examined."""
    asked = {"command": "make", "name": "nightly", "labels": {"team": "red", "x": ""}}
    body = [asked, {"command": "make"}, asked, {**asked, "labels": {"team": "blue"}}]
    made = await node.ask("POST", TASKS, headers=CLIENT, body=body)
    first, _, third, fourth = (task["id"] for task in made.json)

    async def found(query: str) -> dict[str, Any]:
        answer = await node.ask("GET", f"{TASKS}?{query}", headers=VIEWER)
        assert answer.status == 200, answer
        return {**answer.json, "tasks": [task["id"] for task in answer.json["tasks"]]}

    page = await found("name=nightly&limit=2")
    assert (page["tasks"], page["next"], page["left"]) == ([first, third], third, 0)
    assert (await found(f"name=nightly&after={third}"))["tasks"] == [fourth]
    assert (await found("label=team&newest=true"))["tasks"] == [fourth, third, first]
    assert (await found("label=team=red&label=x="))["tasks"] == [first, third]
    assert (await found("text=Night&label=team%3Dblue"))["tasks"] == [fourth]
    assert (await found("mine=true"))["tasks"] == []  # The viewer submitted nothing.
    own = await node.ask("GET", f"{TASKS}?mine=true&name=nightly", headers=CLIENT)
    assert [task["id"] for task in own.json["tasks"]] == [first, third, fourth]
    assert "next" not in await found("status=queued")
    assert (await found(f"status=queued&after={third}"))["tasks"] == [fourth]
    assert (await found("ended_within_s=3600"))["tasks"] == []
    node.gateway.start(third)
    node.gateway.finish(third)
    assert (await found("ended_within_s=3600&name=nightly"))["tasks"] == [third]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("label=", "label"),
        ("label==red", "label"),
        (f"label=team={'x' * 400}", "label"),
        ("&".join(["label=team"] * 33), "label"),
        ("name=", "name"),
        ("text=", "text"),
        (f"text={'x' * 257}", "text"),
        ("text=a%00b", "text"),
        ("text=a&text=b", "text"),
        ("text=a&offset=1", "offset"),
        ("text=a&array=task-001", "array"),
        ("text=a&after=no%20id", "after"),
        ("after=task-001&offset=1", "offset"),
        ("newest=yes", "newest"),
        ("mine=yes", "mine"),
        ("ended_within_s=0", "ended_within_s"),
        ("ended_within_s=1h", "ended_within_s"),
        ("ended_within_s=7776001", "ended_within_s"),
    ],
)
async def test_an_invalid_search_is_refused(
    node: ApiNode, query: str, field: str
) -> None:
    """400 with the wrong parameter."""
    answer = await node.ask("GET", f"{TASKS}?{query}", headers=VIEWER)

    assert_problem(answer, 400)
    assert answer.json["field"] == field


async def test_a_task_that_is_no_array_has_no_members(node: ApiNode) -> None:
    """404 as for the array itself: an empty list would say that none has started."""
    task = await node.submit()

    listed = await node.ask("GET", f"{TASKS}?array={task}", headers=VIEWER)
    shown = await node.ask("GET", f"/api/v1/arrays/{task}", headers=VIEWER)

    assert_problem(listed, 404, "Task not found")
    assert listed.json["hint"] == shown.json["hint"] == f"{task} is not an array"
    assert (listed.json["field"], shown.json["field"]) == ("array", "id")


async def test_a_wait_returns_when_the_task_ends(node: ApiNode) -> None:
    """A long poll sees the end at once, not at its deadline."""
    task = await node.submit()
    node.gateway.start(task)
    loop = asyncio.get_running_loop()
    loop.call_later(0.1, node.gateway.finish, task)

    answer = await node.ask("GET", f"{TASKS}/{task}?wait=30", headers=VIEWER)

    assert answer.json["status"] == "completed"


async def test_a_wait_returns_the_current_state_at_its_deadline(node: ApiNode) -> None:
    """The answer is a plain 200."""
    task = await node.submit()

    answer = await node.ask("GET", f"{TASKS}/{task}?wait=0.05", headers=VIEWER)

    assert (answer.status, answer.json["status"]) == (200, "queued")


async def test_a_client_cancels_only_its_own_tasks(node: ApiNode) -> None:
    """403 for another user's task, 200 for its own."""
    foreign = await node.submit()
    created = await node.ask("POST", TASKS, headers=CLIENT, body={"command": "a"})

    refused = await node.ask("DELETE", f"{TASKS}/{foreign}", headers=CLIENT)
    own = await node.ask("DELETE", f"{TASKS}/{created.json['id']}", headers=CLIENT)

    assert_problem(refused, 403, "Insufficient permissions")
    assert own.json == {
        "id": created.json["id"],
        "status": "cancelled",
        "message": "Task cancelled successfully",
    }


async def test_a_request_that_may_have_been_carried_out_is_not_repeated(
    node: ApiNode,
) -> None:
    """A node that stops in the middle must not cause a second execution."""
    node.gateway.raised.append(
        OutcomeUnknown("the node stopped before it could answer")
    )

    answer = await node.ask("POST", TASKS, headers=ADMIN, body={"command": "a"})
    listed = await node.ask("GET", TASKS, headers=ADMIN)

    assert_problem(answer, 503, "Connection to the dispatcher was lost")
    assert listed.json["total"] == 0


async def test_a_full_disk_is_507(node: ApiNode) -> None:
    """Nothing is accepted, and the answer has the reason."""
    node.gateway.raised.append(StoreFull("/var/lib/octaskly has 3 MiB left"))

    answer = await node.ask("POST", TASKS, headers=ADMIN, body={"command": "a"})

    assert_problem(answer, 507)
    assert answer.json["hint"] == "/var/lib/octaskly has 3 MiB left"


async def test_a_broken_store_is_500_and_logged(node: ApiNode) -> None:
    """The reference's text for the client, the exception for the log."""
    node.gateway.raised.append(StoreError("disk I/O error"))

    answer = await node.ask("GET", TASKS, headers=ADMIN)

    assert_problem(answer, 500, "Database connection failure")
    assert [str(error) for error in node.faults] == ["disk I/O error"]


async def test_an_unexpected_exception_is_500_without_details(node: ApiNode) -> None:
    """The client learns nothing of an internal error."""
    node.gateway.raised.append(ZeroDivisionError("secret"))

    answer = await node.ask("GET", TASKS, headers=ADMIN)

    assert_problem(answer, 500, "Internal server error")
    assert b"secret" not in answer.body
    assert isinstance(node.faults[0], ZeroDivisionError)


async def test_an_ended_task_is_repeated_once(node: ApiNode) -> None:
    """With all its options; a second request gets the same new task."""
    body = {"command": "false", "name": "x", "priority": 9, "env": {"A": "1"}}
    created = await node.ask("POST", TASKS, headers=CLIENT, body=body)
    task = created.json["id"]
    node.gateway.start(task)
    node.gateway.finish(task)

    before = await node.ask("GET", f"{TASKS}/{task}/retry", headers=VIEWER)
    first = await node.ask("POST", f"{TASKS}/{task}/retry", headers=CLIENT)
    after = await node.ask("GET", f"{TASKS}/{task}/retry", headers=VIEWER)
    again = await node.ask("POST", f"{TASKS}/{task}/retry", headers=CLIENT)

    assert first.status == again.status == 201
    assert first.json == again.json
    assert first.json["retry_of"] == task
    assert first.json["id"] != task
    assert before.json == {"retried_as": None}
    assert after.json == {"retried_as": first.json["id"]}
    shown = await node.ask("GET", f"{TASKS}/{first.json['id']}", headers=VIEWER)
    assert {key: shown.json[key] for key in body} == body
    assert (shown.json["status"], shown.json["retry_of"]) == ("queued", task)


async def test_a_waiting_task_gets_another_priority(node: ApiNode) -> None:
    """A request may be repeated; lists and details show the new priority."""
    task = await node.submit("true")
    path = f"{TASKS}/{task}/reprioritize"

    for _ in range(2):
        answer = await node.ask("POST", path, headers=ADMIN, body={"priority": -7})
        assert (answer.status, answer.json) == (200, {"id": task, "priority": -7})

    others = await node.ask("POST", path, headers=CLIENT, body={"priority": 0})
    assert others.status == 403
    shown = await node.ask("GET", f"{TASKS}/{task}", headers=VIEWER)
    listed = await node.ask("GET", TASKS, headers=VIEWER)
    assert shown.json["priority"] == -7
    assert [line["priority"] for line in listed.json["tasks"]] == [-7]


@pytest.mark.parametrize(
    ("body", "error", "hint"),
    [
        ({"priority": 51}, "Invalid parameter value", "an integer from -50 to 50"),
        ({"priority": "high"}, "Invalid parameter value", "an integer from -50 to 50"),
        ({}, "Missing required field", "`priority`"),
        ({"priority": 1, "x": 1}, "Unknown field", "`x`"),
    ],
)
async def test_a_priority_is_a_number_in_its_range(
    node: ApiNode, body: dict[str, object], error: str, hint: str
) -> None:
    """The answer names field and range."""
    task = await node.submit("true")

    path = f"{TASKS}/{task}/reprioritize"
    answer = await node.ask("POST", path, headers=ADMIN, body=body)

    assert_problem(answer, 400, error)
    assert hint in answer.json["hint"]


async def test_what_does_not_wait_keeps_its_priority(node: ApiNode) -> None:
    """Neither an ended nor an unknown task gets another one, nor from a viewer."""
    task = await node.submit("true")
    node.gateway.start(task)
    node.gateway.finish(task)
    body = {"priority": 1}

    ended = await node.ask(
        "POST", f"{TASKS}/{task}/reprioritize", headers=ADMIN, body=body
    )
    unknown = await node.ask(
        "POST", f"{TASKS}/task-999/reprioritize", headers=ADMIN, body=body
    )
    viewer = await node.ask(
        "POST", f"{TASKS}/{task}/reprioritize", headers=VIEWER, body=body
    )

    assert_problem(ended, 409, "Cannot change the priority of this task")
    assert_problem(unknown, 404, "Task not found")
    assert viewer.status == 403


async def test_an_unfinished_task_is_not_repeated(node: ApiNode) -> None:
    """It may still succeed."""
    task = await node.submit("true")

    answer = await node.ask("POST", f"{TASKS}/{task}/retry", headers=CLIENT)

    assert_problem(answer, 409, "Task has not ended")
