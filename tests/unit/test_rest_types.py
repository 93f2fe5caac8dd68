"""REST types: their enumerated words, and the tolerance of clients."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, get_args

import msgspec
import pytest

from octaskly.core.model.keyring_state import RotationPhase
from octaskly.core.model.nodes import NodeState, Pressure, Role
from octaskly.core.model.tasks import EndReason, TaskState
from octaskly.rest import access, base, client_types, mesh, tasks


def enumerated_words(annotated: Any) -> list[str]:
    """Return the words that the OpenAPI document lists for a field."""
    (meta,) = (part for part in get_args(annotated) if isinstance(part, msgspec.Meta))
    words: list[str] = (meta.extra_json_schema or {})["enum"]
    return words


@pytest.mark.parametrize(
    ("annotated", "kind"),
    [
        (tasks.Status, TaskState),
        (tasks.EndReason, EndReason),
        (base.NodeState, NodeState),
        (mesh.Role, Role),
        (mesh.Shortage, Pressure),
        (access.RotationPhase, RotationPhase),
    ],
)
def test_the_words_of_the_api_are_those_of_the_core(
    annotated: Any, kind: type[StrEnum]
) -> None:
    """The types repeat them, because commands cannot afford to import the core."""
    assert enumerated_words(annotated) == [word.value for word in kind]


def test_a_client_reads_a_task_of_a_newer_node() -> None:
    """Unknown fields, states and parts change nothing."""
    body = b'{"id":"a","status":"frozen","ice":{"cm":2},"limits":{"ice_mb":1}}'

    task = msgspec.json.decode(body, type=client_types.Task)

    assert task.status == "frozen"
    assert task.limits == tasks.ResourceLimits()


def test_a_client_reads_a_task_of_an_older_node() -> None:
    """Missing fields are unknown."""
    body = b'{"id":"a","status":"running"}'

    task = msgspec.json.decode(body, type=client_types.Task)

    assert (task.stdout, task.encoding, task.labels) == (None, None, {})


def test_a_task_is_printed_as_one_short_line() -> None:
    """A program that prints a task sees what it asked for and what came of it."""
    body = (
        b'{"id":"a","command":"exit 3","status":"failed","worker_id":"pi4",'
        b'"exit_code":3,"stdout":"MTIz","labels":{"b":"c"}}'
    )

    task = msgspec.json.decode(body, type=client_types.Task)

    assert repr(task) == (
        "Task(id='a', command='exit 3', status='failed', worker_id='pi4', exit_code=3)"
    )


def test_unset_fields_are_not_sent() -> None:
    """Null means that the value is not known yet."""
    line = tasks.TaskLines(tasks=[], total=None)

    assert msgspec.json.decode(msgspec.json.encode(line)) == {
        "tasks": [],
        "total": None,
        "returned": 0,
        "limit": 0,
        "offset": 0,
    }
