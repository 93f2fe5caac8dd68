"""The types of the API's JSON: what they say of words, and what clients tolerate."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, get_args

import msgspec
import pytest

from octaskly.core.model.keyring_state import RotationPhase
from octaskly.core.model.nodes import NodeState, Pressure, Role
from octaskly.core.model.tasks import EndReason, TaskState
from octaskly.rest import access, base, client_types, mesh, tasks


def words_of(annotated: Any) -> list[str]:
    """Return the words that the OpenAPI document gives for a text."""
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
def test_words_of_the_api_are_those_of_the_core(
    annotated: Any, kind: type[StrEnum]
) -> None:
    """The types list them, as importing the core takes commands too long."""
    assert words_of(annotated) == [word.value for word in kind]


def test_client_reads_a_task_of_a_newer_node() -> None:
    """Fields, states and parts that it does not know change nothing."""
    body = b'{"id":"a","status":"frozen","ice":{"cm":2},"limits":{"ice_mb":1}}'

    task = msgspec.json.decode(body, type=client_types.Task)

    assert task.status == "frozen"
    assert task.limits == tasks.ResourceLimits()


def test_client_reads_a_task_of_an_older_node() -> None:
    """What it does not send is unknown."""
    body = b'{"id":"a","status":"running"}'

    task = msgspec.json.decode(body, type=client_types.Task)

    assert (task.stdout, task.encoding, task.labels) == (None, None, {})


def test_every_field_is_sent_but_what_is_unset() -> None:
    """Null is what is not known yet."""
    line = tasks.TaskLines(tasks=[], total=None)

    assert msgspec.json.decode(msgspec.json.encode(line)) == {
        "tasks": [],
        "total": None,
        "returned": 0,
        "limit": 0,
        "offset": 0,
    }
