"""Writes of `member_ranges`: assignments and successes of many members at once.

See `store.tables.member_ranges`. A fact that does not fit a range as a whole is left to
the caller, who applies the facts of the members one by one.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Final

from octaskly.core.log.facts import Entry, MembersAssigned, MembersSucceeded, RangeFact
from octaskly.core.model.arrays import attempt_at
from octaskly.core.model.ids import NodeId
from octaskly.store.tables import arrays, list_counts, member_ranges
from octaskly.store.tables.member_ranges import (
    APART,
    COMPLETED_STATE,
    RUNNING,
    RUNNING_STATE,
    MemberEnd,
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
        self._moves: defaultdict[tuple[CountKey | None, CountKey, int], int] = (
            defaultdict(int)
        )

    def clear(self) -> None:
        """Forget all ranges, after a rollback or a deletion."""
        self._cache.clear()
        self._changed.clear()
        self._moves.clear()

    def apply_entry(self, array: ProjectedTask, entry: Entry, fact: RangeFact) -> bool:
        """Apply a fact to a range; return False if that is impossible as a whole.

        Arrays with a chosen name have no ranges: the names of their members may not be
        unique, and are compared in SQL.
        """
        spec = None if array.spec is None else array.spec.array
        if spec is None or array.members is None or "~" in fact.array:
            return False
        position = spec.position(fact.number)
        if position is None or fact.step != spec.step:
            return False
        key = array.members.first + position
        if isinstance(fact, MembersAssigned):
            is_applied = key + fact.count - 1 <= array.members.last and self._assign(
                array.members, key, entry.hlc, fact
            )
        else:
            is_applied = self._succeed(array.members, key, entry.hlc, fact)
        if is_applied:
            array.changed_hlc = max(array.changed_hlc, entry.last_hlc)
        return is_applied

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
        self._changed[start] = stored

    def write_changes(self, changes: RowChanges) -> None:
        """Write the ranges, and add what they count to the changes of the commit."""
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
        self._moves.clear()

    def _assign(
        self, members: arrays.ArrayMembers, key: int, hlc: int, fact: MembersAssigned
    ) -> bool:
        last = key + fact.count - 1
        if self._is_any_known(key, last):
            return False
        self._changed[key] = StoredRange(
            *(fact.array, fact.number, fact.step, fact.attempt, fact.node, hlc),
            [RUNNING] * fact.count,
        )
        members.counts[RUNNING_STATE] += fact.count
        members.live_count += fact.count
        running = arrays.MEMBER, str(fact.node), RUNNING_STATE
        for block, n in _count_by_block(range(key, last + 1)):
            self._moves[None, running, block] += n
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
        self._changed[start] = stored
        self._move_ended(members, fact.node, [start + offset for offset in offsets])
        started = [times.started_ms for times in fact.times]
        ended = [times.started_ms + times.ended_ms for times in fact.times]
        members.widen_times_by(
            fact.started_ms + min(started), fact.started_ms + max(ended)
        )
        return True

    def _move_ended(
        self, members: arrays.ArrayMembers, node: NodeId, keys: list[int]
    ) -> None:
        members.counts[RUNNING_STATE] -= len(keys)
        members.counts[COMPLETED_STATE] += len(keys)
        members.live_count -= len(keys)
        running = arrays.MEMBER, str(node), RUNNING_STATE
        completed = arrays.MEMBER, str(node), COMPLETED_STATE
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
        for start, stored in self._changed.items():
            if start <= key < start + len(stored.members):
                return start, stored
        return None

    def _is_any_known(self, first: int, last: int) -> bool:
        """Return True if any member with these keys has a row or is in a range."""
        found = self._db.execute(
            "SELECT 1 FROM tasks WHERE key BETWEEN ? AND ? LIMIT 1", (first, last)
        ).fetchone()
        return (
            found is not None
            or member_ranges.has_range_between(self._db, first, last)
            or any(
                start <= last and first < start + len(stored.members)
                for start, stored in self._changed.items()
            )
        )


def _count_by_block(keys: Iterable[int]) -> list[tuple[int, int]]:
    counts: defaultdict[int, int] = defaultdict(int)
    for key in keys:
        counts[list_counts.block_of(key)] += 1
    return list(counts.items())
