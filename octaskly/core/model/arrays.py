"""Arrays: one task that stands for many, each of which is derived from it.

The log has one submission for an array. A member is a task whose id and envelope follow
from those of its array, so nothing is written of it before it runs; and what an array
is doing follows from what is known of its members.

Source: docs/decisions/0016-arrays-are-one-task.md.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from octaskly.core.model import placeholders
from octaskly.core.model.field_types import Count, Millis
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec
from octaskly.core.model.tasks import TaskSpec, TaskState

MEMBERS_MAX: Final = 10_000_000
MEMBER_NUMBER_MAX: Final = 999_999_999  #: of a member
ITEM_BYTES_MAX: Final = 65_536
ITEMS_BYTES_MAX: Final = 4 << 20  #: of one array, as it travels in one frame
RUNS_MAX: Final = 10_000  #: runs of members of an array that are read at once
ITEM_VARIABLE: Final = "OCTASKLY_ITEM"
INDEX_VARIABLE: Final = "OCTASKLY_INDEX"
MAX_FAILS_CANCELLER: Final = (
    "max_fails"  #: who cancels the rest after too many failures
)
FORCED_PREFIX: Final = "\x1fforce "
"""Begins who cancelled an array with the members that run.

It is less than each subject, so it stays where others cancelled the array, too.
"""

# What a client called a task has `~` and a digest behind it: 15 digits of it for a
# task, 14 for an array, so a name with a dot and a number in it is no member.
ARRAY_DIGEST_DIGITS: Final = 14
_MEMBER_ID: Final = re.compile(
    r"(task-[0-9]{3,18}-[0-9a-f]{8}|.+(?=\.[0-9]+~))"
    rf"\.(0|[1-9][0-9]{{0,8}})(~[0-9a-f]{{{ARRAY_DIGEST_DIGITS}}})?"
)


_MEMBER_NAME: Final = re.compile(r"(.+)\.(0|[1-9][0-9]{0,8})")


class ArrayProgress(Struct, frozen=True, array_like=True):
    """How many members of an array are in each state."""

    queued: Count = 0
    running: Count = 0
    completed: Count = 0
    failed: Count = 0
    cancelled: Count = 0
    remaining_runs: Annotated[
        tuple[tuple[Count, Count], ...], Meta(max_length=RUNS_MAX)
    ] = ()
    """Runs of positions, the last included, of which the log says nothing; for the
    queue alone, which was told all of them if they are not too many."""
    started_ms: Millis | None = None  #: when the first member began that has ended
    ended_ms: Millis | None = None  #: when the last one ended of those that have

    @property
    def total(self) -> int:
        """How many there are."""
        ended = self.completed + self.failed + self.cancelled
        return self.queued + self.running + ended


class RemainingMembers:
    """The members of an array that were not handed out, as runs of positions."""

    def __init__(self, runs: Iterable[tuple[int, int]]) -> None:
        self._runs = deque(runs)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def pop(self) -> int:
        """Take the first position out."""
        first, last = self._runs.popleft()
        if first < last:
            self._runs.appendleft((first + 1, last))
        return first

    def remove(self, position: int) -> None:
        """Take a position out, if it is there."""
        self._runs = deque(
            run
            for first, last in self._runs
            for run in (
                ((first, position - 1), (position + 1, last))
                if first <= position <= last
                else ((first, last),)
            )
            if run[0] <= run[1]
        )

    def intersect(self, runs: Iterable[tuple[int, int]]) -> None:
        """Take all out that is in none of these runs, which are in order."""
        kept: deque[tuple[int, int]] = deque()
        own_runs = iter(self._runs)
        run = next(own_runs, None)
        for first, last in runs:
            while run is not None and run[1] < first:
                run = next(own_runs, None)
            while run is not None and run[0] <= last:
                kept.append((max(run[0], first), min(run[1], last)))
                if run[1] > last:
                    break
                run = next(own_runs, None)
        self._runs = kept


def member_id(array: TaskId, number: int) -> TaskId:
    """Return the id of the member with a number."""
    name, mark, digest = array.partition("~")
    return TaskId(f"{name}.{number}{mark}{digest}")


def split_member_id(task: TaskId) -> tuple[TaskId, int] | None:
    """Return the array that a member belongs to, and its number; None: it is none."""
    return _split_cached(task) if "." in task else None


@lru_cache(maxsize=4096)
def _split_cached(task: TaskId) -> tuple[TaskId, int] | None:
    match = _MEMBER_ID.fullmatch(task)
    if match is None:
        return None
    return TaskId(match[1] + (match[3] or "")), int(match[2])


def split_member_name(name: str) -> tuple[str, int] | None:
    """Return array and number of the member that clients would call so, if any."""
    match = _MEMBER_NAME.fullmatch(name) if "." in name else None
    return None if match is None else (match[1], int(match[2]))


def member_spec(array: TaskSpec, number: int) -> TaskSpec | None:
    """Return the envelope of the member with a number; None: there is none."""
    array_spec = array.array
    position = None if array_spec is None else array_spec.position(number)
    if array_spec is None or position is None or array.options is None:
        return None
    item = array_spec.item(position)
    own = ((INDEX_VARIABLE, str(number)), (ITEM_VARIABLE, item))
    env = tuple(sorted(array.options.env + own))
    return replace(
        array,
        id=member_id(array.id, number),
        command=placeholders.fill_placeholders(
            array.command, item, position, is_quoted=True
        ),
        inputs=_member_paths(array.inputs, item, position),
        outputs=_member_paths(array.outputs, item, position),
        options=replace(array.options, env=env, array=None, after=None, notify_url=""),
    )


def _member_paths(paths: tuple[str, ...], item: str, position: int) -> tuple[str, ...]:
    """Return the paths of a member, each once."""
    filled = (placeholders.fill_placeholders(path, item, position) for path in paths)
    return tuple(dict.fromkeys(filled))


def is_valid_array(array: ArraySpec) -> bool:
    """Whether the members can be numbered and counted."""
    return (
        0 < array.count <= MEMBERS_MAX
        and 0 <= array.first <= MEMBER_NUMBER_MAX
        and 0 < array.step <= MEMBER_NUMBER_MAX
        and array.number(array.count - 1) <= MEMBER_NUMBER_MAX
        and (not array.has_items or len(array.items) == array.count)
    )


def has_too_many_failures(
    array: ArraySpec, progress: ArrayProgress, cancelled_by: str | None
) -> bool:
    """Whether too many members have failed, and nobody has cancelled the rest yet."""
    fails_max = array.max_fails
    if fails_max is None or progress.failed <= fails_max or cancelled_by is not None:
        return False
    return progress.queued > 0 or progress.running > 0


def array_state(
    array: ArraySpec, progress: ArrayProgress, cancelled_by: str | None
) -> TaskState:
    """Return where an array stands, a pure function of what its members do."""
    failed = progress.failed
    if progress.running:
        return TaskState.RUNNING
    if progress.queued:
        has_begun = progress.completed or failed
        return TaskState.RUNNING if has_begun else TaskState.QUEUED
    if not progress.cancelled:
        return TaskState.FAILED if failed else TaskState.COMPLETED
    has_failed_too_often = array.max_fails is not None and failed > array.max_fails
    if failed and (cancelled_by is None or has_failed_too_often):
        return TaskState.FAILED
    return TaskState.CANCELLED
