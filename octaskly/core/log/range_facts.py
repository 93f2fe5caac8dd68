"""Facts about several members of an array, and the facts for which they stand.

A worker gets many members of an array at once, and nearly all of them succeed. The log
has one fact for these members, which takes a sequence number and a timestamp for each.
So it means exactly the same as the facts of the members one by one. A node may already
hold the facts of some members; it takes only the rest. A fact about a single member is
never in this form.

All rules are those of members. Whoever needs the facts of a member calls `member_facts`
or `member_entries`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, overload

from msgspec.structs import replace

from octaskly.core.log.facts import (
    MESH_FACTS,
    RANGE_FACTS,
    Assigned,
    Entry,
    Fact,
    Finished,
    Floor,
    MembersAssigned,
    MembersSucceeded,
    RangeFact,
    Recorded,
    SuccessTimes,
    TaskFact,
)
from octaskly.core.model.arrays import RangeMembers, attempt_at
from octaskly.core.model.field_types import TIME_MS_MAX
from octaskly.core.model.ids import NodeId
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome

MEMBER_BYTES: Final = 128
"""For which a member counts in the size of a message, so that a message has few."""

TaskEntry = tuple[Entry, TaskFact]
"""An entry about a task, with its fact."""


@overload
def member_facts(fact: TaskFact | RangeFact) -> Sequence[TaskFact]: ...
@overload
def member_facts(fact: Fact) -> Sequence[TaskFact | Floor | Recorded]: ...
def member_facts(fact: Fact) -> Sequence[Fact]:
    """Return the facts for which a fact stands, in their order; mostly itself."""
    if not isinstance(fact, RANGE_FACTS):
        return (fact,)
    keys = members_of(fact).attempt_keys()
    if isinstance(fact, MembersAssigned):
        return [Assigned(task, attempt, fact.node) for task, attempt in keys]
    return [
        Finished(task, attempt, fact.node, outcome, fact.decided_term)
        for (task, attempt), outcome in zip(keys, outcomes_of(fact), strict=True)
    ]


def member_entries(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield entries with one fact each, for which the given entries stand."""
    for entry in entries:
        fact = entry.fact
        if isinstance(fact, RANGE_FACTS):
            yield from (of_member for of_member, _ in _entries_of_members(entry, fact))
        else:
            yield entry


def task_entries(entries: Iterable[Entry]) -> Iterator[TaskEntry]:
    """Yield those of `member_entries` about tasks, each with its fact."""
    for entry in entries:
        fact = entry.fact
        if isinstance(fact, RANGE_FACTS):
            yield from _entries_of_members(entry, fact)
        elif not isinstance(fact, MESH_FACTS):
            yield entry, fact


def _entries_of_members(entry: Entry, fact: RangeFact) -> Iterator[TaskEntry]:
    for index, of_member in enumerate(member_facts(fact)):
        seq, hlc = entry.seq + index, entry.hlc + index
        yield Entry(entry.stream, seq, hlc, of_member), of_member


def entry_after(entry: Entry, seq: int) -> Entry:
    """Return the part of an entry after `seq`, which is before its last number."""
    fact, gone = entry.fact, seq - entry.seq + 1
    if gone <= 0:
        return entry
    assert isinstance(fact, RANGE_FACTS)
    if gone == fact.count - 1:
        (*_, last) = member_entries([entry])
        return last
    rest: RangeFact
    if isinstance(fact, MembersAssigned):
        rest = replace(
            fact,
            attempt=attempt_at(fact.attempt, gone),
            number=fact.number + gone * fact.step,
            count=fact.count - gone,
        )
    else:
        rest = replace(fact, offsets=fact.offsets[gone:], times=fact.times[gone:])
    return Entry(entry.stream, entry.seq + gone, entry.hlc + gone, rest)


def members_of(fact: RangeFact) -> RangeMembers:
    """Return the members of a fact, with their attempts."""
    if isinstance(fact, MembersAssigned):
        offsets = tuple(range(fact.count))
    else:
        offsets = fact.offsets
    return RangeMembers(fact.array, fact.number, fact.step, fact.attempt, offsets)


def success_facts(
    members: RangeMembers, node: NodeId, outcomes: Sequence[Outcome], term: int
) -> list[TaskFact | RangeFact]:
    """Return the facts that members of one range succeeded, in the epoch of `term`.

    Successes with output have a fact each, and so has a single one.
    """
    facts: list[TaskFact | RangeFact] = []
    offsets: list[int] = []
    silent: list[Outcome] = []
    keys = members.attempt_keys()
    are_silent = [_has_only_times(outcome) for outcome in outcomes]
    has_several = sum(are_silent) > 1
    for offset, key, outcome, is_silent in zip(
        members.offsets, keys, outcomes, are_silent, strict=True
    ):
        if is_silent and has_several:
            offsets.append(offset)
            silent.append(outcome)
        else:
            facts.append(Finished(*key, node, outcome, term))
    if silent:
        first_ms = silent[0].started_ms or 0
        fact = MembersSucceeded(
            members.array,
            members.attempt,
            node,
            members.number,
            members.step,
            tuple(offsets),
            term,
            first_ms,
            tuple(_times_of(outcome, first_ms) for outcome in silent),
        )
        facts.append(fact)
    return facts


def outcomes_of(fact: MembersSucceeded) -> list[Outcome]:
    """Return the outcome of each member."""
    return [
        Outcome(
            AttemptState.OK,
            EndReason.EXIT,
            0,
            None,
            started_ms := fact.started_ms + times.started_ms,
            started_ms + times.ended_ms,
            times.duration_ms,
            cpu_ms=times.cpu_ms,
            memory_max_kb=times.memory_max_kb,
        )
        for times in fact.times
    ]


def are_valid_times(fact: MembersSucceeded) -> bool:
    """Return True if each member has times, and they are in the bounds of `Outcome`."""
    return len(fact.times) == len(fact.offsets) and all(
        0 <= outcome.started_ms < TIME_MS_MAX and 0 <= outcome.ended_ms < TIME_MS_MAX
        for outcome in outcomes_of(fact)
        if outcome.started_ms is not None and outcome.ended_ms is not None
    )


def _times_of(outcome: Outcome, first_ms: int) -> SuccessTimes:
    assert outcome.started_ms is not None
    assert outcome.ended_ms is not None
    assert outcome.duration_ms is not None
    return SuccessTimes(
        outcome.started_ms - first_ms,
        outcome.ended_ms - outcome.started_ms,
        outcome.duration_ms,
        outcome.cpu_ms,
        outcome.memory_max_kb,
    )


def _has_only_times(outcome: Outcome) -> bool:
    """Return True if `SuccessTimes` can hold a success."""
    has_output = outcome.stdout or outcome.stderr or outcome.outputs or outcome.detail
    has_written = outcome.stdout_bytes or outcome.stderr_bytes
    return (
        outcome.exit_code == 0
        and outcome.started_ms is not None
        and outcome.ended_ms is not None
        and outcome.duration_ms is not None
        and not (has_output or has_written)
    )
