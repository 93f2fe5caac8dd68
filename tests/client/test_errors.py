"""The text of an error: what failed, which field is meant, and what helps."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import octaskly
from octaskly.client.errors import parse_refusal
from octaskly.rest.client_types import Task

PUBLIC = [
    kind
    for kind in map(octaskly.__getattr__, octaskly.__all__[1:])
    if isinstance(kind, type) and issubclass(kind, octaskly.OctasklyError)
]


def made(kind: type[octaskly.OctasklyError]) -> octaskly.OctasklyError:
    """Return an error with all that its class accepts."""
    values: dict[str, Any] = {
        "message": "the task was not taken",
        "hint": "give it another name\ngive it none",
        "field": "$.name",
        "status": 400,
        "task": Task(id="task-001", status="failed"),
        "names": ["ash", "birch"],
        "path": "src/text",
    }
    accepted = inspect.signature(kind).parameters
    return kind(**{name: values[name] for name in accepted if name in values})


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_the_text_of_each_error_has_its_field_and_hint(
    kind: type[octaskly.OctasklyError],
) -> None:
    """So that a log or a traceback has all that an attribute has."""
    error = made(kind)
    text = str(error)

    assert text.startswith(error.message)
    assert error.hint
    assert "; or ".join(error.hint.splitlines()) in text
    assert "field: name" in text if error.field else "field" not in text
    assert repr(error) == f"{kind.__name__}({text!r})"


def test_all_error_classes_are_tested() -> None:
    """Those that the package makes public."""
    assert len(PUBLIC) >= 25
    assert {octaskly.Invalid, octaskly.InterpreterMismatch} < set(PUBLIC)


def test_nothing_is_said_twice() -> None:
    """A message may name the field or have the hint already."""
    error = octaskly.OctasklyError("name: too long", field="$.name", hint="too long")
    assert str(error) == "name: too long"


WRONG: list[tuple[dict[str, Any], str, str, str]] = [
    (
        {"timeout": 0},
        "Invalid parameter value",
        "timeout",
        "expected an integer from 1 to 86400 (seconds)",
    ),
    (
        {"requires": {"os": "two words"}},
        "Invalid parameter value",
        "requires.os",
        "invalid word; expected a word, for example linux",
    ),
    ({"that": 1}, "a task has no field 'that'", "", "use one of after, call, cwd"),
    (
        {"includes_ignored": True},
        "includes_ignored needs inputs",
        "",
        "name a folder: inputs='.'",
    ),
    *(
        ({"stdin": wrong}, f"stdin has {wrong}, which", "", "give the text")
        for wrong in (5, [5], True)
    ),
    *(
        (wrong, failure, "", hint)
        for field in ("inputs", "outputs", "needs")
        for wrong, failure, hint in (
            ({field: b"a"}, f"{field} has the bytes b'a'", "os.fsdecode"),
            ({field: ["a", b"b"]}, f"{field} has the bytes b'b'", "os.fsdecode"),
            ({field: 97}, f"{field} has 97, which is not a path", "a path is"),
            ({field: None}, f"{field} has None, which", "a path is"),
            ({field: ["a", None]}, f"{field} has None, which", "a path is"),
            ({field: [["a"]]}, f"{field} has ['a'], which", "a path is"),
        )
    ),
    *(
        ({field: wrong}, f"{field} has {said}, which is neither", "", "give what")
        for field in ("after", "outputs_of")
        for wrong, said in ((5, "5"), (None, "None"), ([b"a"], "b'a'"))
    ),
    *(
        (wrong, "", "", "decode returns")
        for wrong in (
            {"name": b"a"},
            {"cwd": b"a"},
            {"id": bytearray(b"a")},
            {"labels": {"a": b"b"}},
            {"env": {b"a": "b"}},
            {"requires": {"labels": {"a": b"b"}}},
        )
    ),
    ({"inputs": {"a": 1}}, "inputs has 1, which", "", "a path is"),
    ({"inputs": {b"a": "b"}}, "inputs has the bytes b'a'", "", "os.fsdecode"),
    ({"inputs": [("a", "b", "c")]}, "inputs has ('a', 'b', 'c')", "", "a tuple has"),
]


@pytest.mark.parametrize(("fields", "failure", "field", "hint"), WRONG)
def test_an_invalid_value_is_told_with_its_field_and_hint(
    client: octaskly.Client, fields: dict[str, Any], failure: str, field: str, hint: str
) -> None:
    """In one line, also where only the node knows."""
    with pytest.raises(octaskly.Invalid) as caught:
        client.submit("true", **fields)

    place = f"; field: {field}" if field else ""
    said, _, rest = str(caught.value).partition(f"{place}; hint: ")
    assert said.startswith(failure)
    assert rest.startswith(hint)


def test_a_command_in_bytes_is_refused(client: octaskly.Client) -> None:
    """It is not sent as base64."""
    command: Any = b"true"
    for call in (
        lambda: client.submit(command),
        lambda: client.run(command),
        lambda: client.submit_many([command]),
        lambda: client.array(command, "1-2"),
        lambda: next(client.map(command, ["item"])),
    ):
        with pytest.raises(octaskly.Invalid, match="command has the bytes b'true'"):
            call()


@pytest.mark.parametrize("fields", [{"inputs": b"a"}, {"inputs": [97]}])
def test_each_interface_refuses_what_is_no_path(
    client: octaskly.Client, fields: dict[str, Any]
) -> None:
    """Before it asks a node."""
    calls = (
        lambda: client.run("true", **fields),
        lambda: client.submit_many(["true"], **fields),
        lambda: client.submit_many(["true"], outputs=fields["inputs"]),
        lambda: client.map("true", ["item"], **fields),
        lambda: octaskly.Executor(url="http://127.0.0.1:1", token="-", **fields),
    )
    for call in calls:
        with pytest.raises(octaskly.Invalid, match=r"puts has .* path"):
            call()


def test_a_refusal_keeps_the_path_of_a_field_in_a_batch() -> None:
    """It says which task is meant."""
    body = b'{"error": "Invalid field value", "field": "$[3].name", "hint": "too long"}'

    error = parse_refusal(400, {}, body)

    assert str(error) == "Invalid field value; field: $[3].name; hint: too long"
