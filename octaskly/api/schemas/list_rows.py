"""JSON of lists: each row is bounded, whatever is in the task.

A page has as many rows as the client asked for, so only a bound of each row bounds the
page. `command` is cut first. If the row is still too long, `item`, `detail`, `call`,
`missing_output` and `labels` are cut to what leaves room for a part of the command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from octaskly.api.schemas import arrays, task_response
from octaskly.api.schemas.task_response import JSON_CHAR_BYTES, LiveFacts
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NodeId
from octaskly.ports.store import LISTED_COMMAND_CHARS, TaskListPage, TaskQuery
from octaskly.rest import tasks as rest

ROW_BYTES_MAX: Final = 2048  #: of JSON, so that 1000 rows stay below 2 MiB
COMMAND_BYTES_MAX: Final = LISTED_COMMAND_CHARS  #: of JSON: control characters take six
ITEM_BYTES_MAX: Final = 192  #: of the item of a member, in a row that is too long
DETAIL_BYTES_MAX: Final = 128  #: the same for the detail of its end, and for a path
LABELS_BYTES_MAX: Final = 192  #: the same for its labels
CALL_BYTES_MAX: Final = 128  #: the same for its call
ROWS_PER_TURN: Final = 50  #: take less than a millisecond of the event loop

_encode = task_response.encode


def encode_page(found: TaskListPage, rows: Sequence[bytes], query: TaskQuery) -> bytes:
    """Return a page of tasks as JSON: encoded rows and the position of the page."""
    is_search = query.search is not None
    shown = rest.TaskLines(
        tasks=_as_encoded(rows),
        total=found.total,
        returned=len(rows),
        limit=query.limit,
        offset=query.offset,
        next=found.next_name if is_search else msgspec.UNSET,
        left=found.unsearched if is_search else msgspec.UNSET,
    )
    return _encode(shown)


def encode_array(
    record: TaskRecord,
    failed: Sequence[bytes],
    names: Mapping[NodeId, str],
    live: LiveFacts,
) -> bytes:
    """Return an array with some of its failed members, which are encoded."""
    line = msgspec.structs.asdict(task_response.listed(record, names, live))
    return _encode(rest.TaskArray(**line, failed_members=_as_encoded(failed)))


def encode_record(
    record: TaskRecord, names: Mapping[NodeId, str], live: LiveFacts
) -> bytes:
    """Return the row of a task."""
    return encode_row(task_response.listed(record, names, live))


def encode_member(
    record: TaskRecord, names: Mapping[NodeId, str], live: LiveFacts
) -> bytes:
    """Return the row of a member of an array."""
    line = msgspec.structs.asdict(task_response.listed(record, names, live))
    return encode_row(rest.ArrayMember(**line, **arrays.render_member(record)))


def encode_row(line: rest.TaskLine) -> bytes:
    """Return the JSON of a row, cut to `ROW_BYTES_MAX`."""
    command = line.command or ""
    shown = cut_text(command, COMMAND_BYTES_MAX)
    if shown != command:
        line = replace(line, command=shown, command_truncated=True)
    row = _encode(line)
    return row if len(row) <= ROW_BYTES_MAX else _encode_cut(line)


def cut_text(text: str, bytes_max: int) -> str:
    """Return the longest start of a text whose JSON has at most so many bytes."""
    text = text[:bytes_max]
    low, high = 0, len(text)
    # Most texts are short, so they need no encoding to be measured.
    if high * JSON_CHAR_BYTES <= bytes_max or _json_bytes(text) <= bytes_max:
        return text
    while low < high:
        middle = (low + high + 1) // 2
        if _json_bytes(text[:middle]) <= bytes_max:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def cut_detail(text: str | None, bytes_max: int = DETAIL_BYTES_MAX) -> str | None:
    """Return a text for people, with an ellipsis if it is cut."""
    if text is None or _json_bytes(text) <= bytes_max:
        return text
    return cut_text(text, bytes_max - len("...")) + "..."


def _encode_cut(line: rest.TaskLine) -> bytes:
    """Return the JSON of a row that is too long."""
    labels = _first_labels(line.labels)
    if line.missing_output:
        line = replace(line, missing_output=cut_detail(line.missing_output))
    line = replace(
        line,
        detail=cut_detail(line.detail),
        call=cut_detail(line.call, CALL_BYTES_MAX),
        array=_without_failure_detail(line.array),
        labels=labels,
        labels_truncated=True if labels != line.labels else msgspec.UNSET,
    )
    if isinstance(line, rest.ArrayMember):
        line = replace(line, item=cut_detail(line.item, ITEM_BYTES_MAX))
    command = line.command or ""
    without = replace(line, command="", command_truncated=True)
    shown = cut_text(command, ROW_BYTES_MAX - len(_encode(without)))
    if shown == command:
        return _encode(line)
    return _encode(replace(without, command=shown))


def _without_failure_detail(counts: rest.Members | None) -> rest.Members | None:
    """Return the counts of an array without the detail of its first failure."""
    if counts is None or counts.first_failure is None:
        return counts
    return replace(counts, first_failure=replace(counts.first_failure, detail=None))


def _first_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the first labels that have at most `LABELS_BYTES_MAX`."""
    shown: dict[str, str] = {}
    for name, value in labels.items():
        if len(_encode({**shown, name: value})) > LABELS_BYTES_MAX:
            break
        shown[name] = value
    return shown


def _json_bytes(text: str) -> int:
    """Return the bytes of a text in JSON, without its quotes."""
    return len(_encode(text)) - len('""')


def _as_encoded(encoded: Sequence[bytes]) -> Any:
    """Return rows that are JSON already, for a field of rows."""
    return [msgspec.Raw(row) for row in encoded]
