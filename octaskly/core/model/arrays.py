"""Arrays: tasks that stand for many members, and the ids, specs and states of members.

The log has one submission per array. The id and the spec of a member follow from those
of its array, so the log says nothing about a member before it runs. The state of an
array follows from the states of its members.

Source: docs/decisions/0016-arrays-are-one-task.md.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from typing import Annotated, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from octaskly.core.model import placeholders
from octaskly.core.model.field_types import COUNT_MAX, Count, Millis
from octaskly.core.model.ids import TASK_ID_CHARS_MAX, AttemptId, TaskId
from octaskly.core.model.task_options import ArraySpec, InputTree, shape_of
from octaskly.core.model.tasks import LaneKey, TaskSpec, TaskState

MEMBERS_MAX: Final = 10_000_000
MEMBER_NUMBER_MAX: Final = 999_999_999
ITEM_BYTES_MAX: Final = 65_536
ITEMS_BYTES_MAX: Final = 4 << 20  #: per array, because an array travels in one frame
RUNS_MAX: Final = 10_000  #: ranges of an array's members in one read
RANGE_MAX: Final = 1024  #: members of one `MemberRange`; a worker gets fewer at once
ITEM_VARIABLE: Final = "OCTASKLY_ITEM"
INDEX_VARIABLE: Final = "OCTASKLY_INDEX"
ITEM_DIGEST_PLACEHOLDER: Final = "{sha256}"  #: in the folders of a tree
MAX_FAILS_CANCELLER: Final = (
    "max_fails"  #: canceller of the other members after too many failures
)
FORCED_PREFIX: Final = "\x1fforce "
"""Prefix of the canceller of an array whose running members are cancelled too.

