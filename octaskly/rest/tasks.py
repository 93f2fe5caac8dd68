"""The JSON of answers about tasks as types: what the OpenAPI document says of them.

`render` and its neighbours make these values, and tests check each answer against the
document. A field without `NotRequired` is always there; what is not known yet is null.
What one module of routes alone answers with is described there.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, NotRequired, TypedDict

import msgspec

from octaskly.core.model.nodes import NodeState
from octaskly.core.model.tasks import EndReason, TaskState

SHA256: Final = re.compile(r"[0-9a-f]{64}")


class TaskFileJson(TypedDict):
    """A file that an attempt finds in its folder."""

    path: str
    sha256: str
    node: str


class UploadedFileJson(TypedDict):
    """A file at a node, for tasks to name."""

    sha256: str
    bytes: int
    node: str


At = Annotated[
    str,
    msgspec.Meta(
        description="UTC, in whole seconds",
        extra_json_schema={"format": "date-time"},
    ),
]


class Problem(TypedDict):
    """Every answer that is an error."""

    error: str
    status: int
    timestamp: At
    hint: NotRequired[str]
    field: NotRequired[str]


class Created(TypedDict):
    """A task that was accepted."""

    id: str
    command: str | None
    status: TaskState
    created_at: At | None
    replicas: int


class Repeated(Created):
    """A task that repeats an ended one."""

    retry_of: str


class Array(TypedDict):
    """The members of an array, counted by state."""

    range: str | None
    total: int
    max_fails: int | None
    queued: int
    running: int
    completed: int
    failed: int
    cancelled: int


class TaskLine(TypedDict):
    """A task in a list."""

    id: str
    command: str | None
    status: TaskState
    worker_id: str | None
    attempt: int | None
    exit_code: int | None
    signal: int | None
    reason: EndReason | None
    detail: str | None
    timeout: int | None
    queue_ms: int | None
    duration_ms: int | None
    cpu_seconds: float | None
    memory_peak_mb: float | None
    created_at: At | None
    started_at: At | None
    completed_at: At | None
    priority: int | None
    name: str | None
    labels: dict[str, str]
    array: Array | None


class TaskPage(TypedDict):
    """A part of all tasks."""

    tasks: list[TaskLine]
    total: int | None
    returned: int
    limit: int
    offset: int
    next: NotRequired[str | None]
    left: NotRequired[int]


class Output(TypedDict):
    """A declared output."""

    path: str
    bytes: int | None


class Requires(TypedDict):
    """What a node must have."""

    labels: dict[str, str]
    node: str | None
    os: str | None
    arch: str | None
    cpus: int | None
    memory_mb: int | None
    gpus: int | None


class Limits(TypedDict):
    """What a task may take."""

    memory_mb: int | None
    cpu_seconds: int | None
    file_mb: int | None
    processes: int | None


class Task(TaskLine):
    """All of one task."""

    stdout: str | None
    stderr: str | None
    encoding: NotRequired[Literal["base64", "utf-8-replaced"]]
    stdout_bytes: int | None
    stdout_truncated: bool | None
    stderr_bytes: int | None
    stderr_truncated: bool | None
    inputs: list[str]
    outputs: list[Output]
    files: list[TaskFileJson]
    after: list[str]
    on: Literal["success", "failure", "any"] | None
    retry_of: str | None
    retries: int
    retry_on: list[int | Literal["failure", "lost"]]
    notify_url: str | None
    env: dict[str, str]
    cwd: str | None
    stdin_bytes: int
    workdir: Literal["scratch"] | None
    grace: int | None
    requires: Requires | None
    limits: Limits | None


class Member(TaskLine):
    """A member of an array."""

    index: int
    item: str


class TaskArray(TaskLine):
    """An array, with a part of its members that failed."""

    failed_members: list[Member]


class Why(TypedDict):
    """What keeps a task from a node."""

    code: str
    message: str


class Verdict(TypedDict):
    """All that keeps a task from one node."""

    name: str
    id: str
    state: NodeState
    reasons: list[Why]


class Explanation(TypedDict):
    """Why a task is where it is."""

    id: str
    status: TaskState
    summary: str
    placement: str | None
    nodes: list[Verdict]


class Cancelled(TypedDict):
    """A task that is cancelled."""

    id: str
    status: Literal["cancelled"]
    message: str


class Forgotten(TypedDict):
    """What became of a wish to forget ended tasks."""

    forgotten: int | None
