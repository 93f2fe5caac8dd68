"""The nouns of the mesh as frozen values.

Owns what nodes, tasks and attempts *are*, and the timings and limits of the rules.
It does not say how they change: facts are in `facts`, joins in `merge`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple, NewType

from octaskly.core.options import CHAR_BYTES, ArraySpec, TaskOptions
from octaskly.core.values import value

NodeId = NewType("NodeId", str)
"""Base32 of the first 80 bits of SHA-256 of a node's Ed25519 public key: 16 chars."""

TaskId = NewType("TaskId", str)
"""What the log calls a task: its name, `[A-Za-z0-9._-]{1,64}`, where a node made it up.

Where a client chose the name, `~` and a digest of what it asked for follow. So two
halves of a split that accept different tasks under one name hold two tasks; clients
see them as `<name>` and `<name>~2`.
"""

StreamId = NewType("StreamId", int)
"""63-bit random number of a log stream, minted at each claim, never zero."""

Vector = dict[StreamId, int]
"""For each stream the highest sequence number held without a gap."""

Holdings = tuple[tuple[StreamId, int], ...]
"""A vector as messages carry it."""


def name_of(task: TaskId, twin: int = 1) -> str:
    """Return what clients call the task that is the `twin`-th of its name."""
    name = task.partition("~")[0] if "~" in task else task
    return name if twin == 1 else f"{name}~{twin}"


LOG_VERSION = 1
"""Version of the facts that this program writes, and the newest that it reads.

It is raised by a fact that a program before could not read.
"""

TIME_MS_MAX = 1 << 47  #: a wall clock in the year 6429, which can be shown
SPEC_BYTES = 256  #: of the envelope of a task beyond its texts, roughly
SPEC_PATH_CHARS = 8  #: of a path in a message, beyond its characters, roughly


class Epoch(NamedTuple):
    """One node's reign as dispatcher; compared by term, then by node id."""

    term: int
    node: NodeId


NO_EPOCH = Epoch(0, NodeId(""))


class AttemptId(NamedTuple):
    """Name of one run of a task, unique together with the task id.

    Ordered: the smallest successful attempt is the one that counts, on all nodes.
    """

    term: int
    stream: StreamId
    n: int  #: counts from 1 within the task


