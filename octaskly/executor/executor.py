"""The executor: calls and commands as futures."""

from __future__ import annotations

import base64
import secrets
import shlex
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor as FuturesExecutor
from concurrent.futures import Future
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeVar, Unpack

import msgspec

from octaskly.client.endpoint import resolve_endpoint
from octaskly.client.flows.retry import RETRY_TIMEOUT_S
from octaskly.client.flows.task_fields import Limits, Requires, TaskFields, make_draft
from octaskly.executor.call_runner import RESULT_FILE
from octaskly.executor.engine import Engine, WorkItem
from octaskly.executor.large_values import UploadedValues
from octaskly.executor.mesh import MeshClient
from octaskly.executor.results import result_of_task
from octaskly.rest.client_types import Draft, Task

if TYPE_CHECKING:
    from octaskly.executor.pickling import Arguments, CallPayload

TASKS_MAX_DEFAULT: Final = (
    1000  #: tasks in the mesh at a time, unless another number is asked for
)
CALL_S_MAX: Final = 86_400  #: how long a call may run, unless said otherwise
NAME_CHARS_MAX: Final = 128

_CALL_RUNNER = '"${OCTASKLY_CALLEE:?the agent of this node knows no calls: update it}"'
_AGENT_PYTHON = '"$OCTASKLY_PYTHON"'
_T = TypeVar("_T")


class ExecutorFields(TypedDict, total=False):
    """What all tasks of an executor ask for; the REST reference says what it means."""

    timeout: int
    labels: Mapping[str, str]
    env: Mapping[str, str]
    grace: int
    limits: Limits
    priority: int
    requires: Requires
    retries: int
    retry_on: Sequence[int | Literal["failure", "lost"]]


