"""What the API sends and takes, as values with types.

Unknown fields are ignored, so that an older command works with a newer node.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

FINAL = frozenset({"completed", "failed", "cancelled"})


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """A declared output; `bytes` is None where it was missing at the end."""

    path: str
    bytes: int | None = None


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """The members of an array: how many there are, and how many in each state."""

    total: int = 0
    range: str | None = None
    max_fails: int | None = None
    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class NewIds(msgspec.Struct, frozen=True):
    """Names for tasks that are to be submitted."""

    ids: list[str]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task as the API shows it; None where the node does not know yet.

    `stdout` and `stderr` are its output as text, the first MiB of each, with
    replacement characters for what is no UTF-8; `output_bytes` gives the bytes.
    """

    id: str
    status: str
    command: str = ""
    timeout: int | None = None
    inputs: list[str] = []
    outputs: list[str | Output] = []
    worker_id: str | None = None
    exit_code: int | None = None
    signal: int | str | None = None
    reason: str | None = None
    detail: str | None = None
    sent_stdout: str | None = msgspec.field(default=None, name="stdout")
    sent_stderr: str | None = msgspec.field(default=None, name="stderr")
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    stdout_truncated: bool | None = None
    stderr_truncated: bool | None = None
    encoding: str | None = None
    attempt: int | None = None
    created_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    duration_ms: int | None = None
    queue_ms: int | None = None
    array: Members | None = None
    index: int | None = None
    item: str | None = None
    replicas: int | None = None
    priority: int | None = None
    requires: dict[str, Any] | None = None
    retries: int | None = None
    retry_on: list[int | str] | None = None
    after: list[str] = []
    on: str | None = None
    retry_of: str | None = None
    cpu_seconds: float | None = None
    memory_peak_mb: float | None = None
    name: str | None = None
    labels: dict[str, str] = {}
    env: dict[str, str] = {}
    cwd: str | None = None
    workdir: str | None = None
    stdin_bytes: int | None = None
    grace: int | None = None
    limits: dict[str, int | None] | None = None
    notify_url: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether its state will not change any more (but for a healed split)."""
        return self.status in FINAL

    @property
    def stdout(self) -> str | None:
        """What it wrote to stdout, as text; None before the end."""
        return self._text(self.sent_stdout)

    @property
    def stderr(self) -> str | None:
        """What it wrote to stderr, as text; None before the end."""
        return self._text(self.sent_stderr)

    def output_bytes(self, stream: str) -> bytes:
        """Return the kept bytes of `stdout` or `stderr`."""
        text = (self.sent_stdout if stream == "stdout" else self.sent_stderr) or ""
        if self.encoding == "base64":
            return base64.b64decode(text)
        return text.encode("utf-8", "surrogatepass")

    def _text(self, sent: str | None) -> str | None:
        if sent is None or self.encoding != "base64":
            return sent
        return base64.b64decode(sent).decode("utf-8", "replace")


class TaskPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of tasks, without their output."""

    tasks: list[Task]
    total: int | None  #: None: a search has not looked at all
    returned: int = 0
    limit: int | None = None
    offset: int | None = None
    next: str | None = None  #: the task behind which a search goes on
    left: int = 0  #: how many tasks a search has not looked at


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy a machine was when its agent last looked."""

    cpu_percent: float | None = None
    load1: float | None = None
    memory_used_mb: int | None = None
    process_mb: int | None = None
    stalled_percent: float | None = None


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node as `GET /api/v1/nodes` shows it; `load` as last sampled."""

    name: str
    id: str = ""
    role: str = ""
    state: str = ""
    short_of: str | None = None
    addresses: list[Any] = []
    slots: int | None = None
    running: int | None = None
    load: Load | None = None
    lan_port: int | None = None
    memory_mb: int | None = None
    labels: dict[str, str] = {}
    os: str | None = None
    arch: str | None = None
    cpus: int | None = None
    gpus: list[str] = []
    version: str | None = None
    last_seen: str | None = None
    joined_at: str | None = None


