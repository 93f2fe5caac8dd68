"""A snapshot with a later task that has the id of one this node has not forgotten."""

from __future__ import annotations

from contextlib import closing

from msgspec.structs import replace

from octaskly.core.effects import Append, MergeRows, StageRows
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Finished,
    Floor,
    StreamFloor,
    TaskCancelled,
)
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.model.arrays import member_id
from octaskly.core.model.ids import AttemptId, Epoch, NodeId, StreamId
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import Attempt, TaskState
from octaskly.core.protocol.messages import Snapshot, SnapshotCursor, SnapshotHead
from octaskly.store.reading.queries import read_task
from octaskly.store.tables.arrays import MEMBER_BIRTH
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit

OURS, THEIRS = kit.EPOCHS[0], (StreamId(500), Epoch(3, NodeId("t" * 16)))
HEAD = SnapshotHead(
    vector=((OURS[0], 2), (THEIRS[0], 2)),
    epochs=(OURS, THEIRS),
    floor=Floor(100, (StreamFloor(OURS[0], 2, OURS[1]),)),
    hlc=600,
)


def test_a_member_of_a_later_array_is_not_taken_for_that_of_the_earlier_one() -> None:
    """Its row would be lost, and the member would run again."""
    first = kit.submitted(1, options=TaskOptions(array=ArraySpec(count=3)))
    array, member = first.task, member_id(first.task, 0)
    attempt = AttemptId(3, THEIRS[0], 2, 1)
    rows = (
        TaskRow(
            TaskRecord(array, replace(first.spec, ord=900)),
            SubmissionTimes(500, 500, THEIRS[0], 1),
            500,
        ),
        TaskRow(
            TaskRecord(member, attempts=(Attempt(attempt, kit.WORKER),)),
            MEMBER_BIRTH,
            501,
        ),
    )
    part = Snapshot(rows=rows, cursor=SnapshotCursor(1), has_more=False, head=HEAD)
    with closing(kit.database()) as db:
        tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
        begun = Assigned(member, kit.attempt_id(2), kit.WORKER)
        entries = kit.entries([first, begun])
        tables.append_entries([Append(1, tuple(entries), kit.EPOCHS)])

        tables.stage_rows(StageRows(2, 1, NodeId("p"), part))
        tables.merge_rows(MergeRows(3, 1, HEAD, (), is_last=True))

        found = read_task(db, member)
    assert found is not None
    assert found.state is TaskState.RUNNING
    assert [each.id for each in found.attempts] == [attempt]


def test_a_late_result_is_not_merged_with_a_task_that_the_sender_has_forgotten() -> (
    None
):
    """Else the node shows a task that no other one has, until the next floor."""
    submitted = kit.submitted(1)
    late = Finished(
        submitted.task, kit.attempt_id(9), kit.WORKER, kit.finished(1).outcome, 1
    )
    pending = (Entry(THEIRS[0], 1, 500, late),)
    part = Snapshot(
        rows=(), cursor=SnapshotCursor(1), has_more=False, head=HEAD, pending=pending
    )
    with closing(kit.database()) as db:
        tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
        known = Entry(OURS[0], 1, 10, submitted), Entry(OURS[0], 2, 11, kit.finished(1))
        tables.append_entries([Append(1, known, kit.EPOCHS)])

        tables.stage_rows(StageRows(2, 1, NodeId("p"), part))
        tables.merge_rows(MergeRows(3, 1, HEAD, (), is_last=True))

        assert read_task(db, submitted.task) is None


def test_void_entries_that_arrive_during_a_merge_do_not_change_its_tasks() -> None:
    """A later task with this id would be shown as cancelled, and never run."""
    earlier = kit.submitted(1)
    later = TaskRecord(earlier.task, replace(earlier.spec, ord=900))
    row = TaskRow(later, SubmissionTimes(500, 500, THEIRS[0], 1), 500)
    first, last = SnapshotCursor(1, 1), SnapshotCursor(1, 2)
    cancelled = TaskCancelled(earlier.task, "ada", 1)
    with closing(kit.database()) as db:
        tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
        for part in (
            Snapshot(rows=(row,), cursor=first, has_more=True, head=HEAD),
            Snapshot(rows=(), cursor=last, has_more=False, after=first),
        ):
            tables.stage_rows(StageRows(1, 1, NodeId("p"), part))

        tables.merge_rows(MergeRows(2, 1, HEAD, (), is_last=False))
        void = Entry(OURS[0], 1, 10, earlier), Entry(OURS[0], 2, 11, cancelled)
        tables.append_entries([Append(3, void, kit.EPOCHS)])
        tables.merge_rows(MergeRows(4, 1, HEAD, (), is_last=True))

        assert read_task(db, earlier.task) == later
