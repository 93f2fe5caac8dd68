"""Rows of the log: each holds the facts that one commit added to one stream.

A row is named by its first entry. Its entries have no gaps, so `n` tells the last one.
`hlc` is the timestamp of the last entry. `heads` is a JSON list with an item for each
entry: the offset of its fact in `body`, the difference of its timestamp to `hlc`, and
the id of its output, if any. The view `facts` of the schema reads the same columns.

A fact about several members of an array has a row to itself, too. It takes `n` numbers
and timestamps, and `heads` has one item.

A fact above `LARGE_BYTES` has a row to itself, with the id of its task, because the
stdin in it may be freed later. A floor may pass between two entries of a row; the purge
then writes the rest of the row again. A fact about several members stays whole until
the floor has passed all of its numbers.

Source: docs/decisions/0038-packed-log.md.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

from msgspec import Struct, json

from octaskly.core.log.facts import PackedEntry
from octaskly.core.model.ids import StreamId, TaskId
from octaskly.store.tables import bulk

ROW_BYTES_MAX: Final = 32 << 10  #: of facts; the one that reaches it is the last
LARGE_BYTES: Final = 4096  #: of a fact; a smaller one shares its row

_heads_decoder: Final = json.Decoder(list[tuple[int, ...]])
_NO_ROW: Final[tuple[list[Any], int, int]] = ([], 0, 0)  #: no entry has the number 0


class StoredEntry(Struct, frozen=True, gc=False):
    """An entry with its packed fact."""

    stream: StreamId
    seq: int
    hlc: int
    body: bytes
    output: int | None = None  #: id of the output that was taken out
    facts: int = 1  #: number of facts for which the fact stands
    task: TaskId | None = None  #: of a large fact that is to be written

    @property
    def last_seq(self) -> int:
        """Its last sequence number."""
        return self.seq + self.facts - 1

    @property
    def packed(self) -> PackedEntry:
        """The entry without the id of its output."""
        return self.stream, self.seq, self.hlc, self.body


def write_entries(db: sqlite3.Connection, entries: Iterable[StoredEntry]) -> None:
    """Write the entries of one commit as rows, in a transaction.

    The entries of each stream are in their order. They are split at gaps, at facts that
    have a row to themselves, and by size.
    """
    rows: list[list[StoredEntry]] = []
    # By stream: the last row, its next number, and the size of its facts.
    open_rows: dict[StreamId, tuple[list[StoredEntry], int, int]] = {}
    for entry in entries:
        stream, seq, facts, size = entry.stream, entry.seq, entry.facts, len(entry.body)
        if size > LARGE_BYTES or facts > 1:
            open_rows.pop(stream, None)
            rows.append([entry])
            continue
        row, next_seq, row_bytes = open_rows.get(stream, _NO_ROW)
        if seq == next_seq and row_bytes < ROW_BYTES_MAX:
            row.append(entry)
        else:
            row, row_bytes = [entry], 0
            rows.append(row)
        open_rows[stream] = row, seq + 1, row_bytes + size
    bulk.LOG_INSERT.execute(db, [_row_of(row) for row in rows])


def read_entries(
    db: sqlite3.Connection, stream: StreamId, after: int, *, is_last_first: bool = False
) -> Iterator[StoredEntry]:
    """Yield the entries of a stream with numbers after `after`, in order or backwards.

    A fact about several members is yielded if any of its numbers is after `after`.
    """
    for row in db.execute(
        "SELECT seq, n, hlc, heads, body FROM log WHERE stream = ? AND seq >= ifnull("  # noqa: S608
        "(SELECT max(seq) FROM log WHERE stream = ? AND seq <= ?), 0)"
        f" ORDER BY seq {'DESC' if is_last_first else 'ASC'}",
        (stream, stream, after),
    ):
        entries = _entries_of(stream, *row)
        for entry in reversed(entries) if is_last_first else entries:
            if entry.last_seq > after:
                yield entry


def find_last_until(
    db: sqlite3.Connection, stream: StreamId, hlc: int, low: int, high: int
) -> tuple[int, int]:
    """Return the last entry from `low` to `high` up to a timestamp, and its timestamp.

    The log has the entries after `low`, or none of them. The second item is 0 if `low`
    is returned, because it may be deleted.
    """
    at, middle = 0, high  # Usually all entries are up to the timestamp.
    while low < high:
        first, times = _read_times(db, stream, middle)
        known = bisect_right(times, hlc)
        last = min(first + known - 1, high)
        if first + len(times) <= middle:
            high = middle - 1  # The entry is not in the log.
        elif not known:
            high = max(low, first - 1)
        else:
            if last > low:
                low, at = last, times[last - first]
            if known < len(times):
                high = low
        middle = (low + high + 1) // 2
    return low, at


def delete_entries(
    db: sqlite3.Connection, stream: StreamId, until: int, limit: int
) -> list[StoredEntry]:
    """Delete and return the oldest entries of a stream up to `until`.

    Whole rows are read until at least `limit` entries are found. So the last row may
    exceed the limit.
    """
    gone: list[StoredEntry] = []
    rest: list[StoredEntry] = []
    last = 0
    for seq, *row in db.execute(
        "SELECT seq, n, hlc, heads, body FROM log WHERE stream = ? AND seq <= ?"
        " ORDER BY seq LIMIT ?",
        (stream, until, limit),
    ):
        last = seq
        for entry in _entries_of(stream, seq, *row):
            (gone if entry.last_seq <= until else rest).append(entry)
        if len(gone) >= limit:
            break
    db.execute("DELETE FROM log WHERE stream = ? AND seq <= ?", (stream, last))
    if rest:  # Its facts are small, as a large one has a row to itself.
        bulk.LOG_INSERT.execute(db, [_row_of(rest)])
    return gone


def read_large_entries(db: sqlite3.Connection, task: TaskId) -> list[StoredEntry]:
    """Return the entries about a task above `LARGE_BYTES`; each has its own row."""
    found = db.execute(
        "SELECT stream, seq, n, hlc, heads, body FROM log INDEXED BY log_large"
        " WHERE task_id = ?",
        (task,),
    ).fetchall()
    return [entry for row in found for entry in _entries_of(*row)]


def replace_large_body(db: sqlite3.Connection, entry: StoredEntry, body: bytes) -> None:
    """Replace the fact of an entry that has a row to itself by a smaller one."""
    db.execute(
        "UPDATE log SET body = ?, task_id = NULL WHERE stream = ? AND seq = ?",
        (body, entry.stream, entry.seq),
    )


def _row_of(entries: Sequence[StoredEntry]) -> bulk.Row:
    """Return the row of entries without a gap; a large one is alone."""
    first, last = entries[0], entries[-1]
    hlc = last.hlc + last.facts - 1
    bodies = [entry.body for entry in entries]
    starts = accumulate(map(len, bodies), initial=0)
    heads = [
        (start, hlc - entry.hlc)
        if entry.output is None
        else (start, hlc - entry.hlc, entry.output)
        for start, entry in zip(starts, entries, strict=False)
    ]
    text = json.encode(heads).decode()
    count = last.seq + last.facts - first.seq
    return first.stream, first.seq, count, hlc, first.task, text, b"".join(bodies)


def _entries_of(
    stream: StreamId, first: int, n: int, hlc: int, text: str, body: bytes
) -> list[StoredEntry]:
    """Return the entries of a row."""
    heads = _heads_decoder.decode(text)
    if len(heads) < n:
        ((_, before),) = heads
        return [StoredEntry(stream, first, hlc - before, body, facts=n)]
    ends = [*(head[0] for head in heads), len(body)]
    return [
        StoredEntry(
            *(stream, first + index, hlc - before, body[start:end]),
            output=output[0] if output else None,
        )
        for index, ((_, before, *output), (start, end)) in enumerate(
            zip(heads, pairwise(ends), strict=True)
        )
    ]


def _read_times(
    db: sqlite3.Connection, stream: StreamId, seq: int
) -> tuple[int, list[int]]:
    """Return the first entry and all timestamps of the row that may have an entry."""
    found = db.execute(
        "SELECT seq, n, hlc, heads FROM log WHERE stream = ? AND seq <= ?"
        " ORDER BY seq DESC LIMIT 1",
        (stream, seq),
    ).fetchone()
    if found is None:
        return seq, []
    first, n, hlc, text = found
    heads = _heads_decoder.decode(text)
    if len(heads) < n:
        return first, list(range(hlc - n + 1, hlc + 1))
    return first, [hlc - head[1] for head in heads]
