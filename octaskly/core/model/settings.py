"""Timing, limits and settings of the core."""

from __future__ import annotations

from dataclasses import dataclass, field

from octaskly.core.model.nodes import NodeInfo

LOG_VERSION = 1
"""Version of the facts that this program writes, and the newest that it reads.

It is raised by a fact that a program before could not read.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations of the mesh rules, in seconds; ratios matter more than values.

    Where a comment tells what a node does or bears, that is for how long.
    """

    discovery_alone_s: float = 0.7  #: SEEK when no peer was seen or remembered
    discovery_s: float = 1.0  #: SEEK otherwise, plus up to `discovery_jitter_s`
    discovery_jitter_s: float = 0.4
    dial_wait_s: float = 3.0  #: SEEK lasts so much longer while the first dials run
    claim_wait_s: float = 1.0  #: how long the best-ranked peer may take to claim
    heartbeat_s: float = 0.3  #: dispatcher to followers; in a crowd to standbys only
    suspicion_timeout_s: float = 1.2  #: 4 heartbeats: then a peer is suspected
    probe_s: float = 0.3  #: direct and indirect probe, each
    frame_fresh_s: float = 1.0  #: a frame younger than this clears a suspicion
    claim_stagger_s: float = 0.25  #: between the claims of successors, in roster order
    worker_timeout_s: float = (
        3.0  #: silence after which a worker's attempts run elsewhere
    )
    reattach_s: float = 5.0  #: a new dispatcher waits for workers to reattach
    kill_grace_s: float = 10.0  #: between SIGTERM and SIGKILL
    suspend_gap_s: float = 10.0  #: a jump of the clock that means suspend: rejoin
    replication_wait_s: float = (
        2.0  #: answers wait for a standby, where there should be one
    )
    standby_timeout_s: float = (
        1.0  #: a standby that acknowledges nothing meanwhile is replaced
    )
    standby_cooldown_s: float = 10.0  #: it is not chosen again, if others are there
    step_down_s: float = 2.0  #: a yielding dispatcher waits for the winner
    tick_s: float = 0.35  #: longest time between two steps; heartbeats come sooner
    retention_s: float = 7 * 86_400.0  #: how long ended tasks are kept
    floor_interval_s: float = (
        60.0  #: how often the dispatcher looks for tasks to forget
    )
    rotation_spread_s: float = (
        86_400.0  #: all nodes have time to learn of a renewed secret
    )
    old_secret_s: float = 7 * 86_400.0  #: the secret before it is still accepted
    missing_dependency_s: float = 600.0  #: tasks wait for one that nobody knows


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on everything that a peer or client controls."""

    window_tasks: int = 10_000  #: that ask for nothing, queued in memory
    window_bytes: int = 64 << 20  #: of these, roughly
    lanes: int = 128  #: kinds of needs that have a window of their own
    lane_tasks: int = 256  #: in each of these windows
    lane_bytes: int = 1 << 20  #: the same, roughly
    load_tasks: int = 1_000  #: rows asked from the store at once, taken in one step
    frame_bytes: int = 8 << 20
    hello_bytes: int = 1 << 20
    entries_bytes: int = 1 << 20  #: soft bound on what one message has of a batch
    pull_bytes: int = 128 << 10  #: of an answer to PULL: it is decoded at one go
    prefetch: int = 256  #: most attempts that wait on a worker beyond its slots
    peers: int = 1024
    tail_entries: int = 8192  #: lately appended, kept to bring a standby level
    tail_bytes: int = 8 << 20  #: the same, roughly
    retained_tasks: int = 2_000_000  #: of more ended tasks, the oldest are forgotten
    full_mesh_peers: int = 16  #: above this, followers keep only the dispatcher's link

    def full_mesh_ratio(self, nodes: int) -> float:
        """Return how many times as many these are as have links between each two."""
        return max(1.0, nodes / self.full_mesh_peers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the core is told about its own node at the start."""

    node: NodeInfo
    timing: Timing = field(default_factory=Timing)
    limits: Limits = field(default_factory=Limits)
    is_strict: bool = False  #: accept nothing that only one disk holds
    log_version: int = LOG_VERSION  #: newest that this program reads; it writes that


URGENT_STEP_S = 5.0  #: honest nodes that are connected have so long to learn of it


SHORT_TASK_MS = 2.0  #: below this, telling of a task costs more than waiting to tell
