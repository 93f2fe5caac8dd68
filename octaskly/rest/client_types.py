"""Types that only clients use: drafts to submit, and tasks with decoded output."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from octaskly.rest.tasks import TaskDetail, TaskLines

FINAL: Final = frozenset({"completed", "failed", "cancelled"})


class Task(TaskDetail, frozen=True, kw_only=True, dict=True):
    """A task as the API shows it; a field is None while the node does not know it.

    `stdout` and `stderr` contain the first MiB of each stream as text. Replacement
    characters stand for bytes that are not UTF-8; `output_bytes` returns the exact
    bytes.
    """

    command: str | None = None
    command_truncated: bool = False  #: a list shows only the beginning of `command`
    labels_truncated: bool = False  #: a list shows only the first labels
    short_id: str = ""  #: only in a list: the shortest text that names it
    index: int | None = None  #: only for a member of an array, like `item`
    item: str | None = None
    replicas: int | None = None  #: only in the response to a submission

    def __repr__(self) -> str:
        """Return the fields that identify a task and its result.

        The others are many, and its output may be long.
        """
        names = ("id", "command", "status", "worker_id", "exit_code", "signal")
        known = ((name, getattr(self, name)) for name in names)
        shown = (f"{name}={value!r}" for name, value in known if value is not None)
        return f"Task({', '.join(shown)})"

    @property
    def is_final(self) -> bool:
        """Return True if the task has ended.

        Only the end of a network partition can still change the state.
        """
        return self.status in FINAL

    @property
    def encoding(self) -> str | None:
        """Encoding of the output that was sent: None, `base64` or `utf-8-replaced`."""
        return self.sent_encoding or None

    @property
    def stdout(self) -> str | None:
        """The stdout of the task as text; None before its end."""
        return self._text(self.sent_stdout)

    @property
    def stderr(self) -> str | None:
        """The stderr of the task as text; None before its end."""
        return self._text(self.sent_stderr)

    def output_bytes(self, stream: str) -> bytes:
        """Return the kept bytes of `stream`, which is `stdout` or `stderr`."""
        text = (self.sent_stdout if stream == "stdout" else self.sent_stderr) or ""
        if self.encoding == "base64":
            return base64.b64decode(text)
        return text.encode("utf-8", "surrogatepass")

    def fetch(self, folder: Any = ".", **options: Any) -> Any:
        """Place all outputs of this task in a folder, as `Client.fetch` does.

        A task of an `AsyncClient` returns a coroutine.

        Raises:
            ValueError: the task was not returned by a client.
        """
        client = self.__dict__.get(_CLIENT)
        if client is None:
            raise ValueError(f"no client has returned {self.id}")
        return client.fetch(self, folder, **options)

    def _text(self, sent: str | None) -> str | None:
        if sent is None or self.encoding != "base64":
            return sent
        return base64.b64decode(sent).decode("utf-8", "replace")


def has_all_output(task: Task) -> bool:
    """Return True if a task has ended and a node sent its output as a whole."""
    is_cut = task.stdout_truncated or task.stderr_truncated
    return task.is_final and task.sent_stdout is not None and not is_cut


_CLIENT: Final = "client"
_SENT: Final = "sent"

_T = TypeVar("_T")


class SentDigests(NamedTuple):
    """Digests of files that were sent with a task, for fetching its outputs."""

    folder: str  #: absolute path of the folder from which they were sent
    by_path: Mapping[str, bytes]  #: SHA-256 by the path in that folder


def sent_with(task: str | Task) -> SentDigests | None:
    """Return the digests of the files that this client has sent with a task."""
    return None if isinstance(task, str) else task.__dict__.get(_SENT)


def with_sent(task: Task, sent: SentDigests | None) -> Task:
    """Return a task that remembers the files that were sent with it."""
    if sent is not None:
        task.__dict__[_SENT] = sent
    return task


def bound_to(client: object, value: _T) -> _T:
    """Return a value whose tasks remember the client that returned them."""
    for task in value if isinstance(value, list) else [value]:
        if isinstance(task, Task):
            task.__dict__[_CLIENT] = client
    return value


class TaskPage(TaskLines, frozen=True, kw_only=True):
    """One page of tasks."""

    tasks: list[Task]


class Draft(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task to submit; the node sets the default of each field that is left out."""

    command: str
    timeout: int | Literal["none"] | None = None  #: None becomes "none"
    needs: list[str] = msgspec.field(default_factory=list, name="inputs")
    outputs: list[str] = []
    id: str | None = None
    name: str | None = None
    labels: dict[str, str] = {}
    env: dict[str, str] = {}
    cwd: str | None = None
    workdir: str | None = None
    stdin_base64: str | None = None
    grace: int | None = None
    limits: dict[str, int] = {}
    notify_url: str | None = None
    priority: int = 0
    requires: dict[str, Any] = {}
    visitors: bool | str | None = None
    visitors_min: int | None = None
    fail_fast: bool = False
    array: dict[str, Any] | None = None
    retries: int | None = None
    retry_on: list[int | str] | None = None
    after: list[str] = []
    on: str | None = None
    tree: dict[str, Any] | None = None
    stdin_file: dict[str, str] | None = None
    same_folder: dict[str, Any] | None = None
    outputs_of: list[str] = []
    call: str | None = None

    def __post_init__(self) -> None:
        """Ask for no time limit unless one was given: the node's default is an hour."""
        if self.timeout is None:
            msgspec.structs.force_setattr(self, "timeout", "none")
