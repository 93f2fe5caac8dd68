"""Joins what arrives into the tables, inside the writer's transaction.

Each commit's facts are grouped by task: the records concerned are read once, folded
by `core.merge`, and written once. The writer is the only one that writes, so what it
wrote lately need not be read again.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from octaskly.core.effects import Append, MergeRows
from octaskly.core.log.facts import MESH_FACTS, Entry, Floor, TaskFact
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import Epoch, StreamId, TaskId
from octaskly.core.model.tasks import TaskSpec
from octaskly.ports import Clock, Packer
from octaskly.store.tables import arrays, bulk, node_state, records, rows
from octaskly.store.tables.arrays import Members
from octaskly.store.tables.block_counts import first_key
from octaskly.store.tables.floors import raise_number, read_floor, write_floor
from octaskly.store.writing import purge
from octaskly.store.writing.dependencies import Edges
from octaskly.store.writing.projection import (
    CHANGED,
    FETCHED,
    Folding,
    Orphans,
    Task,
    tasks_from,
)
from octaskly.store.writing.row_changes import Changes

CACHED_TASKS: Final = 10_000  #: unfinished tasks whose record the writer keeps


class Tables:
    """Log, tasks, attempts and counts, written through one connection."""

    def __init__(
        self, connection: sqlite3.Connection, packer: Packer, clock: Clock
    ) -> None:
        self._db = connection
        self._packer = packer
        self._clock = clock
        self._cache: OrderedDict[TaskId, Task] = OrderedDict()
        self._orphans = Orphans(connection, packer)
        self._folding = Folding(connection, self._orphans)
        self._purge = purge.Purge(connection)
        self._edges = Edges(connection)
        self.ends_to_tell = 0  #: so far; a transaction that failed may have added some
        self._read_numbers()

    def forget(self) -> None:
        """Start from what the file says: the transaction was rolled back."""
        self._cache.clear()
        self._orphans.look()
        self._folding.begin()
        self._purge.begin()
        self._edges.look()
        self._read_numbers()

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left to purge."""
        return self._purge.is_done

    def purge(self) -> None:
        """Delete some rows that are void, in a transaction that the caller began."""
        self._purge.step()

    def append(self, items: Sequence[Append]) -> None:
        """Add entries to the log and join them; those already held are skipped.

        The caller has begun a transaction, and calls `forget` if it fails.
        """
        for item in items:
            if item.epochs:  # As once in a reign.
                self._add_streams(item.epochs)
        entries = self._fresh(items)
        some: list[tuple[Entry, TaskFact]] = []
        for entry in entries:
            fact = entry.fact
            if not isinstance(fact, MESH_FACTS):
                some.append((entry, fact))
            elif isinstance(fact, Floor):
                self._append_some(some)
                self._append_floor(entry, fact)
                some = []
            else:
                self._log(entry)
                records.enter(self._db, entry, fact, self._clock.now().wall_ms)
        self._append_some(some)
        self._advance(entries)

    def join(self, item: MergeRows) -> None:
        """Join rows of a peer, and at the end its vector; a transaction has begun."""
        plain = [
            row
            for told in item.rows
            if told.record.spec is not None and split_member_id(told.record.id) is None
            if (row := self._living(told)) is not None
        ]
        members = [
            row for row in item.rows if split_member_id(row.record.id) is not None
        ]
        self._join_some(item, plain)
        self._join_some(item, members)
        records.learn(self._db, item.records)
        node_state.raise_ahead(self._db, item.vector)
        if item.is_last:
            self._end_join(item)

    def _join_some(self, item: MergeRows, some: Sequence[TaskRow]) -> None:
        """Join rows of tasks, or those of members, whose arrays are here by then."""
        floors = {mark.stream: mark.seq for mark in item.head.floor.stream_floors}
        touched = self._fetch(dict.fromkeys(row.record.id for row in some))
        for row in some:
            task_id = row.record.id
            task = touched[task_id]
            if task.is_earlier(row, floors):
                # An id that is used again: the peer has forgotten what we show.
                if task.key is None:
                    continue  # Or it is told twice in one part: none of ours would.
                purge.drop_tasks(self._db, [task.key])
                task = touched[task_id] = Task()
                task.early = list(self._orphans.of([task_id]))
            # What is void to the peer is not in the row either.
            known = task.early or ()
            task.early = [e for e in known if e.seq > floors.get(e.stream, 0)]
            if task.array is None or task.spec is not None:
                self._folding.fold_row(task, row)
        self._folding.write_kept()
        self._write(touched)
        self._settle(touched)

    def add_stream(self, stream: StreamId, epoch: Epoch) -> None:
        """Note who writes a stream."""
        self._add_streams([(stream, epoch)])

    def _read_numbers(self) -> None:
        self._have: dict[StreamId, int] = dict(
            self._db.execute("SELECT stream, have_seq FROM streams")
        )
        (last,) = self._db.execute(
            "SELECT max(key) FROM tasks WHERE key < ?", (arrays.MEMBERS,)
        ).fetchone()
        self._next_key = (last or 0) + 1
        self._next_member = arrays.next_key(self._db)
        floor = read_floor(self._db)
        self._floors = {mark.stream: mark.seq for mark in floor.stream_floors}
        self._horizon = floor.horizon

    def _add_streams(self, pairs: Iterable[tuple[StreamId, Epoch]]) -> None:
        fresh = []
        for stream, epoch in pairs:
            if stream not in self._have:
                self._have[stream] = 0
                fresh.append((stream, *epoch))
        self._db.executemany(
            "INSERT INTO streams (stream, term, node) VALUES (?, ?, ?)", fresh
        )

    def _fresh(self, items: Sequence[Append]) -> list[Entry]:
        have = self._have
        fresh: list[Entry] = []
        for item in items:
            for entry in item.entries:
                stream, seq = entry.stream, entry.seq
                assert stream in have, f"stream {stream} without epoch"
                if seq <= have[stream]:
                    continue
                assert seq == have[stream] + 1, f"gap in stream {stream}"
                have[stream] = seq
                if isinstance(entry.fact, Floor):
                    for stream, seq, _ in entry.fact.stream_floors:
                        have[stream] = max(have.get(stream, 0), seq)
                fresh.append(entry)
        return fresh

    def _append_some(self, some: Sequence[tuple[Entry, TaskFact]]) -> None:
        """Add entries between two floors; there may be none."""
        touched = self._fetch([fact.task for _, fact in some])
        log = [self._enter(touched[fact.task], entry, fact) for entry, fact in some]
        self._bear_members(touched)
        self._folding.write_kept()
        bulk.LOG_INSERT.run(self._db, log)
        self._write(touched)
        self._settle(touched)

    def _bear_members(self, touched: dict[TaskId, Task]) -> None:
        """Let what was said of members count whose array has come with this commit."""
        parents: dict[TaskId, TaskId] = {}
        for task_id, task in touched.items() if self._orphans.is_any else ():
            if task.key is None and task.spec is not None and task.spec.array:
                for member in self._orphans.members(task_id):
                    parents[member] = task_id
        if parents:
            for member in parents.keys() & touched.keys():
                del parents[member]
            touched |= self._fetch_members(parents, touched)
        for task_id, task in touched.items():
            if task.array is not None:
                self._folding.bear_member(task_id, task)

    def _append_floor(self, entry: Entry, floor: Floor) -> None:
        self._log(entry)
        raise_number(self._db, "hlc", entry.hlc)
        self._raise_floor(floor)

    def _log(self, entry: Entry) -> None:
        body = self._packer.pack_entry_body(entry)
        row = (entry.stream, entry.seq, entry.hlc, entry.fact.task, body, None)
        bulk.LOG_INSERT.run(self._db, [row])

    def _raise_floor(self, floor: Floor) -> None:
        write_floor(self._db, floor)
        self._horizon = max(self._horizon, floor.horizon)
        for stream, seq, _ in floor.stream_floors:
            self._floors[stream] = max(self._floors.get(stream, 0), seq)
            self._have[stream] = max(self._have.get(stream, 0), seq)
        self._cache.clear()  # It may hold what is void now.
        self._purge.begin()

    def _is_void(self, birth: SubmissionTimes, changed_hlc: int) -> bool:
        """Whether the task is void, and waits for its deletion."""
        is_below = 0 < birth.seq <= self._floors.get(birth.stream, 0)
        return is_below and changed_hlc <= self._horizon

    def _living(self, row: TaskRow) -> TaskRow | None:
        """Return a row; of a void one what it adds to a task that lives on here.

        Its entries would add it, too: some of them may lie beyond the floor.
        """
        if not self._is_void(row.submission_times, row.last_change_hlc):
            return row
        assert row.record.spec is not None
        found = self._db.execute(
            "SELECT changed, born, reborn, stream, seq FROM tasks"
            " WHERE id = ? AND ord = ?",
            (row.record.id, row.record.spec.ord),
        ).fetchone()
        if found is None or self._is_void(
            birth := SubmissionTimes(*found[1:]), found[0]
        ):
            return None
        return replace(row, submission_times=birth)

    def _end_join(self, item: MergeRows) -> None:
        """Hold all that the rows stand for, without the entries."""
        head = item.head
        self._add_streams(head.epochs)
        ahead = [
            (seq, seq, stream)
            for stream, seq in head.vector
            if seq > self._have[stream]
        ]
        self._db.executemany(
            "UPDATE streams SET have_seq = ?, base_seq = ? WHERE stream = ?", ahead
        )
        self._have.update((StreamId(stream), seq) for seq, _, stream in ahead)
        raise_number(self._db, "hlc", head.hlc)
        self._raise_floor(head.floor)

    def _fetch(self, ids: Iterable[TaskId]) -> dict[TaskId, Task]:
        """Return what is known of these tasks, in their order: keys follow it.

        With members of an array comes the array, which counts them.
        """
        plain = dict.fromkeys(ids)
        parents: dict[TaskId, TaskId] = {}
        for task_id in plain:
            if "." in task_id and (place := split_member_id(task_id)) is not None:
                parents[task_id] = place[0]
        if not parents:
            return self._fetch_rows(plain)
        for task_id in parents:
            del plain[task_id]
        tasks = self._fetch_rows(plain | dict.fromkeys(parents.values()))
        return tasks | self._fetch_members(parents, tasks)

    def _fetch_members(
        self, parents: Mapping[TaskId, TaskId], tasks: Mapping[TaskId, Task]
    ) -> dict[TaskId, Task]:
        """Return what is known of members whose arrays are in `tasks`."""
        members = self._fetch_rows(parents)
        for task_id, task in members.items():
            task.array = tasks[parents[task_id]]
            self._folding.bear_member(task_id, task)
        return members

    def _fetch_rows(self, ids: Iterable[TaskId]) -> dict[TaskId, Task]:
        cached = self._cache.get
        tasks: dict[TaskId, Task] = {}
        missing = []
        for task_id in ids:
            task = cached(task_id)
            if task is None:
                missing.append(task_id)
                task = Task()
            tasks[task_id] = task
        for some in rows.chunks(missing) if missing else ():
            found = self._db.execute(
                f"SELECT {FETCHED} FROM tasks WHERE id IN"  # noqa: S608
                f" ({rows.marks(len(some))})",
                some,
            ).fetchall()
            if not found:
                continue  # Most are new.
            void = [
                row[0]
                for row in found
                if self._is_void(SubmissionTimes(*row[-4:]), row[CHANGED])
            ]
            purge.drop_tasks(self._db, void)
            found = [row for row in found if row[0] not in void]
            tasks.update(tasks_from(self._db, found))
        if missing and self._orphans.is_any:
            for early in self._orphans.of(t for t in missing if tasks[t].key is None):
                tasks[early.fact.task].set_aside(early)
        return tasks

    def _enter(
        self, task: Task, entry: Entry, fact: TaskFact
    ) -> tuple[int, int, int, str, bytes, int | None]:
        """Fold one entry and return its row of the log."""
        bare, output = self._folding.enter(task, entry, fact)
        stream, seq, hlc = entry.stream, entry.seq, entry.hlc
        packed = entry if bare is fact else Entry(stream, seq, hlc, bare)
        body = self._packer.pack_entry_body(packed)
        return (stream, seq, hlc, fact.task, body, output)

    def _write(self, touched: dict[TaskId, Task]) -> None:
        """Write each task, its changed attempts and the counters once."""
        changes = Changes()
        known: list[tuple[Task, TaskRecord, TaskSpec]] = []
        for task in touched.values():
            record = task.record
            if record is not None and record.spec is not None and task.array is None:
                known.append((task, record, record.spec))
                if task.key is None:
                    self._give_key(task, record.spec)
        touched |= self._cut_off(touched)
        for task_id, task in touched.items():
            if task.array is not None and task.spec is not None:
                self._add_member(task_id, task, task.array, changes)
        for task, record, spec in known:
            changes.add(task, record, spec)
        changes.run(self._db)
        self._edges.take(changes.waits)
        self.ends_to_tell += changes.ends_to_tell
        self._folding.write_early(touched.values())

    def _give_key(self, task: Task, spec: TaskSpec) -> None:
        """Give a new task its place among all, and an array room for its members."""
        task.key = self._next_key
        self._next_key += 1
        if spec.array is not None:
            task.members = Members(self._next_member, spec.array.count)
            self._next_member = first_key(self._next_member + task.members.total)

    def _cut_off(self, touched: Mapping[TaskId, Task]) -> dict[TaskId, Task]:
        """Return the members that waited when their array was cancelled just now."""
        waiting: dict[TaskId, TaskId] = {}
        for array_id, task in touched.items():
            members, record = task.members, task.record
            if members is None or record is None or members.left_counted is None:
                continue
            if members.left_counted[0] == members.left(record.cancelled_by)[0]:
                continue
            found = self._db.execute(
                "SELECT id FROM tasks INDEXED BY tasks_state"
                " WHERE state = 0 AND key BETWEEN ? AND ?",
                (members.first, members.last),
            )
            waiting.update((id_, array_id) for (id_,) in found if id_ not in touched)
        return self._fetch_members(waiting, touched) if waiting else {}

    def _add_member(
        self, task_id: TaskId, task: Task, array: Task, changes: Changes
    ) -> None:
        place, spec, members = split_member_id(task_id), array.spec, array.members
        assert place is not None
        assert spec is not None
        assert spec.array is not None
        assert members is not None
        if task.key is None:
            position = spec.array.position(place[1])
            assert position is not None
            task.key = members.first + position
        changes.add_member(task, array, members)

    def _advance(self, entries: Sequence[Entry]) -> None:
        """Move the vector forward."""
        moved = "UPDATE streams SET have_seq = ? WHERE stream = ?"
        for stream in {entry.stream for entry in entries}:
            self._db.execute(moved, (self._have[stream], stream))

    def _settle(self, touched: dict[TaskId, Task]) -> None:
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
