"""Rows of the log: which entries share one, and what is read from any position."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import get_args

import pytest
from msgspec.structs import replace

from octaskly.core.effects import Append
from octaskly.core.log.facts import (
    Entry,
    Fact,
    Finished,
    Floor,
    Recorded,
    StreamFloor,
    Submitted,
)
from octaskly.core.log.mesh_records import AUDIT
from octaskly.core.model.hlc import HLC_EPOCH_MS, hlc_of
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import TaskOptions
from octaskly.mesh.wire import WirePacker
from octaskly.store.tables import log_rows
from octaskly.store.tables import rows as rows_
from octaskly.store.tables.log_rows import (
    LARGE_BYTES,
    ROW_BYTES_MAX,
    StoredEntry,
    find_last_until,
    read_entries,
    write_entries,
)
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit
from tests.unit.core.protocol.test_field_types import FACTS

S, OTHER = kit.STREAM, kit.OTHER
COMMITS = ((1, 2, 3), (4,), (5, 6, 7, 8))  #: the entries of each


@pytest.fixture
def db() -> Iterable[sqlite3.Connection]:
    made = kit.database()
    yield made
    made.close()


def entry(seq: int, *, size: int = 1, output: int | None = None) -> StoredEntry:
    """An entry whose timestamp is ten times its number."""
    return StoredEntry(S, seq, 10 * seq, b"%d" % seq * size, output)


def commit(db: sqlite3.Connection, entries: Iterable[StoredEntry]) -> None:
    def with_task(each: StoredEntry) -> StoredEntry:
        is_large = len(each.body) > LARGE_BYTES
        return replace(each, task=kit.task_id(each.seq)) if is_large else each

    write_entries(db, map(with_task, entries))


def rows(db: sqlite3.Connection) -> list[tuple[int, int]]:
    """Return the first entry and the number of entries of each row."""
    return db.execute("SELECT seq, n FROM log ORDER BY stream, seq").fetchall()


def seqs(entries: Iterable[StoredEntry]) -> list[int]:
    return [each.seq for each in entries]


@pytest.fixture
def filled(db: sqlite3.Connection) -> sqlite3.Connection:
    for some in COMMITS:
        commit(db, map(entry, some))
    return db


def test_the_entries_of_a_commit_and_a_stream_share_a_row(
    db: sqlite3.Connection,
) -> None:
    """They come back as they were, although the streams were mixed."""
    mine = [entry(1), entry(2, output=9), entry(3)]
    theirs = [replace(each, stream=OTHER) for each in mine]
    mixed = [each for pair in zip(mine, theirs, strict=True) for each in pair]

    commit(db, mixed)

    assert rows(db) == [(1, 3), (1, 3)]
    assert list(read_entries(db, S, 0)) == mine
    assert list(read_entries(db, OTHER, 0)) == theirs


def test_a_gap_starts_another_row(db: sqlite3.Connection) -> None:
    """A floor in the commit may void entries that were never here."""
    commit(db, [entry(1), entry(5), entry(6)])

    assert rows(db) == [(1, 1), (5, 2)]
    assert seqs(read_entries(db, S, 0)) == [1, 5, 6]


def test_a_row_has_a_bounded_size(db: sqlite3.Connection) -> None:
    """A reader that needs one entry reads the whole row."""
    commit(db, [entry(seq, size=LARGE_BYTES // 4) for seq in range(1, 100)])

    sizes = [size for (size,) in db.execute("SELECT length(body) FROM log")]

    assert len(sizes) > 2
    assert max(sizes) < ROW_BYTES_MAX + LARGE_BYTES
    assert seqs(read_entries(db, S, 0)) == list(range(1, 100))


def test_a_large_fact_has_a_row_to_itself(db: sqlite3.Connection) -> None:
    """Its task finds it, to free the stdin in it."""
    large = entry(2, size=LARGE_BYTES + 1)

    commit(db, [entry(1), large, entry(3), entry(4)])

    assert rows(db) == [(1, 1), (2, 1), (3, 2)]
    assert log_rows.read_large_entries(db, kit.task_id(2)) == [large]
    assert log_rows.read_large_entries(db, kit.task_id(1)) == []

    log_rows.replace_large_body(db, large, b"less")

    assert next(iter(read_entries(db, S, 1))) == replace(large, body=b"less")
    assert log_rows.read_large_entries(db, kit.task_id(2)) == []


@pytest.mark.parametrize("after", range(10))
def test_reading_starts_at_any_position(filled: sqlite3.Connection, after: int) -> None:
    """A peer may hold a part of what one commit wrote here."""
    expected = list(range(after + 1, 9))

    assert seqs(read_entries(filled, S, after)) == expected
    backwards = read_entries(filled, S, after, is_last_first=True)
    assert seqs(backwards) == expected[::-1]
    assert seqs(read_entries(filled, OTHER, after)) == []


@pytest.mark.parametrize("until", range(10))
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_deletion_cuts_a_row_at_the_floor(
    filled: sqlite3.Connection, until: int, limit: int
) -> None:
    """No void entry is left, and no other one is lost."""
    gone: list[int] = []
    while some := log_rows.delete_entries(filled, S, until, limit):
        gone += seqs(some)

    assert gone == list(range(1, min(until, 8) + 1))
    assert seqs(read_entries(filled, S, 0)) == list(range(until + 1, 9))
    void = filled.execute("SELECT 1 FROM log WHERE seq <= ?", (until,)).fetchall()
    assert void == []


@pytest.mark.parametrize("deleted", [0, 2, 4, 5])
@pytest.mark.parametrize("high", [5, 6, 8])
def test_the_last_entry_up_to_a_time_is_found(
    filled: sqlite3.Connection, deleted: int, high: int
) -> None:
    """Compaction and the change feed ask for it in any part of the stream."""
    log_rows.delete_entries(filled, S, deleted, 100)

    for hlc in range(95):
        last = max(deleted, min(high, hlc // 10))
        at = 10 * last if last > deleted else 0
        assert find_last_until(filled, S, hlc, deleted, high) == (last, at)


def test_a_stream_without_entries_has_no_last_one(db: sqlite3.Connection) -> None:
    """All that it had came as rows of a snapshot."""
    assert find_last_until(db, S, 1000, 3, 8) == (3, 0)


class Log:
    """A log as an agent writes it, fact by fact."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.writer = TableWriter(db, WirePacker(), kit.HandClock())

    def add(self, facts: Sequence[Fact], *, after: int = 0) -> None:
        start = hlc_of(HLC_EPOCH_MS + 1000)
        entries = [
            Entry(S, entry.seq, start + entry.seq, entry.fact)
            for entry in kit.entries(facts, after=after)
        ]
        self.writer.append_entries([Append(1, tuple(entries), kit.EPOCHS)])


