"""Table of all metrics, for `/metrics` and for the reference page.

Names and units follow the conventions of Prometheus. Labels never contain values that
users or strangers choose, such as tasks, names or addresses.
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
"""Metric name to its value, or to one value per combination of label values."""


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
        """The key in `GROUPS` of the component that the metric describes."""
        return self.name.removeprefix("octaskly_").partition("_")[0]


_MESH: Final = (
    Metric(
        "octaskly_build_info",
        "gauge",
        "always 1; the label is the version",
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
        "time since the last frame from the dispatcher",
        reported_by="followers",
    ),
    Metric(
        "octaskly_mesh_failovers_total",
        "counter",
        "times that this node replaced another dispatcher, which was lost or has "
        "handed over",
    ),
    Metric(
        "octaskly_mesh_refused_messages_total",
        "counter",
        "messages of peers that were refused as impossible, by code",
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
        "Unix time at which this dispatcher's epoch started",
        reported_by="the dispatcher",
    ),
    Metric(
        "octaskly_mesh_failover_seconds",
        "gauge",
        "time from the last frame of the lost dispatcher to the start of this epoch",
        reported_by="the dispatcher",
    ),
)

_QUEUE: Final = (
    Metric(
        "octaskly_queue_tasks",
        "gauge",
        "tasks by state; ended ones count until they are forgotten",
        ("state",),
        "the dispatcher",
    ),
    Metric(
        "octaskly_queue_oldest_age_seconds",
        "gauge",
        "age of the oldest task that waits for a node, 0 if none does; tasks that "
        "wait for others do not count",
        reported_by="the dispatcher",
    ),
)

_TASK: Final = (
    Metric(
        "octaskly_task_ended_total",
        "counter",
        "tasks that ended while this node was dispatcher, by state; without members of"
        " arrays that never started",
        ("state",),
        "the dispatcher",
    ),
    Metric(
        "octaskly_task_attempts_ended_total",
        "counter",
        "attempts that ended on this node; another may follow a released one",
        ("outcome", "reason"),
    ),
    Metric(
        "octaskly_task_run_seconds",
        "histogram",
        "run time of attempts on this node",
    ),
    Metric(
        "octaskly_task_queue_seconds",
        "histogram",
        "time from the acceptance of a task to the start of its first attempt, for "
        "attempts that ended on this node; compares the clocks of two machines",
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
        "launchers that exited unexpectedly",
    ),
    Metric(
        "octaskly_runner_kills_total",
        "counter",
        "attempts that were killed: cancelled, timed out, or over a limit",
        ("reason",),
    ),
)

_NODE: Final = (
    Metric("octaskly_node_cpu_usage_ratio", "gauge", "CPU usage, from 0 to 1"),
    Metric("octaskly_node_memory_bytes", "gauge", "memory of the machine"),
    Metric("octaskly_node_memory_used_bytes", "gauge", "memory in use"),
    Metric(
        "octaskly_node_memory_stalled_ratio",
        "gauge",
        "share of the last 10 s in which all processes waited for memory",
    ),
)

_FILES: Final = (
    Metric(
        "octaskly_files_bytes",
        "gauge",
        "size of stored files: those that tasks need, and captured outputs",
        labels=("store",),
    ),
    Metric("octaskly_files_quota_bytes", "gauge", "room for them", labels=("store",)),
)

_STORE: Final = (
    Metric(
        "octaskly_store_commit_seconds",
        "histogram",
        "duration of commits, including the disk flush",
    ),
    Metric(
        "octaskly_store_committed_entries_total",
        "counter",
        "log entries that were committed",
    ),
    Metric(
        "octaskly_store_backlog_entries", "gauge", "log entries that wait for a commit"
    ),
    Metric("octaskly_store_log_entries", "gauge", "entries in the log"),
    Metric("octaskly_store_bytes", "gauge", "size of the database and its journal"),
    Metric(
        "octaskly_store_disk_free_bytes",
        "gauge",
        "free space on the disk of the database",
    ),
    Metric(
        "octaskly_store_writable",
        "gauge",
        "1 while the log accepts writes, 0 if the disk is full or failing",
    ),
    Metric(
        "octaskly_store_replicas",
        "gauge",
        "disks that will hold a task that is accepted now",
        reported_by="the dispatcher",
    ),
    Metric(
        "octaskly_store_standby_lag_entries",
        "gauge",
        "unacknowledged entries of the standby that is furthest behind",
        reported_by="the dispatcher",
    ),
)

_API: Final = (
    Metric(
        "octaskly_api_requests_total",
        "counter",
        "answered requests, by route and status class; the route is empty for "
        "unknown paths",
        ("method", "route", "status"),
    ),
    Metric(
        "octaskly_api_request_seconds",
        "histogram",
        "duration of requests, without streams but with long polls",
        ("method", "route"),
    ),
    Metric(
        "octaskly_api_connections", "gauge", "open connections of clients and nodes"
    ),
    Metric("octaskly_api_streams", "gauge", "open streams"),
    Metric(
        "octaskly_api_rate_limited_total",
        "counter",
        "requests that were refused by the rate limit",
    ),
)

METRICS: Final = (*_MESH, *_QUEUE, *_TASK, *_RUNNER, *_NODE, *_FILES, *_STORE, *_API)

GROUPS: Final[Mapping[str, str]] = {
    "build": "This program",
    "mesh": "The mesh",
    "queue": "The queue",
    "task": "Tasks",
    "runner": "Running them",
    "node": "The machine",
    "files": "Files of tasks",
    "store": "The log on disk",
    "api": "The API",
}
"""Headings for the groups of metrics."""
