"""Arrays age, are carried and sent to others with all their members, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.log.facts import Assigned, Entry, Finished, Submitted, TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import member_id
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import TaskSpec
from octaskly.store.reading import queries
from octaskly.store.tables.node_state import read_vector
from tests.contract import log_kit as kit
from tests.property.fuzzing import search
from tests.property.test_arrays import agree
from tests.property.test_retention import (
    FAR,
    OPS,
    Mesh,
    Op,
    Table,
    joined,
    outcome,
    partly,
    spread,
)

COUNT = 3
ARRAY, OTHER = kit.task_id(2), TaskId("mine~" + "b" * 14)
OPTIONS = TaskOptions(array=ArraySpec(count=COUNT, max_fails=0))
LATE = kit.task_id(4)  #: known only to the node that was away
ARRAYS = (ARRAY, OTHER, LATE)
MEMBERS = [member_id(array, n) for array in (ARRAY, OTHER) for n in range(COUNT)]
LATE_MEMBERS = [member_id(LATE, n) for n in range(COUNT)]
IDS = [kit.task_id(1), ARRAY, OTHER, *MEMBERS]
ATTEMPT = kit.attempt_id(1, FAR)
AWAY = [
    Entry(FAR, 1, 900, Assigned(LATE_MEMBERS[0], ATTEMPT, kit.WORKER)),
    Entry(FAR, 2, 901, Submitted(TaskSpec(id=LATE, command="x", options=OPTIONS))),
    Entry(FAR, 3, 902, Finished(LATE_MEMBERS[2], ATTEMPT, kit.WORKER, outcome(0), 1)),
    Entry(FAR, 4, 903, TaskCancelled(LATE_MEMBERS[1], "eve")),
]


@dataclass
class ArrayMesh(Mesh):
    """A node that writes about arrays and their members."""

    def do(self, op: Op) -> None:
        what, n, a, b = op
        stream = (kit.STREAM, kit.OTHER)[a % 2]
        task = IDS[(n + b) % len(IDS)]
        known = queries.read_task(self.writer.db, task)
        attempt = kit.attempt_id(1 + b % 2, stream)
        match what:
            case "submit":
                self.submit((kit.task_id(1), ARRAY, OTHER)[n % 3])
            case "cancel" if known:
                self.write(stream, [TaskCancelled(task, "ada")])
            case "assign" if known and task in MEMBERS:
                self.write(stream, [Assigned(task, attempt, kit.WORKER)])
            case "finish" if task in MEMBERS:
                self.write(stream, [Finished(task, attempt, kit.WORKER, outcome(b), 1)])
            case "floor":
                self.raise_floor(stream, self.hlc - 4 * n, b)
            case _:
                pass

    def submit(self, task: TaskId) -> None:
        known = queries.read_task(self.writer.db, task)
        self.hlc += 1
        options = None if task == IDS[0] else OPTIONS
        spec = TaskSpec(id=task, command="run {}", ord=self.hlc, options=options)
        if known is not None and known.spec is not None:
            spec = known.spec
        self.write(kit.STREAM, [Submitted(spec)])


def shown(table: Table) -> dict[TaskId, TaskRecord]:
    records = {
        task: queries.read_task(table.db, task) for task in (*IDS, LATE, *LATE_MEMBERS)
    }
    return {task: record for task, record in records.items() if record is not None}


@search(40)
@given(OPS, OPS, OPS, st.data())
def test_array_entries_floors_and_snapshots_give_the_same_members(
    before: list[Op], later: list[Op], last: list[Op], data: st.DataObject
) -> None:
    """A node that saw all, one that was away, and one that joined by rows agree."""
    mesh = ArrayMesh()
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
    joined(joiner, mesh.writer, data.draw(st.integers(0, 3)))
    others = [*mesh.streams.values(), AWAY]
    joined(joiner, mesh.writer, 99, between_parts=partly(data, joiner, others))
    for op in last:
        mesh.do(op)

    everything = [*mesh.streams.values(), AWAY]
    other = Table()
    for table in (joiner, other, mesh.writer):
        spread(data, table, everything)
        table.purge()

    assert shown(joiner) == shown(other) == shown(mesh.writer)
    assert read_vector(joiner.db) == read_vector(other.db)
    for table in (joiner, other, mesh.writer):
        records = shown(table)
        arrays = [
            {id_: r for id_, r in records.items() if id_ == a or id_ in own}
            for a in ARRAYS
            for own in [{member_id(a, n) for n in range(COUNT)}]
        ]
        agree(table.db, [{i: r for i, r in records.items() if i == IDS[0]}, *arrays])
