"""`Executor`: Python calls and commands as futures."""

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

from octaskly.client.flows.retry import RETRY_TIMEOUT_S
from octaskly.client.flows.task_fields import (
    Inputs,
    Limits,
    Requires,
    TaskFields,
    invalid_value,
    make_draft,
)
from octaskly.client.inputs import TaskInputs, take_inputs
from octaskly.executor.call_files import RAISE_IF_FULL, CallFiles
from octaskly.executor.call_runner import RESULT_FILE, python_version
from octaskly.executor.call_text import Arguments, describe_calls, function_name
from octaskly.executor.engine import Engine, WorkItem
from octaskly.executor.errors import InterpreterMismatch
from octaskly.executor.mesh import MeshClient
from octaskly.executor.results import result_of_task
from octaskly.rest.client_types import Draft, Task
from octaskly.rest.mesh import NodeInfo

if TYPE_CHECKING:
    from octaskly.executor.pickling import CallPayload

TASKS_MAX_DEFAULT: Final = 1000  #: default of `max_workers`
NAME_CHARS_MAX: Final = 128  #: of a task, as the API has it
NODES_SHOWN: Final = 3  #: in a hint

_CALL_RUNNER = (
    '"${OCTASKLY_CALLEE:?the agent of this node does not support calls: update it}"'
)
_T = TypeVar("_T")


class ExecutorFields(TypedDict, total=False):
    """Fields of all tasks of an executor; the REST reference defines them."""

    timeout: int | None
    labels: Mapping[str, str]
    env: Mapping[str, str]
    grace: int
    limits: Limits
    priority: int
    requires: Requires
    retries: int
    retry_on: Sequence[int | Literal["failure", "lost"]]
    inputs: Inputs
    includes_ignored: bool


