"""Conversion of task records to rows of `tasks` and `attempts`, and back."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, Final, NamedTuple

from msgspec import json, msgpack
from msgspec.structs import replace

from octaskly.core.log.facts import Reprioritized
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.task_options import (
    ArraySpec,
    Pairs,
    TaskOptions,
    shape_of,
    without_stdin,
)
from octaskly.core.model.tasks import (
    Attempt,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.ports.store import LISTED_COMMAND_CHARS
from octaskly.store.tables.array_items import decode_items, encode_items

EDGE_OPEN, EDGE_MET, EDGE_BROKEN = 0, 1, 2


STATES: Final = (
    TaskState.QUEUED,
    TaskState.RUNNING,
    TaskState.COMPLETED,
    TaskState.FAILED,
    TaskState.CANCELLED,
)
"""The position of a state is its number in the database, so it must not change."""

NUMBER_OF: Final = {state: number for number, state in enumerate(STATES)}

TASK_COLUMNS: Final = (
    "key, id, cancelled_by, attempts, is_unblocked, notify,"
    " command, timeout_s, inputs, outputs, options, stdin, items, env, cancel_term,"
    " has_succeeded, reprioritized, submitter, created_ms, ord"
)
STORED_COLUMNS: Final = (
    f"{TASK_COLUMNS}, node, state, last_change_hlc,"
    " first_submitted_hlc, last_submitted_hlc, stream, seq"
)
"""With those that only the writer needs."""
WIDTH: Final = TASK_COLUMNS.count(",") + 1
STORED_WIDTH: Final = STORED_COLUMNS.count(",") + 1
MEMBER_KEYS_START: Final = 1 << 40  #: lowest key of a member of an array
NOTIFIED, TO_NOTIFY = 0, 1  #: values of `notify`
NO_LIMIT: Final = 0  #: value of `timeout_s`
# Parents are at this place in `TaskOptions`.
_LISTED_OPTIONS: Final = "json_replace(options, '$[13]', NULL)"
LIST_COLUMNS: Final = TASK_COLUMNS.replace(
    "command, timeout_s, inputs, outputs, options, stdin, items, env",
    f"substr(command, 1, {LISTED_COMMAND_CHARS + 1}), timeout_s, NULL, NULL,"
    f" {_LISTED_OPTIONS}, NULL, NULL, NULL",
)
"""The same without large columns, which no list shows; see `TaskListPage`."""
SHOWN_COLUMNS: Final = TASK_COLUMNS.replace("items", "NULL")
"""The same without the items of an array, which are only shown per member."""
BRIEF_COLUMNS: Final = TASK_COLUMNS.replace("stdin, items, env", "NULL, NULL, NULL")
"""The same without stdin and environment, too, which only the worker needs."""
_LARGE_COLUMNS: Final = (
    *("attempts", "command", "inputs", "outputs", "options", "stdin", "items", "env"),
)
Row = Sequence[Any]


class StoredTask(NamedTuple):
    """A task as stored."""

    row: Row  #: of `STORED_COLUMNS`, or longer
    record: TaskRecord  #: without outputs


OptionalColumns = tuple[
    str | None, int, bool, bool, bool, int | None, str | None, bool, int | None
]
"""`cancelled_by`, `cancel_term`, `has_succeeded`, `is_unblocked`, `is_blocked`,
`place`, `reprioritized`, `runs_on` and `notify` of a task."""
NO_OPTIONAL_COLUMNS: Final[OptionalColumns] = (
    *(None, 0, False, False, False),
    *(None, None, False, None),
)

_large_columns: Final = itemgetter(*map(TASK_COLUMNS.split(", ").index, _LARGE_COLUMNS))
_CHUNK: Final = 500  #: parameters of one statement, below any limit of SQLite
_attempts_decoder: Final = msgpack.Decoder(list[tuple[Attempt, int | None]])
_SEQUENCE: Final = re.compile(r"task-([0-9]{3,18})-([0-9a-f]{8})(~.*)?")
DERIVED_SEQUENCE_START: Final = 1 << 62
ROW_BYTES: Final = 200  #: approximate size of a task or attempt, without texts
DERIVED_DIGITS: Final = 12  #: number of digits of ids from an idempotency key


def sequence_of(task: TaskId) -> int | None:
    """Return the sequence number of a task id as stored, or None if it has none.

    An id with a number derived from an idempotency key is stored with its hexadecimal
    digits instead, from `DERIVED_SEQUENCE_START` on. So it does not advance the
    counter, and people can name it by a prefix of the digits.
    """
    match = _SEQUENCE.fullmatch(task)
    if match is None:
        return None
    number, digits, _ = match.groups()
    if len(number) >= DERIVED_DIGITS:
        return DERIVED_SEQUENCE_START + int(digits, 16)
    return int(number)


def sequence_max(db: sqlite3.Connection) -> int:
    """Return the highest counted sequence number, deleted tasks included."""
    found = db.execute(
        "SELECT max(sequence) FROM tasks INDEXED BY tasks_sequence"
        " WHERE sequence IS NOT NULL AND sequence < ?",
        (DERIVED_SEQUENCE_START,),
    ).fetchone()
    given = db.execute("SELECT value FROM meta WHERE key = 'sequence'").fetchone()
    return max(found[0] or 0, given[0] if given else 0)


def counted_node(record: TaskRecord, state: TaskState) -> NodeId | None:
    """Return the node that a task counts for, or None while it is queued."""
    if state is TaskState.QUEUED:
        return None
    if state is TaskState.RUNNING:
        live = (a.node for a in reversed(record.attempts) if a.state.is_live)
        last = record.attempts[-1].node if record.attempts else None
        return next(live, last)  # An array runs on many.
    chosen = record.deciding_attempt
    return None if chosen is None else chosen.node


def notify_of(record: TaskRecord) -> int | None:
    """Return `TO_NOTIFY`, `NOTIFIED`, or None if no notification was requested."""
    if record.is_notified:
        return NOTIFIED
    options = None if record.spec is None else record.spec.options
    return TO_NOTIFY if options is not None and options.notify_url else None


def is_live(record: TaskRecord) -> bool:
    """Return True if the latest attempt has not ended."""
    return bool(record.attempts) and record.attempts[-1].state.is_live


def spec_row(spec: TaskSpec) -> tuple[Any, ...]:
    """Return the columns from `command` to `ord` of `TASK_COLUMNS`, and `shape`."""
    return (
        spec.command,
        spec.timeout_s or NO_LIMIT,
        _names_text(spec.inputs),
        _names_text(spec.outputs),
        *_options_row(spec.options),
        spec.submitter,
        spec.created_ms,
        spec.ord,
        stored_shape(shape_of(spec.options), is_array=spec.array is not None),
    )


def stored_shape(shape: int, *, is_array: bool) -> int:
    """Return the column `shape`, which is negative for arrays."""
    return ~shape if is_array else shape


def array_spec(text: str) -> ArraySpec:
    """Return the array of the column `options`, without its items."""
    spec = json.decode(text, type=TaskOptions).array
    assert spec is not None
    return spec


def member_row(array: TaskSpec) -> tuple[Any, ...]:
    """Return the same columns for a member; its envelope follows from its array."""
    shape = shape_of(array.options)
    nothing = (None, None, None, None, None, None)
    return ("", NO_LIMIT, *nothing, "", 0, array.ord, shape)


def record_from(row: Row, attempts: tuple[Attempt, ...]) -> TaskRecord:
    """Return the record of a row of `TASK_COLUMNS`; see `records_from`."""
    key, task, by, _, is_ready, notify, command, timeout_s, inputs, outputs = row[:10]
    options, stdin, items, env, cancel_term, has_succeeded = row[10:16]
    change, submitter, created, ord_ = row[16:]
    spec = None
    if key < MEMBER_KEYS_START:
        spec = TaskSpec(
            task,
            command,
            timeout_s or None,
            _names(inputs),
            _names(outputs),
            submitter,
            created,
            ord_,
            None if options is None else _options(options, stdin, items, env),
        )
    return TaskRecord(
        *(task, spec, by, attempts, 1, None),
        *(notify == NOTIFIED, bool(is_ready), cancel_term, bool(has_succeeded)),
        None if change is None else _change_of_priority(task, change),
    )


def _change_of_priority(task: TaskId, text: str) -> Reprioritized:
    """Return the fact of the column `reprioritized`."""
    term, hlc, priority = json.decode(text, type=tuple[int, int, int])
    return Reprioritized(task, term, hlc, priority)


def place_of(record: TaskRecord) -> int | None:
    """Return the column `place`, which is empty while the first priority counts."""
    return None if record.reprioritized is None else record.ord


def size_of_row(row: Row) -> int:
    """Return the approximate size of a row of `TASK_COLUMNS` in characters or bytes."""
    return sum(map(len, filter(None, _large_columns(row))))


def has_options_or_attempts(row: Row) -> bool:
    """Return True if a row of `TASK_COLUMNS` has options or attempts."""
    return row[3] is not None or row[10] is not None


def optional_columns(
    record: TaskRecord, *, is_blocked: bool, runs_on: bool
) -> OptionalColumns:
    """Return the columns that are empty for most tasks.

    A plain task has `NO_OPTIONAL_COLUMNS` itself, so that the two compare fast.
    """
    spec = record.spec
    if spec is not None and not runs_on and has_no_optional_columns(record, spec):
        return NO_OPTIONAL_COLUMNS
    cancel = (record.cancelled_by, record.cancel_term)
    flags = (record.has_succeeded, record.is_unblocked, is_blocked)
    text, change = None, record.reprioritized
    if change is not None:
        numbers = (change.term, change.hlc, change.priority)
        text = json.encode(numbers).decode()
    return (*cancel, *flags, place_of(record), text, runs_on, notify_of(record))


def is_plain(spec: TaskSpec) -> bool:
    """Return True if the task is nothing but a command."""
    return spec.options is None and not (spec.inputs or spec.outputs)


def has_no_optional_columns(record: TaskRecord, spec: TaskSpec) -> bool:
    """Return True if the task has no `OptionalColumns` and is not an array."""
    has_flags = record.is_notified or record.is_unblocked or record.reprioritized
    has_verdict = record.cancelled_by is not None or record.has_succeeded
    return spec.options is None and not (has_verdict or has_flags)


def plain_row(spec: TaskSpec) -> tuple[str, int, str, int, int]:
    """Return the columns `command` to `ord` of a plain task that are not null."""
    limit_s = spec.timeout_s or NO_LIMIT
    return spec.command, limit_s, spec.submitter, spec.created_ms, spec.ord


def without_output(outcome: Outcome) -> Outcome:
    """Return an outcome without stdout and stderr."""
    # `replace` would take many times as long, and this runs for each result.
    return Outcome(
        outcome.state,
        outcome.reason,
        outcome.exit_code,
        outcome.signal,
        outcome.started_ms,
        outcome.ended_ms,
        outcome.duration_ms,
        b"",
        b"",
        outcome.stdout_bytes,
        outcome.stderr_bytes,
        outcome.outputs,
        outcome.detail,
        outcome.cpu_ms,
        outcome.memory_max_kb,
    )


def select_in(
    db: sqlite3.Connection, select: str, items: Iterable[Any], end: str = ""
) -> Iterator[Any]:
    """Yield the rows of a query for these values of the column that `select` ends with.

    It runs once for each part of the items that fits the parameters of one statement.
    """
    for some in split_for_parameters(items):
        query = f"{select} IN ({placeholders(len(some))}) {end}"
        yield from db.execute(query, some).fetchall()


def split_for_parameters(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield lists of items that fit the parameters of one statement."""
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def placeholders(count: int) -> str:
    """Return `count` SQL placeholders, separated by commas."""
    return ",".join("?" * count)


