"""The seams of the agent: what it needs from its parts, and what the API needs of it.

The parts never know each other; they meet in `octaskly.agent`, through these
protocols. Fakes for tests pass the same contract suites as the real parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from octaskly.core.effects import Join, PlanFloor, Save
from octaskly.core.events import Draft, FloorPlanned, Loaded, Saved
from octaskly.core.facts import Entry
from octaskly.core.merge import TaskRecord
from octaskly.core.messages import (
    Cursor,
    Hello,
    Member,
    Report,
    Roster,
    Snapshot,
)
from octaskly.core.model import (
    Address,
    AttemptId,
    Epoch,
    Failover,
    Holdings,
    LoadSample,
    Moment,
    NodeId,
    StandbyView,
    Steering,
    StreamId,
    TaskId,
    TaskState,
)


class Clock(Protocol):
    """The two clocks of this machine."""

    def now(self) -> Moment:
        """Return both clocks; the monotonic one keeps counting in suspend."""

    def draw(self) -> float:
        """Return a random number in [0, 1)."""


class Packer(Protocol):
    """Turns facts, reports and specs into bytes and back; given to the store."""

    def pack_entry_body(self, entry: Entry) -> bytes:
        """Return the fact of an entry as bytes."""

    def unpack_entry(self, stream: StreamId, seq: int, hlc: int, body: bytes) -> Entry:
        """Return the entry; raise RemoteProtocolError on damaged bytes."""

    def pack(self, value: object) -> bytes:
        """Return a value of the core (record, report, spec) as bytes."""

    def unpack(self, data: bytes) -> Any:
        """Reverse `pack`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuery:
    """One page of tasks, oldest first."""

    state: TaskState | None = None
    node: NodeId | None = None
    limit: int = 100
    offset: int = 0


