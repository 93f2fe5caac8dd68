"""The states of a task and all ways between them, for docs/explanation/log.md.

They are found by trying: each thing that may happen to a task is written as the
dispatcher writes it, by its rules, and the record says which state follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from octaskly.core.dispatcher import task_rules
from octaskly.core.log.facts import (
    Assigned,
    Finished,
    Submitted,
    TaskCancelled,
)
from octaskly.core.log.merge import (
    TaskRecord,
    apply_fact,
    record_of,
    with_array_cancelled,
)
from octaskly.core.model.ids import AttemptId, NodeId, StreamId, TaskId
from octaskly.core.model.task_options import Retry, TaskOptions
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)

TASK, WORKER, CLIENT = TaskId("t"), NodeId("a"), "ann"
STREAM = StreamId(1)
EPOCH = 1  #: term of the dispatcher
SUCCESS = Outcome(AttemptState.OK, EndReason.EXIT, exit_code=0)
FAILURE = Outcome(AttemptState.FAILED, EndReason.EXIT, exit_code=1)
LOSS = Outcome(AttemptState.RELEASED, EndReason.LOST)
TRIES = ("the attempt fails", "its worker is lost")
NEXT = {
    TaskState.QUEUED: "; another attempt follows",
    TaskState.FAILED: "; it was the last attempt",
}
"""What the rules decide then."""
COLUMN = 11  #: characters from one state to the next

Event = Callable[[TaskRecord], TaskRecord | None]
"""Returns the record after it happened; None if it cannot happen now."""
Way = tuple[TaskState, TaskState, str]
"""From a state to another one, and why."""


def diagram() -> str:
    """Return the states side by side, and below an arrow for each way."""
    names = [state.value for state in TaskState]
    lines = ["".join(name.ljust(COLUMN) for name in names).rstrip()]
    lines.append(_drawn(None, TaskState.QUEUED, "it is submitted"))
    lines += [_drawn(*way) for way in ways()]
    text = "\n".join(lines)
    return f"<!-- shown: the states of a task -->\n\n```text\n{text}\n```\n"


def ways() -> list[Way]:
    """Return every way from a state to another one, in the order of a life."""
    options = TaskOptions(retry=Retry(retries=1))
    spec = TaskSpec(id=TASK, command="true", options=options)
    first = record_of(Submitted(spec))
    seen, pending = {first}, [first]
    found: set[Way] = set()
    while pending:
        record = pending.pop()
        for why, event in EVENTS.items():
            after = event(record)
            if after is None or after in seen:
                continue
            seen.add(after)
            pending.append(after)
            if after.state is not record.state:
                found.add((record.state, after.state, why))
    states, reasons = list(TaskState), list(EVENTS)

    def place(way: Way) -> tuple[int, ...]:
        return reasons.index(way[2]), *map(states.index, way[:2])

    return sorted(found, key=place)


def _drawn(source: TaskState | None, target: TaskState, why: str) -> str:
    states = list(TaskState)
    line = list("│".ljust(COLUMN) * len(states))
    end = states.index(target) * COLUMN
    start = end if source is None else states.index(source) * COLUMN
    for place in range(min(start, end) + 1, max(start, end)):
        line[place] = "┼" if line[place] == "│" else "─"
    if start < end:
        line[start], line[end - 1] = "├", "▶"
    elif start > end:
        line[start], line[end + 1] = "┤", "◀"
    more = NEXT.get(target, "") if why in TRIES else ""
    return "".join(line) + why + more


# --- What may happen.


def _assigned(record: TaskRecord) -> TaskRecord | None:
    if record.state is not TaskState.QUEUED:
        return None
    number = len(record.attempts) + 1
    attempt = AttemptId(EPOCH, STREAM, number, number)
    return apply_fact(record, Assigned(TASK, attempt, WORKER))


def _ended(outcome: Outcome) -> Event:
    def event(record: TaskRecord) -> TaskRecord | None:
        live = [each for each in record.attempts if each.state.is_live]
        is_open = live and record.state is TaskState.RUNNING
        return _with_end(record, live[-1], outcome) if is_open else None

    return event


def _late_success(record: TaskRecord) -> TaskRecord | None:
    lost = [each for each in record.attempts if each.outcome == LOSS]
    return _with_end(record, lost[-1], SUCCESS) if lost else None


def _with_end(record: TaskRecord, attempt: Attempt, outcome: Outcome) -> TaskRecord:
    """Write an end as the dispatcher does."""
    ended = Attempt(attempt.id, WORKER, outcome.state, outcome)
    final = record.state if record.state.is_final else None
    term = EPOCH if task_rules.decides(ended, record, final) else 0
    return apply_fact(record, Finished(TASK, attempt.id, WORKER, outcome, term))


def _cancelled(*, force: bool) -> Event:
    def event(record: TaskRecord) -> TaskRecord | None:
        if not task_rules.may_cancel(record.state, has_begun=True, force=force):
            return None
        return apply_fact(record, TaskCancelled(TASK, CLIENT, EPOCH))

    return event


def _ended_with_others(record: TaskRecord) -> TaskRecord | None:
    if record.attempts or record.state is not TaskState.QUEUED:
        return None
    fact = task_rules.unblock(TASK, TaskId("parent"), EPOCH)
    return apply_fact(record, fact)


def _left_without_inputs(record: TaskRecord) -> TaskRecord | None:
    if record.state is not TaskState.QUEUED or not record.attempts:
        return None  # An attempt has said what its node lacks.
    return apply_fact(record, task_rules.verdict_fact(record, TaskState.FAILED, EPOCH))


def _array_cancelled(record: TaskRecord) -> TaskRecord | None:
    return with_array_cancelled(record, CLIENT)


def _events() -> Iterator[tuple[str, Event]]:
    yield "a worker gets an attempt", _assigned
    yield "the attempt succeeds", _ended(SUCCESS)
    yield TRIES[0], _ended(FAILURE)
    yield TRIES[1], _ended(LOSS)
    yield "a lost worker returns with a success", _late_success
    yield "no node has its inputs", _left_without_inputs
    yield "a dependency does not end as required", _ended_with_others
    yield "its array is cancelled or cut off", _array_cancelled
    yield "a client cancels it", _cancelled(force=False)
    yield "a client cancels it by force", _cancelled(force=True)


EVENTS = dict(_events())
