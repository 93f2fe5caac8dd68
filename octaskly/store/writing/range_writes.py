"""Writes of `member_ranges`: assignments and successes of many members at once.

See `store.tables.member_ranges`. A fact that does not fit a range as a whole is left to
the caller, who applies the facts of the members one by one.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right, insort
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Final

from octaskly.core.log.facts import Entry, MembersAssigned, MembersSucceeded, RangeFact
from octaskly.core.log.range_rows import (
    APART,
    RUNNING,
    MemberEnd,
    MemberState,
    RangeRow,
)
from octaskly.core.model.arrays import attempt_at
from octaskly.store.tables import arrays, list_counts, member_ranges
from octaskly.store.tables.member_ranges import (
    COMPLETED_STATE,
    RUNNING_STATE,
    StoredRange,
)
from octaskly.store.writing.projection import CountKey, ProjectedTask
from octaskly.store.writing.row_changes import RowChanges

CACHED_RANGES: Final = 500


class RangeWrites:
    """The ranges that one commit changes, and a cache of ranges with live members."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._cache: OrderedDict[int, StoredRange] = OrderedDict()
        self._changed: dict[int, StoredRange] = {}
        self._changed_keys: list[int] = []  #: in order
        self._moves: defaultdict[tuple[CountKey | None, CountKey, int], int] = (
            defaultdict(int)
        )

    def clear(self) -> None:
        """Forget all ranges, after a rollback or a deletion."""
        self._cache.clear()
        self._changed.clear()
        self._changed_keys.clear()
        self._moves.clear()

    def apply_entry(self, array: ProjectedTask, entry: Entry, fact: RangeFact) -> bool:
        """Apply a fact to a range; return False if that is impossible as a whole."""
        key = _key_of(array, fact)
        if key is None or array.members is None:
            return False
        if isinstance(fact, MembersAssigned):
            running: list[MemberState] = [RUNNING] * fact.count
            stored = StoredRange(
                *(fact.array, fact.number, fact.step, fact.attempt, fact.node),
                *(entry.hlc, running),
            )
            is_applied = self._insert(array.members, key, stored)
        else:
            is_applied = self._succeed(array.members, key, entry.hlc, fact)
        if is_applied:
            array.changed_hlc = max(array.changed_hlc, entry.last_hlc)
        return is_applied

    def merge_row(self, array: ProjectedTask, row: RangeRow) -> bool:
        """Merge a row of a snapshot; return False if that is impossible as a whole."""
        key = _key_of(array, row)
        if key is None or array.members is None:
            return False
        stored = StoredRange.from_row(row)
        if not self._insert(array.members, key, stored):
            return False
        hlcs = map(stored.hlc_at, range(len(stored.members)))
        array.changed_hlc = max(array.changed_hlc, *hlcs)
        return True

    def take_member(self, task: ProjectedTask, key: int) -> None:
        """Take a member out of its range, if it is in one; it must be written."""
        found = self._find(key)
        if found is None:
            return
        start, stored = found
        offset = key - start
        if stored.members[offset] == APART:
            return
        state = stored.state_at(offset)
        task.record, task.key = stored.record_at(offset), key
        task.counted_as = arrays.MEMBER, stored.node, state
        task.changed_hlc = stored.hlc_at(offset)
        task.submission_times = arrays.MEMBER_BIRTH
        task.counted_live = state == RUNNING_STATE
        task.is_in_range = True
        stored.members[offset] = APART
        self._change(start, stored)

    def write_changes(self, changes: RowChanges) -> None:
        """Write the ranges, and add what they count to the changes of the commit."""
        if not self._changed:
            return
        member_ranges.write_ranges(self._db, self._changed.items())
        for move, n in self._moves.items():
            changes.count_moves[move] += n
        cache = self._cache
        for key, stored in self._changed.items():
            if stored.live_count:
                cache[key] = stored
                cache.move_to_end(key)
            else:
                cache.pop(key, None)
        while len(cache) > CACHED_RANGES:
            cache.popitem(last=False)
        self._changed.clear()
        self._changed_keys.clear()
        self._moves.clear()

    def _change(self, key: int, stored: StoredRange) -> None:
        if key not in self._changed:
            insort(self._changed_keys, key)
        self._changed[key] = stored

    def _insert(
        self, members: arrays.ArrayMembers, key: int, stored: StoredRange
    ) -> bool:
        """Insert a range; return False if anything is known of its members."""
        last = key + len(stored.members) - 1
        if last > members.last or self._is_any_known(key, last):
            return False
        self._change(key, stored)
        keys = [key + at for at, one in enumerate(stored.members) if one != APART]
        members.counts[RUNNING_STATE] += len(keys)
        members.live_count += len(keys)
        running = arrays.MEMBER, str(stored.node), RUNNING_STATE
        for block, n in _count_by_block(keys):
            self._moves[None, running, block] += n
        self._move_ended(members, stored, key)
        return True

    def _succeed(
        self, members: arrays.ArrayMembers, key: int, hlc: int, fact: MembersSucceeded
    ) -> bool:
        found = self._find(key + fact.offsets[0]) if fact.decided_term else None
        if found is None:
            return False
        start, stored = found
        offsets = [key + offset - start for offset in fact.offsets]
        is_same = (
            stored.node == fact.node
            and attempt_at(stored.attempt, key - start) == fact.attempt
            and offsets[-1] < len(stored.members)
        )
        if not is_same or any(stored.members[offset] != RUNNING for offset in offsets):
            return False
        for index, (offset, times) in enumerate(zip(offsets, fact.times, strict=True)):
            stored.members[offset] = MemberEnd(
                max(offset, hlc + index - stored.hlc),
                fact.decided_term,
                fact.started_ms + times.started_ms,
                *(times.ended_ms, times.duration_ms),
                *(times.cpu_ms, times.memory_max_kb),
            )
        self._change(start, stored)
        self._move_ended(members, stored, start, offsets)
        return True

    def _move_ended(
        self,
        members: arrays.ArrayMembers,
        stored: StoredRange,
        start: int,
        offsets: Iterable[int] | None = None,
    ) -> None:
        """Count members of a range that have ended; by default, all that have."""
        if offsets is None:
            offsets = range(len(stored.members))
        ends = [
            (start + offset, end)
            for offset in offsets
            if isinstance(end := stored.members[offset], MemberEnd)
        ]
        if not ends:
            return
        keys = [key for key, _ in ends]
        members.widen_times(
            min(end.started_ms for _, end in ends),
            max(end.started_ms + end.lasting_ms for _, end in ends),
        )
        members.counts[RUNNING_STATE] -= len(keys)
        members.counts[COMPLETED_STATE] += len(keys)
        members.live_count -= len(keys)
        running = arrays.MEMBER, str(stored.node), RUNNING_STATE
        completed = arrays.MEMBER, str(stored.node), COMPLETED_STATE
        for block, n in _count_by_block(keys):
            self._moves[running, completed, block] += n

    def _find(self, key: int) -> tuple[int, StoredRange] | None:
        """Return the range with the key of a member, as this commit has it so far."""
        found = self._db.execute(
            "SELECT key, n FROM member_ranges WHERE key <= ? ORDER BY key DESC LIMIT 1",
            (key,),
        ).fetchone()
        if found is not None and key < found[0] + found[1]:
            start = found[0]
            stored = self._changed.get(start) or self._cache.get(start)
            return (
                (start, stored)
                if stored is not None
                else member_ranges.find_range(self._db, key)
            )
        before = self._changed_before(key)
        if before is not None and key < before[0] + len(before[1].members):
            return before
        return None

    def _changed_before(self, key: int) -> tuple[int, StoredRange] | None:
        """Return the last range of this commit that starts at or before a key."""
        at = bisect_right(self._changed_keys, key)
        start = self._changed_keys[at - 1] if at else None
        return None if start is None else (start, self._changed[start])

    def _is_any_known(self, first: int, last: int) -> bool:
        """Return True if any member with these keys has a row or is in a range."""
        found = self._db.execute(
            "SELECT 1 FROM tasks WHERE key BETWEEN ? AND ? LIMIT 1", (first, last)
        ).fetchone()
        before = self._changed_before(last)
        return (
            found is not None
            or member_ranges.has_range_between(self._db, first, last)
            or (before is not None and first < before[0] + len(before[1].members))
        )


def _key_of(array: ProjectedTask, members: RangeFact | RangeRow) -> int | None:
    """Return the key of the member with this number; None if no range may have it."""
    spec = None if array.spec is None else array.spec.array
    if spec is None or array.members is None:
        return None
    position = spec.position(members.number)
    if position is None or members.step != spec.step:
        return None
    return array.members.first + position


def _count_by_block(keys: Iterable[int]) -> list[tuple[int, int]]:
    counts: defaultdict[int, int] = defaultdict(int)
    for key in keys:
        counts[list_counts.block_of(key)] += 1
    return list(counts.items())
