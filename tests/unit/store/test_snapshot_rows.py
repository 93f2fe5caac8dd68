"""Rows of a snapshot: each fits into a frame, whatever its attempts have written."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import closing

from msgspec.structs import replace

from octaskly.core.effects import Append
from octaskly.core.log.facts import Fact, Finished
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, OutputFile
from octaskly.core.protocol.messages import SnapshotCursor
from octaskly.mesh.wire import WirePacker
from octaskly.store.reading.snapshot import read_snapshot_head, read_snapshot_part
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit

TRIES = 10
MIB = 1 << 20


def read_row(end: Callable[[int], Outcome]) -> list[Outcome]:
    """Return the ends of a task's attempts in its row, which fits into a frame."""
    facts: list[Fact] = [kit.submitted(1)]
    for attempt in range(1, TRIES + 1):
        term = int(attempt == TRIES)
        ended = (kit.task_id(1), kit.attempt_id(attempt), kit.WORKER, end(attempt))
        facts += [kit.assigned(1, n=attempt), Finished(*ended, term)]
    with closing(kit.database()) as db:
        tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
        tables.append_entries([Append(1, tuple(kit.entries(facts)), kit.EPOCHS)])
        head, ages = read_snapshot_head(db), TaskAges(kit.WALL_MS)
        packer = WirePacker()
        part = read_snapshot_part(db, packer, SnapshotCursor(1), MIB, ages, head)

    assert len(packer.pack(part)) < Limits().frame_bytes
    outcomes = [attempt.outcome for attempt in part.rows[0].record.attempts]
    return [outcome for outcome in outcomes if outcome is not None]


def test_a_task_with_many_long_outputs_fits_into_a_frame() -> None:
    """A node that needs the snapshot would never become a standby."""
    written = Outcome(AttemptState.FAILED, EndReason.EXIT, 1, stdout_bytes=MIB)

    ends = read_row(lambda n: replace(written, stdout=bytes([n]) * MIB))

    assert [len(each.stdout) // MIB for each in ends] == [0] * 8 + [1, 1]


def test_a_task_whose_attempts_left_many_files_fits_into_a_frame() -> None:
    """Each attempt names them again, with up to a MiB of paths."""
    files = tuple(OutputFile(f"{n:04}".ljust(250, "p"), n) for n in range(4000))
    left = Outcome(AttemptState.FAILED, EndReason.EXIT, 1, outputs=files)

    ends = read_row(lambda _: left)

    assert [len(each.outputs) for each in ends] == [0] * 9 + [4000]


def test_a_part_reads_only_its_own_rows() -> None:
    """Each of them may have megabytes, and the sender may be a small board."""
    facts: list[Fact] = [
        kit.submitted(n, options=TaskOptions(stdin=bytes(MIB // 4)))
        for n in range(1, 60)
    ]
    with closing(kit.database()) as db:
        tables = TableWriter(db, kit.PicklePacker(), kit.HandClock())
        tables.append_entries([Append(1, tuple(kit.entries(facts)), kit.EPOCHS)])
        head, ages, packer = read_snapshot_head(db), TaskAges(kit.WALL_MS), WirePacker()

        tracemalloc.start()
        read_snapshot_part(db, packer, SnapshotCursor(1), MIB, ages, head)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak_bytes < 4 * MIB
