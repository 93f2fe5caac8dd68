"""Nodes with the same facts show the same tasks, floors and snapshots included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from octaskly.core.effects import (
    Append,
    MergeRows,
    PlanFloor,
    StageRows,
)
from octaskly.core.log.facts import (
    NO_FLOOR,
    Assigned,
    Entry,
    Fact,
    Finished,
    Floor,
    StreamFloor,
    Submitted,
    TaskCancelled,
)
from octaskly.core.log.merge import (
    SubmissionTimes,
    TaskRecord,
    facts_of,
    join_floors,
    join_submission_times,
)
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.hlc import HLC_EPOCH_MS
from octaskly.core.model.ids import (
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    covers,
)
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.protocol.messages import Snapshot, SnapshotCursor
from octaskly.store.reading import queries
from octaskly.store.reading.compaction_plan import plan_compaction
from octaskly.store.reading.snapshot import read_snapshot_head, read_snapshot_part
from octaskly.store.tables.floors import read_floor
from octaskly.store.tables.node_state import read_vector
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit
from tests.property.fuzzing import search

AGES = TaskAges(HLC_EPOCH_MS)
FAR = StreamId(9)  #: written by a node that was away
EPOCHS = (*kit.EPOCHS, (FAR, Epoch(1, NodeId("c" * 16))))
IDS = [kit.task_id(n) for n in (1, 2, 3, 4)]

Op = tuple[str, int, int, int]


class Table:
    """A store in memory whose purge the test controls."""

    def __init__(self) -> None:
        self.db = kit.database()
        self.snapshots = 0
        self.tables = TableWriter(
            self.db, kit.PicklePacker(), kit.HandClock(HLC_EPOCH_MS)
        )

    def add(self, entries: Sequence[Entry]) -> None:
        self.tables.append_entries([Append(1, tuple(entries), EPOCHS)])

    def purge(self) -> None:
        while not self.tables.is_purged:
            self.tables.purge_some()

    def shown(self) -> dict[TaskId, TaskRecord | None]:
        return {task: queries.read_task(self.db, task) for task in IDS}

    def check(self) -> None:
        """Assert that no entry is left below the floor, and that counters are right."""
        self.purge()
        left = "SELECT 1 FROM log JOIN streams USING (stream) WHERE seq <= floor_seq"
        assert self.db.execute(left).fetchone() is None
        tally = Counter(
            self.db.execute("SELECT coalesce(node, ''), state FROM tasks").fetchall()
        )
        counted = self.db.execute(
            "SELECT node, state, n FROM counts WHERE n <> 0 AND kind = 0"
        )
        assert {row[:2]: row[2] for row in counted} == tally


@dataclass
class Mesh:
    """The node that writes, and all entries that were ever written."""

    writer: Table = field(default_factory=Table)
    streams: dict[StreamId, list[Entry]] = field(default_factory=dict)
    stated: dict[StreamId, Floor] = field(default_factory=dict)
    hlc: int = 1000

    def write(self, stream: StreamId, facts: Iterable[Fact]) -> None:
        """Write facts, behind the floor if the stream does not contain it yet."""
        log = self.streams.setdefault(stream, [])
        fresh: list[Entry] = []
        floor = read_floor(self.writer.db)
        if self.stated.get(stream, NO_FLOOR) != floor:
            self.stated[stream] = floor
            facts = [self.said(floor, stream), *facts]
        for fact in facts:
            self.hlc += 1
            fresh.append(Entry(stream, len(log) + len(fresh) + 1, self.hlc, fact))
        log += fresh
        self.writer.add(fresh)

    def said(self, floor: Floor, stream: StreamId) -> Floor:
        """Return a floor with its prerequisites, as a journal writes it."""
        held = read_vector(self.writer.db)
        return replace(floor, required_vector=tuple(p for p in held if p[0] != stream))

    def do(self, op: Op) -> None:
        """Let the writer do one thing that a dispatcher may do."""
        what, n, a, b = op
        stream = (kit.STREAM, kit.OTHER)[a % 2]
        attempt = kit.attempt_id(1 + b % 2, stream)
        task = kit.task_id(1 + n % 3)
        known = queries.read_task(self.writer.db, task)
        match what:
            case "submit":
                self.hlc += 1
                spec = TaskSpec(id=task, command=f"run {n} {b}", ord=self.hlc)
                if known is not None and known.spec is not None:
                    spec = known.spec  # A worker's envelope, sent again.
                self.write(stream, [Submitted(spec)])
            case "cancel" if known:
                self.write(stream, [TaskCancelled(task, "ada")])
            case "assign" if known:
                self.write(stream, [Assigned(task, attempt, kit.WORKER)])
            case "finish":  # A spooled result of a purged task.
                self.write(stream, [Finished(task, attempt, kit.WORKER, outcome(b), 1)])
            case "floor":
                self.raise_floor(stream, self.hlc - 4 * n, b)
            case _:
                pass  # No dispatcher would do it.

    def raise_floor(self, stream: StreamId, before_hlc: int, tasks_max: int) -> None:
        db = self.writer.db
        db.execute("BEGIN")
        ask = PlanFloor(before_hlc, tasks_max)
        planned = plan_compaction(db, kit.PicklePacker(), ask, 1 << 40, AGES)
        db.execute("COMMIT")
        if planned.floor is not None:
            facts: list[Fact] = []
            for record in planned.carried:
                facts += facts_of(record)
            self.write(stream, [*facts, self.said(planned.floor, stream)])
            self.stated[stream] = read_floor(self.writer.db)
            self.writer.purge()


def outcome(b: int) -> Outcome:
    state = (AttemptState.OK, AttemptState.FAILED, AttemptState.RELEASED)[b % 3]
    return Outcome(state=state, reason=EndReason.EXIT, stdout=b"out %d" % (b // 3))


OPS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "assign", "finish", "cancel", "floor"]),
        st.integers(0, 5),
        st.integers(0, 1),
        st.integers(0, 5),
    ),
    max_size=24,
)
AWAY = [
    Entry(FAR, 1, 900, Submitted(TaskSpec(id=kit.task_id(4), command="far", ord=899))),
    Entry(FAR, 2, 901, Assigned(kit.task_id(4), kit.attempt_id(1, FAR), kit.WORKER)),
    Entry(FAR, 3, 902, TaskCancelled(kit.task_id(4), "eve")),
]


def spread(data: st.DataObject, table: Table, parts: Sequence[list[Entry]]) -> None:
    """Bring a table's missing entries, with commits and purges of any size."""
    while any(left := missing(table, parts)):
        assert add_some(data, table, left)


