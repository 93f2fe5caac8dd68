"""Interfaces of the clock and the packer, and what the store returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from octaskly.core.log.facts import Entry, PackedEntry
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import (
    Epoch,
    Moment,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.task_options import BlobRef, InputTree
from octaskly.core.model.tasks import Outcome, TaskState
from octaskly.core.protocol.messages import PackedMessage
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuery:
    """One page of tasks, oldest first by default."""

    state: TaskState | None = None
    node: NodeId | None = None
    limit: int = 100
    offset: int = 0  #: ignored in a search, and with `after`
    after: TaskId | None = None  #: only tasks after this one, in the order of the page
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
    unsearched: int = 0  #: number of tasks that later pages of a search scan


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
