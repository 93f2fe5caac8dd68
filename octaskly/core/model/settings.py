"""Timing, limits and settings of the core."""

from __future__ import annotations

from dataclasses import dataclass, field

from octaskly.core.model.nodes import NodeInfo

LOG_VERSION = 1
"""Version of the facts that this program writes, and the newest that it reads.

A new kind of fact that earlier programs cannot read increases it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations of the mesh rules, in seconds; ratios matter more than values."""

    discovery_alone_s: float = 0.7  #: discovery phase if no peer was seen or remembered
    discovery_s: float = 1.0  #: discovery otherwise, plus up to `discovery_jitter_s`
    discovery_jitter_s: float = 0.4
    dial_wait_s: float = 3.0  #: added to discovery while the first dials run
    claim_wait_s: float = 1.0  #: time that a better-ranked peer gets to claim
    heartbeat_s: float = 0.3  #: large meshes: plain workers get every third one
    suspicion_timeout_s: float = 1.2  #: 4 heartbeats; then a peer is suspected
    probe_s: float = 0.3  #: timeout of the direct and of the indirect probe
    frame_fresh_s: float = 1.0  #: a frame younger than this clears a suspicion
    claim_stagger_s: float = 0.25  #: between the claims of successors, in roster order
    worker_timeout_s: float = (
        3.0  #: silence after which a worker's attempts run elsewhere
    )
    reattach_s: float = 5.0  #: a new dispatcher waits for workers to reattach
    kill_grace_s: float = 10.0  #: between SIGTERM and SIGKILL
    suspend_gap_s: float = 10.0  #: a longer gap in the clock counts as suspend: rejoin
    replication_wait_s: float = (
        2.0  #: longest wait of an answer for a standby's acknowledgement
    )
    standby_timeout_s: float = (
        1.0  #: a standby that acknowledges nothing this long is replaced
    )
    standby_cooldown_s: float = 10.0  #: it is chosen last for this long
    step_down_s: float = 2.0  #: a dispatcher that steps down waits for the winner
    tick_s: float = 0.35  #: longest time between two steps; heartbeats come sooner
    retention_s: float = 7 * 86_400.0  #: how long ended tasks are kept
    floor_interval_s: float = (
        60.0  #: between the dispatcher's searches for tasks to forget
    )
    rotation_spread_s: float = (
        86_400.0  #: time that all nodes get to learn of a renewed secret
    )
    old_secret_s: float = 7 * 86_400.0  #: time that the old secret stays valid
    missing_dependency_s: float = 600.0  #: how long a task waits for an unknown task


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on everything that a peer or client controls."""

    window_tasks: int = 10_000  #: queued tasks without requirements held in memory
    window_bytes: int = 64 << 20  #: the same in bytes, roughly
    lanes: int = 128  #: lanes for tasks with requirements
    lane_tasks: int = 256  #: tasks held in memory in each lane with requirements
    lane_bytes: int = 1 << 20  #: the same in bytes, roughly
    load_tasks: int = 1_000  #: rows per read of the store, processed in one step
    frame_bytes: int = 8 << 20
    hello_bytes: int = 1 << 20
    entries_bytes: int = 1 << 20  #: soft bound on the part of a batch in one message
    pull_bytes: int = 128 << 10  #: answer to PULL; small, as it is decoded in one step
    many_reports: int = 20  #: so many reports within 50 ms are gathered
    prefetch: int = 256  #: most attempts that wait on a worker beyond its slots
    peers: int = 1024
    tail_entries: int = 8192  #: recent entries kept to bring a standby in sync
    tail_bytes: int = 8 << 20  #: the same in bytes, roughly
    retained_tasks: int = 2_000_000  #: ended tasks; beyond it the oldest are forgotten
    full_mesh_peers: int = 16  #: above this, followers keep only the dispatcher's link

    def full_mesh_ratio(self, nodes: int) -> float:
        """Return `nodes` as a multiple of the full-mesh limit, at least 1."""
        return max(1.0, nodes / self.full_mesh_peers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The core's configuration of its own node, fixed at the start."""

    node: NodeInfo
    timing: Timing = field(default_factory=Timing)
    limits: Limits = field(default_factory=Limits)
    is_strict: bool = False  #: accept a task only if two disks hold it
    log_version: int = LOG_VERSION  #: newest version that this program reads and writes


URGENT_STEP_S = 5.0
"""Time that connected nodes get to learn of each step of an urgent rotation."""


SHORT_TASK_MS = 2.0
"""Below this, a message about a task's end costs more than a delay to batch it."""
