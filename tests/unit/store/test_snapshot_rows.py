"""Rows of a snapshot: each fits into a frame, whatever its attempts have written."""

from __future__ import annotations

from contextlib import closing

from octaskly.core.effects import Append
from octaskly.core.log.facts import Fact, Finished
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.protocol.messages import SnapshotCursor
from octaskly.mesh.wire import WirePacker
from octaskly.store.reading.snapshot import read_snapshot_head, read_snapshot_part
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit

TRIES = 10
MIB = 1 << 20


def failed(attempt: int) -> Fact:
    """Return the end of an attempt that wrote as much as is kept of one stream."""
    end = Outcome(
        AttemptState.FAILED,
        EndReason.EXIT,
        1,
        stdout=bytes([attempt]) * MIB,
        stdout_bytes=MIB,
    )
    term = int(attempt == TRIES)
    return Finished(kit.task_id(1), kit.attempt_id(attempt), kit.WORKER, end, term)


def test_a_task_with_many_long_outputs_fits_into_a_frame() -> None:
    """A node that needs the snapshot would never become a standby."""
    facts: list[Fact] = [kit.submitted(1)]
    for attempt in range(1, TRIES + 1):
        facts += [kit.assigned(1, n=attempt), failed(attempt)]
    with closing(kit.database()) as db:
        tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
        tables.append_entries([Append(1, tuple(kit.entries(facts)), kit.EPOCHS)])
        head, ages = read_snapshot_head(db), TaskAges(kit.WALL_MS)
        packer = WirePacker()
        part = read_snapshot_part(db, packer, SnapshotCursor(1), MIB, ages, head)

    assert len(packer.pack(part)) < Limits().frame_bytes
    outcomes = [attempt.outcome for attempt in part.rows[0].record.attempts]
    assert [len(each.stdout) // MIB for each in outcomes if each] == [0] * 8 + [1, 1]
