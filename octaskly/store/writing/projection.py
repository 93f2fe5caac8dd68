"""Folds facts into the record of a task, with what it wrote kept apart.

What a task wrote to stdout and stderr goes to the table `outputs`; records in here
carry it only where two ends of one attempt must be compared.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from msgspec.structs import replace

from octaskly.core.log import merge
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Finished,
    Floor,
    Recorded,
    Submitted,
    TaskFact,
)
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.model.arrays import member_spec, split_member_id
from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.model.tasks import Attempt, TaskSpec
from octaskly.ports import Packer
from octaskly.store.tables import arrays, bulk, rows
from octaskly.store.tables.arrays import MEMBER_BIRTH, ArrayMembers
from octaskly.store.tables.floors import read_meta_numbers


class PendingEntry(NamedTuple):
    """One entry without its output, and the number of that."""

    stream: StreamId
    seq: int
    hlc: int
    fact: TaskFact
    output: int | None
    is_stored: bool = False  #: it is in the table


class PendingEntries:
    """The table `orphans`, seen by the writer."""

    def __init__(self, db: sqlite3.Connection, packer: Packer) -> None:
        self._db = db
        self._packer = packer
        self.has_any = False
        self.refresh()

    def refresh(self) -> None:
        """Find out whether there are any."""
        found = self._db.execute("SELECT 1 FROM pending_entries LIMIT 1").fetchone()
        self.has_any = found is not None

    def read_entries_about(self, tasks: Iterable[TaskId]) -> Iterator[PendingEntry]:
        """Return the entries about these tasks that are not void."""
        for some in rows.split_for_parameters(tasks if self.has_any else ()):
            for stream, seq, hlc, body, output in self._db.execute(
                "SELECT stream, seq, hlc, body, output FROM pending_entries"  # noqa: S608
                " JOIN log USING (stream, seq) JOIN streams USING (stream)"
                f" WHERE pending_entries.task_id IN ({rows.placeholders(len(some))})"
                " AND seq > floor_seq",
                some,
            ).fetchall():
                fact = self._packer.unpack_entry(stream, seq, hlc, body).fact
                assert not isinstance(fact, Floor | Recorded), "it waits for no task"
                yield PendingEntry(stream, seq, hlc, fact, output, is_stored=True)

    def read_members_of(self, array: TaskId) -> set[TaskId]:
        """Return the members of an array about which there are entries."""
        if not self.has_any:
            return set()
        name = array.partition("~")[0]
        found = self._db.execute(
            "SELECT task_id FROM pending_entries"
            " WHERE task_id > ? || '.' AND task_id < ? || '/'",
            (name, name),
        )
        return {id_ for (id_,) in found if (split_member_id(id_) or ("",))[0] == array}

    def update_entries(
        self, held: Iterable[PendingEntry], counted: Iterable[PendingEntry]
    ) -> None:
        """Hold what cannot count yet, let go of what does now."""
        gone = [(e.fact.task, e.stream, e.seq) for e in counted if e.is_stored]
        fresh = [(e.fact.task, e.stream, e.seq) for e in held if not e.is_stored]
        self._db.executemany(
            "DELETE FROM pending_entries WHERE task_id = ? AND stream = ? AND seq = ?",
            gone,
        )
        bulk.PENDING_ENTRY_INSERT.execute(self._db, fresh)
        self.has_any = self.has_any or bool(fresh)


FETCHED_COLUMNS: Final = f"{rows.TASK_COLUMNS}, node, state, last_change_hlc, first_submitted_hlc, last_submitted_hlc, stream, seq"
_WIDTH: Final = rows.TASK_COLUMNS.count(",") + 1
CHANGED_COLUMN: Final = _WIDTH + 2  #: place of that column

CountKey = tuple[int, str, int]  #: kind, node (empty: none) and number of the state


@dataclass(slots=True)
class ProjectedTask:
    """One task in the writer's hands; its record holds no kept output."""

    record: TaskRecord | None = None
    key: int | None = None  #: None until its row is written
    outputs: dict[AttemptId, int] | None = None  #: None: not one
    counted_as: CountKey | None = None  #: what `counts` and the row say
    stored_spec: TaskSpec | None = None
    is_final: bool = False  #: as of the row
    is_blocked: bool = False  #: as of the row
    stored_optional: rows.OptionalColumns | None = None  #: as of the row
    changed_attempts: set[AttemptId] | None = (
        None  #: attempts that differ from their rows
    )
    changed_hlc: int = 0
    submission_times: SubmissionTimes | None = None
    stored_submission_times: SubmissionTimes | None = None
    pending: list[PendingEntry] | None = None  #: what cannot count yet
    applied_pending: list[PendingEntry] | None = None
    members: ArrayMembers | None = None  #: of an array
    array: ProjectedTask | None = None  #: of a member
    counted_live: bool = False  #: as its array counts it, of a member

    @property
    def spec(self) -> TaskSpec | None:
        """The envelope, once it is here."""
        return None if self.record is None else self.record.spec

    def output_id(self, attempt: AttemptId) -> int | None:
        """Return the number of what an attempt wrote, None if that is nothing."""
        return None if self.outputs is None else self.outputs.get(attempt)

    def mark_changed(self, attempt: AttemptId) -> None:
        """Note that an attempt has to be written."""
        if self.changed_attempts is None:
            self.changed_attempts = set()
        self.changed_attempts.add(attempt)

    def add_pending(self, early: PendingEntry) -> None:
        """Keep what cannot count until a submission is here."""
        if self.pending is None:
            self.pending = []
        self.pending.append(early)

    def is_superseded_by(self, row: TaskRow, floors: Mapping[StreamId, int]) -> bool:
        """Whether `row` is of a later task with this id; by `floors`, of the peer.

        A member goes with its array, whose row says it.
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
    """What is known of tasks, fact by fact, within one transaction."""

    def __init__(self, db: sqlite3.Connection, pending_entries: PendingEntries) -> None:
        self._db = db
        self._pending_entries = pending_entries
        self._new_outputs: dict[
            int, tuple[bytes, bytes]
        ] = {}  #: outputs of this commit
        self.reset()

    def reset(self) -> None:
        """Start from what the file says."""
        self._new_outputs.clear()
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
        """Note what cannot count until a submission is here, and what does by now."""
        held: list[PendingEntry] = []
        counted: list[PendingEntry] = []
        for task in tasks:
            held += task.pending or ()
            counted += task.applied_pending or ()
            task.pending = task.applied_pending = None
        if held or counted:
            self._pending_entries.update_entries(held, counted)

    def apply_entry(
        self, task: ProjectedTask, entry: Entry, fact: TaskFact
    ) -> tuple[TaskFact, int | None]:
        """Fold the fact of an entry, or set it aside until it can count.

        Returns:
            The fact without its output, and the number of that.
        """
        stream, seq, hlc = entry.stream, entry.seq, entry.hlc
        output = None
        if isinstance(fact, Submitted):
            if task.array is not None:
                return fact, None  # The array has said it.
            self._apply_submission(task, fact, SubmissionTimes(hlc, hlc, stream, seq))
        else:
            if isinstance(fact, Finished):
                fact, output = self._detach_output(task, fact)
            if task.record is None or task.record.spec is None:
                task.add_pending(PendingEntry(stream, seq, hlc, fact, output))
                return fact, output
            self._apply_fact(task, fact, output)
        task.changed_hlc = max(task.changed_hlc, hlc)
        return fact, output

    def _apply_submission(
        self, task: ProjectedTask, fact: Submitted, birth: SubmissionTimes
    ) -> None:
        """Fold a submission, and what came before it and counts now.

        One that makes another array of it is none of ours, as the content of a task is
        in its id; and the members of this one have their rooms.
        """
        if task.spec is not None and task.spec.array != fact.spec.array:
            return
        task.submission_times = merge.join_submission_times(
            task.submission_times, birth
        )
        task.record = merge.apply_fact(task.record, fact)
        if not task.pending:  # As mostly.
            return
        for early in task.pending:
            self._apply_fact(task, early.fact, early.output)
            task.changed_hlc = max(task.changed_hlc, early.hlc)
        task.applied_pending = [*(task.applied_pending or ()), *task.pending]
        task.pending = None

    def apply_array_spec(self, task_id: TaskId, task: ProjectedTask) -> None:
        """Give a member its envelope, once its array is here and has such a member."""
        array = None if task.array is None else task.array.spec
        place = split_member_id(task_id)
        if task.spec is not None or array is None or place is None:
            return
        spec = member_spec(array, place[1])
        if spec is not None:
            self._apply_submission(task, Submitted(spec), MEMBER_BIRTH)

    def apply_row(self, task: ProjectedTask, row: TaskRow) -> None:
        """Fold all facts of a peer's row."""
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
        """Set the kept output of a fact aside; return its number in `outputs`."""
        kept = (fact.outcome.stdout, fact.outcome.stderr)
        if not any(kept):
            return fact, None
        bare = Finished(
            fact.task, fact.attempt, fact.node, rows.without_output(fact.outcome)
        )
        # A result that is told again, to another dispatcher, is not kept twice.
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
        """Join one fact, without output, whose output has this number."""
        record = task.record
        if isinstance(fact, Finished):
            task.mark_changed(fact.attempt)
            mine = None if record is None else _find_attempt(record, fact.attempt)
            if mine is not None and mine.state is fact.outcome.state:
                self._merge_equal_ends(task, mine, fact, output)
                return
            if mine is None or mine.state < fact.outcome.state:
                _set_output(task, fact.attempt, output)
        elif isinstance(fact, Assigned):
            task.mark_changed(fact.attempt)
        task.record = merge.apply_fact(record, fact)

    def _merge_equal_ends(
        self, task: ProjectedTask, mine: Attempt, fact: Finished, output: int | None
    ) -> None:
        """Join two ends of one attempt that are alike: the content decides.

        Rare (a result told to two dispatchers), so reading the outputs costs nothing.
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
    """Yield tasks of rows of `FETCHED_COLUMNS`; members of arrays without an envelope."""
    records = rows.records_from(db, [row[:_WIDTH] for row in found])
    members = arrays.read_members(
        db, (row[0] for row in found if row[0] < arrays.MEMBER_KEYS_START)
    )
    for row, (record, outputs) in zip(found, records, strict=True):
        yield record.id, _task_from(row, record, outputs, members.get(row[0]))


def _task_from(
    row: rows.Row,
    record: TaskRecord,
    outputs: dict[AttemptId, int],
    members: ArrayMembers | None,
) -> ProjectedTask:
    """Return a task as it is stored."""
    node, state, changed = row[_WIDTH : CHANGED_COLUMN + 1]
    birth = SubmissionTimes(*row[-4:])
    kind = arrays.TASK if members is None else arrays.ARRAY
    if row[0] >= arrays.MEMBER_KEYS_START:
        kind, record = arrays.MEMBER, replace(record, spec=None)
    if members is not None:
        members.counted_without_row = members.without_row(record.cancelled_by)
    is_blocked = record.waits_for is not None
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
        counted_live=rows.is_live(record),
        is_blocked=is_blocked,
        stored_optional=rows.optional_columns(record, is_blocked=is_blocked),
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
