"""Tasks with one name: all nodes give them the same ids, in any order of arrival."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from octaskly.core.dispatcher.admission import Admission
from octaskly.core.effects import Append
from octaskly.core.events import TasksSubmitted
from octaskly.core.log.facts import Entry, Submitted
from octaskly.core.model.drafts import TaskDraft, log_id_of
from octaskly.core.model.ids import TaskId, task_name
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.scheduling.task_queue import TaskQueue
from octaskly.core.scheduling.worker_pool import WorkerPool
from octaskly.ports.store import TaskQuery
from octaskly.store.reading import pages, queries
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit
from tests.support.builders import journal, moment

NAMES = st.sampled_from(["a", "a-", "a.b", "aa", "b"])
DRAFTS = st.builds(
    lambda name, command: TaskDraft(command=command, id=TaskId(name)),
    NAMES,
    st.sampled_from(["x", "y", "z"]),
)
REQUESTS = st.lists(st.tuples(DRAFTS, st.integers(0, 9)), max_size=6)


def accepted(requests: Sequence[tuple[TaskDraft, int]]) -> list[TaskSpec]:
    """Return the tasks that one half of a split accepts, one each second."""
    half = Admission(journal(), TaskQueue(Limits()), WorkerPool(0), 0)
    specs: dict[TaskId, TaskSpec] = {}
    for draft, at_s in requests:
        event = TasksSubmitted(
            1, (draft,), "ana", ("0" * 8,), (log_id_of(draft, "ana"),)
        )
        for spec in half.specs_from_drafts(event, moment(at_s))[1]:
            specs[spec.id] = spec
    return list(specs.values())


def held(parts: Sequence[Sequence[Entry]]) -> sqlite3.Connection:
    """Return the database of a node that received streams in this order."""
    db = kit.database()
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    for part in parts:
        tables.append_entries([Append(1, tuple(part), kit.EPOCHS)])
    return db


@settings(deadline=None)
@given(REQUESTS, REQUESTS)
def test_both_halves_give_every_task_the_same_id_and_find_it_by_name(
    here: list[tuple[TaskDraft, int]], there: list[tuple[TaskDraft, int]]
) -> None:
    """No accepted task is lost, and a name without a number is the first task."""
    specs = [accepted(here), accepted(there)]
    parts = [
        kit.entries(map(Submitted, own), stream=stream)
        for own, stream in zip(specs, (kit.STREAM, kit.OTHER), strict=True)
    ]

    one, other = held(parts), held(parts[::-1])

    shown = [
        pages.read_task_page(db, TaskQuery(limit=100)).records for db in (one, other)
    ]
    names = {record.name: record.id for record in shown[0]}
    assert names == {record.name: record.id for record in shown[1]}
    asked = {(draft.id, draft.command) for draft, _ in here + there}
    assert asked == {(task_name(r.id), r.spec.command) for r in shown[0] if r.spec}
    assert len(names) == len(shown[0]) == len(asked)
    for record in shown[0]:
        assert queries.read_task(one, record.name) == record
        same = queries.read_tasks_by_name(one, [task_name(record.id)])[
            task_name(record.id)
        ]
        assert same[record.occurrence - 1] == record
        assert [each.spec.ord for each in same if each.spec] == sorted(
            each.spec.ord for each in same if each.spec
        )
    one.close()
    other.close()


@given(DRAFTS, DRAFTS, st.sampled_from(["ana", "bob"]))
def test_ids_are_equal_exactly_if_the_tasks_are(
    a: TaskDraft, b: TaskDraft, submitter: str
) -> None:
    """Therefore the merge of the log needs no rule for names."""
    assert (log_id_of(a, "ana") == log_id_of(b, submitter)) == (
        a == b and submitter == "ana"
    )
