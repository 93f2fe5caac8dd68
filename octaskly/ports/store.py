"""What the agent needs of its clock, of its packer and of the durable side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from msgspec import Struct

from octaskly.core.effects import LoadUnblocked, MergeRows, PlanFloor, Save
from octaskly.core.events import FloorPlanned, QueuedLoaded, SavedState, UnblockedLoaded
from octaskly.core.log.facts import Entry, PackedEntry, Recorded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import (
    Address,
    AttemptId,
    Epoch,
    Moment,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.task_options import ArraySpec
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import PackedMessage, Report, SnapshotCursor
from octaskly.ports.events import LogReader
from octaskly.ports.histogram import Histogram


class Clock(Protocol):
    """The two clocks of this machine."""

    def now(self) -> Moment:
        """Return both clocks; the monotonic one keeps counting in suspend."""

    def draw(self) -> float:
        """Return a random number in [0, 1)."""


T = TypeVar("T")


class Packer(Protocol):
    """Turns facts, reports and specs into bytes and back; given to the store."""

    def pack_entry_body(self, entry: Entry) -> bytes:
        """Return the fact of an entry as bytes, as `pack` would; the writer's alone."""

    def unpack_entry(self, stream: StreamId, seq: int, hlc: int, body: bytes) -> Entry:
        """Return the entry; raise RemoteProtocolError on damaged bytes."""

    def pack_entries(
        self,
        stored: Sequence[PackedEntry],
        epochs: Sequence[tuple[StreamId, Epoch]],
        vector: VectorItems,
        *,
        more: bool,
    ) -> PackedMessage:
        """Return `Entries` of entries whose facts `pack_entry_body` has packed."""

    def pack(self, value: Struct) -> bytes:
        """Return a value of the core as bytes."""

    def unpack(self, data: bytes, kind: type[T]) -> T:
        """Reverse `pack`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSearch:
    """What tasks are to be like; none of them may be a member of an array."""

    name: str | None = None
    labels: tuple[tuple[str, str | None], ...] = ()  #: with this value; None: with any
    text: str | None = None  #: in the command or the name; a for A, too
    after: TaskId | None = None  #: only what comes behind this task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuery:
    """One page of tasks, oldest first."""

    state: TaskState | None = None
    node: NodeId | None = None
    limit: int = 100
    offset: int = 0  #: nothing else in a search
    array: TaskId | None = None  #: members of it that have begun; else no members
    is_arrays_only: bool = False  #: only arrays, and no other filter
    is_newest_first: bool = False
    search: TaskSearch | None = None


@dataclass(frozen=True, slots=True)
class TaskListPage:
    """A page without outputs, and how many tasks match in all."""

    records: tuple[TaskRecord, ...]
    total: int | None  #: None: a search has not looked at all
    next_name: str | None = None  #: name of the task behind which a search goes on
    unsearched: int = 0  #: how many tasks a search has not looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """What the log holds, and how it fares."""

    counts: Mapping[TaskState, int]
    disk_bytes: int
    sequence: int = 0
    oldest_ms: int | None = None  #: when the oldest task that may run was accepted
    log_entries: int = 0
    free_bytes: int = 0  #: on the disk
    queued_entries: int = 0  #: entries that wait for a commit
    committed_entries: int = 0  #: entries, since the start
    commit_s: Histogram | None = None


@dataclass(frozen=True, slots=True)
class PendingNotifications:
    """Ended tasks whose end somebody asked to be told of, and was not yet."""

    keys: frozenset[int]  #: of all, or as many as were looked at
    new_tasks: tuple[tuple[int, TaskRecord], ...]  #: those that the asker did not know


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordQuery:
    """One page of the records of some kinds, in the order of their first recording."""

    kinds: tuple[str, ...]
    keys: tuple[str, ...] | None = None  #: None: whatever their keys
    limit: int = 1000
    since_hlc: int = 0  #: hybrid timestamp
    after: tuple[int, str] | None = None  #: `at` and key of the last one of a page
    is_newest_first: bool = False


class DurableStore(LogReader, Protocol):
    """The durable side: log, tasks, attempts, spool, peers.

    Writing calls return at once and are performed in order by one writer;
    `on_persisted(number)` is called on the event loop after the commit that made
    `number` and all before it durable. Reading calls are coroutines.
    """

    def open(self) -> SavedState:
        """Open or create the database and return what the node must know.

        Raises:
            StoreCorrupt: damaged, or written by a newer version; untouched.
            StoreError: it cannot be opened or locked.
        """

    def append_entries(
        self,
        number: int,
        entries: Sequence[Entry],
        epochs: Sequence[tuple[StreamId, Epoch]] = (),
    ) -> None:
        """Queue entries for the next commit."""

    def merge_rows(self, item: MergeRows) -> None:
        """Queue rows of a snapshot; with the last, the log holds what its head says."""

    def save_node_state(self, item: Save) -> None:
        """Queue node state for the next commit."""

    def spool_results(self, reports: Sequence[Report]) -> None:
        """Queue results to keep until `unspool_results`."""

    def unspool_results(self, items: Sequence[tuple[TaskId, AttemptId]]) -> None:
        """Queue the end of kept results."""

    def save_peer(self, peer: NodeId, name: str, addresses: Sequence[Address]) -> None:
        """Queue a peer's addresses."""

    async def wait_until_purged(self) -> None:
        """Wait until nothing that was forgotten is shown any more."""

    async def load_queued_tasks(
        self, after_ord: int, limit: int, shape: int = 0
    ) -> QueuedLoaded:
        """Read queued tasks of one shape with `ord > after_ord`, in order."""

    async def load_live_tasks(
        self, named: Sequence[TaskId] = ()
    ) -> tuple[TaskRecord, ...]:
        """Read tasks that run, and those that are decided while their latest does.

        What is named comes with them, whether it runs or not.
        """

    async def load_unblocked_tasks(self, ask: LoadUnblocked) -> UnblockedLoaded:
        """Read tasks whose wait for others is over, the oldest first."""

    async def read_pull_reply(
        self,
        vector: Mapping[StreamId, int],
        cursor: SnapshotCursor | None,
        bytes_max: int,
    ) -> PackedMessage:
        """Read what answers a PULL: `Entries`, or the next part of a `MeshSnapshot`."""

    async def plan_compaction(self, ask: PlanFloor) -> FloorPlanned:
        """Find how far the floor may rise."""

    async def read_vector(self) -> VectorItems:
        """Return what is durable, per stream."""

    async def read_task(self, ref: str) -> TaskRecord | None:
        """Read the task with this id or name, and its outputs."""

    async def read_tasks_by_name(
        self, names: Sequence[str]
    ) -> dict[str, tuple[TaskRecord, ...]]:
        """Read the tasks with these names, in the order of places, without outputs."""

    async def streams_of_tasks(self, ids: Sequence[TaskId]) -> frozenset[StreamId]:
        """Read in which streams these tasks were accepted."""

    async def names_with_sequence(self, sequence: int) -> tuple[str, ...]:
        """Return the names of tasks that have this sequence number (at most 2)."""

    async def find_name_collision(
        self, arrays: Mapping[TaskId, ArraySpec]
    ) -> str | None:
        """Return a task that is called as a member of one of these would be."""

    async def read_task_page(self, query: TaskQuery) -> TaskListPage:
        """Read one page of tasks."""

    async def incomplete_member_ranges(
        self, array: TaskId, limit: int
    ) -> tuple[tuple[int, int], ...]:
        """Read the places of members that are not completed, as runs, in order."""

    @property
    def notification_count(self) -> int:
        """A count that grows whenever `read_pending_notifications` may find more."""

    async def read_pending_notifications(
        self, known: frozenset[int], limit: int
    ) -> PendingNotifications:
        """Find ended tasks of whose end somebody is to be told."""

    async def read_records(self, query: RecordQuery) -> tuple[Recorded, ...]:
        """Read one page of records, also those that are over."""

    async def read_stats(self) -> StoreStats:
        """Read the counters."""

    async def close(self) -> None:
        """Commit what is queued, stop the writer, close the file."""
