"""Facts about several members mean the same as the facts of these members.

Nodes may hold either form, or a part of a fact: see `core.log.range_facts`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from octaskly.core.effects import (
    Append,
    LoadLive,
    LoadTasks,
    MergeRows,
    PlanFloor,
    StageRows,
)
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Fact,
    Finished,
    Floor,
    MembersAssigned,
    MembersSucceeded,
    StreamFloor,
    Submitted,
    SuccessTimes,
    TaskCancelled,
)
from octaskly.core.log.range_facts import (
    entry_after,
    member_entries,
    member_facts,
    members_of,
    success_facts,
)
from octaskly.core.log.range_rows import RUNNING
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.arrays import attempt_at, member_id
from octaskly.core.model.ids import AttemptId, TaskId, Vector, task_name
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import (
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.protocol.messages import Entries, Snapshot, SnapshotCursor
from octaskly.core.protocol.validity import is_valid_fact
from octaskly.ports.store import TaskQuery
from octaskly.store.reading import change_feed, pages, queries, queue
from octaskly.store.reading.compaction_plan import plan_compaction
from octaskly.store.reading.display_facts import read_display_facts
from octaskly.store.reading.snapshot import read_snapshot_head, read_snapshot_part
from octaskly.store.tables import arrays
from octaskly.store.tables.member_ranges import task_rows_of
from octaskly.store.writing import purge, range_writes
from octaskly.store.writing.range_writes import RangeWrites
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit
from tests.property.fuzzing import search
from tests.property.test_store import interleaved

ARRAY = TaskId("build~0123456789abcd")
"""As the command line and the clients choose ids: the log adds a hash."""
COUNT, FIRST, STEP = 6, 3, 2
SPEC = TaskSpec(
    ARRAY,
    "echo {}",
    ord=1,
    options=TaskOptions(array=ArraySpec(count=COUNT, first=FIRST, step=STEP)),
)
NODES = (kit.WORKER, kit.PEER)
FIRST_ATTEMPTS = tuple(
    AttemptId(term, stream, 1 + 10 * term, 1)
    for term, stream in ((1, kit.STREAM), (2, kit.OTHER))
)


def number(position: int) -> int:
    return FIRST + STEP * position


def attempt_of(position: int, term: int) -> AttemptId:
    """Each term assigns all members in one range."""
    return attempt_at(FIRST_ATTEMPTS[term], position)


@st.composite
def assigned(draw: st.DrawFn) -> MembersAssigned:
    term = draw(st.integers(0, 1))
    start = draw(st.integers(0, COUNT - 2))
    return MembersAssigned(
        *(ARRAY, attempt_of(start, term), NODES[term], number(start), STEP),
        draw(st.integers(2, COUNT - start)),
    )


@st.composite
def succeeded(draw: st.DrawFn) -> MembersSucceeded:
    term = draw(st.integers(0, 1))
    offsets = sorted(draw(st.sets(st.integers(0, COUNT - 1), min_size=2)))
    # All reports of one attempt say the same.
    times = (SuccessTimes(offset - 3, offset % 3 - 1, term) for offset in offsets)
    return MembersSucceeded(
        *(ARRAY, FIRST_ATTEMPTS[term], NODES[term], number(0), STEP),
        *(tuple(offsets), draw(st.sampled_from((0, 1 + term, 1 + term)))),
        *(kit.WALL_MS, tuple(times)),
    )


@st.composite
def single(draw: st.DrawFn) -> Fact:
    term, position = draw(st.integers(0, 1)), draw(st.integers(0, COUNT - 1))
    member = member_id(ARRAY, number(position))
    key = member, attempt_of(position, term), NODES[term]
    failed = Outcome(AttemptState.FAILED, EndReason.EXIT, 1)
    lost = Outcome(AttemptState.RELEASED, EndReason.LOST)
    facts: tuple[Fact, ...] = (
        Assigned(*key),
        Finished(*key, failed, 1 + term),
        Finished(*key, lost),
        TaskCancelled(member, "ada", 1 + term),
        TaskCancelled(ARRAY, "bob", 1 + term),
        Submitted(SPEC),
    )
    return draw(st.sampled_from(facts))


FACTS = st.one_of(assigned(), assigned(), succeeded(), single())
STREAMS = st.lists(FACTS, min_size=1, max_size=8)


def filled(data: st.DataObject, entries: Sequence[Entry]) -> sqlite3.Connection:
    """Write entries in commits of any size, some after a roll-back or a restart."""
    db = kit.database()
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    rest = list(entries)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        batch = [Append(1, tuple(rest[:size]), kit.EPOCHS)]
        if data.draw(st.booleans()):
            db.execute("BEGIN")
            tables.append_entries(batch)
            db.execute("ROLLBACK")
            tables.reload()
        if data.draw(st.booleans()):
            tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
        tables.append_entries(batch)
        del rest[:size]
    return db


def shown(db: sqlite3.Connection) -> dict[str, object]:
    """Return all that readers get of the array and its members."""
    ids = [ARRAY, *(member_id(ARRAY, number(at)) for at in range(COUNT))]
    found: dict[str, object] = {id_: queries.read_task(db, id_) for id_ in ids}
    page = partial(pages.read_task_page, db)
    for node in (None, *NODES):
        for state in (None, *TaskState):
            query = TaskQuery(array=ARRAY, node=node, state=state, limit=4, offset=1)
            found[f"{node} {state}"] = page(query)
            query = TaskQuery(array=ARRAY, node=node, state=state, after=ids[2])
            found[f"{node} {state} after"] = page(query)
    found["stats"] = queries.read_stats(db)
    packer = kit.PicklePacker()
    found["recent"] = change_feed.read_recent_attempts(db, packer, 0, 20)
    names = list(map(task_name, ids))
    found["named"] = queries.read_tasks_by_name(db, names)
    found |= {name: queries.read_task(db, name) for name in names}
    found["live"] = queue.load_live_tasks(db, LoadLive(1, 0, 5))
    looked_up = queue.load_tasks(db, LoadTasks(1, tuple(map(TaskId, ids))))
    found["looked up"] = {record.id: record for record in looked_up.records}
    found["ended"] = queries.read_ended_members(db, ARRAY, 1, COUNT, 3)
    found["open"] = queries.incomplete_member_ranges(db, ARRAY, 9)
    known = [record for record in map(partial(queries.read_task, db), ids) if record]
    found["facts"] = read_display_facts(db, known)
    found["snapshot"] = _snapshot(db)
    found["plan"] = plan_compaction(
        *(db, kit.PicklePacker(), PlanFloor(1 << 60, 0)),
        *(1 << 30, TaskAges(kit.WALL_MS)),
    )
    members = arrays.read_members_of(db, ARRAY)
    if members is not None:
        found["rest"] = arrays.ranges_without_row(db, members)
    return found


def _snapshot(db: sqlite3.Connection) -> list[object]:
    """Return the rows of a snapshot of few bytes for each part."""
    found: list[object] = []
    for part in _parts(db, 1, 1000):
        members = (row for each in part.ranges for row in task_rows_of(each))
        rows = (replace(row, age_ms=0) for row in (*part.rows, *members))
        found += (*rows, *part.pending)
    return sorted(found, key=str)


def _parts(db: sqlite3.Connection, first_bytes: int, bytes_max: int) -> list[Snapshot]:
    """Return a snapshot in parts of so few bytes."""
    packer, ages = kit.PicklePacker(), TaskAges(kit.WALL_MS)
    head = read_snapshot_head(db)
    parts = [read_snapshot_part(db, packer, SnapshotCursor(1), first_bytes, ages, head)]
    while parts[-1].has_more:
        cursor = parts[-1].cursor
        parts.append(read_snapshot_part(db, packer, cursor, bytes_max, ages))
    return parts


def _receive(db: sqlite3.Connection, parts: Sequence[Snapshot]) -> None:
    """Merge a snapshot into a store."""
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    head = parts[0].head
    assert head is not None
    for part in parts:
        tables.stage_rows(StageRows(1, 1, kit.PEER, part))
    for part in parts:
        tables.merge_rows(MergeRows(1, 1, head, (), not part.has_more))


@search(100)
@given(st.one_of(assigned(), succeeded()), st.integers(1, 5), st.integers(0, 20))
def test_a_part_of_a_fact_means_the_facts_of_its_members(
    fact: MembersAssigned | MembersSucceeded, seq: int, held: int
) -> None:
    """A node that holds some of the facts of members takes the rest."""
    entry = Entry(kit.STREAM, seq, 70, fact)
    held = min(held, entry.last_seq - 1)

    rest = entry_after(entry, held)

    whole = list(member_entries([entry]))
    assert [each.seq for each in whole] == list(range(seq, entry.last_seq + 1))
    assert whole[-1].hlc == entry.last_hlc
    assert list(member_entries([rest])) == [e for e in whole if e.seq > held]
    assert is_valid_fact(rest.fact)


@search(50)
@given(st.lists(st.booleans(), min_size=1, max_size=5), succeeded())
def test_successes_are_written_as_they_were(
    have_output: list[bool], fact: MembersSucceeded
) -> None:
    """Those with output have a fact of their own."""
    members = members_of(fact)
    ends = [
        Outcome(AttemptState.OK, EndReason.EXIT, 0, None, 5, 9, 4, b"x" * has, b"")
        for has, _ in zip(have_output * COUNT, members.offsets, strict=False)
    ]

    facts = success_facts(members, kit.WORKER, ends, 7)

    written = [each for fact in facts for each in member_facts(fact)]
    assert sorted(written, key=str) == sorted(
        (
            Finished(*key, kit.WORKER, end, 7)
            for key, end in zip(members.attempt_keys(), ends, strict=True)
        ),
        key=str,
    )


@search(40)
@given(STREAMS, STREAMS, st.data())
def test_a_store_shows_the_same_for_facts_about_several_members(
    first: list[Fact], second: list[Fact], data: st.DataObject
) -> None:
    """Whatever else is said of them, in any order of arrival."""
    facts = [Submitted(SPEC), *first]
    streams = [kit.entries(facts), kit.entries(second, stream=kit.OTHER)]
    mixed = interleaved(data, streams)

    ranged, plain = filled(data, mixed), filled(data, list(member_entries(mixed)))

    assert shown(ranged) == shown(plain)
    for after in range(sum(fact.count for fact in facts) + 1):
        vector: Vector = {kit.STREAM: after}
        found = [
            [
                (entry, record.state)
                for entry, record in change_feed.read_feed_page(
                    db, kit.PicklePacker(), vector, 7
                ).items
            ]
            for db in (ranged, plain)
        ]
        assert found[0] == found[1]
        sent = [_sent_after(db, vector) for db in (ranged, plain)]
        assert sent[0] == sent[1]
    for db in (ranged, plain):
        _forget(db)
        assert [queries.read_task(db, ARRAY), _left(db)] == [None, []]
        db.close()


@search(15)
@given(STREAMS, STREAMS, st.data())
def test_a_snapshot_with_ranges_is_joined_as_one_of_members(
    first: list[Fact], second: list[Fact], data: st.DataObject
) -> None:
    """Whatever the receiver has of them already, by ranges or by members."""
    streams = [
        kit.entries([Submitted(SPEC), *first]),
        kit.entries(second, stream=kit.OTHER),
    ]
    mixed = interleaved(data, streams)
    known = mixed[: data.draw(st.integers(0, len(mixed)))]
    bytes_max = data.draw(st.integers(1, 2000))
    ranged, plain = filled(data, mixed), filled(data, list(member_entries(mixed)))
    joined = []
    for source, some in (
        (plain, list(member_entries(known))),
        (ranged, list(member_entries(known))),
        (ranged, known),
    ):
        joined.append(filled(data, some) if some else kit.database())
        _receive(joined[-1], _parts(source, bytes_max, bytes_max))

    of_members, *others = map(shown, joined)

    assert others == [of_members, of_members]
    for db in joined:
        _forget(db)
        assert [queries.read_task(db, ARRAY), _left(db)] == [None, []]
    for db in (ranged, plain, *joined):
        db.close()


def test_a_pending_end_counts_when_a_snapshot_brings_the_array() -> None:
    """The sender of the snapshot knows nothing of the member."""
    db, tables = _node([])
    key = member_id(ARRAY, number(1)), attempt_of(1, 0), NODES[0]
    ended = Outcome(AttemptState.OK, EndReason.EXIT, 0)
    facts: list[Fact] = [Assigned(*key), Finished(*key, ended, 1)]
    early = kit.entries(facts, stream=kit.OTHER)
    tables.append_entries([Append(1, tuple(early), kit.EPOCHS)])
    sender, _ = _node([Submitted(SPEC)])

    _receive(db, _parts(sender, 1 << 20, 1000))

    record = queries.read_task(db, key[0])
    assert record is not None
    assert record.state is TaskState.COMPLETED
    assert db.execute("SELECT count(*) FROM pending_entries").fetchone() == (0,)
    db.close()
    sender.close()


def test_pending_facts_of_a_snapshot_are_purged_below_the_floor() -> None:
    """They are not in the log of the node that received them."""
    key = kit.task_id(7), attempt_of(1, 0), NODES[0]
    ended = Outcome(AttemptState.OK, EndReason.EXIT, 0, stdout=b"kept")
    sender, _ = _node([Finished(*key, ended, 1)])
    db = kit.database()
    _receive(db, _parts(sender, 1 << 20, 1000))
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    below = StreamFloor(kit.STREAM, 1, kit.EPOCHS[0][1])
    floor = Entry(kit.OTHER, 1, 1 << 40, Floor(1 << 40, (below,), ()))

    tables.append_entries([Append(4, (floor,), kit.EPOCHS)])
    while not tables.is_purged:
        tables.purge_some()

    for table in ("pending_entries", "outputs"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608
    db.close()
    sender.close()


def _node(facts: Sequence[Fact]) -> tuple[sqlite3.Connection, TableWriter]:
    """Return the store of a node with these facts."""
    db = kit.database()
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    tables.append_entries([Append(1, tuple(kit.entries(facts)), kit.EPOCHS)])
    return db, tables


@pytest.mark.parametrize("has_first_begun", [True, False])
def test_members_of_two_arrays_with_one_name_have_different_names(
    has_first_begun: bool,
) -> None:
    """Two halves of a split accepted them; no member has a row of its own."""
    later = replace(SPEC, id=TaskId("build~fedcba98765432"), ord=2)
    first, second = FIRST_ATTEMPTS
    facts: list[Fact] = [
        Submitted(later),
        Submitted(SPEC),
        MembersAssigned(later.id, second, NODES[1], FIRST, STEP, COUNT),
    ]
    if has_first_begun:
        facts.append(MembersAssigned(ARRAY, first, NODES[0], FIRST, STEP, COUNT))
    db, _ = _node(facts)
    assert db.execute("SELECT count(*) FROM tasks").fetchone() == (2,)

    last = number(COUNT - 1)
    name = f"build.{last}"
    expected = [member_id(ARRAY, last), member_id(later.id, last)]

    for ref, task in zip((name, f"{name}~2"), expected, strict=True):
        record = queries.read_task(db, ref)
        assert record is not None
        assert (record.id, record.name) == (task, ref)
    named = queries.read_tasks_by_name(db, [name])[name]
    assert [record.id for record in named] == expected[not has_first_begun :]
    listed = pages.read_task_page(db, TaskQuery(array=later.id, limit=COUNT)).records
    assert [record.name for record in listed] == [
        f"build.{number(at)}~2" for at in range(COUNT)
    ]
    db.close()


def test_a_snapshot_has_a_range_whose_first_member_is_apart() -> None:
    """Both have the same key, and a part may end at the first of them."""
    key = member_id(ARRAY, number(2)), attempt_of(2, 0), NODES[0]
    failed = Outcome(AttemptState.FAILED, EndReason.EXIT, 1)
    facts: list[Fact] = [
        Submitted(SPEC),
        MembersAssigned(ARRAY, attempt_of(2, 0), NODES[0], number(2), STEP, 3),
        Finished(*key, failed, 1),
    ]
    db = kit.database()
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    for entry in kit.entries(facts):
        tables.append_entries([Append(1, (entry,), kit.EPOCHS)])

    parts = _parts(db, 1, 1)

    ids = {row.record.id for part in parts for row in part.rows}
    assert ids == {ARRAY, member_id(ARRAY, number(2))}
    assert [len(row.members) for part in parts for row in part.ranges] == [3]
    db.close()


def assignments_replace_what_is_known(patch: pytest.MonkeyPatch) -> None:
    """A range is inserted over members that have rows, or are in a range."""
    patch.setattr(RangeWrites, "_is_any_known", lambda *_: False)


def members_stay_in_their_range(patch: pytest.MonkeyPatch) -> None:
    """A member that gets a row of its own is in its range, too."""
    patch.setattr(range_writes, "APART", RUNNING)


@pytest.mark.parametrize(
    "plant",
    [assignments_replace_what_is_known, members_stay_in_their_range],
)
def test_a_planted_bug_in_ranges_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the comparison of stores proves little."""
    compare: Any = test_a_store_shows_the_same_for_facts_about_several_members
    brief = settings(
        max_examples=200,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
    )
    find = brief(given(STREAMS, STREAMS, st.data())(compare.hypothesis.inner_test))
    plant(monkeypatch)

    with pytest.raises((AssertionError, sqlite3.Error)):
        find()


def _forget(db: sqlite3.Connection) -> None:
    """Delete the array as the purge does."""
    keys = [key for (key,) in db.execute("SELECT task FROM arrays")]
    purge.delete_tasks(db, keys)


def _left(db: sqlite3.Connection) -> list[object]:
    """Return what is left of the array and its members in tables and counts."""
    return [
        row
        for table in ("tasks", "member_ranges", "arrays", "block_counts", "counts")
        for row in db.execute(f"SELECT * FROM {table}")  # noqa: S608
        if table != "counts" or row[-1]
    ]


def _sent_after(db: sqlite3.Connection, vector: Vector) -> list[Entry]:
    """Return what a peer with this vector gets, cut to what it lacks."""
    packed = queries.pack_entries_beyond(db, kit.PicklePacker(), vector, 1 << 20)
    sent = kit.PicklePacker().unpack(packed.data, Entries).entries
    lacked = [entry_after(each, vector.get(each.stream, 0)) for each in sent]
    return list(member_entries(lacked))
