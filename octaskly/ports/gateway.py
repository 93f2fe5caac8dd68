"""Interface of the agent for the API, with the values that it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import AttemptId, Epoch, NodeId, TaskId
from octaskly.core.model.nodes import (
    AvailabilityCommand,
    RosterEntry,
    StandbyView,
    Takeover,
)
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Roster
from octaskly.core.replies import TaskExplanation, VisitorDemand
from octaskly.files.captured_tree import CapturedTree
from octaskly.ports.audit import AuditLog
from octaskly.ports.events import EventSource
from octaskly.ports.files import InputSources, KeptOutput
from octaskly.ports.output import OutputSource
from octaskly.ports.store import DisplayFacts, TaskListPage, TaskParts, TaskQuery
from octaskly.ports.tokens import Principal, TokenRegistry


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherView:
    """The dispatcher as this node sees it."""

    is_self: bool
    node: NodeId
    epoch: Epoch
    lan_urls: tuple[str, ...] = ()  #: https://ADDRESS:PORT, best first
    relay: NodeId | None = None
    """The node with these URLs, if it only relays requests to the dispatcher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHolder:
    """A node that may hold the captured outputs of a task."""

    node: NodeId
    is_local: bool = False  #: True if that is this node
    lan_urls: tuple[str, ...] = ()  #: of the node otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLocation:
    """The nodes that may hold the captured outputs of a task, likely ones first."""

    task: TaskId
    attempt: AttemptId
    holders: tuple[OutputHolder, ...]
    lost: str = ""  #: the node that captured them, if it is not in the mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationState:
    """The current epoch, and the standbys that hold copies of new entries."""

    epoch: Epoch
    standbys: tuple[StandbyView, ...] = ()  #: next dispatcher first
    last_takeover: Takeover | None = (
        None  #: the takeover that started this epoch, if any
    )
    is_merging: bool = False  #: some rows of a snapshot are not merged here yet

    @property
    def replicas(self) -> int:
        """Number of disks that will hold a task accepted now."""
        return 1 + sum(standby.is_in_sync for standby in self.standbys)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshStats:
    """The reply to `GET /api/v1/stats`."""

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
    """Number of refused messages of peers, by code of the reason."""
    failed_last_hour: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSample:
    """Numbers of tasks at one time."""

    at_ms: int  #: wall clock
    queued: int
    running: int
    ended_per_s: float  #: since the previous sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The health of this node."""

    is_healthy: bool
    uptime_s: float
    message: str | None = None
    warnings: tuple[str, ...] = ()