class Executor(FuturesExecutor):
    """A `concurrent.futures` executor that runs on the mesh.

        with octaskly.Executor() as executor:
            print(list(executor.map(render, range(240))))

    A call runs in its own new process on any node with a free slot. If a node is lost,
    its calls run again, unless `retry_on` prevents it. Functions and values are sent by
    cloudpickle; only this process and the call's process unpickle them. Large values
    are sent as files. A call runs only on nodes that have `octaskly[python]` and an
    interpreter of the same minor Python version, on their PATH or as their agent's.

    Args:
        max_workers: The largest number of this executor's tasks in the mesh at a time,
            queued or running. The others wait in this process and can be cancelled
            without a request.
        url: As for `Client`; so are `token`, `ca`, `node` and `state_dir`.
        retry_timeout_s: How long requests are retried while no node answers.
        python: The interpreter on the nodes, instead of any of the same version.
        fields: Fields of all tasks, for example `requires={"memory_mb": 4096}`. Calls
            can open `inputs`, and import modules among them. They are as at the first
            call, and are sent when a node wants them: leave them as they are.

    Raises:
        ConfigError: the endpoint cannot be used.
        Invalid: a field is unknown, an input is no path, or `requires` has another
            version of Python. Other invalid values are found by the node, and are the
            exception of each future.
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
        self._mesh = MeshClient(
            url=url,
            token=token,
            ca=ca,
            node=node,
            state_dir=state_dir,
            retry_timeout_s=retry_timeout_s,
        )
        self._engine = Engine(self._mesh, max_workers or TASKS_MAX_DEFAULT)
        self._inputs = take_inputs(fields, lend_to=self._mesh.endpoint)
        self._call_files = CallFiles(self._mesh, self._inputs)
        self._task_fields = fields
        self._requires: Requires = {**fields.get("requires", {})}
        if python is None:
            python_variable = f"OCTASKLY_PYTHON_{python_version().replace('.', '_')}"
            interpreter = f'"${python_variable}"'
            wanted = self._requires.setdefault("python", python_version())
            if wanted != python_version():
                raise invalid_value(
                    f"calls need Python {python_version()}, as this process has, and"
                    f" requires.python is {wanted!r:.80}",
                    f"run this program with Python {wanted!s:.80}, or leave it out",
                    "requires",
                )
        else:
            interpreter = shlex.quote(python)
        self._command = f"exec {interpreter} {_CALL_RUNNER}"
        self._has_checked_nodes = python is not None
        make_draft(self._command, _merge_fields(fields, {}))
        self._prefix = f"py-{secrets.token_hex(6)}"
        self._numbers = count()
        # Work continues after this object is garbage-collected; then threads stop.
        weakref.finalize(self, self._engine.close).atexit = False

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Call `fn(*args, **kwargs)` on a node; return the future of its result.

        Raises:
            PicklingError: the function or an argument cannot be pickled.
            RuntimeError: the executor or the interpreter is shutting down.
            MeshLost: no node answers any more.
        """
        return self._submit_calls(fn, [(args, kwargs)], is_chunk=False)

    def submit_command(
        self, command: str, **fields: Unpack[TaskFields]
    ) -> Future[Task]:
        """Run a command on a node; return the future of the ended task.

        A failed command raises no exception: check `exit_code`. If the node refuses
        the task, the refusal is the exception of the future.

        Raises:
            Invalid: a field is unknown, or an input or output is no path.
            RuntimeError: the executor or the interpreter is shutting down.
            MeshLost: no node answers any more.
        """
        self._engine.check_open()
        name = fields.get("id") or self._new_task_id()
        own = take_inputs(fields)
        draft = make_draft(
            command, _merge_fields(self._task_fields, {**fields, "id": name})
        )
        size = len(command) + len(draft.stdin_base64 or "")
        make = partial(self._with_files, own, draft)
        ended = partial(self._call_files.check_result, lambda task: task)
        release = partial(self._call_files.release, name)
        return self._add(WorkItem(name, size, make, ended, release))

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[_T]:
        """Yield `fn` of each item in order, like the built-in `map`.

        Args:
            fn: The function.
            iterables: One iterable per argument of `fn`.
            timeout: Seconds from now within which all results must arrive.
            chunksize: The number of calls that one task runs in sequence. A process
                takes 0.1 s to start, so short calls need large chunks.
            buffersize: The number of chunks submitted ahead of the one being yielded;
                None: all at once.

        Raises:
            TimeoutError: a result was late; the remaining calls are cancelled.
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
        """Refuse further calls, and wait until the submitted ones are done.

        `cancel_futures` cancels the calls that have not started. Without `wait` the
        method returns at once.
        """
        self._engine.close(cancels_pending=cancel_futures)
        if wait:
            self._engine.join()

    def _submit_calls(
        self, fn: Callable[..., Any], calls: Sequence[Arguments], *, is_chunk: bool
    ) -> Future[Any]:
        # Imported here because commands need no cloudpickle.
        from octaskly.executor.pickling import pickle_calls  # noqa: PLC0415

        self._engine.check_open()
        name = self._new_task_id()
        shown, first, call_count = self._shown_call(fn, calls)
        draft = make_draft(
            self._command,
            _merge_fields(
                self._task_fields,
                {
                    "id": name,
                    "name": function_name(shown)[:NAME_CHARS_MAX],
                    "call": describe_calls(shown, first, call_count),
                    "outputs": [RESULT_FILE],
                    "requires": self._requires,
                },
            ),
        )
        payload = pickle_calls(
            fn, calls, is_chunk=is_chunk, has_inputs=bool(self._inputs.paths)
        )
        make = partial(self._with_payload, draft, payload)
        value = partial(
            self._call_files.check_result, partial(result_of_task, self._mesh)
        )
        release = partial(self._call_files.release, name)
        return self._add(WorkItem(name, len(payload.stdin), make, value, release))

    def _shown_call(
        self, fn: Callable[..., Any], calls: Sequence[Arguments]
    ) -> tuple[Callable[..., Any], Arguments, int]:
        """Return function, arguments and number of the calls that lists show."""
        return fn, calls[0], len(calls)

    def _with_payload(self, draft: Draft, payload: CallPayload) -> Draft:
        """Return the task of a call after its files were sent.

        Raises:
            InterpreterMismatch: no node has the Python version of this process.
        """
        assert draft.id is not None
        if not self._has_checked_nodes:
            check_interpreters(self._mesh.nodes(), self._requires)
            self._has_checked_nodes = True
        return msgspec.structs.replace(
            draft,
            workdir="scratch",
            stdin_base64=base64.b64encode(payload.stdin).decode(),
            tree=self._call_files.send(draft.id, payload.blobs),
        )

    def _with_files(self, own: TaskInputs, draft: Draft) -> Draft:
        """Return a command after its own files or those of all tasks were sent."""
        if not own.paths:
            assert draft.id is not None
            tree = self._call_files.send(draft.id, ())
            workdir = draft.workdir if tree is None else "scratch"
            return msgspec.structs.replace(draft, workdir=workdir, tree=tree)
        attach = partial(own.files().attach, drafts=[draft], callbacks=RAISE_IF_FULL)
        return self._mesh.perform(attach).drafts[0]

    def _add(self, item: WorkItem) -> Future[Any]:
        self._engine.add(item)
        return item.future

    def _new_task_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"


def _merge_fields(asked: Mapping[str, Any], more: Mapping[str, Any]) -> TaskFields:
    """Merge the fields of one task into those of all tasks."""
    merged: Any = {**asked, **more}
    if "env" in asked and "env" in more:
        merged["env"] = {**asked["env"], **more["env"]}
    return merged  # type: ignore[no-any-return]


def _chunks(items: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[Arguments]]:
    """Yield lists of `size` calls; the last one may be shorter."""
    calls: Iterator[Arguments] = ((item, {}) for item in items)
    while chunk := list(islice(calls, size)):
        yield chunk


def _results(
    started: deque[Future[list[_T]]],
    more: Iterator[Future[list[_T]]],
    deadline_s: float | None,
) -> Generator[_T]:
    """Yield results in order; cancel the remaining calls when closed."""
    try:
        while started:
            values = _result(started.popleft(), deadline_s)
            started.extend(islice(more, 1))
            values.reverse()
            while values:
                yield values.pop()  # Keep no reference to a yielded value.
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


def check_interpreters(nodes: Sequence[NodeInfo], requires: Requires) -> None:
    """Check that a node with the other requirements has the Python version, too.

    Without this check, a call would wait forever, and nothing would say why.
    If no node meets the others, it waits, as every task does.

    Raises:
        InterpreterMismatch: none has it; the hint says what to install where.
    """
    version = requires["python"]
    candidates = [node for node in nodes if _meets_others(node, requires)]
    if not candidates or any(version in node.pythons for node in candidates):
        return
    hints = list(_hints(candidates[:NODES_SHOWN], version))
    where = "no node" if len(candidates) == len(nodes) else "no node that fits"
    raise InterpreterMismatch(
        f"{where} can run calls of Python {version}", hint="\n".join(hints)
    )


def _hints(nodes: Sequence[NodeInfo], version: str) -> Iterator[str]:
    for node in nodes:
        if not node.pythons:
            yield (
                f"pip install cloudpickle    on {node.name}, in the environment"
                " of its agent, and restart it"
            )
        else:
            yield (
                f"install python{version} on {node.name}, which has"
                f" {', '.join(node.pythons)}, and restart its agent"
            )


def _meets_others(node: NodeInfo, requires: Requires) -> bool:
    """Return True if a node meets the requirements that do not depend on its load."""
    labels = requires.get("labels", {})
    return (
        all(node.labels.get(name) == value for name, value in labels.items())
        and requires.get("node", node.name) in (node.name, node.id)
        and requires.get("os", node.os) == node.os
        and requires.get("arch", node.arch) == node.arch
    )
