"""The rows that one commit changes: tasks, attempts, arrays and counters."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Final

from octaskly.core.log.merge import TaskRecord, with_array_cancelled
from octaskly.core.model.ids import NodeId
from octaskly.core.model.tasks import TaskSpec, TaskState
from octaskly.store.tables import arrays, block_counts, bulk, rows
from octaskly.store.tables.arrays import Members
from octaskly.store.writing.dependencies import Waits
from octaskly.store.writing.projection import Count, Task

_RUNS: Final = rows.NUMBER_OF[TaskState.RUNNING]
_WAITS: Final[Count] = (arrays.TASK, "", rows.NUMBER_OF[TaskState.QUEUED])


@dataclass(slots=True)
class Changes:
    """Rows of one commit, gathered so that each is written once."""

    inserts: list[bulk.Row] = field(default_factory=list)
    plain: list[bulk.Row] = field(default_factory=list)  #: inserts, too
    begun: list[bulk.Row] = field(default_factory=list)  #: inserts, too
    moved: list[bulk.Row] = field(default_factory=list)
    updates: list[bulk.Row] = field(default_factory=list)
    specs: list[bulk.Row] = field(default_factory=list)
    births: list[bulk.Row] = field(default_factory=list)
    live: list[bulk.Row] = field(default_factory=list)  #: attempts
    ended: list[bulk.Row] = field(default_factory=list)  #: attempts
    ended_plain: list[bulk.Row] = field(default_factory=list)  #: attempts
    arrays: list[bulk.Row] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    """Place in the queue of the members between two keys."""
    waits: Waits = field(default_factory=Waits)
    deltas: defaultdict[Count, int] = field(default_factory=lambda: defaultdict(int))
    moves: defaultdict[tuple[Count | None, Count, int], int] = field(
        default_factory=lambda: defaultdict(int)
    )
    """Rows that are counted otherwise than before: how before, how now, which block."""
    born: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    """New rows of tasks that wait, by block."""
    ends_to_tell: int = 0  #: ends of which somebody is to be told

    def run(self, db: sqlite3.Connection) -> None:
        """Write them."""
        for statement, some in (
            (bulk.TASK_INSERT, self.inserts),
            (bulk.PLAIN_INSERT, self.plain),
            (bulk.BEGUN_INSERT, self.begun),
            (bulk.TASK_MOVE, self.moved),
            (bulk.TASK_UPDATE, self.updates),
            (bulk.SPEC_UPDATE, self.specs),
            (bulk.BIRTH_UPDATE, self.births),
            (bulk.ATTEMPT_LIVE_UPSERT, self.live),
            (bulk.ATTEMPT_ENDED_UPSERT, self.ended),
            (bulk.ATTEMPT_PLAIN_UPSERT, self.ended_plain),
            (bulk.ARRAY_UPSERT, self.arrays),
        ):
            if some:  # Of most kinds a commit has none.
                statement.run(db, some)
        if self.places:
            db.executemany(
                "UPDATE tasks SET ord = ? WHERE key BETWEEN ? AND ?", self.places
            )
        cells: defaultdict[block_counts.Cell, int] = defaultdict(int)
        for block, n in self.born.items():
            self.moves[None, _WAITS, block] += n
        for (before, count, block), n in self.moves.items():
            self.deltas[count] += n
            cells[count[1], count[2], block] += n
            if before is not None:
                self.deltas[before] -= n
                cells[before[1], before[2], block] -= n
        deltas = [(*count, n) for count, n in self.deltas.items() if n]
        bulk.COUNT_ADD.run(db, deltas)
        block_counts.add(db, cells)

    def add(self, task: Task, record: TaskRecord, spec: TaskSpec) -> None:
        """Note what is new of a task that is no member; it has its key."""
        if rows.is_usual(record, spec):
            is_done = self._bear(task, record, spec) or self._move(task, record, spec)
            if is_done:
                return
        kind, is_live = arrays.TASK, rows.is_live(record)
        assert task.key is not None
        if task.members is not None:
            kind, is_live = arrays.ARRAY, task.members.live > 0
            self._add_array(task, task.members, record, spec)
            progress = task.members.progress(record.cancelled_by)
            task.record = record = replace(record, progress=progress)
        state = record.state
        number = rows.NUMBER_OF[state]
        node = rows.node_shown(record, state)
        self.waits.note(task, record, state)
        rare = rows.rare(record, is_blocked=task.is_blocked)
        self.ends_to_tell += state.is_final and rare[-1] == rows.TO_NOTIFY
        if task.counted is None:
            self._insert(task, record, spec, (number, node, is_live), rare)
        else:
            self._update(task, record, spec, (number, node, is_live), rare)
        task.stored_rare = rare
        task.stored_spec, task.stored_birth = spec, task.birth
        task.is_final = state.is_final
        self._add_attempts(task, record)
        self._count(task, (kind, node or "", number))

    def _bear(self, task: Task, record: TaskRecord, spec: TaskSpec) -> bool:
        """Note a new task that is as most are when they are submitted; False: it isn't.

        On an idle node it has begun by then.
        This and `_move` do what `add` does, without looking for what is not there.
        """
        key, birth, tries = task.key, task.birth, record.attempts
        if task.counted is not None or len(tries) > 1 or not rows.is_plain(spec):
            return False
        if tries and not tries[0].state.is_live:
            return False
        assert key is not None
        assert birth is not None
        number = rows.sequence_of(record.id)
        row = (key, record.id, number, task.changed_hlc, *rows.plain_row(spec), *birth)
        task.stored_rare = rows.NOTHING_RARE
        task.stored_spec, task.stored_birth = spec, birth
        if tries:
            self.begun.append((*row, tries[0].node))
            self._add_attempts(task, record)
            self._count(task, (arrays.TASK, tries[0].node, _RUNS))
        else:
            self.plain.append(row)
            self.born[block_counts.block_of(key)] += 1
            task.counted = _WAITS
        return True

    def _move(self, task: Task, record: TaskRecord, spec: TaskSpec) -> bool:
        """Note where the only attempt of a stored task stands; False: it isn't so."""
        if (
            len(record.attempts) != 1
            or task.stored_rare != rows.NOTHING_RARE
            or spec is not task.stored_spec
            or task.birth != task.stored_birth
        ):
            return False
        state, node = record.state, record.attempts[0].node
        if state is TaskState.QUEUED:
            return False
        number, is_live = rows.NUMBER_OF[state], state is TaskState.RUNNING
        self.moved.append((number, node, is_live, 1, task.changed_hlc, task.key))
        is_final = not is_live
        if is_final and not task.is_final:
            self.waits.ended.append((record.id, state))
        task.is_final = is_final
        self._add_attempts(task, record)
        self._count(task, (arrays.TASK, node, number))
        return True

    def _insert(
        self,
        task: Task,
        record: TaskRecord,
        spec: TaskSpec,
        place: tuple[int, NodeId | None, bool],
        rare: rows.Rare,
    ) -> None:
        assert task.birth is not None
        number = rows.sequence_of(record.id)
        state, node, is_live = place
        by, *flags, notify = rare
        self.inserts.append(
            (
                *(task.key, record.id, number, state, node, by, is_live),
                *(len(record.attempts), *flags, task.changed_hlc, notify),
                *(*rows.spec_row(spec), *task.birth),
            )
        )

    def _update(
        self,
        task: Task,
        record: TaskRecord,
        spec: TaskSpec,
        place: tuple[int, NodeId | None, bool],
        rare: rows.Rare,
    ) -> None:
        state, node, is_live = place
        tries, changed, key = len(record.attempts), task.changed_hlc, task.key
        if rare == task.stored_rare:
            self.moved.append((state, node, is_live, tries, changed, key))
        else:
            by, *flags, notify = rare
            self.updates.append(
                (state, node, by, is_live, tries, *flags, changed, notify, key)
            )
        if spec is not task.stored_spec and spec != task.stored_spec:
            self.specs.append((*rows.spec_row(spec), key))
        if task.birth != task.stored_birth:
            assert task.birth is not None
            self.births.append((*task.birth, key))

    def add_member(self, task: Task, array: Task, members: Members) -> None:
        """Note what is new of a member, in its row and in the counts of its array."""
        record = task.record
        assert record is not None
        assert array.record is not None
        assert array.record.spec is not None
        shown = with_array_cancelled(record, array.record.cancelled_by)
        state = shown.state
        number = rows.NUMBER_OF[state]
        node = rows.node_shown(shown, state)
        is_live = rows.is_live(record)
        by, tries = record.cancelled_by, len(record.attempts)
        ready = (False, False)  # A member is what its array is.
        row = (number, node, by, is_live, tries, *ready, task.changed_hlc, None)
        if task.counted is None:
            head = (task.key, record.id, None)
            place = rows.member_row(array.record.spec)
            self.inserts.append((*head, *row, *place, *arrays.BORN))
        else:
            self.updates.append((*row, task.key))
            members.counts[task.counted[2]] -= 1
        members.counts[number] += 1
        members.live += is_live - task.was_live
        task.was_live = is_live
        task.is_final = state.is_final
        array.changed_hlc = max(array.changed_hlc, task.changed_hlc)
        for attempt in record.attempts:
            if attempt.outcome is not None:
                members.note_times(attempt.outcome)
        self._add_attempts(task, record)
        self._count(task, (arrays.MEMBER, node or "", number))

    def _add_array(
        self, task: Task, members: Members, record: TaskRecord, spec: TaskSpec
    ) -> None:
        """Note the counts of an array, and of its members without a row."""
        assert task.key is not None
        self.arrays.append(members.row(task.key))
        if members.left_counted is not None:
            state, n = members.left_counted
            self.deltas[arrays.MEMBER, "", state] -= n
        members.left_counted = state, n = members.left(record.cancelled_by)
        self.deltas[arrays.MEMBER, "", state] += n
        if task.stored_spec is not None and spec.ord != task.stored_spec.ord:
            self.places.append((spec.ord, members.first, members.last))

    def _add_attempts(self, task: Task, record: TaskRecord) -> None:
        changed, task.changed = task.changed, None
        if changed is None:
            return
        assert task.key is not None
        for attempt in record.attempts:
            if attempt.id in changed:
                output = task.output_of(attempt.id)
                outcome = attempt.outcome
                if outcome is None:
                    self.live.append(rows.live_row(task.key, attempt))
                elif outcome.signal is None and not (outcome.outputs or outcome.detail):
                    row = rows.plain_end_row(task.key, attempt, outcome, output)
                    self.ended_plain.append(row)
                else:
                    row = rows.ended_row(task.key, attempt, outcome, output)
                    self.ended.append(row)

    def _count(self, task: Task, count: Count) -> None:
        if count == task.counted:
            return
        assert task.key is not None
        self.moves[task.counted, count, block_counts.block_of(task.key)] += 1
        task.counted = count
