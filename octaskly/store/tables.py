"""Joins what arrives into the tables, inside the writer's transaction.

Each commit's facts are grouped by task: the records concerned are read once, folded
by `core.merge`, and written once. The writer is the only one that writes, so what it
wrote lately need not be read again.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from octaskly.core import merge
from octaskly.core.effects import Append
from octaskly.core.facts import Assigned, Entry, Fact, Finished
from octaskly.core.merge import TaskRecord
from octaskly.core.model import Attempt, AttemptId, Epoch, StreamId, TaskId, TaskSpec
from octaskly.ports import Packer
from octaskly.store import bulk, rows

CACHED_TASKS: Final = 10_000  #: unfinished tasks whose record the writer keeps

_Count = tuple[str, int]  #: node (empty: none) and number of the state


@dataclass(slots=True)
class _Task:
    """One task in the writer's hands; its record holds no kept output."""

    record: TaskRecord | None = None
    key: int | None = None  #: None until its row is written
    outputs: dict[AttemptId, int] = field(default_factory=dict)
    counted: _Count | None = None  #: what `counts` and the row say
    stored_spec: TaskSpec | None = None
    is_final: bool = False  #: as of the row
    changed: set[AttemptId] = field(default_factory=set)


@dataclass(slots=True)
class _Changes:
    """Rows of one commit."""

    inserts: list[bulk.Row] = field(default_factory=list)
    updates: list[bulk.Row] = field(default_factory=list)
    specs: list[bulk.Row] = field(default_factory=list)
    live: list[bulk.Row] = field(default_factory=list)  #: attempts
    ended: list[bulk.Row] = field(default_factory=list)  #: attempts
    adopted: list[bulk.Row] = field(default_factory=list)
    deltas: defaultdict[_Count, int] = field(default_factory=lambda: defaultdict(int))


