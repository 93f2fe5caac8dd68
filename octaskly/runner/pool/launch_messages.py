"""Messages to and from launchers: start orders, and the outcome of an end."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from octaskly.core.model.arrays import INDEX_VARIABLE, ITEM_VARIABLE
from octaskly.core.model.ids import task_name
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import (
    DETAIL_CHARS_MAX,
    AttemptState,
    EndReason,
    Outcome,
)
from octaskly.runner.launch_protocol import NOT_STARTED, RESOURCE_ERRORS
from octaskly.runner.pool.attempts import PoolAttempt, requested_limits

GPU_VARIABLE = b"CUDA_VISIBLE_DEVICES"
RESERVED_PREFIX = "OCTASKLY_"  #: variables with this prefix are set by the agent only
#: Variables of array members: they have the prefix, but come with the task.
MEMBER_VARIABLES = (INDEX_VARIABLE, ITEM_VARIABLE)


def build_start_order(item: PoolAttempt, fds: Sequence[int]) -> list[object]:
    """Return the `run` message of an attempt; the options are left out if empty.

    Args:
        item: The attempt.
        fds: Descriptors that are sent along: those of its group, then that for stdin.
    """
    spec = item.spec
    order: list[object] = [
        *("run", item.key, task_name(spec.id), str(item.attempt.n), item.marker),
        *(_to_bytes(spec.command), spec.timeout_s),
    ]
    if spec.options is not None:
        launch_options = build_launch_options(spec.options)
        if item.folder is not None:
            launch_options["folder"] = os.fsencode(item.folder)
        if (group := item.limit_group) is not None:
            launch_options["group"] = [os.fsencode(group.folder), group.enforced]
        if item.stdin_fd is not None:
            launch_options["has_stdin_file"] = True
        if fds:
            launch_options["fds"] = len(fds)
        if item.gpus:
            env = {
                **launch_options.get("env", {}),
                GPU_VARIABLE: ",".join(item.gpus).encode(),
            }
            launch_options["env"] = env
        if launch_options:
            order.append(launch_options)
    return order


def build_launch_options(options: TaskOptions) -> dict[str, Any]:
    """Return the options of a task that concern its launcher; texts as bytes.

    `env` adds variables. `cwd`, `stdin`, `grace_s` and `limits` are present only if the
    task sets them. The keys of `limits` are the field names of `TaskLimits`.
    `build_start_order` adds `folder`, the scratch folder; `group`, the cgroup's folder
    and the limits that it enforces; `has_stdin_file`, if a descriptor for stdin is sent
    along; and `fds`, the number of descriptors that are.
    """
    launch_options: dict[str, Any] = {}
    if env := [pair for pair in options.env if _is_variable_allowed(pair[0])]:
        launch_options["env"] = {
            _to_bytes(name): _to_bytes(value) for name, value in env
        }
    if options.cwd:
        launch_options["cwd"] = _to_bytes(options.cwd)
    if options.stdin:
        launch_options["stdin"] = options.stdin
    if options.grace_s is not None:
        launch_options["grace_s"] = options.grace_s
    if options.limits is not None:
        launch_options["limits"] = requested_limits(options.limits)
    return launch_options


def _is_variable_allowed(name: str) -> bool:
    return not name.startswith(RESERVED_PREFIX) or name in MEMBER_VARIABLES


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


TIMEOUT_EXIT_CODE = 124
SIGNAL_EXIT_OFFSET = 128
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)


def outcome_of_end(fields: list[Any]) -> Outcome:
    """Return the outcome that an `end` message reports.

    Args:
        fields: Status (negative: minus the signal), end_reason, started_ms, ended_ms,
            duration_ms, cpu_ms, memory_max_kb, stdout, stderr, stdout_bytes,
            stderr_bytes, detail.
    """
    status, end_reason, started_ms, ended_ms, duration_ms, cpu_ms, memory_max_kb = (
        fields[:7]
    )
    stdout, stderr, stdout_bytes, stderr_bytes, detail = fields[7:]
    state, reason = AttemptState.FAILED, EndReason.EXIT
    exit_code, number = status, None
    if status < 0:
        exit_code, number, reason = (
            SIGNAL_EXIT_OFFSET - status,
            -status,
            EndReason.SIGNAL,
        )
    if end_reason == "timeout":
        exit_code, number, reason = TIMEOUT_EXIT_CODE, None, EndReason.TIMEOUT
    elif end_reason == "draining":
        return _stopped_outcome(status, started_ms, ended_ms, duration_ms)
    elif end_reason == "limit":
        reason = EndReason.LIMIT
    elif end_reason == "cancelled":
        state, reason = AttemptState.CANCELLED, EndReason.CANCELLED
    elif status == 0:
        state = AttemptState.OK
    return Outcome(
        state,
        reason,
        exit_code,
        number,
        started_ms,
        ended_ms,
        duration_ms,
        stdout,
        stderr,
        stdout_bytes,
        stderr_bytes,
        (),
        clean_detail(detail) if detail else "",
        cpu_ms,
        memory_max_kb,
    )


def _stopped_outcome(
    status: int, started_ms: int, ended_ms: int, duration_ms: int
) -> Outcome:
    """Return the outcome of an attempt that its node ended to leave."""
    text = f"ended by signal {-status}" if status < 0 else f"ended with code {status}"
    return replace(
        released_outcome(EndReason.DRAINING, text),
        started_ms=started_ms,
        ended_ms=ended_ms,
        duration_ms=duration_ms,
    )


def clean_detail(text: str) -> str:
    """Return a detail text in valid UTF-8 of at most `DETAIL_CHARS_MAX` characters."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    if len(shown) > DETAIL_CHARS_MAX:
        shown = shown[: DETAIL_CHARS_MAX - 3] + "..."
    return shown


def released_outcome(reason: EndReason, detail: str = "") -> Outcome:
    """Return the outcome of an attempt that is released, so that another may follow."""
    return Outcome(
        state=AttemptState.RELEASED, reason=reason, detail=clean_detail(detail)
    )


def is_lack_of_resources(error: BaseException) -> bool:
    """Return True if this machine lacks a resource now, such as memory.

    Any error that is not the system's counts as such, as another node may not have it.
    """
    return not isinstance(error, OSError) or error.errno in RESOURCE_ERRORS


def preparation_failed(error: BaseException, node: str) -> Outcome:
    """Return the outcome of an attempt whose scratch folder or inputs failed.

    A full disk is reported like a missing input: other nodes are tried first. After any
    other error the attempt has failed, because it would fail again.
    """
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
        why = os.strerror(error.errno)
        return released_outcome(
            EndReason.INPUTS, f"space for a scratch folder on {node} ({why})"
        )
    return Outcome(
        state=AttemptState.FAILED,
        reason=EndReason.EXIT,
        exit_code=NOT_STARTED,
        detail=clean_detail(f"no scratch folder on {node}: {error}"),
    )


def cancelled_outcome() -> Outcome:
    """Return the outcome of an attempt that was cancelled before it started."""
    return Outcome(state=AttemptState.CANCELLED, reason=EndReason.CANCELLED)