class TaskState(StrEnum):
    """Where a task stands, as the API says it."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    #: Whether nothing but the heal of a split can change it.
    is_final: bool

    def __init__(self, text: str) -> None:
        # Kept, as to ask an enumeration for a member takes Python 3.11 a look through
        # all its classes, and this is asked several times for each task.
        self.is_final = text not in ("queued", "running")


class AttemptState(IntEnum):
    """How far an attempt has come; merging keeps the highest."""

    ASSIGNED = 0
    RUNNING = 1
    RELEASED = 2  #: given back, refused or lost: another attempt may follow
    CANCELLED = 3
    FAILED = 4
    OK = 5

    #: Whether a worker holds it.
    is_live: bool

    def __init__(self, number: int) -> None:
        self.is_live = number <= 1


class Reason(StrEnum):
    """Why an attempt or a task ended as it did."""

    EXIT = "exit"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    LOST = "lost"
    INPUTS = "inputs"
    LIMIT = "limit"
    POISON = "poison"
    CANCELLED = "cancelled"
    # The following only ever release an attempt; a task never shows them.
    RETURNED = "returned"  #: it waited on the worker while others had room
    DRAINING = "draining"
    STALE = "stale"  #: refused: sent by a deposed dispatcher


class Role(StrEnum):
    """What a node is for the mesh at this moment."""

    DISPATCHER = "dispatcher"
    STANDBY = "standby"
    WORKER = "worker"


class NodeState(StrEnum):
    """Whether a node takes work."""

    READY = "ready"
    DRAINING = "draining"
    PAUSED = "paused"
    LOST = "lost"


class Steering(StrEnum):
    """What an operator may tell a node."""

    DRAIN = "drain"  #: end what runs, take no more
    RESUME = "resume"  #: the end of that
    PAUSE = "pause"  #: freeze what runs, take no more
    UNPAUSE = "unpause"  #: the end of that


class Hold(NamedTuple):
    """Why a node takes no work, by order of an operator; a restart changes nothing."""

    is_drained: bool = False
    is_paused: bool = False

    def steered(self, steering: Steering) -> Hold:
        """Return what holds after one more order."""
        match steering:
            case Steering.DRAIN | Steering.RESUME:
                return self._replace(is_drained=steering is Steering.DRAIN)
            case Steering.PAUSE | Steering.UNPAUSE:
                return self._replace(is_paused=steering is Steering.PAUSE)


NO_HOLD = Hold()


class Strain(StrEnum):
    """Why a node that is ready takes no work all the same."""

    DISK = "disk"  #: its disk is full, or fails
    MEMORY = "memory"  #: its tasks stand still for lack of memory
    LAUNCHERS = "launchers"  #: the processes that start its tasks come to nothing


class Moment(NamedTuple):
    """The two clocks at one instant, given to every step.

    `mono_s` never jumps and keeps counting in suspend; all rules use it.
    `wall_ms` is UTC milliseconds since 1970, for timestamps that people read.
    """

    mono_s: float
    wall_ms: int


class Address(NamedTuple):
    """Where a peer may be dialled."""

    host: str  #: IP address, an IPv6 link-local one with its scope
    port: int


@value(frozen=True, slots=True)
class TaskSpec:
    """What a user asked for: the immutable envelope of a task."""

    id: TaskId
    command: str
    timeout_s: int = 3600
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    submitter: str = ""  #: subject of the token, or `local:<user>@<node>`
    created_ms: int = 0  #: wall clock of the dispatcher that accepted it
    ord: int = 0  #: place in the queue: priority band << 56 | hybrid timestamp
    options: TaskOptions | None = None  #: None: nothing else is asked for

    @property
    def array(self) -> ArraySpec | None:
        """The members that it stands for, if it is an array."""
        return None if self.options is None else self.options.array

    @property
    def size_bytes(self) -> int:
        """Most bytes that it takes in a message, roughly."""
        chars = len(self.command) + len(self.submitter)
        if self.inputs or self.outputs:
            for path in self.inputs + self.outputs:
                chars += len(path) + SPEC_PATH_CHARS
        if self.options is not None:
            chars += self.options.chars
        return SPEC_BYTES + CHAR_BYTES * chars


class OutputFile(NamedTuple):
    """A declared output after the end of an attempt."""

    path: str
    size_bytes: int | None  #: None: the file was missing or not a regular file


@value(frozen=True, slots=True)
class Outcome:
    """What really happened to one attempt that ended."""

    state: AttemptState  #: RELEASED, CANCELLED, FAILED or OK
    reason: Reason
    exit_code: int | None = None  #: the process's own; 128+N by signal; 124 timeout
    signal: int | None = None
    started_ms: int | None = None  #: wall clock of the worker
    ended_ms: int | None = None
    duration_ms: int | None = None  #: by the monotonic clock
    stdout: bytes = b""  #: what was kept, exact bytes
    stderr: bytes = b""
    stdout_bytes: int = 0  #: what the task really wrote
    stderr_bytes: int = 0
    outputs: tuple[OutputFile, ...] = ()
    detail: str = ""  #: for people: the missing input, the folder that is not there
    cpu_ms: int | None = None  #: processor time of its processes
    memory_max_kb: int | None = None
    """Most that one of its processes had resident; None: little."""

    @property
    def is_seen(self) -> bool:
        """Whether anybody saw the end; else it is not known what the attempt wrote."""
        return self.reason not in (Reason.LOST, Reason.POISON)


@value(frozen=True, slots=True)
class Attempt:
    """One run of a task, as the log knows it."""

    id: AttemptId
    node: NodeId
    state: AttemptState = AttemptState.ASSIGNED
    outcome: Outcome | None = None  #: present once the state is not live


LABELS_MAX = 64  #: of a node
GPUS_MAX = 64  #: of a node
WORD_CHARS_MAX = 63  #: of a label's name, its value, the name of a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """What a node says of itself when it meets a peer.

    Fixed while it runs, but for the addresses.
    """

    id: NodeId
    boot: str  #: random per process start
    name: str
    slots: int
    version: str
    peer_port: int
    lan_port: int
    addresses: tuple[str, ...] = ()
    memory_mb: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    electable: bool = True
    on_mains: bool = True
    os: str = ""  #: as `linux`
    arch: str = ""  #: as `x86_64`
    cpus: int = 0  #: of the machine; `slots` are those on offer
    gpus: tuple[str, ...] = ()  #: what each is called


class LoadSample(NamedTuple):
    """How busy a machine is."""

    cpu_percent: float  #: of the whole machine
    load1: float  #: run queue over the last minute
    memory_used_mb: int
    process_mb: int  #: resident set of the agent
    stalled_percent: float = 0.0  #: of 10 s in which all waited for memory


class StandbyView(NamedTuple):
    """A standby as its dispatcher sees it."""

    node: NodeId
    is_level: bool  #: it acknowledges what is appended as that happens
    lag: int  #: entries that it has not acknowledged


class Failover(NamedTuple):
    """How this node became dispatcher in place of another one."""

    at_ms: int  #: wall clock at the end of it
    duration_ms: int  #: from the last sign of the old dispatcher to the new reign
    reason: str


NO_LOAD = LoadSample(0.0, 0.0, 0, 0)  #: before the first sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations of the mesh rules, in seconds; ratios matter more than values.

    Where a comment tells what a node does or bears, that is for how long.
    """

    seek_alone_s: float = 0.7  #: SEEK when no peer was seen or remembered
    seek_s: float = 1.0  #: SEEK otherwise, plus up to `seek_jitter_s`
    seek_jitter_s: float = 0.4
    meet_s: float = 3.0  #: SEEK lasts so much longer while the first dials run
    claim_wait_s: float = 1.0  #: how long the best-ranked peer may take to claim
    heartbeat_s: float = 0.3  #: dispatcher to followers; in a crowd to standbys only
    silence_s: float = 1.2  #: 4 heartbeats: then a peer is suspected
    probe_s: float = 0.3  #: direct and indirect probe, each
    fresh_s: float = 1.0  #: a frame younger than this clears a suspicion
    stagger_s: float = 0.25  #: between the claims of successors, in roster order
    lost_s: float = 3.0  #: silence after which a worker's attempts run elsewhere
    adopt_s: float = 5.0  #: a new dispatcher waits for workers to reattach
    kill_grace_s: float = 10.0  #: between SIGTERM and SIGKILL
    gap_s: float = 10.0  #: a jump of the clock that means suspend: rejoin
    solo_s: float = 2.0  #: answers wait for a standby, where there should be one
    slow_s: float = 1.0  #: a standby that acknowledges nothing meanwhile is replaced
    sticky_s: float = 10.0  #: it is not chosen again, if others are there
    yield_s: float = 2.0  #: a yielding dispatcher waits for the winner
    tick_s: float = 0.35  #: longest time between two steps; heartbeats come sooner
    retention_s: float = 7 * 86_400.0  #: how long ended tasks are kept
    floor_s: float = 60.0  #: how often the dispatcher looks for tasks to forget
    spread_s: float = 86_400.0  #: all nodes have time to learn of a renewed secret
    keep_old_s: float = 7 * 86_400.0  #: the secret before it is still accepted
    orphan_s: float = 600.0  #: tasks wait for one that nobody knows


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

    def crowding(self, nodes: int) -> float:
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
