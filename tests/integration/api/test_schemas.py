"""Fuzzed bodies: parsing ends in tasks or in a Problem."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octaskly.api.problems import Problem, encode_problem
from octaskly.api.routes.joining import parse_invite
from octaskly.api.schemas.request_bodies import (
    PATH_BYTES_MAX,
    clean_path,
    parse_tasks,
)
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import SameFolder
from octaskly.core.model.tasks import TaskSpec
from octaskly.mesh.wire import WirePacker

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)

FIELDS = st.sampled_from(
    ["command", "timeout", "inputs", "outputs", "id", "durability", "comand"]
)
TASKS = st.dictionaries(FIELDS, VALUES, max_size=5)


def _parse(body: bytes) -> list[TaskDraft] | None:
    try:
        return asyncio.run(parse_tasks(body)).drafts
    except Problem as caught:
        problem = caught
    assert problem.status in (400, 409)
    assert json.loads(encode_problem(problem, 0))["status"] == problem.status
    return None


def test_an_invalid_lifetime_of_an_invite_has_our_error() -> None:
    """A person typed it: `--ttl 2h`; only a program waits longer, for a visitor."""
    with pytest.raises(Problem) as caught:
        parse_invite(json.dumps({"ttl_s": 3601}).encode())
    assert caught.value.hint == "expected an integer from 10 to 3600 (seconds)"
    with pytest.raises(Problem):
        parse_invite(json.dumps({"ttl_s": 9, "visitor": {}}).encode())
    assert parse_invite(json.dumps({"ttl_s": 3601, "visitor": {}}).encode()).visitor


@pytest.mark.parametrize(
    ("fields", "needed_s"),
    [
        ({}, 3600),  # The default of the API is a limit like any other.
        ({"timeout": "none"}, 0),
        ({"timeout": 60}, 60),
        ({"timeout": 60, "visitors_min": 1800}, 1800),
        ({"timeout": "none", "visitors_min": 1800}, 1800),
    ],
    ids=str,
)
def test_a_visitor_must_stay_as_long_as_the_limit_of_a_task(
    fields: dict[str, Any], needed_s: int
) -> None:
    """A task without a limit is given back at the end of the visit."""
    body = {"command": "true", "visitors": True, **fields}

    (draft,) = _parse(json.dumps(body).encode()) or []

    assert draft.options is not None
    assert draft.options.requires is not None
    assert draft.options.requires.visitor_s == needed_s


@given(st.binary(max_size=200))
def test_any_bytes_end_in_tasks_or_a_problem(body: bytes) -> None:
    """Never in another exception."""
    _parse(body)


@given(TASKS | st.lists(TASKS, max_size=3) | VALUES)
def test_any_json_ends_in_valid_tasks_or_a_problem(value: Any) -> None:
    """An accepted task meets every assumption of the core."""
    for draft in _parse(json.dumps(value).encode()) or []:
        assert draft.command.strip()
        assert "\0" not in draft.command
        assert draft.timeout_s is None or 1 <= draft.timeout_s <= 86_400
        for path in (*draft.inputs, *draft.outputs):
            assert clean_path(path) == path


PARTS = st.sampled_from(["..", ".", "", "a", "b.txt", " ", "...", "\0", "~", "é", "-"])


@given(st.lists(PARTS, max_size=8).map("/".join))
def test_clean_path_stays_below_the_directory(path: str) -> None:
    """An accepted path is relative, normalised, and goes only down."""
    try:
        cleaned = clean_path(path)
    except ValueError:
        return

    parts = cleaned.split("/")
    assert not cleaned.startswith("/")
    assert not {"", ".", ".."} & set(parts)
    assert "\0" not in cleaned
    assert len(cleaned.encode()) <= PATH_BYTES_MAX


@pytest.mark.parametrize(
    ("given_path", "cleaned"),
    [("./a", "a"), ("a//b", "a/b"), ("a/./b/", "a/b"), ("...", "..."), ("~", "~")],
)
def test_equivalent_paths_are_normalised(given_path: str, cleaned: str) -> None:
    """So an output is found under its declared path."""
    assert clean_path(given_path) == cleaned


def test_a_surrogate_deep_in_a_batch_is_named() -> None:
    """The decoder cannot say where it is, but the parser can."""
    body = json.dumps([{"command": "a"}, {"command": "b", "inputs": ["x", "\udc80"]}])

    with pytest.raises(Problem) as caught:
        asyncio.run(parse_tasks(body.encode()))

    assert caught.value.field == "$[1].inputs[1]"


def test_a_missing_nested_field_is_named() -> None:
    """Like a field of the task itself."""
    body = json.dumps({"command": "a", "tree": {"node": "0"}})

    with pytest.raises(Problem) as caught:
        asyncio.run(parse_tasks(body.encode()))

    assert (caught.value.status, caught.value.field) == (400, "$.tree.sha256")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"cwd": "p"}, "same_folder"),
        ({"cwd": None}, "same_folder"),
        ({"workdir": "scratch"}, "same_folder"),
        ({"name": ""}, "same_folder.name"),
        ({"name": "a/b"}, "same_folder.name"),
        ({"name": ".."}, "same_folder.name"),
        ({"name": "a\0b"}, "same_folder.name"),
        ({"name": "x" * 129}, "same_folder.name"),
        ({"sha256": "0" * 63}, "same_folder.sha256"),
        ({"sha256": "A" * 64}, "same_folder.sha256"),
    ],
)
def test_a_folder_is_recognised_by_one_file_in_it(
    changed: dict[str, Any], field: str
) -> None:
    """Anything else that a node would open there is refused."""
    same = {"name": ".mark", "sha256": "0" * 64}
    body: dict[str, Any] = {"command": "true", "cwd": "/p", "same_folder": same}
    (draft,) = asyncio.run(parse_tasks(json.dumps(body).encode())).drafts
    assert draft.options is not None
    assert draft.options.same_folder == SameFolder(name=".mark", sha256="0" * 64)
    for name, value in changed.items():
        (same if name in ("name", "sha256") else body)[name] = value

    with pytest.raises(Problem) as caught:
        asyncio.run(parse_tasks(json.dumps(body).encode()))

    assert (caught.value.status, caught.value.field) == (400, f"$.{field}")


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_the_sum_of_all_paths_is_bounded(name: str) -> None:
    """Thousands of long ones would not fit into a frame to a worker."""
    paths = [f"{n:05}{'x' * 245}" for n in range(5_000)]

    with pytest.raises(Problem) as caught:
        asyncio.run(parse_tasks(json.dumps({"command": "true", name: paths}).encode()))

    assert (caught.value.status, caught.value.field) == (400, f"$.{name}")
    assert "1048576" in (caught.value.hint or "")


def test_the_largest_task_fits_into_a_frame() -> None:
    """So every accepted task can be sent to a worker."""
    paths = [f"{n:05}{'x' * 99}" for n in range(10_000)]
    task = {"command": "x" * 65_536, "inputs": paths, "outputs": paths}
    (draft,) = asyncio.run(parse_tasks(json.dumps(task).encode())).drafts
    spec = TaskSpec(
        id=TaskId("a"),
        command=draft.command,
        inputs=draft.inputs,
        outputs=draft.outputs,
    )

    assert len(WirePacker().pack(spec)) < 4 << 20
