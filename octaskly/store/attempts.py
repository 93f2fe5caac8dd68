"""The attempts of late: what runs where, and what ran, as the log tells of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from heapq import merge
from typing import Final

from octaskly.core.merge import TaskRecord
from octaskly.core.timestamps import hlc_of, wall_ms_of
from octaskly.ports.news import Lately, Run
from octaskly.store import arrays, pages, twins
from octaskly.store.history import reaches

LOOKED_MAX: Final = 8000  #: entries at the end of each stream that are looked at


def lately(db: sqlite3.Connection, since_ms: int, limit: int) -> Lately:
    """Return attempts that run, and those that ended since, the latest first.

    At most `limit` of each. There is no index by time, for which each attempt would
    pay: what ended is found from the end of the log backwards.
    """
    live = dict(
        db.execute(
            "SELECT key, changed FROM tasks INDEXED BY tasks_state"
            " WHERE state = 1 AND tries > 0 ORDER BY key LIMIT ?",
            (limit,),
        ).fetchall()
    )
    running = [
        Run(record, attempt, wall_ms_of(live[key]))
        for key, record in _records(db, live)
        for attempt in record.attempts
        if attempt.state.is_live
    ]
    touched = _touched(db, since_ms, limit)
    ended = [
        (attempt.outcome.ended_ms, attempt.id, Run(record, attempt))
        for _, record in _records(db, touched)
        for attempt in record.attempts
        if attempt.outcome is not None and attempt.outcome.ended_ms is not None
        if attempt.outcome.ended_ms >= since_ms
    ]
    ended.sort(key=lambda each: each[:2], reverse=True)
    return Lately(
        tuple(running),
        tuple(run for _, _, run in ended[:limit]),
        is_cut=len(touched) == limit or len(ended) > limit,
    )


def _touched(db: sqlite3.Connection, since_ms: int, limit: int) -> list[int]:
    """Return the keys of tasks that were tried, and of which the log told lately."""
    parts = []
    _, found = reaches(db, hlc_of(since_ms))
    ends = dict(db.execute("SELECT stream, have_seq FROM streams"))
    for stream, _, seq, start in found:
        low = max(seq, start, ends[stream] - LOOKED_MAX)
        parts.append(
            db.execute(
                "SELECT log.hlc, tasks.key FROM log JOIN tasks ON tasks.id = task_id"
                " WHERE log.stream = ? AND log.seq > ? AND tasks.tries > 0"
                " ORDER BY log.seq DESC",
                (stream, low),
            )
        )
    latest_first = merge(*parts, reverse=True)
    keys: dict[int, None] = {}
    for _, key in latest_first:
        keys[key] = None
        if len(keys) == limit:
            break
    return list(keys)


def _records(
    db: sqlite3.Connection, keys: Iterable[int]
) -> Iterable[tuple[int, TaskRecord]]:
    found = pages.by_keys(db, sorted(keys))
    records = twins.numbered(db, arrays.records(db, found))
    return zip((row[0] for row in found), records, strict=True)
