"""Values about tasks: states, specs, attempts and outcomes."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated

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

PRIORITY_SHIFT = 56  #: in `TaskSpec.ord` the timestamp lies below the priority band
ORD_MAX = 127 << PRIORITY_SHIFT  #: behind each place is that of another band
SPEC_BYTES = 256  #: of the envelope of a task beyond its texts, roughly
SPEC_PATH_CHARS = 8  #: of a path in a message, beyond its characters, roughly


class TaskState(StrEnum):
    """Where a task stands, as the API says it."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Return True if nothing but the heal of a split can change it."""
        return self is not TaskState.QUEUED and self is not TaskState.RUNNING


class AttemptState(IntEnum):
    """How far an attempt has come; merging keeps the highest."""

    ASSIGNED = 0
    RUNNING = 1
    RELEASED = 2  #: given back, refused or lost: another attempt may follow
    CANCELLED = 3
    FAILED = 4
    OK = 5

    @property
    def is_live(self) -> bool:
        """Return True if a worker holds it."""
        return self <= AttemptState.RUNNING


class EndReason(StrEnum):
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


Paths = Annotated[tuple[Text, ...], Meta(max_length=10_000)]


class TaskSpec(Struct, frozen=True, array_like=True):
    """What a user asked for: the immutable envelope of a task."""

    id: TaskId
    command: Text
    timeout_s: Amount = 3600
    inputs: Paths = ()
    outputs: Paths = ()
    submitter: Subject = ""  #: subject of the token, or `local:<user>@<node>`
    created_ms: Millis = 0  #: wall clock of the dispatcher that accepted it
    ord: Annotated[int, Meta(ge=0, lt=ORD_MAX)] = (
        0  #: place in the queue: priority band << 56 | hybrid timestamp
    )
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


class OutputFile(Struct, frozen=True, array_like=True):
    """A declared output after the end of an attempt."""

    path: Text
    size_bytes: Count | None  #: None: the file was missing or not a regular file


class Outcome(Struct, frozen=True, array_like=True):
    """What really happened to one attempt that ended."""

    state: AttemptState  #: RELEASED, CANCELLED, FAILED or OK
    reason: EndReason
    exit_code: Int | None = None  #: the process's own; 128+N by signal; 124 timeout
    signal: Int | None = None
    started_ms: Millis | None = None  #: wall clock of the worker
    ended_ms: Millis | None = None
    duration_ms: Millis | None = None  #: by the monotonic clock
    stdout: Blob = b""  #: what was kept, exact bytes
    stderr: Blob = b""
    stdout_bytes: Count = 0  #: what the task really wrote
    stderr_bytes: Count = 0
    outputs: Annotated[tuple[OutputFile, ...], Meta(max_length=10_000)] = ()
    detail: Text = ""  #: for people: the missing input, the folder that is not there
    cpu_ms: Millis | None = None  #: processor time of its processes
    memory_max_kb: Count | None = None
    """Most that one of its processes had resident; None: little."""

    @property
    def was_observed(self) -> bool:
        """Whether anybody saw the end; else it is not known what the attempt wrote."""
        return self.reason not in (EndReason.LOST, EndReason.POISON)


class Attempt(Struct, frozen=True, array_like=True):
    """One run of a task, as the log knows it."""

    id: AttemptId
    node: NodeId
    state: AttemptState = AttemptState.ASSIGNED
    outcome: Outcome | None = None  #: present once the state is not live