It sorts before every subject, and the smallest canceller counts. So a forced cancel
keeps precedence if others cancel the array too.
"""

# A name that a client chose is followed by `~` and a digest: 15 digits for a task, 14
# for an array. So a task whose name ends in `.<number>` is not taken for a member.
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
    """Inclusive ranges of positions without facts in the log.

    Only reads for the queue fill this in, with at most `RUNS_MAX` ranges.
    """
    started_ms: Millis | None = None  #: earliest start of the members that have ended
    ended_ms: Millis | None = None  #: latest end of a member so far

    @property
    def total(self) -> int:
        """Number of members."""
        ended = self.completed + self.failed + self.cancelled
        return self.queued + self.running + ended


class MemberRange(Struct, frozen=True, array_like=True):
    """Consecutive members of an array that one worker gets together.

    Each has its own attempt. The attempts follow each other in the log, so their
    sequence numbers do, too.
    """

    array: TaskSpec  #: with these members only, and their items
    position: Count  #: of the first member in the whole array
    attempt: AttemptId  #: of the first member

    @property
    def count(self) -> int:
        """Number of members."""
        return 0 if self.array.array is None else self.array.array.count

    def members(self) -> Iterator[tuple[AttemptId, TaskSpec]]:
        """Yield the members in order, with their attempts."""
        part = self.array.array
        assert part is not None
        for offset in range(part.count):
            position = self.position + offset
            spec = spec_of_member(
                self.array, part.number(offset), position, part.item(offset)
            )
            yield attempt_at(self.attempt, offset), spec


class RangeMembers(Struct, frozen=True, array_like=True):
    """Some members of a `MemberRange`, and their attempts."""

    array: TaskId
    number: Count  #: of the first member of the range
    step: Count  #: from one member's number to the next
    attempt: AttemptId  #: of the first member of the range
    offsets: Annotated[tuple[Count, ...], Meta(max_length=RANGE_MAX)]
    """Places of the members in the range, from 0, in order."""

    def attempt_keys(self) -> list[tuple[TaskId, AttemptId]]:
        """Return the id and the attempt of each member."""
        number, step, first = self.number, self.step, self.attempt
        return [
            (member_id(self.array, number + step * offset), attempt_at(first, offset))
            for offset in self.offsets
        ]


def attempt_at(first: AttemptId, offset: int) -> AttemptId:
    """Return the attempt that is `offset` entries of the log after `first`."""
    return AttemptId(first.term, first.stream, first.seq + offset, first.n)


def part_of_array(array: TaskSpec, position: int, count: int) -> TaskSpec:
    """Return the spec of an array with `count` of its members only."""
    whole = array.array
    assert whole is not None
    assert array.options is not None
    part = replace(
        whole,
        count=count,
        first=whole.number(position),
        items=whole.items[position : position + count],
    )
    return replace(array, options=replace(array.options, array=part))


def is_valid_range(members: MemberRange) -> bool:
    """Return True if a worker can be given these members of an array."""
    array = members.array.array
    if array is None or not is_valid_array(array) or array.count > RANGE_MAX:
        return False
    last = array.number(array.count - 1)
    return _are_ids_valid(members.array.id, last, members.attempt, array.count)


def are_valid_members(members: RangeMembers) -> bool:
    """Return True if these can be members of one range, each named once."""
    offsets = members.offsets
    if not offsets or members.step < 1:
        return False
    is_ordered = all(a < b for a, b in pairwise(offsets))
    last = members.number + members.step * offsets[-1]
    return (
        is_ordered
        and offsets[-1] < RANGE_MAX
        and _are_ids_valid(members.array, last, members.attempt, offsets[-1] + 1)
    )


def _are_ids_valid(array: TaskId, last: int, attempt: AttemptId, count: int) -> bool:
    """Return True if the ids up to the last member and its attempt are in bounds."""
    if last > MEMBER_NUMBER_MAX or attempt.seq + count >= COUNT_MAX:
        return False
    member = member_id(array, last)
    return len(member) <= TASK_ID_CHARS_MAX and split_member_id(member) == (array, last)


class RemainingMembers:
    """The members of an array that were never assigned, as ranges of positions."""

    def __init__(self, runs: Iterable[tuple[int, int]]) -> None:
        self._runs = deque(runs)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self._runs)

    @property
    def first(self) -> int:
        """The first position; there must be one."""
        return self._runs[0][0]

    def pop(self) -> int:
        """Remove and return the first position."""
        first, last = self._runs.popleft()
        if first < last:
            self._runs.appendleft((first + 1, last))
        return first

    def remove(self, position: int) -> None:
        """Remove a position, if present."""
        self.remove_run(position, position)

    def remove_run(self, start: int, end: int) -> None:
        """Remove the positions from `start` to `end`; some may be absent."""
        self._runs = deque(
            run
            for first, last in self._runs
            for run in (
                ((first, start - 1), (end + 1, last))
                if first <= end and start <= last
                else ((first, last),)
            )
            if run[0] <= run[1]
        )

    def intersect(self, runs: Iterable[tuple[int, int]]) -> None:
        """Keep only the positions in `runs`, which must be in order."""
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
    """Return the id of the array's member with this number."""
    name, mark, digest = array.partition("~")
    return TaskId(f"{name}.{number}{mark}{digest}")


def split_member_id(task: TaskId) -> tuple[TaskId, int] | None:
    """Return array and number of a member; None if `task` is not a member."""
    return _split_cached(task) if "." in task else None


def array_of(task: TaskId) -> TaskId | None:
    """Return the array of a member; None if `task` is not a member."""
    if "." not in task:  # A shortcut for most tasks.
        return None
    place = _split_cached(task)
    return None if place is None else place[0]


def position_of(member: TaskId, array: ArraySpec) -> int | None:
    """Return the position of a member in its array; None if it has no such member."""
    place = split_member_id(member)
    return None if place is None else array.position(place[1])


@lru_cache(maxsize=4096)
def _split_cached(task: TaskId) -> tuple[TaskId, int] | None:
    match = _MEMBER_ID.fullmatch(task)
    if match is None:
        return None
    return TaskId(match[1] + (match[3] or "")), int(match[2])