def pack_attempts(
    record: TaskRecord, outputs: Mapping[AttemptId, int] | None
) -> bytes | None:
    """Return the column `attempts`, with the ids in `outputs`; null without attempts.

    All attempts are written again with each change, because most tasks have one.
    """
    if not record.attempts:
        return None
    if not outputs:
        return msgpack.encode([(each, None) for each in record.attempts])
    return msgpack.encode([(each, outputs.get(each.id)) for each in record.attempts])


def unpack_attempts(
    packed: bytes | None,
) -> tuple[tuple[Attempt, ...], dict[AttemptId, int]]:
    """Return the attempts of the column `attempts`, and the ids of their outputs."""
    pairs = _attempts_decoder.decode(packed) if packed else ()
    outputs = {each.id: output for each, output in pairs if output is not None}
    return tuple(each for each, _ in pairs), outputs


RecordsWithOutputs = list[tuple[TaskRecord, dict[AttemptId, int]]]
"""Records, each with the ids in `outputs` of its attempts."""


def records_from(rows: Iterable[Row]) -> RecordsWithOutputs:
    """Return records as the facts alone define them, for rows of `TASK_COLUMNS`.

    Members have no envelope, and do not reflect a cancellation of their array.
    """
    found = ((row, *unpack_attempts(row[3])) for row in rows)
    return [(record_from(row, attempts), outputs) for row, attempts, outputs in found]


