"""Results of futures: the value or the error of an ended task."""

from __future__ import annotations

import signal
import tempfile
from contextlib import suppress
from typing import Any, Final

from octaskly.errors import OctasklyError
from octaskly.executor.call_runner import (
    RESULT_FILE,
    InvalidPayload,
    decode_payload,
    map_file,
)
from octaskly.executor.errors import BrokenCall, ResultLost
from octaskly.executor.mesh import MeshClient
from octaskly.rest.client_types import Task

STDERR_LINES: Final = 10  #: shown from a process without a result
STDERR_CHARS_MAX: Final = 1000


def result_of_task(mesh: MeshClient, task: Task) -> Any:
    """Return the value that a call returned.

    Raises:
        BaseException: the exception of the call, or a BrokenCall if there is no value.
    """
    from octaskly.executor.pickling import unpickle_result  # noqa: PLC0415 - as in `executor`

    data = memoryview(bytearray(task.output_bytes("stdout")))
    try:
        header, _ = decode_payload(data)
    except InvalidPayload:
        raise _broken_call(task) from None
    if header["kind"] == "file":
        data = _fetch_result_file(mesh, task)
    return unpickle_result(data, task)


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
            mesh.save_output(task.id, RESULT_FILE, file)
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
            return f"took longer than its {task.timeout} s"
        case "cancelled" | None:
            return f"was {task.status}"
        case reason:
            return f"failed ({reason}: {task.detail})" if task.detail else reason


def _signal_number(task: Task) -> int | None:
    return None if task.signal is None else int(task.signal)
