"""Turns what a launcher reports into an outcome."""

from __future__ import annotations

import errno
import os
from typing import Any

from octaskly.core.model.arrays import INDEX_VARIABLE, ITEM_VARIABLE
from octaskly.core.model.ids import task_name
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.runner.launch_protocol import NOT_STARTED, SCARCE
from octaskly.runner.pool.attempts import Item, given_limits

GPUS = b"CUDA_VISIBLE_DEVICES"
RESERVED = "OCTASKLY_"  #: begins the variables that only the agent sets
OF_MEMBERS = (INDEX_VARIABLE, ITEM_VARIABLE)  #: which come with the task all the same


def run_order(item: Item) -> list[object]:
    """Return the order to start an attempt; of most tasks it has no wishes."""
    spec = item.spec
    order: list[object] = [
        *("run", item.key, task_name(spec.id), str(item.attempt.n), item.mark),
        *(_raw(spec.command), spec.timeout_s),
    ]
    if spec.options is not None:
        asked = wishes(spec.options)
        if item.folder is not None:
            asked["folder"] = os.fsencode(item.folder)
        if (group := item.enclosure) is not None:
            asked["group"] = [os.fsencode(group.folder), group.held, len(group.fds)]
        if item.gpus:
            env = {**asked.get("env", {}), GPUS: ",".join(item.gpus).encode()}
            asked["env"] = env
        if asked:
            order.append(asked)
    return order


def wishes(options: TaskOptions) -> dict[str, Any]:
    """Return what a launcher must know of what a task asks for, as bytes.

    `env` adds variables; `cwd` and `stdin` are given if they are not the usual ones,
    and so are `grace_s` and `limits`, the latter by the names of `TaskLimits`. An
    attempt with a folder of its own has `folder` besides, and one with a cgroup of its
    own `group`: its folder, the limits that it holds, and how many descriptors come.
    """
    asked: dict[str, Any] = {}
    if env := [pair for pair in options.env if _is_taken(pair[0])]:
        asked["env"] = {_raw(name): _raw(value) for name, value in env}
    if options.cwd:
        asked["cwd"] = _raw(options.cwd)
    if options.stdin:
        asked["stdin"] = options.stdin
    if options.grace_s is not None:
        asked["grace_s"] = options.grace_s
    if options.limits is not None:
        asked["limits"] = given_limits(options.limits)
    return asked


def _is_taken(name: str) -> bool:
    return not name.startswith(RESERVED) or name in OF_MEMBERS


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


TIMED_OUT = 124
SIGNALLED = 128
DETAIL_CHARS_MAX = 4096
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


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
        exit_code, number, reason = SIGNALLED - status, -status, EndReason.SIGNAL
    if verdict == "timeout":
        exit_code, number, reason = TIMED_OUT, None, EndReason.TIMEOUT
    elif verdict == "draining":
        return released(EndReason.DRAINING, _told(status))
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


def _told(status: int) -> str:
    """Return how the main process of an attempt ended that does not count."""
    return f"ended by signal {-status}" if status < 0 else f"ended with code {status}"


def clean_detail(text: str) -> str:
    """Return what explains an end, as the log can keep it: bounded, and UTF-8."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    if len(shown) > DETAIL_CHARS_MAX:
        shown = shown[: DETAIL_CHARS_MAX - 3] + "..."
    return shown


def released(reason: EndReason, detail: str = "") -> Outcome:
    """Return the outcome of an attempt that did not end here: another may follow."""
    return Outcome(
        state=AttemptState.RELEASED, reason=reason, detail=clean_detail(detail)
    )


def not_prepared(error: BaseException, node: str) -> Outcome:
    """Return the outcome of an attempt whose folder or inputs could not be had.

    What this machine lacks at this moment another one may have; anything else would
    go wrong again. It lacks room for longer, as for inputs: others are tried first.
    """
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        why = os.strerror(error.errno)
        return released(
            EndReason.INPUTS, f"room for a scratch folder on {node} ({why})"
        )
    if not isinstance(error, OSError) or error.errno in SCARCE:
        return released(EndReason.LOST, f"inputs not checked: {error}")
    return Outcome(
        state=AttemptState.FAILED,
        reason=EndReason.EXIT,
        exit_code=NOT_STARTED,
        detail=clean_detail(f"no scratch folder on {node}: {error}"),
    )


def cancelled() -> Outcome:
    """Return the outcome of an attempt that was stopped before it began."""
    return Outcome(state=AttemptState.CANCELLED, reason=EndReason.CANCELLED)
