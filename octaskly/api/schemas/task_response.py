"""JSON of tasks, attempts and arrays; unknown values are null."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from octaskly.api.problems import timestamp
from octaskly.api.schemas import arrays, task_options
from octaskly.core.change_feed import TaskEvent
from octaskly.core.log.merge import LOST_END_CANCELLER, TaskRecord
from octaskly.core.model.arrays import member_id
from octaskly.core.model.ids import NodeId, TaskId, task_name
from octaskly.core.model.task_options import CHAR_BYTES
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    OutputFile,
    TaskSpec,
    TaskState,
    priority_of,
)
from octaskly.core.replies import TaskExplanation
from octaskly.ports.files import InputSources
from octaskly.ports.store import DisplayFacts
from octaskly.rest import tasks as rest

RESULT_OUTPUTS_MAX: Final = 256  #: in a stream of results
JSON_CHAR_BYTES: Final = 6  #: most bytes of one character, as of a control character
BASE64_BYTES: Final = 4 / 3  #: of one byte
SUBMITTED_BYTES_MAX: Final = 32 << 10
"""Bytes of output in the response to a submission.

A quota may refuse a large response, but an accepted task must not be refused.
"""

encode = msgspec.json.encode
_fields = msgspec.structs.asdict


@lru_cache(maxsize=256)
def _at_second(wall_s: int) -> str:
    return timestamp(wall_s * 1000)


def at(wall_ms: int | None) -> str | None:
    """Return a time in the API's format; None if it is unknown."""
    # Tasks of a batch have the same second, so a cache helps.
    return _at_second(wall_ms // 1000) if wall_ms else None


def created(record: TaskRecord, replicas: int) -> rest.Created:
    """Return the response to a submission that is on `replicas` disks."""
    spec = record.spec
    return rest.Created(
        id=record.name,
        command=spec.command if spec else None,
        status=record.state,
        created_at=at(spec.created_ms) if spec else None,
        replicas=replicas,
    )


def repeated(record: TaskRecord, replicas: int) -> rest.Repeated:
    """Return the response to a request that repeats an ended task."""
    options = record.spec.options if record.spec else None
    assert options is not None
    return rest.Repeated(
        **_fields(created(record, replicas)), retry_of=options.retry_of
    )


class LiveFacts(NamedTuple):
    """The time, and what the records of some tasks lack."""

    now_ms: int = 0
    by_task: Mapping[TaskId, DisplayFacts] = {}


Visible = tuple[TaskState, Attempt | None, Outcome | None]
"""The state of a task, with the attempt and outcome to show."""

_NO_FACTS: Final = LiveFacts()
_UNKNOWN: Final = DisplayFacts("")


def listed(
    record: TaskRecord, names: Mapping[NodeId, str], live: LiveFacts = _NO_FACTS
) -> rest.TaskLine:
    """Return a task in a list, without output."""
    return _line(record, names, visible_of(record), live)


def _line(
    record: TaskRecord,
    names: Mapping[NodeId, str],
    visible: Visible,
    live: LiveFacts,
) -> rest.TaskLine:
    state, attempt, outcome = visible
    spec = record.spec
    options = spec.options if spec else None
    is_ended_array = record.progress is not None and state.is_final
    ran = (_span(record) if is_ended_array else None) or outcome
    duration_ms, waited_ms, cpu_s, peak_mb, started_at, ended_at = _times(ran, spec)
    facts = live.by_task.get(record.id, _UNKNOWN)
    name, short_id = record.name, facts.short_id
    elapsed_ms = None
    if state is TaskState.RUNNING and facts.started_ms is not None:
        started_at = at(facts.started_ms)
        # The clock of an earlier dispatcher may have been ahead.
        elapsed_ms = max(0, live.now_ms - facts.started_ms)
    return rest.TaskLine(
        id=name,
        short_id=short_id if short_id and short_id != name else msgspec.UNSET,
        command=spec.command if spec else None,
        status=state,
        worker_id=names.get(attempt.node, attempt.node) if attempt else None,
        attempt=attempt.id.n if attempt else None,
        exit_code=outcome.exit_code if outcome else None,
        signal=outcome.signal if outcome else None,
        reason=_reason(outcome, state),
        detail=_detail(record, outcome),
        timeout=spec.timeout_s if spec else None,
        created_at=at(spec.created_ms) if spec else None,
        duration_ms=duration_ms,
        queue_ms=waited_ms,
        cpu_seconds=cpu_s,
        memory_peak_mb=peak_mb,
        started_at=started_at,
        elapsed_ms=elapsed_ms,
        completed_at=ended_at,
        missing_output=_missing_output(state, outcome),
        priority=priority_of(record.ord) if spec else None,
        # Most tasks have no options, so they are not arrays.
        name=(options.name or None) if options else None,
        call=(options.call or None) if options else None,
        labels=dict(options.labels) if options else {},
        array=_array(record, elapsed_ms or duration_ms, facts) if options else None,
    )


def _array(
    record: TaskRecord, elapsed_ms: int | None, facts: DisplayFacts
) -> rest.Members | None:
    return arrays.render_array(record, elapsed_ms, first_failure=facts.first_failure)


def task(
    record: TaskRecord,
    names: Mapping[NodeId, str],
    live: LiveFacts = _NO_FACTS,
    visible: Visible | None = None,
    *,
    is_exact: bool = False,
) -> rest.TaskDetail:
    """Return a task with all fields and its kept output.

    Text has replacement characters for bytes that are not UTF-8; `is_exact` selects the
    exact bytes, in base64. `visible` is what `visible_of` returns, if it is known.
    """
    visible = visible or visible_of(record)
    outcome = visible[2]
    seen = outcome if outcome and outcome.was_observed else None
    stdout = stderr = None
    encoding: str | msgspec.UnsetType = msgspec.UNSET
    if is_exact:
        encoding = "base64"
        if seen:
            stdout, stderr = _base64(seen.stdout), _base64(seen.stderr)
    elif seen:
        stdout = _text(seen.stdout, seen.stdout_bytes)
        stderr = _text(seen.stderr, seen.stderr_bytes)
        if not (_is_text(seen.stdout, stdout) and _is_text(seen.stderr, stderr)):
            encoding = "utf-8-replaced"
    return rest.TaskDetail(
        **_fields(_line(record, names, visible, live)) | {"short_id": msgspec.UNSET},
        sent_stdout=stdout,
        sent_stderr=stderr,
        sent_encoding=encoding,
        **_sizes(outcome),
        inputs=list(record.spec.inputs) if record.spec else [],
        outputs=_outputs(record, outcome),
        outputs_missing=_outputs_missing(outcome),
        **task_options.render_options(record.spec.options if record.spec else None),
    )


def size_bytes_max(record: TaskRecord, visible: Visible, *, is_exact: bool) -> int:
    """Return the size of a task with its output as JSON, at most, roughly."""
    outcome = visible[2]
    text_bytes = 0 if record.spec is None else record.spec.size_bytes
    output_bytes = 0
    if outcome is not None:
        output_bytes = len(outcome.stdout) + len(outcome.stderr)
        text_bytes += outcome.size_bytes - output_bytes
    shown_bytes = output_bytes * (BASE64_BYTES if is_exact else JSON_CHAR_BYTES)
    return int(text_bytes / CHAR_BYTES * JSON_CHAR_BYTES + shown_bytes)


def submitted(
    record: TaskRecord,
    names: Mapping[NodeId, str],
    live: LiveFacts,
    replicas: int,
    *,
    is_exact: bool,
) -> rest.Submitted:
    """Return the response to a submission that waited for the end of its task."""
    detail = _fields(task(record, names, live, is_exact=is_exact))
    outcome = visible_of(record)[2]
    if outcome and len(outcome.stdout) + len(outcome.stderr) > SUBMITTED_BYTES_MAX:
        detail |= {"sent_stdout": None, "sent_stderr": None}
    return rest.Submitted(**detail, replicas=replicas)


def result(
    record: TaskRecord,
    names: Mapping[NodeId, str],
    *,
    array: str,
    index: int,
    position: int,
) -> rest.MemberResult:
    """Return the result and output of a member of an array.

    Args:
        record: Record of the member.
        names: Names of the nodes.
        array: Name of the array.
        index: Number of the member.
        position: Number of members before it.
    """
    state, attempt, outcome = visible_of(record)
    seen = outcome if outcome and outcome.was_observed else None
    files = outcome.outputs if outcome else ()
    has_outputs = 0 < len(files) <= RESULT_OUTPUTS_MAX
    return rest.MemberResult(
        id=member_id(TaskId(array), index),
        status=state,
        worker_id=names.get(attempt.node, attempt.node) if attempt else None,
        attempt=attempt.id.n if attempt else None,
        exit_code=outcome.exit_code if outcome else None,
        signal=outcome.signal if outcome else None,
        reason=_reason(outcome, state),
        detail=_detail(record, outcome),
        duration_ms=outcome.duration_ms if outcome else None,
        stdout=_base64(seen.stdout) if seen else None,
        stderr=_base64(seen.stderr) if seen else None,
        encoding="base64",
        **_sizes(outcome),
        outputs=_outputs(record, outcome) if has_outputs else msgspec.UNSET,
        outputs_missing=_outputs_missing(outcome) if has_outputs else msgspec.UNSET,
        index=index,
        position=position,
    )


def ended(
    record: TaskRecord, attempt: Attempt | None, names: Mapping[NodeId, str]
) -> rest.TaskEnd:
    """Return a task in its list form, with the end and output sizes of one attempt."""
    outcome = attempt.outcome if attempt else None
    more: dict[str, Any] = _sizes(outcome)
    if attempt and outcome:
        more |= {
            "worker_id": names.get(attempt.node, attempt.node),
            "attempt": attempt.id.n,
            "exit_code": outcome.exit_code,
            "signal": outcome.signal,
            "reason": _reason(outcome, record.state),
            "detail": outcome.detail or None,
        }
    return rest.TaskEnd(**_fields(listed(record, names)) | more)


def _sizes(outcome: Outcome | None) -> dict[str, Any]:
    seen = outcome if outcome and outcome.was_observed else None
    return {
        "stdout_bytes": seen and seen.stdout_bytes,
        "stdout_truncated": seen and len(seen.stdout) != seen.stdout_bytes,
        "stderr_bytes": seen and seen.stderr_bytes,
        "stderr_truncated": seen and len(seen.stderr) != seen.stderr_bytes,
    }


def task_change(event: TaskEvent, names: Mapping[NodeId, str]) -> rest.TaskChange:
    """Return a change of a task, without its command and output."""
    record, attempt = event.record, event.attempt
    outcome = attempt.outcome if attempt else None
    times = outcome or (_span(record) if event.state.is_final else None)
    return rest.TaskChange(
        id=record.name,
        status=event.state,
        at=at(event.at_ms),
        worker_id=names.get(attempt.node, attempt.node) if attempt else None,
        attempt=attempt.id.n if attempt else None,
        exit_code=outcome.exit_code if outcome else None,
        signal=outcome.signal if outcome else None,
        reason=_reason(outcome, event.state),
        duration_ms=times.duration_ms if times else None,
        created_at=at(record.spec.created_ms) if record.spec else None,
        started_at=at(times.started_ms) if times else None,
        completed_at=at(times.ended_ms) if times else None,
        array=arrays.render_array(record),
    )


def cancelled(record: TaskRecord) -> rest.Cancelled:
    """Return the response to a cancellation."""
    return rest.Cancelled(
        id=record.name,
        status=TaskState.CANCELLED,
        message="Task cancelled successfully",
    )


def input_bytes(node: str, sources: InputSources) -> rest.InputBytes:
    """Return where the files of a task came from that ran on a node."""
    most_first = sorted(sources.sent_bytes.items(), key=lambda sent: -sent[1])
    return rest.InputBytes(
        node=node,
        bytes=sources.total_bytes,
        present_bytes=sources.present_bytes,
        sent=[rest.SentBytes(node=name, bytes=size) for name, size in most_first],
        awaited=sources.awaited or None,
    )


def explanation(
    record: TaskRecord,
    found: TaskExplanation,
    inputs: rest.InputBytes | None,
    live: LiveFacts,
) -> rest.Explanation:
    """Return the explanation of a task's state."""
    failure = live.by_task.get(record.id, _UNKNOWN).first_failure
    return rest.Explanation(
        id=record.name,
        status=found.state,
        summary=found.summary,
        first_failure=failure and arrays.render_failure(record, failure),
        placement=found.placement_reason or None,
        inputs=inputs,
        nodes=[
            rest.Verdict(
                name=verdict.name,
                id=verdict.node,
                state=verdict.state,
                reasons=[
                    rest.Reason(code=why.code, message=why.text)
                    for why in verdict.reasons
                ],
            )
            for verdict in found.rejections
        ],
        ahead=[
            rest.QueuedAhead(
                submitter=each.submitter,
                array=None if each.array is None else task_name(each.array),
                tasks=each.tasks,
                exact=each.is_exact,
                takes_turns=each.takes_turns,
            )
            for each in found.ahead
        ],
    )


def visible_of(record: TaskRecord) -> Visible:
    """Return the state of a task, with the attempt and outcome to show."""
    state = record.state
    attempt = visible_attempt(record, state)
    return state, attempt, visible_outcome(attempt, state)


_Times = tuple[
    int | None, int | None, float | None, float | None, str | None, str | None
]
_NO_TIMES: Final[_Times] = (None,) * 6


def _times(outcome: Outcome | None, spec: TaskSpec | None) -> _Times:
    """Return duration, queue time, CPU time, peak memory, start and end."""
    if outcome is None:
        return _NO_TIMES
    started_ms, cpu_ms = outcome.started_ms, outcome.cpu_ms
    peak_kb = outcome.memory_max_kb
    waited_ms = None
    if started_ms is not None and spec is not None:
        # The times are from clocks of two machines, so the difference may be negative.
        waited_ms = max(0, started_ms - spec.created_ms)
    return (
        outcome.duration_ms,
        waited_ms,
        None if cpu_ms is None else cpu_ms / 1000,
        None if peak_kb is None else round(peak_kb / 1024, 1),
        at(started_ms),
        at(outcome.ended_ms),
    )


def _span(record: TaskRecord) -> Outcome | None:
    """Return an outcome from the first start to the last end of an array's members.

    Members that were lost with their workers have an end without a start.
    """
    progress = record.progress
    if progress is None or progress.ended_ms is None:
        return None
    started_ms, ended_ms = progress.started_ms, progress.ended_ms
    return Outcome(
        state=AttemptState.OK,
        reason=EndReason.EXIT,
        started_ms=started_ms,
        ended_ms=ended_ms,
        # The clocks of several machines may differ, so the result may be negative.
        duration_ms=None if started_ms is None else max(0, ended_ms - started_ms),
    )


def visible_attempt(record: TaskRecord, state: TaskState) -> Attempt | None:
    """Return the attempt to show for a task in `state`."""
    if state.is_final:
        return record.deciding_attempt
    if state is TaskState.QUEUED:
        return None  # Its attempts came to nothing, so no node has the task.
    live = (a for a in reversed(record.attempts) if a.state.is_live)
    return next(live, None)  # An array has no attempts.


def visible_outcome(attempt: Attempt | None, state: TaskState) -> Outcome | None:
    """Return the outcome of an attempt if it decides the end of the task."""
    if attempt is None or not state.is_final or attempt.state is _RELEASED:
        return None
    return attempt.outcome


def _reason(outcome: Outcome | None, state: TaskState) -> str | None:
    if state is _CANCELLED:
        return EndReason.CANCELLED.value
    return _REASONS[outcome.reason] if outcome else None


# Access to enumeration members and their values is slow in Python 3.11.
_CANCELLED: Final = TaskState.CANCELLED
_COMPLETED: Final = TaskState.COMPLETED
_RELEASED: Final = AttemptState.RELEASED
_REASONS: Final = {reason: reason.value for reason in EndReason}


def _detail(record: TaskRecord, outcome: Outcome | None) -> str | None:
    if record.failed_dependency is not None:
        return f"{record.failed_dependency} did not end as required"
    if record.cancelled_by == LOST_END_CANCELLER:
        return "it ended on a node that is not in the mesh, and its stdin was deleted"
    return (outcome.detail or None) if outcome else None


def _outputs(record: TaskRecord, outcome: Outcome | None) -> list[rest.Output]:
    # A client places these in the user's folder, so a worker must not add to them.
    declared = dict.fromkeys(record.spec.outputs if record.spec else ())
    reported = outcome.outputs if outcome else ()
    files = [each for each in reported if each.path in declared]
    if not files:
        files = [OutputFile(path, None) for path in declared]
    return [
        rest.Output(path=file.path, bytes=file.size_bytes, files=file.file_count)
        for file in files
    ]


def _missing_output(
    state: TaskState, outcome: Outcome | None
) -> str | msgspec.UnsetType:
    """Return the first output that a completed task lacks; others may lack all."""
    if state is not _COMPLETED or not (outcome and outcome.outputs):
        return msgspec.UNSET
    return next(iter(_outputs_missing(outcome)), msgspec.UNSET)


def _outputs_missing(outcome: Outcome | None) -> list[str]:
    files = outcome.outputs if outcome else ()
    return [file.path for file in files if file.size_bytes is None]


def _is_text(data: bytes, shown: str) -> bool:
    """Return True if `shown` represents `data` exactly, up to a character that was cut.

    The output itself may contain replacement characters.
    """
    return "\ufffd" not in shown or data.startswith(shown.encode())


def _text(data: bytes, written_bytes: int) -> str:
    """Return output as text, without an incomplete character where it was cut."""
    return codecs.utf_8_decode(data, "replace", len(data) == written_bytes)[0]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