def missing(table: Table, parts: Sequence[list[Entry]]) -> list[list[Entry]]:
    """Return the entries that a table has not."""
    have = dict(read_vector(table.db))
    return [[e for e in part if e.seq > have.get(e.stream, 0)] for part in parts]


def add_some(data: st.DataObject, table: Table, left: Sequence[list[Entry]]) -> bool:
    """Bring some of these entries in one commit; return False if none can come."""
    have = dict(read_vector(table.db))
    ready = [(part, n) for part in left if (n := deliverable(part, have))]
    if not ready:
        return False
    part, most = data.draw(st.sampled_from(ready))
    some = part[: data.draw(st.integers(1, most))]
    table.add(some)
    if data.draw(st.booleans()):
        table.add(some)
    if data.draw(st.booleans()) and not table.tables.is_purged:
        table.tables.purge_some()
    return True


def partly(
    data: st.DataObject, table: Table, parts: Sequence[list[Entry]]
) -> Callable[[], object]:
    """Return what may bring some of a table's missing entries."""
    return lambda: (
        data.draw(st.booleans()) and add_some(data, table, missing(table, parts))
    )


def deliverable(part: list[Entry], have: Mapping[StreamId, int]) -> int:
    """Return the number of entries that a journal with these streams accepts."""
    for index, entry in enumerate(part):
        fact = entry.fact
        if isinstance(fact, Floor) and not covers(have, fact.required_vector):
            return index
    return len(part)


