"""Interfaces of the clock, the packer and the durable store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from octaskly.core.effects import (
    LoadLive,
    LoadQueued,
    LoadTasks,
    LoadUnblocked,
    MergeRows,
    PlanFloor,
    Save,
    ServePull,
    StageRows,
)
from octaskly.core.events import (
    FloorPlanned,
    LiveLoaded,
    QueuedLoaded,
    SavedState,
    TasksLoaded,
    UnblockedLoaded,
)
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
from octaskly.core.model.task_options import ArraySpec, BlobRef, InputTree
from octaskly.core.model.tasks import Outcome, TaskState
from octaskly.core.protocol.messages import PackedMessage, Report
from octaskly.ports.events import LogReader
from octaskly.ports.files import KeptOutput
from octaskly.ports.histogram import Histogram


class Clock(Protocol):
    """The two clocks of this machine."""

    def now(self) -> Moment:
        """Return both clocks. The monotonic one also counts during suspend."""

    def draw(self) -> float:
        """Return a random number in [0, 1)."""


class TaskParts(Enum):
    """The parts of a task to read; output and environment may have megabytes."""

    BRIEF = auto()  #: neither the kept output nor what only the worker needs
    OUTPUT = auto()  #: with the kept output of its attempts
    SPEC = auto()  #: with stdin and environment, without output
    ALL = auto()


T = TypeVar("T")


class Packer(Protocol):
    """Converts facts, reports and specs to bytes and back, for the store."""

    def unpack_entry(self, stream: StreamId, seq: int, hlc: int, body: bytes) -> Entry:
        """Return the entry of a fact that `pack` has packed.

        Raises:
            RemoteProtocolError: The bytes are damaged.
        """

    def pack_entries(
        self,
        stored: Sequence[PackedEntry],
        epochs: Sequence[tuple[StreamId, Epoch]],
        vector: VectorItems,
        *,
        more: bool,
        retired: int,
    ) -> PackedMessage:
        """Return `Entries` with facts that `pack` has packed."""

    def pack(self, value: Struct) -> bytes:
        """Return a value of the core as bytes."""

    def unpack(self, data: bytes, kind: type[T]) -> T:
        """Reverse `pack`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSearch:
    """Conditions of a search. Members of arrays never match."""

    name: str | None = None
    labels: tuple[tuple[str, str | None], ...] = ()  #: label and value; None: any value
    text: str | None = None  #: in the command, name or call, in any case
    submitter: str | None = None
    ended_after_ms: int | None = None  #: wall clock, from the timestamps of the log
    after: TaskId | None = None  #: only tasks after this one in the order of the query


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuery:
    """One page of tasks, oldest first by default."""

    state: TaskState | None = None
    node: NodeId | None = None
    limit: int = 100
    offset: int = 0  #: ignored in a search
    array: TaskId | None = None  #: list its members with a row; None: no members
    is_arrays_only: bool = False  #: list only arrays, without other filters
    is_newest_first: bool = False
    search: TaskSearch | None = None


LISTED_COMMAND_CHARS: Final = 1024
"""Characters of a command in a list; if it has more, one more shows that it is cut."""


@dataclass(frozen=True, slots=True)
class TaskListPage:
    """A page of tasks without outputs, and without what no list shows.

    That is the rest of long commands, the environment, stdin, and the paths of inputs
    and outputs, so that a page of any tasks takes little memory.
    """

    records: tuple[TaskRecord, ...]
    total: int | None  #: matching tasks; None if a search has not scanned all
    next_name: str | None = None  #: the search continues after this task
    unsearched: int = 0  #: number of tasks that a search has not scanned


class NeededFiles(NamedTuple):
    """The files that unfinished tasks need."""

    trees: frozenset[InputTree] = frozenset()  #: without the folders of one task
    stdin_files: frozenset[BlobRef] = frozenset()
    outputs_of: frozenset[str] = frozenset()  #: ids in the log of other tasks


class MemberFailure(NamedTuple):
    """A failed member of an array."""

    number: int
    outcome: Outcome | None


