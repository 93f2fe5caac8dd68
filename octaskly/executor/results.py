"""Results of futures: the value or the error of an ended task."""

from __future__ import annotations

import shlex
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from octaskly.errors import OctasklyError
from octaskly.executor.call_runner import (
    RESULT_BYTES_MAX,
    RESULT_FILE,
    InvalidPayload,
    decode_payload,
    map_file,
    python_version,
    unpickle,
)
from octaskly.executor.errors import (
    BrokenCall,
    InterpreterMismatch,
    RemoteError,
    RemoteTraceback,
    ResultLost,
)
from octaskly.executor.mesh import MeshClient
from octaskly.rest.client_types import Task

STDERR_LINES: Final = 10  #: shown from a process without a result
STDERR_CHARS_MAX: Final = 1000


def result_of_task(mesh: MeshClient, task: Task) -> Any:
    """Return the value that a call returned.

    Raises:
        BaseException: the exception of the call, or a BrokenCall if there is no value.
    """
    try:
        header, parts = decode_payload(
            memoryview(bytearray(task.output_bytes("stdout")))
        )
    except InvalidPayload:
        raise _broken_call(task) from None
    if header["kind"] == "file":
        header, parts = decode_payload(_fetch_result_file(mesh, task))
    if header["kind"] == "value":
        return _unpickle_value(parts, task)
    if header["kind"] == "error":
        text = f'\n"""\n{header["traceback"]}"""'
        raise _remote_exception(header, parts) from RemoteTraceback(text)
    raise _missing_value_error(header, task)


def _fetch_result_file(mesh: MeshClient, task: Task) -> memoryview:
    """Fetch a result that is in a file on the node of the task."""
    sizes = [output.bytes for output in task.outputs]
    if sizes == [None]:
        raise ResultLost(
            f"the result of {task.id} was not kept on {task.worker_id}",
            task=task.id,
            node=task.worker_id,
            hint="its disk may be full: octaskly doctor    there",
        )
    try:
        # Map the file, so that its pages are loaded only when needed.
        with tempfile.NamedTemporaryFile(prefix="octaskly-") as file:
            file.writelines(mesh.output(task, RESULT_FILE))
            file.flush()
            return map_file(file.name)
    except (OctasklyError, OSError) as error:
        raise ResultLost(
            f"the result of {task.id} on {task.worker_id} cannot be fetched: {error}",
            task=task.id,
            node=task.worker_id,
            hint=f"octaskly show {task.id}",
        ) from error


def _broken_call(task: Task) -> BrokenCall:
    """Return the error of a call whose process wrote no result."""
    text = f"{task.id} {_describe_end(task)}"
    if task.worker_id:
        text += f" on {task.worker_id}"
    last = (task.stderr or "").strip().splitlines()[-STDERR_LINES:]
    if last:
        text += ":\n" + "\n".join(last)[-STDERR_CHARS_MAX:]
    return BrokenCall(
        text,
        task=task.id,
        node=task.worker_id,
        exit_code=task.exit_code,
        signal=_signal_number(task),
        hint=f"octaskly show {task.id}",
    )


def _describe_end(task: Task) -> str:
    """Return how a task ended, as the end of a sentence that starts with its id."""
    match task.reason:
        case "exit":
            return f"ended its interpreter with exit code {task.exit_code}"
        case "signal":
            number = _signal_number(task)
            name = f"signal {number}"
            with suppress(ValueError, TypeError):
                name = signal.Signals(number).name  # type: ignore[arg-type]
            return f"was killed by {name}"
        case "timeout":
            return f"exceeded its timeout of {task.timeout} s"
        case "cancelled" | None:
            return f"was {task.status}"
        case reason:
            return f"failed ({reason}: {task.detail})" if task.detail else reason


def _signal_number(task: Task) -> int | None:
    return None if task.signal is None else int(task.signal)


def _unpickle_value(parts: Sequence[memoryview], task: Task) -> Any:
    try:
        return unpickle(parts)
    except Exception as error:
        raise ResultLost(
            f"the result of {task.id} cannot be unpickled here:"
            f" {type(error).__name__}: {error}",
            task=task.id,
            node=task.worker_id,
        ) from error


def _missing_value_error(header: Mapping[str, Any], task: Task) -> BrokenCall:
    """Return the error for a result with neither a value nor an exception."""
    kind: type[BrokenCall] = ResultLost
    match header["kind"]:
        case "mismatch":
            kind, text = InterpreterMismatch, header["text"]
            hint = _mismatch_hint(header, task.worker_id)
        case "unpicklable":
            text = header["text"]
            hint = "return values that can be pickled, for example numbers or arrays"
        case "too-large":
            most = f"a node keeps at most {RESULT_BYTES_MAX} of a task"
            text = f"the result has {header['bytes']} bytes, and {most}"
            hint = "return it in parts, or write it where all machines can read it"
        case other:
            text, hint = (
                f"the result has the unknown kind {other!r}",
                "octaskly --version    compare it with that of the node",
            )
    return kind(
        f"{text} (on {task.worker_id})", task=task.id, node=task.worker_id, hint=hint
    )


def _mismatch_hint(header: Mapping[str, Any], node: str | None) -> str:
    """Return what to install on the node for an interpreter that the caller named."""
    if package := header.get("package"):
        python = shlex.quote(header["executable"])
        return f"{python} -m pip install {shlex.quote(package)}    on {node}"
    version = python_version()
    return (
        f"install Python {version} on {node}, and name it:"
        f" Executor(python='python{version}')"
    )


def _remote_exception(
    header: Mapping[str, Any], parts: Sequence[memoryview]
) -> BaseException:
    if parts:
        try:
            error = unpickle(parts)
        except Exception:  # noqa: BLE001 - unpickling may run any code of the class
            error = None
        if isinstance(error, BaseException):
            return error
    return RemoteError(f"{header['type']}: {header['text']}")
