"""Options of a task beyond its command: accepted completely, or refused by field."""

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
        "python": "3.13",
    },
    "limits": {"memory_mb": 64, "cpu_seconds": 5, "file_mb": 7, "processes": 80},
}


def parse(task: object) -> TaskDraft:
    """Return the draft of one task."""
    (draft,) = asyncio.run(parse_tasks(json.dumps(task).encode())).drafts
    return draft


def test_every_field_arrives() -> None:
    """Names are sorted, so that equal options are equal values."""
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
            python="3.13",
        ),
        limits=TaskLimits(memory_mb=64, cpu_s=5, file_mb=7, processes=80),
        retry=Retry(retries=3, on_failure=False, codes=(11, 75)),
    )


@pytest.mark.parametrize(
    "nothing", [{}, {"env": {}, "labels": {}, "requires": {}, "limits": {}}]
)
def test_a_task_without_options_stays_small(nothing: dict[str, Any]) -> None:
    """Most tasks have none; an empty option counts as none."""
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
def test_retries_can_be_configured(retry_on: list[str], rule: Retry | None) -> None:
    """By default losses are retried, and failures only on request."""
    options = parse({"command": "true", "retry_on": retry_on}).options

    assert options == (None if rule is None else TaskOptions(retry=rule))


WALES = "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "👨\u200d👩\u200d👧",
            "🏴\u200d☠\ufe0f",
            "क\u094d\u200cष",
            "❤️",
            "1\ufe0f\u20e3",
        ),
        pytest.param(f"{WALES} build", id="the flag of a region, which ends in tags"),
        pytest.param("\U0001faea", id="an emoji newer than Python's tables"),
    ],
)
def test_invisible_characters_are_allowed_where_emoji_and_words_need_them(
    name: str,
) -> None:
    """Joiners, variation selectors and tags are no letters themselves."""
    options = parse({"command": "true", "name": name, "labels": {"a": name}}).options

    assert options == TaskOptions(name=name, labels=(("a", name),))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a\nb", "U+000A"),
        ("a\x1b[2J", "U+001B"),
        ("gpj\u202egnp", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("a\u200bb", "U+200B ZERO WIDTH SPACE"),
        ("\u200d", "U+200D ZERO WIDTH JOINER"),
        ("👨\u200d", "U+200D ZERO WIDTH JOINER"),
        ("a\u200d\u200db", "U+200D ZERO WIDTH JOINER"),
        ("a\U000e0067", "U+E0067 TAG LATIN SMALL LETTER G"),
        (WALES[:-1], "U+E0067 TAG LATIN SMALL LETTER G"),
        ("a\ue000b", "U+E000"),
    ],
)
def test_the_refusal_of_a_name_says_which_character_to_leave_out(
    text: str, fault: str
) -> None:
    """The reader cannot see it."""
    with pytest.raises(Problem) as of_name:
        parse({"command": "true", "name": text})
    with pytest.raises(Problem) as of_label:
        parse({"command": "true", "labels": {"a": text}})

    assert of_name.value.hint == (
        f"remove the character {fault}; expected 1 to 128 printable characters"
    )
    assert f"remove the character {fault} of a; expected" in (of_label.value.hint or "")


@pytest.mark.parametrize("field", ["name", "cwd", "notify_url"])
def test_null_is_an_unset_option(field: str) -> None:
    """A task without the option is shown so."""
    assert parse({"command": "true", field: None}).options is None


def test_exit_codes_without_retries_are_refused() -> None:
    """They would have no effect, and the user would not notice."""
    with pytest.raises(Problem) as caught:
        parse({"command": "true", "retry_on": [75]})

    assert caught.value.field == "$.retries"


def test_binary_stdin_is_base64() -> None:
    """Text cannot hold every byte."""
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
def test_invalid_options_are_refused_by_name(field: str, value: object) -> None:
    """Each with the allowed values."""
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
def test_nested_fields_are_named_too(inside: str, field: str, value: object) -> None:
    """By their path from the task."""
    with pytest.raises(Problem) as caught:
        parse({"command": "true", inside: {field: value}})

    assert (caught.value.status, caught.value.field) == (400, f"$.{inside}.{field}")


def test_stdin_has_one_form() -> None:
    """Text or base64: with both, no rule could say which one counts."""
    with pytest.raises(Problem) as caught:
        parse({"command": "cat", "stdin": "a", "stdin_base64": "YQ=="})

    assert caught.value.field == "$.stdin_base64"


async def test_a_task_shows_its_options(node: ApiNode) -> None:
    """All but the bytes of stdin, which do not belong on a screen."""
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