def lane_key_of(spec: TaskSpec) -> LaneKey:
    """Return the lane of a task, an array or a member, as the store has it.

    Members that wait have no submitter there; few do, as most come out of their array.
    """
    options, submitter = spec.options, spec.submitter
    if array_of(spec.id) is not None:
        submitter = ""
    if options is None:  # A shortcut for most tasks.
        return LaneKey(0, submitter)
    return LaneKey(shape_of(options), submitter, options.array is not None)


def split_member_name(name: str) -> tuple[str, int] | None:
    """Return array name and number if `name` has the form of a member's name."""
    match = _MEMBER_NAME.fullmatch(name) if "." in name else None
    return None if match is None else (match[1], int(match[2]))


def member_spec(
    array: TaskSpec, number: int, item: str | None = None
) -> TaskSpec | None:
    """Return the spec of the member with this number; None if there is none.

    Args:
        array: The spec of the array.
        number: The number of the member.
        item: The item of the member, if `array` was read without its items.
    """
    array_spec = array.array
    position = None if array_spec is None else array_spec.position(number)
    if array_spec is None or position is None:
        return None
    item = array_spec.item(position) if item is None else item
    return spec_of_member(array, number, position, item)


def spec_of_member(array: TaskSpec, number: int, position: int, item: str) -> TaskSpec:
    """Return the spec of a member of an array.

    Args:
        array: The spec of the array; which other members it has does not matter.
        number: The number of the member.
        position: The position of the member in the whole array.
        item: The item of the member.
    """
    options = array.options
    assert options is not None
    own = ((INDEX_VARIABLE, str(number)), (ITEM_VARIABLE, item))
    env = tuple(sorted(options.env + own)) if options.env else own
    return replace(
        array,
        id=member_id(array.id, number),
        command=placeholders.fill_placeholders(
            array.command, item, position, is_quoted=True
        ),
        inputs=_member_paths(array.inputs, item, position),
        outputs=_member_paths(array.outputs, item, position),
        options=replace(
            options,
            env=env,
            array=None,
            after=None,
            notify_url="",
            tree=_member_tree(options.tree, item),
        ),
    )


def _member_tree(tree: InputTree | None, item: str) -> InputTree | None:
    """Return the tree of an array with the folders of a member."""
    if tree is None or not tree.folders:
        return tree
    digest = item_digest(item)
    folders = (text.replace(ITEM_DIGEST_PLACEHOLDER, digest) for text in tree.folders)
    return replace(tree, folders=tuple(folders))


def item_digest(item: str) -> str:
    """Return the SHA-256 of an item, which names its folder in a tree of an array."""
    return sha256(item.encode()).hexdigest()


def _member_paths(paths: tuple[str, ...], item: str, position: int) -> tuple[str, ...]:
    """Return the paths of a member, without duplicates."""
    if not paths:
        return ()
    filled = (placeholders.fill_path(path, item, position) for path in paths)
    return tuple(dict.fromkeys(filled))


def is_valid_array(array: ArraySpec) -> bool:
    """Return True if the members can be numbered and counted."""
    return (
        0 < array.count <= MEMBERS_MAX
        and 0 <= array.first <= MEMBER_NUMBER_MAX
        and 0 < array.step <= MEMBER_NUMBER_MAX
        and array.number(array.count - 1) <= MEMBER_NUMBER_MAX
        and (not array.has_items or len(array.items) == array.count)
    )


def has_too_many_failures(array: ArraySpec, failed: int) -> bool:
    """Return True if so many members failed that no others may begin."""
    return array.max_fails is not None and failed > array.max_fails


def array_state(
    array: ArraySpec, progress: ArrayProgress, cancelled_by: str | None
) -> TaskState:
    """Return the state of an array, a pure function of its members' states."""
    failed = progress.failed
    if progress.running:
        return TaskState.RUNNING
    if progress.queued:
        has_begun = progress.completed or failed
        return TaskState.RUNNING if has_begun else TaskState.QUEUED
    if not progress.cancelled:
        return TaskState.FAILED if failed else TaskState.COMPLETED
    is_cut_off = has_too_many_failures(array, failed)
    if failed and (cancelled_by is None or is_cut_off):
        return TaskState.FAILED
    return TaskState.CANCELLED
