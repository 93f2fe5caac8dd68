"""Validation and JSON of arrays."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec.structs import replace

from octaskly.api.schemas.base import InvalidField, RequestBody, openapi_schema
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import (
    INDEX_VARIABLE,
    ITEM_BYTES_MAX,
    ITEM_VARIABLE,
    ITEMS_BYTES_MAX,
    MEMBER_NUMBER_MAX,
    MEMBERS_MAX,
    ArrayProgress,
    member_id,
    split_member_name,
)
from octaskly.core.model.ids import TaskId
from octaskly.core.model.placeholders import (
    NAME_BYTES_MAX,
    fill_placeholders,
    path_fault,
    placeholder_values,
    split_placeholders,
)
from octaskly.core.model.task_options import (
    CHAR_BYTES,
    ITEM_BYTES,
    ITEMS_MAX,
    ArraySpec,
)
from octaskly.ports.store import MemberFailure
from octaskly.rest.tasks import FirstFailure, Members

_RANGE = re.compile(
    r"(?P<first>[0-9]{1,18})-(?P<last>[0-9]{1,18})(:(?P<step>[0-9]{1,9}))?"
)

# ECMAScript, which OpenAPI uses, writes named groups differently, so omit the names.
_RANGE_PATTERN = f"^{re.sub(r'[?]P<.*?>', '', _RANGE.pattern)}$"
FILLED_MAX: Final = 1 << 20  #: paths that one submission fills in, to check them
#: Parts of paths between NUL: absolute, with `..`, or without a name.
_LEADS_UP: Final = re.compile(r"\0/|[\0/]\.\.[\0/]|\0[./]*\0")
_LONG_NAME: Final = re.compile(rf"[^\0/]{{{NAME_BYTES_MAX // CHAR_BYTES + 1},}}")
QUOTED_MAX: Final = 5 * CHAR_BYTES  #: maximum bytes of one quoted character

FIELD_HINTS: Final = {
    "array": "an object with `range` or `items`, and optionally `max_fails`",
    "range": "FIRST-LAST or FIRST-LAST:STEP with numbers from 0 to"
    f" {MEMBER_NUMBER_MAX}, and at most {MEMBERS_MAX} members",
    "items": f"1 to {ITEMS_MAX} strings of at most {ITEM_BYTES_MAX} bytes each "
    f"and {ITEMS_BYTES_MAX} in total",
    "max_fails": f"an integer from 0 to {MEMBERS_MAX}",
}


class ArrayIn(RequestBody, gc=False):
    """The members of an array."""

    range: Annotated[str, openapi_schema(pattern=_RANGE_PATTERN)] | None = None
    items: Annotated[list[str], openapi_schema(minItems=1)] | None = None
    max_fails: Annotated[int, msgspec.Meta(ge=0, le=MEMBERS_MAX)] | None = None


def parse_array(array_in: ArrayIn, command: str, command_bytes_max: int) -> ArraySpec:
    """Return the members of a requested array.

    Args:
        array_in: The array in the request.
        command: The command of the array, with placeholders.
        command_bytes_max: Limit for the command of each member.

    Raises:
        InvalidField: there are no members, too many, or one is invalid.
    """
    if (array_in.range is None) == (array_in.items is None):
        raise InvalidField("array", "exactly one of `range` and `items` is required")
    if array_in.items is None:
        assert array_in.range is not None
        array = _parse_range(array_in.range)
        longest = len(str(array.number(array.count - 1)))
    else:
        array = _parse_items(array_in.items)
        longest = QUOTED_MAX * max(map(len, array_in.items)) + len("''")
    pieces = split_placeholders(command)
    times, size_bytes = len(pieces) // 2, len("".join(pieces[::2]).encode())
    if array_in.items and size_bytes + times * longest > command_bytes_max:
        # The upper bound is too long, so measure each item exactly.
        longest = max(len(shlex.quote(item).encode()) for item in array_in.items)
    # A placeholder's value is at most as long as the item, except `''` and `{#}`.
    size_bytes += times * max(longest, len(str(array.count)), len("''"))
    if size_bytes > command_bytes_max:
        what = f"for the longest member the command has {size_bytes} bytes"
        raise InvalidField(
            "command", f"{what}; at most {command_bytes_max} are allowed"
        )
    return replace(array, max_fails=array_in.max_fails)


def check_paths(array: ArraySpec, paths: Iterable[str]) -> None:
    """Raise `InvalidField` unless all items can replace placeholders in these paths.

    The value of a placeholder may contain folders, but no path may lead upwards.
    """
    parts: dict[str, bool] = {}
    wholes: dict[str, str] = {}
    for whole in paths:
        for part in path_parts(whole):
            if len(split_placeholders(part)) > 1:
                parts[part] = parts.get(part, False) or part == whole
                wholes.setdefault(part, whole)
    if not array.has_items or not parts:
        return
    if len(array.items) * len(parts) > FILLED_MAX:
        what = (
            f"{len(parts)} paths with placeholders are too many for "
            f"{len(array.items)} items"
        )
        raise InvalidField("array", what)
    for part, is_whole in parts.items():
        if _are_valid(_filled(part, array.items), is_whole=is_whole):
            continue
        for index, item in enumerate(array.items):
            if not _are_valid(
                {fill_placeholders(part, item, index)}, is_whole=is_whole
            ):
                path = fill_placeholders(wholes[part], item, index)
                # `x/{}` refuses an item that begins with a slash, too.
                fault = path_fault(path) or path_fault(
                    fill_placeholders(part, item, index)
                )
                raise InvalidField(
                    f"array.items[{index}]",
                    f"with the item {item[:40]!r}, {wholes[part]!r} becomes "
                    f"{path[:80]!r},"
                    f" which {fault}",
                    expected="items that give a path inside the folder of the task",
                )


def _filled(part: str, items: Sequence[str]) -> set[str]:
    """Return what a part of a path becomes, for all items."""
    pieces = split_placeholders(part)
    if len(pieces) > len(("before", "placeholder", "after")):
        return {fill_placeholders(part, item, at) for at, item in enumerate(items)}
    before, placeholder, after = pieces
    return {
        f"{before}{value}{after}" for value in placeholder_values(placeholder, items)
    }


def _are_valid(filled: set[str], *, is_whole: bool) -> bool:
    """Return True if no filled part of a path leads upwards, is empty or too long.

    All are searched at once, which takes a fraction of a check of each: there may be
    262 144 of them.
    """
    if not is_whole:
        filled.discard(".")  # `{//}` of an item without a folder.
    joined = "\0".join(filled)
    return not _LEADS_UP.search(f"\0{joined}\0" if filled else "") and not any(
        len(name.encode()) > NAME_BYTES_MAX for name in _LONG_NAME.findall(joined)
    )


def path_parts(path: str) -> list[str]:
    """Return the parts of a path; a slash inside a placeholder does not separate."""
    pieces = list(split_placeholders(path))
    pieces[::2] = (piece.replace("/", "\0") for piece in pieces[::2])
    return "".join(pieces).split("\0")


def render_array(
    record: TaskRecord,
    ran_ms: int | None = None,
    *,
    first_failure: MemberFailure | None = None,
) -> Members | None:
    """Return the counts of an array for a list; None for another task.

    Args:
        record: Record of the task.
        ran_ms: For how long the array has run, or ran; None if that is unknown.
        first_failure: Its failed member with the lowest number.
    """
    array = None if record.spec is None else record.spec.array
    if array is None:
        return None
    progress = record.progress or ArrayProgress(queued=array.count)
    left = progress.queued + progress.running
    ended = progress.completed + progress.failed
    rate_per_s = 1000 * ended / ran_ms if ended and ran_ms else None
    last = array.number(array.count - 1)
    step = f":{array.step}" if array.step != 1 else ""
    return Members(
        range=None if array.has_items else f"{array.first}-{last}{step}",
        total=array.count,
        max_fails=array.max_fails,
        queued=progress.queued,
        running=progress.running,
        completed=progress.completed,
        failed=progress.failed,
        cancelled=progress.cancelled,
        rate_per_s=rate_per_s and round(rate_per_s, 3),
        eta_ms=round(left / rate_per_s * 1000) if left and rate_per_s else None,
        first_failure=first_failure and render_failure(record, first_failure),
    )


def render_failure(record: TaskRecord, failure: MemberFailure) -> FirstFailure:
    """Return the first failure of an array."""
    name = member_id(TaskId(record.name), failure.number)
    outcome = failure.outcome
    if outcome is None:
        return FirstFailure(id=name, index=failure.number)
    return FirstFailure(
        id=name,
        index=failure.number,
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        reason=outcome.reason.value,
        detail=outcome.detail or None,
    )


def render_member(record: TaskRecord) -> dict[str, Any]:
    """Return the number and the item of a member."""
    options = None if record.spec is None else record.spec.options
    env = {} if options is None else dict(options.env)
    return {"index": int(env[INDEX_VARIABLE]), "item": env[ITEM_VARIABLE]}


def check_id(array: str | msgspec.UnsetType) -> None:
    """Refuse an id that a member of another array could have."""
    if array is not msgspec.UNSET and split_member_name(array) is not None:
        raise InvalidField(
            "id",
            f"`{array}` would be a member of an array",
            expected="one without a `.` and a number at its end",
        )


def _parse_range(text: str) -> ArraySpec:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InvalidField("array.range", f"{text[:40]!r} is not a range")
    first, last, step = int(match["first"]), int(match["last"]), int(match["step"] or 1)
    if last < first:
        raise InvalidField("array.range", f"{first}-{last} is reversed")
    if not step:
        raise InvalidField("array.range", "the step is 0")
    count = (last - first) // step + 1
    if count > MEMBERS_MAX:
        raise InvalidField("array.range", f"the array has {count} members")
    if last > MEMBER_NUMBER_MAX:
        raise InvalidField("array.range", f"{last} is too large")
    return ArraySpec(count=count, first=first, step=step)


def _parse_items(items: list[str]) -> ArraySpec:
    if not 1 <= len(items) <= ITEMS_MAX:
        raise InvalidField("array.items", f"there are {len(items)} items")
    if max(map(len, items)) * CHAR_BYTES > ITEM_BYTES_MAX or "\0" in "".join(items):
        for index, item in enumerate(items):
            _check_item(index, item)
    array = ArraySpec(count=len(items), has_items=True, items=tuple(items))
    if array.items_bytes > ITEMS_BYTES_MAX:
        what = (
            f"the items take {array.items_bytes} bytes,"
            f" including {ITEM_BYTES} of overhead for each"
        )
        raise InvalidField("array.items", what)
    return array


def _check_item(index: int, item: str) -> None:
    if "\0" in item:
        raise InvalidField(f"array.items[{index}]", "the item contains a NUL character")
    size_bytes = len(item.encode())
    if size_bytes > ITEM_BYTES_MAX:
        raise InvalidField(f"array.items[{index}]", f"the item has {size_bytes} bytes")