def joined(
    table: Table,
    server: Table,
    most: int,
    *,
    between_parts: Callable[[], object] = lambda: None,
) -> bool:
    """Stage at most so many parts of a snapshot; merge them if they are all."""
    parts: list[Snapshot] = []
    table.snapshots += 1
    first, number = SnapshotCursor(1), table.snapshots
    while len(parts) < most and (not parts or parts[-1].has_more):
        head = None if parts else read_snapshot_head(server.db)
        cursor = parts[-1].cursor if parts else first
        parts.append(
            read_snapshot_part(server.db, kit.PicklePacker(), cursor, 1, AGES, head)
        )
        table.tables.stage_rows(StageRows(1, number, kit.PEER, parts[-1]))
    if not parts or parts[-1].has_more:
        return False
    retired = tuple(pair for part in parts for pair in part.retired)
    assert parts[0].head is not None
    for part in parts:
        is_last = not part.has_more
        merge = MergeRows(1, number, parts[0].head, retired, is_last)
        table.tables.merge_rows(merge)
        if part.has_more:
            between_parts()
    return True


@search(40)
@given(OPS, OPS, OPS, st.data())
def test_entries_floors_and_snapshots_in_any_order_give_the_same_tasks(
    before: list[Op], later: list[Op], last: list[Op], data: st.DataObject
) -> None:
    """A node that was away for long, one that joins, and one that saw it all agree."""
    mesh = Mesh()
    for op in before:
        mesh.do(op)
    early = [list(log) for log in mesh.streams.values()]
    if data.draw(st.booleans()):
        mesh.writer.add(AWAY)
    for op in later:
        mesh.do(op)
    joiner = Table()
    if data.draw(st.booleans()):
        spread(data, joiner, early)
    if not joined(joiner, mesh.writer, data.draw(st.integers(0, 3))):
        held = dict(read_vector(joiner.db))
        assert held == {k: v for k, v in held.items() if v <= len(mesh.streams[k])}
    others = [*mesh.streams.values(), AWAY]
    joined(joiner, mesh.writer, 99, between_parts=partly(data, joiner, others))
    for op in last:
        mesh.do(op)

    everything = [*mesh.streams.values(), AWAY]
    other = Table()
    for table in (joiner, other, mesh.writer):
        spread(data, table, everything)
        table.check()

    assert joiner.shown() == other.shown() == mesh.writer.shown()
    assert read_vector(joiner.db) == read_vector(other.db)


MARKS = st.builds(
    StreamFloor,
    st.sampled_from([kit.STREAM, kit.OTHER]),
    st.integers(1, 3),
    st.just(Epoch(1, NodeId("a" * 16))),
)
FLOORS = st.builds(
    Floor,
    st.integers(0, 3),
    st.lists(MARKS, max_size=2, unique_by=lambda mark: mark.stream).map(
        lambda marks: tuple(sorted(marks, key=lambda mark: mark.stream))
    ),
)
BIRTHS = st.none() | st.builds(
    lambda born, more, seq: SubmissionTimes(born, born + more, kit.STREAM, seq),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(1, 3),
)


@given(FLOORS, FLOORS, FLOORS)
def test_floors_join_in_any_order(a: Floor, b: Floor, c: Floor) -> None:
    """A floor only rises, whichever node writes it."""
    assert join_floors(a, b) == join_floors(b, a)
    assert join_floors(a, join_floors(b, c)) == join_floors(join_floors(a, b), c)
    assert join_floors(a, a) == a


@given(BIRTHS, BIRTHS, BIRTHS)
def test_births_join_in_any_order(
    a: SubmissionTimes | None, b: SubmissionTimes | None, c: SubmissionTimes | None
) -> None:
    """The first and the latest submission stay the same in any order of arrival."""
    assert join_submission_times(a, b) == join_submission_times(b, a)
    assert join_submission_times(
        a, join_submission_times(b, c)
    ) == join_submission_times(join_submission_times(a, b), c)
    assert join_submission_times(a, a) == a