class Standby(msgspec.Struct, frozen=True, kw_only=True):
    """A node that keeps copies; `lag` counts the entries that it lacks."""

    name: str
    id: str = ""
    state: str = ""
    lag: int = 0


class Failover(msgspec.Struct, frozen=True, kw_only=True):
    """When a node took the place of a dispatcher, and after how long without one."""

    at: str | None = None
    duration_ms: int | None = None
    reason: str = ""


class MeshState(msgspec.Struct, frozen=True, kw_only=True):
    """Who reigns, and how safe is what is accepted now."""

    term: int | None = None
    replicas: int | None = None
    standbys: list[Standby] = []
    last_failover: Failover | None = None


class NodePage(MeshState, frozen=True, kw_only=True):
    """All nodes of the mesh."""

    nodes: list[NodeInfo]
    total: int = 0


class Checkup(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent is set up, for `octaskly doctor`."""

    name: str
    node_id: str
    pid: int = 0
    version: str = ""
    api_url: str = ""
    state_dir: str
    secret_file: str
    interfaces: list[str] = []
    seeds: list[tuple[str, int]] = []
    moved_ports: list[dict[str, Any]] = []
    descriptors_max: int
    was_renewed: bool = False
    mesh: str | None = None
    peer_port: int = 0


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a node opens connections to another: reached, refused or silent."""

    peer_port: str
    lan_port: str


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a node does not run a task."""

    code: str
    message: str


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes that run tasks."""

    total: int = 0
    active: int = 0
    idle: int = 0


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks by state, members of arrays each for itself."""

    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class System(msgspec.Struct, frozen=True, kw_only=True):
    """The agent of the dispatcher, and the CPU of its machine."""

    uptime_seconds: int = 0
    memory_usage_mb: int = 0
    cpu_usage_percent: float = 0.0


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """The log of the dispatcher."""

    total_tasks: int = 0
    disk_size_mb: int = 0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The whole mesh in numbers."""

    workers: Workers = Workers()
    tasks: Counts = Counts()
    system: System = System()
    database: Database = Database()
    mesh: MeshState = MeshState()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the way on one node."""

    name: str
    id: str = ""
    state: str = ""
    reasons: list[Reason] = []


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task is where it is; `nodes` of one that waits."""

    id: str
    status: str
    summary: str
    placement: str | None = None  #: why it was given to the node that has or had it
    nodes: list[Verdict] = []


class Draft(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task to submit; what is left out takes the node's default."""

    command: str
    timeout: int | None = None
    inputs: list[str] = []
    outputs: list[str] = []
    id: str | None = None
    name: str | None = None
    labels: dict[str, str] = {}
    env: dict[str, str] = {}
    cwd: str | None = None
    workdir: str | None = None
    stdin_base64: str | None = None
    grace: int | None = None
    limits: dict[str, int] = {}
    notify_url: str | None = None
    priority: int = 0
    requires: dict[str, Any] = {}
    fail_fast: bool = False
    array: dict[str, Any] | None = None
    retries: int | None = None
    retry_on: list[int | str] | None = None
    after: list[str] = []
    on: str | None = None
    files: list[dict[str, str]] = []


class Membership(msgspec.Struct, frozen=True):
    """What a node belongs to, and what it would leave behind."""

    name: str
    node_id: str
    node_key: str  #: hexadecimal
    mesh: str | None
    interfaces: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    tasks: int = 0


class Invite(msgspec.Struct, frozen=True):
    """One machine may come in, once, soon."""

    code: str
    expires_at: str
    places: tuple[str, ...] = ()


class Request(msgspec.Struct, frozen=True):
    """A machine that waits to be let in; nothing of it is proven but the words."""

    name: str
    node_id: str
    fingerprint: str
    address: str


class RequestPage(msgspec.Struct, frozen=True):
    """All machines that wait."""

    requests: list[Request] = []
