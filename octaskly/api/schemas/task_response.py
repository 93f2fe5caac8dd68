"""Tasks as the JSON of the API reference; unknown values are null."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from octaskly.api.problems import timestamp
from octaskly.api.schemas import arrays, task_options
from octaskly.core.change_feed import TaskEvent
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.drafts import priority_of
from octaskly.core.model.ids import NodeId
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    OutputFile,
    TaskSpec,
    TaskState,
)
from octaskly.core.replies import TaskExplanation
from octaskly.ports import TaskListPage, TaskQuery

Json = dict[str, object]

encode = msgspec.json.encode


@lru_cache(maxsize=256)
def _at_second(wall_s: int) -> str:
    return timestamp(wall_s * 1000)


def at(wall_ms: int | None) -> str | None:
    """Return a time as the API shows it, None while it is unknown."""
    # A batch shares its second, so the text is made once.
    return _at_second(wall_ms // 1000) if wall_ms else None


def created(record: TaskRecord, replicas: int) -> Json:
    """Return the answer to a submission, which `replicas` disks hold."""
    spec = record.spec
    return {
        "id": record.name,
        "command": spec.command if spec else None,
        "status": record.state,
        "created_at": at(spec.created_ms) if spec else None,
        "replicas": replicas,
    }


def listed(record: TaskRecord, names: Mapping[NodeId, str]) -> Json:
    """Return one line of a list: everything but output."""
    return _line(record, names, *_visible(record))


def _line(
    record: TaskRecord,
    names: Mapping[NodeId, str],
    state: TaskState,
    attempt: Attempt | None,
    outcome: Outcome | None,
) -> Json:
    spec = record.spec
    options = spec.options if spec else None
    line: Json = {
        "id": record.name,
        "command": spec.command if spec else None,
        "status": state,
        "worker_id": names.get(attempt.node, attempt.node) if attempt else None,
        "attempt": attempt.id.n if attempt else None,
        "exit_code": outcome.exit_code if outcome else None,
        "signal": outcome.signal if outcome else None,
        "reason": _reason(outcome, state),
        "detail": _detail(record, outcome),
        "timeout": spec.timeout_s if spec else None,
        "created_at": at(spec.created_ms) if spec else None,
        **(_NO_TIMES if outcome is None else _times(outcome, spec)),
        "priority": priority_of(spec) if spec else None,
        **task_options.render_summary(options),
    }
    # Most tasks ask for nothing, so are no arrays.
    line |= {"array": None} if options is None else arrays.render_array(record)
    is_array = record.progress is not None
    if is_array and state.is_final and (span := _span(record)) is not None:
        line |= _times(span, spec)
    return line


def task(
    record: TaskRecord, names: Mapping[NodeId, str], *, is_exact: bool = False
) -> Json:
    """Return all of one task, with the output that was kept.

    Text shows what is no UTF-8 as replacement characters; `is_exact` gives the very
    bytes, in base64.
    """
    state, attempt, outcome = _visible(record)
    body = _line(record, names, state, attempt, outcome)
    shown = _base64 if is_exact else _text
    seen = outcome if outcome and outcome.was_observed else None
    texts = (shown(seen.stdout), shown(seen.stderr)) if seen else (None, None)
    body["stdout"], body["stderr"] = texts
    if is_exact:
        body["encoding"] = "base64"
    elif seen and not (
        _is_text(seen.stdout, texts[0]) and _is_text(seen.stderr, texts[1])
    ):
        body["encoding"] = "utf-8-replaced"
    body |= _sizes(outcome)
    body["inputs"] = record.spec.inputs if record.spec else ()
    body["outputs"] = _outputs(record, outcome)
    body |= task_options.render_options(record.spec.options if record.spec else None)
    return body


def ended(
    record: TaskRecord, attempt: Attempt | None, names: Mapping[NodeId, str]
) -> Json:
    """Return a task as in a list, with how one attempt ended and what it wrote."""
    outcome = attempt.outcome if attempt else None
    body = listed(record, names) | _sizes(outcome)
    if attempt and outcome:
        body |= {
            "worker_id": names.get(attempt.node, attempt.node),
            "attempt": attempt.id.n,
            "exit_code": outcome.exit_code,
            "signal": outcome.signal,
            "reason": _reason(outcome, record.state),
            "detail": outcome.detail or None,
        }
    return body


def _sizes(outcome: Outcome | None) -> Json:
    if outcome is None or not outcome.was_observed:
        return _NO_SIZES
    return {
        "stdout_bytes": outcome.stdout_bytes,
        "stdout_truncated": len(outcome.stdout) != outcome.stdout_bytes,
        "stderr_bytes": outcome.stderr_bytes,
        "stderr_truncated": len(outcome.stderr) != outcome.stderr_bytes,
    }


_NO_SIZES: Final[Json] = dict.fromkeys(
    _sizes(Outcome(state=AttemptState.OK, reason=EndReason.EXIT))
)


def task_news(event: TaskEvent, names: Mapping[NodeId, str]) -> Json:
    """Return what happened to a task: neither its command nor its output."""
    record, attempt = event.record, event.attempt
    outcome = attempt.outcome if attempt else None
    times = outcome or (_span(record) if event.state.is_final else None)
    return {
        "id": record.name,
        "status": event.state.value,
        "at": at(event.at_ms),
        "worker_id": names.get(attempt.node, attempt.node) if attempt else None,
        "attempt": attempt.id.n if attempt else None,
        "exit_code": outcome.exit_code if outcome else None,
        "signal": outcome.signal if outcome else None,
        "reason": _reason(outcome, event.state),
        "duration_ms": times.duration_ms if times else None,
        "created_at": at(record.spec.created_ms) if record.spec else None,
        "started_at": at(times.started_ms) if times else None,
        "completed_at": at(times.ended_ms) if times else None,
        **arrays.render_array(record),
    }


def page(found: TaskListPage, query: TaskQuery, names: Mapping[NodeId, str]) -> Json:
    """Return a page of tasks with its place in the whole."""
    place: Json = {}
    if query.search is not None:
        place = {"next": found.next_name, "left": found.unsearched}
    return {
        "tasks": [listed(record, names) for record in found.records],
        "total": found.total,
        "returned": len(found.records),
        "limit": query.limit,
        "offset": query.offset,
        **place,
    }


def cancelled(record: TaskRecord) -> Json:
    """Return the answer to a cancellation."""
    return {
        "id": record.name,
        "status": TaskState.CANCELLED.value,
        "message": "Task cancelled successfully",
    }


def explanation(record: TaskRecord, told: TaskExplanation) -> Json:
    """Return why a task is where it is."""
    return {
        "id": record.name,
        "status": told.state.value,
        "summary": told.summary,
        "placement": told.placement_reason or None,
        "nodes": [
            {
                "name": verdict.name,
                "id": verdict.node,
                "state": verdict.state.value,
                "reasons": [
                    {"code": why.code, "message": why.text} for why in verdict.reasons
                ],
            }
            for verdict in told.rejections
        ],
    }


def _visible(
    record: TaskRecord,
) -> tuple[TaskState, Attempt | None, Outcome | None]:
    """Return the state of a task, and the attempt and the outcome to be shown."""
    state = record.state
    attempt = visible_attempt(record, state)
    return state, attempt, visible_outcome(attempt, state)


def _times(outcome: Outcome, spec: TaskSpec | None) -> Json:
    """Return when it ran, how long it waited and what it took, as far as known."""
    started_ms, cpu_ms = outcome.started_ms, outcome.cpu_ms
    peak_kb = outcome.memory_max_kb
    waited_ms = None
    if started_ms is not None and spec is not None:
        # By the clocks of two machines: it could come out as less than nothing.
        waited_ms = max(0, started_ms - spec.created_ms)
    return {
        "duration_ms": outcome.duration_ms,
        "queue_ms": waited_ms,
        "cpu_seconds": None if cpu_ms is None else cpu_ms / 1000,
        "memory_peak_mb": None if peak_kb is None else round(peak_kb / 1024, 1),
        "started_at": at(started_ms),
        "completed_at": at(outcome.ended_ms),
    }


def _span(record: TaskRecord) -> Outcome | None:
    """Return as one run the time from the first member of an array to the last one."""
    progress = record.progress
    if progress is None or progress.started_ms is None or progress.ended_ms is None:
        return None
    return Outcome(
        state=AttemptState.OK,
        reason=EndReason.EXIT,
        started_ms=progress.started_ms,
        ended_ms=progress.ended_ms,
        # By the clocks of several machines: it could come out as less than nothing.
        duration_ms=max(0, progress.ended_ms - progress.started_ms),
    )


_NO_TIMES: Final = dict.fromkeys(
    _times(Outcome(state=AttemptState.OK, reason=EndReason.EXIT), None)
)


def visible_attempt(record: TaskRecord, state: TaskState) -> Attempt | None:
    """Return the attempt that a reader cares for."""
    if state.is_final:
        return record.deciding_attempt
    if state is TaskState.QUEUED:
        return None  # Earlier attempts were given back: nobody holds the task.
    live = (a for a in reversed(record.attempts) if a.state.is_live)
    return next(live, None)  # An array has no attempts.


def visible_outcome(attempt: Attempt | None, state: TaskState) -> Outcome | None:
    """Return how it ended, where that is how the task ended."""
    if attempt is None or not state.is_final or attempt.state is _RELEASED:
        return None
    return attempt.outcome


def _reason(outcome: Outcome | None, state: TaskState) -> str | None:
    if state is _CANCELLED:
        return EndReason.CANCELLED.value
    return _REASONS[outcome.reason] if outcome else None


# Python 3.11 is slow to find members of an enumeration, and what they stand for.
_CANCELLED: Final = TaskState.CANCELLED
_RELEASED: Final = AttemptState.RELEASED
_REASONS: Final = {reason: reason.value for reason in EndReason}


def _detail(record: TaskRecord, outcome: Outcome | None) -> str | None:
    if record.failed_dependency is not None:
        return f"{record.failed_dependency} did not end as it should"
    return (outcome.detail or None) if outcome else None


def _outputs(record: TaskRecord, outcome: Outcome | None) -> list[Json]:
    files: Sequence[OutputFile] = outcome.outputs if outcome else ()
    if not files and record.spec:
        files = [OutputFile(path, None) for path in record.spec.outputs]
    return [{"path": file.path, "bytes": file.size_bytes} for file in files]


def _is_text(data: bytes, shown: str | None) -> bool:
    """Whether `shown` is all that there is; a text may have such characters itself."""
    return shown is not None and ("\ufffd" not in shown or shown.encode() == data)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
