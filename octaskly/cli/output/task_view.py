"""The optional fields of a task, as lines of `show`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from octaskly.cli.output.render import (
    data_size,
    format_optional_duration,
    note,
    print_fields,
)
from octaskly.client import Session
from octaskly.client.flows.rest_calls import ARRAYS, Call, resource_path
from octaskly.config.units import SECONDS
from octaskly.rest.client_types import Task
from octaskly.rest.tasks import (
    ArrayMember,
    Explanation,
    Members,
    Requirements,
    ResourceLimits,
    TaskArray,
)

PARENTS_SHOWN: Final = 5  #: a task may have a thousand
RETRY_ON_DEFAULT: Final = ["failure", "lost"]


def option_fields(task: Task) -> list[tuple[str, object]]:
    """Return key and value of each optional field; None if the task omits it."""
    limits = {k: str(most) for k, most in _fields(task.limits).items() if most}
    return [
        ("time limit", format_time_limit(task)),
        ("grace", None if task.grace is None else f"{task.grace} s"),
        ("limits", format_pairs(limits)),
        ("needs", ", ".join(_needs(_fields(task.requires))) or None),
        ("priority", task.priority or None),
        ("retries", _retries(task)),
        ("after", _parents(task.after, task.on)),
        ("outputs of", ", ".join(task.outputs_of) or None),
        ("retry of", task.retry_of),
        ("notify url", task.notify_url),
        ("env", format_pairs(task.env)),
        ("cwd", task.cwd),
        ("workdir", task.workdir),
        ("stdin", _stdin(task)),
    ]


def format_pairs(named: Mapping[str, str]) -> str | None:
    """Return names with their values on one line, None if there are none."""
    shown = (f"{name}={value}" if value else name for name, value in named.items())
    return " ".join(shown) or None


def _fields(asked: Requirements | ResourceLimits | None) -> Mapping[str, Any]:
    return {} if asked is None else msgspec.structs.asdict(asked)


def _needs(requires: Mapping[str, Any]) -> Iterator[str]:
    for name, value in requires.items():
        if name == "labels":
            yield from (f"label {label}={text}" for label, text in value.items())
        elif value is not None:
            yield f"{name}={value}"


def _stdin(task: Task) -> str | None:
    """Return the size of the stdin, None without any."""
    if not task.stdin_bytes:
        return None
    return f"{data_size(task.stdin_bytes)}{', freed' if task.stdin_freed else ''}"


def format_time_limit(task: Task, without: str = "none") -> str:
    """Return the limit as `--timeout` takes it; `without` if there is none."""
    return SECONDS.format(task.timeout) if task.timeout else without


def _retries(task: Task) -> str | None:
    """Return the retry policy, None if it is the default."""
    if not task.retries and task.retry_on in ([], RETRY_ON_DEFAULT):
        return None
    what = ", ".join(map(str, task.retry_on)) or "nothing"
    return f"{task.retries}, on {what}"


def _parents(parents: Sequence[str], end: str | None) -> str | None:
    if not parents:
        return None
    shown = ", ".join(parents[:PARENTS_SHOWN])
    more = len(parents) - PARENTS_SHOWN
    others = f" and {more} more" if more > 0 else ""
    return f"{shown}{others}, on {end}"


STATES = ("queued", "running", "completed", "failed", "cancelled")
SHOWN_FAILED = 20  #: failed members that `show` names


def format_progress(counts: Members) -> str:
    """Return the number of ended members and the total."""
    ended = counts.completed + counts.failed + counts.cancelled
    return f"{ended}/{counts.total}"


def print_array(client: Session, task: Task) -> None:
    """Print the progress of an array and its failed members."""
    counts = task.array or Members()
    failed = client.send_and_decode(
        Call("GET", resource_path(ARRAYS, task.id), {"limit": SHOWN_FAILED}), TaskArray
    ).failed_members
    shown = [f"{member.id} (exit code {_code(member)})" for member in failed]
    more = counts.failed - len(failed)
    print_fields(
        [
            ("id", task.id),
            ("name", task.name),
            ("labels", format_pairs(task.labels)),
            ("state", task.status),
            ("command", task.command),
            ("range", counts.range),
            ("members", counts.total),
            *((state, getattr(counts, state) or None) for state in STATES),
            ("most failures", counts.max_fails),
            *option_fields(task),
            ("created", task.created_at),
            ("started", task.started_at),
            ("ended", task.completed_at),
            ("took", format_optional_duration(task.duration_ms)),
            ("failures", "\n".join(shown) or None),
        ]
    )
    if more > 0:
        note(f"{more} more: octaskly ls --array {task.id} --status failed")


def _code(member: ArrayMember) -> str:
    return "-" if member.exit_code is None else str(member.exit_code)


def explanation_lines(found: Explanation) -> Iterator[str]:
    """Yield what `explain` says, above its table of nodes."""
    inputs = found.inputs
    if inputs is None:
        yield f"{found.id} ({found.status}): {found.summary}"
        return
    if inputs.awaited is not None and found.status == "running":
        yield f"{found.id} (waiting on {inputs.node}): {inputs.awaited}"
        return
    total = data_size(inputs.bytes)
    text = f"{data_size(inputs.present_bytes)} of {total} were already there"
    for sent in inputs.sent:
        text += f"; {data_size(sent.bytes)} came from {sent.node}"
    yield f"{found.id} ({found.status} on {inputs.node}): {text}"
    if found.status not in ("running", "completed"):
        yield found.summary