class Gateway(OutputSource, EventSource, Protocol):
    """The agent, as the API uses it.

    Calls that need the dispatcher raise NotDispatcher if this node has stepped down.
    The API then forwards the request or replies with 503.
    """

    @property
    def mesh_id(self) -> str | None:
        """Public name of the mesh, None while unpaired."""

    @property
    def node_id(self) -> NodeId:
        """Id of this node."""

    def dispatcher(self) -> DispatcherView | None:
        """Return the dispatcher, or None while it is unknown or not ready."""

    async def wait_for_dispatcher(self, timeout_s: float) -> DispatcherView | None:
        """Wait up to `timeout_s` seconds until `dispatcher()` is not None.

        Raises:
            NotAMember: There is no dispatcher, and this node has left the mesh.
        """

    async def submit_tasks(
        self,
        drafts: Sequence[TaskDraft],
        *,
        principal: Principal,
        idempotency_key: str | None = None,
        is_strict: bool = False,
    ) -> tuple[list[TaskRecord], int]:
        """Accept all tasks durably, or none. Return them and the replica count.

        With `is_strict`, at least two disks must hold the tasks.

        Raises:
            NotDispatcher: Another node is dispatcher.
            NotDurable: Two copies are needed, and no standby acknowledges.
            ParentNotFound, CyclicTasks: A dependency does not exist, or is circular.
            TaskExists: A chosen id is taken, or the idempotency key was used for
                another body.
            StoreFull: The disk is full.
            QueueFull: The queue has reached its limit.
            NoNodeFits: A task must fail fast, and no node can ever run it.
        """

    async def reserve_task_ids(self, count: int) -> Sequence[TaskId]:
        """Return new ids with unique sequence numbers for a later submission."""

    async def find_task(self, ref: str, parts: TaskParts = TaskParts.ALL) -> TaskRecord:
        """Return one task, its end once no failover can take that back.

        `ref` may be just `task-<sequence>`.

        Raises:
            TaskNotFound: There is no such task.
            CatchingUp: The task is unknown here, but another node may have it.
            TaskAmbiguous: Several tasks have this sequence number.
        """

    async def find_by_short_id(self, text: str) -> Sequence[TaskRecord]:
        """Return the tasks that a short id may mean, without outputs: at most four.

        It is a number, or the first 4 to 8 hexadecimal digits of an id.
        """

    def at_hand(self, ref: str) -> TaskRecord | None:
        """Return an ended task from the cache, or None; never read the store."""

    async def wait_for_end(self, ref: str) -> TaskRecord:
        """Return a task as `find_task` does, once it is final."""

    async def read_display_facts(
        self, records: Sequence[TaskRecord]
    ) -> Mapping[TaskId, DisplayFacts]:
        """Return what people see of these tasks, and what their records lack."""

    async def list_tasks(self, query: TaskQuery) -> TaskListPage:
        """Return one page of tasks."""

    async def cancel_task(
        self, ref: str, *, force: bool, principal: Principal
    ) -> TaskRecord:
        """Cancel a task.

        Raises:
            TaskNotFound: There is no such task, or it is completed or failed.
            TaskNotCancellable: The task runs, and `force` is false.
            PermissionDenied: The task belongs to another subject.
        """

    async def reprioritize_task(
        self, ref: str, priority: int, *, principal: Principal
    ) -> TaskRecord:
        """Change the priority of a task or an array that waits; return it as it was.

        Raises:
            TaskNotFound, TaskAmbiguous, CatchingUp: See `find_task`.
            TaskNotWaiting: It runs, has ended, or is a member of an array.
            PermissionDenied: It belongs to another subject.
        """

    async def find_retry(self, ref: str) -> TaskRecord | None:
        """Return the task that a retry of this task has made, None if it has none.

        Raises:
            TaskNotFound, TaskAmbiguous, CatchingUp: See `find_task`.
        """

    async def retry_task(
        self, ref: str, *, principal: Principal
    ) -> tuple[TaskRecord, int]:
        """Accept a new task that repeats an ended one. Return it and the replica count.

        A second retry of the same task returns the same new task.

        Raises:
            TaskNotEnded: The task is queued or runs.
            NothingToRetry: The task is an array with no failed member, or too many.
            StdinFreed: The stdin of the task is gone.
            TaskNotFound, TaskAmbiguous, CatchingUp: See `find_task`.
            NotDispatcher, NotDurable, StoreFull: See `submit_tasks`.
        """

    async def purge_ended_tasks(self, older_than_s: int) -> int | None:
        """Purge tasks on all nodes that ended `older_than_s` or more seconds ago.

        Returns:
            The number of purged tasks, with members of arrays that had started. None
            if the purge continues in the background.

        Raises:
            NotDispatcher: This node is not dispatcher.
        """

    async def explain_task(self, ref: str) -> tuple[TaskRecord, TaskExplanation]:
        """Return a task, and the explanation of its state.

        Raises:
            TaskNotFound, TaskAmbiguous, CatchingUp: See `find_task`.
            NotDispatcher: Another node is dispatcher.
        """

    async def visitor_demand(self, label: tuple[str, str] | None) -> VisitorDemand:
        """Return how many queued tasks a new visitor could run.

        With a label, only tasks that require it count, and the visitor has it.

        Raises:
            NotDispatcher: Another node is dispatcher.
        """

    def read_input_sources(
        self, task: TaskId, attempt: AttemptId
    ) -> InputSources | None:
        """Return where the files of an attempt of this node came from, if known."""

    async def locate_output(self, ref: str, path: str | None) -> OutputLocation:
        """Return the location of a path that a declared output covers.

        Args:
            ref: The task.
            path: The path; None for all outputs.

        Raises:
            TaskNotFound, OutputNotFound: There is no such task or output.
            NodeNotFound: The worker that has it is gone.
        """

    async def find_forgotten(
        self, kept: Sequence[KeptOutput]
    ) -> tuple[Sequence[int], int]:
        """Find outputs of tasks that are forgotten on all nodes.

        Returns:
            Their indices, and the wall-clock milliseconds before which they ended.

        Raises:
            CatchingUp: A missing node may know tasks that are unknown here.
        """

    async def locate_outputs(self, ref: str) -> Sequence[OutputLocation]:
        """Return the locations of all outputs of a task, or of an array's members.

        Raises:
            TaskNotFound, OutputNotFound: There is no such task, or it has no outputs.
            NodeNotFound: A worker that has some is gone.
        """

    async def make_output_tree(self, task: TaskId, attempt: AttemptId) -> str:
        """Make captured outputs of this node available as a tree.

        Returns:
            The SHA-256 of its manifest, which is a file of this node now.

        Raises:
            OutputNotFound: There are none.
            FileQuotaExceeded: There is no room for the manifest.
        """

    async def captured_outputs(self, task: str, attempt: AttemptId) -> CapturedTree:
        """Return the outputs of an attempt that this node captured.

        Raises:
            OutputNotFound: There are none.
        """

    async def set_availability(
        self, steering: AvailabilityCommand, *, principal: Principal
    ) -> RosterEntry:
        """Drain, resume, pause or unpause this node. Return its new roster entry.

        Raises:
            DispatcherUnknown: No dispatcher keeps a roster now.
            StoreFull: The change applies, but will not survive a restart.
        """

    def api_urls_of(self, name: str) -> tuple[str, ...]:
        """Return the API URLs of a node, best first; empty if the node is lost.

        `name` is a name or an id.
        """

    def roster(self) -> Roster | None:
        """Return the members of the mesh, or None before the first roster arrives."""

    def replication_state(self) -> ReplicationState:
        """Return the current epoch, and the state of the standbys."""

    def last_heard_ms(self, node: NodeId) -> int | None:
        """Return the wall-clock time of the last message from a member."""

    def node_names(self) -> Mapping[NodeId, str]:
        """Return the names of all nodes ever met, to show old attempts."""

    def find_node_id(self, name: str) -> NodeId | None:
        """Return the id of a node by name or id."""

    async def end_visit(self, visitor: NodeId) -> None:
        """Have all members refuse a visitor from now on; it is durable then.

        Raises:
            NotDispatcher: Another node is dispatcher.
            TooManyRecords: As many visits were ended lately as may be.
        """

    async def mesh_stats(self) -> MeshStats:
        """Return counts of the whole mesh and the state of this machine."""

    def queue_history(self) -> Sequence[QueueSample]:
        """Return recent samples at equal intervals, all from the current epoch."""

    def health(self) -> Health:
        """Return the health of this node."""

    @property
    def audit(self) -> AuditLog:
        """The audit log."""

    @property
    def tokens(self) -> TokenRegistry:
        """The tokens of this mesh."""
