"""Change feed and recent attempts, read across streams in timestamp order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from itertools import islice
from typing import Final

from octaskly.core.change_feed import EndedTask, FeedPage, StreamExtent
from octaskly.core.log.facts import Entry
from octaskly.core.log.merge import TaskRecord
from octaskly.core.log.range_facts import member_entries
from octaskly.core.model.arrays import array_of
from octaskly.core.model.hlc import hlc_of, wall_ms_of
from octaskly.core.model.ids import Epoch, NodeId, StreamId, TaskId
from octaskly.ports.events import AttemptWithTask, RecentAttempts
from octaskly.ports.store import Packer
from octaskly.store.reading import pages
from octaskly.store.tables import (
    arrays,
    log_rows,
    member_ranges,
    rows,
    task_name_collisions,
)
from octaskly.store.tables.floors import read_retired_digest, read_retired_end
from octaskly.store.tables.log_rows import StoredEntry, find_last_until

PART_BYTES_MAX: Final = 4 << 20  #: approximate size of the entries of one page

# The change feed shows no large columns.
_OUTLINE_COLUMNS: Final = rows.TASK_COLUMNS.replace(" command,", " '',").replace(
    "inputs, outputs, options, stdin, items, env",
    "NULL, NULL, (SELECT tasks.options FROM arrays WHERE arrays.task = tasks.key),"
    " NULL, NULL, NULL",
)
_STREAMS: Final = (
    "SELECT stream, term, node, last_seq, max(snapshot_seq, floor_seq) FROM streams"
)


def stream_extents_at(
    db: sqlite3.Connection, hlc: int
) -> tuple[int, tuple[StreamExtent, ...], int]:
    """Return the latest timestamp in the log up to `hlc`, and the end of each stream.

    If all entries of a stream up to `hlc` are deleted, its end is the last deleted one.
    Retired streams are left out; the last item is their digest.
    """
    latest, found = 0, []
    for stream, term, node, have, start in db.execute(_STREAMS).fetchall():
        seq, at = find_last_until(db, stream, hlc, min(start, have), have)
        latest = max(latest, at)
        epoch = Epoch(term, NodeId(node))
        found.append(StreamExtent(StreamId(stream), epoch, seq, min(start, have)))
    return latest, tuple(found), read_retired_digest(db)


def read_feed_page(
    db: sqlite3.Connection, packer: Packer, vector: Mapping[StreamId, int], limit: int
) -> FeedPage:
    """Return at most `limit` entries beyond `vector`, oldest first.

    Compacted entries and entries about deleted tasks are left out.
    """
    reached: dict[StreamId, int] = {}
    parts = []
    is_whole = True
    streams = db.execute(_STREAMS).fetchall()
    for read in vector.keys() - {row[0] for row in streams}:
        if (end := read_retired_end(db, read)) > vector[read]:
            is_whole = False
            reached[read] = end
    for stream, _, _, have, start in streams:
        seen = vector.get(stream, 0)
        if have <= seen:
            continue
        if seen < start:
            is_whole = False
            reached[stream] = seen = start
        parts.append(_in_order(packer, log_rows.read_entries(db, stream, seen), seen))
    entries: list[Entry] = []
    has_more, left = False, PART_BYTES_MAX
    for _, stream, seq, stored in merge(*parts):
        if len(entries) == limit or left <= 0:
            has_more = True
            break
        if isinstance(stored, StoredEntry):
            left -= len(stored.body)
            stored = packer.unpack_entry(*stored.packed)
        entries.append(stored)
        reached[stream] = seq
    ids = {entry.fact.task for entry in entries}
    records = _records(db, ids | {array_of(task) or task for task in ids})
    items = tuple(
        (entry, records[entry.fact.task])
        for entry in entries
        if entry.fact.task in records
    )
    ended = _ended_tasks(db, records)
    return FeedPage(items, ended, tuple(sorted(reached.items())), has_more, is_whole)


def _in_order(
    packer: Packer,
    stored: Iterable[StoredEntry],
    after: int,
    *,
    is_last_first: bool = False,
) -> Iterator[tuple[int, StreamId, int, StoredEntry | Entry]]:
    """Yield entries of a stream after `after` with what they are compared by.

    Those of members of arrays that have a fact together are unpacked.
    """
    for each in stored:
        if each.facts == 1:
            yield each.hlc, each.stream, each.seq, each
            continue
        entries = list(member_entries([packer.unpack_entry(*each.packed)]))
        for entry in reversed(entries) if is_last_first else entries:
            if entry.seq > after:
                yield entry.hlc, entry.stream, entry.seq, entry


def _records(db: sqlite3.Connection, ids: Iterable[TaskId]) -> dict[TaskId, TaskRecord]:
    found = member_ranges.read_rows_by_id(db, _OUTLINE_COLUMNS, sorted(ids))
    records = task_name_collisions.with_occurrences(
        db, arrays.records_without_outputs(db, found)
    )
    return {record.id: record for record in records}


def _ended_tasks(
    db: sqlite3.Connection, records: Mapping[TaskId, TaskRecord]
) -> dict[TaskId, EndedTask]:
    """Return the tasks and arrays among these that have ended.

    After a cancellation by force, an array has ended once its processes have exited.
    """
    final = [task for task, record in records.items() if record.state.is_final]
    ended = {}
    for task, hlc, notify in rows.select_in(
        db,
        "SELECT id, last_change_hlc, notify FROM tasks"
        " LEFT JOIN arrays ON arrays.task = tasks.key"
        " WHERE (cancelled_by IS NULL OR ifnull(live, 0) = 0) AND id",
        final,
    ):
        is_notified = notify == rows.NOTIFIED
        ended[task] = EndedTask(records[task], hlc, is_notified)
    for each in member_ranges.rows_by_id(db, (t for t in final if t not in ended)):
        member = records[each.row[1]]
        ended[member.id] = EndedTask(member, each.last_change_hlc, is_notified=False)
    return ended


SCANNED_TASKS_MAX: Final = 8000  #: entries examined at the end of each stream


def read_recent_attempts(
    db: sqlite3.Connection, packer: Packer, since_ms: int, limit: int
) -> RecentAttempts:
    """Return running attempts, and those ended since `since_ms`, latest end first.

    Each list has at most `limit` items. There is no index by time, as it would slow
    down each attempt. Ended attempts are found by a backward scan of the log.
    """
    stored = db.execute(
        "SELECT key, last_change_hlc FROM tasks INDEXED BY tasks_state"
        " WHERE state = 1 AND attempts NOT NULL ORDER BY key LIMIT ?",
        (limit,),
    )
    built = member_ranges.live_rows_after(db, 0)
    in_ranges = ((each.row[0], each.last_change_hlc) for each in built)
    live = dict(islice(merge(stored, in_ranges), limit))
    running = [
        AttemptWithTask(record, attempt, wall_ms_of(live[key]))
        for key, record in zip(live, pages.read_listed(db, live), strict=True)
        for attempt in record.attempts
        if attempt.state.is_live
    ]
    touched = _recently_changed(db, packer, since_ms, limit)
    ended = [
        (attempt.outcome.ended_ms, attempt.id, AttemptWithTask(record, attempt))
        for record in pages.read_listed(db, touched)
        for attempt in record.attempts
        if attempt.outcome is not None and attempt.outcome.ended_ms is not None
        if attempt.outcome.ended_ms >= since_ms
    ]
    ended.sort(key=lambda each: each[:2], reverse=True)
    return RecentAttempts(
        tuple(running),
        tuple(run for _, _, run in ended[:limit]),
        is_truncated=len(touched) == limit or len(ended) > limit,
    )


def _recently_changed(
    db: sqlite3.Connection, packer: Packer, since_ms: int, limit: int
) -> list[int]:
    """Return the keys of tasks with attempts and with recent entries in the log."""
    parts = []
    _, found, _ = stream_extents_at(db, hlc_of(since_ms))
    ends = dict(db.execute("SELECT stream, last_seq FROM streams"))
    for stream, _, seq, start in found:
        low = max(seq, start, ends[stream] - SCANNED_TASKS_MAX)
        entries = log_rows.read_entries(db, stream, low, is_last_first=True)
        parts.append(_in_order(packer, entries, low, is_last_first=True))
    keys: list[int] = []
    seen: set[TaskId] = set()
    for *_, stored in merge(*parts, reverse=True):
        if isinstance(stored, StoredEntry):
            stored = packer.unpack_entry(*stored.packed)
        task = stored.fact.task
        if task in seen:
            continue
        seen.add(task)
        of_task = db.execute(
            "SELECT key FROM tasks WHERE id = ? AND attempts NOT NULL", (task,)
        ).fetchall()
        keys += (key for (key,) in of_task)
        if not of_task:
            keys += (each.row[0] for each in member_ranges.rows_by_id(db, [task]))
        if len(keys) == limit:
            break
    return keys
