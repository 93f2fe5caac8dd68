"""Merge of log entries and snapshot rows into the tables.

The facts of a commit are grouped by task. Each task is read once, merged with
`core.log.merge`, and written once. All of this runs in the writer's transaction. Only
the writer changes the file, so it caches the tasks that it wrote recently.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from octaskly.core.effects import Append, MergeRows, StageRows
from octaskly.core.log.facts import (
    MESH_FACTS,
    RANGE_FACTS,
    TASK_FACTS,
    Entry,
    Floor,
    RangeFact,
    Submitted,
)
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.log.range_facts import TaskEntry, entry_after, task_entries
from octaskly.core.log.range_rows import RangeRow
from octaskly.core.log.task_ages import ClockStep, storing_time_ms, trusted_timestamps
from octaskly.core.model.arrays import array_of, position_of
from octaskly.core.model.ids import Epoch, StreamId, TaskId
from octaskly.core.model.tasks import TaskSpec
from octaskly.ports.store import Clock, Packer
from octaskly.store.tables import arrays, bulk, member_ranges, mesh_records, rows
from octaskly.store.tables.arrays import ArrayMembers
from octaskly.store.tables.floors import (
    add_retired_streams,
    raise_meta_number,
    read_floor,
    read_retired_end,
    write_floor,
)
from octaskly.store.tables.list_counts import next_block_key
from octaskly.store.tables.log_rows import LARGE_BYTES, StoredEntry, write_entries
from octaskly.store.tables.node_state import write_clock_step
from octaskly.store.tables.staged_parts import (
    add_part,
    read_interrupted_merges,
    read_next_part,
    remove_part,
)
from octaskly.store.writing import purge
from octaskly.store.writing.dependency_index import DependencyIndex
from octaskly.store.writing.projection import (
    PendingEntries,
    ProjectedTask,
    Projection,
    tasks_from,
)
from octaskly.store.writing.queue_rows import QueueRows
from octaskly.store.writing.range_writes import RangeWrites
from octaskly.store.writing.row_changes import RowChanges
from octaskly.store.writing.stdin_freeing import StdinFreeing

KnownTask = tuple[ProjectedTask, TaskRecord, TaskSpec]
"""A task that is no member, with its record and envelope."""

NO_TIMES: Final[Mapping[TaskId, int]] = {}
CACHED_TASKS: Final = 8_000  #: number of unfinished tasks in the cache


class TableWriter:
    """Log, tasks, attempts and counts, written through one connection."""

    def __init__(
        self, connection: sqlite3.Connection, packer: Packer, clock: Clock
    ) -> None:
        self._db = connection
        self._packer = packer
        self._clock = clock
        self._cache: OrderedDict[TaskId, ProjectedTask] = OrderedDict()
        self.queue_rows = QueueRows(self._is_void_task)
        self._pending_entries = PendingEntries(connection, packer)
        self._projection = Projection(connection, self._pending_entries)
        self._ranges = RangeWrites(connection)
        self._range_arrays: dict[TaskId, ProjectedTask] = {}
        """Arrays whose ranges this commit has changed, until they are written."""
        self._purger = purge.Purger(connection, packer)
        self._dependencies = DependencyIndex(connection)
        self.stdin_freeing = StdinFreeing(connection, packer)
        self.notification_count = 0  #: includes those of failed transactions
        self._peer_floors: tuple[int, Mapping[StreamId, int]] = (0, {})
        """Floors of the peer whose snapshot is being merged, by its number.

        There are none between two merges.
        """
        self._read_numbers()

    def reload(self) -> None:
        """Read the state from the file, after a rollback."""
        self._cache.clear()
        self.queue_rows.clear()
        self._pending_entries.refresh()
        self._projection.reset()
        self._ranges.clear()
        self._range_arrays.clear()
        self._purger.restart()
        self._dependencies.refresh()
        self.stdin_freeing.restart()
        self._read_numbers()

    @property
    def is_purged(self) -> bool:
        """Return True if no void row is left."""
        return self._purger.is_done

    def purge_some(self) -> None:
        """Delete some void rows, in a transaction of the caller."""
        self._purger.delete_some()

    def append_entries(self, items: Sequence[Append]) -> None:
        """Add entries to the log and merge them, except those that are already held.

        The caller must open a transaction, and call `reload` if it fails.
        """
        for item in items:
            if item.epochs:  # Once per epoch.
                self._add_streams(item.epochs)
        entries = self._select_new_entries(items)
        logged = 0  #: number of entries that are in the log
        some: list[TaskEntry] = []
        record_kinds: set[str] = set()
        _, floors = self._peer_floors
        for index, entry in enumerate(entries, start=1):
            fact = entry.fact
            if floors and fact.task and entry.last_seq <= floors.get(entry.stream, 0):
                continue  # Void at the end of this merge, whose rows it must not join.
            if isinstance(fact, TASK_FACTS):
                some.append((entry, fact))
            elif isinstance(fact, RANGE_FACTS):
                if any(isinstance(of_task, Submitted) for _, of_task in some):
                    self._append_task_entries(some)  # Its array may be new.
                    some = []
                some += self._append_range(entry, fact)
            elif isinstance(fact, Floor):
                self._append_task_entries(some)
                # The purge that this floor starts looks for streams.
                self._log_entries(entries[logged:index])
                self._append_floor(entry, fact)
                logged, some = index, []
            else:
                mesh_records.apply_record(self._db, entry, fact)
                record_kinds.add(fact.kind)
        wall_ms = self._clock.now().wall_ms
        mesh_records.delete_surplus(self._db, record_kinds, wall_ms)
        self._append_task_entries(some)
        self._log_entries(entries[logged:])
        self._advance_vector(entries)
        self._retired_ends.clear()
        self._retired_epochs.clear()

    def stage_rows(self, item: StageRows) -> None:
        """Keep a part of a snapshot, and merge its records, in a transaction."""
        stored_ms = storing_time_ms(self._clock.now())
        add_part(self._db, self._packer, item, stored_ms)
        mesh_records.merge_records(self._db, item.part.records)

    def merge_rows(self, item: MergeRows) -> None:
        """Merge the next part, and the vector after the last one, in a transaction."""
        staged = read_next_part(self._db, self._packer, item.snapshot)
        rows = staged.part.rows
        plain = [
            row
            for sent in rows
            if sent.record.spec is not None and array_of(sent.record.id) is None
            if (row := self._live_part_of(sent)) is not None
        ]
        members = [row for row in rows if array_of(row.record.id) is not None]
        self._merge_some_rows(item, plain, staged.stored_ms)
        members += self._merge_ranges(staged.part.ranges, staged.stored_ms)
        self._merge_some_rows(item, members, staged.stored_ms)
        self._merge_pending(item, staged.part.pending)
        if item.is_last:
            self._finish_merge(item)
        remove_part(self._db, item, staged)

    def _merge_some_rows(
        self, item: MergeRows, some: Sequence[TaskRow], staged_ms: int
    ) -> None:
        """Merge rows of tasks, or of members whose arrays are already merged."""
        floors = self._floors_of_peer(item)
        with self._pending_entries.above(floors):
            touched = self._fetch_tasks(dict.fromkeys(row.record.id for row in some))
            for row in some:
                task_id = row.record.id
                task = touched[task_id]
                if task.is_superseded_by(row, floors):
                    # The id was reused: the peer has purged the task we still have.
                    if task.key is None:
                        continue  # The part has the id twice; no correct node does so.
                    purge.delete_tasks(self._db, [task.key])
                    self._cache.clear()  # It may hold members of a deleted array.
                    task = touched[task_id] = ProjectedTask()
                    entries = self._pending_entries.read_entries_about([task_id])
                    task.pending = list(entries)
                if task.array is None or task.spec is not None:
                    self._projection.apply_row(task, row)
            self._apply_new_arrays(touched)
        self._projection.write_outputs()
        self._write_tasks(touched, _times_in(some, staged_ms))
        self._update_cache(touched)

    def _merge_ranges(
        self, ranges: Sequence[RangeRow], staged_ms: int
    ) -> Iterator[TaskRow]:
        """Merge rows of ranges; yield the rows of members to merge one by one."""
        touched: dict[TaskId, ProjectedTask] = {}
        times_ms: dict[TaskId, int] = {}
        for row in ranges:
            array = touched.get(row.array)
            if array is None:
                (array,) = self._fetch_rows([row.array]).values()
            # A pending entry may be about one of the members.
            if self._pending_entries.has_any or not self._ranges.merge_row(array, row):
                yield from member_ranges.task_rows_of(row)
                continue
            touched[row.array] = array
            time_ms = max(1, staged_ms - row.age_ms)
            times_ms[row.array] = max(time_ms, times_ms.get(row.array, 0))
        self._write_tasks(touched, times_ms)
        self._update_cache(touched)

    def _merge_pending(self, item: MergeRows, entries: Sequence[Entry]) -> None:
        """Apply entries of a peer that are not in its rows, unless they are held."""
        self._delete_forgotten(item, entries)
        have, news = self._last_seqs, list[TaskEntry]()
        for entry, fact in task_entries(entries):
            stream = entry.stream
            held = have[stream] if stream in have else self._retired_end(stream)
            if entry.seq > held:
                news.append((entry, fact))
        self._append_task_entries(news)
        self._projection.bare_facts.clear()  # These are not in the log here.

    def _delete_forgotten(self, item: MergeRows, entries: Iterable[Entry]) -> None:
        """Delete tasks that the sender of these entries has forgotten.

        An entry behind the floor must not be merged with what the floor has ended.
        """
        floors, horizon = self._floors_of_peer(item), item.head.floor.horizon
        ids = dict.fromkeys(array_of(e.fact.task) or e.fact.task for e in entries)
        gone: list[int] = []
        for task in self._fetch_rows(ids).values():
            times = task.submission_times
            if task.key is None or times is None or task.changed_hlc > horizon:
                continue
            if 0 < times.seq <= floors.get(times.stream, 0):
                gone.append(task.key)
        if gone:
            purge.delete_tasks(self._db, gone)
            self._cache.clear()

    def add_clock_step(self, step: ClockStep) -> None:
        """Add a step of the wall clock, which ages nothing that is stored already."""
        write_clock_step(self._db, step)

    def _floors_of_peer(self, item: MergeRows) -> Mapping[StreamId, int]:
        """Return the floors of the peer, with those of its retired streams."""
        if item.snapshot != self._peer_floors[0]:
            floors = dict(item.retired)
            floors.update((m.stream, m.seq) for m in item.head.floor.stream_floors)
            self._peer_floors = (item.snapshot, floors)
        return self._peer_floors[1]

    def add_stream(self, stream: StreamId, epoch: Epoch) -> None:
        """Add a new stream of this node, with the epoch in which it is written."""
        self._add_streams([(stream, epoch)])

    def _read_numbers(self) -> None:
        self._last_seqs: dict[StreamId, int] = dict(
            self._db.execute("SELECT stream, last_seq FROM streams")
        )
        self._retired_ends: dict[StreamId, int] = {}
        """Ends of streams that this commit retires."""
        self._retired_epochs: dict[StreamId, Epoch] = {}
        """Epochs of retired streams that this commit names; they may have entries."""
        (last,) = self._db.execute(
            "SELECT max(key) FROM tasks WHERE key < ?", (rows.MEMBER_KEYS_START,)
        ).fetchone()
        self._next_key = (last or 0) + 1
        self._next_member_key = arrays.next_key(self._db)
        floor = read_floor(self._db)
        self._floors = {mark.stream: mark.seq for mark in floor.stream_floors}
        self._horizon = floor.horizon

    def _add_streams(self, pairs: Iterable[tuple[StreamId, Epoch]]) -> None:
        fresh = []
        for stream, epoch in pairs:
            if stream in self._last_seqs:
                continue
            if self._retired_end(stream):
                self._retired_epochs[stream] = epoch
                continue
            self._last_seqs[stream] = 0
            fresh.append((stream, *epoch))
        self._db.executemany(
            "INSERT INTO streams (stream, term, node) VALUES (?, ?, ?)", fresh
        )

    def _retired_end(self, stream: StreamId) -> int:
        """Return the last void entry of a retired stream, 0 for any other stream."""
        end = self._retired_ends.get(stream, 0)
        return max(end, read_retired_end(self._db, stream))

    def _restore_stream(self, stream: StreamId, epoch: Epoch) -> None:
        """Return a retired stream to the vector, because it has new entries."""
        end = self._retired_end(stream)
        self._last_seqs[stream] = self._floors[stream] = end
        self._db.execute(
            "INSERT OR IGNORE INTO streams (stream, term, node, last_seq, floor_seq)"
            " VALUES (?, ?, ?, ?, ?)",
            (stream, *epoch, end, end),
        )

    def _select_new_entries(self, items: Sequence[Append]) -> list[Entry]:
        have = self._last_seqs
        fresh: list[Entry] = []
        for item in items:
            for entry in item.entries:
                stream, seq, fact = entry.stream, entry.seq, entry.fact
                last_seq = seq + fact.count - 1
                held = have.get(stream)
                if held is None:
                    if last_seq <= self._retired_end(stream):
                        continue
                    epoch = self._retired_epochs.get(stream)
                    assert epoch is not None, f"stream {stream} without epoch"
                    self._restore_stream(stream, epoch)
                    held = have[stream]
                if last_seq <= held:
                    continue
                assert seq <= held + 1, f"gap in stream {stream}"
                if seq <= held:
                    entry = entry_after(entry, held)
                have[stream] = last_seq
                if isinstance(fact, Floor):
                    self._note_floor(fact)
                fresh.append(entry)
        return fresh

    def _note_floor(self, floor: Floor) -> None:
        """Count void entries as held, and leave out retired streams."""
        have = self._last_seqs
        for mark in floor.stream_floors:
            stream, seq = mark.stream, mark.seq
            if stream in have or seq > self._retired_end(stream):
                have[stream] = max(have.get(stream, 0), seq)
        for stream, end in floor.retired:
            self._retired_ends[stream] = max(self._retired_ends.get(stream, 0), end)
            if have.get(stream, 0) <= end:
                have.pop(stream, None)

    def _append_range(self, entry: Entry, fact: RangeFact) -> Iterator[TaskEntry]:
        """Apply a fact to a stored range, or yield the facts to apply one by one.

        Earlier facts of this commit may follow, because the order does not matter.
        """
        (array,) = self._fetch_rows([fact.array]).values()
        if self._ranges.apply_entry(array, entry, fact):
            self._range_arrays[fact.array] = array
            return
        yield from task_entries([entry])

    def _append_task_entries(self, some: Sequence[TaskEntry]) -> None:
        """Merge entries of tasks; there may be none."""
        touched = self._fetch_tasks([fact.task for _, fact in some])
        touched |= self._range_arrays
        self._range_arrays = {}
        apply_entry = self._projection.apply_entry
        for entry, fact in some:
            apply_entry(touched[fact.task], entry, fact)
        self._apply_new_arrays(touched)
        self._projection.write_outputs()
        self._write_tasks(touched)
        self._update_cache(touched)

    def _apply_new_arrays(self, touched: dict[TaskId, ProjectedTask]) -> None:
        """Apply pending entries of members whose array is in this commit."""
        parents: dict[TaskId, TaskId] = {}
        for task_id, task in touched.items() if self._pending_entries.has_any else ():
            if task.key is None and task.spec is not None and task.spec.array:
                for member in self._pending_entries.read_members_of(task_id):
                    parents[member] = task_id
        if parents:
            for member in parents.keys() & touched.keys():
                del parents[member]
            touched |= self._fetch_members(parents, touched)
        for task_id, task in touched.items():
            if task.array is not None:
                self._projection.apply_array_spec(task_id, task)

    def _append_floor(self, entry: Entry, floor: Floor) -> None:
        raise_meta_number(self._db, "hlc", entry.hlc)
        self._raise_floor(floor)

    def _log_entries(self, entries: Sequence[Entry]) -> None:
        """Write entries, whose outputs were detached, to the log."""
        pack, bare_facts = self._packer.pack, self._projection.bare_facts
        stored = []
        for entry in entries:
            stream, seq, fact, output = entry.stream, entry.seq, entry.fact, None
            if bare_facts and (stream, seq) in bare_facts:
                fact, output = bare_facts.pop((stream, seq))
            body = pack(fact)
            is_large = len(body) > LARGE_BYTES and not isinstance(fact, RANGE_FACTS)
            task = fact.task if is_large else None
            stored.append(
                StoredEntry(stream, seq, entry.hlc, body, output, fact.count, task)
            )
        write_entries(self._db, stored)

    def _raise_floor(self, floor: Floor) -> None:
        have = self._last_seqs
        marks = [mark for mark in floor.stream_floors if mark.stream in have]
        write_floor(self._db, replace(floor, stream_floors=tuple(marks)))
        self._horizon = max(self._horizon, floor.horizon)
        for mark in marks:
            known = self._floors.get(mark.stream, 0)
            self._floors[mark.stream] = max(known, mark.seq)
        add_retired_streams(self._db, floor.retired)
        gone = [stream for stream, _ in floor.retired if stream not in have]
        for stream in gone:
            self._floors.pop(stream, None)
            self._db.execute("DELETE FROM streams WHERE stream = ?", (stream,))
        self._cache.clear()  # It may hold tasks that are void now.
        self._ranges.clear()
        self._purger.restart()

    def _is_void(self, birth: SubmissionTimes, changed_hlc: int) -> bool:
        """Return True if the task is void, so it will be purged."""
        floor = self._floors.get(birth.stream, 0)
        if not floor and birth.seq and birth.stream not in self._last_seqs:
            floor = self._retired_end(birth.stream)
        is_below = 0 < birth.seq <= floor
        return is_below and changed_hlc <= self._horizon

    def _is_void_task(self, task: ProjectedTask) -> bool:
        assert task.submission_times is not None
        return self._is_void(task.submission_times, task.changed_hlc)

    def _live_part_of(self, row: TaskRow) -> TaskRow | None:
        """Return a row, or None if it is void and no live task here has its id.

        A void row is merged into a live task, as its entries would be: some of them may
        be above the floor.
        """
        if not self._is_void(row.submission_times, row.last_change_hlc):
            return row
        assert row.record.spec is not None
        found = self._db.execute(
            "SELECT last_change_hlc, first_submitted_hlc, last_submitted_hlc, stream,"
            " seq FROM tasks WHERE id = ? AND ord = ?",
            (row.record.id, row.record.spec.ord),
        ).fetchone()
        if found is None or self._is_void(
            birth := SubmissionTimes(*found[1:]), found[0]
        ):
            return None
        return replace(row, submission_times=birth)

    def _finish_merge(self, item: MergeRows) -> None:
        """Count all entries that the rows cover as held."""
        head, have = item.head, self._last_seqs
        known = [have[s] if s in have else self._retired_end(s) for s, _ in head.vector]
        ahead = [
            (seq, seq, stream)
            for (stream, seq), held in zip(head.vector, known, strict=True)
            if seq > held
        ]
        epochs = dict(head.epochs)
        for _, _, stream in ahead:
            if stream not in have:
                self._restore_stream(StreamId(stream), epochs[StreamId(stream)])
        self._db.executemany(
            "UPDATE streams SET last_seq = ?, snapshot_seq = ? WHERE stream = ?", ahead
        )
        self._last_seqs.update((StreamId(stream), seq) for seq, _, stream in ahead)
        raise_meta_number(self._db, "hlc", head.hlc)
        floor = replace(head.floor, retired=item.retired)
        self._note_floor(floor)
        self._raise_floor(floor)
        self._peer_floors = (0, {})

    def _fetch_tasks(self, ids: Iterable[TaskId]) -> dict[TaskId, ProjectedTask]:
        """Return the tasks with these ids, in order: new keys follow this order.

        The arrays of members are included, because they count their members.
        """
        plain = dict.fromkeys(ids)
        parents: dict[TaskId, TaskId] = {}
        for task_id in plain:
            if (array := array_of(task_id)) is not None:
                parents[task_id] = array
        if not parents:
            return self._fetch_rows(plain)
        for task_id in parents:
            del plain[task_id]
        tasks = self._fetch_rows(plain | dict.fromkeys(parents.values()))
        return tasks | self._fetch_members(parents, tasks)

    def _fetch_members(
        self, parents: Mapping[TaskId, TaskId], tasks: Mapping[TaskId, ProjectedTask]
    ) -> dict[TaskId, ProjectedTask]:
        """Return members whose arrays are in `tasks`."""
        members = self._fetch_rows(parents)
        for task_id, task in members.items():
            task.array = tasks[parents[task_id]]
            key = _member_key(task_id, task.array)
            if task.key is None and key is not None:
                self._ranges.take_member(task, key)
            self._projection.apply_array_spec(task_id, task)
        return members

    def _fetch_rows(self, ids: Iterable[TaskId]) -> dict[TaskId, ProjectedTask]:
        cached = self._cache.get
        in_commit = self._range_arrays.get
        take_read = self.queue_rows.take
        tasks: dict[TaskId, ProjectedTask] = {}
        missing = []
        for task_id in ids:
            task = in_commit(task_id) or cached(task_id) or take_read(task_id)
            if task is None:
                missing.append(task_id)
                task = ProjectedTask()
            tasks[task_id] = task
        for some in rows.split_for_parameters(missing) if missing else ():
            found = self._db.execute(
                f"SELECT {rows.STORED_COLUMNS} FROM tasks WHERE id IN"  # noqa: S608
                f" ({rows.placeholders(len(some))})",
                some,
            ).fetchall()
            if not found:
                continue  # Most tasks are new.
            stored = dict(tasks_from(self._db, found))
            void = {id_: t for id_, t in stored.items() if self._is_void_task(t)}
            purge.delete_tasks(self._db, [t.key for t in void.values() if t.key])
            tasks.update((id_, t) for id_, t in stored.items() if id_ not in void)
        if missing and self._pending_entries.has_any:
            for entry in self._pending_entries.read_entries_about(
                t for t in missing if tasks[t].key is None
            ):
                tasks[entry.fact.task].add_pending(entry)
        return tasks

    def _write_tasks(
        self,
        touched: dict[TaskId, ProjectedTask],
        peer_times_ms: Mapping[TaskId, int] = NO_TIMES,
    ) -> None:
        """Write each task, its changed attempts and the counters once.

        Args:
            touched: All tasks of this commit, with the arrays of members.
            peer_times_ms: Time at which a peer stored each task; other facts are new.
        """
        changes = RowChanges()
        known: list[KnownTask] = []
        members: dict[TaskId, ProjectedTask] = {}
        for task_id, task in touched.items():
            record = task.record
            if record is None or record.spec is None:
                continue
            if task.array is not None:
                members[task_id] = task
                continue
            known.append((task, record, record.spec))
            if task.key is None:
                self._assign_key(task, record.spec)
        cancelled = self._fetch_cancelled_members(known, touched)
        touched |= cancelled
        for task_id, task in (members | cancelled).items():
            self._add_member(task_id, task, changes)
        for task, record, spec in known:
            changes.add_task(task, record, spec)
            if task.is_final and spec.options is not None and task.counted_as:
                self.stdin_freeing.note_end(spec, task.counted_as[2])
        self._ranges.write_changes(changes)
        changes.write_rows(self._db)
        self._write_stored_times(known, peer_times_ms)
        self._dependencies.apply_changes(changes.dependency_changes)
        self.notification_count += changes.notification_count
        self._projection.write_pending(touched.values())

    def _write_stored_times(
        self, known: Sequence[KnownTask], peer_times_ms: Mapping[TaskId, int]
    ) -> None:
        """Write `stored_ms` of tasks whose timestamps are not trusted, which are few.

        Members have none, because they are forgotten with their arrays.
        """
        now_ms = stored_ms = storing_time_ms(self._clock.now())
        first_hlc, last_hlc = trusted_timestamps(now_ms)
        updates = []
        for task, record, _ in known:
            if peer_times_ms:
                stored_ms = peer_times_ms.get(record.id, now_ms)
                first_hlc, last_hlc = trusted_timestamps(stored_ms)
            if not first_hlc <= task.changed_hlc <= last_hlc:
                updates.append((stored_ms, task.key))
        if updates:
            bulk.STORED_UPDATE.execute(self._db, updates)

    def _assign_key(self, task: ProjectedTask, spec: TaskSpec) -> None:
        """Assign the key of a new task, and the keys of the members of an array."""
        task.key = self._next_key
        self._next_key += 1
        if spec.array is not None:
            task.members = ArrayMembers(self._next_member_key, spec.array.count)
            self._next_member_key = next_block_key(
                self._next_member_key + task.members.total
            )

    def _fetch_cancelled_members(
        self, known: Sequence[KnownTask], touched: Mapping[TaskId, ProjectedTask]
    ) -> dict[TaskId, ProjectedTask]:
        """Return the queued members of arrays that this commit cancels."""
        waiting: dict[TaskId, TaskId] = {}
        for task, record, _ in known:
            members = task.members
            if members is None or members.counted_without_row is None:
                continue
            if (
                members.counted_without_row[0]
                == members.without_row(record.cancelled_by)[0]
            ):
                continue
            found = self._db.execute(
                "SELECT id FROM tasks INDEXED BY tasks_state"
                " WHERE state = 0 AND key BETWEEN ? AND ?",
                (members.first, members.last),
            )
            waiting.update((id_, record.id) for (id_,) in found if id_ not in touched)
        return self._fetch_members(waiting, touched) if waiting else {}

    def _add_member(
        self, task_id: TaskId, task: ProjectedTask, changes: RowChanges
    ) -> None:
        array = task.array
        assert array is not None
        members = array.members
        assert members is not None
        if task.key is None:
            task.key = _member_key(task_id, array)
            assert task.key is not None
        changes.add_member(task, array, members)

    def _advance_vector(self, entries: Sequence[Entry]) -> None:
        """Write the new vector."""
        task_seqs: dict[StreamId, int] = {}  #: of the last entry about a task, or 0
        for entry in reversed(entries):
            stream = entry.stream
            if not task_seqs.get(stream):
                is_of_task = not isinstance(entry.fact, MESH_FACTS)
                task_seqs[stream] = entry.last_seq if is_of_task else 0
        self._db.executemany(
            "UPDATE streams SET last_seq = ?, task_seq = max(task_seq, ?)"
            " WHERE stream = ?",
            [
                (self._last_seqs[stream], task_seq, stream)
                for stream, task_seq in task_seqs.items()
                if stream in self._last_seqs  # It is not retired in this commit.
            ],
        )

    def _update_cache(self, touched: dict[TaskId, ProjectedTask]) -> None:
        """Cache unfinished tasks."""
        self.queue_rows.add_to_commit(touched)
        cache = self._cache
        for task_id, task in touched.items():
            if task.key is not None and not task.is_final:
                cache[task_id] = task
                cache.move_to_end(task_id)
            else:
                cache.pop(task_id, None)
        while len(cache) > CACHED_TASKS:
            cache.popitem(last=False)


def _member_key(task_id: TaskId, array: ProjectedTask) -> int | None:
    """Return the key of a member; None if the array is unknown or has no such one."""
    if array.members is None or array.spec is None or array.spec.array is None:
        return None
    position = position_of(task_id, array.spec.array)
    return None if position is None else array.members.first + position


def _times_in(some: Sequence[TaskRow], staged_ms: int) -> dict[TaskId, int]:
    """Return when a peer stored each task, by this node's clock.

    An array is as old as its youngest row.
    """
    times_ms: dict[TaskId, int] = {}
    for row in some:
        task = array_of(row.record.id) or row.record.id
        time_ms = max(1, staged_ms - row.age_ms)
        times_ms[task] = max(time_ms, times_ms.get(task, time_ms))
    return times_ms


def finish_merges(connection: sqlite3.Connection, packer: Packer, clock: Clock) -> None:
    """Merge the snapshots whose merge a crash interrupted, with a commit for each part.

    The caller reads the saved state afterwards.
    """
    for merge, parts in read_interrupted_merges(connection, packer):
        tables = TableWriter(connection, packer, clock)
        for left in range(parts, 0, -1):
            connection.execute("BEGIN IMMEDIATE")
            tables.merge_rows(replace(merge, is_last=left == 1))
            connection.execute("COMMIT")
