"""The optional fields of a task, as lines of `show`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Final, Literal

import msgspec

from octaskly.cli.output.render import (
    count_of,
    data_size,
    duration,
    format_optional_duration,
    listed,
    note,
    print_fields,
    size,
    time_left,
)
from octaskly.client import Session
from octaskly.client.flows.rest_calls import ARRAYS, TASKS, Call, resource_path
from octaskly.config.units import SECONDS
from octaskly.core.end_text import end_text
from octaskly.rest.client_types import Task
from octaskly.rest.tasks import (
    ArrayMember,
    AttemptLine,
    Attempts,
    Explanation,
    Members,
    Requirements,
    ResourceLimits,
    TaskArray,
)

ITEM_CHARS: Final = 60  #: shown of the item of a member
PARENTS_SHOWN: Final = 5  #: a task may have a thousand
RETRY_ON_DEFAULT: Final = ["failure", "lost"]
NEVER_STARTED: Final = ("returned", "stale")  #: such attempts only waited on a node

TRACEBACK_LINES: Final = 30  #: last lines of the stderr of a failed call


def print_task(
    task: Task,
    earlier: Sequence[AttemptLine],
    missing: Mapping[str, int],
    why_queued: str | None = None,
) -> None:
    """Print all that is known of a task.

    Args:
        task: The task.
        earlier: Its earlier attempts.
        missing: Number of bytes of its output that are not kept, by stream.
        why_queued: The reason why no node runs it yet.
    """
    is_done = task.is_final and task.reason not in (None, "exit")
    signal = f" {task.signal}" if task.signal is not None else ""
    print_fields(
        [
            ("id", task.id),
            # The name of a call is that of its function.
            ("call", task.call),
            ("name", None if task.call else task.name),
            ("labels", format_pairs(task.labels)),
            ("state", _state(task, missing)),
            ("queued because", why_queued),
            ("command", None if task.call else task.command),
            ("node", task.worker_id),
            ("attempt", task.attempt),
            ("earlier attempts", "\n".join(map(_describe_attempt, earlier)) or None),
            ("exit code", task.exit_code),
            ("ended by", f"{task.reason}{signal}" if is_done else None),
            ("because", task.detail),
            *option_fields(task),
            ("submitted", task.created_at),
            ("started", task.started_at),
            ("elapsed", format_optional_duration(task.elapsed_ms)),
            ("ended", task.completed_at),
            ("queued for", format_optional_duration(task.queue_ms)),
            ("took", format_optional_duration(task.duration_ms)),
            ("cpu time", format_optional_duration(_milliseconds(task.cpu_seconds))),
            ("memory", _memory(task.memory_peak_mb)),
            ("inputs", ", ".join(task.inputs) or None),
            *(_call_result if task.call else _command_result)(task, missing),
        ]
    )


def _state(task: Task, missing: Mapping[str, int]) -> str:
    """Return the state of a task, and what a completed task lacks."""
    lacking = [listed(task.outputs_missing)] if task.outputs_missing else []
    lacking += [f"{data_size(size)} of {name}" for name, size in missing.items()]
    if task.status != "completed" or not lacking:
        return task.status
    return f"{task.status}, but without {' and '.join(lacking)}"


def _command_result(
    task: Task, missing: Mapping[str, int]
) -> Iterator[tuple[str, object]]:
    yield "outputs", _outputs(task)
    yield "stdout", _stream(task.stdout_bytes, missing["stdout"])
    yield "stderr", _stream(task.stderr_bytes, missing["stderr"])


def _call_result(
    task: Task, missing: Mapping[str, int]
) -> Iterator[tuple[str, object]]:
    """Yield the size of what a call printed and returned, and what it raised."""
    yield "printed", _stream(task.stderr_bytes, missing["stderr"])
    if task.status == "completed":
        yield "value", f"{data_size(_value_bytes(task))}, from result() of the future"
    yield "traceback", _traceback(task)


def _value_bytes(task: Task) -> int:
    """Return the size of the pickled value of a completed call.

    A large value is the output of the call, and its stdout says so.
    """
    in_file = sum(output.bytes or 0 for output in task.outputs)
    return in_file or task.stdout_bytes or 0


def command_of(task: Task) -> str:
    """Return a Python call as people write it, or the command of another task."""
    return task.call or task.command or ""


def text_streams(task: Task) -> Literal["both", "stderr"]:
    """Return the streams of a task that people read.

    A Python call prints on stderr, whatever it uses: stdout is its pickled value.
    """
    return "stderr" if task.call else "both"


def fetch_earlier_attempts(client: Session, task: Task) -> list[AttemptLine]:
    """Return the attempts before the one that the task shows.

    Attempts that another node took over before they started are left out: they
    tell the user nothing, and which tasks have some is a matter of chance.
    """
    if task.attempt == 1:
        return []
    reply = client.send_and_decode(
        Call("GET", resource_path(TASKS, task.id, "attempts")), Attempts
    )
    return [
        each
        for each in reply.attempts
        if each.attempt != task.attempt and each.reason not in NEVER_STARTED
    ]


def _describe_attempt(attempt: AttemptLine) -> str:
    how = end_text(attempt.reason, attempt.exit_code, attempt.signal, attempt.detail)
    if attempt.status == "running":
        how = "running"
    elif attempt.duration_ms is not None:
        how += f" after {duration(attempt.duration_ms)}"
    return f"{attempt.attempt} on {attempt.worker_id}: {how}"


def _traceback(task: Task) -> str | None:
    """Return the end of the stderr of a Python call that failed."""
    text = (task.stderr or "").rstrip()
    if not (task.call and task.status == "failed" and text):
        return None
    return "\n".join(text.splitlines()[-TRACEBACK_LINES:])


def option_fields(task: Task) -> list[tuple[str, object]]:
    """Return key and value of each optional field; None if the task omits it."""
    limits = {k: str(most) for k, most in _fields(task.limits).items() if most}
    return [
        ("timeout", format_time_limit(task)),
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
        # How a call travels is no choice of its caller.
        ("workdir", None if task.call else task.workdir),
        ("stdin", None if task.call else _stdin(task)),
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
    return f"{data_size(task.stdin_bytes)}{', deleted' if task.stdin_freed else ''}"


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


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _memory(megabytes: float | None) -> str | None:
    return None if megabytes is None else f"{size(round(megabytes * (1 << 20)))} peak"


def _outputs(task: Task) -> str | None:
    shown = []
    for output in task.outputs:
        if output.bytes is None:
            shown.append(f"{output.path} (missing)" if task.is_final else output.path)
        elif output.files is None:
            shown.append(f"{output.path} ({data_size(output.bytes)})")
        else:
            shown.append(
                f"{output.path} ({count_of(output.files, 'file')},"
                f" {data_size(output.bytes)})"
            )
    return ", ".join(shown) or None


def fetch_missing_output(client: Session, task: Task) -> Counter[str]:
    """Return the number of bytes that are not kept, by stream.

    The task has the beginning of each stream; only its log tells what is kept of a
    longer one.
    """
    missing: Counter[str] = Counter()
    if task.stdout_truncated or task.stderr_truncated:
        # Imported here, because most tasks print less.
        from octaskly.client.flows import streams  # noqa: PLC0415

        requests = client.requests
        until = requests.deadline_after(None)
        flow = streams.logs(
            requests,
            task.id,
            follow=False,
            stream="both",
            attempt=None,
            after="",
            deadline=until,
        )
        with closing(client.iterate(flow)) as logs:
            for log in logs:
                if log.kind == "gap":
                    missing[log.details["stream"]] += log.details["bytes"]
    return missing


def _stream(count: int | None, missing: int) -> str | None:
    if not count:
        return None
    return data_size(count) + (
        f", truncated: {data_size(missing)} missing" if missing else ""
    )


STATES = ("queued", "running", "completed", "failed", "cancelled")
SHOWN_FAILED = 20  #: failed members that `show` names


def format_progress(counts: Members) -> str:
    """Return the number of ended members and the total."""
    return f"{count_ended(counts)}/{counts.total}"


def count_ended(counts: Members) -> int:
    """Return the number of members that have ended."""
    return counts.completed + counts.failed + counts.cancelled


def print_array(client: Session, task: Task) -> None:
    """Print the progress of an array and its failed members."""
    counts = task.array or Members()
    failed = client.send_and_decode(
        Call("GET", resource_path(ARRAYS, task.id), {"limit": SHOWN_FAILED}), TaskArray
    ).failed_members
    shown = [_describe_failed(member) for member in failed]
    more = counts.failed - len(failed)
    print_fields(
        [
            ("id", task.id),
            ("call", task.call),
            ("name", None if task.call else task.name),
            ("labels", format_pairs(task.labels)),
            ("state", task.status),
            ("command", None if task.call else task.command),
            ("range", counts.range),
            ("members", counts.total),
            *((state, getattr(counts, state) or None) for state in STATES),
            ("rate", _rate(counts)),
            ("max failures", counts.max_fails),
            *option_fields(task),
            ("submitted", task.created_at),
            ("started", task.started_at),
            ("elapsed", format_optional_duration(task.elapsed_ms)),
            ("ended", task.completed_at),
            ("took", format_optional_duration(task.duration_ms)),
            ("failures", "\n".join(shown) or None),
        ]
    )
    if more > 0:
        note(f"{more} more: octaskly ls --array {task.id} --status failed")


def _describe_failed(member: ArrayMember) -> str:
    how = end_text(member.reason, member.exit_code, member.signal, member.detail)
    item = item_text(None if member.item == str(member.index) else member.item)
    return f"{member.id}{item}: {how}"


def item_text(item: str | None) -> str:
    """Return how an item follows the id of its member."""
    return f" ({item[:ITEM_CHARS]})" if item else ""


def _rate(counts: Members) -> str | None:
    if counts.rate_per_s is None:
        return None
    rate = format_rate(counts.rate_per_s)
    return rate if counts.eta_ms is None else f"{rate}, {time_left(counts.eta_ms)}"


def format_rate(rate_per_s: float) -> str:
    """Return a rate of tasks per second, minute or hour, with two digits or more."""
    for rate, unit in ((rate_per_s, "s"), (60 * rate_per_s, "min")):
        if rate >= 1:
            return f"{rate:.2g}/{unit}" if rate < 100 else f"{rate:.0f}/{unit}"  # noqa: PLR2004
    return f"{3600 * rate_per_s:.2g}/h"


def explanation_lines(found: Explanation) -> Iterator[str]:
    """Yield what `explain` says, above its table of nodes."""
    inputs = found.inputs
    if inputs is not None and not inputs.bytes and inputs.awaited is None:
        inputs = None  # There are none, or no node has said yet what they are.
    if inputs is None or found.status == "queued":  # Those of an attempt returned.
        yield f"{found.id} ({found.status}): {found.summary}"
        if (first := found.first_failure) is not None:
            how = end_text(first.reason, first.exit_code, first.signal, first.detail)
            yield f"first failed member: {first.id}: {how}"
        return
    if inputs.awaited is not None and found.status == "running":
        yield f"{found.id} (waiting on {inputs.node}): {inputs.awaited}"
        return
    total = data_size(inputs.bytes)
    text = f"{data_size(inputs.present_bytes)} of {total} was already there"
    for sent in inputs.sent:
        text += f"; {data_size(sent.bytes)} came from {sent.node}"
    yield f"{found.id} ({found.status} on {inputs.node}): {text}"
    if found.status not in ("running", "completed"):
        yield found.summary
