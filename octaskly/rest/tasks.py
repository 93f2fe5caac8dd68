"""JSON types for tasks, arrays, attempts and files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from octaskly.rest.base import At, Instant, NodeState, one_of

Status = Annotated[str, one_of("queued", "running", "completed", "failed", "cancelled")]
EndReason = Annotated[
    str,
    one_of(
        *("exit", "signal", "timeout", "lost", "inputs", "limit", "poison"),
        *("cancelled", "returned", "draining", "stale", "room"),
    ),
]
AttemptStatus = Annotated[
    str, one_of("running", "completed", "failed", "cancelled", "released")
]
Encoding = Annotated[str, one_of("base64", "utf-8-replaced")]
ParentsEnd = Annotated[str, one_of("success", "failure", "any")]
RetryCause = int | Annotated[str, one_of("failure", "lost")]
Workdir = Annotated[str, one_of("scratch")]


class Created(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An accepted task."""

    id: str
    command: str | None
    status: Status
    created_at: At | None
    replicas: int


class Repeated(Created, frozen=True, kw_only=True):
    """An accepted task that repeats an ended task."""

    retry_of: str


class FoundRetry(msgspec.Struct, frozen=True, kw_only=True):
    """The task that a retry of an ended task has made; null if there was none."""

    retried_as: str | None


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A cancelled task."""

    id: str
    status: Annotated[str, one_of("cancelled")]
    message: str


class Reprioritized(msgspec.Struct, frozen=True, kw_only=True):
    """A task or an array with its new priority."""

    id: str
    priority: int


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """Number of ended tasks that were forgotten; null while forgetting continues."""

    forgotten: int | None


class NewIds(msgspec.Struct, frozen=True, kw_only=True):
    """Ids for tasks that a client is going to submit."""

    ids: list[str]


class FirstFailure(msgspec.Struct, frozen=True, kw_only=True):
    """The failed member of an array with the lowest number, and how it ended."""

    id: str
    index: int
    exit_code: int | None = None
    signal: int | None = None
    reason: EndReason | None = None
    detail: str | None = None


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of the members of an array, in all and by state, and its progress.

    `rate_per_s` is the number of members that ended per second, from the start of the
    array. `eta_ms` is the time that the others take at this rate, while the array runs.
    Events have neither of them, nor `first_failure`.
    """

    range: str | None = None
    total: int = 0
    max_fails: int | None = None
    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    rate_per_s: float | None = None
    eta_ms: int | None = None
    first_failure: FirstFailure | None = None


class TaskLine(msgspec.Struct, frozen=True, kw_only=True):
    """A task in a list; unknown values are null.

    `started_at` of a running task is the time when its node got it, and of an array the
    first start of a member. `elapsed_ms` is the time since then, while it runs.

    `command_truncated` and `labels_truncated` are true if only the beginning is shown,
    and omitted otherwise. Only lists cut. Only they have `short_id`, the shortest text
    that names the task at this moment, unless that is `id`.

    `missing_output` is the first declared output that a completed task lacks, and
    omitted if it lacks none.
    """

    id: str
    short_id: str | msgspec.UnsetType = msgspec.UNSET
    command: str | None = ""
    command_truncated: bool | msgspec.UnsetType = msgspec.UNSET
    status: Status
    worker_id: str | None = None
    attempt: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: EndReason | None = None
    detail: str | None = None
    timeout: int | None = None
    created_at: At | None = None
    duration_ms: int | None = None
    queue_ms: int | None = None
    cpu_seconds: float | None = None
    memory_peak_mb: float | None = None
    started_at: At | None = None
    elapsed_ms: int | None = None
    completed_at: At | None = None
    missing_output: str | msgspec.UnsetType = msgspec.UNSET
    priority: int | None = None
    name: str | None = None
    call: str | None = None  #: to show instead of the command
    labels: dict[str, str] = {}
    labels_truncated: bool | msgspec.UnsetType = msgspec.UNSET
    array: Members | None = None


class TaskLines(msgspec.Struct, frozen=True, kw_only=True):
    """A page of tasks, without their output.

    Only a search sends `next` and `left`. `next` is the `after` of the next request, or
    null at the end. `left` is the number of tasks that later responses will examine.
    `total` is null unless the first response examined all tasks; then `left` is 0.
    """

    tasks: Sequence[TaskLine]
    total: int | None
    returned: int = 0
    limit: int = 0
    offset: int = 0
    next: str | msgspec.UnsetType | None = msgspec.UNSET
    left: int | msgspec.UnsetType = msgspec.UNSET


class ArrayMember(TaskLine, frozen=True, kw_only=True):
    """A member of an array."""

    index: int
    item: str


