"""Tasks, arrays, attempts and files as the API's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from octaskly.rest.base import At, Instant, NodeState, one_of

Status = Annotated[str, one_of("queued", "running", "completed", "failed", "cancelled")]
EndReason = Annotated[
    str,
    one_of(
        *("exit", "signal", "timeout", "lost", "inputs", "limit", "poison"),
        *("cancelled", "returned", "draining", "stale"),
    ),
]
AttemptStatus = Annotated[
    str, one_of("running", "completed", "failed", "cancelled", "released")
]
Encoding = Annotated[str, one_of("base64", "utf-8-replaced")]
ParentsEnd = Annotated[str, one_of("success", "failure", "any")]
RetryCause = int | Annotated[str, one_of("failure", "lost")]
Workdir = Annotated[str, one_of("scratch")]


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """A task that was accepted."""

    id: str
    command: str | None
    status: Status
    created_at: At | None
    replicas: int


class Repeated(Created, frozen=True, kw_only=True):
    """A task that repeats an ended one."""

    retry_of: str


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A task that is cancelled."""

    id: str
    status: Annotated[str, one_of("cancelled")]
    message: str


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """How many ended tasks were forgotten; null: that goes on."""

    forgotten: int | None


class NewIds(msgspec.Struct, frozen=True, kw_only=True):
    """Names for tasks that are to be submitted."""

    ids: list[str]


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """The members of an array: how many there are, and how many in each state."""

    range: str | None = None
    total: int = 0
    max_fails: int | None = None
    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class TaskLine(msgspec.Struct, frozen=True, kw_only=True):
    """A task in a list; null is what the node does not know yet."""

    id: str
    command: str | None = ""
    status: Status
    worker_id: str | None = None
    attempt: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: EndReason | None = None
    detail: str | None = None
    timeout: int | None = None
    created_at: At | None = None
    duration_ms: int | None = None
    queue_ms: int | None = None
    cpu_seconds: float | None = None
    memory_peak_mb: float | None = None
    started_at: At | None = None
    completed_at: At | None = None
    priority: int | None = None
    name: str | None = None
    labels: dict[str, str] = {}
    array: Members | None = None


class TaskLines(msgspec.Struct, frozen=True, kw_only=True):
    """A page of tasks, without their output.

    Where tasks are searched, `next` is the task behind which the search goes on, and
    `left` how many it has not looked at; without these, `total` is null.
    """

    tasks: Sequence[TaskLine]
    total: int | None
    returned: int = 0
    limit: int = 0
    offset: int = 0
    next: str | msgspec.UnsetType | None = msgspec.UNSET
    left: int | msgspec.UnsetType = msgspec.UNSET


class ArrayMember(TaskLine, frozen=True, kw_only=True):
    """A member of an array."""

    index: int
    item: str


class TaskArray(TaskLine, frozen=True, kw_only=True):
    """An array, with a part of its members that failed."""

    failed_members: list[ArrayMember] = []


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """A declared output; `bytes` is None where it was missing at the end."""

    path: str
    bytes: int | None = None


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """What the node of a task must have; null: anything."""

    labels: dict[str, str] = {}
    node: str | None = None
    os: str | None = None
    arch: str | None = None
    cpus: int | None = None
    memory_mb: int | None = None
    gpus: int | None = None


class ResourceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a task may take; null: as much as the node has."""

    memory_mb: int | None = None
    cpu_seconds: int | None = None
    file_mb: int | None = None
    processes: int | None = None


class FileGiven(msgspec.Struct, frozen=True, kw_only=True):
    """A file that an attempt finds in its folder."""

    path: str
    sha256: str
    node: str


class FileLeft(msgspec.Struct, frozen=True, kw_only=True):
    """A file at a node, for tasks to name."""

    sha256: str
    bytes: int
    node: str


class TaskDetail(TaskLine, frozen=True, kw_only=True):
    """All of one task."""

    sent_stdout: str | None = msgspec.field(default=None, name="stdout")
    sent_stderr: str | None = msgspec.field(default=None, name="stderr")
    sent_encoding: Encoding | msgspec.UnsetType = msgspec.field(
        default=msgspec.UNSET, name="encoding"
    )
    stdout_bytes: int | None = None
    stdout_truncated: bool | None = None
    stderr_bytes: int | None = None
    stderr_truncated: bool | None = None
    inputs: list[str] = []
    outputs: list[Output] = []
    after: list[str] = []
    on: ParentsEnd | None = None
    retry_of: str | None = None
    retries: int = 0
    retry_on: list[RetryCause] = []
    notify_url: str | None = None
    env: dict[str, str] = {}
    cwd: str | None = None
    stdin_bytes: int = 0
    workdir: Workdir | None = None
    files: list[FileGiven] = []
    grace: int | None = None
    requires: Requirements | None = None
    limits: ResourceLimits | None = None


class TaskEnd(TaskLine, frozen=True, kw_only=True):
    """The end of a task or of one attempt, as streams of its output say it."""

    stdout_bytes: int | None = None
    stdout_truncated: bool | None = None
    stderr_bytes: int | None = None
    stderr_truncated: bool | None = None


class MemberResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a member of an array ended and what it wrote, as a stream of results has it.

    `position` counts members from 0.
    """

    id: str
    status: Status
    worker_id: str | None
    attempt: int | None
    exit_code: int | None
    signal: int | None
    reason: EndReason | None
    detail: str | None
    duration_ms: int | None
    stdout: str | None
    stderr: str | None
    encoding: Encoding
    stdout_bytes: int | None
    stdout_truncated: bool | None
    stderr_bytes: int | None
    stderr_truncated: bool | None
    index: int
    position: int


class TaskChange(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to a task: neither its command nor its output.

    The message to a receiver says beside it when that was, not in `at`.
    """

    id: str
    status: Status
    at: At | msgspec.UnsetType | None = msgspec.UNSET
    worker_id: str | None
    attempt: int | None
    exit_code: int | None
    signal: int | None
    reason: EndReason | None
    duration_ms: int | None
    created_at: At | None
    started_at: At | None
    completed_at: At | None
    array: Members | None


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """The message to the receiver of a task's end."""

    type: str
    timestamp: At | None
    data: TaskChange


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a node does not run a task."""

    code: str
    message: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the way on one node."""

    name: str
    id: str = ""
    state: NodeState = ""
    reasons: list[Reason] = []


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task is where it is; `nodes` of one that waits.

    `placement` says why it was given to the node that has or had it.
    """

    id: str
    status: Status
    summary: str
    placement: str | None = None
    nodes: list[Verdict] = []


class AttemptLine(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a task; `released` ones do not count, as another one may follow."""

    attempt: int = 0
    worker_id: str = ""
    status: AttemptStatus = ""
    reason: EndReason | None = None
    detail: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    started_at: Instant | None = None
    completed_at: Instant | None = None
    duration_ms: int | None = None
    cpu_seconds: float | None = None
    memory_peak_mb: float | None = None


class Attempts(msgspec.Struct, frozen=True, kw_only=True):
    """The attempts of one task, in their order."""

    id: str
    attempts: list[AttemptLine]


class Run(AttemptLine, frozen=True, kw_only=True):
    """An attempt with the task that it is of."""

    id: str
    name: str | None = None
    command: str = ""
    assigned_at: Instant | None = None


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """What runs, and what ended of late."""

    running: list[Run]
    ended: list[Run] = []
    truncated: bool = False
    now: Instant
