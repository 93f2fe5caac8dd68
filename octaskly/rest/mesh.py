"""The JSON of answers about the mesh and its nodes as types, as `answers` has tasks.

`render_mesh` makes these values.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from octaskly.core.model.nodes import NodeState, Pressure, Role
from octaskly.rest.tasks import At


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
    short_of: Pressure | None
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