def without_output(fact: Fact) -> Fact:
    """Return a fact as the log has it."""
    if isinstance(fact, Finished):
        return replace(fact, outcome=rows_.without_output(fact.outcome))
    return fact


def about(fact: Fact) -> str | None:
    """Return what the view shows of a fact."""
    if isinstance(fact, Recorded):
        return fact.kind
    return None if isinstance(fact, Floor) else fact.task


def test_a_view_has_a_line_for_each_fact(db: sqlite3.Connection) -> None:
    """People read the log with `sqlite3`; an id of over 31 bytes has another header."""
    long_id = TaskId("x" * 64 + "~0123456789abcdef")
    named = kit.submitted(1, id=long_id)
    facts = [*(fact for fact in FACTS if not isinstance(fact, Floor)), named]
    assert {type(fact) for fact in facts} == {*get_args(Fact)} - {Floor}

    Log(db).add(facts)

    shown = db.execute("SELECT * FROM facts ORDER BY seq").fetchall()
    packed = [WirePacker().pack(without_output(fact)) for fact in facts]
    start = hlc_of(HLC_EPOCH_MS + 1000)
    seqs = [entry.seq for entry in kit.entries(facts)]
    assert shown == [
        (
            *(S, seq, start + seq, "2020-01-01T00:00:01.000Z"),
            *(type(fact).__name__, about(fact), body),
        )
        for seq, fact, body in zip(seqs, facts, packed, strict=True)
    ]


def test_a_view_shows_a_floor(db: sqlite3.Connection) -> None:
    """It is about no task."""
    Log(db).add([kit.submitted(1), Floor(0, ())])

    shown = db.execute("SELECT seq, fact, about FROM facts").fetchall()

    assert shown == [(1, "Submitted", kit.task_id(1)), (2, "Floor", None)]


def test_a_floor_within_a_commit_leaves_only_later_facts(
    db: sqlite3.Connection,
) -> None:
    """The purge cuts the row that the floor splits."""
    log = Log(db)
    log.add([kit.submitted(1), kit.cancelled(1), kit.submitted(2), kit.cancelled(2)])
    mark = StreamFloor(S, 3, kit.EPOCHS[0][1])
    log.add([Floor(1, (mark,)), kit.submitted(3)], after=4)

    while not log.writer.is_purged:
        log.writer.purge_some()

    left = db.execute("SELECT seq, fact FROM facts ORDER BY seq").fetchall()
    assert left == [(4, "TaskCancelled"), (5, "Floor"), (6, "Submitted")]


def test_a_stream_knows_its_last_fact_about_a_task(db: sqlite3.Connection) -> None:
    """Streams with nothing but records after the floor need not be kept."""
    log, record = Log(db), Recorded(AUDIT, "k", b"", 0, 1)
    log.add([record, kit.submitted(1), record, kit.cancelled(1), record])

    log.add([record], after=5)

    assert db.execute("SELECT last_seq, task_seq FROM streams").fetchall() == [
        (6, 4),
        (0, 0),
    ]


def test_stdin_in_a_commit_with_other_facts_is_freed(db: sqlite3.Connection) -> None:
    """The other facts of the commit stay as they are."""
    log, stdin = Log(db), b"x" * 5000
    asked = kit.submitted(2, options=TaskOptions(stdin=stdin))
    log.add([kit.submitted(1), asked, kit.submitted(3), kit.finished(2)])

    while not log.writer.stdin_freeing.is_done:
        log.writer.stdin_freeing.free_some()

    facts = [
        WirePacker().unpack_entry(*stored.packed).fact
        for stored in read_entries(db, S, 0)
    ]
    assert [fact.task for fact in facts] == [kit.task_id(n) for n in (1, 2, 3, 2)]
    freed = facts[1]
    assert isinstance(freed, Submitted)
    assert freed.spec.options is not None
    assert freed.spec.options.stdin != stdin
    assert rows(db) == [(1, 1), (2, 1), (3, 2)]