class TaskArray(TaskLine, frozen=True, kw_only=True):
    """An array, with a page of its failed members."""

    failed_members: list[ArrayMember] = []


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """A declared output; `bytes` is null if it was missing at the end.

    `files` is the number of files and links that a folder or glob covered, and null for
    a file.
    """

    path: str
    bytes: int | None = None
    files: int | None = None


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """Requirements of a task for its node; null means no requirement."""

    labels: dict[str, str] = {}
    node: str | None = None
    os: str | None = None
    arch: str | None = None
    cpus: int | None = None
    memory_mb: int | None = None
    gpus: int | None = None
    python: str | None = None


class ResourceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Resource limits of a task; null means no limit."""

    memory_mb: int | None = None
    cpu_seconds: int | None = None
    file_mb: int | None = None
    processes: int | None = None


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file on a node, which tasks can name."""

    sha256: str
    bytes: int
    node: str


class BlobRef(msgspec.Struct, frozen=True, kw_only=True):
    """A blob at a node: a file, or the manifest of a tree."""

    sha256: str
    node: str


class TaskTree(BlobRef, frozen=True, kw_only=True):
    """The tree of files that a node places in an attempt's folder."""

    folders: list[str] = []  #: whose contents it gets together; empty for all
    lent: bool = False  #: a client sends its files when a node wants them


class SameFolder(msgspec.Struct, frozen=True, kw_only=True):
    """A file by which a node recognises the folder in which a task must run."""

    name: str
    sha256: str
    read_only: bool = False


class TreeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of a tree: a file, a link, or an empty folder.

    `bytes` is null unless it is a file.
    Its path and target come from a client or a task, so nothing in them is trusted.
    """

    path: str
    kind: Annotated[str, one_of("file", "link", "folder")]
    bytes: int | None = None
    modified_at: At | None = None
    executable: bool = False
    target: str | None = None  #: of a link


class TreePage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the entries of a tree, in the order of their paths.

    `total` is the number of all entries, and `bytes` the size of all files.
    """

    entries: Sequence[TreeEntry]
    total: int
    bytes: int
    returned: int = 0
    limit: int = 0
    offset: int = 0


class OutputTree(BlobRef, frozen=True, kw_only=True):
    """The outputs of a task as a tree."""

    task: str  #: of the outputs of an array, a member


class OutputTrees(msgspec.Struct, frozen=True, kw_only=True):
    """The outputs of a task, or of the members of an array, as trees."""

    trees: list[OutputTree]


class MissingFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the asked files a node lacks."""

    missing: list[str]  #: their SHA-256, in the order of the request
    arrived: dict[str, int] = {}
    """Number of bytes that have arrived of those that are sent in pieces."""
    node: str
    quota_bytes: int | None = None  #: most that all files together may have there


class TreeCopies(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes that have all files of a tree."""

    nodes: list[str]  #: ids, the dispatcher first


class HeldTrees(msgspec.Struct, frozen=True, kw_only=True):
    """A node's answer to a request to hold trees: a text for each failure."""

    failures: list[str]


