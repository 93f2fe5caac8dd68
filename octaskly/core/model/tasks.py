"""Values about tasks: states, specs, attempts and outcomes."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple

from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.task_options import CHAR_BYTES, ArraySpec, TaskOptions
from octaskly.core.model.values import value

TIME_MS_MAX = 1 << 47  #: a wall clock in the year 6429, which can be shown
SPEC_BYTES = 256  #: of the envelope of a task beyond its texts, roughly
SPEC_PATH_CHARS = 8  #: of a path in a message, beyond its characters, roughly


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
    reason: EndReason
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
    def was_observed(self) -> bool:
        """Whether anybody saw the end; else it is not known what the attempt wrote."""
        return self.reason not in (EndReason.LOST, EndReason.POISON)


@value(frozen=True, slots=True)
class Attempt:
    """One run of a task, as the log knows it."""

    id: AttemptId
    node: NodeId
    state: AttemptState = AttemptState.ASSIGNED
    outcome: Outcome | None = None  #: present once the state is not live