class Executor(FuturesExecutor):
    """The mesh as an executor of `concurrent.futures`.

        with octaskly.Executor() as executor:
            print(list(executor.map(render, range(240))))

    A call runs in a fresh process of its own, on whatever node has a slot. It may run
    again where a node is lost, unless `retry_on` says otherwise. Functions and values
    travel by cloudpickle, between this process and that one alone; what is large goes
    as files. Nodes need the same minor version of Python and `octaskly[python]`.

    Args:
        max_workers: How many tasks of this executor are in the mesh at a time, waiting
            or running; the others wait here, where they can still be cancelled without
            a request.
        url: As for `Client`, and so are `token`, `ca`, `node` and `state_dir`.
        retry_timeout_s: How long a mesh that does not answer is asked again.
        python: The interpreter on the nodes; default the one that runs their agent.
        asked: What all tasks ask for, as `requires={"memory_mb": 4096}`.

    Raises:
        ConfigError: a place that cannot be used.
        Invalid: something that no task can ask for.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        url: str | None = None,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        node: str | None = None,
        state_dir: str | Path | None = None,
        retry_timeout_s: float = RETRY_TIMEOUT_S,
        python: str | None = None,
        **fields: Unpack[ExecutorFields],
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        place = resolve_endpoint(
            url, token=token, ca=ca, node=node, state_dir=state_dir
        )
        self._mesh = MeshClient(place, retry_timeout_s)
        self._engine = Engine(self._mesh, max_workers or TASKS_MAX_DEFAULT)
        self._uploads = UploadedValues(self._mesh)
        interpreter = _AGENT_PYTHON if python is None else shlex.quote(python)
        self._command = f"exec {interpreter} {_CALL_RUNNER}"
        self._task_fields = fields
        make_draft(self._command, _merge_fields(fields, {}))
        self._prefix = f"py-{secrets.token_hex(6)}"
        self._numbers = count()
        # What was submitted goes on without this object; the rest of it ends then.
        weakref.finalize(self, self._engine.close).atexit = False

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Call `fn(*args, **kwargs)` on a node; return the future of what it returns.

        Raises:
            PicklingError: the function or an argument cannot be pickled; says which.
            RuntimeError: it is too late for more work.
            MeshLost: no node answers any more.
        """
        return self._submit_calls(fn, [(args, kwargs)], is_chunk=False)

    def submit_command(
        self, command: str, **fields: Unpack[TaskFields]
    ) -> Future[Task]:
        """Run a command on a node; return the future of the ended task.

        A command that fails is no exception: look at `exit_code`.

        Raises:
            Invalid: it asks for something that no task knows.
        """
        self._engine.check_open()
        name = fields.get("id") or self._new_task_id()
        made = make_draft(
            command, _merge_fields(self._task_fields, {**fields, "id": name})
        )
        size = len(command) + len(made.stdin_base64 or "")
        return self._add(WorkItem(name, size, lambda: made, lambda task: task))

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[_T]:
        """Yield `fn` of each of the items, in order, as the built-in `map`.

        Args:
            fn: The function.
            iterables: Its arguments.
            timeout: Seconds from now on until a result must be there.
            chunksize: How many calls one task performs, one after the other. A process
                begins in a tenth of a second, so short calls need large chunks.
            buffersize: How many chunks are submitted ahead of the one that is yielded;
                None: all of them at once.

        Raises:
            TimeoutError: a result was not there in time; what is left is cancelled.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else time.monotonic() + timeout
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        futures = (self._submit_calls(fn, chunk, is_chunk=True) for chunk in chunks)
        begun: deque[Future[list[_T]]] = deque(islice(futures, buffersize))
        return _results(begun, futures, end)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as the base class has it
        """Take no more work; wait for what was submitted, or cancel what waits."""
        self._engine.close(cancels_pending=cancel_futures)
        if wait:
            self._engine.join()

    def _submit_calls(
        self, fn: Callable[..., Any], calls: Sequence[Arguments], *, is_chunk: bool
    ) -> Future[Any]:
        # Commands do without cloudpickle.
        from octaskly.executor.pickling import pickle_calls  # noqa: PLC0415

        self._engine.check_open()
        packed = pickle_calls(fn, calls, is_chunk=is_chunk)
        name = self._new_task_id()
        make = partial(self._make_draft, name, _shown_name(fn), packed)
        digests = [blob.sha256 for blob in packed.blobs]
        after = partial(self._uploads.release, digests) if digests else None
        value = partial(result_of_task, self._mesh)
        return self._add(WorkItem(name, len(packed.stdin), make, value, after))

    def _make_draft(self, name: str, task_name: str, payload: CallPayload) -> Draft:
        own: TaskFields = {
            "id": name,
            "name": task_name,
            "workdir": "scratch",
            "outputs": [RESULT_FILE],
            "files": self._uploads.upload(payload.blobs),
        }
        asked = {"timeout": CALL_S_MAX, **self._task_fields}
        made = make_draft(self._command, _merge_fields(asked, own))
        stdin = base64.b64encode(payload.stdin).decode()
        return msgspec.structs.replace(made, stdin_base64=stdin)

    def _add(self, item: WorkItem) -> Future[Any]:
        self._engine.add(item)
        return item.future

    def _new_task_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"


def _merge_fields(asked: Mapping[str, Any], more: Mapping[str, Any]) -> TaskFields:
    """Return what a task asks for beyond what all of them do."""
    merged: Any = {**asked, **more}
    if "env" in asked and "env" in more:
        merged["env"] = {**asked["env"], **more["env"]}
    return merged  # type: ignore[no-any-return]


def _chunks(items: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[Arguments]]:
    """Yield calls in lists of a size; the last one may be shorter."""
    calls: Iterator[Arguments] = ((item, {}) for item in items)
    while chunk := list(islice(calls, size)):
        yield chunk


def _results(
    started: deque[Future[list[_T]]],
    more: Iterator[Future[list[_T]]],
    deadline_s: float | None,
) -> Generator[_T]:
    """Yield results in order; cancel what is left when nobody wants any more."""
    try:
        while started:
            values = _result(started.popleft(), deadline_s)
            started.extend(islice(more, 1))
            values.reverse()
            while values:
                yield values.pop()  # Nothing here refers to it any more.
    finally:
        for future in started:
            future.cancel()


def _result(future: Future[list[_T]], deadline_s: float | None) -> list[_T]:
    try:
        return future.result(
            None if deadline_s is None else deadline_s - time.monotonic()
        )
    finally:
        future.cancel()


def _shown_name(fn: Callable[..., Any]) -> str:
    """Return the name of a task that calls a function."""
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    return "".join(c for c in name if c.isprintable())[:NAME_CHARS_MAX] or "call"