class Tables:
    """Log, tasks, attempts and counts, written through one connection."""

    def __init__(self, connection: sqlite3.Connection, packer: Packer) -> None:
        self._db = connection
        self._packer = packer
        self._cache: OrderedDict[TaskId, _Task] = OrderedDict()
        self._kept: dict[int, tuple[bytes, bytes]] = {}  #: outputs of this commit
        self._read_numbers()

    def forget(self) -> None:
        """Start from what the file says: the transaction was rolled back."""
        self._cache.clear()
        self._kept.clear()
        self._read_numbers()

    def append(self, items: Sequence[Append]) -> None:
        """Add entries to the log and join them; those already held are skipped.

        The caller has begun a transaction, and calls `forget` if it fails.
        """
        self._add_streams(pair for item in items for pair in item.epochs)
        entries = list(self._fresh(entry for item in items for entry in item.entries))
        if not entries:
            return
        touched = self._fetch(dict.fromkeys(entry.fact.task for entry in entries))
        log = [self._enter(touched[entry.fact.task], entry) for entry in entries]
        kept = [(number, *output) for number, output in self._kept.items()]
        bulk.OUTPUT_INSERT.run(self._db, kept)
        bulk.LOG_INSERT.run(self._db, log)
        self._kept.clear()
        self._write(touched)
        self._hold_orphans(touched, entries)
        self._advance(entries)
        self._settle(touched)

    def add_stream(self, stream: StreamId, epoch: Epoch) -> None:
        """Note who writes a stream."""
        self._add_streams([(stream, epoch)])

    def _read_numbers(self) -> None:
        self._have: dict[StreamId, int] = dict(
            self._db.execute("SELECT stream, have_seq FROM streams")
        )
        self._next_key = self._highest("SELECT max(key) FROM tasks") + 1
        self._next_output = self._highest("SELECT max(id) FROM outputs") + 1
        self._has_orphans = bool(self._highest("SELECT count(*) FROM orphans"))

    def _highest(self, query: str) -> int:
        row = self._db.execute(query).fetchone()
        return 0 if row is None or row[0] is None else int(row[0])

    def _add_streams(self, pairs: Iterable[tuple[StreamId, Epoch]]) -> None:
        fresh = []
        for stream, epoch in pairs:
            if stream not in self._have:
                self._have[stream] = 0
                fresh.append((stream, *epoch))
        self._db.executemany(
            "INSERT INTO streams (stream, term, node) VALUES (?, ?, ?)", fresh
        )

    def _fresh(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        have = self._have
        for entry in entries:
            held = have.get(entry.stream)
            assert held is not None, f"stream {entry.stream} without epoch"
            if entry.seq <= held:
                continue
            assert entry.seq == held + 1, f"gap in stream {entry.stream}"
            have[entry.stream] = entry.seq
            yield entry

    def _fetch(self, ids: Iterable[TaskId]) -> dict[TaskId, _Task]:
        """Return what is known of these tasks, in their order: keys follow it."""
        touched = {task_id: self._cache.get(task_id) for task_id in ids}
        missing = [task_id for task_id, task in touched.items() if task is None]
        for some in rows.chunks(missing):
            found = self._db.execute(
                f"SELECT {rows.TASK_COLUMNS}, node, state FROM tasks WHERE id IN"  # noqa: S608
                f" ({rows.marks(len(some))})",
                some,
            ).fetchall()
            records = rows.records_from(self._db, [row[:-2] for row in found])
            for row, (record, outputs) in zip(found, records, strict=True):
                count = (row[-2] or "", row[-1])
                touched[record.id] = _Task(record, row[0], outputs, count, record.spec)
        fetch_new = self._fetch_orphan if self._has_orphans else _new
        return {
            task_id: task or fetch_new(task_id) for task_id, task in touched.items()
        }

    def _fetch_orphan(self, task_id: TaskId) -> _Task:
        """Fold what arrived before the envelope of a task did."""
        task = _Task()
        for stream, seq, hlc, body, output in self._db.execute(
            "SELECT stream, seq, hlc, body, output FROM orphans"
            " JOIN log USING (stream, seq) WHERE orphans.task_id = ?",
            (task_id,),
        ).fetchall():
            fact = self._packer.unpack_entry(stream, seq, hlc, body).fact
            self._fold(task, fact, output)
        return task

    def _enter(
        self, task: _Task, entry: Entry
    ) -> tuple[int, int, int, str, bytes, int | None]:
        """Fold one entry and return its row of the log."""
        stripped, output = self._strip(task, entry)
        self._fold(task, stripped.fact, output)
        return (
            entry.stream,
            entry.seq,
            entry.hlc,
            entry.fact.task,
            self._packer.pack_entry_body(stripped),
            output,
        )

    def _strip(self, task: _Task, entry: Entry) -> tuple[Entry, int | None]:
        """Set the kept output of an entry aside; return its number in `outputs`."""
        fact = entry.fact
        if not isinstance(fact, Finished):
            return entry, None
        kept = (fact.outcome.stdout, fact.outcome.stderr)
        if kept == (b"", b""):
            return entry, None
        bare = Finished(fact.task, fact.attempt, fact.node, rows.bare(fact.outcome))
        stripped = Entry(entry.stream, entry.seq, entry.hlc, bare)
        # A result that is told again, to another dispatcher, is not kept twice.
        known = task.outputs.get(fact.attempt)
        if known is not None and self._output(known) == kept:
            return stripped, known
        number = self._next_output
        self._next_output += 1
        self._kept[number] = kept
        return stripped, number

    def _fold(self, task: _Task, fact: Fact, output: int | None) -> None:
        """Join one fact, without output, whose output has this number."""
        if not isinstance(fact, Finished):
            task.record = merge.apply(task.record, fact)
            if isinstance(fact, Assigned):
                task.changed.add(fact.attempt)
            return
        task.changed.add(fact.attempt)
        mine = None if task.record is None else _find(task.record, fact.attempt)
        if mine is not None and mine.state is fact.outcome.state:
            self._fold_tie(task, mine, fact, output)
            return
        task.record = merge.apply(task.record, fact)
        if mine is None or mine.state < fact.outcome.state:
            _point(task, fact.attempt, output)

    def _fold_tie(
        self, task: _Task, mine: Attempt, fact: Finished, output: int | None
    ) -> None:
        """Join two ends of one attempt that are alike: the content decides.

        Rare (a result told to two dispatchers), so reading the outputs costs nothing.
        """
        ours = self._full(mine, task.outputs.get(mine.id))
        theirs = self._full(merge.record_of(fact).attempts[0], output)
        joined = merge.join(
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

    def _write(self, touched: dict[TaskId, _Task]) -> None:
        """Write each task, its changed attempts and the counters once."""
        changes = _Changes()
        for task in touched.values():
            if task.record is not None and task.record.spec is not None:
                self._write_task(task, task.record, task.record.spec, changes)
        db = self._db
        bulk.TASK_INSERT.run(db, changes.inserts)
        bulk.TASK_UPDATE.run(db, changes.updates)
        bulk.SPEC_UPDATE.run(db, changes.specs)
        bulk.ATTEMPT_LIVE_UPSERT.run(db, changes.live)
        bulk.ATTEMPT_ENDED_UPSERT.run(db, changes.ended)
        deltas = [(*count, n) for count, n in changes.deltas.items() if n]
        bulk.COUNT_ADD.run(db, deltas)
        if self._has_orphans:
            db.executemany("DELETE FROM orphans WHERE task_id = ?", changes.adopted)

    def _write_task(
        self, task: _Task, record: TaskRecord, spec: TaskSpec, changes: _Changes
    ) -> None:
        state = record.state
        number = rows.NUMBER_OF[state]
        node = rows.node_shown(record, state)
        by, tries = record.cancelled_by, len(record.attempts)
        row = (number, node, by, rows.is_live(record), tries)
        if task.key is None:
            task.key = self._next_key
            self._next_key += 1
            head = (task.key, record.id, rows.sequence_of(record.id))
            changes.inserts.append((*head, *row, *rows.spec_row(spec)))
            changes.adopted.append((record.id,))
        else:
            changes.updates.append((*row, task.key))
            if spec is not task.stored_spec and spec != task.stored_spec:
                changes.specs.append((*rows.spec_row(spec), task.key))
        task.stored_spec = spec
        task.is_final = state.is_final
        if task.changed:
            for attempt in record.attempts:
                if attempt.id in task.changed:
                    output = task.outputs.get(attempt.id)
                    rows_of = changes.live if attempt.outcome is None else changes.ended
                    rows_of.append(rows.attempt_row(task.key, attempt, output))
            task.changed.clear()
        count = (node or "", number)
        if count != task.counted:
            changes.deltas[count] += 1
            if task.counted is not None:
                changes.deltas[task.counted] -= 1
            task.counted = count

    def _hold_orphans(
        self, touched: dict[TaskId, _Task], entries: Sequence[Entry]
    ) -> None:
        """Note the entries whose task cannot be shown until its envelope is here."""
        lost = {task_id for task_id, task in touched.items() if task.key is None}
        if lost:
            orphans = [
                (entry.fact.task, entry.stream, entry.seq)
                for entry in entries
                if entry.fact.task in lost
            ]
            bulk.ORPHAN_INSERT.run(self._db, orphans)
            self._has_orphans = True

    def _advance(self, entries: Sequence[Entry]) -> None:
        """Move the vector forward."""
        self._db.executemany(
            "UPDATE streams SET have_seq = ? WHERE stream = ?",
            [
                (self._have[stream], stream)
                for stream in {entry.stream for entry in entries}
            ],
        )

    def _settle(self, touched: dict[TaskId, _Task]) -> None:
        """Keep unfinished tasks at hand."""
        cache = self._cache
        for task_id, task in touched.items():
            if task.key is not None and not task.is_final:
                cache[task_id] = task
                cache.move_to_end(task_id)
            else:
                cache.pop(task_id, None)
        while len(cache) > CACHED_TASKS:
            cache.popitem(last=False)


def _new(_: TaskId) -> _Task:
    return _Task()


def _find(record: TaskRecord, attempt_id: AttemptId) -> Attempt | None:
    for attempt in record.attempts:
        if attempt.id == attempt_id:
            return attempt
    return None


def _point(task: _Task, attempt: AttemptId, output: int | None) -> None:
    if output is None:
        task.outputs.pop(attempt, None)
    else:
        task.outputs[attempt] = output
