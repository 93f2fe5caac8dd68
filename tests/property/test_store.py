"""The tables equal the merge of all facts, in any order of arrival."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.effects import Append
from octaskly.core.log import merge
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Finished,
    Notified,
    Reprioritized,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.log.range_facts import task_entries
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.protocol.messages import Entries
from octaskly.ports.store import TaskQuery
from octaskly.store.reading import pages, queries
from octaskly.store.tables import rows
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit
from tests.property.fuzzing import search

NUMBERS = st.integers(1, 3)
NODES = st.sampled_from([NodeId("v" * 16), NodeId("w" * 16)])
ATTEMPTS = st.builds(
    kit.attempt_id, st.integers(1, 2), st.sampled_from([kit.STREAM, kit.OTHER])
)
OUTPUT = st.sampled_from([b"", b"a", b"b\xff"])
OUTCOMES = st.builds(
    Outcome,
    state=st.sampled_from(
        [AttemptState.RELEASED, AttemptState.FAILED, AttemptState.OK]
    ),
    reason=st.sampled_from([EndReason.EXIT, EndReason.LOST]),
    exit_code=st.sampled_from([None, 0]),
    stdout=OUTPUT,
    stderr=OUTPUT,
)
IDS = st.builds(kit.task_id, NUMBERS)
FACTS: st.SearchStrategy[TaskFact] = st.one_of(
    st.builds(lambda n, o: kit.submitted(n, ord=o), NUMBERS, st.integers(1, 2)),
    st.builds(TaskCancelled, IDS, st.sampled_from(["ada", "bob"])),
    st.builds(Notified, IDS),
    st.builds(
        Reprioritized, IDS, st.integers(1, 2), st.integers(1, 3), st.integers(-1, 1)
    ),
    st.builds(Assigned, IDS, ATTEMPTS, NODES),
    st.builds(Finished, IDS, ATTEMPTS, NODES, OUTCOMES),
)
STREAMS = st.lists(FACTS, max_size=12)


def interleaved(data: st.DataObject, streams: Sequence[Sequence[Entry]]) -> list[Entry]:
    """Mix streams, each of which stays in order."""
    left = [list(stream) for stream in streams]
    mixed = []
    while any(left):
        some = data.draw(st.sampled_from([stream for stream in left if stream]))
        mixed.append(some.pop(0))
    return mixed


def filled(data: st.DataObject, entries: Sequence[Entry]) -> sqlite3.Connection:
    """Write entries in commits of any size, some after a roll-back or a restart."""
    connection = kit.database()
    tables = TableWriter(connection, kit.PicklePacker(), kit.HandClock())
    rest = list(entries)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        batch = [Append(1, tuple(rest[:size]), kit.EPOCHS)]
        if data.draw(st.booleans()):
            connection.execute("BEGIN")
            tables.append_entries(batch)
            connection.execute("ROLLBACK")
            tables.reload()
        tables.append_entries(batch)
        del rest[:size]
    return connection


def shown(connection: sqlite3.Connection) -> dict[TaskId, TaskRecord | None]:
    ids = [kit.task_id(n) for n in (1, 2, 3)]
    return {task: queries.read_task(connection, task) for task in ids}


def merged(entries: Sequence[Entry]) -> dict[TaskId, TaskRecord | None]:
    records: dict[TaskId, TaskRecord | None] = {kit.task_id(n): None for n in (1, 2, 3)}
    for _, fact in task_entries(entries):
        records[fact.task] = merge.apply_fact(records[fact.task], fact)
    return {
        task: record if record and record.spec else None
        for task, record in records.items()
    }


@search(100)
@given(STREAMS, STREAMS, st.data())
def test_tables_are_the_merge_of_all_facts_in_any_order(
    first: list[TaskFact], second: list[TaskFact], data: st.DataObject
) -> None:
    """Two nodes that hold the same facts show and send the same tasks."""
    streams = [kit.entries(first), kit.entries(second, stream=kit.OTHER)]
    mixed = interleaved(data, streams)

    one = filled(data, mixed)
    other = filled(data, interleaved(data, streams))

    assert shown(one) == shown(other) == merged(mixed)
    packer = kit.PicklePacker()
    packed = queries.pack_entries_beyond(one, packer, {}, 1 << 20)
    given_on = packer.unpack(packed.data, Entries)
    assert list(given_on.entries) == streams[0] + streams[1]
    assert not given_on.has_more
    one.close()
    other.close()


@search(100)
@given(STREAMS, st.data())
def test_counters_and_pages_agree_with_the_records(
    facts: list[TaskFact], data: st.DataObject
) -> None:
    """Totals are exact for every filter."""
    connection = filled(data, kit.entries(facts))

    records = [record for record in shown(connection).values() if record]
    tally: Counter[tuple[Any, Any]] = Counter(
        (rows.counted_node(record, record.state), record.state) for record in records
    )
    for node in (None, *{node for node, _ in tally if node}):
        for state in (None, *rows.STATES):
            page = pages.read_task_page(connection, TaskQuery(node=node, state=state))
            wanted = sum(
                n
                for (a_node, a_state), n in tally.items()
                if node in (None, a_node) and state in (None, a_state)
            )
            assert page.total == len(page.records) == wanted
    queued = connection.execute("SELECT count(*) FROM tasks WHERE state = 0")
    assert queued.fetchone()[0] == sum(
        record.state == rows.STATES[0] for record in records
    )
    connection.close()
