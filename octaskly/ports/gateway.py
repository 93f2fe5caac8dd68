"""What the API may ask of the agent it lives in, and the values that it gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import AttemptId, Epoch, NodeId, TaskId
from octaskly.core.model.nodes import (
    AvailabilityCommand,
    LoadSample,
    StandbyView,
    Takeover,
)
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Roster, RosterEntry
from octaskly.core.replies import TaskExplanation
from octaskly.ports.audit import AuditLog
from octaskly.ports.events import EventSource
from octaskly.ports.output import OutputSource
from octaskly.ports.store import TaskListPage, TaskQuery
from octaskly.ports.tokens import Principal, TokenRegistry


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherView:
    """Where the dispatcher is, seen from this node."""

    is_self: bool
    node: NodeId
    epoch: Epoch
    lan_urls: tuple[str, ...] = ()  #: https://ADDRESS:PORT, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLocation:
    """Where the bytes of a declared output lie."""

    node: NodeId
    task: TaskId
    attempt: AttemptId
    path: str
    size_bytes: int
    local_path: Path | None = None  #: set when the file is on this node
    lan_urls: tuple[str, ...] = ()  #: of the node that has it, otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationState:
    """Who reigns, and who keeps copies of what is accepted now."""

    epoch: Epoch
    standbys: tuple[StandbyView, ...] = ()  #: the one that would succeed first
    last_takeover: Takeover | None = None  #: the last one, if this reign came of one
    has_rows_ahead: bool = False  #: this node still has to tell standbys of some tasks

    @property
    def replicas(self) -> int:
        """How many disks will hold a task that is accepted now."""
        return 1 + sum(standby.is_in_sync for standby in self.standbys)


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
    replication: ReplicationState
    dispatching_s: float = 0.0  #: since this dispatcher began to accept tasks
    refused_counts: Mapping[str, int] = field(default_factory=dict)
    """Messages of peers that could not be, by the code of the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSample:
    """How tasks stood at a time."""

    at_ms: int  #: wall clock
    queued: int
    running: int
    ended_per_s: float  #: since the point before


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether this node can serve."""

    is_healthy: bool
    uptime_s: float
    message: str | None = None


class Gateway(OutputSource, EventSource, Protocol):
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

    async def wait_for_dispatcher(self, timeout_s: float) -> DispatcherView | None:
        """Wait until `dispatcher()` is not None, at most so long.

        Raises:
            LeftBehind: there is none, and this node is in the mesh no more.
        """

    async def submit_tasks(
        self,
        drafts: Sequence[TaskDraft],
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
            ParentNotFound, CyclicTasks: what it shall come after does not exist, or
                waits for it.
            TaskExists: an id that a client chose is taken, or the key was used for
                another body.
            StoreFull: the disk has no room.
            QueueFull: as many tasks wait as may.
            NoNodeFits: no node could ever run one that shall fail fast.
        """

    async def reserve_task_ids(self, count: int) -> Sequence[TaskId]:
        """Return ids for tasks that may be submitted, with numbers of their own."""

    async def find_task(self, ref: str) -> TaskRecord:
        """Return one task with outputs; `task-<sequence>` alone is understood.

        Raises:
            TaskNotFound: no such task.
            CatchingUp: it is unknown here, but another node may know it.
            TaskAmbiguous: the sequence fits several.
        """

    def at_hand(self, ref: str) -> TaskRecord | None:
        """Return a task that has ended, where that is known without a look."""

    async def wait_for_end(self, ref: str, timeout_s: float) -> TaskRecord:
        """As `find_task`, but return only when it is final or the time is over."""

    async def list_tasks(self, query: TaskQuery) -> TaskListPage:
        """Return one page of tasks."""

    async def cancel_task(
        self, ref: str, *, force: bool, principal: Principal
    ) -> TaskRecord:
        """Cancel a task.

        Raises:
            TaskNotFound: none such, or it is completed or failed.
            TaskNotCancellable: it runs, and `force` is false.
            PermissionDenied: it is somebody else's.
        """

    async def retry_task(
        self, ref: str, *, principal: Principal
    ) -> tuple[TaskRecord, int]:
        """Accept a task that repeats an ended one; return it and the replica count.

        Who repeats a task twice gets the same task again.

        Raises:
            TaskNotEnded: it is queued or runs.
            NothingToRepeat: it is an array without failed members, or too many.
            TaskNotFound, TaskAmbiguous, CatchingUp: as `find_task`.
            NotDispatcher, NotDurable, StoreFull: as `submit_tasks`.
        """

    async def purge_ended_tasks(self, older_than_s: int) -> int | None:
        """Forget tasks that ended so long ago, 0: all that have, on all nodes.

        Return how many, members that had begun included; None: it goes on behind.

        Raises:
            NotDispatcher: this node is not dispatcher.
        """

    async def explain_task(self, ref: str) -> tuple[TaskRecord, TaskExplanation]:
        """Return a task, and why it is where it is.

        Raises:
            TaskNotFound, TaskAmbiguous, CatchingUp: as `find_task`.
            NotDispatcher: another node is dispatcher.
        """

    async def locate_output(self, ref: str, path: str) -> OutputLocation:
        """Return where a declared output lies.

        Raises:
            TaskNotFound, OutputNotFound: there is none.
            NodeNotFound: its worker is gone.
        """

    def local_output_path(self, task: str, attempt: AttemptId, path: str) -> Path:
        """Return the file of an output that this node captured.

        Raises:
            OutputNotFound: there is none.
        """

    async def set_availability(
        self, steering: AvailabilityCommand, *, principal: Principal
    ) -> RosterEntry:
        """Drain, resume, pause or unpause this node; return it as it is then.

        Raises:
            NoDispatcher: nobody keeps a roster at this moment.
            StoreFull: it is in force, but a restart will end it.
        """

    def api_urls_of(self, name: str) -> tuple[str, ...]:
        """Return where the API of a node, by name or id, is; none if it is lost.

        The best comes first.
        """

    def roster(self) -> Roster | None:
        """Return the members of the mesh, None while none is known."""

    def replication_state(self) -> ReplicationState:
        """Return who reigns, and what the dispatcher knows of its standbys."""

    def last_heard_ms(self, node: NodeId) -> int | None:
        """Return when a member was last heard, as wall-clock time."""

    async def join_times(self, nodes: Iterable[NodeId]) -> Mapping[NodeId, int]:
        """Return of those that were met as new ones when that was."""

    def node_names(self) -> Mapping[NodeId, str]:
        """Return the name of every node ever met, for showing attempts."""

    def find_node_id(self, name: str) -> NodeId | None:
        """Return the id of a node by name or id."""

    async def mesh_stats(self) -> MeshStats:
        """Return counts of the whole mesh and the state of this machine."""

    def queue_history(self) -> Sequence[QueueSample]:
        """Return how tasks stood of late, at even times; of this reign alone."""

    def health(self) -> Health:
        """Return whether this node can serve."""

    def last_load(self) -> LoadSample:
        """Return the last sample of this machine."""

    @property
    def audit(self) -> AuditLog:
        """Who did what."""

    @property
    def tokens(self) -> TokenRegistry:
        """The tokens of this mesh."""
