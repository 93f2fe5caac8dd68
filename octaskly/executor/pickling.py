"""Pickling of calls and unpickling of their results, with cloudpickle.

The caller pickles a call here, and the process of its task unpickles it. Results are
sent back in the same way. The nodes between them unpickle neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any

from octaskly.errors import ConfigError
from octaskly.executor import call_runner
from octaskly.executor.errors import (
    BrokenCall,
    InterpreterMismatch,
    RemoteError,
    RemoteTraceback,
    ResultLost,
)
from octaskly.executor.large_values import Blob
from octaskly.rest.client_types import Task

try:
    import cloudpickle
except ImportError as error:  # pragma: no cover - the extra is there in tests
    raise ConfigError(
        "calls need cloudpickle, which is not installed here",
        hint="pip install 'octaskly[python]'    here, and where the agents run",
    ) from error

Part = bytes | memoryview
Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class CallPayload:
    """A pickled call: its stdin and its large parts."""

    stdin: bytes
    blobs: Sequence[Blob]


def pickle_calls(
    function: Callable[..., Any], calls: Sequence[Arguments], *, is_chunk: bool
) -> CallPayload:
    """Pickle one call, or several that one process runs in sequence.

    Raises:
        PicklingError: the function or an argument cannot be pickled.
    """
    try:
        parts = call_runner.pickle_value((function, calls, is_chunk), cloudpickle.dumps)
    except Exception as error:  # Whatever `__reduce__` of the caller's class raises.
        raise _unpicklable_error(function, calls, error) from error
    header = {
        "python": call_runner.python_version(),
        "cloudpickle": cloudpickle.__version__,
    }
    blobs: list[Blob] = []
    kept: list[Part | str] = []
    is_small = call_runner.payload_bytes(parts) <= call_runner.INLINE_BYTES_MAX
    for part in parts:
        if is_small or len(part) < call_runner.INLINE_BYTES_MAX // 16:
            kept.append(part)
            continue
        digest = hashlib.sha256(part).hexdigest()
        blobs.append(Blob(f"octaskly.{len(blobs)}", digest, part))
        kept.append(blobs[-1].name)
    return CallPayload(b"".join(call_runner.encode_payload(kept, header)), blobs)


def unpickle_result(data: memoryview, task: Task) -> Any:
    """Return the value in the result of a call.

    Raises:
        BaseException: the exception of the call, or a BrokenCall if there is no value.
    """
    header, parts = call_runner.decode_payload(data)
    if header["kind"] == "value":
        return _unpickle_value(parts, task)
    if header["kind"] == "error":
        text = f'\n"""\n{header["traceback"]}"""'
        raise _remote_exception(header, parts) from RemoteTraceback(text)
    raise _missing_value_error(header, task)


def _unpickle_value(parts: Sequence[memoryview], task: Task) -> Any:
    try:
        return call_runner.unpickle(parts)
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
            hint = (
                "pip install 'octaskly[python]'    there; or Executor(python=...) names"
                " another interpreter on the nodes"
            )
        case "unpicklable":
            text = header["text"]
            hint = "return values that can be pickled, for example numbers or arrays"
        case "too-large":
            most = f"a node keeps at most {call_runner.RESULT_BYTES_MAX} of a task"
            text = f"the result has {header['bytes']} bytes, and {most}"
            hint = "return it in parts, or write it where all machines can read it"
        case other:
            text, hint = (
                f"the result has the unknown kind {other!r}",
                "octaskly --version",
            )
    return kind(
        f"{text} (on {task.worker_id})", task=task.id, node=task.worker_id, hint=hint
    )


def _remote_exception(
    header: Mapping[str, Any], parts: Sequence[memoryview]
) -> BaseException:
    if parts:
        try:
            error = call_runner.unpickle(parts)
        except Exception:  # noqa: BLE001 - unpickling may run any code of the class
            error = None
        if isinstance(error, BaseException):
            return error
    return RemoteError(f"{header['type']}: {header['text']}")


def _unpicklable_error(
    function: Callable[..., Any], calls: Sequence[Arguments], error: Exception
) -> PicklingError:
    name = getattr(function, "__qualname__", repr(function))
    for what, value in _named_values(function, calls):
        try:
            cloudpickle.dumps(value)
        except Exception as why:  # noqa: BLE001 - as above
            kind = type(value).__name__
            return PicklingError(
                f"{what} of {name}(), a {kind}, cannot be pickled: {why}"
            )
    return PicklingError(f"the call of {name}() cannot be pickled: {error}")


def _named_values(
    function: Callable[..., Any], calls: Sequence[Arguments]
) -> Iterable[tuple[str, Any]]:
    yield "the code", function
    for number, (arguments, named) in enumerate(calls):
        of = f"call {number}, " if len(calls) > 1 else ""
        for index, value in enumerate(arguments):
            yield f"{of}argument {index + 1}", value
        for key, value in named.items():
            yield f"{of}argument {key!r}", value
