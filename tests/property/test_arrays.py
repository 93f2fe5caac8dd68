"""An array and its members are the merge of all facts, in any order of arrival."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from octaskly.core.effects import Append, LoadLive, LoadQueued
from octaskly.core.log import merge
from octaskly.core.log.facts import (
    Assigned,
    Finished,
    Submitted,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import (
    ArrayProgress,
    member_id,
    member_spec,
    split_member_id,
)
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.ports.store import TaskQuery
from octaskly.store.reading import pages, queries, queue
from octaskly.store.tables import rows
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit
from tests.property.fuzzing import search
from tests.property.test_store import ATTEMPTS, NODES, OUTCOMES, filled, interleaved

COUNT = 4
ARRAYS = [kit.task_id(1), TaskId("mine~" + "a" * 14)]
OPTIONS = TaskOptions(
    array=ArraySpec(count=COUNT, has_items=True, items=("a", "b c", "", "d"))
)


def array_spec(array: TaskId, ord_: int) -> TaskSpec:
    return TaskSpec(id=array, command="echo {}", ord=ord_, options=OPTIONS)


array_ids = st.sampled_from(ARRAYS)
member_ids = st.builds(member_id, array_ids, st.integers(0, COUNT))  # One is none.
facts: st.SearchStrategy[TaskFact] = st.one_of(
    st.builds(Submitted, st.builds(array_spec, array_ids, st.integers(1, 2))),
    st.builds(TaskCancelled, array_ids | member_ids, st.sampled_from(["ada", "bob"])),
    st.builds(Assigned, member_ids, ATTEMPTS, NODES),
    st.builds(Finished, member_ids, ATTEMPTS, NODES, OUTCOMES),
)
streams = st.lists(facts, max_size=12)


def merged(array: TaskId, some: Sequence[TaskFact]) -> dict[TaskId, TaskRecord]:
    """Return an array and all its members by the rules alone."""
    about = [merge.record_of(fact) for fact in some if fact.task == array]
    record = reduce(merge.join_records, about) if about else None
    if record is None or record.spec is None:
        return {}
    members = {}
    for number in range(COUNT):
        spec = member_spec(record.spec, number)
        assert spec is not None
        own = [merge.record_of(fact) for fact in some if fact.task == spec.id]
        member = reduce(merge.join_records, own, TaskRecord(id=spec.id, spec=spec))
        members[spec.id] = merge.with_array_cancelled(member, record.cancelled_by)
    tally = Counter(member.state for member in members.values())
    queued, running, completed, failed, cancelled = (tally[s] for s in rows.STATES)
    progress = ArrayProgress(queued, running, completed, failed, cancelled)
    # The view of an array leaves its items out.
    assert record.spec.options is not None
    assert record.spec.array is not None
    bare = replace(record.spec.options, array=replace(record.spec.array, items=()))
    shown = replace(record, spec=replace(record.spec, options=bare), progress=progress)
    return {array: shown, **members}


@search(100)
@given(streams, streams, st.data())
def test_arrays_are_the_merge_of_all_facts_in_any_order(
    first: list[TaskFact], second: list[TaskFact], data: st.DataObject
) -> None:
    """Nodes with the same facts show the same members and the same counts."""
    sides = [kit.entries(first), kit.entries(second, stream=kit.OTHER)]

    for db in (filled(data, interleaved(data, sides)) for _ in range(2)):
        for array in ARRAYS:
            wanted = merged(array, first + second)
            shown = {id_: queries.read_task(db, id_) for id_ in wanted}
            assert shown == wanted
            assert queries.read_task(db, member_id(array, COUNT)) is None
        agree(db, [merged(array, first + second) for array in ARRAYS])
        db.close()


def agree(db: sqlite3.Connection, wanted: Sequence[dict[TaskId, TaskRecord]]) -> None:
    """Assert that counters, pages and the queue agree with the records."""
    records = [record for some in wanted for record in some.values()]
    arrays = [record for record in records if record.progress is not None]
    tasks = [record for record in records if record.progress is None]
    stats = queries.read_stats(db).counts
    tally = Counter(task.state for task in tasks)
    assert stats == {state: tally[state] for state in rows.STATES}
    page = pages.read_task_page(db, TaskQuery())
    listed = {record.id for record in records if split_member_id(record.id) is None}
    assert {record.id for record in page.records} == listed
    assert page.total == len(listed)
    held = {id_ for (id_,) in db.execute("SELECT id FROM tasks")}
    for array in arrays:
        assert array.spec is not None
        assert array.spec.array is not None
        numbers = range(array.spec.array.count)
        members = {member_id(array.id, number) for number in numbers}
        for state in (None, *rows.STATES):
            page = pages.read_task_page(db, TaskQuery(array=array.id, state=state))
            assert {record.id for record in page.records} == {
                task.id
                for task in tasks
                if task.id in members & held and state in (None, task.state)
            }
            assert page.total == len(page.records)
    for record in (
        *queue.load_queued_tasks(db, LoadQueued(1, -1, 99))[0].records,
        *queue.load_live_tasks(db, LoadLive(1, 0, 99)).records,
    ):
        if record.progress is not None:
            rest = {
                member_id(record.id, n)
                for first, last in record.progress.remaining_runs
                for n in range(first, last + 1)
            }
            assert record.spec is not None
            assert record.spec.array is not None
            numbers = range(record.spec.array.count)
            waiting = {member_id(record.id, n) for n in numbers} - held
            assert rest == (set() if record.cancelled_by else waiting)


def test_client_gets_one_message_for_the_end_of_an_array() -> None:
    """A million members are one message."""
    options = TaskOptions(array=ArraySpec(count=2), notify_url="https://example/hook")
    array = TaskSpec(id=ARRAYS[0], command="x", ord=1, options=options)
    end = Outcome(state=AttemptState.OK, reason=EndReason.EXIT, exit_code=0)
    ends = [
        Finished(member_id(array.id, n), kit.attempt_id(), kit.WORKER, end, 1)
        for n in (0, 1)
    ]
    entries = kit.entries([Submitted(array), *ends])
    db = kit.database()
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())

    tables.append_entries([Append(1, tuple(entries[:2]), kit.EPOCHS)])
    before = queries.read_pending_notifications(db, frozenset(), 9)
    tables.append_entries([Append(2, tuple(entries), kit.EPOCHS)])
    after = queries.read_pending_notifications(db, frozenset(), 9)
    db.close()

    assert before.new_tasks == ()
    assert [record.id for _, record in after.new_tasks] == [array.id]
