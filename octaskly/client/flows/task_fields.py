"""The typed keyword arguments of a task, and their encoding as a submission."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import (
    Any,
    Final,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypedDict,
    runtime_checkable,
)

import msgspec

from octaskly.client.errors import Invalid
from octaskly.core.model.placeholders import split_placeholders
from octaskly.rest.client_types import Draft, Task

COMMAND_BYTES_MAX: Final = 65_536
TASKS_MAX: Final = 10_000  #: per request
BODY_BYTES_MAX: Final = 32 << 20
STDIN_BYTES_MAX: Final = 1 << 20

Status = Literal["queued", "running", "completed", "failed", "cancelled"]
Durability = Literal["normal", "strict"]


Sharing = Literal["upload", "replicate", "lend"]
"""Ways to bring files to the nodes that run tasks.

`upload` stores them at one node; `replicate` at as many nodes as tasks, so that the
client may go; `lend` keeps them here until they are wanted, unless they are small.
"""


@runtime_checkable
class PathLike(Protocol):
    """A path, as of `pathlib`."""

    def __fspath__(self) -> str:
        """Return it as text."""


LocalPath: TypeAlias = str | PathLike
Paths: TypeAlias = LocalPath | Iterable[LocalPath]
"""One path, or several."""

Parents: TypeAlias = str | Task | Iterable[str | Task]
"""One task or its id, or several."""

Inputs: TypeAlias = (
    LocalPath
    | Iterable[LocalPath | tuple[LocalPath, LocalPath]]
    | Mapping[Any, LocalPath]
)
"""Files and folders to send: one, several, or each with its place."""


class InputPath(NamedTuple):
    """A file or folder to send; in an array, both paths may have placeholders."""

    path: str  #: absolute, or relative to the current folder
    place: str | None = None  #: in the task's folder; None: where it is here

    @property
    def is_template(self) -> bool:
        """Return True if it differs between the members of an array."""
        return any(len(split_placeholders(text or "")) > 1 for text in self)


class Limits(TypedDict, total=False):
    """Resource limits of a task; a task that exceeds one is ended."""

    memory_mb: int
    cpu_seconds: int
    file_mb: int
    processes: int


class Requires(TypedDict, total=False):
    """Requirements on the node that runs a task."""

    labels: Mapping[str, str]
    node: str  #: name or id
    os: str
    arch: str
    cpus: int
    memory_mb: int
    gpus: int
    python: str  #: minor version of an interpreter that runs calls


class InputFields(TypedDict, total=False):
    """The fields of a task about what is sent along; see `TaskFields`."""

    inputs: Inputs
    includes_ignored: bool


class TaskFields(TypedDict, total=False):
    """All fields of a task, as the REST reference describes them, but for three.

    `inputs` are files and folders of this machine, which are sent along: a path,
    several paths, or a mapping or pairs of a path and its place in the task's folder.
    `includes_ignored` also sends what git ignores below folders. `needs` are the
    `inputs` of the REST API: files that must be in the worker directory of a node.
    `needs` and `outputs` are one path or several; `after` and `outputs_of` are one task
    or id, or several.

    `timeout` limits the run time of the task in seconds; without one, there is no
    limit. `deadline_s` limits the client's wait.
    """

    timeout: int | None
    inputs: Inputs
    includes_ignored: bool
    needs: Paths
    outputs: Paths
    id: str
    name: str
    call: str
    labels: Mapping[str, str]
    env: Mapping[str, str]
    cwd: str
    same_folder: Mapping[str, Any]
    workdir: Literal["scratch"]
    stdin: str | bytes
    grace: int
    limits: Limits
    notify_url: str
    priority: int
    requires: Requires
    fail_fast: bool
    retries: int
    retry_on: Sequence[int | Literal["failure", "lost"]]
    outputs_of: Parents
    after: Parents
    on: Literal["success", "failure", "any"]
    visitors: bool | Literal["with-env"]
    visitors_min: int


def make_draft(
    command: str, task_fields: TaskFields, array: Mapping[str, Any] | None = None
) -> Draft:
    """Return the task to submit.

    Raises:
        Invalid: a keyword is unknown, a value is no path or no task, or bytes are
            given as text.
    """
    fields: dict[str, Any] = dict(task_fields)
    unknown = sorted(set(fields) - TaskFields.__optional_keys__)
    if unknown:
        known = ", ".join(sorted(TaskFields.__optional_keys__))
        raise invalid_value(
            f"a task has no field {unknown[0]!r}", f"use one of {known}", unknown[0]
        )
    if (stdin := fields.pop("stdin", None)) is not None:
        fields["stdin_base64"] = _base64(stdin)
    for field in ("needs", "outputs"):
        if field in fields:
            fields[field] = paths_of(fields[field], field)
    for field in ("after", "outputs_of"):
        if field in fields:
            fields[field] = [_parent_id(one, field) for one in listed(fields[field])]
    for field, value in {"command": command, **fields}.items():
        _refuse_bytes(value, field)
    if fields.get("outputs_of"):
        fields.setdefault("workdir", "scratch")
    return Draft(command=command, array=dict(array) if array else None, **fields)


def paths_of(value: Paths, field: str) -> list[str]:
    """Return one path or several as text; raise `Invalid` for anything else."""
    return [path_text(one, field) for one in listed(value)]


def listed(value: object) -> Iterable[Any]:
    """Return several values as they are, and a single one in a list."""
    is_one = isinstance(value, str | bytes | PathLike)
    return [value] if is_one or not isinstance(value, Iterable) else value


def path_text(value: object, field: str) -> str:
    """Return a path as text; raise `Invalid` if it is something else."""
    path = value.__fspath__() if isinstance(value, PathLike) else value
    if isinstance(path, str):
        return path
    if isinstance(path, bytes):
        raise invalid_value(
            f"{field} has the bytes {path!r:.80}, but a path is text",
            "os.fsdecode returns the text of a path in bytes",
            field,
        )
    raise invalid_value(
        f"{field} has {value!r:.80}, which is not a path",
        "a path is a string or an os.PathLike, such as pathlib.Path",
        field,
    )


def _parent_id(task: object, field: str) -> str:
    if isinstance(task, str | Task):
        return ref_of(task)
    raise invalid_value(
        f"{field} has {task!r:.80}, which is neither a task nor its id",
        "give what submit returns, or its id",
        field,
    )


def _refuse_bytes(value: object, field: str) -> None:
    """Raise `Invalid` for bytes, which msgspec would send as base64."""
    if isinstance(value, bytes | bytearray | memoryview):
        what = f"{field} has the bytes {bytes(value)!r:.80}, but it is text"
        raise invalid_value(what, "decode returns the text of bytes", field)
    if isinstance(value, Mapping):
        for name, one in value.items():
            _refuse_bytes(name, field)
            _refuse_bytes(one, field)
    elif isinstance(value, list | tuple):
        for one in value:
            _refuse_bytes(one, field)


def ref_of(task: str | Task) -> str:
    """Return the id of a task."""
    return task.id if isinstance(task, Task) else task


def encode_batch(drafts: Iterable[Draft]) -> bytes:
    """Return the body of one submission, as a JSON array.

    Raises:
        Invalid: the tasks exceed a limit or cannot be encoded; nothing was sent.
    """
    items: list[bytes] = []
    size = 0
    for item in map(encode_json, drafts):
        items.append(item)
        size += len(item) + 1
        if len(items) > TASKS_MAX or size > BODY_BYTES_MAX:
            raise invalid_value(
                "one submission has at most"
                f" {TASKS_MAX} tasks and {BODY_BYTES_MAX >> 20} MiB",
                "client.map(command, items) takes any number; or submit in parts",
                "command",
            )
    return b"[%s]" % b",".join(items)


def encode_json(value: object) -> bytes:
    """Return a value as JSON.

    Raises:
        Invalid: it has a lone surrogate, or a type that JSON does not support.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        raise _surrogate_error(error) from error
    except TypeError as error:
        raise invalid_value("JSON cannot encode a value", str(error), "body") from error


def invalid_value(what: str, hint: str, field: str) -> Invalid:
    """Return the client's own error for a value that the node would refuse."""
    return Invalid(what, status=400, hint=hint, field=field)


def _surrogate_error(error: UnicodeEncodeError) -> Invalid:
    hint = "stdin takes any bytes; commands, names and paths are text"
    return invalid_value(
        f"{error.object!a:.80} is not text: it has a lone surrogate", hint, "$"
    )


def _base64(stdin: str | bytes) -> str:
    try:
        # Not `bytes(stdin)`, which of a number are as many zeros.
        data = stdin.encode() if isinstance(stdin, str) else bytes(memoryview(stdin))
    except UnicodeEncodeError as error:
        raise _surrogate_error(error) from error
    except TypeError as error:
        what = f"stdin has {stdin!r:.80}, which is neither text nor bytes"
        raise invalid_value(
            what, "give the text or the bytes that the command reads", "stdin"
        ) from error
    return base64.b64encode(data).decode()
