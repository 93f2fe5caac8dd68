"""Folds facts into the record of a task, with what it wrote kept apart.

What a task wrote to stdout and stderr goes to the table `outputs`; records in here
carry it only where two ends of one attempt must be compared.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

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
from octaskly.store.tables.arrays import BORN, Members
from octaskly.store.tables.floors import read_numbers


class Early(NamedTuple):
    """One entry without its output, and the number of that."""

    stream: StreamId
    seq: int
    hlc: int
    fact: TaskFact
    output: int | None
    is_held: bool = False  #: it is in the table


class Orphans:
    """The table `orphans`, seen by the writer."""

    def __init__(self, db: sqlite3.Connection, packer: Packer) -> None:
        self._db = db
        self._packer = packer
        self.is_any = False
        self.look()

    def look(self) -> None:
        """Find out whether there are any."""
        found = self._db.execute("SELECT 1 FROM orphans LIMIT 1").fetchone()
        self.is_any = found is not None

    def of(self, tasks: Iterable[TaskId]) -> Iterator[Early]:
        """Return the entries about these tasks that are not void."""
        for some in rows.chunks(tasks if self.is_any else ()):
            for stream, seq, hlc, body, output in self._db.execute(
                "SELECT stream, seq, hlc, body, output FROM orphans"  # noqa: S608
                " JOIN log USING (stream, seq) JOIN streams USING (stream)"
                f" WHERE orphans.task_id IN ({rows.marks(len(some))})"
                " AND seq > floor_seq",
                some,
            ).fetchall():
                fact = self._packer.unpack_entry(stream, seq, hlc, body).fact
                assert not isinstance(fact, Floor | Recorded), "it waits for no task"
                yield Early(stream, seq, hlc, fact, output, is_held=True)

    def members(self, array: TaskId) -> set[TaskId]:
        """Return the members of an array about which there are entries."""
        if not self.is_any:
            return set()
        name = array.partition("~")[0]
        found = self._db.execute(
            "SELECT task_id FROM orphans"
            " WHERE task_id > ? || '.' AND task_id < ? || '/'",
            (name, name),
        )
        return {id_ for (id_,) in found if (split_member_id(id_) or ("",))[0] == array}

    def write(self, held: Iterable[Early], counted: Iterable[Early]) -> None:
        """Hold what cannot count yet, let go of what does now."""
        gone = [(e.fact.task, e.stream, e.seq) for e in counted if e.is_held]
        fresh = [(e.fact.task, e.stream, e.seq) for e in held if not e.is_held]
        self._db.executemany(
            "DELETE FROM orphans WHERE task_id = ? AND stream = ? AND seq = ?", gone
        )
        bulk.ORPHAN_INSERT.run(self._db, fresh)
        self.is_any = self.is_any or bool(fresh)


FETCHED: Final = f"{rows.TASK_COLUMNS}, node, state, changed, born, reborn, stream, seq"
_WIDTH: Final = rows.TASK_COLUMNS.count(",") + 1
CHANGED: Final = _WIDTH + 2  #: place of that column

Count = tuple[int, str, int]  #: kind, node (empty: none) and number of the state


@dataclass(slots=True)
class Task:
    """One task in the writer's hands; its record holds no kept output."""

    record: TaskRecord | None = None
    key: int | None = None  #: None until its row is written
    outputs: dict[AttemptId, int] | None = None  #: None: not one
    counted: Count | None = None  #: what `counts` and the row say
    stored_spec: TaskSpec | None = None
    is_final: bool = False  #: as of the row
    is_blocked: bool = False  #: as of the row
    stored_rare: rows.Rare | None = None  #: as of the row
    changed: set[AttemptId] | None = None  #: attempts that differ from their rows
    changed_hlc: int = 0
    birth: SubmissionTimes | None = None
    stored_birth: SubmissionTimes | None = None
    early: list[Early] | None = None  #: what cannot count yet
    counted_early: list[Early] | None = None
    members: Members | None = None  #: of an array
    array: Task | None = None  #: of a member
    was_live: bool = False  #: as its array counts it, of a member

    @property
    def spec(self) -> TaskSpec | None:
        """The envelope, once it is here."""
        return None if self.record is None else self.record.spec

    def output_of(self, attempt: AttemptId) -> int | None:
        """Return the number of what an attempt wrote, None if that is nothing."""
        return None if self.outputs is None else self.outputs.get(attempt)

    def touch(self, attempt: AttemptId) -> None:
        """Note that an attempt has to be written."""
        if self.changed is None:
            self.changed = set()
        self.changed.add(attempt)

    def set_aside(self, early: Early) -> None:
        """Keep what cannot count until a submission is here."""
        if self.early is None:
            self.early = []
        self.early.append(early)

    def is_earlier(self, row: TaskRow, floors: Mapping[StreamId, int]) -> bool:
        """Whether `row` is of a later task with this id; by `floors`, of the peer.

        A member goes with its array, whose row says it.
        """
        mine, theirs = self.spec, row.record.spec
        if mine is None or theirs is None or self.birth is None:
            return False
        if self.array is not None:
            return False
        is_below = self.birth.seq <= floors.get(self.birth.stream, 0)
        return is_below and mine.ord != theirs.ord


