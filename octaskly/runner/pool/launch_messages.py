"""Turns what a launcher reports into an outcome."""

from __future__ import annotations

import errno
import os
from typing import Any

from octaskly.core.model.arrays import INDEX_VARIABLE, ITEM_VARIABLE
from octaskly.core.model.ids import task_name
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.runner.launch_protocol import NOT_STARTED, RESOURCE_ERRORS
from octaskly.runner.pool.attempts import PoolAttempt, requested_limits

GPU_VARIABLE = b"CUDA_VISIBLE_DEVICES"
RESERVED_PREFIX = "OCTASKLY_"  #: begins the variables that only the agent sets
MEMBER_VARIABLES = (
    INDEX_VARIABLE,
    ITEM_VARIABLE,
)  #: which come with the task all the same


def build_start_order(item: PoolAttempt) -> list[object]:
    """Return the order to start an attempt; of most tasks it has no wishes."""
    spec = item.spec
    order: list[object] = [
        *("run", item.key, task_name(spec.id), str(item.attempt.n), item.marker),
        *(_to_bytes(spec.command), spec.timeout_s),
    ]
    if spec.options is not None:
        asked = build_launch_options(spec.options)
        if item.folder is not None:
            asked["folder"] = os.fsencode(item.folder)
        if (group := item.limit_group) is not None:
            asked["group"] = [os.fsencode(group.folder), group.enforced, len(group.fds)]
        if item.gpus:
            env = {**asked.get("env", {}), GPU_VARIABLE: ",".join(item.gpus).encode()}
            asked["env"] = env
        if asked:
            order.append(asked)
    return order


def build_launch_options(options: TaskOptions) -> dict[str, Any]:
    """Return what a launcher must know of what a task asks for, as bytes.

    `env` adds variables; `cwd` and `stdin` are given if they are not the usual ones,
    and so are `grace_s` and `limits`, the latter by the names of `TaskLimits`. An
    attempt with a folder of its own has `folder` besides, and one with a cgroup of its
    own `group`: its folder, the limits that it holds, and how many descriptors come.
    """
    asked: dict[str, Any] = {}
    if env := [pair for pair in options.env if _is_variable_allowed(pair[0])]:
        asked["env"] = {_to_bytes(name): _to_bytes(value) for name, value in env}
    if options.cwd:
        asked["cwd"] = _to_bytes(options.cwd)
    if options.stdin:
        asked["stdin"] = options.stdin
    if options.grace_s is not None:
        asked["grace_s"] = options.grace_s
    if options.limits is not None:
        asked["limits"] = requested_limits(options.limits)
    return asked


def _is_variable_allowed(name: str) -> bool:
    return not name.startswith(RESERVED_PREFIX) or name in MEMBER_VARIABLES


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


TIMEOUT_EXIT_CODE = 124
SIGNAL_EXIT_OFFSET = 128
DETAIL_CHARS_MAX = 4096
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)


def outcome_of_end(fields: list[Any]) -> Outcome:
    """Return the outcome that an `end` message tells.

    Args:
        fields: Status (negative: minus the signal), verdict, started_ms, ended_ms,
            duration_ms, cpu_ms, memory_max_kb, stdout, stderr, stdout_bytes,
            stderr_bytes, detail.
    """
    status, verdict, started_ms, ended_ms, duration_ms, cpu_ms, memory_max_kb = fields[
        :7
    ]
    stdout, stderr, stdout_bytes, stderr_bytes, detail = fields[7:]
    state, reason = AttemptState.FAILED, EndReason.EXIT
    exit_code, number = status, None
    if status < 0:
        exit_code, number, reason = (
            SIGNAL_EXIT_OFFSET - status,
            -status,
            EndReason.SIGNAL,
        )
    if verdict == "timeout":
        exit_code, number, reason = TIMEOUT_EXIT_CODE, None, EndReason.TIMEOUT
    elif verdict == "draining":
        return released_outcome(EndReason.DRAINING, _describe_exit(status))
    elif verdict == "limit":
        reason = EndReason.LIMIT
    elif verdict == "cancelled":
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


def _describe_exit(status: int) -> str:
    """Return how the main process of an attempt ended that does not count."""
    return f"ended by signal {-status}" if status < 0 else f"ended with code {status}"


def clean_detail(text: str) -> str:
    """Return what explains an end, as the log can keep it: bounded, and UTF-8."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    if len(shown) > DETAIL_CHARS_MAX:
        shown = shown[: DETAIL_CHARS_MAX - 3] + "..."
    return shown


def released_outcome(reason: EndReason, detail: str = "") -> Outcome:
    """Return the outcome of an attempt that did not end here: another may follow."""
    return Outcome(
        state=AttemptState.RELEASED, reason=reason, detail=clean_detail(detail)
    )


def preparation_failed(error: BaseException, node: str) -> Outcome:
    """Return the outcome of an attempt whose folder or inputs could not be had.

    What this machine lacks at this moment another one may have; anything else would
    go wrong again. It lacks room for longer, as for inputs: others are tried first.
    """
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
        why = os.strerror(error.errno)
        return released_outcome(
            EndReason.INPUTS, f"room for a scratch folder on {node} ({why})"
        )
    if not isinstance(error, OSError) or error.errno in RESOURCE_ERRORS:
        return released_outcome(EndReason.LOST, f"inputs not checked: {error}")
    return Outcome(
        state=AttemptState.FAILED,
        reason=EndReason.EXIT,
        exit_code=NOT_STARTED,
        detail=clean_detail(f"no scratch folder on {node}: {error}"),
    )


def cancelled_outcome() -> Outcome:
    """Return the outcome of an attempt that was stopped before it began."""
    return Outcome(state=AttemptState.CANCELLED, reason=EndReason.CANCELLED)
