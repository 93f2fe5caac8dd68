"""The last event that a client gets of an ended task is its end, come what may.

Logs of other nodes arrive late, pages end anywhere, and connections break.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from octaskly.core.change_feed import (
    FeedCursor,
    FeedGap,
    FeedPosition,
    TaskEvent,
    read_page,
    resume_cursor,
)
from octaskly.core.effects import Append
from octaskly.core.log.facts import Entry, Fact, Notified
from octaskly.core.model.arrays import array_of, member_id
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import AttemptState, TaskState
from octaskly.store.reading import change_feed, queries
from octaskly.store.tables import arrays
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit
from tests.property.fuzzing import search

PLAIN, NOTIFIED, ARRAY, NOTIFIED_ARRAY = (kit.task_id(number) for number in range(1, 5))
COUNT = 2
MEMBERS = [
    member_id(array, number)
    for array in (ARRAY, NOTIFIED_ARRAY)
    for number in range(COUNT)
]
URL = "http://localhost"
ACCEPTED = (
    kit.submitted(1),
    kit.submitted(2, options=TaskOptions(notify_url=URL)),
    kit.submitted(3, options=TaskOptions(array=ArraySpec(count=COUNT))),
    kit.submitted(4, options=TaskOptions(array=ArraySpec(count=COUNT), notify_url=URL)),
)


@st.composite
def facts(draw: st.DrawFn) -> Fact:
    kind = draw(st.sampled_from(("assigned", "finished", "cancelled", "notified")))
    if kind == "notified":
        return Notified(draw(st.sampled_from((NOTIFIED, NOTIFIED_ARRAY))))
    if kind == "cancelled":
        anything = (PLAIN, NOTIFIED, ARRAY, NOTIFIED_ARRAY, *MEMBERS)
        return replace(kit.cancelled(1), task=draw(st.sampled_from(anything)))
    task = draw(st.sampled_from((PLAIN, NOTIFIED, *MEMBERS)))
    number = draw(st.integers(1, 3))
    if kind == "assigned":
        return replace(kit.assigned(1, number), task=task)
    ends = (AttemptState.OK, AttemptState.FAILED, AttemptState.RELEASED)
    ended = kit.finished(1, number, state=draw(st.sampled_from(ends)))
    return replace(ended, task=task)


@st.composite
def arrivals(draw: st.DrawFn) -> list[list[Entry]]:
    """Return commits, of a stream with the present time and one that is late."""
    commits = [kit.entries(ACCEPTED)]
    times = {kit.STREAM: 2000, kit.OTHER: 0}
    seqs = {kit.STREAM: len(ACCEPTED), kit.OTHER: 0}
    for _ in range(draw(st.integers(1, 6))):
        stream = draw(st.sampled_from((kit.STREAM, kit.STREAM, kit.OTHER)))
        commit = []
        for fact in draw(st.lists(facts(), min_size=1, max_size=4)):
            times[stream] += draw(st.integers(1, 700))
            seqs[stream] += 1
            commit.append(Entry(stream, seqs[stream], times[stream], fact))
        commits.append(commit)
    return commits


class Client:
    """A client that reads the log page by page, and keeps the state of each task."""

    def __init__(self, db: sqlite3.Connection, data: st.DataObject) -> None:
        self.db = db
        self.known: dict[TaskId, TaskState] = {}
        self._data = data
        self._cursor = FeedCursor(0, {}, kit.STREAM)
        self._position: FeedPosition = self._cursor.position

    def read_to_end(self) -> None:
        """Read all pages; the connection may break behind any item."""
        has_more = True
        while has_more:
            limit = self._data.draw(st.integers(1, 5))
            page = change_feed.read_feed_page(
                self.db, kit.PicklePacker(), self._cursor.vector, limit
            )
            items = read_page(page, self._cursor)
            breaks_after = self._data.draw(st.integers(0, 2 * len(items)))
            is_broken = 0 < breaks_after < len(items)
            for item in items[:breaks_after] if is_broken else items:
                self._receive(item.content)
                self._position = item.position or self._position
            if is_broken:
                self._reconnect()
            has_more = page.has_more or is_broken

    def _receive(self, content: object) -> None:
        match content:
            case FeedGap():
                self.known = {task: state_of(self.db, task) for task in self.known}
            case TaskEvent(record, state):
                self.known[record.id] = state
            case _:
                raise AssertionError(content)

    def _reconnect(self) -> None:
        _, extents, retired = change_feed.stream_extents_at(self.db, self._position.hlc)
        self._cursor, is_whole = resume_cursor(
            self._position, extents, kit.STREAM, retired
        )
        if not is_whole:
            self._receive(FeedGap())


def state_of(db: sqlite3.Connection, task: TaskId) -> TaskState:
    record = queries.read_task(db, task)
    assert record is not None
    return record.state


def ended_tasks(db: sqlite3.Connection, seen: Sequence[TaskId]) -> dict[TaskId, str]:
    """Return the state of each task that has ended, and of each array without runs.

    Members that end by the cancellation of their array have no events of their own.
    """
    found = {}
    for task in seen:
        above = queries.read_task(db, array_of(task) or task)
        assert above is not None
        is_in_cancelled = above.id != task and above.cancelled_by is not None
        members = arrays.read_members_of(db, task)
        has_exited = members is None or not members.live_count
        if state_of(db, task).is_final and has_exited and not is_in_cancelled:
            found[task] = state_of(db, task).value
    return found


@search(150)
@given(arrivals(), st.data())
def test_the_last_event_of_an_ended_task_is_its_end(
    commits: list[list[Entry]], data: st.DataObject
) -> None:
    """Whatever the client has missed."""
    db = kit.database()
    tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
    client = Client(db, data)

    for commit in commits:
        tables.append_entries([Append(1, tuple(commit), kit.EPOCHS)])
        if data.draw(st.booleans()):
            client.read_to_end()
    client.read_to_end()

    ended = ended_tasks(db, list(client.known))
    assert {task: client.known[task].value for task in ended} == ended
    db.close()
