"""The one table of metrics: what `/metrics` reports, and what the reference says.

Names and units keep to the conventions of Prometheus. No label has a value that users
or strangers choose: neither tasks nor names nor addresses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from octaskly.ports.histogram import Histogram

MetricKind = Literal["counter", "gauge", "histogram"]
ReportedBy = Literal["every node", "the dispatcher", "followers"]

Sample = float | Histogram
Values = Mapping[str, Sample | Sequence[tuple[tuple[str, ...], Sample]]]
"""By the name of a metric: what it is, or what it is for each value of its labels."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    kind: MetricKind
    help_text: str
    labels: tuple[str, ...] = ()
    reported_by: ReportedBy = "every node"

    @property
    def group(self) -> str:
        """The part of a node that it is about."""
        return self.name.removeprefix("octaskly_").partition("_")[0]


_MESH: Final = (
    Metric(
        "octaskly_build_info",
        "gauge",
        "always 1; the label tells the version",
        ("version",),
    ),
    Metric("octaskly_mesh_role", "gauge", "1 for the role of the node", ("role",)),
    Metric("octaskly_mesh_term", "gauge", "term of the epoch in force"),
    Metric(
        "octaskly_mesh_dispatcher_known",
        "gauge",
        "1 while the node knows a dispatcher that accepts tasks, else 0",
    ),
    Metric("octaskly_mesh_peers", "gauge", "other nodes in the mesh that are not lost"),
    Metric("octaskly_mesh_links", "gauge", "connections to peers"),
    Metric(
        "octaskly_mesh_heartbeat_age_seconds",
        "gauge",
        "time since the dispatcher was last heard",
        reported_by="followers",
    ),
    Metric(
        "octaskly_mesh_failovers_total",
        "counter",
        "reigns that this node began in place of a dispatcher that was lost",
    ),
    Metric(
        "octaskly_mesh_refused_messages_total",
        "counter",
        "messages of peers that could not be, by the code of the reason",
        ("reason",),
    ),
    Metric(
        "octaskly_mesh_nodes",
        "gauge",
        "nodes by their state",
        ("state",),
        "the dispatcher",
    ),
    Metric(
        "octaskly_mesh_epoch_start_time_seconds",
        "gauge",
        "Unix time at which this dispatcher began to reign",
        reported_by="the dispatcher",
    ),
    Metric(
        "octaskly_mesh_failover_seconds",
        "gauge",
        "from the last sign of the dispatcher before to this reign, if it was lost",
        reported_by="the dispatcher",
    ),
)

_QUEUE: Final = (
    Metric(
        "octaskly_queue_tasks",
        "gauge",
        "tasks that the mesh keeps, by state; those that ended until they are "
        "forgotten",
        ("state",),
        "the dispatcher",
    ),
    Metric(
        "octaskly_queue_oldest_age_seconds",
        "gauge",
        "age of the oldest task that waits for a node, 0 if none does; not of those "
        "that come after others",
        reported_by="the dispatcher",
    ),
)

_TASK: Final = (
    Metric(
        "octaskly_task_ended_total",
        "counter",
        "tasks that ended while this node was dispatcher, by state",
        ("state",),
        "the dispatcher",
    ),
    Metric(
        "octaskly_task_attempts_ended_total",
        "counter",
        "attempts that ended on this node; one that was released may be followed by "
        "another",
        ("outcome", "reason"),
    ),
    Metric(
        "octaskly_task_run_seconds",
        "histogram",
        "from the start to the end of attempts on this node",
    ),
    Metric(
        "octaskly_task_queue_seconds",
        "histogram",
        "from the acceptance of a task to the start of its first attempt, of those "
        "that ended on this node; by the clocks of two machines",
    ),
)

_RUNNER: Final = (
    Metric("octaskly_runner_slots", "gauge", "attempts that may run at the same time"),
    Metric("octaskly_runner_running", "gauge", "attempts in launchers"),
    Metric("octaskly_runner_waiting", "gauge", "attempts that wait for a slot here"),
    Metric("octaskly_runner_launchers", "gauge", "launcher processes"),
    Metric(
        "octaskly_runner_launcher_crashes_total",
        "counter",
        "launchers that ended though nobody told them to",
    ),
    Metric(
        "octaskly_runner_kills_total",
        "counter",
        "attempts that were made to end: cancelled, late, or beyond a limit",
        ("reason",),
    ),
)

_NODE: Final = (
    Metric("octaskly_node_cpu_usage_ratio", "gauge", "use of the CPUs, from 0 to 1"),
    Metric("octaskly_node_memory_bytes", "gauge", "memory of the machine"),
    Metric("octaskly_node_memory_used_bytes", "gauge", "memory that is in use"),
    Metric(
        "octaskly_node_memory_stalled_ratio",
        "gauge",
        "part of the last 10 s in which everything waited for memory",
    ),
)

_STORE: Final = (
    Metric(
        "octaskly_store_commit_seconds",
        "histogram",
        "what commits took, the disk included",
    ),
    Metric(
        "octaskly_store_committed_entries_total",
        "counter",
        "entries of the log that were written",
    ),
    Metric("octaskly_store_backlog_entries", "gauge", "entries that wait for a commit"),
    Metric("octaskly_store_log_entries", "gauge", "entries that the log holds"),
    Metric("octaskly_store_bytes", "gauge", "size of the database and its journal"),
    Metric(
        "octaskly_store_disk_free_bytes", "gauge", "free space where the database is"
    ),
    Metric(
        "octaskly_store_writable",
        "gauge",
        "1 while the log takes new work, else 0: the disk is full, or fails",
    ),
    Metric(
        "octaskly_store_replicas",
        "gauge",
        "disks that hold a task which is accepted now",
        reported_by="the dispatcher",
    ),
    Metric(
        "octaskly_store_standby_lag_entries",
        "gauge",
        "entries that the standby which is furthest behind has not acknowledged",
        reported_by="the dispatcher",
    ),
)

_API: Final = (
    Metric(
        "octaskly_api_requests_total",
        "counter",
        "requests that were answered, by route and class of the status; no route: "
        "nothing is there",
        ("method", "route", "status"),
    ),
    Metric(
        "octaskly_api_request_seconds",
        "histogram",
        "what answers took, without streams; those that clients asked to wait for "
        "included",
        ("method", "route"),
    ),
    Metric("octaskly_api_connections", "gauge", "connections of clients and nodes"),
    Metric("octaskly_api_streams", "gauge", "answers under way that are streams"),
    Metric(
        "octaskly_api_rate_limited_total",
        "counter",
        "requests refused because their client made too many",
    ),
)

METRICS: Final = (*_MESH, *_QUEUE, *_TASK, *_RUNNER, *_NODE, *_STORE, *_API)

GROUPS: Final[Mapping[str, str]] = {
    "build": "This program",
    "mesh": "The mesh",
    "queue": "The queue",
    "task": "Tasks",
    "runner": "Running them",
    "node": "The machine",
    "store": "The log on disk",
    "api": "The API",
}
"""The parts of a node, as people call them."""