class Folding:
    """What is known of tasks, fact by fact, within one transaction."""

    def __init__(self, db: sqlite3.Connection, orphans: Orphans) -> None:
        self._db = db
        self._orphans = orphans
        self._kept: dict[int, tuple[bytes, bytes]] = {}  #: outputs of this commit
        self.begin()

    def begin(self) -> None:
        """Start from what the file says."""
        self._kept.clear()
        (last,) = self._db.execute("SELECT max(id) FROM outputs").fetchone()
        given = read_numbers(self._db).get("output", 0)
        self._next_output = max(last or 0, given) + 1

    def write_kept(self) -> None:
        """Write the outputs of this commit."""
        if not self._kept:
            return
        kept = [(number, *output) for number, output in self._kept.items()]
        bulk.OUTPUT_INSERT.run(self._db, kept)
        self._kept.clear()

    def write_early(self, tasks: Iterable[Task]) -> None:
        """Note what cannot count until a submission is here, and what does by now."""
        held: list[Early] = []
        counted: list[Early] = []
        for task in tasks:
            held += task.early or ()
            counted += task.counted_early or ()
            task.early = task.counted_early = None
        if held or counted:
            self._orphans.write(held, counted)

    def enter(
        self, task: Task, entry: Entry, fact: TaskFact
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
            self._bear(task, fact, SubmissionTimes(hlc, hlc, stream, seq))
        else:
            if isinstance(fact, Finished):
                fact, output = self._strip(task, fact)
            if task.record is None or task.record.spec is None:
                task.set_aside(Early(stream, seq, hlc, fact, output))
                return fact, output
            self._fold(task, fact, output)
        task.changed_hlc = max(task.changed_hlc, hlc)
        return fact, output

    def _bear(self, task: Task, fact: Submitted, birth: SubmissionTimes) -> None:
        """Fold a submission, and what came before it and counts now.

        One that makes another array of it is none of ours, as the content of a task is
        in its id; and the members of this one have their rooms.
        """
        if task.spec is not None and task.spec.array != fact.spec.array:
            return
        task.birth = merge.join_submission_times(task.birth, birth)
        task.record = merge.apply_fact(task.record, fact)
        if not task.early:  # As mostly.
            return
        for early in task.early:
            self._fold(task, early.fact, early.output)
            task.changed_hlc = max(task.changed_hlc, early.hlc)
        task.counted_early = [*(task.counted_early or ()), *task.early]
        task.early = None

    def bear_member(self, task_id: TaskId, task: Task) -> None:
        """Give a member its envelope, once its array is here and has such a member."""
        array = None if task.array is None else task.array.spec
        place = split_member_id(task_id)
        if task.spec is not None or array is None or place is None:
            return
        spec = member_spec(array, place[1])
        if spec is not None:
            self._bear(task, Submitted(spec), BORN)

    def fold_row(self, task: Task, row: TaskRow) -> None:
        """Fold all facts of a peer's row."""
        for fact in merge.facts_of(row.record):
            if isinstance(fact, Submitted):
                self._bear(task, fact, row.submission_times)
            elif isinstance(fact, Finished):
                self._fold(task, *self._strip(task, fact))
            else:
                self._fold(task, fact, None)
        task.changed_hlc = max(task.changed_hlc, row.last_change_hlc)

    def _strip(self, task: Task, fact: Finished) -> tuple[Finished, int | None]:
        """Set the kept output of a fact aside; return its number in `outputs`."""
        kept = (fact.outcome.stdout, fact.outcome.stderr)
        if not any(kept):
            return fact, None
        bare = Finished(fact.task, fact.attempt, fact.node, rows.bare(fact.outcome))
        # A result that is told again, to another dispatcher, is not kept twice.
        known = task.output_of(fact.attempt)
        if known is not None and self._output(known) == kept:
            return bare, known
        number = self._next_output
        self._next_output += 1
        self._kept[number] = kept
        return bare, number

    def _fold(self, task: Task, fact: TaskFact, output: int | None) -> None:
        """Join one fact, without output, whose output has this number."""
        record = task.record
        if isinstance(fact, Finished):
            task.touch(fact.attempt)
            mine = None if record is None else _find(record, fact.attempt)
            if mine is not None and mine.state is fact.outcome.state:
                self._fold_tie(task, mine, fact, output)
                return
            if mine is None or mine.state < fact.outcome.state:
                _point(task, fact.attempt, output)
        elif isinstance(fact, Assigned):
            task.touch(fact.attempt)
        task.record = merge.apply_fact(record, fact)

    def _fold_tie(
        self, task: Task, mine: Attempt, fact: Finished, output: int | None
    ) -> None:
        """Join two ends of one attempt that are alike: the content decides.

        Rare (a result told to two dispatchers), so reading the outputs costs nothing.
        """
        ours = self._full(mine, task.output_of(mine.id))
        theirs = self._full(merge.record_of(fact).attempts[0], output)
        joined = merge.join_records(
            TaskRecord(id=fact.task, attempts=(ours,)),
            TaskRecord(id=fact.task, attempts=(theirs,)),
        ).attempts[0]
        if joined.outcome == theirs.outcome:
            _point(task, fact.attempt, output)
        if joined.outcome is not None:
            joined = replace(joined, outcome=rows.bare(joined.outcome))
        record = task.record
        assert record is not None
        attempts = (joined if a.id == joined.id else a for a in record.attempts)
        task.record = replace(record, attempts=tuple(attempts))

    def _full(self, attempt: Attempt, output: int | None) -> Attempt:
        if output is None:
            return attempt
        return rows.with_output(attempt, self._output(output))

    def _output(self, number: int) -> tuple[bytes, bytes]:
        return self._kept.get(number) or rows.read_output(self._db, number)


def tasks_from(
    db: sqlite3.Connection, found: Sequence[rows.Row]
) -> Iterator[tuple[TaskId, Task]]:
    """Yield tasks of rows of `FETCHED`; members of arrays without an envelope."""
    records = rows.records_from(db, [row[:_WIDTH] for row in found])
    members = arrays.read(db, (row[0] for row in found if row[0] < arrays.MEMBERS))
    for row, (record, outputs) in zip(found, records, strict=True):
        yield record.id, _task_from(row, record, outputs, members.get(row[0]))


def _task_from(
    row: rows.Row,
    record: TaskRecord,
    outputs: dict[AttemptId, int],
    members: Members | None,
) -> Task:
    """Return a task as it is stored."""
    node, state, changed = row[_WIDTH : CHANGED + 1]
    birth = SubmissionTimes(*row[-4:])
    kind = arrays.TASK if members is None else arrays.ARRAY
    if row[0] >= arrays.MEMBERS:
        kind, record = arrays.MEMBER, replace(record, spec=None)
    if members is not None:
        members.left_counted = members.left(record.cancelled_by)
    is_blocked = record.waits_for is not None
    return Task(
        record,
        row[0],
        outputs,
        (kind, node or "", state),
        record.spec,
        changed_hlc=changed,
        birth=birth,
        stored_birth=birth,
        members=members,
        was_live=rows.is_live(record),
        is_blocked=is_blocked,
        stored_rare=rows.rare(record, is_blocked=is_blocked),
    )


def _find(record: TaskRecord, attempt_id: AttemptId) -> Attempt | None:
    for attempt in record.attempts:
        if attempt.id == attempt_id:
            return attempt
    return None


def _point(task: Task, attempt: AttemptId, output: int | None) -> None:
    if output is None:
        if task.outputs is not None:
            task.outputs.pop(attempt, None)
    elif task.outputs is None:
        task.outputs = {attempt: output}
    else:
        task.outputs[attempt] = output
