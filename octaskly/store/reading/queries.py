"""Queries for single tasks, arrays, counters, notifications and log entries."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import chain, islice
from typing import Final

from msgspec import json
from msgspec.structs import replace

from octaskly.core.log.facts import Entry, Finished, PackedEntry
from octaskly.core.log.merge import TaskRecord, with_array_cancelled
from octaskly.core.log.range_facts import MEMBER_BYTES
from octaskly.core.model.arrays import array_of, split_member_id, split_member_name
from octaskly.core.model.hlc import hlc_of, wall_ms_of
from octaskly.core.model.ids import (
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
)
from octaskly.core.model.task_options import (
    BlobRef,
    InputTree,
    TaskOptions,
)
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import PackedMessage
from octaskly.ports.events import EndedMember
from octaskly.ports.files import KeptOutput
from octaskly.ports.store import (
    NeededFiles,
    Packer,
    PendingNotifications,
    StoreStats,
    TaskParts,
)
from octaskly.store.reading import pages, queue
from octaskly.store.tables import arrays, member_ranges, rows, task_name_collisions
from octaskly.store.tables.floors import (
    IS_PENDING,
    read_meta_numbers,
    read_retired_digest,
    read_retired_end,
)
from octaskly.store.tables.log_rows import StoredEntry, read_entries
from octaskly.store.tables.node_state import read_vector

NOTIFICATIONS_MAX = 20_000  #: pending notifications read at once
ENDED_BYTES = 2 << 20  #: outputs of the members in one reply, beyond those of the last
CLOCK_ERROR_MS: Final = 60_000
"""By how much the clock of a node may be ahead of those that wrote the log."""
ENTRY_OVERHEAD_BYTES = 64  #: size of an entry in a frame, without body and outputs
_INPUTS_AT: Final = ", ".join(  #: paths of inputs in the column
    f"'$[{TaskOptions.__struct_fields__.index(name)}]'"
    for name in ("tree", "stdin_file", "outputs_of")
)
_NO_INPUTS: Final = {"[null,null,null]", "[null,null,[]]"}
_inputs_decoder = json.Decoder(
    tuple[InputTree | None, BlobRef | None, list[str] | None]
)


def read_task(
    db: sqlite3.Connection, ref: str, parts: TaskParts = TaskParts.ALL
) -> TaskRecord | None:
    """Return the task with this id or name.

    Its environment may have a megabyte, whose decoding holds the GIL for milliseconds.
    """
    has_output = parts in (TaskParts.OUTPUT, TaskParts.ALL)
    has_spec = parts in (TaskParts.SPEC, TaskParts.ALL)
    columns = rows.SHOWN_COLUMNS if has_spec else rows.BRIEF_COLUMNS
    found = member_ranges.read_rows_by_id(db, columns, [TaskId(ref)])
    other = None if found else task_name_collisions.id_of(db, ref)
    if other is not None:
        found = member_ranges.read_rows_by_id(db, columns, [other])
    for record, outputs in arrays.records_from(db, found, columns):
        (numbered,) = task_name_collisions.with_occurrences(db, (record,))
        return with_outputs(db, numbered, outputs) if has_output else numbered
    return _member_without_row(db, ref, columns)


def _member_without_row(
    db: sqlite3.Connection, ref: str, columns: str
) -> TaskRecord | None:
    """Return a member of an array that has no row yet."""
    places = [split_member_id(TaskId(ref))]
    name, mark, occurrence = ref.partition("~")
    if place := split_member_name(name):
        # A client may choose a name that looks like a generated id.
        array_id = task_name_collisions.id_of(db, f"{place[0]}{mark}{occurrence}")
        places += [] if array_id is None else [(array_id, place[1])]
    for array_id, number in filter(None, places):
        if array := arrays.read_arrays(db, (array_id,), columns).get(array_id):
            built = arrays.build_member_record(array, number)
            found = () if built is None else (built,)
            return next(iter(task_name_collisions.with_occurrences(db, found)), None)
    return None


def with_outputs(
    db: sqlite3.Connection, record: TaskRecord, outputs: Mapping[AttemptId, int]
) -> TaskRecord:
    """Return a record with the outputs of its attempts."""
    if not outputs:
        return record
    attempts = tuple(
        rows.with_output(attempt, rows.read_output(db, outputs[attempt.id]))
        if attempt.id in outputs
        else attempt
        for attempt in record.attempts
    )
    return replace(record, attempts=attempts)


def read_tasks_by_name(
    db: sqlite3.Connection, names: Sequence[str], *, is_brief: bool = False
) -> dict[str, tuple[TaskRecord, ...]]:
    """Return the tasks with each name, without outputs. Unused names are left out.

    With `is_brief`, the tasks have only what a list shows.
    """
    ids = task_name_collisions.ids_of(db, names)
    columns = rows.LIST_COLUMNS if is_brief else rows.TASK_COLUMNS
    build = arrays.listed_records if is_brief else arrays.records_without_outputs
    rows_of_all = member_ranges.read_rows_by_id(
        db, columns, [*chain.from_iterable(ids.values())]
    )
    records = {record.id: record for record in build(db, rows_of_all)}
    found_by_name = {
        name: tuple(
            replace(records[id_], occurrence=n)
            for n, id_ in enumerate(same, 1)
            if id_ in records  # Members without a row have not begun.
        )
        for name, same in ids.items()
    }
    return {name: found for name, found in found_by_name.items() if found}


def streams_of_tasks(
    db: sqlite3.Connection, ids: Sequence[TaskId]
) -> frozenset[StreamId]:
    """Return the streams in which these tasks were accepted."""
    select = "SELECT DISTINCT stream FROM tasks WHERE id"
    return frozenset(stream for (stream,) in rows.select_in(db, select, ids))


def find_forgotten(
    db: sqlite3.Connection, kept: Sequence[KeptOutput]
) -> tuple[list[int], int]:
    """Find outputs of tasks that the floor has deleted.

    That a task is unknown is not enough: it may have been accepted in the other part of
    a network split that no node here remembers. So the assignment of the attempt must
    be known, and the attempt must have ended before the floor, as for a late result.

    Returns:
        Their indices, and the wall-clock milliseconds up to which an end counts.
    """
    horizon = read_meta_numbers(db).get("horizon", 0)
    before_ms = wall_ms_of(horizon) + CLOCK_ERROR_MS if horizon else 0
    found = [
        index
        for index, output in enumerate(kept)
        if output.ended_ms <= before_ms
        and is_assignment_known(db, output.attempt)
        and not _is_task_known(db, output.task)
    ]
    return found, before_ms


def is_assignment_known(db: sqlite3.Connection, attempt: AttemptId) -> bool:
    """Return True if this node holds, or has held, the entry that assigned an attempt.

    The node may know only earlier entries of the stream, which another node wrote on.
    """
    found = db.execute(
        "SELECT 1 FROM streams WHERE stream = ? AND last_seq >= ?",
        (attempt.stream, attempt.seq),
    ).fetchone()
    return found is not None or read_retired_end(db, attempt.stream) >= attempt.seq


def _is_task_known(db: sqlite3.Connection, task: TaskId) -> bool:
    """Return True if the log has a task, its array, or facts that wait for it."""
    array = array_of(task) or task
    found = db.execute(
        "SELECT 1 FROM tasks WHERE id IN (?1, ?2)"
        " UNION ALL SELECT 1 FROM pending_entries WHERE task_id IN (?1, ?2) LIMIT 1",
        (task, array),
    ).fetchone()
    return found is not None


def read_needed_files(
    db: sqlite3.Connection, state: TaskState, after: int, limit: int
) -> tuple[NeededFiles, int]:
    """Return the files that the next tasks in a state need, and where to go on.

    Args:
        db: The database.
        state: Queued or running.
        after: Where the last answer said to go on; 0 to begin.
        limit: How many tasks to look at.

    Returns:
        The files, and the next value of `after`; 0 at the end.
    """
    found = db.execute(
        f"SELECT key, json_extract(options, {_INPUTS_AT})"  # noqa: S608
        " FROM tasks INDEXED BY tasks_with_options"  # Most tasks have none.
        " WHERE options IS NOT NULL AND state < 2 AND state = ? AND key > ?"
        " ORDER BY key LIMIT ?",
        (rows.NUMBER_OF[state], after, limit),
    ).fetchall()
    trees: set[InputTree] = set()
    stdin_files: set[BlobRef] = set()
    outputs_of: set[str] = set()
    for _, inputs in found:
        if inputs is None or inputs in _NO_INPUTS:
            continue
        tree, stdin_file, parents = _inputs_decoder.decode(inputs)
        if tree is not None:
            trees.add(replace(tree, folders=()))
        if stdin_file is not None:
            stdin_files.add(stdin_file)
        outputs_of.update(parents or ())
    needed = NeededFiles(
        frozenset(trees), frozenset(stdin_files), frozenset(outputs_of)
    )
    return needed, found[-1][0] if len(found) == limit else 0


def incomplete_member_ranges(
    db: sqlite3.Connection, array: TaskId, limit: int
) -> tuple[tuple[int, int], ...]:
    """Return the positions of members that are not completed, as ranges in order.

    A range includes its last position.
    """
    members = arrays.read_members_of(db, array)
    if members is None:
        return ()
    state = rows.NUMBER_OF[TaskState.COMPLETED]
    keys = members.first, members.last
    stored = db.execute(
        "SELECT key FROM tasks INDEXED BY tasks_state"
        " WHERE state = ? AND key BETWEEN ? AND ? ORDER BY key",
        (state, *keys),
    )
    built = member_ranges.rows_between(db, *keys)
    completed = merge(
        (key for (key,) in stored), (m.row[0] for m in built if m.state == state)
    )
    runs: list[tuple[int, int]] = []
    start = members.first
    for key in chain(completed, [members.last + 1]):
        if start < key and len(runs) < limit:
            runs.append((start - members.first, key - 1 - members.first))
        start = key + 1
    return tuple(runs)


def read_ended_members(
    db: sqlite3.Connection, array: TaskId, first: int, last: int, limit: int
) -> tuple[EndedMember, ...]:
    """Return ended members at positions `first` to `last`, with outputs.

    There may be fewer than `limit`, but at least one, if their outputs are long. The
    members have no envelope: it would take longer to read than everything else.
    """
    members = arrays.read_members_of(db, array)
    if members is None:
        return ()
    keys = members.first + first, members.first + min(last, members.total - 1)
    running = rows.NUMBER_OF[TaskState.RUNNING]
    stored = db.execute(
        f"SELECT {rows.SHOWN_COLUMNS} FROM tasks"  # noqa: S608
        " WHERE key BETWEEN ? AND ? AND state > ? ORDER BY key LIMIT ?",
        (*keys, running, limit),
    )
    in_ranges = member_ranges.rows_between(db, *keys)
    built = (each for each in in_ranges if each.state > running)
    found = list(islice(member_ranges.merged_by_key(stored, built), limit))
    records = rows.records_from(found)
    (cancelled_by,) = db.execute(
        "SELECT cancelled_by FROM tasks WHERE id = ?", (array,)
    ).fetchone()
    ended: list[EndedMember] = []
    left = ENDED_BYTES
    for row, (record, outputs) in zip(found, records, strict=True):
        if left <= 0:
            break
        whole = with_outputs(db, record, outputs)
        left -= _output_bytes(whole)
        shown = with_array_cancelled(whole, cancelled_by)
        ended.append((row[0] - members.first, shown))
    return tuple(ended)


def _output_bytes(record: TaskRecord) -> int:
    """Return the size of the outputs of all attempts."""
    ends = (attempt.outcome for attempt in record.attempts)
    return sum(len(end.stdout) + len(end.stderr) for end in ends if end is not None)


def read_stats(db: sqlite3.Connection) -> StoreStats:
    """Return the counters of the tables."""
    found = dict.fromkeys(rows.STATES, 0)
    for number, n in db.execute(
        "SELECT state, sum(n) FROM counts WHERE kind != ? GROUP BY state",
        (arrays.ARRAY,),
    ):
        found[rows.STATES[number]] = n
    (entries,) = db.execute(
        "SELECT sum(last_seq - max(snapshot_seq, floor_seq)) FROM streams"
    ).fetchone()
    return StoreStats(
        counts=found,
        disk_bytes=0,
        sequence=rows.sequence_max(db),
        oldest_ms=queue.oldest_ms(db),
        log_entries=entries or 0,
    )


def count_queued_tasks(db: sqlite3.Connection) -> int:
    """Return the number of queued tasks, array members included."""
    (queued,) = db.execute(
        "SELECT sum(n) FROM counts WHERE kind != ? AND state = ?",
        (arrays.ARRAY, rows.NUMBER_OF[TaskState.QUEUED]),
    ).fetchone()
    return queued or 0


FAILURES_COUNTED_MAX: Final = 10_000


def count_failures(db: sqlite3.Connection, since_ms: int) -> int:
    """Return the number of tasks and members that failed since a wall-clock time.

    It is at most `FAILURES_COUNTED_MAX`.
    """
    (failed,) = db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM tasks INDEXED BY tasks_failed"
        " WHERE state = 3 AND last_change_hlc >= ?"
        " AND NOT EXISTS (SELECT 1 FROM arrays WHERE arrays.task = tasks.key) LIMIT ?)",
        (hlc_of(since_ms), FAILURES_COUNTED_MAX),
    ).fetchone()
    return int(failed)


def count_webhooks(db: sqlite3.Connection, submitter: str) -> int:
    """Return the number of a subject's tasks whose notification is still to be sent.

    A task counts from its submission.
    """
    (count,) = db.execute(
        "SELECT count(*) FROM tasks INDEXED BY tasks_webhooks"
        " WHERE notify = 1 AND submitter = ?",
        (submitter,),
    ).fetchone()
    return int(count)


def read_pending_notifications(
    db: sqlite3.Connection, known: frozenset[int], limit: int
) -> PendingNotifications:
    """Return the keys of pending notifications, and `limit` tasks not in `known`."""
    keys = frozenset(
        key
        for (key,) in db.execute(
            "SELECT key FROM tasks INDEXED BY tasks_notify"
            " WHERE notify = 1 AND state > 1 ORDER BY key LIMIT ?",
            (NOTIFICATIONS_MAX,),
        )
    )
    fresh = sorted(keys - known)[:limit]
    records = pages.read_listed(db, fresh)
    return PendingNotifications(keys, tuple(zip(fresh, records, strict=True)))


def pack_entries_beyond(
    db: sqlite3.Connection,
    packer: Packer,
    vector: Mapping[StreamId, int],
    bytes_max: int,
) -> PackedMessage:
    """Return `Entries` beyond `vector`, oldest epoch first; at least one if any exist.

    A stream is left out if its next entry for the peer was compacted: the peer needs a
    snapshot.
    """
    stored: list[PackedEntry] = []
    epochs: list[tuple[StreamId, Epoch]] = []
    left = max(1, bytes_max)  # An empty reply would make the peer ask forever.
    more = False
    streams = db.execute(
        "SELECT stream, term, node, last_seq, max(snapshot_seq, floor_seq) FROM streams"
        " ORDER BY term, node, stream"
    ).fetchall()
    for stream, term, node, have, start in streams:
        seen = vector.get(stream, 0)
        if have <= seen or seen < start:
            continue
        if left <= 0:
            more = True
            break
        epochs.append((StreamId(stream), Epoch(term, NodeId(node))))
        for entry in read_entries(db, stream, seen):
            if left <= 0:
                more = True
                break
            whole = _with_output(db, packer, entry)
            members_bytes = MEMBER_BYTES * entry.facts if entry.facts > 1 else 0
            left -= max(len(whole[3]), members_bytes) + ENTRY_OVERHEAD_BYTES
            stored.append(whole)
    return packer.pack_entries(
        stored, epochs, read_vector(db), more=more, retired=read_retired_digest(db)
    )


def read_pending_entries(
    db: sqlite3.Connection, packer: Packer, after: tuple[StreamId, int]
) -> Iterator[tuple[Entry, int]]:
    """Yield the pending entries after a key, each with its size in bytes."""
    for row in db.execute(
        "SELECT stream, seq, hlc, body, output FROM pending_entries"  # noqa: S608
        f" WHERE (stream, seq) > (?, ?) AND {IS_PENDING} ORDER BY stream, seq",
        after,
    ):
        packed = _with_output(db, packer, StoredEntry(*row))
        yield packer.unpack_entry(*packed), len(packed[3]) + ENTRY_OVERHEAD_BYTES


def _with_output(
    db: sqlite3.Connection, packer: Packer, stored: StoredEntry
) -> PackedEntry:
    """Return an entry with its output, which few entries have."""
    kept = None if stored.output is None else rows.find_output(db, stored.output)
    if kept is None:
        return stored.packed
    fact = packer.unpack_entry(*stored.packed).fact
    assert isinstance(fact, Finished), "nothing else has an output"
    outcome = replace(fact.outcome, stdout=kept[0], stderr=kept[1])
    body = packer.pack(replace(fact, outcome=outcome))
    return stored.stream, stored.seq, stored.hlc, body
