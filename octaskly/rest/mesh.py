"""JSON types for the mesh, its nodes, statistics, health and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from octaskly.rest.base import At, NodeState, one_of

Role = Annotated[str, one_of("dispatcher", "standby", "worker")]
Shortage = Annotated[str, one_of("disk", "memory", "launchers")]
Reached = Annotated[str, one_of("reached", "refused", "silent")]


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """The epoch of a dispatcher: its term and its node id."""

    term: int
    node: str


class Standby(msgspec.Struct, frozen=True, kw_only=True):
    """A node with a copy of the log; `lag` counts the entries that it lacks."""

    name: str
    id: str = ""
    state: Annotated[str, one_of("level", "joining")] = ""
    lag: int = 0


class Failover(msgspec.Struct, frozen=True, kw_only=True):
    """The last failover: its time, and how long the mesh had no dispatcher."""

    at: At | None = None
    duration_ms: int = 0
    reason: str = ""


class MeshState(msgspec.Struct, frozen=True, kw_only=True):
    """The dispatcher's epoch, the standbys, and the replica count of a new task."""

    term: int = 0
    epoch: Epoch | None = None
    replicas: int = 0
    standbys: list[Standby] = []
    last_failover: Failover | None = None


class MeshDetail(MeshState, frozen=True, kw_only=True):
    """The state of the mesh, with counts of refused peer messages by reason."""

    reign_seconds: int = 0
    refused: dict[str, int] = {}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Load of a machine at the agent's last sample."""

    cpu_percent: float = 0.0
    load1: float = 0.0
    memory_used_mb: int = 0
    process_mb: int = 0
    stalled_percent: float = 0.0
    disk_free_mb: int | None = None


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node as `GET /api/v1/nodes` shows it; `load` is the last sample."""

    name: str
    id: str = ""
    role: Role = ""
    state: NodeState = ""
    short_of: Shortage | None = None
    addresses: list[str] = []
    lan_port: int = 0
    slots: int = 0
    running: int = 0
    load: Load | None = None
    memory_mb: int = 0
    labels: dict[str, str] = {}
    os: str | None = None
    arch: str | None = None
    cpus: int | None = None
    gpus: list[str] = []
    pythons: list[str] = []  #: minor versions of Python that run calls there
    version: str = ""
    last_seen: At | None = None
    joined_at: At | None = None
    visitor: bool = False  #: it runs tasks, and can give no commands
    leaves_at: At | None = None
    invited_by: str | None = None  #: who invited the visitor


class NodePage(MeshState, frozen=True, kw_only=True):
    """All nodes of the mesh, in order of succession."""

    nodes: list[NodeInfo]
    total: int = 0


class EndedVisit(msgspec.Struct, frozen=True, kw_only=True):
    """A visitor that no member admits any more."""

    id: str
    name: str


class NodeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a node in the event stream."""

    name: str
    id: str
    role: Role
    state: str
    slots: int
    version: str


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of the nodes that run tasks."""

    total: int = 0
    active: int = 0
    idle: int = 0


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of tasks by state; each member of an array counts as one task."""

    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class LastHour(msgspec.Struct, frozen=True, kw_only=True):
    """Count of the tasks that failed in the last hour; it stops at 10 000."""

    failed: int = 0


