"""Pickling of calls, with cloudpickle.

The caller pickles a call here, and the process of its task unpickles it. Results are
sent back in the same way. The nodes between them unpickle neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any

from octaskly.errors import ConfigError
from octaskly.executor import call_runner
from octaskly.executor.call_files import Blob
from octaskly.executor.call_text import Arguments

try:
    import cloudpickle
except ImportError as error:  # pragma: no cover - the extra is there in tests
    raise ConfigError(
        "calls need cloudpickle, which is not installed here",
        hint="pip install cloudpickle    here, and in the environment of each agent",
    ) from error

Part = bytes | memoryview


@dataclass(frozen=True, slots=True)
class CallPayload:
    """A pickled call: its stdin and its large parts."""

    stdin: bytes
    blobs: Sequence[Blob]


def pickle_calls(
    function: Callable[..., Any],
    calls: Sequence[Arguments],
    *,
    is_chunk: bool,
    has_inputs: bool = False,
) -> CallPayload:
    """Pickle one call, or several that one process runs in sequence.

    Args:
        function: The function.
        calls: Its arguments.
        is_chunk: The result is a list of results.
        has_inputs: Files are sent along, which may be modules to import.

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
        "has_inputs": has_inputs,
    }
    blobs: list[Blob] = []
    kept: list[Part | str] = []
    is_small = call_runner.payload_bytes(parts) <= call_runner.INLINE_BYTES_MAX
    for part in parts:
        if is_small or len(part) < call_runner.INLINE_BYTES_MAX // 16:
            kept.append(part)
            continue
        data = bytes(part)  # A copy of a view, whose memory the caller may change.
        digest = hashlib.sha256(data).hexdigest()
        blobs.append(Blob(f"octaskly.{len(blobs)}", digest, data))
        kept.append(blobs[-1].name)
    return CallPayload(b"".join(call_runner.encode_payload(kept, header)), blobs)


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
