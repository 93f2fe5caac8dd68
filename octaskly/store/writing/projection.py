"""Projection of facts to task records, with outputs stored separately.

Stdout and stderr of a task go to the table `outputs`. Records in this module hold them
only while two outcomes of one attempt are compared.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from octaskly.core.log import merge
from octaskly.core.log.facts import (
    MESH_FACTS,
    RANGE_FACTS,
    Entry,
    Finished,
    Submitted,
    TaskFact,
)
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.model.arrays import array_of, member_spec, split_member_id
from octaskly.core.model.ids import AttemptId, StreamId, TaskId, task_name
from octaskly.core.model.tasks import Attempt, TaskSpec, TaskState
from octaskly.ports.store import Packer
from octaskly.store.tables import arrays, bulk, rows
from octaskly.store.tables.arrays import MEMBER_BIRTH, ArrayMembers
from octaskly.store.tables.floors import IS_PENDING, read_meta_numbers

_RUNNING: Final = rows.NUMBER_OF[TaskState.RUNNING]  #: ended states have higher numbers


class PendingEntry(NamedTuple):
    """An entry whose task has no envelope yet, with the id of its output."""

    stream: StreamId
    seq: int
    hlc: int
    fact: TaskFact
    output: int | None
    is_stored: bool = False  #: it is in `pending_entries`


class PendingEntries:
    """The table `pending_entries`: entries about tasks without an envelope."""

    def __init__(self, db: sqlite3.Connection, packer: Packer) -> None:
        self._db = db
        self._packer = packer
        self._peer_floors: Mapping[StreamId, int] = {}
        self.has_any = False
        self.refresh()

    def refresh(self) -> None:
        """Check if the table has any rows."""
        found = self._db.execute("SELECT 1 FROM pending_entries LIMIT 1").fetchone()
        self.has_any = found is not None

    @contextmanager
    def above(self, floors: Mapping[StreamId, int]) -> Iterator[None]:
        """Read only entries above the floors of the peer whose rows are merged.

        The others are not in its rows either.
        """
        self._peer_floors = floors
        try:
            yield
        finally:
            self._peer_floors = {}

    def read_entries_about(self, tasks: Iterable[TaskId]) -> Iterator[PendingEntry]:
        """Yield the entries about these tasks above the floors."""
        for stream, seq, hlc, body, output in rows.select_in(
            self._db,
            "SELECT stream, seq, hlc, body, output FROM pending_entries"  # noqa: S608
            f" WHERE {IS_PENDING} AND task_id",
            tasks if self.has_any else (),
        ):
            if seq <= self._peer_floors.get(stream, 0):
                continue
            fact = self._packer.unpack_entry(stream, seq, hlc, body).fact
            assert not isinstance(fact, (*MESH_FACTS, *RANGE_FACTS)), (
                "only facts about single tasks are pending"
            )
            yield PendingEntry(stream, seq, hlc, fact, output, is_stored=True)

    def read_members_of(self, array: TaskId) -> set[TaskId]:
        """Return the members of an array that have pending entries above the floors."""
        if not self.has_any:
            return set()
        name = task_name(array)
        found = self._db.execute(
            "SELECT task_id, stream, seq FROM pending_entries"  # noqa: S608
            f" WHERE task_id > ? || '.' AND task_id < ? || '/' AND {IS_PENDING}",
            (name, name),
        )
        return {
            task
            for task, stream, seq in found
            if array_of(task) == array and seq > self._peer_floors.get(stream, 0)
        }

    def update_entries(
        self, held: Iterable[PendingEntry], applied: Iterable[PendingEntry]
    ) -> None:
        """Insert newly pending entries, and delete those that were applied."""
        removed = [(e.stream, e.seq) for e in applied if e.is_stored]
        fresh = [self._row_of(entry) for entry in held if not entry.is_stored]
        self._db.executemany(
            "DELETE FROM pending_entries WHERE stream = ? AND seq = ?", removed
        )
        bulk.PENDING_ENTRY_INSERT.execute(self._db, fresh)
        self.has_any = self.has_any or bool(fresh)

    def _row_of(self, entry: PendingEntry) -> bulk.Row:
        stream, seq, hlc, fact, output, _ = entry
        body = self._packer.pack(fact)
        return stream, seq, fact.task, hlc, body, output


CountKey = tuple[int, str, int]  #: kind, node (empty: none) and number of the state


class ProjectedTask(Struct, eq=False, gc=False):
    """One task as the writer sees it. Its record holds no outputs."""

    record: TaskRecord | None = None
    key: int | None = None  #: None until its row is written
    outputs: dict[AttemptId, int] | None = (
        None  #: ids in `outputs`; None if there are none
    )
    counted_as: CountKey | None = None  #: as in `counts` and in the row
    stored_spec: TaskSpec | None = None
    is_final: bool = False  #: as in the row
    is_blocked: bool = False  #: as in the row
    stored_optional: rows.OptionalColumns | None = None  #: as in the row
    changed_hlc: int = 0
    submission_times: SubmissionTimes | None = None
    stored_submission_times: SubmissionTimes | None = None
    pending: list[PendingEntry] | None = None  #: entries that wait for the envelope
    applied_pending: list[PendingEntry] | None = None  #: applied in this commit
    members: ArrayMembers | None = None  #: set for an array
    array: ProjectedTask | None = None  #: set for a member
    counted_live: bool = False  #: whether its array counts this member as live
    is_in_range: bool = False  #: it is counted, but has no row yet

    @property
    def spec(self) -> TaskSpec | None:
        """The envelope, or None until it is known."""
        return None if self.record is None else self.record.spec

    def output_id(self, attempt: AttemptId) -> int | None:
        """Return the id of the output of an attempt, or None if it wrote nothing."""
        return None if self.outputs is None else self.outputs.get(attempt)

    def add_pending(self, entry: PendingEntry) -> None:
        """Keep an entry until the envelope of the task is known."""
        if self.pending is None:
            self.pending = []
        self.pending.append(entry)

    def is_superseded_by(self, row: TaskRow, floors: Mapping[StreamId, int]) -> bool:
        """Return True if `row` is a later task with the same id.

        It is always False for a member, which is superseded with its array.

        Args:
            row: The row of a peer.
            floors: The floors of that peer.
        """
        mine, theirs = self.spec, row.record.spec
        if mine is None or theirs is None or self.submission_times is None:
            return False
        if self.array is not None:
            return False
        is_below = self.submission_times.seq <= floors.get(
            self.submission_times.stream, 0
        )
        return is_below and mine.ord != theirs.ord


class Projection:
    """Applies facts to tasks, within one transaction at a time."""

    def __init__(self, db: sqlite3.Connection, pending_entries: PendingEntries) -> None:
        self._db = db
        self._pending_entries = pending_entries
        self._new_outputs: dict[int, tuple[bytes, bytes]] = {}  #: of this commit
        self.bare_facts: dict[tuple[StreamId, int], tuple[Finished, int]] = {}
        """Facts of this commit without their outputs, and the ids of these."""
        self.reset()

    def reset(self) -> None:
        """Read the state from the file, after a rollback."""
        self._new_outputs.clear()
        self.bare_facts.clear()
        (last,) = self._db.execute("SELECT max(id) FROM outputs").fetchone()
        given = read_meta_numbers(self._db).get("output", 0)
        self._next_output = max(last or 0, given) + 1

    def write_outputs(self) -> None:
        """Write the outputs of this commit."""
        if not self._new_outputs:
            return
        kept = [(number, *output) for number, output in self._new_outputs.items()]
        bulk.OUTPUT_INSERT.execute(self._db, kept)
        self._new_outputs.clear()

    def write_pending(self, tasks: Iterable[ProjectedTask]) -> None:
        """Write which entries became pending, and which were applied."""
        held: list[PendingEntry] = []
        applied: list[PendingEntry] = []
        for task in tasks:
            if task.pending or task.applied_pending:
                held += task.pending or ()
                applied += task.applied_pending or ()
                task.pending = task.applied_pending = None
        if held or applied:
            self._pending_entries.update_entries(held, applied)

    def apply_entry(self, task: ProjectedTask, entry: Entry, fact: TaskFact) -> None:
        """Apply the fact of an entry, or keep it until the envelope is known."""
        hlc = entry.hlc
        if isinstance(fact, Submitted):
            if task.array is not None:
                return  # The envelope follows from the array.
            times = SubmissionTimes(hlc, hlc, entry.stream, entry.seq)
            self._apply_submission(task, fact, times)
        else:
            output = None
            if isinstance(fact, Finished):
                fact, output = self._detach_output(task, fact)
                if output is not None:
                    self.bare_facts[entry.stream, entry.seq] = fact, output
            if task.record is None or task.record.spec is None:
                task.add_pending(
                    PendingEntry(entry.stream, entry.seq, hlc, fact, output)
                )
                return
            self._apply_fact(task, fact, output)
        task.changed_hlc = max(task.changed_hlc, hlc)

    def _apply_submission(
        self, task: ProjectedTask, fact: Submitted, birth: SubmissionTimes
    ) -> None:
        """Apply a submission, and the pending entries of the task.

        A submission with a different array is ignored, because the keys of the members
        are fixed. No correct node sends one: a task id depends on the task's content.
        """
        if task.spec is not None and task.spec.array != fact.spec.array:
            return
        task.submission_times = merge.join_submission_times(
            task.submission_times, birth
        )
        task.record = merge.apply_fact(task.record, fact)
        if not task.pending:
            return
        for entry in task.pending:
            self._apply_fact(task, entry.fact, entry.output)
            task.changed_hlc = max(task.changed_hlc, entry.hlc)
        task.applied_pending = [*(task.applied_pending or ()), *task.pending]
        task.pending = None

    def apply_array_spec(self, task_id: TaskId, task: ProjectedTask) -> None:
        """Set the envelope of a member, if its array is known and has this member."""
        array = None if task.array is None else task.array.spec
        place = split_member_id(task_id)
        if task.spec is not None or array is None or place is None:
            return
        spec = member_spec(array, place[1])
        if spec is not None:
            self._apply_submission(task, Submitted(spec), MEMBER_BIRTH)

    def apply_row(self, task: ProjectedTask, row: TaskRow) -> None:
        """Apply all facts in the row of a peer."""
        for fact in merge.facts_of(row.record):
            if isinstance(fact, Submitted):
                self._apply_submission(task, fact, row.submission_times)
            elif isinstance(fact, Finished):
                self._apply_fact(task, *self._detach_output(task, fact))
            else:
                self._apply_fact(task, fact, None)
        task.changed_hlc = max(task.changed_hlc, row.last_change_hlc)

    def _detach_output(
        self, task: ProjectedTask, fact: Finished
    ) -> tuple[Finished, int | None]:
        """Return a fact without its output, and the id of the output."""
        outcome = fact.outcome
        if not (outcome.stdout or outcome.stderr):
            return fact, None
        kept = outcome.stdout, outcome.stderr
        bare = Finished(
            fact.task,
            fact.attempt,
            fact.node,
            rows.without_output(outcome),
            fact.decided_term,
        )
        # A result reported again, to another dispatcher, is not stored twice.
        known = task.output_id(fact.attempt)
        if known is not None and self._read_output(known) == kept:
            return bare, known
        number = self._next_output
        self._next_output += 1
        self._new_outputs[number] = kept
        return bare, number

    def _apply_fact(
        self, task: ProjectedTask, fact: TaskFact, output: int | None
    ) -> None:
        """Merge one fact without its output; `output` is the id of the output."""
        record = task.record
        if isinstance(fact, Finished):
            mine = None if record is None else _find_attempt(record, fact.attempt)
            state = fact.outcome.state
            if mine is not None and mine.state is state:
                self._merge_equal_ends(task, mine, fact, output)
                return
            if mine is None or mine.state < state:
                _set_output(task, fact.attempt, output)
        task.record = merge.apply_fact(record, fact)

    def _merge_equal_ends(
        self, task: ProjectedTask, mine: Attempt, fact: Finished, output: int | None
    ) -> None:
        """Merge two outcomes of one attempt with equal states, by their content.

        This is rare (a result reported to two dispatchers), so outputs may be read.
        """
        ours = self._with_output(mine, task.output_id(mine.id))
        theirs = self._with_output(merge.record_of(fact).attempts[0], output)
        joined = merge.join_records(
            TaskRecord(id=fact.task, attempts=(ours,)),
            TaskRecord(id=fact.task, attempts=(theirs,)),
        ).attempts[0]
        if joined.outcome == theirs.outcome:
            _set_output(task, fact.attempt, output)
        if joined.outcome is not None:
            joined = replace(joined, outcome=rows.without_output(joined.outcome))
        record = task.record
        assert record is not None
        attempts = (joined if a.id == joined.id else a for a in record.attempts)
        task.record = replace(record, attempts=tuple(attempts))

    def _with_output(self, attempt: Attempt, output: int | None) -> Attempt:
        if output is None:
            return attempt
        return rows.with_output(attempt, self._read_output(output))

    def _read_output(self, number: int) -> tuple[bytes, bytes]:
        return self._new_outputs.get(number) or rows.read_output(self._db, number)


def tasks_from(
    db: sqlite3.Connection, found: Sequence[rows.Row]
) -> Iterator[tuple[TaskId, ProjectedTask]]:
    """Yield the tasks of rows of `STORED_COLUMNS`; members have no envelope."""
    records = rows.records_from([row[: rows.WIDTH] for row in found])
    members = arrays.read_members(
        db, (row[0] for row in found if row[0] < rows.MEMBER_KEYS_START)
    )
    for row, (record, outputs) in zip(found, records, strict=True):
        yield record.id, task_from(row, record, outputs, members.get(row[0]))


def task_from(
    row: rows.Row,
    record: TaskRecord,
    outputs: dict[AttemptId, int] | None = None,
    members: ArrayMembers | None = None,
) -> ProjectedTask:
    """Return the task of a row of `STORED_COLUMNS` and its record."""
    node, state, changed, *times = row[rows.WIDTH : rows.STORED_WIDTH]
    birth = SubmissionTimes(*times)
    kind = arrays.TASK if members is None else arrays.ARRAY
    if row[0] >= rows.MEMBER_KEYS_START:
        kind = arrays.MEMBER
    if members is not None:
        members.counted_without_row = members.without_row(record.cancelled_by)
    is_blocked, is_live = record.waits_for is not None, rows.is_live(record)
    runs_on = is_live if members is None else members.live_count > 0
    return ProjectedTask(
        record,
        row[0],
        outputs,
        (kind, node or "", state),
        record.spec,
        changed_hlc=changed,
        submission_times=birth,
        stored_submission_times=birth,
        members=members,
        counted_live=is_live,
        is_blocked=is_blocked,
        stored_optional=rows.optional_columns(
            record, is_blocked=is_blocked, runs_on=runs_on and state > _RUNNING
        ),
    )


def _find_attempt(record: TaskRecord, attempt_id: AttemptId) -> Attempt | None:
    for attempt in record.attempts:
        if attempt.id == attempt_id:
            return attempt
    return None


def _set_output(task: ProjectedTask, attempt: AttemptId, output: int | None) -> None:
    if output is None:
        if task.outputs is not None:
            task.outputs.pop(attempt, None)
    elif task.outputs is None:
        task.outputs = {attempt: output}
    else:
        task.outputs[attempt] = output