class System(msgspec.Struct, frozen=True, kw_only=True):
    """Uptime and memory of the dispatcher's agent, and CPU use of its machine."""

    uptime_seconds: int = 0
    memory_usage_mb: int = 0
    cpu_usage_percent: float = 0.0


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """Size of the dispatcher's log."""

    total_tasks: int = 0
    disk_size_mb: int = 0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of the whole mesh."""

    workers: Workers = Workers()
    tasks: Counts = Counts()
    last_hour: LastHour = LastHour()
    system: System = System()
    database: Database = Database()
    mesh: MeshDetail = MeshDetail()


class StoredItem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that takes up room on a node.

    `sha256` is that of a file, or of the manifest of a tree. `task` is the id of the
    task that left these outputs. It may be deleted after `kept_until`.
    """

    kind: Annotated[str, one_of("tree", "file", "outputs")]
    bytes: int
    files: int | None = None
    sha256: str | None = None
    task: str | None = None
    kept_until: At


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """What takes up space on a node: totals, and a page of items, largest first.

    `files_quota_bytes` is the limit of `files_bytes`, and `output_quota_bytes` that of
    `logs_bytes`, and of the outputs of one task. `disk_bytes` is the size of the disk,
    and `uptime_seconds` the time since the agent started.
    """

    name: str
    files_bytes: int
    files_quota_bytes: int
    outputs_bytes: int
    logs_bytes: int
    output_quota_bytes: int
    free_bytes: int
    disk_bytes: int = 0
    uptime_seconds: int = 0
    items: Sequence[StoredItem]
    total: int
    returned: int = 0
    limit: int = 0
    offset: int = 0


class HistoryPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Task counts at a time, and tasks ended per second since the previous point."""

    at: At
    queued: int
    running: int
    ended_per_second: float


class VisitorDemand(msgspec.Struct, frozen=True, kw_only=True):
    """Number of queued tasks, and members of arrays, that a new visitor could run.

    It is a lower bound if `is_exact` is false, because the queue is long.
    """

    waiting: int
    is_exact: bool = True


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Queue history of the dispatcher's epoch: at most ten minutes, oldest first."""

    points: list[HistoryPoint]


class Healthy(msgspec.Struct, frozen=True, kw_only=True):
    """A node that can serve; `warnings` are there only if something is wrong."""

    status: Annotated[str, one_of("healthy")] = "healthy"
    version: str
    build: str = ""  #: the same for the same source files
    uptime_seconds: int
    warnings: list[str] | msgspec.UnsetType = msgspec.UNSET


class Unhealthy(msgspec.Struct, frozen=True, kw_only=True):
    """A node that cannot serve."""

    status: Annotated[str, one_of("unhealthy")] = "unhealthy"
    version: str
    uptime_seconds: int
    message: str
    error: str
    timestamp: At


class MovedPort(msgspec.Struct, frozen=True, kw_only=True):
    """A default port that was in use when the agent started."""

    port: Annotated[str, one_of("api", "peer", "lan")]
    wanted: int
    used: int


class TakenPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port that another user held when the agent started, and who that is."""

    port: int
    holder: str


class FileStoreUsage(msgspec.Struct, frozen=True, kw_only=True):
    """How full a node's store of files is."""

    store: Annotated[str, one_of("files", "outputs")]
    used_bytes: int
    quota_bytes: int


class Checkup(msgspec.Struct, frozen=True, kw_only=True):
    """Setup of an agent; only a member of a mesh has the last two fields.

    `api_url` is null if another user holds the port, which `api_port_taken` describes.
    `streams` is the number of streams that the log names. `stores` has the files that
    tasks need, and the outputs of tasks.
    """

    name: str
    node_id: str
    pid: int = 0
    version: str = ""
    build: str = ""
    api_url: str | None = ""
    api_port_taken: TakenPort | None = None
    socket: str = ""
    state_dir: str
    secret_file: str
    interfaces: list[str] = []
    seeds: list[tuple[str, int]] = []
    moved_ports: list[MovedPort] = []
    descriptors_max: int
    streams: int = 0
    stores: list[FileStoreUsage] = []
    was_renewed: bool = False
    task_user: str = ""  #: that tasks run as
    mesh: str | None = None
    lan_url: str | msgspec.UnsetType = msgspec.UNSET
    peer_port: int | msgspec.UnsetType = msgspec.UNSET


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """Results of TCP connections from one node to another."""

    node: str = ""
    peer_port: Reached
    lan_port: Reached


class ScrapeTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One node in the format of Prometheus HTTP service discovery."""

    targets: list[str]
    labels: dict[str, str]
