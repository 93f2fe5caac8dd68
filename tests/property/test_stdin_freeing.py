"""Two halves of a split that free stdin at any time end with the same tasks."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.effects import Append
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Finished,
    Submitted,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NodeId, StreamId, TaskId
from octaskly.core.model.task_options import TaskOptions, is_stdin_freed
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskState
from octaskly.store.reading import queries
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit
from tests.property.fuzzing import search

NUMBERS = (1, 2)
STDIN_BYTES = 5000
OPTIONS = {n: TaskOptions(stdin=b"%d" % n * STDIN_BYTES) for n in NUMBERS}
number = st.sampled_from(NUMBERS)
ids = st.builds(kit.task_id, number)
attempts = st.builds(
    kit.attempt_id, st.just(1), st.sampled_from([kit.STREAM, kit.OTHER])
)
nodes = st.sampled_from([NodeId("v" * 16), NodeId("w" * 16)])
outcomes = st.builds(
    Outcome,
    state=st.sampled_from(
        [AttemptState.RELEASED, AttemptState.FAILED, AttemptState.OK]
    ),
    reason=st.just(EndReason.EXIT),
)
submissions = st.builds(
    lambda n, o: kit.submitted(n, ord=o, options=OPTIONS[n]), number, st.integers(1, 2)
)
facts: st.SearchStrategy[TaskFact] = st.one_of(
    submissions,
    st.builds(TaskCancelled, ids, st.just("ada")),
    st.builds(Assigned, ids, attempts, nodes),
    st.builds(Finished, ids, attempts, nodes, outcomes),
)
halves = st.lists(facts, max_size=8)


class Half:
    """One node, which frees stdin whenever the test says so."""

    def __init__(self, kept_bytes: int = 0) -> None:
        self.db = kit.database()
        self.writer = TableWriter(self.db, kit.PicklePacker(), kit.HandClock())
        self.writer.stdin_freeing.kept_bytes_max = kept_bytes

    def add(self, data: st.DataObject, entries: Sequence[Entry]) -> None:
        """Append entries in commits of any size, and free at any time."""
        rest = list(entries)
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            some, rest = rest[:size], rest[size:]
            self.writer.append_entries([Append(1, tuple(some), kit.EPOCHS)])
            if data.draw(st.booleans()):
                self.free()

    def free(self) -> None:
        """Free until nothing is left to be freed."""
        while not self.writer.stdin_freeing.is_done:
            self.writer.stdin_freeing.free_some()

    def entries_of(self, stream: StreamId) -> list[Entry]:
        """Return the entries of a stream as the node sends them."""
        return [e for e in kit.logged_entries(self.db) if e.stream == stream]

    def tasks(self) -> dict[TaskId, TaskRecord]:
        """Return the tasks that it shows."""
        found = {
            task: queries.read_task(self.db, task) for task in map(kit.task_id, NUMBERS)
        }
        return {task: record for task, record in found.items() if record is not None}

    def close(self) -> None:
        """Close the tables."""
        self.db.close()


def large_bytes(db: sqlite3.Connection, task: TaskId) -> int:
    """Return the bytes of stdin that are left of a task."""
    (logged,) = db.execute(
        "SELECT coalesce(sum(length(body)), 0) FROM log WHERE task_id = ?",
        (task,),
    ).fetchone()
    (shown,) = db.execute(
        "SELECT coalesce(length(stdin), 0) FROM tasks WHERE id = ?", (task,)
    ).fetchone()
    return int(logged) + int(shown)


@search(100)
@given(halves, halves, st.sampled_from([0, 1 << 30]), st.data())
def test_halves_that_freed_different_stdin_agree_after_the_heal(
    first: list[TaskFact], second: list[TaskFact], kept_bytes: int, data: st.DataObject
) -> None:
    """A task that has not ended has its stdin; an ended one is the same everywhere.

    With 0 kept bytes, failed tasks are freed like completed ones.
    """
    ours, theirs = Half(kept_bytes), Half(kept_bytes)
    with closing(ours), closing(theirs):
        ours.add(data, kit.entries(first))
        theirs.add(data, kit.entries(second, stream=kit.OTHER))
        sent = ours.entries_of(kit.STREAM)
        ours.add(data, theirs.entries_of(kit.OTHER))
        theirs.add(data, sent)
        ours.free()
        theirs.free()

        assert ours.tasks() == theirs.tasks()
        for task, record in ours.tasks().items():
            assert record.spec is not None
            is_completed = record.state is TaskState.COMPLETED
            is_due = is_completed or (record.state.is_final and not kept_bytes)
            assert is_stdin_freed(record.spec.options) is is_due
            for half in (ours, theirs):
                assert not (is_due and large_bytes(half.db, task))


def test_the_samples_have_stdin_that_is_freed() -> None:
    """The property would hold for tasks without stdin, too."""
    half = Half()
    entries = kit.entries([kit.submitted(1, options=OPTIONS[1]), kit.finished(1)])
    half.writer.append_entries([Append(1, tuple(entries), kit.EPOCHS)])
    half.free()

    (sent, _) = half.entries_of(kit.STREAM)

    assert isinstance(sent.fact, Submitted)
    assert is_stdin_freed(sent.fact.spec.options)
    half.close()