class DisplayFacts(NamedTuple):
    """Facts about a task that people see, and that its record lacks."""

    short_id: str  #: shortest text that names the task
    started_ms: int | None = None
    """When its running attempt was assigned; of a running array, its first start."""
    first_failure: MemberFailure | None = None  #: the failed member of lowest number


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Counters of the store."""

    counts: Mapping[TaskState, int]
    disk_bytes: int
    sequence: int = 0
    oldest_ms: int | None = None  #: when the oldest queued task was accepted
    log_entries: int = 0
    free_bytes: int = 0  #: free space of the disk
    queued_entries: int = 0  #: waiting for a commit
    committed_entries: int = 0  #: since the start
    commit_s: Histogram | None = None


@dataclass(frozen=True, slots=True)
class PendingNotifications:
    """Ended tasks whose requested notification has not been sent."""

    keys: frozenset[int]  #: keys of all of them, up to a limit
    new_tasks: tuple[tuple[int, TaskRecord], ...]  #: those unknown to the caller


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordQuery:
    """One page of the records of some kinds, in the order of their first recording."""

    kinds: tuple[str, ...]
    keys: tuple[str, ...] | None = None  #: None: any key
    limit: int = 1000
    since_hlc: int = 0  #: hybrid timestamp of the first recording
    after: tuple[int, str] | None = (
        None  #: timestamp and key of the last record of a page
    )
    is_newest_first: bool = False


class DurableStore(LogReader, Protocol):
    """The durable store: log, tasks, attempts, spool and peers.

    Calls that write return at once, and one writer performs them in order. After the
    commit that makes `number` and all before it durable, `on_persisted(number)` is
    called on the event loop. Calls that read are coroutines.
    """

    def open(self) -> SavedState:
        """Open or create the database and return the node's saved state.

        Raises:
            StoreCorrupt: The file is damaged, or written by a newer version. It is left
                unchanged.
            StoreError: The file cannot be opened or locked.
        """

    def append_entries(
        self,
        number: int,
        entries: Sequence[Entry],
        epochs: Sequence[tuple[StreamId, Epoch]] = (),
    ) -> None:
        """Queue entries for the next commit."""

    def stage_rows(self, item: StageRows) -> None:
        """Queue a part of a snapshot, which is kept until it is merged.

        `open` drops incomplete snapshots, and merges complete ones.
        """

    def merge_rows(self, item: MergeRows) -> None:
        """Queue the merge of the next part. The last one raises the vector."""

    def save_node_state(self, item: Save) -> None:
        """Queue node state for the next commit."""

    def spool_results(self, reports: Sequence[Report]) -> None:
        """Queue results, which are kept until `unspool_results`."""

    def unspool_results(self, items: Sequence[tuple[TaskId, AttemptId]]) -> None:
        """Queue the deletion of spooled results."""

    def save_peer(self, peer: NodeId, name: str, addresses: Sequence[Address]) -> None:
        """Queue a peer's addresses."""

    async def wait_until_purged(self) -> None:
        """Wait until no row below the compaction floor is left."""

    async def load_queued_tasks(self, ask: LoadQueued) -> QueuedLoaded:
        """Read queued tasks of one lane with `ord > after_ord`, in order."""

    async def load_live_tasks(self, ask: LoadLive) -> LiveLoaded:
        """Read some of the tasks whose latest attempt has not ended.

        Some of them are in a final state, such as cancelled ones.
        """

    async def load_tasks(self, ask: LoadTasks) -> TasksLoaded:
        """Read tasks and arrays by id: the first of `ask`, at least one."""

    async def load_unblocked_tasks(self, ask: LoadUnblocked) -> UnblockedLoaded:
        """Read tasks whose dependencies are met or broken, oldest first."""

    async def read_pull_reply(
        self,
        pull: ServePull,
        bytes_max: int,
    ) -> PackedMessage:
        """Read the reply to a `Pull`: `Entries`, or the next part of a `Snapshot`.

        It waits while a snapshot is merged here, if the reply is one.
        """

    async def plan_compaction(self, ask: PlanFloor) -> FloorPlanned:
        """Find how far the compaction floor may rise."""

    async def read_vector(self) -> VectorItems:
        """Read the last durable sequence number of each stream."""

    async def read_task(
        self, ref: str, parts: TaskParts = TaskParts.ALL
    ) -> TaskRecord | None:
        """Read the task with this id or name."""

    async def read_ids_by_name(self, names: Sequence[str]) -> dict[str, list[TaskId]]:
        """Read the ids of the tasks with each name, oldest first.

        Unused names are left out.
        """

    async def read_tasks_by_name(
        self, names: Sequence[str], *, is_brief: bool = False
    ) -> dict[str, tuple[TaskRecord, ...]]:
        """Read the tasks with each name, oldest first, without outputs.

        Each may have 5 MB. With `is_brief` they have only what a list shows.
        """

    async def streams_of_tasks(self, ids: Sequence[TaskId]) -> frozenset[StreamId]:
        """Read the streams in which these tasks were accepted."""

    async def count_queued_tasks(self) -> int:
        """Count the queued tasks, array members included."""

    async def names_with_sequence(self, sequence: int) -> tuple[str, ...]:
        """Read at most two names of tasks with this sequence number."""

    async def names_with_short_id(self, text: str) -> tuple[str, ...]:
        """Read at most four names of tasks that a short id may mean.

        It is a number, or the first 4 to 8 hexadecimal digits of an id.
        """

    async def find_name_collision(
        self, arrays: Mapping[TaskId, ArraySpec]
    ) -> str | None:
        """Return the name of a task that a member of `arrays` would also have."""

    async def read_task_page(self, query: TaskQuery) -> TaskListPage:
        """Read one page of tasks."""

    async def read_display_facts(
        self, records: Sequence[TaskRecord]
    ) -> Mapping[TaskId, DisplayFacts]:
        """Read what people see of these tasks, and what their records lack."""

    async def incomplete_member_ranges(
        self, array: TaskId, limit: int
    ) -> tuple[tuple[int, int], ...]:
        """Read the positions of members that are not completed, as ranges in order."""

    @property
    def notification_count(self) -> int:
        """A counter that grows when `read_pending_notifications` may find new tasks."""

    async def read_pending_notifications(
        self, known: frozenset[int], limit: int
    ) -> PendingNotifications:
        """Find ended tasks whose notification has not been sent."""

    async def read_records(self, query: RecordQuery) -> tuple[Recorded, ...]:
        """Read one page of records, including expired ones."""

    async def read_stats(self) -> StoreStats:
        """Read the counters."""

    async def count_failures(self, since_ms: int) -> int:
        """Count the tasks that failed since a wall-clock time, members included.

        The count has an upper bound.
        """

    async def read_needed_files(
        self, state: TaskState, after: int, limit: int
    ) -> tuple[NeededFiles, int]:
        """Read the files that the next tasks in a state need, and where to go on.

        Args:
            state: Queued or running.
            after: Where the last answer said to go on; 0 to begin.
            limit: How many tasks to look at.

        Returns:
            The files, and the next value of `after`; 0 at the end.
        """

    async def find_forgotten(
        self, kept: Sequence[KeptOutput]
    ) -> tuple[Sequence[int], int]:
        """Find outputs of tasks that the floor has deleted.

        Those of an attempt that was assigned in a stream unknown here are not found,
        nor those that ended after the floor: another node may know their task.

        Returns:
            Their indices, and the wall-clock milliseconds up to which an end counts.
        """

    async def count_webhooks(self, submitter: str) -> int:
        """Count the tasks of a subject whose notification is still to be sent.

        A task counts from its submission.
        """

    async def read_queued_bytes(self, uncounted_bytes: int) -> Mapping[str, int]:
        """Read the bytes of queued tasks by submitter, beyond so many of each task."""

    async def close(self) -> None:
        """Commit queued items, stop the writer and close the file."""
