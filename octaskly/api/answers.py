"""The JSON of answers as types: what the OpenAPI document says of them.

`render` and its neighbours make these values, and tests check each answer against the
document. A field without `NotRequired` is always there; what is not known yet is null.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec

from octaskly.api.given import FileGiven
from octaskly.core.model import NodeState, Reason, Role, Strain, TaskState

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
    reason: Reason | None
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
    files: list[FileGiven]
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


class Epoch(TypedDict):
    """The reign of a dispatcher."""

    term: int
    node: str


class Standby(TypedDict):
    """A node that keeps copies."""

    name: str
    id: str
    state: Literal["level", "joining"]
    lag: int


class Failover(TypedDict):
    """How a dispatcher took the place of another one."""

    at: At | None
    duration_ms: int
    reason: str


class Safety(TypedDict):
    """Who reigns, and who keeps copies."""

    term: int
    epoch: Epoch
    replicas: int
    standbys: list[Standby]
    last_failover: Failover | None


class Mesh(Safety):
    """The same, with the messages of peers that were refused, by reason."""

    reign_seconds: int
    refused: dict[str, int]


class Load(TypedDict):
    """How busy a machine is."""

    cpu_percent: float
    load1: float
    memory_used_mb: int
    process_mb: int
    stalled_percent: float


class Node(TypedDict):
    """A member of the mesh."""

    name: str
    id: str
    role: Role
    state: NodeState
    short_of: Strain | None
    addresses: list[str]
    lan_port: int
    slots: int
    running: int
    load: Load
    memory_mb: int
    labels: dict[str, str]
    os: str | None
    arch: str | None
    cpus: int | None
    gpus: list[str]
    version: str
    last_seen: At | None
    joined_at: At | None


class Nodes(Safety):
    """All members, in the order in which they would succeed the dispatcher."""

    nodes: list[Node]
    total: int


class Workers(TypedDict):
    """Nodes that run tasks."""

    total: int
    active: int
    idle: int


class Counts(TypedDict):
    """Tasks by state."""

    queued: int
    running: int
    completed: int
    failed: int
    cancelled: int


class System(TypedDict):
    """The dispatcher's process and machine."""

    uptime_seconds: int
    memory_usage_mb: int
    cpu_usage_percent: float


class Database(TypedDict):
    """The dispatcher's log."""

    total_tasks: int
    disk_size_mb: int


class Stats(TypedDict):
    """Counts of the mesh."""

    workers: Workers
    tasks: Counts
    system: System
    database: Database
    mesh: Mesh


class Healthy(TypedDict):
    """A node that can serve."""

    status: Literal["healthy"]
    version: str
    uptime_seconds: int


class Unhealthy(TypedDict):
    """A node that cannot serve."""

    status: Literal["unhealthy"]
    version: str
    uptime_seconds: int
    message: str
    error: str
    timestamp: At


class Forgotten(TypedDict):
    """What became of a wish to forget ended tasks."""

    forgotten: int | None


class Membership(TypedDict):
    """Where a node stands: what it belongs to, and what it would leave behind."""

    name: str
    node_id: str
    node_key: str
    mesh: str | None
    interfaces: list[str]
    members: list[str]
    tasks: int


class Invite(TypedDict):
    """One machine may come in, once, soon."""

    code: str
    expires_at: At
    places: list[str]


class Entering(TypedDict):
    """A node that begins anew in another mesh, or ends in none."""

    name: str
    node_id: str


class Request(TypedDict):
    """A machine that waits to be let in; nothing of it is proven but the words."""

    name: str
    node_id: str
    fingerprint: str
    address: str


class Requests(TypedDict):
    """All machines that wait to be let in."""

    requests: list[Request]
    total: int