class HeldIndices(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the outputs that were asked for a node has, by index."""

    held: list[int]


class ForgottenIndices(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the outputs that a node keeps are of forgotten tasks, by index."""

    forgotten: list[int]
    before_ms: int  #: none that ended later is


class VerifiedFile(msgspec.Struct, frozen=True, kw_only=True):
    """The result of reading a stored file; a wrong one is deleted."""

    is_right: bool


class StoredPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A file that has arrived in part."""

    sha256: str
    bytes: int  #: size of the whole file
    arrived: int  #: number of bytes from its start
    node: str


class StoredPack(msgspec.Struct, kw_only=True):
    """What a node stored of a pack."""

    files: int
    bytes: int
    node: str


class TaskDetail(TaskLine, frozen=True, kw_only=True):
    """A task with all its fields."""

    sent_stdout: str | None = msgspec.field(default=None, name="stdout")
    sent_stderr: str | None = msgspec.field(default=None, name="stderr")
    sent_encoding: Encoding | msgspec.UnsetType = msgspec.field(
        default=msgspec.UNSET, name="encoding"
    )
    stdout_bytes: int | None = None
    stdout_truncated: bool | None = None
    stderr_bytes: int | None = None
    stderr_truncated: bool | None = None
    inputs: list[str] = []
    outputs: list[Output] = []
    outputs_missing: list[str] = []
    after: list[str] = []
    on: ParentsEnd | None = None
    retry_of: str | None = None
    retries: int = 0
    retry_on: list[RetryCause] = []
    notify_url: str | None = None
    env: dict[str, str] = {}
    cwd: str | None = None
    stdin_bytes: int = 0
    stdin_freed: bool = False
    workdir: Workdir | None = None
    tree: TaskTree | None = None
    stdin_file: BlobRef | None = None
    same_folder: SameFolder | None = None
    outputs_of: list[str] = []
    grace: int | None = None
    visitors: bool | None = None
    visitors_min: int | None = None
    requires: Requirements | None = None
    limits: ResourceLimits | None = None


class Submitted(TaskDetail, frozen=True, kw_only=True):
    """An accepted task that the submission has waited for, as it is then.

    The output of an ended task is null if it is larger than 32 KiB.
    """

    replicas: int


class TaskEnd(TaskLine, frozen=True, kw_only=True):
    """The end of a task or of one attempt, in a stream of its output."""

    stdout_bytes: int | None = None
    stdout_truncated: bool | None = None
    stderr_bytes: int | None = None
    stderr_truncated: bool | None = None


class MemberResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a member of an array, in a stream of results.

    `position` counts members from 0. `outputs` and `outputs_missing` are left out if
    there are none, or very many.
    """

    id: str
    status: Status
    worker_id: str | None
    attempt: int | None
    exit_code: int | None
    signal: int | None
    reason: EndReason | None
    detail: str | None
    duration_ms: int | None
    stdout: str | None
    stderr: str | None
    encoding: Encoding
    stdout_bytes: int | None
    stdout_truncated: bool | None
    stderr_bytes: int | None
    stderr_truncated: bool | None
    outputs: list[Output] | msgspec.UnsetType = msgspec.UNSET
    outputs_missing: list[str] | msgspec.UnsetType = msgspec.UNSET
    index: int
    position: int


class TaskChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a task's state, without its command and output.

    A webhook message gives the time in `timestamp` and omits `at`.
    """

    id: str
    status: Status
    at: At | msgspec.UnsetType | None = msgspec.UNSET
    worker_id: str | None
    attempt: int | None
    exit_code: int | None
    signal: int | None
    reason: EndReason | None
    duration_ms: int | None
    created_at: At | None
    started_at: At | None
    completed_at: At | None
    array: Members | None


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """The webhook message that reports the end of a task."""

    type: str
    timestamp: At | None
    data: TaskChange


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """A reason that prevents a node from running a task."""

    code: str
    message: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The reasons that prevent one node from running a task."""

    name: str
    id: str = ""
    state: NodeState = ""
    reasons: list[Reason] = []


class SentBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a task's files that a node sent."""

    node: str
    bytes: int


class InputBytes(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of a task's files: what its node had already, and what others sent.

    `awaited` says which files have not arrived; null once the command may start.
    """

    node: str
    bytes: int
    present_bytes: int
    sent: list[SentBytes] = []  #: the most first
    awaited: str | None = None


class QueuedAhead(msgspec.Struct, frozen=True, kw_only=True):
    """Queued work that comes before a task: an array, or tasks of one submitter.

    `tasks` counts the single tasks that come first, at least so many unless `exact`.
    With `takes_turns`, it has the same priority and alternates with the task.
    """

    submitter: str
    array: str | None = None
    tasks: int = 1
    exact: bool = True
    takes_turns: bool = False


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Explanation of a task's state; `nodes` is filled for a queued task.

    `placement` says why the dispatcher chose the node that has or had the task.
    `inputs` is null if the task has no files, or if its node does not know any more.
    `first_failure` is the failed member of an array with the lowest number.
    `ahead` lists, by turn, what a task that waits for capacity has before it.
    """

    id: str
    status: Status
    summary: str
    first_failure: FirstFailure | None = None
    placement: str | None = None
    inputs: InputBytes | None = None
    nodes: list[Verdict] = []
    ahead: list[QueuedAhead] = []


class AttemptLine(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a task; a `released` one was lost or returned."""

    attempt: int = 0
    worker_id: str = ""
    status: AttemptStatus = ""
    reason: EndReason | None = None
    detail: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    started_at: Instant | None = None
    completed_at: Instant | None = None
    duration_ms: int | None = None
    cpu_seconds: float | None = None
    memory_peak_mb: float | None = None


class Attempts(msgspec.Struct, frozen=True, kw_only=True):
    """The attempts of one task, in order."""

    id: str
    attempts: list[AttemptLine]


class Run(AttemptLine, frozen=True, kw_only=True):
    """An attempt with its task; `has_files` is true if files were sent along.

    Only running attempts have `short_id`, unless that is `id`.
    """

    id: str
    short_id: str | msgspec.UnsetType = msgspec.UNSET
    name: str | None = None
    call: str | None = None
    command: str = ""
    assigned_at: Instant | None = None
    has_files: bool = False


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """Running attempts, and attempts that ended recently."""

    running: list[Run]
    ended: list[Run] = []
    truncated: bool = False
    now: Instant
