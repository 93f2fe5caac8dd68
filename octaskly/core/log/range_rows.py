"""Rows of a snapshot for members of an array that were assigned together.

One `RangeRow` replaces the rows of these members, as one fact of `range_facts` replaces
their facts. If more is known of a member, it has a row of its own.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from octaskly.core.log.facts import Step
from octaskly.core.model.arrays import RANGE_MAX, RangeMembers, are_valid_members
from octaskly.core.model.field_types import (
    COUNT_MAX,
    TIME_MS_MAX,
    Count,
    Int,
    Millis,
)
from octaskly.core.model.ids import AttemptId, NodeId, TaskId

RUNNING, APART = range(2)
"""States of a member in a range; `APART`: it has a row of its own."""


class MemberEnd(Struct, frozen=True, array_like=True):
    """The success of a member."""

    later_hlc: Count  #: after the timestamp of the range
    decided_term: Count
    started_ms: Millis
    lasting_ms: Int  #: from start to end by the wall clock
    duration_ms: Millis
    cpu_ms: Millis | None
    memory_max_kb: Count | None


MemberState = MemberEnd | Annotated[int, Meta(ge=RUNNING, le=APART)]


class RangeRow(Struct, frozen=True, array_like=True):
    """A row of a snapshot for consecutive members of an array."""

    array: TaskId
    number: Count  #: of the first member
    step: Step
    attempt: AttemptId  #: of the first member; the others follow
    node: NodeId
    hlc: Count  #: timestamp of the first assignment; the others follow
    members: Annotated[tuple[MemberState, ...], Meta(max_length=RANGE_MAX)]
    age_ms: Millis = 0  #: of the youngest of these members, as in `TaskRow`


_HLC_MAX: Final = COUNT_MAX - RANGE_MAX


def is_valid_range_row(row: RangeRow) -> bool:
    """Return True if this row could be the join of facts about these members."""
    offsets = tuple(range(len(row.members)))
    members = RangeMembers(row.array, row.number, row.step, row.attempt, offsets)
    return (
        row.hlc < _HLC_MAX
        and are_valid_members(members)
        and all(
            row.hlc + end.later_hlc < COUNT_MAX
            and end.decided_term > 0
            and 0 <= end.started_ms + end.lasting_ms < TIME_MS_MAX
            for end in row.members
            if isinstance(end, MemberEnd)
        )
    )