def read_output(connection: sqlite3.Connection, output: int) -> tuple[bytes, bytes]:
    """Return the kept stdout and stderr."""
    found = find_output(connection, output)
    assert found is not None, "an output stays as long as its attempt"
    return found


def find_output(
    connection: sqlite3.Connection, output: int
) -> tuple[bytes, bytes] | None:
    """Return stdout and stderr, or None if they were deleted with their task."""
    found: tuple[bytes, bytes] | None = connection.execute(
        "SELECT stdout, stderr FROM outputs WHERE id = ?", (output,)
    ).fetchone()
    return found


def with_output(attempt: Attempt, kept: tuple[bytes, bytes]) -> Attempt:
    """Return an ended attempt with its kept output."""
    assert attempt.outcome is not None
    outcome = replace(attempt.outcome, stdout=kept[0], stderr=kept[1])
    return replace(attempt, outcome=outcome)


def size_of(record: TaskRecord) -> int:
    """Return the approximate size of a record in a message, in bytes."""
    size = ROW_BYTES
    if record.spec is not None:
        size += record.spec.size_bytes
    for attempt in record.attempts:
        size += ROW_BYTES
        if attempt.outcome is not None:
            size += attempt.outcome.size_bytes
    return size


def options_without_stdin(text: str, stdin: bytes) -> str:
    """Return the column `options` of a task after its stdin was freed."""
    options = replace(json.decode(text, type=TaskOptions), stdin=stdin)
    return json.encode(without_stdin(options)).decode()


def _options_row(
    options: TaskOptions | None,
) -> tuple[str | None, bytes | None, str | None, bytes | None]:
    """Return the columns `options` (JSON), `stdin`, `items` and `env` (msgpack)."""
    if options is None:
        return None, None, None, None
    items, array = None, options.array
    if array is not None:
        items, array = encode_items(array.items), replace(array, items=())
    env = msgpack.encode(options.env) if options.env else None
    small = replace(options, stdin=b"", env=(), array=array)
    return json.encode(small).decode(), options.stdin or None, items, env


def _options(
    text: str, stdin: bytes | None, items: str | None, env: bytes | None
) -> TaskOptions:
    small = json.decode(text, type=TaskOptions)
    array = small.array and replace(small.array, items=decode_items(items))
    pairs = msgpack.decode(env, type=Pairs) if env else ()
    return replace(small, stdin=stdin or b"", array=array, env=pairs)


def _names_text(names: tuple[str, ...]) -> str | None:
    return json.encode(names).decode() if names else None


def _names(text: str | None) -> tuple[str, ...]:
    return json.decode(text, type=tuple[str, ...]) if text else ()
