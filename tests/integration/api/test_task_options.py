"""What a task asks for beyond its command: taken whole, or refused by field."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from octaskly.api.problems import Problem
from octaskly.api.schemas.request_bodies import parse_tasks
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.task_options import (
    Requirements,
    Retry,
    TaskLimits,
    TaskOptions,
)
from tests.support.api_node import ADMIN, CLIENT, ApiNode

TASKS = "/api/v1/tasks"
FULL: dict[str, Any] = {
    "command": "true",
    "name": "nightly build",
    "labels": {"team/ci": "a b", "x": ""},
    "env": {"PATH": "/bin", "A": "1=2\n"},
    "cwd": "src",
    "stdin": "hällo",
    "workdir": "scratch",
    "grace": 0,
    "priority": -50,
    "retries": 3,
    "retry_on": [11, 75, "lost"],
    "notify_url": "https://hooks.example:8443/a?b=c",
    "requires": {
        "labels": {"disk": "ssd"},
        "node": "pi4",
        "os": "linux",
        "arch": "aarch64",
        "cpus": 4,
        "memory_mb": 512,
        "gpus": 1,
    },
    "limits": {"memory_mb": 64, "cpu_seconds": 5, "file_mb": 7, "processes": 80},
}


def parse(task: object) -> TaskDraft:
    """Return the draft of one task."""
    (draft,) = asyncio.run(parse_tasks(json.dumps(task).encode())).drafts
    return draft


def test_every_field_arrives() -> None:
    """Names in order, so that the same wishes are equal."""
    draft = parse(FULL)

    assert draft.priority == -50
    assert draft.options == TaskOptions(
        name="nightly build",
        labels=(("team/ci", "a b"), ("x", "")),
        env=(("A", "1=2\n"), ("PATH", "/bin")),
        cwd="src",
        stdin="hällo".encode(),
        is_scratch=True,
        grace_s=0,
        notify_url="https://hooks.example:8443/a?b=c",
        requires=Requirements(
            labels=(("disk", "ssd"),),
            node="pi4",
            os="linux",
            arch="aarch64",
            cpus=4,
            memory_mb=512,
            gpus=1,
        ),
        limits=TaskLimits(memory_mb=64, cpu_s=5, file_mb=7, processes=80),
        retry=Retry(retries=3, on_failure=False, codes=(11, 75)),
    )


@pytest.mark.parametrize(
    "nothing", [{}, {"env": {}, "labels": {}, "requires": {}, "limits": {}}]
)
def test_a_task_that_asks_for_nothing_stays_small(nothing: dict[str, Any]) -> None:
    """Most are such; a wish without content is none."""
    assert parse({"command": "true", **nothing}).options is None


@pytest.mark.parametrize(
    ("retry_on", "rule"),
    [
        (["failure", "lost"], None),
        ([], Retry(on_failure=False, on_lost=False)),
        (["lost"], Retry(on_failure=False)),
        (["failure"], Retry(on_lost=False)),
    ],
)
def test_what_is_tried_again_can_be_said(
    retry_on: list[str], rule: Retry | None
) -> None:
    """The default is what most tasks want: losses, and failures if asked for."""
    options = parse({"command": "true", "retry_on": retry_on}).options

    assert options == (None if rule is None else TaskOptions(retry=rule))


@pytest.mark.parametrize("name", ["👨\u200d👩\u200d👧", "क\u094d\u200cष", "❤️"])
def test_what_joins_letters_may_stand_between_them(name: str) -> None:
    """They are no letters themselves, but one emoji or word is not the same without."""
    options = parse({"command": "true", "name": name, "labels": {"a": name}}).options

    assert options == TaskOptions(name=name, labels=(("a", name),))


@pytest.mark.parametrize("field", ["name", "cwd", "notify_url"])
def test_null_asks_for_nothing(field: str) -> None:
    """That is how a task is shown that did not."""
    assert parse({"command": "true", field: None}).options is None


def test_codes_without_retries_are_a_mistake() -> None:
    """They would do nothing, and nobody would notice."""
    with pytest.raises(Problem) as caught:
        parse({"command": "true", "retry_on": [75]})

    assert caught.value.field == "$.retries"


def test_any_bytes_come_in_as_base64() -> None:
    """A text cannot hold them."""
    data = bytes(range(256))

    draft = parse({"command": "cat", "stdin_base64": base64.b64encode(data).decode()})

    assert draft.options == TaskOptions(stdin=data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a\nb"),
        ("name", "x" * 129),
        ("name", ""),
        ("name", "\u200d"),
        ("name", "a\u200d\u200db"),
        ("name", "a\u202eb"),
        ("labels", {str(n): "" for n in range(33)}),
        ("labels", {"a b": "1"}),
        ("labels", {"a": "\x1b[2J"}),
        ("labels", {"a": "x" * 257}),
        ("env", {"A=B": "1"}),
        ("env", {"": "1"}),
        ("env", {"A": "x\0y"}),
        ("env", {"OCTASKLY_TASK_ID": "1"}),
        ("env", {"A": "x" * 131_001}),
        ("env", {f"V{n}": "x" * 1100 for n in range(1000)}),
        ("env", {f"V{n}": "" for n in range(1001)}),
        ("cwd", ""),
        ("cwd", "a/../../b"),
        ("cwd", "a\0b"),
        ("cwd", "x" * 4097),
        ("stdin", "ä" * (1 << 19) + "x"),
        ("stdin_base64", "%%%"),
        ("stdin_base64", "\x99\u4b29o"),
        ("workdir", "elsewhere"),
        ("grace", -1),
        ("grace", 3601),
        ("grace", "10"),
        ("priority", 51),
        ("priority", -51),
        ("priority", 1.5),
        ("priority", True),
        ("retries", 101),
        ("retries", -1),
        ("retry_on", ["always"]),
        ("retry_on", [0]),
        ("retry_on", [256]),
        ("retry_on", "lost"),
        ("retry_on", [1] * 65),
        ("notify_url", ""),
        ("notify_url", "ftp://a/b"),
        ("notify_url", "file:///etc/passwd"),
        ("notify_url", "http://"),
        ("notify_url", "http:///path"),
        ("notify_url", "http://a:x/"),
        ("notify_url", "http://a:0/"),
        ("notify_url", "http://a..b/"),
        ("notify_url", "http://a:99999/"),
        ("notify_url", "http://[::1/"),
        ("notify_url", "http://ana:secret@a/"),
        ("notify_url", "http://a/b c"),
        ("notify_url", "http://a/\r\nHost: b"),
        ("notify_url", "http://ä/"),
        ("notify_url", "http://a/" + "x" * 2048),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    """Each with what would do."""
    with pytest.raises(Problem) as caught:
        parse([{"command": "true"}, {"command": "true", field: value}])

    assert caught.value.status == 400
    assert (caught.value.field or "").startswith(f"$[1].{field}")
    assert "expected" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("inside", "field", "value"),
    [
        ("requires", "cpus", 0),
        ("requires", "cpus", 1 << 21),
        ("requires", "gpus", -1),
        ("requires", "memory_mb", 0.5),
        ("requires", "node", "a b"),
        ("requires", "os", "\n"),
        ("requires", "labels", {"": "x"}),
        ("requires", "memory", 1),
        ("limits", "processes", 0),
        ("limits", "cpu_seconds", -1),
        ("limits", "file_mb", None.__class__.__name__),
        ("limits", "cpu", 1),
    ],
)
def test_what_is_deeper_is_named_too(inside: str, field: str, value: object) -> None:
    """By its path from the task."""
    with pytest.raises(Problem) as caught:
        parse({"command": "true", inside: {field: value}})

    assert (caught.value.status, caught.value.field) == (400, f"$.{inside}.{field}")


def test_stdin_is_given_once() -> None:
    """As text or as base64: nobody would guess which wins."""
    with pytest.raises(Problem) as caught:
        parse({"command": "cat", "stdin": "a", "stdin_base64": "YQ=="})

    assert caught.value.field == "$.stdin_base64"


async def test_a_task_shows_what_it_asked_for(node: ApiNode) -> None:
    """All but the bytes of stdin, which a reader does not want on a screen."""
    created = await node.ask("POST", TASKS, headers=CLIENT, body=FULL)

    shown = (await node.ask("GET", f"{TASKS}/{created.json['id']}", headers=ADMIN)).json

    for field in FULL.keys() - {"stdin"}:
        assert shown[field] == FULL[field]
    assert shown["stdin_bytes"] == 6
    assert "stdin" not in shown


async def test_a_list_shows_names_and_labels(node: ApiNode) -> None:
    """And null where there is none."""
    for body in (FULL, {"command": "true"}):
        await node.ask("POST", TASKS, headers=CLIENT, body=body)

    listed = (await node.ask("GET", TASKS, headers=ADMIN)).json["tasks"]

    assert [(task["name"], task["labels"], task["priority"]) for task in listed] == [
        ("nightly build", FULL["labels"], -50),
        (None, {}, 0),
    ]
