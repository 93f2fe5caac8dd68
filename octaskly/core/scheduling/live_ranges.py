"""Ranges of an array's members that workers hold, each as one object in memory.

A worker often gets many members of an array in one step, and nearly all of them
succeed. So the dispatcher does not keep a `QueuedTask` for each of them, but one
`LiveRange`; `RangePlan` divides the members of a step. As soon as anything else is
asked or said about a member, `TaskTable` puts a `QueuedTask` of its own in the place of
that member, or of the whole range. All rules are those of tasks: a range only stands
for its members.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Final

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import (
    RANGE_MAX,
    RangeMembers,
    attempt_at,
    member_id,
    spec_of_member,
    split_member_id,
)
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.task_options import CHAR_BYTES
from octaskly.core.model.tasks import Attempt, AttemptState, EndReason, Outcome
from octaskly.core.scheduling.queued_task import QueuedTask, Stage
from octaskly.core.scheduling.turns import FlowKey, Shares

LIVE, SUCCEEDED, APART = range(3)
"""State of a member in a range; `APART`: it is a task of its own, or was one."""

SUCCESS: Final = Outcome(AttemptState.OK, EndReason.EXIT, 0)
"""What is kept of the end of a member that succeeded."""

MEMBERS_PER_TASK = 8
"""A `QueuedTask` takes about as much memory as so many members of a range."""

_number_of = attrgetter("number")


@dataclass(frozen=True, slots=True)
class PlannedRange:
    """Consecutive members of an array, for one worker."""

    array: QueuedTask
    node: NodeId
    position: int  #: of the first member
    count: int
    shares: Shares  #: those that hold a slot for each of the members


@dataclass(slots=True)
class _ArrayMembers:
    """The members of one array that are assigned in this step."""

    array: QueuedTask
    shares: Shares
    positions: list[int] = field(default_factory=list)
    counts: dict[NodeId, int] = field(default_factory=dict)


class RangePlan:
    """The members of arrays that workers get in one step.

    While tasks are matched to workers, only the numbers of members are known. In the
    end each worker gets consecutive members of an array, which take little room in
    messages and in memory.

    Args:
        bytes_max: Of the items of one range, roughly.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._arrays: dict[TaskId, _ArrayMembers] = {}

    def add_member(
        self, array: QueuedTask, position: int, node: NodeId, shares: Shares
    ) -> None:
        """Add a member, and a place for a member of this array on a worker."""
        known = self._arrays.get(array.spec.id)
        if known is None:
            known = self._arrays[array.spec.id] = _ArrayMembers(array, shares)
        known.positions.append(position)
        known.counts[node] = known.counts.get(node, 0) + 1

    def ranges(self) -> Iterator[PlannedRange]:
        """Yield the ranges, those of an array in its order."""
        for each in self._arrays.values():
            positions = iter(sorted(each.positions))
            for node, count in each.counts.items():
                own = list(islice(positions, count))
                for start, end in self._runs(each.array, own):
                    yield PlannedRange(
                        each.array, node, own[start], end - start, each.shares
                    )

    def _runs(
        self, array: QueuedTask, positions: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield the ends of the parts of `positions` that may each be one range."""
        array_spec = array.spec.array
        assert array_spec is not None
        items = array_spec.items
        start = size = 0
        for at, position in enumerate(positions):
            item_bytes = CHAR_BYTES * len(items[position]) if items else 0
            is_next = at == start or position == positions[at - 1] + 1
            is_full = at - start == RANGE_MAX or size + item_bytes > self._bytes_max
            if at > start and (is_full or not is_next):
                yield start, at
                start, size = at, 0
            size += item_bytes
        yield start, len(positions)


class LiveRange:
    """Consecutive members of an array that one worker got in one step.

    Args:
        planned: The members and their worker.
        attempt: Of the first member; the others follow in the log.
        term: Epoch that decides by the members' successes.
    """

    __slots__ = (
        *("attempt", "attempts", "commit_number", "flow", "ids", "last_read"),
        *("live_count", "node", "number", "position", "reprioritized", "shares"),
        *("spec", "states", "step", "term"),
    )

    def __init__(self, planned: PlannedRange, attempt: AttemptId, term: int) -> None:
        array, position, count = planned.array, planned.position, planned.count
        array_spec = array.spec.array
        assert array_spec is not None
        self.spec = array.spec
        self.flow: FlowKey = array.flow
        self.reprioritized = array.record.reprioritized
        self.position, self.attempt, self.node = position, attempt, planned.node
        self.number, self.step = array_spec.number(position), array_spec.step
        self.shares, self.term = planned.shares, term
        self.ids = [
            member_id(array.spec.id, self.number + self.step * offset)
            for offset in range(count)
        ]
        self.attempts = [attempt_at(attempt, offset) for offset in range(count)]
        self.states = bytearray(count)  #: of each member: LIVE, SUCCEEDED or APART
        self.live_count = count
        self.commit_number = 0
        """Commit that makes the last successes durable; 0: they are durable."""
        self.last_read = 0  #: as of a task

    @property
    def slots(self) -> int:
        """Number of slots that its members hold."""
        return self.live_count

    def offset_of(self, number: int) -> int | None:
        """Return the place of a member that is not apart; None if it is not here."""
        offset, rest = divmod(number - self.number, self.step)
        is_here = not rest and 0 <= offset < len(self.ids)
        return offset if is_here and self.states[offset] != APART else None

    def is_live(self, offset: int) -> bool:
        """Return True if the worker holds a member, and nothing else is known of it."""
        return self.states[offset] == LIVE

    def is_source_of(self, members: RangeMembers, node: NodeId) -> bool:
        """Return True if these members were given to the worker as this range."""
        return (
            node == self.node
            and members.attempt == self.attempt
            and members.step == self.step
            and members.offsets[-1] < len(self.ids)
        )

    def task_at(self, offset: int) -> QueuedTask:
        """Return a new task that stands for one member."""
        array = self.spec.array
        assert array is not None
        position = self.position + offset
        spec = spec_of_member(
            self.spec, array.number(position), position, array.item(position)
        )
        attempt = Attempt(self.attempts[offset], self.node)
        is_live = self.states[offset] == LIVE
        if not is_live:
            attempt = Attempt(
                attempt.id, self.node, AttemptState.OK, SUCCESS, self.term
            )
        record = TaskRecord(
            spec.id, spec, attempts=(attempt,), reprioritized=self.reprioritized
        )
        task = QueuedTask(
            record,
            stage=Stage.LIVE if is_live else Stage.ENDED,
            attempt=attempt.id,
            node=self.node,
            is_worker_confirmed=True,
        )
        task.shares = self.shares if is_live else None
        return task

    @property
    def is_nearly_over(self) -> bool:
        """Return True if so few members run that tasks take less memory than this."""
        return self.live_count * MEMBERS_PER_TASK <= len(self.ids)

    def drop_succeeded(self) -> list[TaskId]:
        """Drop the members that succeeded; return them."""
        ended = []
        for offset, state in enumerate(self.states):
            if state == SUCCEEDED:
                self.states[offset] = APART
                ended.append(self.ids[offset])
        return ended


class LiveRanges:
    """The ranges in memory, by array."""

    def __init__(self) -> None:
        self._by_array: dict[TaskId, list[LiveRange]] = {}
        """Ordered by number; no two of an array have a member in common."""

    def __bool__(self) -> bool:
        return bool(self._by_array)

    def __contains__(self, live: LiveRange) -> bool:
        return any(live is other for other in self.of_array(live.spec.id))

    def add(self, live: LiveRange) -> None:
        """Add a range."""
        insort(self._by_array.setdefault(live.spec.id, []), live, key=_number_of)

    def remove(self, live: LiveRange) -> None:
        """Remove a range."""
        ranges = self._by_array[live.spec.id]
        ranges.remove(live)
        if not ranges:
            del self._by_array[live.spec.id]

    def of_array(self, array: TaskId) -> list[LiveRange]:
        """Return the ranges of an array, in order."""
        return self._by_array.get(array, [])

    def find(self, task_id: TaskId) -> tuple[LiveRange, int] | None:
        """Return the range that stands for a member, and the member's place in it."""
        array_and_number = split_member_id(task_id) if self._by_array else None
        if array_and_number is None:
            return None
        live = self.find_near(*array_and_number)
        offset = None if live is None else live.offset_of(array_and_number[1])
        return None if live is None or offset is None else (live, offset)

    def find_near(self, array: TaskId, number: int) -> LiveRange | None:
        """Return the last range of an array that starts at or before a number."""
        ranges = self._by_array.get(array)
        at = bisect_right(ranges, number, key=_number_of) if ranges else 0
        return ranges[at - 1] if ranges and at else None

    def count_members(self) -> int:
        """Return the number of members for which the ranges stand."""
        return sum(
            len(live.states) - live.states.count(APART)
            for ranges in self._by_array.values()
            for live in ranges
        )
