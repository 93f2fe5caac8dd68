"""Values about tasks: states, specs, attempts and outcomes.

`core.log.merge` has the record that joins all facts about a task.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct

from octaskly.core.model.field_types import (
    Amount,
    Blob,
    Count,
    Int,
    Millis,
    Subject,
    Text,
)
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.task_options import CHAR_BYTES, ArraySpec, TaskOptions

PRIORITY_BAND = 50  #: band of priority 0; a lower band runs first
PRIORITY_SHIFT = 56  #: in `TaskSpec.ord` the timestamp lies below the priority band
ORD_HLC_MASK = (1 << PRIORITY_SHIFT) - 1  #: bits of the timestamp in `TaskSpec.ord`
ORD_MAX = 127 << PRIORITY_SHIFT  #: leaves room for one more band in 63 bits
SPEC_BYTES = 256  #: size of a spec in a message without its texts, roughly
SPEC_PATH_CHARS = 8  #: overhead of a path in a message, roughly
OUTPUT_FILE_CHARS = 6  #: the same of an output file


class TaskState(StrEnum):
    """The state of a task in the API."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Return True if only the merge after a network split can change it."""
        return self is not TaskState.QUEUED and self is not TaskState.RUNNING


class AttemptState(IntEnum):
    """The state of an attempt; a merge keeps the highest."""

    ASSIGNED = 0
    RUNNING = 1
    RELEASED = 2  #: returned, refused or lost: it did not run to its end
    CANCELLED = 3
    FAILED = 4
    OK = 5

    @property
    def is_live(self) -> bool:
        """Return True if a worker holds it."""
        return self <= AttemptState.RUNNING


class EndReason(StrEnum):
    """The reason for the end of an attempt or a task."""

    EXIT = "exit"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    LOST = "lost"
    INPUTS = "inputs"
    LIMIT = "limit"
    POISON = "poison"
    CANCELLED = "cancelled"
    # The following only release an attempt; a task never shows them.
    RETURNED = "returned"  #: it waited on its worker while other workers had room
    DRAINING = "draining"
    STALE = "stale"  #: refused: sent by a deposed dispatcher, or before a pause
    ROOM = "room"  #: its worker lacks space or resources to run it now


PRIORITY_MAX = 50  #: and the lowest priority is -50
Priority = Annotated[int, Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)]
"""A higher one runs first."""


def ord_of(priority: int, hlc: int) -> int:
    """Return the place in the queue of a priority and a timestamp."""
    return PRIORITY_BAND - priority << PRIORITY_SHIFT | hlc


def priority_of(ord_: int) -> int:
    """Return the priority of a place in the queue."""
    return PRIORITY_BAND - (ord_ >> PRIORITY_SHIFT)


Paths = Annotated[tuple[Text, ...], Meta(max_length=10_000)]


class TaskSpec(Struct, frozen=True, gc=False, array_like=True):
    """The immutable specification of a task, as the user submitted it."""

    id: TaskId
    command: Text
    timeout_s: Amount | None = 3600  #: None: no limit
    inputs: Paths = ()
    outputs: Paths = ()
    submitter: Subject = ""  #: subject of the token, or `local:<user>@<node>`
    created_ms: Millis = 0  #: wall clock of the dispatcher that accepted it
    ord: Annotated[int, Meta(ge=0, lt=ORD_MAX)] = (
        0  #: place in the queue: priority band << 56 | hybrid timestamp
    )
    options: TaskOptions | None = None

    @property
    def array(self) -> ArraySpec | None:
        """The array's members, if the task is an array."""
        return None if self.options is None else self.options.array

    @property
    def may_run_twice(self) -> bool:
        """Return True if another attempt may follow one that was lost while it ran."""
        retry = None if self.options is None else self.options.retry
        return retry is None or retry.on_lost

    @property
    def needs_preparation(self) -> bool:
        """Return True if its node must check, fetch or create something for it."""
        options = self.options
        return bool(self.inputs or self.outputs) or (
            options is not None
            and (
                options.is_scratch
                or options.stdin_file is not None
                or options.same_folder is not None
            )
        )

    @property
    def has_dependencies(self) -> bool:
        """Return True if the task runs after others."""
        return self.options is not None and self.options.after is not None

    @property
    def size_bytes(self) -> int:
        """Upper bound on its size in a message, roughly."""
        chars = len(self.command) + len(self.submitter)
        if self.inputs or self.outputs:
            for path in self.inputs + self.outputs:
                chars += len(path) + SPEC_PATH_CHARS
        if self.options is not None:
            chars += self.options.chars
        return SPEC_BYTES + CHAR_BYTES * chars


class LaneKey(NamedTuple):
    """The part of the queue in which a task waits, and that the store reads in order.

    Released members are stored without their submitter, so they have lanes of their
    own.
    """

    shape: int = 0  #: digest of the requirements; 0: none
    submitter: str = ""
    is_array: bool = False


MEMBERS_LANE: Final = LaneKey()  #: of released members without requirements


DETAIL_CHARS_MAX = 4096  #: of an outcome, as a correct worker reports it


class OutputFile(Struct, frozen=True, gc=False, array_like=True):
    """A declared output after the end of an attempt."""

    path: Text
    size_bytes: Count | None  #: None: it was missing, or could not be kept
    file_count: Count | None = None  #: files and links of a folder or glob


class Outcome(Struct, frozen=True, gc=False, array_like=True):
    """How one attempt ended."""

    state: AttemptState  #: RELEASED, CANCELLED, FAILED or OK
    reason: EndReason
    exit_code: Int | None = None  #: of the process; 128+N for signal N; 124: timeout
    signal: Int | None = None
    started_ms: Millis | None = None  #: wall clock of the worker
    ended_ms: Millis | None = None
    duration_ms: Millis | None = None  #: by the monotonic clock
    stdout: Blob = b""  #: the part that was kept, as raw bytes
    stderr: Blob = b""
    stdout_bytes: Count = 0  #: number of bytes that the task wrote
    stderr_bytes: Count = 0
    outputs: Annotated[tuple[OutputFile, ...], Meta(max_length=10_000)] = ()
    detail: Text = ""  #: for people, such as the name of the missing input
    cpu_ms: Millis | None = None  #: processor time of its processes
    memory_max_kb: Count | None = None
    """Peak resident memory of its largest process; None if small."""

    @property
    def size_bytes(self) -> int:
        """Upper bound on its output, texts and files in a message, roughly."""
        if not (self.stdout or self.stderr or self.outputs or self.detail):
            return 0
        chars = len(self.detail)
        for file in self.outputs:
            chars += len(file.path) + OUTPUT_FILE_CHARS
        return len(self.stdout) + len(self.stderr) + CHAR_BYTES * chars

    @property
    def was_observed(self) -> bool:
        """Return True if a worker saw the end; else its output is unknown."""
        return self.reason not in (EndReason.LOST, EndReason.POISON)


class Attempt(Struct, frozen=True, gc=False, array_like=True):
    """One run of a task, as recorded in the log."""

    id: AttemptId
    node: NodeId
    state: AttemptState = AttemptState.ASSIGNED
    outcome: Outcome | None = None  #: present once the state is not live
    decided_term: Count = 0  #: last epoch that decided the task by this end; 0: none
