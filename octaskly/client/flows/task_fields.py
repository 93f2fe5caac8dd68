"""What a task asks for, as keywords with types, and the draft that they make."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypedDict

import msgspec

from octaskly.client.errors import Invalid
from octaskly.rest.client_types import Draft, Task

COMMAND_BYTES_MAX: Final = 65_536
TASKS_MAX: Final = 10_000  #: what one request may hold
BODY_BYTES_MAX: Final = 32 << 20
STDIN_BYTES_MAX: Final = 1 << 20

Status = Literal["queued", "running", "completed", "failed", "cancelled"]
Durability = Literal["normal", "strict"]


class Limits(TypedDict, total=False):
    """What a task may take; one that wants more is ended."""

    memory_mb: int
    cpu_seconds: int
    file_mb: int
    processes: int


class Requires(TypedDict, total=False):
    """What the node of a task must have."""

    labels: Mapping[str, str]
    node: str  #: name or id
    os: str
    arch: str
    cpus: int
    memory_mb: int
    gpus: int


class TaskFields(TypedDict, total=False):
    """Everything that a task can ask for; the REST reference says what it means.

    `timeout` is how long the task may run. How long a client waits is `deadline_s`.
    """

    timeout: int
    inputs: Sequence[str]
    outputs: Sequence[str]
    files: Sequence[Mapping[str, str]]
    id: str
    name: str
    labels: Mapping[str, str]
    env: Mapping[str, str]
    cwd: str
    workdir: Literal["scratch"]
    stdin: str | bytes
    grace: int
    limits: Limits
    notify_url: str
    priority: int
    requires: Requires
    fail_fast: bool
    retries: int
    retry_on: Sequence[int | Literal["failure", "lost"]]
    after: Sequence[str | Task]
    on: Literal["success", "failure", "any"]


def make_draft(
    command: str, task_fields: TaskFields, array: Mapping[str, Any] | None = None
) -> Draft:
    """Return the task to submit.

    Raises:
        Invalid: a keyword that no task knows.
    """
    fields: dict[str, Any] = dict(task_fields)
    unknown = sorted(set(fields) - TaskFields.__optional_keys__)
    if unknown:
        known = ", ".join(sorted(TaskFields.__optional_keys__))
        raise invalid_value(
            "a task does not ask for that", f"one of {known}", unknown[0]
        )
    if (stdin := fields.pop("stdin", None)) is not None:
        fields["stdin_base64"] = _base64(stdin)
    if "after" in fields:
        fields["after"] = [ref_of(parent) for parent in fields["after"]]
    return Draft(command=command, array=dict(array) if array else None, **fields)


def ref_of(task: str | Task) -> str:
    """Return the id by which a task is asked for."""
    return task.id if isinstance(task, Task) else task


def encode_batch(drafts: Iterable[Draft]) -> bytes:
    """Return the body of one submission, as an array.

    Raises:
        Invalid: what it holds is too much, or no JSON can carry it; nothing was sent.
    """
    items: list[bytes] = []
    size = 0
    for item in map(encode_json, drafts):
        items.append(item)
        size += len(item) + 1
        if len(items) > TASKS_MAX or size > BODY_BYTES_MAX:
            raise invalid_value(
                "one submission takes"
                f" {TASKS_MAX} tasks in {BODY_BYTES_MAX >> 20} MiB at most",
                "client.map(command, items) takes any number; or submit in parts",
                "command",
            )
    return b"[%s]" % b",".join(items)


def encode_json(value: object) -> bytes:
    """Return a value as JSON.

    Raises:
        Invalid: it has a text that is no Unicode, or something of a foreign type.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        raise _surrogate_error(error) from error
    except TypeError as error:
        raise invalid_value(
            "a value that JSON cannot carry", str(error), "body"
        ) from error


def invalid_value(what: str, hint: str, field: str) -> Invalid:
    """Return the error of a value that would be refused, before it is sent."""
    return Invalid(what, status=400, hint=hint, field=field)


def _surrogate_error(error: UnicodeEncodeError) -> Invalid:
    hint = "stdin takes any bytes; commands, names and paths are text"
    return invalid_value(
        f"{error.object!a:.80} is no text: it has a lone surrogate", hint, "$"
    )


def _base64(stdin: str | bytes) -> str:
    try:
        data = stdin.encode() if isinstance(stdin, str) else bytes(stdin)
    except UnicodeEncodeError as error:
        raise _surrogate_error(error) from error
    return base64.b64encode(data).decode()