@dataclass(frozen=True, slots=True)
class TaskPage:
    """A page without outputs, and how many tasks match in all."""

    records: tuple[TaskRecord, ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Counters that are maintained with each commit."""

    counts: Mapping[TaskState, int]
    disk_bytes: int
    sequence: int = 0


class Log(Protocol):
    """The durable side: log, tasks, attempts, spool, peers.

    Writing calls return at once and are performed in order by one writer thread;
    `on_persisted(number)` is called on the event loop after the commit that made
    `number` and all before it durable. Reading calls are coroutines.
    """

    def open(self) -> Saved:
        """Open or create the database and return what the node must know.

        Raises:
            StoreCorrupt: damaged, or written by a newer version; untouched.
            StoreError: it cannot be opened or locked.
        """

    def append(
        self,
        number: int,
        entries: Sequence[Entry],
        epochs: Sequence[tuple[StreamId, Epoch]] = (),
    ) -> None:
        """Queue entries for the next commit."""

    def join(self, item: Join) -> None:
        """Queue rows of a snapshot; with the last, the log holds what its head says."""

    def save(self, item: Save) -> None:
        """Queue node state for the next commit."""

    def spool(self, reports: Sequence[Report]) -> None:
        """Queue results to keep until `unspool`."""

    def unspool(self, items: Sequence[tuple[TaskId, AttemptId]]) -> None:
        """Queue the end of kept results."""

    def remember(self, peer: NodeId, name: str, addresses: Sequence[Address]) -> None:
        """Queue a peer's addresses."""

    async def load(self, after_ord: int, limit: int) -> Loaded:
        """Read queued tasks with `ord > after_ord`, in order."""

    async def load_live(self) -> tuple[TaskRecord, ...]:
        """Read tasks whose latest attempt has no end."""

    async def entries_after(
        self, vector: Mapping[StreamId, int], bytes_max: int
    ) -> tuple[tuple[Entry, ...], tuple[tuple[StreamId, Epoch], ...], bool]:
        """Read entries beyond `vector`: entries, writers of their streams, more?"""

    async def snapshot(
        self, vector: Mapping[StreamId, int], cursor: Cursor | None, bytes_max: int
    ) -> Snapshot | None:
        """Read the next part of a snapshot; None if entries serve better."""

    async def plan_floor(self, ask: PlanFloor) -> FloorPlanned:
        """Find how far the floor may rise."""

    async def vector(self) -> Holdings:
        """Return what is durable, per stream."""

    async def task(self, ref: str) -> TaskRecord | None:
        """Read the task with this id or name, and its outputs."""

    async def tasks(self, names: Sequence[str]) -> dict[str, tuple[TaskRecord, ...]]:
        """Read the tasks with these names, in the order of places, without outputs."""

    async def resolve(self, sequence: int) -> tuple[str, ...]:
        """Return the names of tasks that have this sequence number (at most 2)."""

    async def page(self, query: TaskQuery) -> TaskPage:
        """Read one page of tasks."""

    async def stats(self) -> StoreStats:
        """Read the counters."""

    async def close(self) -> None:
        """Commit what is queued, stop the writer, close the file."""


HelloSource = Callable[[], Hello]
"""Returns what this node says of itself at this moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks, and what that subject may do."""

    subject: str
    role: str  #: `admin`, `client` or `viewer`
    node: NodeId | None = None  #: the node that forwarded the request, if one did

    @property
    def may_submit(self) -> bool:
        """Whether it may create and cancel tasks."""
        return self.role in ("admin", "client")

    @property
    def is_admin(self) -> bool:
        """Whether it may touch everybody's tasks, tokens and nodes."""
        return self.role == "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherView:
    """Where the dispatcher is, seen from this node."""

    is_self: bool
    node: NodeId
    epoch: Epoch
    lan_urls: tuple[str, ...] = ()  #: https://ADDRESS:PORT, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPlace:
    """Where the bytes of a declared output lie."""

    node: NodeId
    task: TaskId
    attempt: AttemptId
    path: str
    size_bytes: int
    local: Path | None = None  #: set when the file is on this node
    lan_urls: tuple[str, ...] = ()  #: of the node that has it, otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshState:
    """Who reigns, and who keeps copies of what is accepted now."""

    epoch: Epoch
    standbys: tuple[StandbyView, ...] = ()  #: the one that would succeed first
    failover: Failover | None = None  #: the last one, if this reign came of one

    @property
    def replicas(self) -> int:
        """How many disks will hold a task that is accepted now."""
        return 1 + sum(standby.is_level for standby in self.standbys)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshStats:
    """What `GET /api/v1/stats` shows."""

    workers_total: int
    workers_active: int
    workers_idle: int
    counts: Mapping[TaskState, int]
    uptime_s: float
    memory_mb: int
    cpu_percent: float
    disk_bytes: int
    mesh: MeshState
    refused: Mapping[str, int] = field(default_factory=dict)
    """Messages of peers that could not be, by the code of the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether this node can serve."""

    is_healthy: bool
    uptime_s: float
    message: str | None = None


class Gateway(Protocol):
    """What the API may ask of the agent it lives in.

    Calls that need the dispatcher raise NotDispatcher when this node stops being it;
    the API then forwards or answers 503.
    """

    @property
    def mesh_id(self) -> str | None:
        """Public name of the mesh, None while unpaired."""

    @property
    def node_id(self) -> NodeId:
        """This node."""

    def dispatcher(self) -> DispatcherView | None:
        """Return the dispatcher, or None while none is known or it is not ready."""

    async def dispatcher_known(self, timeout_s: float) -> DispatcherView | None:
        """Wait until `dispatcher()` is not None, at most so long."""

    async def submit(
        self,
        drafts: Sequence[Draft],
        *,
        principal: Principal,
        idempotency_key: str | None = None,
        is_strict: bool = False,
    ) -> tuple[list[TaskRecord], int]:
        """Accept all tasks durably, or none; return them and the replica count.

        With `is_strict`, one copy is too few.

        Raises:
            NotDispatcher: another node is dispatcher.
            NotDurable: one copy is too few, and no standby acknowledges.
            TaskExists: an id that a client chose is taken, or the key was used for
                another body.
            StoreFull: the disk has no room.
        """

    async def task(self, ref: str) -> TaskRecord:
        """Return one task with outputs; `task-<sequence>` alone is understood.

        Raises:
            TaskNotFound: no such task.
            CatchingUp: it is unknown here, but another node may know it.
            TaskAmbiguous: the sequence fits several.
        """

    async def wait(self, ref: str, timeout_s: float) -> TaskRecord:
        """As `task`, but return only when it is final or the time is over."""

    async def page(self, query: TaskQuery) -> TaskPage:
        """Return one page of tasks."""

    async def cancel(
        self, ref: str, *, force: bool, principal: Principal
    ) -> TaskRecord:
        """Cancel a task.

        Raises:
            TaskNotFound: none such, or it is completed or failed.
            TaskNotCancellable: it runs, and `force` is false.
            PermissionDenied: it is somebody else's.
        """

    async def output(self, ref: str, path: str) -> OutputPlace:
        """Return where a declared output lies.

        Raises:
            TaskNotFound, OutputNotFound: there is none.
            NodeNotFound: its worker is gone.
        """

    def local_output(self, task: str, attempt: AttemptId, path: str) -> Path:
        """Return the file of an output that this node captured.

        Raises:
            OutputNotFound: there is none.
        """

    async def steer(self, steering: Steering, *, principal: Principal) -> Member:
        """Drain, resume, pause or unpause this node; return it as it is then.

        Raises:
            NoDispatcher: nobody keeps a roster at this moment.
            StoreFull: it is in force, but a restart will end it.
        """

    def urls_of(self, node: NodeId) -> tuple[str, ...]:
        """Return where the API of another node is, best first; none if it is lost."""

    def roster(self) -> Roster | None:
        """Return the members of the mesh, None while none is known."""

    def mesh(self) -> MeshState:
        """Return who reigns, and what the dispatcher knows of its standbys."""

    def seen_ms(self, node: NodeId) -> int | None:
        """Return when a member was last heard, as wall-clock time."""

    def names(self) -> Mapping[NodeId, str]:
        """Return the name of every node ever met, for showing attempts."""

    def node_named(self, name: str) -> NodeId | None:
        """Return the id of a node by name or id."""

    async def stats(self) -> MeshStats:
        """Return counts of the whole mesh and the state of this machine."""

    def health(self) -> Health:
        """Return whether this node can serve."""

    def load(self) -> LoadSample:
        """Return the last sample of this machine."""

    def mint_token(self, *, subject: str, role: str, expires_s: int) -> str:
        """Return a new token of this mesh."""
