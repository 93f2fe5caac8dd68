"""Row changes of one commit: tasks, attempts, arrays and counters."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import astuple, replace

from octaskly.core.log.merge import TaskRecord, with_array_cancelled
from octaskly.core.model.ids import NodeId
from octaskly.core.model.tasks import TaskSpec, TaskState
from octaskly.store.tables import arrays, bulk, list_counts, rows
from octaskly.store.tables.arrays import ArrayMembers
from octaskly.store.writing.dependency_index import DependencyChanges
from octaskly.store.writing.projection import CountKey, ProjectedTask

_RUNNING: Final = rows.NUMBER_OF[TaskState.RUNNING]
_QUEUED_COUNT: Final[CountKey] = (arrays.TASK, "", rows.NUMBER_OF[TaskState.QUEUED])


@dataclass(slots=True)
class RowChanges:
    """Rows of one commit, collected so that each is written once."""

    inserts: list[bulk.Row] = field(default_factory=list)
    plain_inserts: list[bulk.Row] = field(default_factory=list)
    running_inserts: list[bulk.Row] = field(default_factory=list)
    state_updates: list[bulk.Row] = field(default_factory=list)
    end_updates: list[bulk.Row] = field(default_factory=list)
    updates: list[bulk.Row] = field(default_factory=list)
    spec_updates: list[bulk.Row] = field(default_factory=list)
    submission_updates: list[bulk.Row] = field(default_factory=list)
    array_upserts: list[bulk.Row] = field(default_factory=list)
    queue_positions: list[tuple[int, int | None, int, int]] = field(
        default_factory=list
    )
    """New `ord` and `place`, with the first and last key of the members with them."""
    dependency_changes: DependencyChanges = field(default_factory=DependencyChanges)
    count_deltas: defaultdict[CountKey, int] = field(
        default_factory=lambda: defaultdict(int)
    )
    count_moves: defaultdict[tuple[CountKey | None, CountKey, int], int] = field(
        default_factory=lambda: defaultdict(int)
    )
    """Number of rows that move between counters: old counter, new counter, block."""
    queued_by_block: defaultdict[int, int] = field(
        default_factory=lambda: defaultdict(int)
    )
    """Number of new rows of queued tasks, by block."""
    notification_count: int = 0  #: number of ended tasks that need a notification

    def write_rows(self, db: sqlite3.Connection) -> None:
        """Write all rows and counters."""
        for statement, some in (
            (bulk.TASK_INSERT, self.inserts),
            (bulk.PLAIN_INSERT, self.plain_inserts),
            (bulk.RUNNING_INSERT, self.running_inserts),
            (bulk.TASK_STATE_UPDATE, self.state_updates),
            (bulk.TASK_END_UPDATE, self.end_updates),
            (bulk.TASK_UPDATE, self.updates),
            (bulk.SPEC_UPDATE, self.spec_updates),
            (bulk.SUBMISSION_UPDATE, self.submission_updates),
            (bulk.ARRAY_UPSERT, self.array_upserts),
        ):
            if some:  # Most lists are empty in most commits.
                statement.execute(db, some)
        if self.queue_positions:
            db.executemany(
                # Ended members are not in the queue, and may be a million.
                "UPDATE tasks INDEXED BY tasks_state SET ord = ?, place = ?"
                " WHERE state IN (0, 1) AND key BETWEEN ? AND ?",
                self.queue_positions,
            )
        cells: defaultdict[list_counts.BlockCell, int] = defaultdict(int)
        for block, n in self.queued_by_block.items():
            self.count_moves[None, _QUEUED_COUNT, block] += n
        for (before, count, block), n in self.count_moves.items():
            self.count_deltas[count] += n
            cells[count[1], count[2], block] += n
            if before is not None:
                self.count_deltas[before] -= n
                cells[before[1], before[2], block] -= n
        deltas = [(*count, n) for count, n in self.count_deltas.items() if n]
        bulk.COUNT_ADD.execute(db, deltas)
        list_counts.add_counts(db, cells)

    def add_task(self, task: ProjectedTask, record: TaskRecord, spec: TaskSpec) -> None:
        """Collect the changes of a task that is not a member. It must have a key."""
        if rows.has_no_optional_columns(record, spec):
            is_new = task.counted_as is None
            add_plain = self._add_plain_insert if is_new else self._add_state_update
            if add_plain(task, record, spec):
                return
        kind, is_live = arrays.TASK, rows.is_live(record)
        assert task.key is not None
        if task.members is not None:
            kind, is_live = arrays.ARRAY, task.members.live_count > 0
            self._add_array(task, task.members, record, spec)
            progress = task.members.progress(record.cancelled_by)
            task.record = record = replace(record, progress=progress)
        state = record.state
        number = rows.NUMBER_OF[state]
        node = rows.counted_node(record, state)
        self.dependency_changes.compare_task(task, record, state)
        runs_on = is_live and state.is_final
        optional = rows.optional_columns(
            record, is_blocked=task.is_blocked, runs_on=runs_on
        )
        self.notification_count += state.is_final and optional[-1] == rows.TO_NOTIFY
        if task.counted_as is None:
            self._add_full_insert(task, record, spec, (number, node), optional)
        else:
            self._add_update(task, record, spec, (number, node), optional)
        task.stored_optional = optional
        task.stored_spec, task.stored_submission_times = spec, task.submission_times
        task.is_final = state.is_final
        self._move_count(task, (kind, node or "", number))

    def _add_plain_insert(
        self, task: ProjectedTask, record: TaskRecord, spec: TaskSpec
    ) -> bool:
        """Collect a new plain task, queued or in its first attempt.

        This method and `_add_state_update` are fast paths of `add_task` for most tasks.
        They skip columns that these tasks do not have.

        Returns:
            False if the task is not of this kind. Nothing was collected then.
        """
        key, birth, tries = task.key, task.submission_times, record.attempts
        if len(tries) > 1 or not rows.is_plain(spec):
            return False
        if record.state is not (TaskState.RUNNING if tries else TaskState.QUEUED):
            return False  # A verdict may come before the end that caused it.
        assert key is not None
        assert birth is not None
        number = rows.sequence_of(record.id)
        row = (
            key,
            record.id,
            number,
            task.changed_hlc,
            *rows.plain_row(spec),
            *astuple(birth),
        )
        task.stored_optional = rows.NO_OPTIONAL_COLUMNS
        task.stored_spec, task.stored_submission_times = spec, birth
        if tries:
            attempts = rows.pack_attempts(record, task.outputs)
            self.running_inserts.append((*row, tries[0].node, attempts))
            self._move_count(task, (arrays.TASK, tries[0].node, _RUNNING))
        else:
            self.plain_inserts.append(row)
            self.queued_by_block[list_counts.block_of(key)] += 1
            task.counted_as = _QUEUED_COUNT
        return True

    def _add_state_update(
        self, task: ProjectedTask, record: TaskRecord, spec: TaskSpec
    ) -> bool:
        """Collect the state of a stored plain task with one attempt.

        Returns:
            False if the task is not of this kind. Nothing was collected then.
        """
        attempts = record.attempts
        if (
            len(attempts) != 1
            or task.stored_optional is not rows.NO_OPTIONAL_COLUMNS
            or spec is not task.stored_spec
            or task.submission_times is not task.stored_submission_times
        ):
            return False
        state, node = record.state, attempts[0].node
        is_final = state is not TaskState.RUNNING
        if state is TaskState.QUEUED or (is_final and attempts[0].state.is_live):
            return False
        number = rows.NUMBER_OF[state]
        packed = rows.pack_attempts(record, task.outputs)
        self._update_state(task, (number, node), packed)
        if is_final and not task.is_final:
            self.dependency_changes.ended_parents.append((record.id, state))
        task.is_final = is_final
        self._move_count(task, (arrays.TASK, node, number))
        return True

    def _add_full_insert(
        self,
        task: ProjectedTask,
        record: TaskRecord,
        spec: TaskSpec,
        place: tuple[int, NodeId | None],
        optional: rows.OptionalColumns,
    ) -> None:
        assert task.submission_times is not None
        number = rows.sequence_of(record.id)
        state, node = place
        attempts = rows.pack_attempts(record, task.outputs)
        by, *flags, notify = optional
        self.inserts.append(
            (
                *(task.key, record.id, number, state, node, by),
                *(attempts, *flags, task.changed_hlc, notify),
                *(*rows.spec_row(spec), *astuple(task.submission_times)),
            )
        )

    def _add_update(
        self,
        task: ProjectedTask,
        record: TaskRecord,
        spec: TaskSpec,
        place: tuple[int, NodeId | None],
        optional: rows.OptionalColumns,
    ) -> None:
        state, node = place
        attempts = rows.pack_attempts(record, task.outputs)
        changed, key = task.changed_hlc, task.key
        if optional == task.stored_optional:
            self._update_state(task, place, attempts)
        else:
            by, *flags, notify = optional
            self.updates.append(
                (state, node, by, attempts, *flags, changed, notify, key)
            )
        if spec is not task.stored_spec and spec != task.stored_spec:
            self.spec_updates.append((*rows.spec_row(spec), key))
        if task.submission_times != task.stored_submission_times:
            assert task.submission_times is not None
            self.submission_updates.append((*astuple(task.submission_times), key))

    def _update_state(
        self,
        task: ProjectedTask,
        place: tuple[int, NodeId | None],
        attempts: bytes | None,
    ) -> None:
        state, node = place
        changed, key = task.changed_hlc, task.key
        if task.counted_as is not None and task.counted_as[1] == (node or ""):
            self.end_updates.append((state, attempts, changed, key))
        else:
            self.state_updates.append((state, node, attempts, changed, key))

    def add_member(
        self, task: ProjectedTask, array: ProjectedTask, members: ArrayMembers
    ) -> None:
        """Collect the changes of a member: its row, and the counts of its array."""
        record = task.record
        assert record is not None
        assert array.record is not None
        assert array.record.spec is not None
        shown = with_array_cancelled(record, array.record.cancelled_by)
        state = shown.state
        number = rows.NUMBER_OF[state]
        node = rows.counted_node(shown, state)
        is_live = rows.is_live(record)
        by, attempts = record.cancelled_by, rows.pack_attempts(record, task.outputs)
        verdict = (record.cancel_term, record.has_succeeded)
        # Dependencies and changes of the priority are of the array.
        runs_on = is_live and state.is_final
        flags = (*verdict, False, False, rows.place_of(array.record), None, runs_on)
        row = (number, node, by, attempts, *flags, task.changed_hlc, None)
        if task.counted_as is None or task.is_in_range:
            head = (task.key, record.id, None)
            place = rows.member_row(array.record.spec)
            self.inserts.append((*head, *row, *place, *astuple(arrays.MEMBER_BIRTH)))
            task.is_in_range = False
        else:
            self.updates.append((*row, task.key))
        if task.counted_as is not None:
            members.counts[task.counted_as[2]] -= 1
        members.counts[number] += 1
        members.live_count += is_live - task.counted_live
        task.counted_live = is_live
        task.is_final = state.is_final
        array.changed_hlc = max(array.changed_hlc, task.changed_hlc)
        for attempt in record.attempts:
            if attempt.outcome is not None:
                members.widen_times(
                    attempt.outcome.started_ms, attempt.outcome.ended_ms
                )
        self._move_count(task, (arrays.MEMBER, node or "", number))

    def _add_array(
        self,
        task: ProjectedTask,
        members: ArrayMembers,
        record: TaskRecord,
        spec: TaskSpec,
    ) -> None:
        """Collect the counts of an array, and of its members without a row."""
        assert task.key is not None
        self.array_upserts.append(members.array_row(task.key))
        if members.counted_without_row is not None:
            state, n = members.counted_without_row
            self.count_deltas[arrays.MEMBER, "", state] -= n
        members.counted_without_row = state, n = members.without_row(
            record.cancelled_by
        )
        self.count_deltas[arrays.MEMBER, "", state] += n
        stored, place = task.stored_spec, rows.place_of(record)
        if stored is None or task.stored_optional is None:
            return
        if (spec.ord, place) != (stored.ord, task.stored_optional[5]):
            position = (spec.ord, place, members.first, members.last)
            self.queue_positions.append(position)

    def _move_count(self, task: ProjectedTask, count: CountKey) -> None:
        if count == task.counted_as:
            return
        assert task.key is not None
        self.count_moves[task.counted_as, count, list_counts.block_of(task.key)] += 1
        task.counted_as = count
